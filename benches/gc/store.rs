//! A store of many chunks and snapshots, made without the library's ways, so that it is there soon.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
#[cfg(feature = "testing")]
use larder::backend::{Backend, PutMode};
use larder::backend::{FsBackend, FsOptions, SyncLevel};
use larder::format::Digest;
#[cfg(feature = "testing")]
use larder::format::layout::Key;
use larder::format::manifest::CryptMode;
use larder::format::name::{BackupTime, GroupName};
use larder::internal::fixed_index::FixedIndexWriter;
use larder::internal::manifest;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options};

use crate::Outcome;

const SNAPSHOTS: u64 = 100;
const CHUNK: u64 = 4 << 20;
/// One of so many chunks is garbage.
const GARBAGE: u64 = 20;

/// How many of so many chunks are garbage.
pub(crate) fn garbage(chunks: u64) -> u64 {
    chunks / GARBAGE
}

pub(crate) fn make(path: &Path, chunks: u64) -> Outcome<()> {
    make_loose(path, chunks)?;
    make_snapshots(path, chunks)
}

/// As [`make`], with a store of this form.
#[cfg(feature = "testing")]
#[allow(dead_code, reason = "only one of the two benches with this file uses it")]
pub(crate) fn make_form(path: &Path, chunks: u64, is_packed: bool) -> Outcome<()> {
    if !is_packed {
        return make(path, chunks);
    }
    let runtime = Arc::new(ThreadRuntime::new());
    block_on(async {
        let options = FsOptions::default()
            .sync_level(SyncLevel::None)
            .prefix_directories(larder::backend::PrefixDirectories::OnDemand);
        let backend: Arc<dyn Backend> = Arc::new(FsBackend::create(runtime, path, options).await?);
        let packs = larder::store::PackOptions::default();
        Datastore::create(Arc::clone(&backend), Options::default().packed(packs)).await?;
        let packed = larder::internal::packs::packed(backend).await;
        for number in 0..chunks {
            let blob = vec![7; length(number)].into();
            packed.put(&Key::Chunk(digest(number)), blob, PutMode::Create).await?;
        }
        packed.barrier().await?;
        Outcome::Ok(())
    })?;
    let content = path.join(".larder/cnt");
    fs::create_dir_all(&content)?;
    make_snapshots(&content, chunks)
}

/// Of another length each, and of no other use.
fn length(number: u64) -> usize {
    40 + usize::try_from(number % 200).unwrap_or_default()
}

fn make_loose(path: &Path, chunks: u64) -> Outcome<()> {
    let runtime = Arc::new(ThreadRuntime::new());
    block_on(async {
        let options = FsOptions::default().sync_level(SyncLevel::None);
        let backend = FsBackend::create(runtime, path, options).await?;
        Datastore::create(Arc::new(backend), Options::default()).await
    })?;
    let halves = [0..chunks / 2, chunks / 2..chunks];
    std::thread::scope(|scope| {
        let workers = halves.map(|numbers| {
            scope.spawn(move || -> std::io::Result<()> {
                for number in numbers {
                    let name = digest(number).to_string();
                    let contents = vec![7; length(number)];
                    fs::write(path.join(".chunks").join(&name[..4]).join(&name), contents)?;
                }
                Ok(())
            })
        });
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(std::io::Error::other("panic"))))
    })?;
    Ok(())
}

fn make_snapshots(path: &Path, chunks: u64) -> Outcome<()> {
    let used = chunks - garbage(chunks);
    let entries = used / 10 + used % 10;
    let group: GroupName = "vm/100".parse()?;
    fs::create_dir_all(path.join("vm/100"))?;
    fs::write(path.join("vm/100/owner"), "root@pam\n")?;
    // Each snapshot has some chunks that are new, in place of old ones all over the image.
    let mut current: Vec<u64> = (0..entries).collect();
    let mut next = entries;
    for snapshot in 0..SNAPSHOTS {
        if snapshot > 0 {
            let new = (used - next) / (SNAPSHOTS - snapshot);
            for number in 0..new {
                let place = (number * entries / new + snapshot) % entries;
                current[usize::try_from(place)?] = next;
                next += 1;
            }
        }
        let time = BackupTime::try_from(1_700_000_000 + i64::try_from(snapshot)? * 86_400)?;
        write_snapshot(path, &group, time, &current)?;
    }
    Ok(())
}

fn write_snapshot(path: &Path, group: &GroupName, time: BackupTime, numbers: &[u64]) -> Outcome<()> {
    let size = numbers.len() as u64 * CHUNK;
    let mut index = FixedIndexWriter::new(size, CHUNK)?;
    for (at, number) in numbers.iter().enumerate() {
        index.set(at as u64 * CHUNK, CHUNK, digest(*number))?;
    }
    let index = index.finish([1; 16], time.epoch())?;
    let directory = path.join(group.snapshot(time).to_string());
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("disk.img.fidx"), &index.bytes)?;
    let mut manifest = manifest::of_snapshot(&group.snapshot(time));
    let file = manifest::file("disk.img.fidx".parse()?, CryptMode::None, size, index.checksum)?;
    manifest::add_file(&mut manifest, file)?;
    let mut blob = Vec::new();
    larder::internal::blob::BlobEncoder::new(1)?.encode(&manifest.to_json(), &mut blob)?;
    fs::write(directory.join("index.json.blob"), blob)?;
    Ok(())
}

fn digest(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

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
use larder::internal::blob::BlobEncoder;
use larder::internal::fixed_index::FixedIndexWriter;
use larder::internal::manifest;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options};

use crate::Outcome;

const SNAPSHOTS: u64 = 100;
const CHUNK: u64 = 4 << 20;
/// One of so many chunks is garbage.
const GARBAGE: u64 = 20;

/// A prime that no usual number of chunks has as a factor.
#[cfg(feature = "testing")]
const STRIDE: u64 = 1_000_003;

/// How many of so many chunks are garbage.
pub(crate) fn garbage(chunks: u64) -> u64 {
    chunks / GARBAGE
}

pub(crate) fn make(path: &Path, chunks: u64) -> Outcome<()> {
    make_loose(path, chunks)?;
    make_snapshots(path, chunks)
}

/// As [`make`], with a store of this form. `is_mixed` stores the chunks in packs in another order than they are used.
#[cfg(feature = "testing")]
#[allow(dead_code, reason = "only one of the two benches with this file uses it")]
pub(crate) fn make_form(path: &Path, chunks: u64, is_packed: bool, is_mixed: bool) -> Outcome<()> {
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
        let mut encoder = BlobEncoder::new(1)?;
        for number in 0..chunks {
            let number = if is_mixed { number * STRIDE % chunks } else { number };
            let (digest, blob) = chunk(number, &mut encoder)?;
            packed.put(&Key::Chunk(digest), blob.into(), PutMode::Create).await?;
        }
        packed.barrier().await?;
        Outcome::Ok(())
    })?;
    let content = content(path, true);
    fs::create_dir_all(&content)?;
    make_snapshots(&content, chunks)
}

/// Deletes the older half of the snapshots.
#[cfg(feature = "testing")]
#[allow(dead_code, reason = "only one of the two benches with this file uses it")]
pub(crate) fn prune_half(path: &Path, is_packed: bool) -> Outcome<()> {
    let group: GroupName = "vm/100".parse()?;
    for snapshot in 0..SNAPSHOTS / 2 {
        fs::remove_dir_all(content(path, is_packed).join(group.snapshot(time_of(snapshot)?).to_string()))?;
    }
    Ok(())
}

/// Where the snapshots of a store are.
#[cfg(feature = "testing")]
fn content(path: &Path, is_packed: bool) -> std::path::PathBuf {
    if is_packed { path.join(".larder/cnt") } else { path.to_owned() }
}

fn time_of(snapshot: u64) -> Outcome<BackupTime> {
    Ok(BackupTime::try_from(1_700_000_000 + i64::try_from(snapshot)? * 86_400)?)
}

/// The plaintext of a chunk, which does not compress: 200 to 999 bytes.
fn plaintext(number: u64) -> Vec<u8> {
    let mut state = number + 1;
    let words = (0..25 + number % 100).map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    });
    words.flat_map(u64::to_le_bytes).collect()
}

fn chunk(number: u64, encoder: &mut BlobEncoder) -> Outcome<(Digest, Vec<u8>)> {
    let plaintext = plaintext(number);
    let mut blob = Vec::new();
    encoder.encode(&plaintext, &mut blob)?;
    Ok((Digest::of(&plaintext), blob))
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
            scope.spawn(move || -> Result<(), String> {
                let mut encoder = BlobEncoder::new(1).map_err(|error| error.to_string())?;
                for number in numbers {
                    let (digest, blob) = chunk(number, &mut encoder).map_err(|error| error.to_string())?;
                    let name = digest.to_string();
                    let file = path.join(".chunks").join(&name[..4]).join(&name);
                    fs::write(file, blob).map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        });
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("panic".into())))
    })?;
    Ok(())
}

fn make_snapshots(path: &Path, chunks: u64) -> Outcome<()> {
    let used = chunks - garbage(chunks);
    let entries = used / 10 + used % 10;
    let group: GroupName = "vm/100".parse()?;
    fs::create_dir_all(path.join("vm/100"))?;
    fs::write(path.join("vm/100/owner"), "root@pam\n")?;
    let digests: Vec<_> = (0..used).map(|number| Digest::of(&plaintext(number))).collect();
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
        let of_snapshot: Vec<_> = current
            .iter()
            .map(|number| usize::try_from(*number).map(|at| digests[at]))
            .collect::<Result<_, _>>()?;
        write_snapshot(path, &group, time_of(snapshot)?, &of_snapshot)?;
    }
    Ok(())
}

fn write_snapshot(path: &Path, group: &GroupName, time: BackupTime, digests: &[Digest]) -> Outcome<()> {
    let size = digests.len() as u64 * CHUNK;
    let mut index = FixedIndexWriter::new(size, CHUNK)?;
    for (at, digest) in digests.iter().enumerate() {
        index.set(at as u64 * CHUNK, CHUNK, *digest)?;
    }
    let index = index.finish([1; 16], time.epoch())?;
    let directory = path.join(group.snapshot(time).to_string());
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("disk.img.fidx"), &index.bytes)?;
    let mut manifest = manifest::of_snapshot(&group.snapshot(time));
    let file = manifest::file("disk.img.fidx".parse()?, CryptMode::None, size, index.checksum)?;
    manifest::add_file(&mut manifest, file)?;
    let mut blob = Vec::new();
    BlobEncoder::new(1)?.encode(&manifest.to_json(), &mut blob)?;
    fs::write(directory.join("index.json.blob"), blob)?;
    Ok(())
}

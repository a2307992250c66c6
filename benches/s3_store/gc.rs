//! Garbage collection of a store of very many chunks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use larder::Observer;
use larder::backend::{Backend, PutMode};
use larder::format::layout::Key;
use larder::format::manifest::CryptMode;
use larder::format::name::{BackupTime, GroupName};
use larder::gc::{self, GcEvent, GcOptions};
use larder::internal::blob::BlobEncoder;
use larder::internal::fixed_index::FixedIndexWriter;
use larder::internal::manifest;

use crate::far::{DELAY, STORE, Server};
use crate::report::{Report, Target};
use crate::server::bucket::filler;
use crate::{Outcome, Plan};

const CHUNKS: u64 = 1_000_000;
/// One of so many is garbage.
const GARBAGE: u64 = 20;
const SNAPSHOTS: u64 = 10;
const CHUNK: u64 = 4 << 20;
/// How many entries a page has, and how many objects one request deletes.
const PAGE: u64 = 1000;
/// How many pages are to be on their way at the same time, and how much longer than that it may take.
const PARALLEL: f64 = 16.0;
const SLACK: f64 = 1.5;
/// Beside pages and deletions: what is read and written of metadata, the lease and the time.
const METADATA: u64 = 60;

/// When chunks were listed.
#[derive(Default)]
struct Watch(Mutex<(Option<Instant>, Option<Instant>)>);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

impl Observer<GcEvent> for Watch {
    fn on_event(&self, event: &GcEvent) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            GcEvent::IndexMarked { .. } => times.0 = Some(Instant::now()),
            GcEvent::ShardListed { .. } => times.1 = Some(Instant::now()),
            _ => {}
        }
    }
}

pub(crate) fn run(_: &Plan, report: &mut Report) -> Outcome<()> {
    let mut server = block_on(Server::start())?;
    block_on(async {
        // The store, before there is anything in it.
        server.process(None).await?.end().await?;
        make_snapshots(
            server.backend(STORE)?.as_ref(),
            (CHUNKS - CHUNKS / GARBAGE) / SNAPSHOTS,
            SNAPSHOTS,
            |key| key,
        )
        .await
    })?;
    server.fill(CHUNKS)?;
    server.be_slow()?;
    let watch = Arc::<Watch>::default();
    block_on(async {
        let process = server.process(None).await?;
        process.take_lease().await?;
        server.requests()?;
        let options =
            GcOptions::default().grace(Duration::ZERO).consistent_listings().observer(watch.clone());
        let start = Instant::now();
        let mut plan = gc::plan(&process.store, options).await?;
        let planned = start.elapsed();
        let (garbage, in_use) = (plan.summary().garbage.chunks, plan.summary().in_use.chunks);
        if (garbage, in_use) != (CHUNKS / GARBAGE, CHUNKS - CHUNKS / GARBAGE) {
            return Err(format!("{garbage} are garbage, {in_use} in use").into());
        }
        let done = plan.execute().await?;
        let total = start.elapsed();
        if done.removed.chunks != garbage {
            return Err(format!("not all was removed: {done:?}").into());
        }
        drop(plan);
        let requests = server.requests()?;
        let pages = CHUNKS.div_ceil(PAGE);
        let limit = pages as f64 / PARALLEL * DELAY.as_secs_f64() * SLACK;
        let (marked, listed) = *watch.0.lock().unwrap_or_else(PoisonError::into_inner);
        let listing =
            listed.zip(marked).map(|(listed, marked)| listed - marked).ok_or("nothing was listed")?;
        report.add("a million chunks: listing", listing.as_secs_f64(), "s", Target::AtMost(limit));
        report.add("a million chunks: plan", planned.as_secs_f64(), "s", Target::Open);
        report.add("a million chunks: plan and execution", total.as_secs_f64(), "s", Target::Open);
        let allowed = pages + garbage.div_ceil(PAGE) + METADATA;
        *report.count("a million chunks: requests", requests.total(), Some(allowed)) = requests.text();
        process.end().await
    })
}

/// Snapshots that each name so many other chunks, from the first one on.
pub(crate) async fn make_snapshots(
    backend: &dyn Backend,
    each: u64,
    count: u64,
    placed: impl Fn(Key) -> Key,
) -> Outcome<()> {
    let group: GroupName = "vm/100".parse()?;
    backend.put(&placed(Key::Owner(group.clone())), "root@pam\n".into(), PutMode::Replace).await?;
    for snapshot in 0..count {
        let time = BackupTime::try_from(1_700_000_000 + i64::try_from(snapshot)?)?;
        let name = group.snapshot(time);
        let size = each * CHUNK;
        let mut index = FixedIndexWriter::new(size, CHUNK)?;
        for at in 0..each {
            index.set(at * CHUNK, CHUNK, filler(snapshot * each + at))?;
        }
        let index = index.finish([1; 16], time.epoch())?;
        let archive = Key::Archive(name.clone(), "disk.img.fidx".parse()?);
        backend.put(&placed(archive), index.bytes, PutMode::Replace).await?;
        let mut manifest = manifest::of_snapshot(&name);
        let file = manifest::file("disk.img.fidx".parse()?, CryptMode::None, size, index.checksum)?;
        manifest::add_file(&mut manifest, file)?;
        let mut blob = Vec::new();
        BlobEncoder::new(1)?.encode(&manifest.to_json(), &mut blob)?;
        backend.put(&placed(Key::Manifest(name)), blob.into(), PutMode::Replace).await?;
    }
    Ok(())
}

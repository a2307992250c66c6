//! The chunks of a snapshot.
//!
//! ```text
//! distinct, in the order of the indexes → [named by the base? → reused │ read → checked → bandwidth → stored]
//! ```
//! The part in brackets runs for many chunks at the same time, bounded by their number at each end and by the memory of each store.
//! A chunk that the target happens to have is transferred all the same, unless the newest snapshot of the group names it or this plan
//! transferred it: knowledge of a digest does not prove possession of the chunk (H180).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{self, StreamExt as _};

use crate::chunks::{ExistingCheck, ReuseSource, Stored, WriterPins};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::larder::pack::PackClass;
use crate::format::manifest::CryptMode;
use crate::format::name::{ArchiveName, SnapshotName};
use crate::store::in_archive;
use crate::sync::context::{Base, Failure, Run};
use crate::sync::events::SyncEvent;
use crate::sync::progress::TransferCounts;

/// An index, and the encryption mode of its chunks.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) mode: CryptMode,
    pub(super) name: ArchiveName,
    pub(super) reader: IndexReader,
}

/// Chunks that need no transfer.
#[derive(Debug)]
pub(super) struct Reuse {
    pub(super) base: Option<Arc<Base>>,
    pub(super) check: ExistingCheck,
    /// Snapshot of the source in the same store.
    pub(super) of_same: Option<ReuseSource>,
    /// Chunks transferred by this plan.
    pub(super) sent: Arc<WriterPins>,
    /// Chunks that this snapshot reuses. Other snapshots may not rely on them.
    pub(super) taken: Arc<WriterPins>,
}

/// The snapshot at both ends, and the names of its archives of chunks.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) archives: Vec<ArchiveName>,
    /// Counts of all attempts to transfer the snapshot.
    pub(super) counts: &'a TransferCounts,
    pub(super) source: &'a SnapshotName,
    pub(super) target: &'a Arc<SnapshotName>,
}

/// A chunk that a snapshot needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The number of the first archive of the snapshot that has it.
    pub(super) archive: usize,
    pub(super) digest: Digest,
    is_encrypted: bool,
    pub(super) length: u64,
}

/// The distinct chunks, in the order in which they come first.
pub(super) async fn wanted(run: &Run, indexes: Vec<Index>, reuse: &Reuse) -> Result<Vec<Wanted>> {
    let sent = Arc::clone(&reuse.sent);
    run.target
        .inner()
        .runtime()
        .run_blocking("read indexes", move || distinct(&indexes, |digest| sent.is_confirmed(digest)))
        .await
}

/// The distinct chunks that were not sent yet, in the order in which they come first.
pub(super) fn distinct(indexes: &[Index], is_sent: impl Fn(&Digest) -> bool) -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    for (archive, index) in indexes.iter().enumerate() {
        let is_encrypted = index.mode == CryptMode::Encrypt;
        for chunk in index.reader.iter() {
            all.push((Wanted { archive, digest: chunk.digest, is_encrypted, length: chunk.len }, all.len()));
        }
    }
    all.sort_unstable_by_key(|(wanted, at)| (wanted.digest, *at));
    for pair in all.windows(2) {
        if let [(one, _), (other, _)] = pair
            && one.digest == other.digest
            && (one.length, one.is_encrypted) != (other.length, other.is_encrypted)
        {
            let error = Error::new(ErrorKind::Corrupt, "read indexes").on(one.digest);
            return Err(error.because("index entries disagree on its length or encryption"));
        }
    }
    all.dedup_by_key(|(wanted, _)| wanted.digest);
    all.retain(|(wanted, _)| !is_sent(&wanted.digest));
    all.sort_unstable_by_key(|(_, at)| *at);
    Ok(all.into_iter().map(|(wanted, _)| wanted).collect())
}

/// Transfers or reuses the chunks; returns the number of reused ones.
pub(super) async fn transfer(
    run: &Run,
    ends: &Ends<'_>,
    wanted: Vec<Wanted>,
    reuse: &Reuse,
) -> Result<u64, Failure> {
    let stop = &Stop::new(run);
    let mut reused = 0;
    let one = |wanted| one(run, ends, wanted, reuse, stop);
    concurrently(stop, wanted, one, |is_reused| reused += u64::from(is_reused)).await?;
    Ok(reused)
}

/// Ends the transfers of a snapshot after a failure or an abort.
#[derive(Debug)]
pub(super) struct Stop<'a> {
    has_failed: AtomicBool,
    run: &'a Run,
}

impl<'a> Stop<'a> {
    pub(super) fn new(run: &'a Run) -> Self {
        Self { has_failed: AtomicBool::new(false), run }
    }

    /// Fails if no transfer may start any more.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.run.check_abort()?;
        if self.has_failed.load(Ordering::Relaxed) { Err(Failure::Aborted) } else { Ok(()) }
    }
}

/// Transfers chunks, many concurrently. After a failure or an abort, no transfer starts, and those that have reached the target end, so that the
/// next execution does not repeat them. Returns the first failure.
pub(super) async fn concurrently<T, F>(
    stop: &Stop<'_>,
    wanted: Vec<Wanted>,
    transfer: impl Fn(Wanted) -> F,
    mut finished: impl FnMut(T),
) -> Result<(), Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let window = window(stop.run, &wanted);
    let mut chunks = stream::iter(wanted).map(transfer).buffer_unordered(window);
    let mut failure = None;
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => finished(chunk),
            Err(error) => {
                stop.has_failed.store(true, Ordering::Relaxed);
                failure = failure.or(Some(error));
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Number of chunks in flight. With a limit on bandwidth, no more than one second's worth: other work needs the memory.
fn window(run: &Run, wanted: &[Wanted]) -> usize {
    let both = run.reads.count + run.writes.count;
    let Some(rate) = run.options.bytes_per_second else { return both };
    let bytes: u64 = wanted.iter().map(|wanted| wanted.length).sum();
    let average = (bytes / (wanted.len() as u64).max(1)).max(1);
    usize::try_from(rate.get() / average).unwrap_or(usize::MAX).clamp(1, both)
}

/// Returns `true` if the target had the chunk, and `false` if it was transferred.
async fn one(
    run: &Run,
    ends: &Ends<'_>,
    wanted: Wanted,
    reuse: &Reuse,
    stop: &Stop<'_>,
) -> Result<bool, Failure> {
    stop.check()?;
    let snapshot = Arc::clone(ends.target);
    let Wanted { archive, digest, is_encrypted, length } = wanted;
    if is_at_target(run, digest, reuse).await? {
        run.notify(&SyncEvent::ChunkReused { digest, snapshot });
        return Ok(true);
    }
    let (chunk, read) = {
        let _slot = run.reads.budget.acquire(1).await;
        let read = run.source.inner().read_permit(length).await;
        stop.check()?;
        let chunk = run.source.inner().chunks().get_stored(digest, length).await;
        let named = |error| match ends.archives.get(archive) {
            Some(archive) => in_archive(error, digest, archive, ends.source),
            None => error,
        };
        (chunk.map_err(named)?, read)
    };
    if chunk.is_encrypted() != is_encrypted && !mutated!("sync-mixes-plain-and-encrypted") {
        let error = Error::new(ErrorKind::Corrupt, "read chunk").on(digest);
        return Err(error.because("its encryption does not match the manifest").into());
    }
    let stored = chunk.stored_bytes();
    run.throttle(stored).await?;
    let write = run.target.inner().write_permit(length).await;
    drop(read);
    let _slot = run.writes.budget.acquire(1).await;
    stop.check()?;
    run.notify(&SyncEvent::ChunkSent { digest, snapshot, stored });
    let class = ends.archives.get(archive).map_or(PackClass::Data, PackClass::of_archive);
    let put = run.target.inner().chunks().put_stored(&reuse.sent, (chunk, class), reuse.check).await?;
    drop(write);
    if put == Stored::Known {
        // Confirmed by this plan from now on, so a later attempt does not see it.
        ends.counts.add_known();
    } else {
        ends.counts.add_sent(stored);
    }
    Ok(false)
}

/// Returns `true` if the target has the chunk, and the sender of the snapshot has it or had it before.
async fn is_at_target(run: &Run, digest: Digest, reuse: &Reuse) -> Result<bool> {
    if reuse.check == ExistingCheck::Read {
        return Ok(false);
    }
    let named = reuse.base.as_ref().is_some_and(|base| base.names(&digest)).then_some(ReuseSource::Base);
    let believed = mutated!("sync-believes-a-digest").then_some(ReuseSource::Copy);
    match named.or(reuse.of_same).or(believed) {
        None => Ok(false),
        Some(reference) => {
            run.target.inner().chunks().reuse_if_present(&reuse.taken, digest, reference).await
        }
    }
}

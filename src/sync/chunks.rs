//! The chunks of a snapshot.
//!
//! ```text
//! distinct, in the order of the indexes → [named by the base? → taken over │ read → checked → bandwidth → stored]
//! ```
//! The part in brackets runs for many chunks at the same time, bounded by their number at each end and by the memory of each store.
//! A chunk that the target happens to have is transferred all the same, unless the newest snapshot of the group names it or this run
//! brought it: who names a digest has not shown that they have what belongs to it (H180).

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::chunks::{ExistingCheck, ReuseSource, Stored, WriterPins};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::manifest::CryptMode;
use crate::format::name::{ArchiveName, SnapshotName};
use crate::store::in_archive;
use crate::sync::context::{Base, Failure, Run};
use crate::sync::events::SyncEvent;
use crate::sync::report::SyncStats;

/// An index, and what its chunks have to be.
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
    pub(super) belief: ExistingCheck,
    /// Snapshot of the source in the same store.
    pub(super) of_same: Option<ReuseSource>,
    /// Chunks transferred by this run.
    pub(super) sent: Arc<WriterPins>,
    /// Chunks that this snapshot reuses. Other snapshots may not rely on them.
    pub(super) taken: Arc<WriterPins>,
}

/// The snapshot at both ends, and the names of its archives of chunks.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) archives: Vec<ArchiveName>,
    pub(super) source: &'a SnapshotName,
    pub(super) target: &'a SnapshotName,
}

/// A chunk that a snapshot needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The number of the first archive of the snapshot that has it.
    archive: usize,
    digest: Digest,
    is_encrypted: bool,
    length: u64,
}

/// Outcome for a chunk.
enum Brought {
    Reused,
    Sent(u64),
}

/// The distinct chunks, in the order in which they come first.
pub(super) async fn wanted(run: &Run, indexes: Vec<Index>, reuse: &Reuse) -> Result<Vec<Wanted>> {
    let sent = Arc::clone(&reuse.sent);
    run.target.inner().runtime().run_blocking("read indexes", move || distinct(&indexes, &sent)).await
}

fn distinct(indexes: &[Index], sent: &WriterPins) -> Result<Vec<Wanted>> {
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
            return Err(error.because("it cannot be as long, or of the kind, that each of two entries says"));
        }
    }
    all.dedup_by_key(|(wanted, _)| wanted.digest);
    all.retain(|(wanted, _)| !sent.is_confirmed(&wanted.digest));
    all.sort_unstable_by_key(|(_, at)| *at);
    Ok(all.into_iter().map(|(wanted, _)| wanted).collect())
}

pub(super) async fn bring(
    run: &Run,
    ends: &Ends<'_>,
    wanted: Vec<Wanted>,
    reuse: &Reuse,
) -> Result<SyncStats, Failure> {
    let window = window(run, &wanted);
    let brought = stream::iter(wanted).map(|wanted| one(run, ends, wanted, reuse)).buffer_unordered(window);
    let count = |stats: SyncStats, brought| async move {
        Ok(match brought {
            Brought::Reused => SyncStats { chunks_reused: stats.chunks_reused + 1, ..stats },
            Brought::Sent(bytes) => SyncStats {
                bytes_sent: stats.bytes_sent + bytes,
                chunks_sent: stats.chunks_sent + 1,
                ..stats
            },
        })
    };
    brought.try_fold(SyncStats::default(), count).await
}

/// How many chunks are under way. With a limit on bandwidth, no more than it lets pass in a second: memory that waits is lacking
/// elsewhere.
fn window(run: &Run, wanted: &[Wanted]) -> usize {
    let both = run.reads.count + run.writes.count;
    let Some(rate) = run.options.bytes_per_second else { return both };
    let bytes: u64 = wanted.iter().map(|wanted| wanted.length).sum();
    let average = (bytes / (wanted.len() as u64).max(1)).max(1);
    usize::try_from(rate.get() / average).unwrap_or(usize::MAX).clamp(1, both)
}

async fn one(run: &Run, ends: &Ends<'_>, wanted: Wanted, reuse: &Reuse) -> Result<Brought, Failure> {
    run.go_on()?;
    let snapshot = ends.target;
    let Wanted { archive, digest, is_encrypted, length } = wanted;
    if is_at_target(run, digest, reuse).await? {
        run.event(&SyncEvent::ChunkReused { digest, snapshot });
        return Ok(Brought::Reused);
    }
    let (chunk, read) = {
        let _slot = run.reads.budget.acquire(1).await;
        let read = run.source.inner().read_permit(length).await;
        run.go_on()?;
        let chunk = run.source.inner().chunks().get_stored(digest, length).await;
        let named = |error| match ends.archives.get(archive) {
            Some(archive) => in_archive(error, digest, archive, ends.source),
            None => error,
        };
        (chunk.map_err(named)?, read)
    };
    if chunk.is_encrypted() != is_encrypted {
        let error = Error::new(ErrorKind::Corrupt, "read chunk").on(digest);
        return Err(error.because("the manifest says otherwise of its encryption").into());
    }
    let stored = chunk.stored_bytes();
    run.pass(stored).await?;
    let write = run.target.inner().write_permit(length).await;
    drop(read);
    let _slot = run.writes.budget.acquire(1).await;
    run.go_on()?;
    run.event(&SyncEvent::ChunkSent { digest, snapshot, stored });
    let put = run.target.inner().chunks().put_stored(&reuse.sent, chunk, reuse.belief).await?;
    drop(write);
    Ok(if put == Stored::Known { Brought::Reused } else { Brought::Sent(stored) })
}

/// Returns `true` if the target has the chunk, and the sender of the snapshot has it or had it before.
async fn is_at_target(run: &Run, digest: Digest, reuse: &Reuse) -> Result<bool> {
    if reuse.belief == ExistingCheck::Read {
        return Ok(false);
    }
    let named = reuse.base.as_ref().is_some_and(|base| base.names(&digest)).then_some(ReuseSource::Base);
    match named.or(reuse.of_same) {
        None => Ok(false),
        Some(reference) => {
            run.target.inner().chunks().reuse_if_present(&reuse.taken, digest, reference).await
        }
    }
}

//! Detection of changes: files that are unchanged since the base are not opened, and their contents come from chunks of the base.
//!
//! # The queue
//! The chunks of the base do not end where files end. So unchanged files wait in a queue while their contents follow one another in the payload
//! archive of the base, and directories and other entries wait with them, because their order must stay. A flush decides for the whole
//! queue. It comes with a changed file, with a gap between the contents of two unchanged files, when the queue has
//! [`Policy::max_queued`] entries, and at the end.
//!
//! # The decision
//! The range of the contents lies in some chunks of the base. Bytes of these chunks outside of the range are padding: nothing refers to them. If they are more than a tenth,
//! where each file counts [`Policy::file_bytes`] in addition to its contents,
//! or one of the chunks is [not certainly there](crate::store::ArchiveParts::can_inject), all files of the queue are read again. Otherwise the
//! entries refer to the place where the chunks are about to be, and the chunks are injected.
//!
//! # The held chunk
//! After a flush because of a gap or a full queue the next range may begin in the last chunk of this one, which is therefore held back. If it does,
//! the chunk counts and appears once. Otherwise the chunk is injected before anything else is written.
//!
//! The order of events is that of the clients of PBS, and with their numbers the archives are equal to theirs, byte for byte. The numbers differ:
//! a range that ends with a chunk does not bring the chunk after it along; the queue is longer, since no file in it is open; and a file has a
//! weight, because many tiny files cost more to open than a chunk of padding, which is stored already. A file that was modified while the base
//! was written, or up to a minute before, is read again: it may have changed once more without a new time (H193). Filesystems have times of up to
//! two seconds, and Linux sets no new one for a store into a page of a mapped file that is still dirty, which takes half a minute by default. A file whose
//! contents could not be read as listed is stored with the lowest bit of its nanoseconds flipped, so that no listing matches and the next backup reads it again. Source: PBS pxar format, metadata change detection.

use std::collections::HashSet;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use futures::stream::StreamExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::dynamic_index::DynamicIndexReader;
use crate::pxar::FileKind;
use crate::rt::Runtime;
use crate::store::{ArchiveParts, IndexEntry};
use crate::tree::write::ahead::{self, Prepared};
use crate::tree::write::archive::{MAX_LINK_BYTES, TreeArchive};
use crate::tree::write::walk::Found;

/// Numbers of the detection of changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Bytes that a file counts in addition to its contents.
    pub(super) file_bytes: u64,
    /// Number of entries at which the queue is flushed.
    pub(super) max_queued: usize,
    /// Seconds before the time of the base within which a modification makes a file uncertain; `None` trusts any time.
    pub(super) seconds_of_doubt: Option<i64>,
    /// `true` if a range that ends with a chunk brings the next chunk along, as it does in the clients of PBS.
    pub(super) takes_next: bool,
}

impl Default for Policy {
    fn default() -> Self {
        // The entries take about 10 MiB. In their contents, or in what they weigh, the padding of a chunk is little.
        Self { file_bytes: 1 << 10, max_queued: 16 << 10, seconds_of_doubt: Some(60), takes_next: false }
    }
}

/// An entry that waits for a decision.
#[derive(Debug)]
enum Queued {
    Enter(Found),
    /// Neither a directory nor an unchanged file; a further name of a file too.
    Entry(Found),
    /// An unchanged file, with the position of its contents in the range.
    Unchanged(Arc<Found>, u64),
    Leave,
}

/// A chunk of the payload archive of the base.
#[derive(Clone, Copy, Debug)]
struct OldChunk {
    digest: Digest,
    /// Bytes that nothing refers to.
    padding: u64,
    end: u64,
    start: u64,
}

impl OldChunk {
    fn is(&self, other: &Self) -> bool {
        self.digest == other.digest && self.end == other.end
    }

    fn used(&self) -> u64 {
        (self.end - self.start).saturating_sub(self.padding)
    }
}

/// The last chunk of a flushed range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastChunk {
    Hold,
    Inject,
}

/// Writes the entries of a walk, and reuses what is unchanged.
#[derive(Debug)]
pub(super) struct Reuser {
    pub(super) archive: TreeArchive,
    held: Option<OldChunk>,
    /// Index of the payload archive in the base; `None` if nothing is reused.
    index: Option<DynamicIndexReader>,
    /// Offset of the last file that was taken as unchanged: offsets of a careless writer may not grow.
    last: Option<u64>,
    policy: Policy,
    queue: Vec<Queued>,
    /// Number of entries in the queue, without ends of directories.
    queued: usize,
    /// Number of unchanged files in the queue.
    unchanged: u64,
    /// The contents of the queued files in the payload archive of the base. Empty after a flush, at the end of the flushed range.
    range: Range<u64>,
    runtime: Arc<dyn Runtime>,
}

impl Reuser {
    pub(super) fn new(
        archive: TreeArchive,
        index: Option<DynamicIndexReader>,
        policy: Policy,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        Self {
            archive,
            held: None,
            index,
            last: None,
            policy,
            queue: Vec::new(),
            queued: 0,
            range: 0..0,
            runtime,
            unchanged: 0,
        }
    }

    /// Takes the next entry of the walk.
    pub(super) async fn take(&mut self, prepared: Prepared) -> Result<()> {
        if self.queued >= self.policy.max_queued && !matches!(prepared, Prepared::Leave) {
            self.flush(LastChunk::Hold).await?;
        }
        match prepared {
            Prepared::Enter(found) if self.queue.is_empty() => {
                self.inject_held().await?;
                self.archive.enter(&found).await
            }
            Prepared::Enter(found) => self.enqueue(Queued::Enter(found)),
            Prepared::Leave if self.queue.is_empty() => self.archive.leave().await,
            Prepared::Leave => {
                self.queue.push(Queued::Leave);
                Ok(())
            }
            Prepared::File(found, contents) => {
                self.flush(LastChunk::Inject).await?;
                self.archive.file(&found, contents).await
            }
            Prepared::Entry(found) => self.entry(found).await,
        }
    }

    /// Writes all that waits, and returns the archive.
    pub(super) async fn finish(mut self) -> Result<TreeArchive> {
        self.flush(LastChunk::Inject).await?;
        Ok(self.archive)
    }

    async fn entry(&mut self, found: Found) -> Result<()> {
        let is_file = matches!(found.entry.kind, FileKind::File { .. });
        if is_file && found.is_repeated && self.index.is_some() {
            return self.enqueue(Queued::Entry(found));
        }
        if let Some(offset) = found.unchanged.filter(|_| is_file) {
            if self.last.is_none_or(|last| offset > last)
                && let Some(end) = offset.checked_add(16).and_then(|start| start.checked_add(found.size()))
            {
                return self.take_unchanged(found, offset..end).await;
            }
            self.flush(LastChunk::Inject).await?;
            return self.read(&found).await;
        }
        if !self.queue.is_empty() {
            return self.enqueue(Queued::Entry(found));
        }
        self.inject_held().await?;
        self.encode(&found).await
    }

    async fn take_unchanged(&mut self, found: Found, contents: Range<u64>) -> Result<()> {
        self.last = Some(contents.start);
        if self.range.end == 0 {
            self.range = contents.start..contents.start;
        }
        if self.range.end != contents.start {
            self.flush(LastChunk::Hold).await?;
            self.range = contents.start..contents.start;
        }
        self.range.end = contents.end;
        self.unchanged += 1;
        self.enqueue(Queued::Unchanged(Arc::new(found), contents.start - self.range.start))
    }

    #[expect(clippy::unnecessary_wraps, reason = "its callers return the result of other steps too")]
    fn enqueue(&mut self, entry: Queued) -> Result<()> {
        self.queue.push(entry);
        self.queued += 1;
        Ok(())
    }

    /// Decides for the queue, and empties it.
    async fn flush(&mut self, last_chunk: LastChunk) -> Result<()> {
        let range = self.range.clone();
        if range.is_empty() {
            return self.release_read().await;
        }
        let mut chunks = self.chunks_of(&range);
        let held = self.held.take();
        let (Some(first), Some(last)) = (chunks.first().copied(), chunks.last().copied()) else {
            self.held = held;
            return self.release_read().await;
        };
        let before = range.start.saturating_sub(first.start);
        let behind = last.end.saturating_sub(range.end);
        let merged = held.filter(|held| held.is(&first));
        let shared = merged.map_or(0, |held| held.used());
        let (padding, total) = (before + behind, range.end - range.start + before + behind);
        let weight = total.saturating_add(self.policy.file_bytes.saturating_mul(self.unchanged));
        let is_worth_it = padding.saturating_sub(shared).saturating_mul(10) <= weight;
        if !is_worth_it || last.end < range.end || self.has_lost_link() || !self.are_there(&chunks).await? {
            self.held = held;
            return self.release_read().await;
        }
        if let Some(last) = chunks.last_mut() {
            last.padding += behind;
        }
        if let Some(first) = chunks.first_mut() {
            first.padding += before;
            first.padding = first.padding.saturating_sub(shared);
        }
        if merged.is_none() {
            self.inject(held.as_slice()).await?;
        }
        let base = self.payload()?.position() + before;
        self.release_reused(base).await?;
        self.held = if last_chunk == LastChunk::Hold { chunks.pop() } else { None };
        self.inject(&chunks).await
    }

    /// The chunks of the base in which a range lies.
    fn chunks_of(&self, range: &Range<u64>) -> Vec<OldChunk> {
        let Some(index) = &self.index else { return Vec::new() };
        let Some(first) = index.chunk_at(range.start) else { return Vec::new() };
        let mut chunks = Vec::new();
        for chunk in (first..index.len()).filter_map(|number| index.chunk(number)) {
            let end = chunk.offset + chunk.len;
            chunks.push(OldChunk { digest: chunk.digest, padding: 0, end, start: chunk.offset });
            if end > range.end || end == range.end && !self.policy.takes_next {
                break;
            }
        }
        chunks
    }

    /// Returns `true` if a further name of a file waits, and the file itself is neither in the archive nor in the queue: its contents have to be read.
    fn has_lost_link(&self) -> bool {
        let mut queued = HashSet::new();
        for entry in &self.queue {
            match entry {
                Queued::Unchanged(found, _) if found.path().len() <= MAX_LINK_BYTES => {
                    queued.extend(found.same_file());
                }
                Queued::Entry(found) if found.is_repeated => {
                    let is_known = |file| queued.contains(&file) || self.archive.can_link(&file);
                    if !found.same_file().is_some_and(is_known) {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }

    async fn are_there(&mut self, chunks: &[OldChunk]) -> Result<bool> {
        let chunks: Vec<_> = chunks.iter().map(reused).collect();
        self.payload()?.can_inject(&chunks).await
    }

    async fn inject(&mut self, chunks: &[OldChunk]) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        let chunks: Vec<_> = chunks.iter().map(reused).collect();
        self.payload()?.inject(&chunks).await
    }

    async fn inject_held(&mut self) -> Result<()> {
        let held = self.held.take();
        self.inject(held.as_slice()).await
    }

    /// Writes the entries of the queue, with contents at the places where they are about to be injected.
    async fn release_reused(&mut self, base: u64) -> Result<()> {
        for entry in self.empty() {
            match entry {
                Queued::Enter(found) => self.archive.enter(&found).await?,
                Queued::Leave => self.archive.leave().await?,
                Queued::Unchanged(found, offset) => self.archive.reference(&found, base + offset).await?,
                Queued::Entry(found) if found.is_repeated => {
                    if !self.archive.link(&found).await? {
                        // Contents cannot be written between references to chunks that come later.
                        self.archive.refuse_link(&found);
                    }
                }
                Queued::Entry(found) => self.archive.special(&found).await?,
            }
        }
        Ok(())
    }

    /// Writes the entries of the queue, and reads their files.
    async fn release_read(&mut self) -> Result<()> {
        self.inject_held().await?;
        if self.queue.is_empty() {
            return Ok(());
        }
        let queue = self.empty();
        let mut files = Vec::new();
        for entry in &queue {
            if let Queued::Unchanged(found, _) = entry {
                files.push(Arc::clone(found));
            }
        }
        let mut opened = pin!(ahead::reopened(files, Arc::clone(&self.runtime)));
        for entry in &queue {
            match entry {
                Queued::Enter(found) => self.archive.enter(found).await?,
                Queued::Leave => self.archive.leave().await?,
                Queued::Entry(found) => self.encode(found).await?,
                Queued::Unchanged(found, _) => {
                    if let Some(contents) = opened.next().await {
                        self.archive.file(found, contents).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn empty(&mut self) -> Vec<Queued> {
        self.range = self.range.end..self.range.end;
        (self.queued, self.unchanged) = (0, 0);
        std::mem::take(&mut self.queue)
    }

    /// Writes an entry other than a directory and an unchanged file.
    async fn encode(&mut self, found: &Found) -> Result<()> {
        match found.entry.kind {
            FileKind::File { .. } if self.archive.link(found).await? => Ok(()),
            FileKind::File { .. } => self.read(found).await,
            _ => self.archive.special(found).await,
        }
    }

    async fn read(&mut self, found: &Found) -> Result<()> {
        let contents = ahead::open(found).await;
        self.archive.file(found, contents).await
    }

    fn payload(&mut self) -> Result<&mut ArchiveParts> {
        self.archive.payload().ok_or_else(|| Error::new(ErrorKind::Internal, "reuse chunks of the base"))
    }
}

fn reused(chunk: &OldChunk) -> IndexEntry {
    IndexEntry { digest: chunk.digest, length: chunk.end - chunk.start }
}

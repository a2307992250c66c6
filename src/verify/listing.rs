//! The chunks in a store, according to a listing.
//!
//! Shards of the space of digests are listed in parallel. If memory does not hold all chunks, the space is
//! divided into parts, with one pass over the snapshots for each.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::{Cursor, Details, Pager};
use crate::chunks::{listed_chunk, query_of};
use crate::digest_set::{MarkSet, MarkSetBuilder, Shard, mark_of};
use crate::error::Result;
use crate::format::Digest;
use crate::format::layout::{Key, Prefix};
use crate::format::name::ArchiveKind;
use crate::store::{Copies, Datastore, SnapshotInfo};
use crate::verify::control::Control;

/// Approximate number of chunks of a shard.
const SHARD_CHUNKS: u64 = 4000;
const MAX_SHARDS: u64 = 4096;
/// Number of shards listed concurrently.
const SHARDS_IN_FLIGHT: usize = 8;
/// Number of chunks of one lookup.
const LOOKED_UP_AT_ONCE: usize = 512;
/// Bytes of a chunk while it is listed.
const MARK_BYTES: usize = 9;

/// The chunks of a store, part by part.
#[derive(Debug)]
pub(super) struct ChunkListing {
    memory_bytes: usize,
    next: usize,
    shards: Vec<Shard>,
}

/// The chunks of one part of the space of digests.
#[derive(Debug)]
pub(super) struct Listed {
    marks: MarkSet,
    part: Shard,
}

impl Listed {
    /// Returns `true` if the chunk was listed; `None` if it belongs to another part.
    pub(super) fn shows(&self, digest: &Digest) -> Option<bool> {
        let mark = mark_of(digest);
        (self.part.first..=self.part.last).contains(&mark).then(|| self.marks.contains(mark))
    }
}

impl ChunkListing {
    /// For a store whose snapshots have this many references.
    pub(super) fn new(references: u64, memory_bytes: usize) -> Self {
        Self { memory_bytes, next: 0, shards: shards(references) }
    }

    /// Returns `true` if everything was listed.
    pub(super) fn is_over(&self) -> bool {
        self.next >= self.shards.len()
    }

    /// Lists as many of the next shards as fit, and returns their numbers; `None` after the last one. A dropped future has listed
    /// nothing.
    pub(super) async fn next(
        &mut self,
        store: &Datastore,
        control: &Control,
    ) -> Result<Option<(Range<usize>, Listed)>> {
        let left = self.shards.get(self.next..).unwrap_or_default();
        let Some((taken, listed)) = part(store, control, left, self.memory_bytes).await? else {
            return Ok(None);
        };
        let shards = self.next..self.next + taken;
        self.next = shards.end;
        Ok(Some((shards, listed)))
    }

    /// Lists these shards again.
    pub(super) async fn again(
        &self,
        shards: Range<usize>,
        store: &Datastore,
        control: &Control,
    ) -> Result<Option<Listed>> {
        let shards = self.shards.get(shards).unwrap_or_default();
        Ok(part(store, control, shards, usize::MAX).await?.map(|(_, listed)| listed))
    }
}

/// Lists shards until they take this number of bytes, and returns their number.
async fn part(
    store: &Datastore,
    control: &Control,
    shards: &[Shard],
    memory_bytes: usize,
) -> Result<Option<(usize, Listed)>> {
    let Some(first) = shards.first().map(|shard| shard.first) else { return Ok(None) };
    let (mut marks, mut last, mut count) = (MarkSetBuilder::default(), first, 0_usize);
    let shards = shards.to_vec();
    let begin = store.inner().uncached_backend().begin_listing(&Prefix::Chunks).await?;
    let listings = stream::iter(shards)
        .map(|shard| list(store, (shard, begin.clone()), Details::Names, control).boxed());
    let mut listings = listings.buffered(SHARDS_IN_FLIGHT);
    let mut taken = 0;
    while let Some((shard, found)) = listings.try_next().await? {
        count += found.len();
        for (mark, _) in found {
            marks.insert(mark);
        }
        last = shard.last;
        taken += 1;
        if count.saturating_mul(MARK_BYTES) > memory_bytes {
            break;
        }
    }
    Ok(Some((taken, Listed { marks: marks.finish(), part: Shard { first, last } })))
}

/// Number of chunks, and their bytes.
pub(super) async fn count(store: &Datastore, references: u64, control: &Control) -> Result<(u64, u64)> {
    let begin = store.inner().uncached_backend().begin_listing(&Prefix::Chunks).await?;
    let listings = stream::iter(shards(references))
        .map(|shard| list(store, (shard, begin.clone()), Details::All, control).boxed());
    let mut listings = listings.buffer_unordered(SHARDS_IN_FLIGHT);
    let (mut chunks, mut bytes) = (0, 0);
    while let Some((_, found)) = listings.try_next().await? {
        chunks += found.len() as u64;
        bytes += found.iter().map(|(_, size)| size).sum::<u64>();
    }
    Ok((chunks, bytes))
}

/// As [`count`], for the chunks that the indexes of these snapshots name, which are looked up by name; `None` if an index or manifest cannot be
/// read. Where there are few, this costs less than a listing of 65,536 directories.
pub(super) async fn count_named(store: &Datastore, targets: &[SnapshotInfo]) -> Option<(u64, u64)> {
    let (manifests, files) = (store.inner().manifests(), store.inner().snapshot_files());
    let mut named = BTreeSet::new();
    for target in targets {
        let stored = files.read(&Key::Manifest(target.name.clone()), Copies::Use).await.ok()?;
        let manifest = manifests.parse(&target.name, stored).await.ok()?;
        for file in manifest.files().iter().filter(|file| file.name.kind() != ArchiveKind::Blob) {
            let key = Key::Archive(target.name.clone(), file.name.clone());
            let stored = files.read(&key, Copies::Use).await.ok()?;
            let index = files.parse_index(&key, file, stored).await.ok()?;
            named.extend(
                (0..index.len()).filter_map(|at| index.chunk(at)).map(|entry| (entry.digest, entry.len)),
            );
        }
    }
    let keys: Vec<_> = named.iter().map(|(digest, _)| Key::Chunk(*digest)).collect();
    let found = stream::iter(keys.chunks(LOOKED_UP_AT_ONCE).map(<[Key]>::to_vec));
    let found =
        found.map(|keys| async move { store.inner().uncached_backend().head_many(&keys).await }.boxed());
    let mut found = found.buffer_unordered(SHARDS_IN_FLIGHT);
    let mut bytes = 0_u64;
    while let Some(infos) = found.next().await {
        // The verification itself reports chunks that cannot be looked up.
        bytes += infos.ok()?.iter().flatten().map(|info| info.size).sum::<u64>();
    }
    Some((named.len() as u64, bytes))
}

fn shards(references: u64) -> Vec<Shard> {
    Shard::all((references / SHARD_CHUNKS).clamp(1, MAX_SHARDS))
}

/// Marks of the chunks of a shard, and their sizes if listed.
async fn list(
    store: &Datastore,
    (shard, begin): (Shard, Option<Cursor>),
    details: Details,
    control: &Control,
) -> Result<(Shard, Vec<(u64, u64)>)> {
    let (mut pager, mut found) = (Pager::starting_at(query_of(&shard, details), begin), Vec::new());
    loop {
        let page = pager.next(store.inner().uncached_backend().as_ref()).await;
        if !matches!(page, Ok(None)) {
            control.count_request();
        }
        let Some(page) = page? else { return Ok((shard, found)) };
        let chunks = page.iter().filter_map(listed_chunk);
        found.extend(chunks.map(|(digest, size)| (mark_of(&digest), size)));
    }
}

//! Numbers of requests for packs and segments, counted below the packs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, ListPage, ListQuery, Object,
    ObjectInfo, PutMode, Removal, Touched, Version,
};
use crate::error::Result;
use crate::format::layout::{Key, Prefix};
use crate::packs::PackedBackend;

/// Numbers of requests of a handle for packs and segments, since it was opened. A request that is repeated below counts once. A deletion
/// of several objects counts once too.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PackRequests {
    /// Pages of listings of packs and of segments.
    pub lists: u64,
    /// Deletions of packs.
    pub pack_deletes: u64,
    /// Reads of packs, each of a range.
    pub pack_gets: u64,
    /// Puts of packs.
    pub pack_puts: u64,
    /// Deletions of segments.
    pub segment_deletes: u64,
    /// Reads of segments.
    pub segment_gets: u64,
    /// Puts of segments.
    pub segment_puts: u64,
}

/// Counts by object.
#[derive(Debug, Default)]
struct OfObjects {
    deletes: AtomicU64,
    gets: AtomicU64,
    puts: AtomicU64,
}

/// The counts of a handle.
#[derive(Debug, Default)]
pub(super) struct Counts {
    lists: AtomicU64,
    packs: OfObjects,
    segments: OfObjects,
}

impl Counts {
    fn add(&self, key: Option<&Key>, count: impl Fn(&OfObjects) -> &AtomicU64) {
        let counts = match key {
            Some(Key::Pack(_)) => &self.packs,
            Some(Key::Segment(_)) => &self.segments,
            _ => return,
        };
        count(counts).fetch_add(1, Ordering::Relaxed);
    }
}

/// Passes all calls on, and counts them.
#[derive(Debug)]
pub(super) struct Counted {
    counts: Arc<Counts>,
    inner: Arc<dyn Backend>,
}

impl Counted {
    pub(super) fn new(inner: Arc<dyn Backend>, counts: &Arc<Counts>) -> Self {
        Self { counts: Arc::clone(counts), inner }
    }
}

impl PackedBackend {
    /// The requests of this handle so far.
    pub(crate) fn requests(&self) -> PackRequests {
        let Counts { lists, packs, segments } = &*self.packs.requests;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        PackRequests {
            lists: read(lists),
            pack_deletes: read(&packs.deletes),
            pack_gets: read(&packs.gets),
            pack_puts: read(&packs.puts),
            segment_deletes: read(&segments.deletes),
            segment_gets: read(&segments.gets),
            segment_puts: read(&segments.puts),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Counted {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn coordination(&self) -> &dyn Coordination {
        self.inner.coordination()
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        self.inner.housekeeping()
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        self.counts.add(Some(key), |counts| &counts.gets);
        self.inner.get(key, limit).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.counts.add(Some(key), |counts| &counts.gets);
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        self.counts.add(Some(key), |counts| &counts.puts);
        self.inner.put(key, object, mode).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        self.counts.add(removals.first().map(|removal| &removal.key), |counts| &counts.deletes);
        self.inner.delete(removals).await
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        if matches!(query.prefix, Prefix::Packs | Prefix::PacksOf(_) | Prefix::Segments) {
            self.counts.lists.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.list(query, cursor).await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        self.inner.touch(keys).await
    }

    async fn barrier(&self) -> Result<()> {
        self.inner.barrier().await
    }
}

//! Tables of directories, with their cache.

use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::error::Result;
use crate::pxar::decode::head::EntryHead;
use crate::pxar::goodbye::{ROW_BYTES, Table, TableChild, TableSpan};
use crate::pxar::{FileKind, TreeDecodeError, TreeFault};
use crate::tree::read::streams::Streams;

/// The tables that were read last, by the ends of their directories. One that exceeds the cache is cached alone.
pub(super) struct Tables {
    cache_bytes: usize,
    cached: Mutex<Cached>,
}

struct Cached {
    bytes: usize,
    tables: LruCache<u64, Arc<Table>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

/// A directory: where it starts and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryAt {
    /// Position of its ENTRY; 0 for the root.
    pub(super) entry: u64,
    pub(super) end: u64,
}

impl DirectoryAt {
    /// The directory that a child is.
    pub(super) fn of_child(child: TableChild, name: &[u8]) -> std::result::Result<Self, TreeDecodeError> {
        Ok(Self {
            entry: child.position + (HEADER_BYTES + name.len() + 1) as u64,
            end: child.directory_end()?,
        })
    }
}

/// Bytes of the header of a name.
const HEADER_BYTES: usize = 16;

impl Tables {
    pub(super) fn new(cache_bytes: usize) -> Self {
        Self { cache_bytes, cached: Mutex::new(Cached { bytes: 0, tables: LruCache::unbounded() }) }
    }

    /// Reads the table of a directory.
    pub(super) async fn read(&self, streams: &Streams, directory: DirectoryAt) -> Result<Arc<Table>> {
        let DirectoryAt { entry, end } = directory;
        if let Some(table) = self.find(end).filter(|table| table.span().entry == entry) {
            return Ok(table);
        }
        let row = last_row(streams, end).await?;
        let span = TableSpan::parse(row, entry, end).map_err(|error| streams.damaged(error))?;
        self.read_span(streams, span).await
    }

    /// Reads the table of a child whose name is lost, if it is a directory.
    pub(super) async fn read_lost(&self, streams: &Streams, child: TableChild) -> Result<Arc<Table>> {
        let end = child.directory_end().map_err(|error| streams.damaged(error))?;
        let row = last_row(streams, end).await?;
        let span = TableSpan::parse_lost(row, child.position, end).map_err(|error| streams.damaged(error))?;
        self.read_span(streams, span).await
    }

    async fn read_span(&self, streams: &Streams, span: TableSpan) -> Result<Arc<Table>> {
        let malformed = || streams.damaged(TreeDecodeError::new(TreeFault::Table, span.table));
        let length = usize::try_from(span.table_bytes()).map_err(|_| malformed())?;
        let item = streams.archive.read_exact_at(span.table, length).await?;
        let table = Arc::new(Table::parse(&item, span).map_err(|error| streams.damaged(error))?);
        self.insert(Arc::clone(&table));
        Ok(table)
    }

    fn find(&self, end: u64) -> Option<Arc<Table>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.tables.get(&end).map(Arc::clone)
    }

    fn insert(&self, table: Arc<Table>) {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.bytes += table.memory_bytes();
        if let Some(replaced) = cached.tables.put(table.span().end, table) {
            cached.bytes -= replaced.memory_bytes();
        }
        while cached.bytes > self.cache_bytes
            && cached.tables.len() > 1
            && let Some((_, evicted)) = cached.tables.pop_lru()
        {
            cached.bytes -= evicted.memory_bytes();
        }
    }
}

async fn last_row(streams: &Streams, end: u64) -> Result<[u8; ROW_BYTES]> {
    let malformed = || streams.damaged(TreeDecodeError::new(TreeFault::Truncated, end));
    let start = end.checked_sub(ROW_BYTES as u64).filter(|_| end <= streams.size()).ok_or_else(malformed)?;
    let row = streams.archive.read_exact_at(start, ROW_BYTES).await?;
    row.first_chunk().copied().ok_or_else(malformed)
}

/// Reads the head of a child, and compares its name with the table.
pub(super) async fn head_of(streams: &Streams, child: TableChild) -> Result<EntryHead> {
    let head = streams.head(child.position, child.limit).await?;
    if !child.is_named(&head.name) {
        return Err(streams.damaged(TreeDecodeError::new(TreeFault::Table, child.position).of(&head.name)));
    }
    if head.kind == FileKind::Directory {
        child.directory_end().map_err(|error| streams.damaged(error.of(&head.name)))?;
    }
    Ok(head)
}

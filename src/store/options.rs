//! Options of a store.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::{DEFAULT_ZSTD_LEVEL, MAX_CHUNK_BYTES};
use crate::local::LocalState;
use crate::packs::PackOptions;

/// Bytes of memory, by their purpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) packs: usize,
    pub(super) readers: usize,
    pub(super) writers: usize,
}

/// Options of a store.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(super) compression_level: i32,
    pub(super) index_bytes: Option<usize>,
    pub(super) local: Option<Arc<LocalState>>,
    pub(super) memory_bytes: Option<usize>,
    pub(super) packs: Option<PackOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compression_level: DEFAULT_ZSTD_LEVEL,
            index_bytes: None,
            local: None,
            memory_bytes: None,
            packs: None,
        }
    }
}

impl Options {
    /// Compression level of zstd, 1 to 22; default: 1, as in PBS.
    pub fn compression_level(mut self, level: i32) -> Self {
        self.compression_level = level;
        self
    }

    /// Maximum bytes of records that say where chunks are in packs; default: 64 MiB, which is enough for 1.5 million chunks. A record takes
    /// 44 bytes. Beyond that, a look-up of a chunk reads a few kilobytes from each large part of the index: from the directory of the store, from a
    /// copy in local state, or with a request. In addition, parts of the index below 256 KiB are in memory at any rate, and a pack takes about
    /// 130 bytes.
    pub fn index_bytes(mut self, bytes: usize) -> Self {
        self.index_bytes = Some(bytes);
        self
    }

    /// Keeps local copies of the store in a directory; default: none. Without local state everything works, with
    /// more requests. The directory belongs to this store from then on.
    pub fn local_state(mut self, local: Arc<LocalState>) -> Self {
        self.local = Some(local);
        self
    }

    /// Maximum bytes of chunks in flight, for all backups of this store together, and again for all restores; default:
    /// 64 MiB, minimum 32 MiB. In a packed store, default 160 MiB, half of it and all above 64 MiB is for packs that are filled and stored, and a pack
    /// has a third of that at most. Chunks in flight also exist in compressed form. In addition, each archive that is
    /// written or read in order holds one chunk; one that is written in any order, up to 16; a reader
    /// caches up to four chunks, and reads up to 32 MiB ahead. The index of an archive takes 40 bytes a chunk, and
    /// about 100 bytes for each distinct chunk of a backup.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// Stores many chunks in one object; [`create`](crate::store::Datastore::create) alone asks. Opening finds out by itself. Default:
    /// each chunk is an object of its own, as in a store of PBS.
    ///
    /// PBS cannot read a packed store. A sync to another store converts, in both directions.
    pub fn packed(mut self, packs: PackOptions) -> Self {
        self.packs = Some(packs);
        self
    }

    /// Returns `true` if a store that is created with these options is packed.
    pub(crate) fn is_packed(&self) -> bool {
        self.packs.is_some()
    }

    /// Memory of a store, by the presence of packs.
    pub(super) fn memory(&self, is_packed: bool) -> Memory {
        let total = self.memory_bytes.unwrap_or(if is_packed { 160 << 20 } else { 64 << 20 });
        let writers = if is_packed { (total / 2).min(64 << 20) } else { total };
        let packs = total - writers;
        Memory { packs, writers, readers: total }
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid =
            |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, "open a store").because(why));
        if !(1..=22).contains(&self.compression_level) {
            return invalid("the compression level is not within 1 and 22");
        }
        if self.memory_bytes.is_some_and(|bytes| bytes < 2 * MAX_CHUNK_BYTES) {
            return invalid("memory_bytes is less than 32 MiB");
        }
        self.packs.map_or(Ok(()), |packs| packs.target_bytes().map(drop))
    }
}

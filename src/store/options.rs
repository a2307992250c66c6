//! Options of a store.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::{DEFAULT_ZSTD_LEVEL, MAX_CHUNK_BYTES};
use crate::local::LocalState;

/// Options of a store.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(super) compression_level: i32,
    pub(super) local: Option<Arc<LocalState>>,
    pub(super) memory_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { compression_level: DEFAULT_ZSTD_LEVEL, local: None, memory_bytes: 64 << 20 }
    }
}

impl Options {
    /// Compression level of zstd, 1 to 22; default: 1, as in PBS.
    pub fn compression_level(mut self, level: i32) -> Self {
        self.compression_level = level;
        self
    }

    /// Keeps local copies of the store in a directory; default: none. Without local state everything works, with
    /// more requests. The directory belongs to this store from then on.
    pub fn local_state(mut self, local: Arc<LocalState>) -> Self {
        self.local = Some(local);
        self
    }

    /// Maximum bytes of chunks in flight, for all backups of this store together, and again for all restores; default:
    /// 64 MiB, minimum 32 MiB. Chunks in flight also exist in compressed form. In addition, each archive that is
    /// written or read in order holds one chunk; one that is written in any order, up to 16; a reader
    /// caches up to four chunks, and reads up to 32 MiB ahead. The index of an archive takes 40 bytes a chunk, and
    /// about 100 bytes for each distinct chunk of a backup.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid =
            |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, "open a store").because(why));
        if !(1..=22).contains(&self.compression_level) {
            return invalid("the compression level is not within 1 and 22");
        }
        if self.memory_bytes < 2 * MAX_CHUNK_BYTES {
            return invalid("memory_bytes is less than 32 MiB");
        }
        Ok(())
    }
}

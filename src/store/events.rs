//! What an operation tells while it runs.

use std::fmt;

use crate::format::name::ArchiveName;

/// Is told what an operation does.
///
/// Called from whatever task does the work, often several times a second: it has to return at once and must not block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn on_event(&self, event: &Event<'_>);
}

/// Something that happened in a backup or restore. Sizes are in bytes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An archive is complete: backed up, to become visible with its snapshot, or restored.
    ArchiveFinished {
        /// Which.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A backup or a restore of an archive is begun.
    ArchiveStarted {
        /// Which.
        archive: &'a ArchiveName,
        /// Its size, if it is known in advance.
        size: Option<u64>,
    },
    /// A chunk was in the store already.
    ChunkKnown {
        /// Of which archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A chunk was restored, or a hole of the size of one.
    ChunkRestored {
        /// Of which archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A chunk is part of the backup because it did not change since the base, and was not even read.
    ChunkReused {
        /// Of which archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A new chunk was stored.
    ChunkStored {
        /// Of which archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
        /// Its size in the store.
        stored: u64,
    },
}

/// An observer that nobody listens to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silent;

impl Observer for Silent {
    fn on_event(&self, _: &Event<'_>) {}
}

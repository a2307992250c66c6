//! Progress events of backups and restores.

use std::fmt;

use crate::format::name::ArchiveName;

/// Observer of an operation.
///
/// The working task calls it, often several times a second, so it must return at once and must not block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Called for each event.
    fn on_event(&self, event: &Event<'_>);
}

/// An event of a backup or restore. Sizes are in bytes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An archive is complete: backed up, to become visible with its snapshot, or restored.
    ArchiveFinished {
        /// Name of the archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A backup or a restore of an archive began.
    ArchiveStarted {
        /// Name of the archive.
        archive: &'a ArchiveName,
        /// Its size, if it is known in advance.
        size: Option<u64>,
    },
    /// A chunk was stored before.
    ChunkKnown {
        /// Name of the archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A chunk, or a hole of its size, was restored.
    ChunkRestored {
        /// Name of the archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A chunk was taken from the base without reading the source, because it is not dirty.
    ChunkReused {
        /// Name of the archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A new chunk was stored.
    ChunkStored {
        /// Name of the archive.
        archive: &'a ArchiveName,
        /// Its size.
        size: u64,
        /// Its stored size.
        stored: u64,
    },
}

/// An observer that ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silent;

impl Observer for Silent {
    fn on_event(&self, _: &Event<'_>) {}
}

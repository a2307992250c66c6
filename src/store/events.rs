//! Progress events of backups and restores.

use std::fmt;
use std::sync::Arc;

use crate::format::name::ArchiveName;
use crate::observer::Observer;
use crate::trace;

/// A progress event of a backup or restore. Sizes are in bytes.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "snake_case"))]
pub enum ArchiveEvent {
    /// An archive is complete: backed up, to become visible with its snapshot, or restored.
    ArchiveFinished {
        /// Name of the archive.
        archive: ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A backup or a restore of an archive began.
    ArchiveStarted {
        /// Name of the archive.
        archive: ArchiveName,
        /// Its size, if it is known in advance.
        size: Option<u64>,
    },
    /// A chunk was stored before.
    ChunkKnown {
        /// Name of the archive.
        archive: ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A chunk, or a hole of its size, was restored.
    ChunkRestored {
        /// Name of the archive.
        archive: ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A chunk was taken from the base without reading the source, because it is not dirty.
    ChunkReused {
        /// Name of the archive.
        archive: ArchiveName,
        /// Its size.
        size: u64,
    },
    /// A new chunk was stored.
    ChunkStored {
        /// Name of the archive.
        archive: ArchiveName,
        /// Its size.
        size: u64,
        /// Its stored size.
        stored: u64,
    },
}

/// Observer of a backup or restore, if the caller set one.
#[derive(Clone, Default)]
pub(super) struct Events {
    observer: Option<Arc<dyn Observer<ArchiveEvent>>>,
}

impl Events {
    pub(super) fn to(observer: Arc<dyn Observer<ArchiveEvent>>) -> Self {
        Self { observer: Some(observer) }
    }

    /// Calls the observer, and makes the event only if there is one, or if events are logged or counted.
    pub(super) fn emit(&self, event: impl FnOnce() -> ArchiveEvent) {
        if !trace::IS_ON && self.observer.is_none() {
            return;
        }
        let event = event();
        match &event {
            ArchiveEvent::ArchiveFinished { .. } | ArchiveEvent::ArchiveStarted { .. } => trace::step(&event),
            ArchiveEvent::ChunkRestored { size, .. } => trace::restored(*size),
            // A backup counts them when it ends.
            ArchiveEvent::ChunkKnown { .. }
            | ArchiveEvent::ChunkReused { .. }
            | ArchiveEvent::ChunkStored { .. } => {}
        }
        if let Some(observer) = &self.observer {
            observer.on_event(&event);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("is_observed", &self.observer.is_some()).finish()
    }
}

//! The store: namespaces, groups and snapshots, backups and restores.
//!
//! A [`Datastore`] is opened on a [`Backend`](crate::backend::Backend) and is cheap to clone. [`Datastore::backup`] begins a snapshot, which stays
//! invisible until [`SnapshotWriter::finish`]; [`Datastore::snapshot`] opens a finished one.
//!
//! # Locks
//! | holder | lock of the store | group | snapshot |
//! |---|---|---|---|
//! | [`SnapshotWriter`] | shared | exclusive | exclusive, and shared on each base |
//! | a sync into the store | shared | exclusive | exclusive, and shared on the newest |
//! | [`SnapshotReader`], a sync from the store | | | shared |
//! | notes, protection of a snapshot | | | manifest lock; exclusive for protection |
//! | owner, notes of a group | | exclusive | |
//! | deletion of a snapshot | | exclusive, if it is the last | exclusive |
//! | deletion of a group | | exclusive | exclusive |
//! | copy of a group | | exclusive at the destination | shared; exclusive at the destination |
//! | move of a group | | exclusive at both places | exclusive at both places |
//! | verification | shared, while a chunk is quarantined or reinstated | | shared; manifest lock for its state |
//!
//! Operations take locks without waiting, or with a bounded wait (a manifest, a group at the begin of a backup). So the order of locks does not affect
//! progress: an operation that cannot get a lock releases the others and fails with `Busy`.

mod backup;
mod catalog;
mod control;
mod datastore;
mod events;
mod identity;
mod in_doubt;
mod index_rebuild;
mod inner;
mod key_use;
mod lifecycle;
mod locks;
mod manifests;
mod options;
mod position;
mod publish;
mod relocate;
mod repairs;
mod replicate;
mod restore;
mod snapshot_files;
#[cfg(feature = "tokio")]
mod tokio_io;
mod wording;

pub(crate) use backup::parts::ArchiveParts;
pub(crate) use backup::pipeline::{BaseChoice, Entry as IndexEntry, checked_read, yield_now};
pub(crate) use catalog::delete::{DeleteError, DeleteOutcome, Expected};
pub(crate) use catalog::list::Listed;
pub(crate) use control::ExecutionControl;
pub(crate) use inner::StoreInner;
pub(crate) use key_use::{KeyUse, is_encrypted_key};
pub(crate) use locks::Held;
pub(crate) use manifests::{StoredManifest, has_failed_verification, is_of_the_object};
pub(crate) use publish::Present;
pub(crate) use replicate::import::{GroupImport, ImportedManifest, SnapshotImport};
pub(crate) use restore::snapshot::in_archive;
pub(crate) use snapshot_files::Copies;

pub use crate::backend::cached::Refresh;
pub use crate::packs::{PackOptions, PackRequests, PackUsage};
pub use backup::builder::BackupBuilder;
pub use backup::dirty_map::DirtyMap;
pub use backup::file_source::FileSource;
pub use backup::image::ImageBuilder;
pub use backup::random_image::{ImageWriter, ImageWriterBuilder};
pub use backup::session::{ArchiveSummary, BackupStats, BackupSummary, BaseUse, FinishedBackup};
pub use backup::stream::StreamBuilder;
pub use backup::writer::SnapshotWriter;
pub use catalog::delete::Deletion;
pub use catalog::list::{FileInfo, SnapshotInfo, SnapshotState};
pub use catalog::metadata::Protection;
pub use catalog::scope::Scope;
pub use datastore::Datastore;
pub use events::ArchiveEvent;
pub use index_rebuild::{IndexRebuildPlan, IndexRebuildReport, IndexRebuildSummary, UnreadablePack};
pub use lifecycle::Destruction;
pub use options::Options;
pub use relocate::{Relocated, RelocatedGroup, RelocatedSnapshot, Relocation};
pub use restore::archive::ArchiveReader;
pub use restore::snapshot::SnapshotReader;
pub use restore::target::{FileTarget, RestoreTarget, WriterTarget};

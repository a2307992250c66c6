//! Trees of files: backups, listings, restores, exclude patterns and reports.
//!
//! | step | types |
//! |---|---|
//! | back up | [`SnapshotWriter::tree`](crate::store::SnapshotWriter::tree) writes a [`TreeSource`]; [`DirectorySource`] is one in a directory of this host |
//! | read | [`SnapshotReader::tree`](crate::store::SnapshotReader::tree) opens a [`Tree`], which looks up, lists, opens, walks and finds entries |
//! | restore | [`Tree::restore`] writes into a [`TreeTarget`]; [`DirectoryTarget`] is one in a directory of this host |
//!
//! [`Excludes`] decides which paths a backup leaves out. A [`TreeReport`] collects one [`TreeFinding`] for each entry that a backup or
//! restore could not handle as asked, so that the rest continues and the caller can report what is missing. Paths are bytes, as on Unix.
//! The format is in [`pxar`](crate::pxar).
//!
//! ```
//! # use std::sync::Arc;
//! # use larder::backend::MemoryBackend;
//! # use larder::{Datastore, Options, ThreadRuntime};
//! use larder::tree::{DirectorySource, TreeStep};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let path = scratch.path();
//! # std::fs::create_dir(path.join("etc"))?;
//! # std::fs::write(path.join("etc/hostname"), "larder\n")?;
//! # futures::executor::block_on(async {
//! # let runtime = Arc::new(ThreadRuntime::new());
//! # let store = Datastore::create(Arc::new(MemoryBackend::new(runtime.clone())), Options::default()).await?;
//! let backup = store.backup(&"host/web".parse()?).begin().await?;
//! backup.tree("root", &DirectorySource::open(runtime, path).await?).await?;
//! let snapshot = backup.finish().await?.snapshot;
//!
//! let tree = snapshot.tree("root").await?;
//! assert_eq!(tree.open("etc/hostname").await?.read_all().await?, "larder\n");
//! let mut listing = tree.read_dir("etc").await?;
//! while let Some(entry) = listing.next().await {
//!     assert_eq!(entry?.file_name(), "hostname");
//! }
//! let mut found = tree.find("*name")?;
//! while let Some(step) = found.next().await? {
//!     assert!(matches!(step, TreeStep::Entry(entry) if entry.path == "etc/hostname"));
//! }
//! # Ok(()) })
//! # }
//! ```

pub(crate) mod disk;
mod policy;
mod read;
mod report;
mod restore;
mod source;
mod write;

pub use disk::source::DirectorySource;
pub use disk::target::{DirectoryTarget, Existing};
pub use policy::excludes::Excludes;
pub use policy::filesystem::is_virtual_filesystem;
pub use policy::pattern::EntryKind;
pub(crate) use read::ReadLimits;
pub use read::{ReadDir, Tree, TreeEntry, TreeFile, TreeFind, TreeStep, TreeWalk};
pub use report::{Attribute, Problem, TreeFinding, TreeReport};
pub use restore::target::{SmallFile, TargetError, TargetFile, TreeTarget};
pub use restore::{TreeRestore, TreeRestoreEvent, TreeRestoreSummary};
use source::{EARLY_BYTES, EARLY_FILE_BYTES};
pub use source::{
    FileContents, LinkId, OpenFileJob, SourceDirectory, SourceEntry, SourceListing, SourceRoot, SourceStream,
    TreeSource,
};
pub use write::{TreeBuilder, TreeCounts, TreeEvent, TreeSummary};

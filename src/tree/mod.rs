//! Policy and reports for backups and restores of directory trees, whatever format a tree is stored in.
//!
//! [`Excludes`] decides which paths a backup leaves out. A [`TreeReport`] collects one [`TreeFinding`] for each entry that a backup or
//! restore could not handle as asked, so that the rest continues and the caller can report what is missing.
//!
//! A [`TreeSource`] is a tree that a backup reads; [`DirectorySource`] is one in a directory of this host. Paths are bytes, as on Unix.
//!
//! ```
//! use larder::tree::{EntryKind, Excludes, Problem, TreeFinding, TreeReport};
//!
//! let mut excludes = Excludes::default();
//! excludes.push("*.tmp")?;
//! excludes.push("!keep.tmp")?;
//! assert!(excludes.excludes(b"var/old.tmp", EntryKind::Other));
//! assert!(!excludes.excludes(b"var/keep.tmp", EntryKind::Other));
//!
//! let mut report = TreeReport::default();
//! report.add(TreeFinding::new("etc/shadow", Problem::Unreadable).because("permission denied"));
//! assert_eq!(report.findings[0].to_string(), "etc/shadow: it cannot be read; left out: permission denied");
//! assert!(!report.is_complete());
//! # Ok::<(), larder::error::ParseError>(())
//! ```

mod disk;
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
pub use read::{ReadDir, Tree, TreeEntry, TreeFile, TreeFind, TreeStep, TreeWalk};
pub use report::{Attribute, Problem, TreeFinding, TreeReport};
pub use restore::target::{TargetError, TargetFile, TreeTarget};
pub use restore::{TreeRestore, TreeRestoreEvent, TreeRestoreSummary};
pub use source::{
    FileContents, LinkId, SourceDirectory, SourceEntry, SourceListing, SourceRoot, SourceStream, TreeSource,
};
pub use write::{TreeBuilder, TreeCounts, TreeEvent, TreeSummary};

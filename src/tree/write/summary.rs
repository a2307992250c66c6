//! Results of a backup of a tree.

use crate::store::{ArchiveSummary, BaseUse};
use crate::tree::TreeReport;

/// Counts of a backup of a tree. Sizes are in bytes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TreeCounts {
    /// Contents of all files.
    pub bytes: u64,
    /// Contents of files that were not opened.
    pub bytes_reused: u64,
    /// Directories, with the root.
    pub directories: u64,
    /// Files, without further names of them.
    pub files: u64,
    /// Files that were not opened, because they are unchanged since the base.
    pub files_reused: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Symbolic links, devices, pipes and sockets.
    pub others: u64,
}

impl TreeCounts {
    /// Number of entries, with the root.
    pub fn entries(&self) -> u64 {
        self.directories + self.files + self.hard_links + self.others
    }
}

/// Summary of a tree that was written.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TreeSummary {
    /// Its archives: payload and entries, or one with both. The catalog is written when the backup finishes.
    pub archives: Vec<ArchiveSummary>,
    /// The use of the base.
    pub base: BaseUse,
    /// Counts of entries and bytes.
    pub counts: TreeCounts,
    /// Entries that could not be stored as they are.
    pub report: TreeReport,
}

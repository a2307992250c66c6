//! Progress and result of a restore.

use std::fmt;

use crate::pxar::FileKind;
use crate::tree::{TreeFinding, TreeReport};
use crate::wording::{Parts, Size};

/// An event of a restore of a tree.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "snake_case"))]
pub enum TreeRestoreEvent {
    /// Contents of a file were given to the target.
    ContentsRestored {
        /// Number of bytes.
        size: u64,
    },
    /// An entry is complete, except for the metadata of a directory.
    EntryRestored,
    /// An entry could not be restored as asked, or a notice.
    Found {
        /// The finding.
        finding: TreeFinding,
    },
}

impl fmt::Display for TreeRestoreEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ContentsRestored { size } => write!(f, "{} restored", Size(*size)),
            Self::EntryRestored => f.write_str("an entry restored"),
            Self::Found { finding } => finding.fmt(f),
        }
    }
}

/// Result of a restore of a tree: the number of entries restored, and what was not.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TreeRestoreSummary {
    /// Bytes of contents of files.
    pub bytes: u64,
    /// Number of directories, without the root.
    pub directories: u64,
    /// Number of files, without further names.
    pub files: u64,
    /// Number of further names of files.
    pub hard_links: u64,
    /// Entries and attributes that were not restored, in no particular order.
    pub report: TreeReport,
    /// Number of symbolic links, devices, pipes and sockets.
    pub special: u64,
}

impl TreeRestoreSummary {
    /// Counts an entry.
    pub(super) fn count(&mut self, kind: &FileKind) {
        *match kind {
            FileKind::Directory => &mut self.directories,
            FileKind::File { .. } => &mut self.files,
            FileKind::HardLink { .. } => &mut self.hard_links,
            _ => &mut self.special,
        } += 1;
        if let FileKind::File { size } = kind {
            self.bytes += size;
        }
    }
}

/// A line with the numbers, then the lines of the report.
impl fmt::Display for TreeRestoreSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.count(self.files, "file");
        parts.add(Size(self.bytes));
        parts.add(if self.directories == 1 {
            "1 directory".to_owned()
        } else {
            format!("{} directories", self.directories)
        });
        parts.count(self.hard_links, "hard link");
        parts.number(self.special, "others");
        write!(f, "{}\n{}", parts.line(), self.report)
    }
}

//! Search for entries by pattern.

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::FileKind;
use crate::tree::read::walk::{TreeStep, TreeWalk};
use crate::tree::{EntryKind, Excludes};

/// Entries of a tree that match a pattern, in the order of the archive.
#[derive(Debug)]
pub struct TreeFind {
    pattern: Excludes,
    walk: TreeWalk,
}

impl TreeFind {
    pub(super) fn new(walk: TreeWalk, text: &[u8]) -> Result<Self> {
        let mut pattern = Excludes::default();
        let invalid = |error| {
            Error::new(ErrorKind::InvalidInput, "find entries")
                .on(String::from_utf8_lossy(text))
                .because(error)
        };
        pattern.push(text).map_err(invalid)?;
        Ok(Self { pattern, walk })
    }

    /// Returns the next match, or a part of the tree that is lost and may have matched; `None` at the end.
    ///
    /// # Errors
    /// Any failure of the backend. The search goes on with the next call.
    pub async fn next(&mut self) -> Result<Option<TreeStep>> {
        loop {
            match self.walk.next().await? {
                Some(TreeStep::Entry(entry)) => {
                    let is_directory = entry.kind == FileKind::Directory;
                    let kind = if is_directory { EntryKind::Directory } else { EntryKind::Other };
                    if self.pattern.excludes(&entry.path, kind) {
                        return Ok(Some(TreeStep::Entry(entry)));
                    }
                }
                Some(TreeStep::DirectoryEnd(_)) => {}
                step => return Ok(step),
            }
        }
    }
}

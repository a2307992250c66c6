//! Restores of trees.
//!
//! One task walks through the archive and reads contents in order, with chunks fetched ahead. It gives small files, directories and links to the
//! target without waiting for them, so that many are created at once, and writes one large file at a time.
//!
//! | step | begins when |
//! |---|---|
//! | directory | its parent exists |
//! | file, link, device, pipe, socket | its directory exists |
//! | hard link | the file that it names is restored |
//! | metadata of a directory | everything below is restored or given up |
//! | end of the target | everything else is done |
//!
//! A hard link is made if its position and its path lead to the same file of the walk. If the walk has not passed that file, the link becomes a copy of
//! what is at its position.
//!
//! A damaged chunk costs the files in it. A failure of the store or a full target ends the restore; what is restored stays.

mod batch;
mod contents;
mod directories;
mod engine;
mod entries;
mod report;
mod selection;
mod tar;
pub(super) mod target;
mod walked;

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;

use futures::future::BoxFuture;

pub use self::report::{TreeRestoreEvent, TreeRestoreSummary};

use self::engine::Engine;
use self::selection::Selection;
use self::target::TreeTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;
use crate::tree::Tree;

/// A restore of a tree, or of parts of it. Awaiting it restores.
#[must_use = "a restore does nothing until it is awaited"]
pub struct TreeRestore<'a> {
    observer: Option<Arc<dyn Observer<TreeRestoreEvent>>>,
    selection: Selection,
    target: &'a dyn TreeTarget,
    tree: &'a Tree,
}

impl Tree {
    /// Restores the tree, or parts of it, into a target.
    ///
    /// Entries that cannot be restored, and attributes that cannot be set, are in the [report](TreeRestoreSummary::report), and the restore continues.
    ///
    /// # Errors
    /// Awaiting it fails with `Full` if the target is full, `NotFound` if a selected path does not exist, and any failure of the store. Damage is in
    /// the report.
    ///
    /// # Cancel safety
    /// A dropped restore leaves what is restored so far. Calls of the target may be under way.
    pub fn restore<'a>(&'a self, target: &'a dyn TreeTarget) -> TreeRestore<'a> {
        TreeRestore { observer: None, selection: Selection::default(), target, tree: self }
    }
}

impl TreeRestore<'_> {
    /// Adds a path to restore, with everything below; default: the whole tree. Directories above it are created with their metadata.
    pub fn path(mut self, path: impl AsRef<[u8]>) -> Self {
        self.selection.add_path(path.as_ref());
        self
    }

    /// Adds a pattern: entries that match are restored, with everything below. [`Excludes`](crate::tree::Excludes) has the syntax; a `!` in front
    /// leaves out what earlier patterns select, also below a directory that they select. Selected [paths](Self::path) are restored in any case. The
    /// restore walks through the whole tree.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed pattern.
    pub fn pattern(mut self, pattern: impl AsRef<[u8]>) -> Result<Self> {
        let text = pattern.as_ref();
        self.selection.add_pattern(text).map_err(|error| {
            let shown = String::from_utf8_lossy(text);
            Error::new(ErrorKind::InvalidInput, "select entries by").on(shown).because(error)
        })?;
        Ok(self)
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<TreeRestoreEvent>>) -> Self {
        self.observer = Some(observer);
        self
    }
}

impl<'a> IntoFuture for TreeRestore<'a> {
    type Output = Result<TreeRestoreSummary>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { observer, selection, target, tree } = self;
        Box::pin(Engine::new(tree, target, observer).run(selection))
    }
}

impl fmt::Debug for TreeRestore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeRestore")
            .field("selection", &self.selection)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

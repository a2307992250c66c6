//! The walk over a source, in the order of an archive.
//!
//! [`Walker::next`] yields the entries depth first, the children of a directory by their names. Directories that come next in this order are listed
//! ahead, each in a task of its own: up to 64 of them, and no more once their listings have 16,384 entries, or, in a backup that reads every file, once the small files in them have 8 MiB. The listings of the open directories and of those ahead are
//! the memory of the walk: 280 bytes an entry, and its name. A directory is listed as a whole, however large: with its table, one of a million entries
//! takes about 380 MB.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::{FileKind, Stat, joined};
use crate::rt::Runtime;
use crate::tree::write::base::BaseCursor;
use crate::tree::write::findings::TreeEvent;
use crate::tree::write::listed::{
    Context, Left, Listed, MANY_ENTRIES, Outcome, Place, State, list, list_ahead_in, size_of, start,
};
use crate::tree::{LinkId, Problem, SourceDirectory, SourceEntry, TreeFinding};

/// A step of the walk.
#[derive(Debug)]
pub(super) enum Step {
    /// A directory begins.
    Enter(Found),
    /// Any other entry.
    Entry(Found),
    /// The directory that was entered last ends.
    Leave,
}

/// An entry that the walk found.
#[derive(Debug)]
pub(super) struct Found {
    /// The open directory of the entry, if the entry is a file that is read next.
    pub(super) directory: Option<Arc<dyn SourceDirectory>>,
    pub(super) entry: SourceEntry,
    /// Position of its contents in the payload archive of the base, if they are unchanged.
    pub(super) unchanged: Option<u64>,
    /// `true` if the file has another name that came before.
    pub(super) is_repeated: bool,
    pub(super) place: Arc<Place>,
}

/// Facts that the names of one file have in common. The system gives the number of a removed file to the next one, also during a
/// backup, so the number alone is not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SameFile {
    link: LinkId,
    size: u64,
    stat: Stat,
}

impl Found {
    /// The file that this is a name of, if it may have others.
    pub(super) fn same_file(&self) -> Option<SameFile> {
        same_file(&self.entry)
    }

    pub(super) fn path(&self) -> Vec<u8> {
        joined(&self.place.path, &self.entry.name)
    }

    /// Returns `true` for a file that is read, as far as the walk knows.
    pub(super) fn needs_contents(&self) -> bool {
        matches!(self.entry.kind, FileKind::File { .. }) && !self.is_repeated && self.unchanged.is_none()
    }

    /// Bytes of the contents; 0 for anything but a file.
    pub(super) fn size(&self) -> u64 {
        size_of(&self.entry)
    }
}

fn same_file(entry: &SourceEntry) -> Option<SameFile> {
    entry.link.map(|link| SameFile { link, size: size_of(entry), stat: entry.metadata.stat })
}

#[derive(Debug)]
pub(super) struct Walker {
    base: Option<BaseCursor>,
    context: Context,
    open: Vec<Listed>,
    /// Bytes of small files in the directories that were entered, and number of these directories.
    entered: (u64, u64),
    /// Files with several names, seen so far.
    seen: HashSet<SameFile>,
}

impl Walker {
    /// Lists the root. Without it, the snapshot would be empty.
    pub(super) async fn new(
        context: Context,
        root: Box<dyn SourceDirectory>,
        base: Option<BaseCursor>,
    ) -> Result<Self> {
        let root: Arc<dyn SourceDirectory> = Arc::from(root);
        let place = Place::root(&root);
        let is_in_base = base.is_some();
        let mut walker = Self { base, context, open: Vec::new(), entered: (0, 0), seen: HashSet::new() };
        match list(walker.context.clone(), root, place).await? {
            Outcome::Listed(listed) => walker.open(*listed, is_in_base),
            Outcome::Gone(error) | Outcome::Unlistable(error) => {
                return Err(Error::new(ErrorKind::Stream, "list the root of").because(error));
            }
        }
        walker.list_ahead();
        Ok(walker)
    }

    /// The runtime of the backup.
    pub(super) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.context.runtime
    }

    /// The next step; `None` at the end of the root.
    pub(super) async fn next(&mut self) -> Result<Option<Step>> {
        loop {
            let Some(listed) = self.open.last_mut() else { return Ok(None) };
            let Some(entry) = listed.entries.pop_front() else {
                let is_in_base = listed.is_in_base;
                self.open.pop();
                self.leave_base(is_in_base).await?;
                if self.base.as_ref().is_some_and(BaseCursor::is_damaged) {
                    self.context.findings.note_damaged_base();
                }
                return Ok(if self.open.is_empty() { None } else { Some(Step::Leave) });
            };
            listed.taken += 1;
            // Its table takes memory too.
            if listed.entries.len() >= MANY_ENTRIES && listed.entries.len() * 2 < listed.entries.capacity() {
                listed.entries.shrink_to_fit();
            }
            let (place, is_in_base) = (Arc::clone(&listed.place), listed.is_in_base);
            let directory = listed.directory.clone();
            let ahead = match entry.kind {
                FileKind::Directory => listed.directories.pop_front(),
                _ => None,
            };
            let old = match &mut self.base {
                Some(base) if is_in_base => base.find(&entry.name).await?,
                _ => None,
            };
            let was_directory = old.as_ref().is_some_and(|old| old.kind == FileKind::Directory);
            let mut found = Found { directory: None, entry, unchanged: None, is_repeated: false, place };
            if found.entry.kind != FileKind::Directory {
                self.leave_base(was_directory).await?;
                found.is_repeated = found.same_file().is_some_and(|file| !self.seen.insert(file));
                let unchanged = self.base.as_ref().zip(old.as_ref());
                found.unchanged = unchanged.and_then(|(base, old)| base.unchanged(&found.entry, old));
                found.directory = directory.filter(|_| found.needs_contents());
                return Ok(Some(Step::Entry(found)));
            }
            let outcome = self.outcome(&found, ahead.map(|ahead| ahead.state)).await?;
            if self.enter(&found, outcome, was_directory) {
                self.list_ahead();
                let path = || found.path().into();
                self.context.findings.emit(|| TreeEvent::DirectoryEntered { path: path() });
                return Ok(Some(Step::Enter(found)));
            }
            self.leave_base(was_directory).await?;
        }
    }

    /// Waits for the listing of a directory, and starts it if it was not started yet.
    async fn outcome(&mut self, found: &Found, state: Option<State>) -> Result<Outcome> {
        match state {
            Some(State::Ready(outcome)) => Ok(outcome),
            Some(State::Listing(listing)) => {
                self.list_ahead();
                listing.await
            }
            Some(State::Waiting) | None => {
                let listing = start(&self.context, &found.place, &found.entry);
                self.list_ahead();
                listing.await
            }
        }
    }

    async fn leave_base(&mut self, is_in_base: bool) -> Result<()> {
        match &mut self.base {
            Some(base) if is_in_base => base.leave().await,
            _ => Ok(()),
        }
    }

    /// Enters a directory; returns `false` if it is gone.
    fn enter(&mut self, found: &Found, outcome: Outcome, is_in_base: bool) -> bool {
        match outcome {
            Outcome::Gone(error) => {
                self.context.findings.lost(found.path(), &error, Problem::Unreadable);
                return false;
            }
            Outcome::Listed(listed) => self.open(*listed, is_in_base),
            Outcome::Unlistable(error) => {
                let finding = TreeFinding::new(found.path(), Problem::UnreadableContents);
                self.context.findings.add(finding.because(error));
                // Without entries, its place is that of its parent.
                self.open(Listed::empty(Arc::clone(&found.place)), is_in_base);
            }
        }
        true
    }

    fn open(&mut self, mut listed: Listed, is_in_base: bool) {
        listed.is_in_base = is_in_base;
        for finding in listed.findings.drain(..) {
            self.context.findings.add(finding);
        }
        self.entered = (self.entered.0 + listed.early_bytes, self.entered.1 + 1);
        self.open.push(listed);
    }

    /// Starts to list the directories that come next.
    fn list_ahead(&mut self) {
        let mut left = Left::new(&self.context, self.entered);
        for listed in self.open.iter_mut().rev() {
            if !list_ahead_in(&self.context, listed, &mut left) {
                return;
            }
        }
    }
}

//! The walk over a source, in the order of an archive.
//!
//! [`Walker::next`] yields the entries depth first, the children of a directory by their names. Directories that come next in this order are listed
//! ahead, each in a task of its own: up to [`DIRECTORIES_AHEAD`] of them, and no more once their listings have [`ENTRIES_AHEAD`]
//! entries, or, in a backup that reads every file, once small files in them have [`EARLY_BYTES`]. The listings of the open directories and of those ahead are the memory of the walk: 280 bytes an entry, and its name. A
//! directory is listed as a whole, however large: with its table, one of a million entries takes about 380 MB.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::lock::Mutex as AsyncMutex;

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::{EXCLUDE_FILE, FileKind, MAX_DEPTH, MAX_PATH_BYTES, Stat, joined};
use crate::rt::Runtime;
use crate::rt::detached::Detached;
use crate::tree::write::base::BaseCursor;
use crate::tree::write::findings::{Findings, TreeEvent};
use crate::tree::{
    EARLY_BYTES, EARLY_FILE_BYTES, LinkId, Problem, SourceDirectory, SourceEntry, TreeFinding,
};

/// Maximum number of directories listed ahead.
const DIRECTORIES_AHEAD: usize = 64;

/// Number of entries in listings ahead, above which no further directory is listed.
const ENTRIES_AHEAD: usize = 16 << 10;

/// Bytes of early files that a directory is taken to have before any was listed.
const TYPICAL_BYTES: u64 = 1 << 20;

/// Listings with more entries are sorted on the blocking pool.
const MANY_ENTRIES: usize = 4 << 10;

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

fn size_of(entry: &SourceEntry) -> u64 {
    match entry.kind {
        FileKind::File { size } => size,
        _ => 0,
    }
}

/// A directory of the source. It is open while it is listed ahead, walked, or read from, and opened again when files of it are read later:
/// thousands of directories may wait with the unchanged files in them, and a process has few descriptors.
pub(super) struct Place {
    /// `None` for the root.
    above: Option<(Arc<Place>, SourceEntry)>,
    /// Number of directories on the way, this one included.
    depth: usize,
    /// The open directory, if it is in use.
    opened: AsyncMutex<Weak<dyn SourceDirectory>>,
    /// Its path; empty for the root.
    pub(super) path: Bytes,
    /// Keeps the root open.
    root: Option<Arc<dyn SourceDirectory>>,
}

impl Place {
    fn root(directory: &Arc<dyn SourceDirectory>) -> Arc<Self> {
        let opened = AsyncMutex::new(Arc::downgrade(directory));
        Arc::new(Self {
            above: None,
            depth: 1,
            opened,
            path: Bytes::new(),
            root: Some(Arc::clone(directory)),
        })
    }

    fn below(above: &Arc<Self>, entry: SourceEntry, directory: &Arc<dyn SourceDirectory>) -> Arc<Self> {
        let path = joined(&above.path, &entry.name).into();
        let opened = AsyncMutex::new(Arc::downgrade(directory));
        let depth = above.depth + 1;
        Arc::new(Self { above: Some((Arc::clone(above), entry)), depth, opened, path, root: None })
    }

    /// The open directory; opens it, and those above it, if it was closed.
    pub(super) fn directory(&self) -> BoxFuture<'_, io::Result<Arc<dyn SourceDirectory>>> {
        Box::pin(async move {
            // Concurrent callers open it once.
            let mut opened = self.opened.lock().await;
            if let Some(directory) = opened.upgrade() {
                return Ok(directory);
            }
            let Some((above, entry)) = &self.above else { return Err(io::ErrorKind::NotFound.into()) };
            let directory = Arc::from(above.directory().await?.open_directory(entry).await?);
            *opened = Arc::downgrade(&directory);
            Ok(directory)
        })
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("path", &self.path)
            .field("is_root", &self.root.is_some())
            .finish_non_exhaustive()
    }
}

/// A directory with its listing.
#[derive(Debug)]
struct Listed {
    /// Bytes of small files.
    early_bytes: u64,
    entries: VecDeque<SourceEntry>,
    /// Its directories, in order.
    directories: VecDeque<Ahead>,
    /// Open while the directory is walked; `None` if it cannot be opened.
    directory: Option<Arc<dyn SourceDirectory>>,
    findings: Vec<TreeFinding>,
    /// `true` if the cursor of the base is in this directory, or below it.
    is_in_base: bool,
    place: Arc<Place>,
    /// Number of entries that were taken.
    taken: usize,
}

/// A directory that comes later.
#[derive(Debug)]
struct Ahead {
    /// Its number in the listing.
    number: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Listing(Detached<Outcome>),
    Ready(Outcome),
    Waiting,
}

/// Result of listing a directory.
#[derive(Debug)]
enum Outcome {
    Gone(io::Error),
    Listed(Box<Listed>),
    /// It cannot be opened or listed: it is stored without its contents.
    Unlistable(io::Error),
}

/// State that all listings share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) findings: Findings,
    /// `true` if every file is read.
    pub(super) reads_all: bool,
    pub(super) runtime: Arc<dyn Runtime>,
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
        let mut left = Left {
            bytes: if self.context.reads_all { EARLY_BYTES } else { u64::MAX },
            directories: DIRECTORIES_AHEAD,
            entries: ENTRIES_AHEAD,
            // The first few directories say little.
            typical_bytes: (self.entered.0 + 4 * TYPICAL_BYTES) / (self.entered.1 + 4),
        };
        for listed in self.open.iter_mut().rev() {
            if !list_ahead_in(&self.context, listed, &mut left) {
                return;
            }
        }
    }
}

impl Listed {
    fn empty(place: Arc<Place>) -> Self {
        Self {
            early_bytes: 0,
            entries: VecDeque::new(),
            directories: VecDeque::new(),
            directory: None,
            findings: Vec::new(),
            is_in_base: false,
            place,
            taken: 0,
        }
    }
}

/// What may still be listed ahead.
struct Left {
    bytes: u64,
    directories: usize,
    entries: usize,
    /// Bytes of small files in a directory that is not listed yet.
    typical_bytes: u64,
}

/// Starts to list directories below this one, in order; returns `false` once enough are ahead.
fn list_ahead_in(context: &Context, listed: &mut Listed, left: &mut Left) -> bool {
    let (taken, place) = (listed.taken, Arc::clone(&listed.place));
    for ahead in &mut listed.directories {
        if let State::Listing(listing) = &mut ahead.state
            && let Some(Ok(outcome)) = listing.now_or_never()
        {
            ahead.state = State::Ready(outcome);
        }
        if left.directories == 0 || left.entries == 0 || left.bytes == 0 {
            return false;
        }
        left.directories -= 1;
        left.bytes = left.bytes.saturating_sub(match &ahead.state {
            State::Ready(Outcome::Listed(below)) => below.early_bytes,
            State::Ready(_) => 0,
            State::Listing(_) | State::Waiting => left.typical_bytes,
        });
        match &mut ahead.state {
            State::Waiting => {
                let Some(entry) = listed.entries.get(ahead.number - taken) else { return false };
                ahead.state = State::Listing(start(context, &place, entry));
            }
            State::Ready(Outcome::Listed(below)) => {
                left.entries = left.entries.saturating_sub(below.entries.len());
                if !list_ahead_in(context, below, left) {
                    return false;
                }
            }
            State::Listing(_) | State::Ready(_) => {}
        }
    }
    true
}

/// Opens and lists a directory in a task of its own.
fn start(context: &Context, place: &Arc<Place>, entry: &SourceEntry) -> Detached<Outcome> {
    let (owned, above, entry) = (context.clone(), Arc::clone(place), entry.clone());
    context.runtime.run_detached("list directory", async move {
        let opened = match above.directory().await {
            Ok(directory) => directory.open_directory(&entry).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(directory) => {
                let directory: Arc<dyn SourceDirectory> = Arc::from(directory);
                let place = Place::below(&above, entry, &directory);
                list(owned, directory, place).await
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Outcome::Gone(error)),
            Err(error) => Ok(Outcome::Unlistable(error)),
        }
    })
}

async fn list(context: Context, directory: Arc<dyn SourceDirectory>, place: Arc<Place>) -> Result<Outcome> {
    let listing = match directory.list().await {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Gone(error)),
        Err(error) => return Ok(Outcome::Unlistable(error)),
    };
    let mut findings = listing.findings;
    for finding in &mut findings {
        finding.path = joined(&place.path, &finding.path);
    }
    let entries = listing.entries;
    let is_large = entries.len() > MANY_ENTRIES;
    let listed = move || {
        let entries = checked(entries, &place, &mut findings);
        let early = |entry: &SourceEntry| Some(size_of(entry)).filter(|size| *size <= EARLY_FILE_BYTES);
        let early_bytes = entries.iter().filter_map(early).sum();
        let is_directory = |entry: &SourceEntry| entry.kind == FileKind::Directory;
        let numbers = entries.iter().enumerate().filter(|(_, entry)| is_directory(entry));
        let directories = numbers.map(|(number, _)| Ahead { number, state: State::Waiting }).collect();
        let directory = Some(directory);
        Ok(Box::new(Listed {
            directory,
            early_bytes,
            // Takes over the memory: a copy would hold a large directory twice.
            entries: entries.into(),
            directories,
            findings,
            is_in_base: false,
            place,
            taken: 0,
        }))
    };
    if is_large {
        return context.runtime.run_blocking("sort directory", listed).await.map(Outcome::Listed);
    }
    listed().map(Outcome::Listed)
}

/// The entries in the order of the archive, without those that no archive can hold.
fn checked(
    mut entries: Vec<SourceEntry>,
    place: &Place,
    findings: &mut Vec<TreeFinding>,
) -> Vec<SourceEntry> {
    let is_root = place.path.is_empty();
    entries.retain(|entry| !is_root || entry.name != EXCLUDE_FILE);
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let mut refuse = |name: &[u8], why: &'static str| {
        findings.push(TreeFinding::new(joined(&place.path, name), Problem::Unreadable).because(why));
    };
    entries.dedup_by(|next, before| {
        let is_twin = next.name == before.name;
        if is_twin {
            refuse(&next.name, "the directory has two entries of this name");
        }
        is_twin
    });
    entries.retain(|entry| {
        let is_deep = entry.kind == FileKind::Directory && place.depth >= MAX_DEPTH;
        let fits = !is_deep && place.path.len() + 1 + entry.name.len() <= MAX_PATH_BYTES;
        if !fits {
            refuse(&entry.name, "its path is too long or too deep");
        }
        fits
    });
    entries
}

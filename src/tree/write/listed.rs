//! The listings of directories that a walk enters or has ahead.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::lock::Mutex as AsyncMutex;

use crate::error::Result;
use crate::pxar::{EXCLUDE_FILE, FileKind, MAX_DEPTH, MAX_PATH_BYTES, joined};
use crate::rt::Runtime;
use crate::rt::detached::Detached;
use crate::tree::write::findings::Findings;
use crate::tree::{EARLY_BYTES, EARLY_FILE_BYTES, Problem, SourceDirectory, SourceEntry, TreeFinding};

/// Maximum number of directories listed ahead.
const DIRECTORIES_AHEAD: usize = 64;

/// Number of entries in listings ahead, above which no further directory is listed.
const ENTRIES_AHEAD: usize = 16 << 10;

/// Bytes of early files that a directory is taken to have before any was listed.
const TYPICAL_BYTES: u64 = 1 << 20;

/// Listings with more entries are sorted on the blocking pool.
pub(super) const MANY_ENTRIES: usize = 4 << 10;

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
    pub(super) fn root(directory: &Arc<dyn SourceDirectory>) -> Arc<Self> {
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
pub(super) struct Listed {
    /// Bytes of small files.
    pub(super) early_bytes: u64,
    pub(super) entries: VecDeque<SourceEntry>,
    /// Its directories, in order.
    pub(super) directories: VecDeque<Ahead>,
    /// Open while the directory is walked; `None` if it cannot be opened.
    pub(super) directory: Option<Arc<dyn SourceDirectory>>,
    pub(super) findings: Vec<TreeFinding>,
    /// `true` if the cursor of the base is in this directory, or below it.
    pub(super) is_in_base: bool,
    pub(super) place: Arc<Place>,
    /// Number of entries that were taken.
    pub(super) taken: usize,
}

/// A directory that comes later.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Its number in the listing.
    pub(super) number: usize,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    Listing(Detached<Outcome>),
    Ready(Outcome),
    Waiting,
}

/// Result of listing a directory.
#[derive(Debug)]
pub(super) enum Outcome {
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

impl Listed {
    pub(super) fn empty(place: Arc<Place>) -> Self {
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

/// Limits on directories that may still be listed ahead.
pub(super) struct Left {
    pub(super) bytes: u64,
    pub(super) directories: usize,
    pub(super) entries: usize,
    /// Bytes of small files in a directory that is not listed yet.
    pub(super) typical_bytes: u64,
}

impl Left {
    /// `entered` are the bytes of small files in the directories that were entered, and the number of these directories.
    pub(super) fn new(context: &Context, (bytes, directories): (u64, u64)) -> Self {
        Self {
            bytes: if context.reads_all { EARLY_BYTES } else { u64::MAX },
            directories: DIRECTORIES_AHEAD,
            entries: ENTRIES_AHEAD,
            // The first few directories say little.
            typical_bytes: (bytes + 4 * TYPICAL_BYTES) / (directories + 4),
        }
    }
}

/// Starts to list directories below this one, in order; returns `false` once enough are ahead.
pub(super) fn list_ahead_in(context: &Context, listed: &mut Listed, left: &mut Left) -> bool {
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
pub(super) fn start(context: &Context, place: &Arc<Place>, entry: &SourceEntry) -> Detached<Outcome> {
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

pub(super) async fn list(
    context: Context,
    directory: Arc<dyn SourceDirectory>,
    place: Arc<Place>,
) -> Result<Outcome> {
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
    entries.retain(|entry| {
        let is_reserved = is_root && entry.name == EXCLUDE_FILE;
        if is_reserved {
            findings.push(TreeFinding::new(EXCLUDE_FILE, Problem::Reserved));
        }
        !is_reserved
    });
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

pub(super) fn size_of(entry: &SourceEntry) -> u64 {
    match entry.kind {
        FileKind::File { size } => size,
        _ => 0,
    }
}

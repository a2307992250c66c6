//! The move journal: paths at which indexes are about to appear, for a collector in another process (H8).
//!
//! The journal is a file of lines, each the absolute path of an index. An operation that moves a snapshot appends its lines before it moves a
//! file. A collector reads them after it marked everything else, and empties the file when it has marked the indexes at these paths too. Both
//! hold the exclusive lock of the file (`flock`) meanwhile. A line that a crash truncated names no index; the next append ends it first.
//!
//! Source: PBS datastore format, move journal.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::fs::SyncLevel;
use crate::backend::fs::lock_files::FileGuard;
use crate::backend::fs::lock_names::JOURNAL;
use crate::backend::fs::objects::Inner;
use crate::backend::{LockMode, Orphan, PendingMoves};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

/// Maximum wait for other processes that append or read, as in PBS.
const WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum size of the journal: some hundred thousand moves without a collection.
const LIMIT_BYTES: u64 = 64 << 20;

/// The journal, locked.
#[derive(Debug)]
pub(super) struct Journal {
    guard: FileGuard,
    inner: Arc<Inner>,
    runtime: Arc<dyn Runtime>,
}

impl Journal {
    /// Locks the journal, and makes the file if it does not exist.
    pub(super) async fn lock(inner: &Arc<Inner>, runtime: &Arc<dyn Runtime>) -> Result<Self> {
        let end = runtime.monotonic() + WAIT;
        loop {
            let (for_job, for_guard) = (Arc::clone(inner), Arc::clone(runtime));
            let lock = move || {
                let locks = &for_job.lock_directory;
                locks.lock_file(&for_guard, Path::new(JOURNAL), &"the move journal", LockMode::Exclusive)
            };
            match runtime.run_blocking("lock the move journal", lock).await {
                Err(error) if error.kind() == ErrorKind::Busy && runtime.monotonic() < end => {
                    runtime.sleep(PAUSE).await;
                }
                guard => {
                    let (inner, runtime) = (Arc::clone(inner), Arc::clone(runtime));
                    return Ok(Self { guard: guard?, inner, runtime });
                }
            }
        }
    }

    /// Appends the paths of these objects.
    pub(super) fn append(&self, keys: &[Key]) -> Result<()> {
        let failed = |error| Error::io(error, "write the move journal");
        let root = std::path::absolute(self.inner.disk.root()).map_err(failed)?;
        if root.as_os_str().as_bytes().contains(&b'\n') {
            let error = Error::new(ErrorKind::Unsupported, "write the move journal").on(root.display());
            return Err(error.because("the path of the store has a line break"));
        }
        let mut lines = Vec::new();
        for key in keys {
            lines.extend_from_slice(root.join(key.path()).as_os_str().as_bytes());
            lines.push(b'\n');
        }
        let append = |mut file: &File| {
            let length = file.seek(SeekFrom::End(0))?;
            if length > 0 {
                let mut last = [0];
                file.seek(SeekFrom::Start(length - 1))?;
                file.read_exact(&mut last)?;
                if last != *b"\n" && !mutated!("fs-torn-journal-line-goes-on") {
                    lines.insert(0, b'\n');
                }
            }
            file.write_all(&lines)?;
            if self.inner.sync_level == SyncLevel::None { Ok(()) } else { file.sync_data() }
        };
        self.file().and_then(append).map_err(failed)
    }

    /// Reads the lines that were appended since the file was emptied last.
    pub(super) fn read(self) -> Result<Entries> {
        let failed = |error| Error::io(error, "read the move journal");
        let mut bytes = Vec::new();
        let mut read = |mut file: &File| {
            file.rewind()?;
            file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes)
        };
        if let Some(file) = self.guard.file() {
            read(file).map_err(failed)?;
        }
        if bytes.len() as u64 > LIMIT_BYTES {
            let error = Error::new(ErrorKind::Corrupt, "read the move journal");
            return Err(error.because("the journal is longer than 64 MiB"));
        }
        let root = std::path::absolute(self.inner.disk.root()).map_err(failed)?;
        let Moves { keys, orphans } = moves_of(&bytes, root).map_err(failed)?;
        Ok(Entries { journal: self, keys, orphans })
    }

    fn clear(&self) -> Result<()> {
        let cleared = self.guard.file().map_or(Ok(()), |file| file.set_len(0));
        cleared.map_err(|error| Error::io(error, "empty the move journal"))
    }

    /// The file. It does not exist, and so has no lines, if the disk was full when the journal was locked.
    fn file(&self) -> io::Result<&File> {
        self.guard.file().ok_or_else(|| io::ErrorKind::StorageFull.into())
    }
}

/// Indexes that are about to appear in the store with this root, by the lines of a journal.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    pub(crate) keys: Vec<Key>,
    pub(crate) orphans: Vec<Orphan>,
}

/// Reads the lines of a journal.
pub(crate) fn moves_of(lines: &[u8], root: PathBuf) -> io::Result<Moves> {
    let roots = [fs::canonicalize(&root)?, root];
    let Moves { mut keys, mut orphans } = Moves::default();
    // In their order: an index that was moved twice has its second path after its first.
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Some(path) = below(&roots, Path::new(OsStr::from_bytes(line)))? else { continue };
        match Key::parse(&path) {
            // A blob has no chunks, and must not stop a collection.
            Some(key) if key.exposed().is_index() => keys.push(key),
            _ if path.ends_with(".fidx") || path.ends_with(".didx") => orphans.push(Orphan::new(path)),
            _ => {}
        }
    }
    keys.dedup();
    orphans.dedup();
    Ok(Moves { keys, orphans })
}

/// The path relative to the store, if the path is below one of the names of the store. Lines of other stores are ignored.
fn below(roots: &[PathBuf], path: &Path) -> io::Result<Option<String>> {
    let strip = |path: &Path| {
        let relative = roots.iter().find_map(|root| path.strip_prefix(root).ok())?;
        let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        // Each path has one form: an empty part or a `.` is left out.
        is_plain.then(|| relative.components().collect::<PathBuf>())
    };
    if path.as_os_str().as_bytes().contains(&0) {
        // A crash may leave such bytes. No file has such a name.
        return Ok(None);
    }
    let relative = match strip(path) {
        Some(relative) => relative,
        // The directory may have another name here. A path that does not exist names no index.
        None => match fs::canonicalize(path) {
            Err(error) if is_nowhere(&error) => return Ok(None),
            real => match strip(&real?) {
                Some(relative) => relative,
                None => return Ok(None),
            },
        },
    };
    match relative.to_str() {
        Some(relative) => Ok(Some(relative.to_owned())),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the path of an index is not UTF-8")),
    }
}

fn is_nowhere(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), InvalidFilename | NotADirectory | NotFound)
}

/// The contents of the journal, which stays locked.
#[derive(Debug)]
pub(super) struct Entries {
    journal: Journal,
    keys: Vec<Key>,
    orphans: Vec<Orphan>,
}

#[async_trait]
impl PendingMoves for Entries {
    fn keys(&self) -> &[Key] {
        &self.keys
    }

    fn orphans(&self) -> &[Orphan] {
        &self.orphans
    }

    async fn clear(self: Box<Self>) -> Result<()> {
        let journal = self.journal;
        let runtime = Arc::clone(&journal.runtime);
        runtime.run_blocking("empty the move journal", move || journal.clear()).await
    }
}

//! The lock of a store on disk.
//!
//! An open-file-description lock over the whole of `.lock`, which excludes the record locks that PBS takes
//! there. Other than a record lock it does not vanish when some other descriptor of the file is closed (H159). One
//! descriptor per file and process, in a registry; the holders within the process are in a [`LockTable`], and the lock of the
//! descriptor is what they need together: exclusive if one of them is, else shared, else none. An exclusive lock that is held
//! for a moment only covers the first half of the largest possible file, which others can see when they are refused: they wait for it.
//!
//! The system gives it back when the process dies (H93).
//!
//! Source: PBS datastore format, locks.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::libc;

use crate::backend::fs::lock_files::REPLACED_TRIES;
use crate::backend::lock_table::{Held, LockTable};
use crate::backend::{HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

/// How many bytes are locked by a holder who has the lock for a moment only.
const BRIEF_BYTES: i64 = 1 << 62;
const STORE_MODE: u32 = 0o644;

/// The descriptor of a `.lock` file, one for the whole process.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: Mutex<File>,
    table: Arc<LockTable>,
}

impl StoreLock {
    /// Locks the store whose file is at `path`, which is made if need be.
    pub(super) fn lock(
        runtime: &Arc<dyn Runtime>,
        path: &Path,
        owner: Option<(u32, u32)>,
        mode: LockMode,
    ) -> Result<StoreGuard> {
        let now = runtime.now();
        for _ in 0..REPLACED_TRIES {
            let (lock, identity) =
                Self::open(path, owner).map_err(|error| Error::io(error, "lock").on(LockScope::Store))?;
            let place = Place { identity, path: path.to_owned(), runtime: Arc::clone(runtime) };
            let guard = lock.hold(mode, now, place)?;
            if guard.place.is_held() {
                return Ok(guard);
            }
        }
        Err(Error::new(ErrorKind::Busy, "lock").on(LockScope::Store))
    }

    /// The one for the file at `path`, and which file that is.
    fn open(path: &Path, owner: Option<(u32, u32)>) -> io::Result<(Arc<Self>, (u64, u64))> {
        static OPEN: Mutex<BTreeMap<(u64, u64), Weak<StoreLock>>> = Mutex::new(BTreeMap::new());
        let file = lock_file_options().mode(STORE_MODE).open(path)?;
        give(&file, owner, STORE_MODE)?;
        let identity = identity(&file.metadata()?);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, lock| lock.strong_count() > 0);
        let entry = open.entry(identity).or_default();
        if let Some(lock) = entry.upgrade() {
            return Ok((lock, identity));
        }
        let lock = Arc::new(Self { file: Mutex::new(file), table: Arc::default() });
        *entry = Arc::downgrade(&lock);
        Ok((lock, identity))
    }

    fn hold(self: Arc<Self>, mode: LockMode, now: SystemTime, place: Place) -> Result<StoreGuard> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.table.lock(&LockScope::Store, mode, now)?;
        if let Err(error) = self.settle(&file) {
            drop(held);
            let failed = |kind| Error::new(kind, "lock").on(LockScope::Store);
            return Err(match error {
                Errno::EAGAIN | Errno::EACCES if Self::is_held_briefly(&file, mode) => {
                    failed(ErrorKind::Busy).because(HeldBriefly)
                }
                Errno::EAGAIN | Errno::EACCES => failed(ErrorKind::Busy).because(io::Error::from(error)),
                _ => failed(ErrorKind::Unavailable).because(io::Error::from(error)),
            });
        }
        drop(file);
        Ok(StoreGuard { held: Some(held), lock: self, place })
    }

    /// Gives the descriptor the lock that the holders in this process need.
    fn settle(&self, file: &File) -> nix::Result<()> {
        nix::fcntl::fcntl(file, FcntlArg::F_OFD_SETLK(&file_lock(self.table.store_mode()))).map(drop)
    }

    /// Whether the holder that is in the way has the lock for a moment only, or is gone already.
    fn is_held_briefly(file: &File, wanted: LockMode) -> bool {
        let mut found = file_lock(Some(wanted));
        if nix::fcntl::fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).is_err() {
            return false;
        }
        let kind = i32::from(found.l_type);
        kind == libc::F_UNLCK || (kind == libc::F_WRLCK && found.l_len == BRIEF_BYTES)
    }
}

/// The store, locked against other processes.
#[derive(Debug)]
pub(super) struct StoreGuard {
    held: Option<Held>,
    lock: Arc<StoreLock>,
    place: Place,
}

impl Drop for StoreGuard {
    fn drop(&mut self) {
        let file = self.lock.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        // Loosening a lock does not fail; if it did, the file would stay locked until the process ends, which is safe.
        let _ = self.lock.settle(&file);
    }
}

#[async_trait]
impl LockGuard for StoreGuard {
    async fn check(&self) -> Result<()> {
        self.place.check().await
    }

    fn keeps_processes_out(&self) -> bool {
        true
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.held.as_ref().and_then(Held::oldest_shared)
    }

    async fn release_deleted(self: Box<Self>) {}
}

/// A lock file and where it was when it was locked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) identity: (u64, u64),
    pub(super) path: PathBuf,
    pub(super) runtime: Arc<dyn Runtime>,
}

impl Place {
    /// Whether the file is still the one that others would lock.
    pub(super) fn is_held(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Fails if somebody else may hold the lock by now: the file was removed or replaced by another.
    pub(super) async fn check(&self) -> Result<()> {
        let place = self.clone();
        let lost = move || match fs::symlink_metadata(&place.path) {
            Ok(found) if identity(&found) == place.identity => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(error, "check the lock").on(place.path.display()))
            }
            _ => Err(Error::new(ErrorKind::Busy, "check the lock")
                .on(place.path.display())
                .because("the lock file was removed while it was locked")),
        };
        self.runtime.run_blocking("check the lock", lost).await
    }
}

/// The lock of a whole file; of as good as all of it for [`LockMode::Brief`].
fn file_lock(mode: Option<LockMode>) -> libc::flock {
    let (kind, length) = match mode {
        Some(LockMode::Brief) => (libc::F_WRLCK, BRIEF_BYTES),
        Some(LockMode::Exclusive) => (libc::F_WRLCK, 0),
        Some(LockMode::Shared) => (libc::F_RDLCK, 0),
        None => (libc::F_UNLCK, 0),
    };
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: length,
        l_pid: 0,
    }
}

pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

pub(super) fn lock_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Gives a file that was just made to its owner; one that has another owner than it should was just made.
pub(super) fn give(file: &File, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    if let Some((uid, gid)) = owner
        && file.metadata()?.uid() != uid
    {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}

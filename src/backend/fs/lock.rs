//! The lock of a store on disk.
//!
//! An open-file-description lock over the whole of `.lock` excludes the record locks of PBS on that file. Unlike a record lock, it is not
//! lost when another descriptor of the file is closed (H159). A registry has one descriptor for each file in the process. The holders
//! within the process are in a [`LockTable`], and the descriptor has the strongest lock that one of them needs: exclusive, shared or none. A
//! brief exclusive lock covers only the first half of the largest possible file: a process that is refused sees that, and waits.
//!
//! The system releases the lock when the process dies (H93).
//!
//! Source: PBS datastore format, locks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::libc;

use crate::backend::fs::lock_place::{Place, REPLACED_TRIES, give, identity, lock_file_options};
use crate::backend::lock_table::LockTable;
use crate::backend::{HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

/// Number of bytes that a brief lock covers.
const BRIEF_BYTES: i64 = 1 << 62;
const STORE_MODE: u32 = 0o644;

/// The descriptor of a `.lock` file. The process has one for each file.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: Mutex<File>,
    table: LockTable,
}

impl StoreLock {
    /// Locks the store whose file is at `path`, and makes the file if it does not exist.
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

    /// Opens the file at `path`, and returns its descriptor in the registry and its identity.
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
        let lock = Arc::new(Self { file: Mutex::new(file), table: LockTable::default() });
        *entry = Arc::downgrade(&lock);
        Ok((lock, identity))
    }

    fn hold(self: Arc<Self>, mode: LockMode, now: SystemTime, place: Place) -> Result<StoreGuard> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.table.lock(&LockScope::Store, mode, now)?;
        if let Err(error) = self.apply(&file) {
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

    /// Sets the lock of the descriptor to the mode that the holders in this process need.
    fn apply(&self, file: &File) -> nix::Result<()> {
        mutated!("fs-store-lock-of-this-process-alone" => return Ok(()));
        nix::fcntl::fcntl(file, FcntlArg::F_OFD_SETLK(&file_lock(self.table.store_mode()))).map(drop)
    }

    /// Returns `true` if the other holder has a brief lock, or has released it already.
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
    held: Option<Box<dyn LockGuard>>,
    lock: Arc<StoreLock>,
    place: Place,
}

impl Drop for StoreGuard {
    fn drop(&mut self) {
        let file = self.lock.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        // Weakening a lock does not fail; if it did, the file would stay locked until the process ends, which is safe.
        let _ = self.lock.apply(&file);
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
        self.held.as_ref().and_then(|held| held.oldest_shared())
    }

    async fn release_deleted(self: Box<Self>) {}
}

/// The lock of a whole file, or of its first half for [`LockMode::Brief`].
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

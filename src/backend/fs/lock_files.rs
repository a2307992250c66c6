//! Locks of groups, snapshots and manifests: `flock` on one file for each of them in the lock directory.
//!
//! # Taking a lock
//! 1. The file is opened, or made if it is absent. While a process makes it, the process has a shared lock of the store's directory.
//! 2. The file is locked, and must then still be the one at its path (H160). Each holder has its own descriptor, so that tasks of one
//!    process exclude one another too.
//!
//! # Without a lock file
//! | a file cannot be made, since | exclusive | shared |
//! |---|---|---|
//! | the disk or the quota is full | the holder locks the store's directory exclusively: no other process can make a lock file, and an absent lock file has no holder | does not exclude other processes |
//! | the caller may not write | fails | an existing file is locked; without one, does not exclude other processes |
//!
//! Tasks of one process exclude one another in all of these cases, by a table of the names that are held without a file.
//! [`LockGuard::keeps_processes_out`] returns `false` for a lock that other processes do not see. A PBS on the same store ignores the lock of
//! the store's directory, so that a lock on a full disk excludes only processes of this crate.
//!
//! # Removing a lock file
//! The exclusive holder that deletes the object removes the file while it is locked. In the default lock directory, a garbage collection also
//! removes files that a crash or an earlier version left: those without a holder whose object does not exist.
//!
//! Source: PBS datastore format, locks.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use async_trait::async_trait;
use nix::libc;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::backend::fs::call::{FreeSpace, is_full};
use crate::backend::fs::lock_names::{HASHED, JOURNAL, lock_file, locked_object};
use crate::backend::fs::lock_place::{Place, REPLACED_TRIES, give, identity, lock_file_options};
use crate::backend::{LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::ENCLOSURE;
use crate::locked_file::LockedFile;
use crate::rt::Runtime;

const ALONE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const LOCK_MODE: u32 = 0o660;

/// A store, by the device and the inode of its chunks.
type StoreId = (u64, u64);

/// The directory of the lock files of groups, snapshots and manifests.
#[derive(Clone, Debug)]
pub(super) struct LockDirectory {
    /// It is the default directory, in which only this crate makes files.
    pub(super) is_own: bool,
    /// The owner of new files, so that PBS can lock them too.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) path: PathBuf,
    pub(super) free_space: FreeSpace,
    /// The directory of the store.
    pub(super) root: PathBuf,
    pub(super) store: StoreId,
}

/// The result of opening a lock file.
enum Opened {
    /// Another process has locked the store's directory, or has just made the file.
    Busy,
    /// The store's directory is locked instead.
    Directory(Arc<DirectoryLock>),
    File(File),
    /// The file does not exist and cannot be made.
    Nothing,
}

impl LockDirectory {
    /// Takes the lock. Waits for the disk only, never for another holder.
    pub(super) fn lock(
        &self,
        runtime: &Arc<dyn Runtime>,
        scope: &LockScope,
        mode: LockMode,
    ) -> Result<FileGuard> {
        self.lock_file(runtime, &lock_file(scope), scope, mode)
    }

    /// As [`lock`](LockDirectory::lock), for a file with another name in the directory.
    pub(super) fn lock_file(
        &self,
        runtime: &Arc<dyn Runtime>,
        name: &Path,
        subject: &dyn Display,
        mode: LockMode,
    ) -> Result<FileGuard> {
        let path = self.path.join(name);
        let failed = |error: io::Error| Error::io(error, "lock").on(subject);
        let busy = || Error::new(ErrorKind::Busy, "lock").on(subject);
        let claim = || Claim::take(self.store, name, mode).ok_or_else(busy);
        let mut missing = None;
        for _ in 0..REPLACED_TRIES {
            missing = None;
            let file = match self.open(&path, mode) {
                // The directory of the namespace was removed, or another process is making a lock file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing = Some(error);
                    continue;
                }
                Ok(Opened::Busy) => continue,
                Ok(Opened::Directory(lock)) => {
                    let place = AbsentPlace { _lock: lock, path, runtime: Arc::clone(runtime) };
                    return Ok(FileGuard { claim: Some(claim()?), held: Held::Directory(place) });
                }
                Ok(Opened::Nothing) => {
                    let claim = claim()?;
                    // A second look: another task may have made the file before it could see the claim.
                    match self.open(&path, mode) {
                        Ok(Opened::Nothing) => {
                            return Ok(FileGuard { claim: Some(claim), held: Held::Nothing });
                        }
                        _ => continue,
                    }
                }
                Ok(Opened::File(file)) => file,
                Err(error) => return Err(failed(error)),
            };
            let how = if mode.is_alone() { ALONE } else { FlockOperation::NonBlockingLockShared };
            let file = match LockedFile::lock(file, how) {
                Ok(file) => file,
                Err(Errno::AGAIN) => return Err(busy()),
                Err(error) => return Err(failed(error.into())),
            };
            let identity = file.metadata().map(|metadata| identity(&metadata)).map_err(failed)?;
            let place = Place { identity, path: path.clone(), runtime: Arc::clone(runtime) };
            if Claim::excludes(self.store, name, mode) {
                return Err(busy());
            }
            if place.is_held() || mutated!("fs-lock-of-a-replaced-file") {
                return Ok(FileGuard { claim: None, held: Held::File(file, place) });
            }
        }
        // A link to nothing, in the place of a directory of lock files. `NotFound` would be about what is to be locked.
        let unavailable = |error| Error::new(ErrorKind::Unavailable, "lock").on(subject).because(error);
        Err(missing.map_or_else(busy, unavailable))
    }

    fn open(&self, path: &Path, mode: LockMode) -> io::Result<Opened> {
        let mut existing = lock_file_options();
        let opened = match existing.create(false).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(path, mode),
            Err(error) => Err(error),
            Ok(file) => give(&file, self.owner, LOCK_MODE).map(|()| Opened::File(file)),
        };
        match opened {
            Err(error) if !mode.is_alone() && is_forbidden(&error) => {
                let mut reading = OpenOptions::new();
                match reading.read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound || is_forbidden(&error) => {
                        Ok(Opened::Nothing)
                    }
                    file => file.map(Opened::File),
                }
            }
            opened => opened,
        }
    }

    fn make(&self, path: &Path, mode: LockMode) -> io::Result<Opened> {
        // Where a directory cannot be locked, no process locks one instead of a file.
        let making =
            File::open(&self.root).map(|root| LockedFile::lock(root, FlockOperation::NonBlockingLockShared));
        if let Ok(Err(Errno::AGAIN)) = &making {
            return Ok(match DirectoryLock::of_this_process(self.store) {
                _ if !mode.is_alone() => Opened::Nothing,
                Some(lock) => Opened::Directory(lock),
                None => Opened::Busy,
            });
        }
        let made = self.free_space.check().and_then(|()| make_lock_file(path, self.owner));
        drop(making);
        match made {
            Err(error) if is_full(&error) && !mode.is_alone() => Ok(Opened::Nothing),
            Err(error) if is_full(&error) => match DirectoryLock::take(self.store, &self.root) {
                Ok(Some(lock)) if fs::symlink_metadata(path).is_err() => Ok(Opened::Directory(lock)),
                Ok(_) => Ok(Opened::Busy),
                Err(_) => Err(error),
            },
            made => made.map(Opened::File),
        }
    }

    /// Removes lock files in the default directory that have no holder and whose object does not exist. Ignores failures.
    pub(super) fn sweep(&self) {
        if !self.is_own {
            return;
        }
        let names = |directory: &Path| -> Vec<(PathBuf, bool)> {
            let entries = fs::read_dir(self.path.join(directory)).into_iter().flatten().flatten();
            let named = |entry: fs::DirEntry| {
                Some((directory.join(entry.file_name()), entry.file_type().ok()?.is_dir()))
            };
            entries.filter_map(named).collect()
        };
        let (directories, mut files): (Vec<_>, Vec<_>) =
            names(Path::new("")).into_iter().partition(|(_, is_directory)| *is_directory);
        for (directory, _) in &directories {
            files.extend(names(directory).into_iter().filter(|(_, is_directory)| !is_directory));
        }
        for (name, _) in files {
            if name != Path::new(JOURNAL) && self.is_gone(&name) {
                self.remove_unheld(&name);
            }
        }
        for (directory, _) in directories {
            // A directory with lock files in use is not empty, and stays.
            let _ = fs::remove_dir(self.path.join(directory));
        }
    }

    /// Returns `true` if the object of a lock file certainly does not exist.
    fn is_gone(&self, name: &Path) -> bool {
        let Some(text) = name.to_str() else { return false };
        if Path::new(text).starts_with(HASHED) {
            // A hash does not name its object. Without a holder the file can be removed: the next holder makes it again.
            return true;
        }
        let object = locked_object(text);
        object.is_some_and(|object| {
            // In the layout of PBS, or in that of a packed store.
            ["", ENCLOSURE].iter().all(|place| {
                let found = fs::symlink_metadata(self.root.join(place).join(&object));
                found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            })
        })
    }

    fn remove_unheld(&self, name: &Path) {
        let path = self.path.join(name);
        let Ok(file) = lock_file_options().create(false).open(&path) else { return };
        let Ok(file) = LockedFile::lock(file, ALONE) else { return };
        let (found, locked) = (fs::symlink_metadata(&path), file.metadata());
        if let (Ok(found), Ok(locked)) = (found, locked)
            && !Claim::excludes(self.store, name, LockMode::Exclusive)
            && identity(&found) == identity(&locked)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// A lock that is held. Closing its file releases it.
#[derive(Debug)]
pub(super) struct FileGuard {
    #[expect(dead_code, reason = "held, not read")]
    claim: Option<Claim>,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Directory(AbsentPlace),
    File(LockedFile, Place),
    Nothing,
}

/// The path of an absent lock file, which no process can make while the lock is held.
#[derive(Clone, Debug)]
struct AbsentPlace {
    _lock: Arc<DirectoryLock>,
    path: PathBuf,
    runtime: Arc<dyn Runtime>,
}

impl FileGuard {
    /// The file that is locked, if there is one.
    pub(super) fn file(&self) -> Option<&File> {
        match &self.held {
            Held::File(file, _) => Some(file),
            Held::Directory(_) | Held::Nothing => None,
        }
    }
}

#[async_trait]
impl LockGuard for FileGuard {
    async fn check(&self) -> Result<()> {
        match &self.held {
            Held::Directory(place) => {
                let path = place.path.clone();
                let absent = move || match fs::symlink_metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(Error::io(error, "check the lock").on(path.display())),
                    Ok(_) => {
                        let error = Error::new(ErrorKind::Busy, "check the lock").on(path.display());
                        Err(error.because("another program made the lock file"))
                    }
                };
                place.runtime.run_blocking("check the lock", absent).await
            }
            Held::File(_, place) => place.check().await,
            Held::Nothing => Ok(()),
        }
    }

    fn keeps_processes_out(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        None
    }

    async fn release_deleted(self: Box<Self>) {
        let Held::File(file, place) = self.held else { return };
        let runtime = Arc::clone(&place.runtime);
        let remove = move || {
            // With other shared holders the file must stay: they would hold the lock of a removed file.
            if file.relock(ALONE).is_ok() && place.is_held() {
                // A file that cannot be removed has no effect.
                let _ = fs::remove_file(&place.path);
            }
            // Unlocked only after the removal: otherwise another process could lock the file just before it is removed.
            drop(file);
            Ok(())
        };
        // If the runtime is shut down, the file remains.
        let _ = runtime.run_blocking("release a lock", remove).await;
    }
}

/// The exclusive lock of the store's directory by this process: no process makes lock files.
#[derive(Debug)]
struct DirectoryLock {
    #[expect(dead_code, reason = "held, not read")]
    root: LockedFile,
}

impl DirectoryLock {
    fn open() -> MutexGuard<'static, BTreeMap<StoreId, Weak<Self>>> {
        static OPEN: Mutex<BTreeMap<StoreId, Weak<DirectoryLock>>> = Mutex::new(BTreeMap::new());
        OPEN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock that this process holds, if it does.
    fn of_this_process(store: StoreId) -> Option<Arc<Self>> {
        Self::open().get(&store).and_then(Weak::upgrade)
    }

    /// Takes the lock, which all tasks of the process share; `None` if another process has it.
    fn take(store: StoreId, root: &Path) -> io::Result<Option<Arc<Self>>> {
        let mut open = Self::open();
        open.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = open.get(&store).and_then(Weak::upgrade) {
            return Ok(Some(lock));
        }
        match LockedFile::lock(File::open(root)?, ALONE) {
            Ok(root) => {
                let lock = Arc::new(Self { root });
                open.insert(store, Arc::downgrade(&lock));
                Ok(Some(lock))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A lock that a task of this process holds without a lock file. A task that locks the file checks the claims too.
#[derive(Debug)]
struct Claim {
    key: (StoreId, PathBuf),
    mode: LockMode,
}

/// The number of tasks that share each lock; `None` for an exclusive holder.
type Claims = BTreeMap<(StoreId, PathBuf), Option<usize>>;

impl Claim {
    fn table() -> MutexGuard<'static, Claims> {
        static TABLE: Mutex<Claims> = Mutex::new(BTreeMap::new());
        TABLE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if a task that holds the lock without a file excludes this mode.
    fn excludes(store: StoreId, name: &Path, mode: LockMode) -> bool {
        let holders = Self::table().get(&(store, name.to_owned())).copied();
        holders.is_some_and(|shared| mode.is_alone() || shared.is_none())
    }

    /// Takes the lock within this process; `None` if another task excludes it.
    fn take(store: StoreId, name: &Path, mode: LockMode) -> Option<Self> {
        let key = (store, name.to_owned());
        let mut table = Self::table();
        let holders = match (table.get(&key), mode.is_alone()) {
            (None, true) => None,
            (None, false) => Some(1),
            (Some(Some(shared)), false) => Some(shared + 1),
            (Some(_), _) => return None,
        };
        table.insert(key.clone(), holders);
        Some(Self { key, mode })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = Self::table();
        match table.get_mut(&self.key) {
            Some(Some(shared)) if *shared > 1 && !self.mode.is_alone() => *shared -= 1,
            _ => _ = table.remove(&self.key),
        }
    }
}

/// Makes a lock file and its missing directories, or opens the file that another process made meanwhile.
fn make_lock_file(path: &Path, owner: Option<(u32, u32)>) -> io::Result<File> {
    let mut options = lock_file_options();
    options.mode(LOCK_MODE);
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_lock_directories(path.parent().unwrap_or(path), owner)?;
            options.open(path)?
        }
        opened => opened?,
    };
    give(&file, owner, LOCK_MODE)?;
    Ok(file)
}

/// Makes the missing directories with the owner of lock files, since PBS makes lock files in them too.
fn make_lock_directories(directory: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let missing: Vec<_> = directory.ancestors().take_while(|above| !above.exists()).collect();
    for directory in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(directory, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

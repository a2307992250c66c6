//! Locks on disk.
//!
//! **The store** (`.lock`): an open-file-description lock over the whole file, which excludes the record locks that PBS takes
//! there. Other than a record lock it does not vanish when some other descriptor of the file is closed (H159). One
//! descriptor per file and process, in a registry; the holders within the process are in a [`LockTable`], and the lock of the
//! descriptor is what they need together: exclusive if one of them is, else shared, else none. An exclusive lock that is held
//! for a moment only covers the first half of the largest possible file, which others can see when they are refused: they wait for it.
//!
//! **Groups, snapshots and manifests**: `flock` on a file of their own in the lock directory. Each holder has a descriptor
//! of its own, so tasks of one process exclude one another too. After locking, the file must still be the one at the path
//! (H160). In the default directory lock files are never removed; in a directory that is shared with PBS they are, with
//! their object, because PBS does so.
//!
//! The system gives all of them back when the process dies (H93).
//!
//! Source: PBS datastore format, locks.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg};
use nix::libc;

use crate::backend::lock_table::{Held, LockTable};
use crate::backend::{HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::name::Namespace;
use crate::rt::Runtime;

/// How often a lock file that was replaced while it was being locked is tried anew.
const REPLACED_TRIES: usize = 8;
/// How many bytes are locked by a holder who has the lock for a moment only.
const BRIEF_BYTES: i64 = 1 << 62;
const LOCK_MODE: u32 = 0o660;
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

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.held.as_ref().and_then(Held::oldest_shared)
    }

    async fn release_deleted(self: Box<Self>) {}
}

/// The directory of the lock files of groups, snapshots and manifests.
#[derive(Clone, Debug)]
pub(super) struct LockDirectory {
    /// Who gets the files, so that PBS can lock them too.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) path: PathBuf,
    /// Whether lock files go with their object, as where PBS uses the same directory.
    pub(super) removing: bool,
}

impl LockDirectory {
    /// Takes the lock. Blocks for the disk only, never for another holder.
    pub(super) fn lock(
        &self,
        runtime: &Arc<dyn Runtime>,
        scope: &LockScope,
        mode: LockMode,
    ) -> Result<FileGuard> {
        self.lock_file(runtime, &lock_file(scope), scope, mode)
    }

    /// The same for a file of another name in the directory.
    pub(super) fn lock_file(
        &self,
        runtime: &Arc<dyn Runtime>,
        name: &Path,
        subject: &dyn Display,
        mode: LockMode,
    ) -> Result<FileGuard> {
        let path = self.path.join(name);
        let failed = |error: io::Error| Error::io(error, "lock").on(subject);
        for _ in 0..REPLACED_TRIES {
            let file = match open_lock_file(&path, self.owner) {
                // Nobody can change what is on a read-only filesystem, so there is nothing to be excluded from.
                Err(error)
                    if error.kind() == io::ErrorKind::ReadOnlyFilesystem && mode == LockMode::Shared =>
                {
                    return Ok(FileGuard { held: None, removing: false });
                }
                opened => opened.map_err(failed)?,
            };
            let how = match mode {
                LockMode::Brief | LockMode::Exclusive => FlockArg::LockExclusiveNonblock,
                LockMode::Shared => FlockArg::LockSharedNonblock,
            };
            let file = match Flock::lock(file, how) {
                Ok(file) => file,
                Err((_, Errno::EAGAIN)) => return Err(Error::new(ErrorKind::Busy, "lock").on(subject)),
                Err((_, error)) => return Err(failed(error.into())),
            };
            let identity = file.metadata().map(|metadata| identity(&metadata)).map_err(failed)?;
            let place = Place { identity, path: path.clone(), runtime: Arc::clone(runtime) };
            if place.is_held() {
                return Ok(FileGuard { held: Some((file, place)), removing: self.removing });
            }
        }
        Err(Error::new(ErrorKind::Busy, "lock").on(subject))
    }
}

/// A locked file; closing it gives the lock back.
#[derive(Debug)]
pub(super) struct FileGuard {
    /// Nothing where nothing can be changed.
    held: Option<(Flock<File>, Place)>,
    removing: bool,
}

impl FileGuard {
    /// The file that is locked; none where nothing can be changed.
    pub(super) fn file(&self) -> Option<&File> {
        self.held.as_ref().map(|(file, _)| &**file)
    }
}

#[async_trait]
impl LockGuard for FileGuard {
    async fn check(&self) -> Result<()> {
        match &self.held {
            Some((_, place)) => place.check().await,
            None => Ok(()),
        }
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        None
    }

    async fn release_deleted(self: Box<Self>) {
        let Self { held, removing } = *self;
        let Some((file, place)) = held.filter(|_| removing) else { return };
        let runtime = Arc::clone(&place.runtime);
        let remove = move || {
            if place.is_held() {
                // One that stays behind locks nothing.
                let _ = fs::remove_file(&place.path);
            }
            // Unlocked only now: whoever locked the file before it goes would believe to hold something.
            drop(file);
            Ok(())
        };
        // A pool that went away leaves the file.
        let _ = runtime.run_blocking("give back a lock", remove).await;
    }
}

/// A lock file and where it was when it was locked.
#[derive(Clone, Debug)]
struct Place {
    identity: (u64, u64),
    path: PathBuf,
    runtime: Arc<dyn Runtime>,
}

impl Place {
    /// Whether the file is still the one that others would lock.
    fn is_held(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Fails if somebody else may hold the lock by now: the file was removed or replaced by another.
    async fn check(&self) -> Result<()> {
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

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn lock_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Gives a file that was just made to its owner; one that has another owner than it should was just made.
fn give(file: &File, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    if let Some((uid, gid)) = owner
        && file.metadata()?.uid() != uid
    {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn open_lock_file(path: &Path, owner: Option<(u32, u32)>) -> io::Result<File> {
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

/// Makes what is missing of a directory, each with its owner: others make locks there too.
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

/// The path of a lock file below the lock directory.
fn lock_file(scope: &LockScope) -> PathBuf {
    let (namespace, path) = match scope {
        LockScope::Group(group) => (group.namespace(), format!("{}/{}", group.backup_type(), group.id())),
        LockScope::Snapshot(snapshot) => (snapshot.namespace(), in_namespace(snapshot)),
        LockScope::Manifest(snapshot) => (snapshot.namespace(), in_namespace(snapshot) + "/.index.json.lck"),
        LockScope::Store => return PathBuf::from("store"),
    };
    namespace_directory(namespace).join(file_name(&path))
}

fn in_namespace(snapshot: &crate::format::name::SnapshotName) -> String {
    let group = snapshot.group();
    format!("{}/{}/{}", group.backup_type(), group.id(), snapshot.time())
}

fn namespace_directory(namespace: &Namespace) -> PathBuf {
    let name = namespace.components().collect::<Vec<_>>().join(":");
    // PBS cannot lock anything in a namespace whose name is that long.
    if name.len() < 256 {
        PathBuf::from(name)
    } else {
        Path::new("hashed").join(Digest::of(name.as_bytes()).to_string())
    }
}

/// The path within the namespace as one file name, escaped as systemd does it; hashed where that is too long.
fn file_name(path: &str) -> PathBuf {
    let mut name = String::new();
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' => name.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => _ = write!(name, "\\x{byte:02x}"),
        }
    }
    if name.len() < 255 {
        return PathBuf::from(name);
    }
    let (head, tail) = (&name[..80], &name[name.len() - 80..]);
    Path::new("hashed").join(format!("{head}...{tail}-{}", Digest::of(path.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_files_are_called_as_pbs_calls_them() {
        let snapshot = "vm/100/2022-05-02T08:11:33Z".parse().unwrap();
        let name = r"vm-100-2022\x2d05\x2d02T08\x3a11\x3a33Z-.index.json.lck";
        assert_eq!(lock_file(&LockScope::Manifest(snapshot)), Path::new(name));
        let group = "ns/a/ns/b/host/x-y".parse().unwrap();
        assert_eq!(lock_file(&LockScope::Group(group)), Path::new(r"a:b/host-x\x2dy"));
    }

    #[test]
    fn a_long_name_is_hashed() {
        let group = format!("host/{}", "a-".repeat(100)).parse().unwrap();
        let LockScope::Group(group) = LockScope::Group(group) else { unreachable!() };
        let name = lock_file(&LockScope::Group(group));
        let name = name.to_str().unwrap();
        assert!(name.starts_with(r"hashed/host-a\x2da\x2d"), "{name}");
        assert_eq!(name.len(), "hashed/".len() + 80 + 3 + 80 + 1 + 64);
    }
}

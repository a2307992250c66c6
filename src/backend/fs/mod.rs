//! A store in a directory, in the layout of PBS.
//!
//! # How an object gets there
//! A put writes a temporary file beside its destination (`NAME.tmp_XXXXXX`), closes it and renames it: without replacing for
//! [`PutMode::Create`], over what is there for the other modes (H76). A crash leaves the old object, the new one, or neither
//! and a temporary file, which listings report as foreign.
//!
//! # What a barrier does
//! | level | at each put | at the barrier |
//! |---|---|---|
//! | [`SyncLevel::None`] | nothing | nothing: puts stay in order for readers, but a power cut may lose what was stored |
//! | [`SyncLevel::File`] | the file is flushed before it is renamed | the directories changed since the last barrier are flushed |
//! | [`SyncLevel::Filesystem`] | the file is flushed before it is renamed, unless it is a chunk | the whole filesystem is flushed, once |
//!
//! So, except at the first level, an index or a manifest that has a name has its bytes too, whatever crashes.
//!
//! # Directories
//! They are made when an object needs them and removed when they become empty, from the snapshot up to its group; a
//! directory of a namespace is the marker of that namespace and goes with [`Key::Namespace`] only. Neither the directory of
//! the store nor `.chunks` is ever made by a put: where they are missing, a disk is not mounted. Links inside the store are
//! never followed (H78).

mod disk;
mod list;
mod lock;
#[cfg(feature = "testing")]
pub mod replay;

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, DirBuilder, Metadata};
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;

use crate::backend::fs::disk::{Disk, Replacing};
use crate::backend::fs::lock::{LockDirectory, StoreLock};
use crate::backend::{
    Backend, Capabilities, Cursor, Deleted, ListPage, ListQuery, LockGuard, LockMode, LockReach, LockScope,
    Object, ObjectInfo, PutMode, Removal, Touched, Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::SnapshotName;
use crate::rt::Runtime;

/// When what was stored reaches the disk; see the [table](self#what-a-barrier-does).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncLevel {
    /// Each file and directory is flushed by itself.
    File,
    /// The whole filesystem is flushed at each barrier. The default, as in PBS.
    #[default]
    Filesystem,
    /// Nothing is flushed. A power cut may lose backups that were reported as finished.
    None,
}

/// When the 65,536 directories for chunks are made.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixDirectories {
    /// All of them by `create`. The default; PBS does not open a store without them.
    #[default]
    AtOnce,
    /// Each with its first chunk.
    OnDemand,
}

/// How a store in a directory is opened or created.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct FsOptions {
    lock_directory: Option<PathBuf>,
    owner: Option<(u32, u32)>,
    prefix_directories: PrefixDirectories,
    #[cfg(feature = "testing")]
    record: Option<Arc<replay::DiskRecord>>,
    sync_level: SyncLevel,
}

impl FsOptions {
    /// The directory of the lock files of groups, snapshots and manifests; default: `.larder-locks` in the store.
    ///
    /// To use a store beside a running PBS, name the directory that PBS uses for this store. Lock files are then removed
    /// together with their objects, as PBS does; in the default directory they stay.
    pub fn lock_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.lock_directory = Some(directory.into());
        self
    }

    /// The user and group that get everything that is made; default for `create`: the caller; for `open`: those who own
    /// `.chunks`, if the caller is root. PBS wants its own user, `backup`, which is 34:34 on Debian.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// When the directories for chunks are made; default: all of them at once.
    pub fn prefix_directories(mut self, when: PrefixDirectories) -> Self {
        self.prefix_directories = when;
        self
    }

    /// When what was stored reaches the disk; default: [`SyncLevel::Filesystem`].
    pub fn sync_level(mut self, level: SyncLevel) -> Self {
        self.sync_level = level;
        self
    }

    /// Records every change made to the disk.
    #[cfg(feature = "testing")]
    pub fn record(mut self, record: Arc<replay::DiskRecord>) -> Self {
        self.record = Some(record);
        self
    }

    fn disk(&self, root: &Path, owner: Option<(u32, u32)>) -> Disk {
        let disk = Disk::new(root.to_owned(), self.owner.or(owner));
        #[cfg(feature = "testing")]
        let disk = disk.recording(self.record.clone());
        disk
    }
}

/// A [`Backend`] that keeps a store in a directory.
#[derive(Debug)]
pub struct FsBackend {
    capabilities: Capabilities,
    inner: Arc<Inner>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug)]
struct Inner {
    disk: Disk,
    lock_directory: LockDirectory,
    sync_level: SyncLevel,
    /// Directories whose entries changed since the last barrier; kept at level `File` only.
    unsynced: Mutex<BTreeSet<String>>,
    /// Held by puts that compare versions: the object of a key has one of them.
    versions: [Mutex<()>; 16],
}

impl FsBackend {
    /// Makes a new, empty store in a directory, which is made too if its parent is there.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a store already; `InvalidInput` if the directory holds anything but hidden files and
    /// `lost+found`.
    ///
    /// # Cancel safety
    /// The store is created in the background or not at all.
    pub async fn create(
        runtime: Arc<dyn Runtime>,
        path: impl Into<PathBuf>,
        options: FsOptions,
    ) -> Result<Self> {
        let root = path.into();
        let (made, created) = (root.clone(), options.clone());
        runtime.run_blocking("create a store", move || create(&made, &created)).await?;
        Self::open(runtime, root, options).await
    }

    /// Opens the store in a directory. Takes the same time however many chunks there are.
    ///
    /// # Errors
    /// `NotFound` if there is no store.
    pub async fn open(
        runtime: Arc<dyn Runtime>,
        path: impl Into<PathBuf>,
        options: FsOptions,
    ) -> Result<Self> {
        let root = path.into();
        let inner = runtime.run_blocking("open a store", move || open(&root, &options)).await?;
        let lock_reach = if on_network(inner.disk.root()) { LockReach::Process } else { LockReach::Host };
        let capabilities = Capabilities { lock_reach, ..Capabilities::local() };
        Ok(Self { capabilities, inner: Arc::new(inner), runtime })
    }

    async fn blocking<T, F>(&self, action: &'static str, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.runtime.run_blocking(action, move || job(&inner)).await
    }

    fn temporary_name(&self, path: &str) -> String {
        let mut random = [0; 6];
        self.runtime.fill_random(&mut random);
        let suffix = random.map(|byte| char::from(SUFFIX_DIGITS[usize::from(byte) % SUFFIX_DIGITS.len()]));
        format!("{path}.tmp_{}", suffix.iter().collect::<String>())
    }
}

#[async_trait]
impl Backend for FsBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let key = key.clone();
        self.blocking("read", move |inner| inner.get(&key, limit)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let key = key.clone();
        self.blocking("read a range of", move |inner| inner.get_range(&key, &range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let key = key.clone();
        self.blocking("look up", move |inner| inner.head(&key)).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let (key, temporary) = (key.clone(), self.temporary_name(&key.path()));
        self.blocking("store", move |inner| inner.put(&key, &temporary, &object, &mode)).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let (from, to, temporary) = (from.clone(), to.clone(), self.temporary_name(&to.path()));
        self.blocking("copy", move |inner| {
            let object = inner.get(&from, u64::MAX)?;
            inner.put(&to, &temporary, &object.bytes, &mode)
        })
        .await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let removals = removals.to_vec();
        self.blocking("delete", move |inner| {
            Ok(removals.iter().map(|removal| inner.delete(removal)).collect())
        })
        .await
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let (query, cursor) = (query.clone(), cursor.cloned());
        self.blocking("list", move |inner| {
            let listed = list::page(&inner.disk, &query, cursor.as_ref());
            listed.map_err(|error| Error::io(error, "list").on(&query.prefix))
        })
        .await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let keys = keys.to_vec();
        self.blocking("touch", move |inner| keys.iter().map(|key| inner.touch(key)).collect()).await
    }

    async fn barrier(&self) -> Result<()> {
        self.blocking("flush", Inner::barrier).await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let (scope, now) = (scope.clone(), self.runtime.now());
        self.blocking("lock", move |inner| {
            if scope != LockScope::Store {
                return Ok(Box::new(inner.lock_directory.lock(&scope, mode)?) as Box<dyn LockGuard>);
            }
            let lock = StoreLock::open(&inner.disk.at(LOCK_FILE));
            let lock = lock.map_err(|error| Error::io(error, "lock").on(&scope))?;
            Ok(Box::new(lock.lock(mode, now)?))
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl Inner {
    fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        if let Key::Namespace(_) = key {
            return Ok(Object::new(Bytes::new(), self.head(key)?));
        }
        let failed = |error| failure(error, "read", key);
        let (file, metadata) = self.disk.open(&key.path()).map_err(failed)?;
        let size = metadata.len();
        if size > limit {
            return Err(Error::new(ErrorKind::Corrupt, "read")
                .on(key)
                .because("it is larger than it may be"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| {
            Error::new(ErrorKind::Unsupported, "read").on(key).because("it does not fit into memory")
        })?);
        file.take(size).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 != size {
            return Err(Error::new(ErrorKind::Unavailable, "read")
                .on(key)
                .because("it was cut while being read"));
        }
        Ok(Object::new(bytes.into(), info(key, &metadata)))
    }

    fn get_range(&self, key: &Key, range: &Range<u64>) -> Result<Object> {
        let action = "read a range of";
        let outside = || Error::new(ErrorKind::InvalidInput, action).on(key);
        if let Key::Namespace(_) = key {
            // Its marker is empty, so that every range is outside.
            return self.head(key).and_then(|_| Err(outside()));
        }
        let (file, metadata) = self.disk.open(&key.path()).map_err(|error| failure(error, action, key))?;
        if range.is_empty() || range.end > metadata.len() {
            return Err(outside());
        }
        let length = usize::try_from(range.end - range.start).map_err(|_| outside())?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, range.start).map_err(|error| failure(error, action, key))?;
        Ok(Object::new(bytes.into(), info(key, &metadata)))
    }

    fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let failed = |error| failure(error, "look up", key);
        if let Key::Namespace(_) = key {
            let path = key.path();
            let directory = fs::symlink_metadata(self.disk.at(parent(&path))).map_err(failed)?;
            return if directory.is_dir() {
                Ok(marker_info(key.clone(), &directory))
            } else {
                Err(failed(Errno::ELOOP.into()))
            };
        }
        Ok(info(key, &self.disk.metadata(&key.path()).map_err(failed)?))
    }

    fn put(&self, key: &Key, temporary: &str, object: &Bytes, mode: &PutMode) -> Result<Version> {
        if let Key::Namespace(_) = key {
            return self.put_namespace(key, mode);
        }
        let path = key.path();
        let mut stored = self.write_and_publish(key, &path, temporary, object, mode);
        for _ in 0..VANISHED_TRIES {
            // Whoever deletes the last object of a snapshot takes its directory away, with the temporary files in it.
            match &stored {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    stored = self
                        .make_parents(parent(&path))
                        .and_then(|()| self.write_and_publish(key, &path, temporary, object, mode));
                }
                _ => break,
            }
        }
        stored.map_err(|error| not_stored(error, "store", key))
    }

    fn write_and_publish(
        &self,
        key: &Key,
        path: &str,
        temporary: &str,
        object: &Bytes,
        mode: &PutMode,
    ) -> io::Result<Version> {
        let stored = self.disk.write_new(temporary, object).and_then(|file| {
            let is_chunk = matches!(key, Key::Chunk(_) | Key::Quarantined(..));
            if self.sync_level == SyncLevel::File || (self.sync_level == SyncLevel::Filesystem && !is_chunk) {
                self.disk.sync_file(temporary, &file)?;
            }
            // Closed before it is renamed: some filesystems refuse the rename of an open file.
            file.metadata()
        });
        let published = stored.and_then(|metadata| {
            self.publish(temporary, path, key, mode)?;
            Ok(version(&metadata))
        });
        match published {
            Ok(_) => self.changed(parent(path)),
            // What cannot be removed is a leftover with a name that says so.
            Err(_) => _ = self.disk.remove_file(temporary),
        }
        published
    }

    fn publish(&self, temporary: &str, path: &str, key: &Key, mode: &PutMode) -> io::Result<()> {
        match mode {
            PutMode::Create => self.disk.rename(temporary, path, Replacing::Forbidden),
            PutMode::Replace => self.disk.rename(temporary, path, Replacing::Intended),
            PutMode::IfMatch(wanted) => {
                let _held = self.version_lock(path).lock().unwrap_or_else(PoisonError::into_inner);
                match self.disk.metadata(path) {
                    Ok(found) if version(&found) == *wanted => {
                        self.disk.rename(temporary, path, Replacing::Intended)
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Err(io::Error::other(Error::new(ErrorKind::Conflict, "replace").on(key))),
                }
            }
        }
    }

    fn put_namespace(&self, key: &Key, mode: &PutMode) -> Result<Version> {
        let path = key.path();
        let directory = parent(&path);
        let refused = |kind| Err(Error::new(kind, "create").on(key));
        let found = match self.head(key) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found?.version),
        };
        match (mode, found) {
            (PutMode::Create, Some(_)) => return refused(ErrorKind::AlreadyExists),
            (PutMode::IfMatch(wanted), found) if found.as_ref() != Some(wanted) => {
                return refused(ErrorKind::Conflict);
            }
            (_, Some(version)) => return Ok(version),
            (_, None) => {}
        }
        let failed = |error| not_stored(error, "create", key);
        self.make_parents(parent(directory)).map_err(failed)?;
        match self.disk.make_directory(directory, 0o755) {
            Ok(()) => self.changed(parent(directory)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && *mode != PutMode::Create => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(self.head(key)?.version)
    }

    /// Makes a directory and those between it and the store, but neither the store nor `.chunks`.
    fn make_parents(&self, directory: &str) -> io::Result<()> {
        let mode = if directory.starts_with(".chunks/") { 0o750 } else { 0o755 };
        let above = directory.match_indices('/').map(|(at, _)| &directory[..at]);
        for directory in above.chain([directory]) {
            if directory == ".chunks" || directory.is_empty() {
                continue;
            }
            match self.disk.make_directory(directory, mode) {
                Ok(()) => self.changed(parent(directory)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn delete(&self, removal: &Removal) -> Result<Deleted> {
        let Removal { key, version: wanted } = removal;
        let path = key.path();
        if let Key::Namespace(_) = key {
            return self.delete_namespace(removal, parent(&path));
        }
        let failed = |error| failure(error, "delete", key);
        if let Some(wanted) = wanted {
            let _held = self.version_lock(&path).lock().unwrap_or_else(PoisonError::into_inner);
            let found = match self.disk.metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Deleted::Absent),
                found => found.map_err(failed)?,
            };
            if version(&found) != *wanted {
                return Err(Error::new(ErrorKind::Conflict, "delete").on(key));
            }
            self.disk.remove_file(&path).map_err(failed)?;
        } else {
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Deleted::Absent),
                removed => removed.map_err(failed)?,
            }
        }
        self.changed(parent(&path));
        if key.is_content() {
            self.remove_empty(parent(&path));
        }
        Ok(Deleted::Removed)
    }

    /// Removes the directory of a snapshot or group, and the group of a snapshot, if nothing is left in them. Not being able
    /// to is no failure: what keeps the directory is visible in listings.
    fn remove_empty(&self, directory: &str) {
        let is_snapshot = directory.parse::<SnapshotName>().is_ok();
        if is_snapshot {
            self.remove_temporaries(directory);
        }
        if self.disk.remove_directory(directory).is_ok() {
            self.changed(parent(directory));
            if is_snapshot {
                self.remove_empty(parent(directory));
            }
        }
    }

    /// Removes temporary files from the directory of a snapshot in which there is nothing else: those of a writer that died.
    fn remove_temporaries(&self, directory: &str) {
        let Ok(entries) = fs::read_dir(self.disk.at(directory)) else { return };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        let names: Option<Vec<_>> =
            names.iter().map(|name| name.to_str().filter(|name| is_temporary(name))).collect();
        for name in names.unwrap_or_default() {
            // One that cannot be removed keeps the directory, which stays visible.
            let _ = self.disk.remove_file(&format!("{directory}/{name}"));
        }
    }

    /// Removes the directory of a namespace, with the directories for types and for namespaces that are empty.
    fn delete_namespace(&self, removal: &Removal, directory: &str) -> Result<Deleted> {
        let Removal { key, version: wanted } = removal;
        if let Some(wanted) = wanted {
            match self.head(key) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Deleted::Absent),
                Ok(found) if found.version != *wanted => {
                    return Err(Error::new(ErrorKind::Conflict, "delete").on(key));
                }
                found => _ = found?,
            }
        }
        for child in ["ct", "host", "ns", "vm"] {
            // One that is not empty keeps the namespace, which is what the removal below then says.
            let _ = self.disk.remove_directory(&format!("{directory}/{child}"));
        }
        match self.disk.remove_directory(directory) {
            Ok(()) => {
                self.changed(parent(directory));
                Ok(Deleted::Removed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Deleted::Absent),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Err(Error::new(ErrorKind::Conflict, "delete").on(key).because(error))
            }
            Err(error) => Err(failure(error, "delete", key)),
        }
    }

    fn touch(&self, key: &Key) -> Result<Touched> {
        if let Key::Namespace(_) = key {
            return match self.head(key) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Touched::Absent),
                found => found.map(Touched::Present),
            };
        }
        let path = key.path();
        let touched = self.disk.touch(&path).and_then(|()| self.disk.metadata(&path));
        match touched {
            Ok(metadata) => Ok(Touched::Present(info(key, &metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Touched::Absent),
            Err(error) => Err(failure(error, "touch", key)),
        }
    }

    fn barrier(&self) -> Result<()> {
        let failed = |error| Error::io(error, "flush").on(self.disk.root().display());
        match self.sync_level {
            SyncLevel::None => Ok(()),
            SyncLevel::Filesystem => self.disk.sync_filesystem().map_err(failed),
            SyncLevel::File => {
                let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
                let directories = std::mem::take(&mut *unsynced);
                drop(unsynced);
                for (done, directory) in directories.iter().enumerate() {
                    if let Err(error) = self.disk.sync_directory(directory) {
                        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
                        unsynced.extend(directories.iter().skip(done).cloned());
                        return Err(failed(error));
                    }
                }
                Ok(())
            }
        }
    }

    /// Notes that entries of a directory changed.
    fn changed(&self, directory: &str) {
        if self.sync_level == SyncLevel::File {
            let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
            if !unsynced.contains(directory) {
                unsynced.insert(directory.to_owned());
            }
        }
    }

    fn version_lock(&self, path: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        &self.versions[usize::from(hasher.finish().to_le_bytes()[0]) % self.versions.len()]
    }
}

fn open(root: &Path, options: &FsOptions) -> Result<Inner> {
    let missing = |error| Error::io(error, "open the store in").on(root.display());
    let chunks = fs::metadata(root.join(CHUNKS)).map_err(missing)?;
    if !chunks.is_dir() {
        return Err(missing(io::ErrorKind::NotFound.into()));
    }
    let inherited =
        (nix::unistd::geteuid().is_root() && chunks.uid() != 0).then(|| (chunks.uid(), chunks.gid()));
    let lock_directory = match &options.lock_directory {
        Some(path) => LockDirectory { path: path.clone(), removing: true },
        None => LockDirectory { path: root.join(LOCK_DIRECTORY), removing: false },
    };
    Ok(Inner {
        disk: options.disk(root, inherited),
        lock_directory,
        sync_level: options.sync_level,
        unsynced: Mutex::default(),
        versions: Default::default(),
    })
}

/// Makes the layout. The chunk directories are made under another name first, so that there is a store once it is whole.
fn create(root: &Path, options: &FsOptions) -> Result<()> {
    let failed = |error| Error::io(error, "create a store in").on(root.display());
    match DirBuilder::new().mode(0o755).create(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => check_unused(root)?,
    }
    let disk = options.disk(root, None);
    let lay_out = || {
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        if let Some((uid, gid)) = options.owner {
            std::os::unix::fs::lchown(root, Some(uid), Some(gid))?;
        }
        if fs::symlink_metadata(root.join(LOCK_FILE)).is_err() {
            disk.write_new(LOCK_FILE, &Bytes::new())?;
        }
        let building = format!("{CHUNKS}.tmp_{}", std::process::id());
        disk.make_directory(&building, 0o750)?;
        if options.prefix_directories == PrefixDirectories::AtOnce {
            for prefix in 0..=0xffff {
                disk.make_directory(&format!("{building}/{prefix:04x}"), 0o750)?;
            }
        }
        disk.rename(&building, CHUNKS, Replacing::Intended)?;
        disk.sync_filesystem()
    };
    lay_out().map_err(failed)
}

fn check_unused(root: &Path) -> Result<()> {
    let failed = |error| Error::io(error, "create a store in").on(root.display());
    if fs::symlink_metadata(root.join(CHUNKS)).is_ok() {
        return Err(Error::new(ErrorKind::AlreadyExists, "create a store in").on(root.display()));
    }
    for entry in fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") && name != "lost+found" {
            return Err(Error::new(ErrorKind::InvalidInput, "create a store in")
                .on(root.display())
                .because(format!("the directory is not empty: it holds {}", name.display())));
        }
    }
    Ok(())
}

/// Whether the filesystem is one whose locks other hosts may not see (H79).
fn on_network(root: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::statfs;
        let network = [statfs::NFS_SUPER_MAGIC, statfs::SMB_SUPER_MAGIC, statfs::FUSE_SUPER_MAGIC];
        statfs::statfs(root).is_ok_and(|found| network.contains(&found.filesystem_type()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = root;
        true
    }
}

fn failure(error: io::Error, action: &'static str, key: &Key) -> Error {
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return inner.clone();
    }
    let kind = match error.raw_os_error().map(Errno::from_raw) {
        // A link, a directory or a device where an object should be.
        Some(Errno::ELOOP | Errno::EISDIR | Errno::ENOTDIR) => ErrorKind::Corrupt,
        _ => return Error::io(error, action).on(key),
    };
    Error::new(kind, action).on(key).because(error)
}

/// As [`failure`], for what was to be stored: where a directory is missing, it is not the object that is absent.
fn not_stored(error: io::Error, action: &'static str, key: &Key) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::new(ErrorKind::Unavailable, action).on(key).because(error);
    }
    failure(error, action, key)
}

fn info(key: &Key, metadata: &Metadata) -> ObjectInfo {
    ObjectInfo::new(key.clone(), metadata.len(), last_used(metadata), version(metadata))
}

/// What a listing or `head` says of a namespace, whose marker is its directory.
fn marker_info(key: Key, directory: &Metadata) -> ObjectInfo {
    ObjectInfo::new(key, 0, last_used(directory), Version::new(directory.ino().to_string()))
}

fn version(metadata: &Metadata) -> Version {
    let (inode, size) = (metadata.ino(), metadata.size());
    Version::new(format!("{inode}-{size}-{}.{:09}", metadata.mtime(), metadata.mtime_nsec()))
}

/// The later of the access and the modification time: a reason to keep a chunk, never one to delete it.
fn last_used(metadata: &Metadata) -> SystemTime {
    let at = |seconds: i64, nanoseconds: i64| {
        let fraction = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default());
        match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + fraction,
            Err(_) => SystemTime::UNIX_EPOCH,
        }
    };
    at(metadata.atime(), metadata.atime_nsec()).max(at(metadata.mtime(), metadata.mtime_nsec()))
}

/// Whether a file is named like the temporary file of a put that did not end.
fn is_temporary(name: &str) -> bool {
    let suffix = name.rsplit_once(".tmp_").map_or("", |(_, suffix)| suffix);
    suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

const CHUNKS: &str = ".chunks";
const LOCK_DIRECTORY: &str = ".larder-locks";
const LOCK_FILE: &str = ".lock";
/// How often a put makes its directory anew.
const VANISHED_TRIES: usize = 20;
const SUFFIX_DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

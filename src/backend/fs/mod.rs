//! A store in a directory, in the layout of PBS.
//!
//! # Publication of an object
//! A put writes a temporary file beside its destination (`NAME.tmp_XXXXXX`), closes it and renames it: without replacing for
//! [`PutMode::Create`], over an existing file for the other modes (H76). A crash leaves the old object, the new one, or neither and a
//! temporary file, which listings report as foreign.
//!
//! # Durability
//! | level | at each put | at the barrier |
//! |---|---|---|
//! | [`SyncLevel::None`] | nothing | nothing: readers see puts in order, but a power cut may lose them |
//! | [`SyncLevel::File`] | the file is flushed before it is renamed | the directories changed since the last barrier are flushed; if an existing object was used again, also each filesystem, as another process may have stored the object without a flush |
//! | [`SyncLevel::Filesystem`] | the file is flushed before it is renamed, unless it is a chunk | each filesystem that has objects of the store is flushed as a whole, once |
//!
//! At the level `Filesystem`, every 32 MiB of puts start a flush in the background, so that the barrier has little left to flush.
//!
//! A directory of the store may be a mount point: a barrier at this level flushes the filesystems of all directories in which something
//! changed, of the chunks, and of the store itself. A temporary file lies beside its destination, so that no rename crosses filesystems.
//!
//! A flush that failed is never repeated: the system drops the data that it could not write, and the second flush would succeed. Every
//! barrier fails from then on, until the store is opened again.
//!
//! Except at the level `None`, an index or a manifest that has its name also has its bytes, after any crash.
//!
//! # Calls that a filesystem may lack
//! | lacking call | substitute |
//! |---|---|
//! | rename without replacing | a hard link to the file, whose first name is then removed |
//! | links too (FUSE mounts such as those of rclone, SMB) | a lookup of the name and a rename, under the lock of the file `create` in the lock directory, which reaches as far as the other locks |
//! | stable inode numbers (FUSE) | versions of objects consist of size and modification time only |
//! | setting the access time of a chunk of another user | setting both times to now, or storing the chunk again; `Denied` if neither is permitted |
//!
//! A put finds out that a call is lacking by the errors of both calls and a plain rename that succeeds; if that fails too, the put reports the
//! first error. Readers make no attempt. Errors name the call: "rename without replacing: Operation not supported".
//!
//! # Directories
//! A put makes the directories that its object needs. A delete removes the directories of a snapshot and its group when they become empty. The
//! directory of a namespace marks that namespace, and is deleted with [`Key::Namespace`] only. No put makes the directory of the store or
//! `.chunks`: where they are missing, a disk is not mounted.
//!
//! # Moves, orphans and leftovers
//! An operation that moves snapshots first appends the new paths of their indexes to the [journal](Coordination::record_moves)
//! `move-journal` in the lock directory, which a PBS that uses the same lock directory reads and writes too. The collector reads it last. It
//! also looks for [orphan indexes](Housekeeping::orphans) among the foreign files of a listing, and [removes](Housekeeping::remove_leftovers)
//! temporary files of dead writers that are old enough.
//!
//! # Links and special files
//! Links inside the store are never followed: an object behind one is `Corrupt` (H78). In a place where an index, a snapshot, a group or a
//! namespace could be, listings report a link, and any other entry that is no plain file or directory, as
//! [unreadable](crate::backend::ListEntry::Unreadable), which ends a garbage collection; in other places as foreign. A directory that may
//! not be read ends the listing. Entries directly in `.chunks` whose name is no prefix are ignored. An operation may follow a link that
//! replaces a directory while the operation runs.

mod call;
mod chunks;
mod create;
mod disk;
mod disk_op;
mod empty;
mod filesystems;
mod info;
pub(crate) mod journal;
mod kind;
mod leftovers;
mod list;
mod lock;
mod lock_files;
mod lock_names;
mod lock_place;
mod objects;
mod open_packs;
#[cfg(feature = "testing")]
pub(crate) mod replay;
mod times;
mod version;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::fs::call::FreeSpace;
use crate::backend::fs::create::{create, on_network, open};
use crate::backend::fs::disk::{Contents, Disk};
use crate::backend::fs::journal::Journal;
use crate::backend::fs::lock::StoreLock;
use crate::backend::fs::objects::{Inner, failure};
use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListPage, ListQuery,
    LockGuard, LockMode, LockReach, LockScope, Object, ObjectInfo, Orphan, PendingMoves, PutMode, Removal,
    Touched, Version,
};
use crate::error::Result;
use crate::format::layout::Key;
use crate::rt::Runtime;

/// The time at which objects are flushed to the disk; see the [table](self#durability).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncLevel {
    /// Each new file and each directory is flushed by itself. A barrier after the use of an existing object flushes the whole filesystem too.
    File,
    /// Each barrier flushes the whole filesystem. The default, as in PBS.
    #[default]
    Filesystem,
    /// Nothing is flushed. A power cut may lose finished backups.
    None,
}

/// The time at which the 65,536 directories of chunks are made.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixDirectories {
    /// `create` makes all of them. The default: PBS does not open a store without them. A packed store needs none of them.
    #[default]
    AtOnce,
    /// Each directory is made with its first chunk.
    OnDemand,
}

/// Options for opening and creating a store in a directory.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct FsOptions {
    lock_directory: Option<PathBuf>,
    owner: Option<(u32, u32)>,
    prefix_directories: PrefixDirectories,
    #[cfg(feature = "testing")]
    record: Option<Arc<replay::DiskRecord>>,
    free_space: FreeSpace,
    sync_level: SyncLevel,
}

impl FsOptions {
    /// The directory of the lock files of groups, snapshots and manifests; default: `.larder-locks` in the store.
    ///
    /// To use a store beside a running PBS, name the directory that PBS uses for this store. Lock files are removed together with their
    /// objects, as in PBS. The next garbage collection removes the files that a crash leaves in the default directory.
    pub fn lock_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.lock_directory = Some(directory.into());
        self
    }

    /// The owner, by user and group id, of all new files and directories. Default for `create`: the caller; for `open`: the owner of
    /// `.chunks`, if the caller is root. PBS needs its own user, `backup`, which is 34:34 on Debian.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// The time at which the directories of chunks are made; default: all of them by `create`.
    pub fn prefix_directories(mut self, when: PrefixDirectories) -> Self {
        self.prefix_directories = when;
        self
    }

    /// The time at which objects are flushed to the disk; default: [`SyncLevel::Filesystem`].
    pub fn sync_level(mut self, level: SyncLevel) -> Self {
        self.sync_level = level;
        self
    }

    /// Records every change to the disk.
    #[cfg(feature = "testing")]
    pub(crate) fn recorded(mut self, record: Arc<replay::DiskRecord>) -> Self {
        self.record = Some(record);
        self
    }

    /// Fails every call that makes a file or a directory as on a full disk, while this is `true`.
    #[cfg(feature = "testing")]
    pub(crate) fn filled(mut self, is_full: Arc<std::sync::atomic::AtomicBool>) -> Self {
        self.free_space.is_full = Some(is_full);
        self
    }

    fn disk(&self, root: &Path, owner: Option<(u32, u32)>) -> Disk {
        let disk = Disk::new(root.to_owned(), self.owner.or(owner)).with_free_space(self.free_space.clone());
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
    /// `true` if this handle made the store, and has stored nothing in it.
    is_new: AtomicBool,
    runtime: Arc<dyn Runtime>,
}

impl FsBackend {
    /// Creates an empty store in a directory, which is made too if its parent directory exists.
    ///
    /// # Errors
    /// `AlreadyExists` if the directory has a store; `InvalidInput` if it contains anything but hidden files and `lost+found`, or if the path
    /// is that of a file.
    ///
    /// # Cancel safety
    /// If the future is dropped, the store is created in the background or not at all.
    pub async fn create(
        runtime: Arc<dyn Runtime>,
        path: impl Into<PathBuf>,
        options: FsOptions,
    ) -> Result<Self> {
        let root = path.into();
        let (made, created) = (root.clone(), options.clone());
        runtime.run_blocking("create a store", move || create(&made, &created)).await?;
        let created = Self::open(runtime, root, options).await?;
        created.is_new.store(true, Ordering::Relaxed);
        Ok(created)
    }

    /// Opens the store in a directory, in a time that does not depend on the number of chunks.
    ///
    /// # Errors
    /// `NotFound` if the directory has no store; `InvalidInput` if the path is that of a file.
    pub async fn open(
        runtime: Arc<dyn Runtime>,
        path: impl Into<PathBuf>,
        options: FsOptions,
    ) -> Result<Self> {
        let root = path.into();
        let inner = runtime.run_blocking("open a store", move || open(&root, &options)).await?;
        let lock_reach = if on_network(inner.disk.root()) { LockReach::Process } else { LockReach::Host };
        let capabilities = Capabilities { lock_reach, traceless_locks: false, ..Capabilities::local() };
        Ok(Self { capabilities, inner: Arc::new(inner), is_new: AtomicBool::new(false), runtime })
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
        temporary_name(self.runtime.as_ref(), path)
    }
}

fn temporary_name(runtime: &dyn Runtime, path: &str) -> String {
    let mut random = [0; 6];
    runtime.fill_random(&mut random);
    let suffix = random.map(|byte| char::from(SUFFIX_DIGITS[usize::from(byte) % SUFFIX_DIGITS.len()]));
    format!("{path}.tmp_{}", suffix.iter().collect::<String>())
}

#[async_trait]
impl Backend for FsBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
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
        let bytes = object.len() as u64;
        self.is_new.store(false, Ordering::Relaxed);
        let version = self
            .blocking("store", move |inner| inner.put(&key, &temporary, Contents::Bytes(&object), &mode))
            .await?;
        if self.inner.wants_flush(bytes) {
            let inner = Arc::clone(&self.inner);
            self.runtime.spawn_blocking(Box::new(move || inner.flush_ahead()));
        }
        Ok(version)
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
            listed.map_err(|error| failure(error, "list", &query.prefix))
        })
        .await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let keys = keys.to_vec();
        let runtime = Arc::clone(&self.runtime);
        let temporary = move |key: &Key| temporary_name(runtime.as_ref(), &key.path());
        self.blocking("touch", move |inner| {
            keys.iter().map(|key| inner.touch(key, || temporary(key))).collect()
        })
        .await
    }

    async fn barrier(&self) -> Result<()> {
        self.blocking("flush", Inner::barrier).await
    }
}

#[async_trait]
impl Coordination for FsBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    async fn clock(&self) -> Result<SystemTime> {
        let temporary = self.temporary_name(CLOCK);
        self.blocking("read the clock of the filesystem", move |inner| inner.clock(&temporary)).await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let (scope, runtime) = (scope.clone(), Arc::clone(&self.runtime));
        self.blocking("lock", move |inner| {
            let locks = &inner.lock_directory;
            if scope == LockScope::Store {
                let path = inner.disk.root().join(LOCK_FILE);
                return Ok(
                    Box::new(StoreLock::lock(&runtime, &path, locks.owner, mode)?) as Box<dyn LockGuard>
                );
            }
            Ok(Box::new(locks.lock(&runtime, &scope, mode)?))
        })
        .await
    }

    async fn check_owned(&self) -> Result<()> {
        Ok(())
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        None
    }

    async fn begin_term(&self) -> Result<()> {
        Ok(())
    }

    fn in_doubt(&self, _: &Key) -> Option<Duration> {
        None
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let (journal, keys) = (Journal::lock(&self.inner, &self.runtime).await?, keys.to_vec());
        self.runtime.run_blocking("record moves", move || journal.append(&keys)).await
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        let journal = Journal::lock(&self.inner, &self.runtime).await?;
        let read = self.runtime.run_blocking("read the journal", move || journal.read()).await?;
        Ok(Some(Box::new(read)))
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Housekeeping for FsBackend {
    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let (from, to, temporary) = (from.clone(), to.clone(), self.temporary_name(&to.path()));
        self.is_new.store(false, Ordering::Relaxed);
        self.blocking("copy", move |inner| inner.copy(&from, &to, &temporary, &mode)).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        let keys = keys.to_vec();
        self.blocking("look up", move |inner| Ok(keys.iter().map(|key| inner.head(key)).collect())).await
    }

    async fn has_store(&self) -> Result<bool> {
        // `open` requires `.chunks`, and an empty store of PBS consists of nothing else.
        Ok(true)
    }

    fn is_new(&self) -> bool {
        self.is_new.load(Ordering::Relaxed)
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        let foreign = foreign.to_vec();
        self.blocking("look for indexes", move |inner| leftovers::orphans(&inner.disk, &foreign)).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        let orphan = orphan.clone();
        self.blocking("read", move |inner| leftovers::get_orphan(&inner.disk, &orphan, limit)).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        let (foreign, now) = (foreign.to_vec(), self.runtime.now());
        self.blocking("remove leftovers", move |inner| {
            inner.lock_directory.sweep();
            leftovers::remove(inner, &foreign, now, age)
        })
        .await
    }

    async fn keep_reserve(&self) -> Result<()> {
        // Deleting makes no file before it removes one.
        Ok(())
    }
}

/// Scratch file for reading the clock of the filesystem. It is removed at once.
const CLOCK: &str = ".larder-clock";
const LOCK_FILE: &str = ".lock";
const SUFFIX_DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

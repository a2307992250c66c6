//! Operations on single objects and directories. All of them block.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;

use crate::backend::fs::SyncLevel;
use crate::backend::fs::call::errno;
use crate::backend::fs::disk::{Contents, Disk, Replacing};
use crate::backend::fs::info::{info, marker_info};
use crate::backend::fs::lock_files::LockDirectory;
use crate::backend::fs::open_packs::OpenPacks;
use crate::backend::fs::version::{stamp, version, version_lock};
use crate::backend::{Deleted, Object, ObjectInfo, PutMode, Removal, Version};
use crate::buffers::Buffers;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::pack::name::PACKS;
use crate::format::layout::{ENCLOSURE, Key};
use crate::format::name::SnapshotName;

/// Bytes of puts that start a flush in the background.
const FLUSH_BYTES: u64 = 32 << 20;
/// Number of attempts of a put to make its directory again.
const VANISHED_TRIES: usize = 20;

#[derive(Debug)]
pub(super) struct Inner {
    /// Buffers that objects are read into.
    pub(super) buffers: Arc<Buffers>,
    pub(super) disk: Disk,
    pub(super) lock_directory: LockDirectory,
    /// A flush failed: it is unknown which of the stored objects have reached the disk.
    pub(super) doubtful: AtomicBool,
    /// Held while a flush runs, and until its result is recorded.
    pub(super) flushes: Mutex<()>,
    /// A flush in the background is running.
    pub(super) flushing: AtomicBool,
    /// Packs that ranges were read from.
    pub(super) open_packs: OpenPacks,
    pub(super) sync_level: SyncLevel,
    /// Bytes that were stored since the last flush in the background began.
    pub(super) unflushed: AtomicU64,
    /// Used at the level `File` only.
    pub(super) unsynced: Mutex<Unsynced>,
}

/// Changes that the next barrier flushes at the level of files.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    changes: u64,
    /// Directories whose entries changed since they were last flushed, each with the number of its last change.
    directories: BTreeMap<String, u64>,
    /// Number of uses of files that may be of another process, which may not have flushed them.
    reuses: u64,
}

/// The path of a directory without the [enclosure](Key::Enclosed) of a packed store.
pub(super) fn without_enclosure(path: &str) -> &str {
    path.strip_prefix(ENCLOSURE).unwrap_or(path)
}

/// Returns `true` for the directory of a snapshot.
pub(super) fn is_snapshot(directory: &str) -> bool {
    without_enclosure(directory).parse::<SnapshotName>().is_ok()
}

impl Unsynced {
    fn add(&mut self, directory: &str) {
        self.changes += 1;
        self.directories.insert(directory.to_owned(), self.changes);
    }
}

impl Inner {
    pub(super) fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        if let Key::Namespace(_) = key.exposed() {
            return Ok(Object::new(Bytes::new(), self.head(key)?));
        }
        let failed = |error| failure(error, "read", key);
        let (file, metadata) = self.disk.open(&key.path()).map_err(failed)?;
        let size = metadata.len();
        if size > limit {
            return Err(Error::new(ErrorKind::Corrupt, "read")
                .on(key)
                .because("the object is larger than the limit"));
        }
        let length = usize::try_from(size).map_err(|_| {
            Error::new(ErrorKind::Unsupported, "read").on(key).because("the object does not fit into memory")
        })?;
        let mut buffer = self.buffers.take(length);
        buffer.lengthen(length);
        file.read_exact_at(&mut buffer[..length], 0).map_err(failed)?;
        Ok(Object::new(buffer.freeze_to(length), info(key, &metadata)))
    }

    pub(super) fn get_range(&self, key: &Key, range: &Range<u64>) -> Result<Object> {
        let action = "read a range of";
        if let Key::Namespace(_) = key.exposed() {
            // The marker of a namespace is empty, so every range is outside.
            let outside = Error::new(ErrorKind::InvalidInput, action).on(key);
            return self.head(key).and_then(|_| Err(outside));
        }
        let failed = |error| failure(error, action, key);
        let open = || self.disk.open(&key.path());
        if let Key::Pack(name) = key {
            let (pack, metadata) = self.open_packs.get(*name, open).map_err(failed)?;
            return self.read_range(pack.file(), &metadata, key, range);
        }
        let (file, metadata) = open().map_err(failed)?;
        self.read_range(&file, &metadata, key, range)
    }

    fn read_range(&self, file: &File, metadata: &Metadata, key: &Key, range: &Range<u64>) -> Result<Object> {
        let action = "read a range of";
        let outside = || Error::new(ErrorKind::InvalidInput, action).on(key);
        if range.is_empty() || range.end > metadata.len() {
            return Err(outside());
        }
        let length = usize::try_from(range.end - range.start).map_err(|_| outside())?;
        let mut buffer = self.buffers.take(length);
        buffer.lengthen(length);
        file.read_exact_at(&mut buffer[..length], range.start)
            .map_err(|error| failure(error, action, key))?;
        Ok(Object::new(buffer.freeze_to(length), info(key, metadata)))
    }

    pub(super) fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let failed = |error| failure(error, "look up", key);
        if let Key::Namespace(_) = key.exposed() {
            let path = key.path();
            let directory = self.disk.any_metadata(parent(&path)).map_err(failed)?;
            return if directory.is_dir() {
                Ok(marker_info(key.clone(), &directory))
            } else {
                Err(failed(Errno::ELOOP.into()))
            };
        }
        Ok(info(key, &self.disk.metadata(&key.path()).map_err(failed)?))
    }

    /// Copies an object without holding its bytes in memory.
    pub(super) fn copy(&self, from: &Key, to: &Key, temporary: &str, mode: &PutMode) -> Result<Version> {
        if let (Key::Namespace(_), _) | (_, Key::Namespace(_)) = (from.exposed(), to.exposed()) {
            let object = self.get(from, u64::MAX)?;
            return self.put(to, temporary, Contents::Bytes(&object.bytes), mode);
        }
        let (file, _) = self.disk.open(&from.path()).map_err(|error| failure(error, "copy", from))?;
        self.put(to, temporary, Contents::File(&file), mode)
    }

    pub(super) fn put(
        &self,
        key: &Key,
        temporary: &str,
        object: Contents<'_>,
        mode: &PutMode,
    ) -> Result<Version> {
        if let Key::Namespace(_) = key.exposed() {
            return self.put_namespace(key, mode);
        }
        let path = key.path();
        let mut stored = self.write_and_publish(key, &path, temporary, object, mode);
        for _ in 0..VANISHED_TRIES {
            // A delete of the last object of a snapshot removes its directory, with the temporary files in it.
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
        object: Contents<'_>,
        mode: &PutMode,
    ) -> io::Result<Version> {
        let stored = self.disk.write_new(temporary, object).and_then(|file| {
            let is_chunk = matches!(key, Key::Chunk(_) | Key::Pack(_) | Key::Quarantined(..));
            if !is_chunk {
                // The contents of a chunk never change, so its version is never compared.
                stamp(&file)?;
            }
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
        match &published {
            Ok(_) => self.relied_on(parent(path)),
            Err(error) => {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    self.reused(parent(path));
                }
                // A file that cannot be removed is a leftover that its name identifies.
                let _ = self.disk.remove_file(temporary);
            }
        }
        published
    }

    fn publish(&self, temporary: &str, path: &str, key: &Key, mode: &PutMode) -> io::Result<()> {
        let _held = version_lock(self.disk.identity(), path);
        mutated!("fs-put-ignores-its-mode" => return self.disk.rename(temporary, path, Replacing::Intended));
        match mode {
            PutMode::Create => self.disk.rename(temporary, path, Replacing::Forbidden),
            PutMode::Replace => self.disk.rename(temporary, path, Replacing::Intended),
            PutMode::IfMatch(wanted) => match self.disk.metadata(path) {
                Ok(found) if version(&found) == *wanted => {
                    self.disk.rename(temporary, path, Replacing::Intended)
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Err(io::Error::other(Error::new(ErrorKind::Conflict, "replace").on(key))),
            },
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
        match self.make_directory(directory, 0o755) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && *mode != PutMode::Create => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(self.head(key)?.version)
    }

    /// Makes a directory and those between it and the store, but neither the store nor `.chunks`.
    fn make_parents(&self, directory: &str) -> io::Result<()> {
        let is_of_chunks = directory.starts_with(".chunks/") || directory.starts_with(PACKS);
        let mode = if is_of_chunks { 0o750 } else { 0o755 };
        let above = directory.match_indices('/').map(|(at, _)| &directory[..at]);
        for directory in above.chain([directory]) {
            if directory == ".chunks" || directory.is_empty() {
                continue;
            }
            match self.make_directory(directory, mode) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn delete(&self, removal: &Removal) -> Result<Deleted> {
        let Removal { key, version: wanted } = removal;
        let path = key.path();
        if let Key::Namespace(_) = key.exposed() {
            return self.delete_namespace(removal, parent(&path));
        }
        let failed = |error| failure(error, "delete", key);
        let held = version_lock(self.disk.identity(), &path);
        if let Some(wanted) = wanted {
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
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // A crash, or a backup that was refused, may have left its directory empty.
                    if key.exposed().is_content() {
                        self.remove_empty(parent(&path));
                    }
                    return Ok(Deleted::Absent);
                }
                removed => removed.map_err(failed)?,
            }
        }
        drop(held);
        if let Key::Pack(name) = key {
            // Otherwise its space would stay in use.
            self.open_packs.forget(*name);
        }
        self.changed(parent(&path));
        if key.exposed().is_content() {
            self.remove_empty(parent(&path));
        }
        Ok(Deleted::Removed)
    }

    /// Removes the directory of a namespace, with its empty directories for types, groups and namespaces.
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
        let failed = |error| failure(error, "delete", key);
        for child in ["ct", "host", "vm"] {
            self.remove_empty_groups(&format!("{directory}/{child}")).map_err(failed)?;
        }
        // A directory that is not empty keeps the namespace: the removal below fails then.
        self.remove_if_empty(&format!("{directory}/ns")).map_err(failed)?;
        match self.disk.remove_directory(directory) {
            Ok(()) => {
                self.changed(parent(directory));
                Ok(Deleted::Removed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Deleted::Absent),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Err(Error::new(ErrorKind::Conflict, "delete").on(key).because(error))
            }
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn barrier(&self) -> Result<()> {
        let failed = |error| {
            self.doubtful.store(!mutated!("fs-failed-flush-is-forgotten"), Ordering::SeqCst);
            Error::io(error, "flush").on(self.disk.root().display())
        };
        // One flush at a time: the system reports a failure to one flush only, and the others learn of it by the flag.
        let _flushing = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.doubtful.load(Ordering::SeqCst) {
            let doubtful = Error::new(ErrorKind::Unavailable, "flush").on(self.disk.root().display());
            return Err(doubtful
                .because("a flush failed before; open the store again, and verify what was stored since"));
        }
        mutated!("fs-barrier-flushes-nothing" => return Ok(()));
        match self.sync_level {
            SyncLevel::None => Ok(()),
            SyncLevel::Filesystem => self.disk.sync_filesystems().map_err(failed),
            SyncLevel::File => {
                let reuses = self.unsynced().reuses;
                if reuses > 0 {
                    self.disk.sync_filesystems().map_err(failed)?;
                    self.unsynced().reuses -= reuses;
                }
                // A directory stays in the set until it is flushed: a parallel barrier must not rely on a flush that has only begun.
                let directories = self.unsynced().directories.clone();
                for (directory, change) in directories {
                    self.disk.sync_directory(&directory).map_err(failed)?;
                    let mut unsynced = self.unsynced();
                    if unsynced.directories.get(&directory) == Some(&change) {
                        unsynced.directories.remove(&directory);
                    }
                }
                Ok(())
            }
        }
    }

    /// Returns `true` if a flush in the background should start, and marks it as running.
    pub(super) fn wants_flush(&self, bytes: u64) -> bool {
        self.sync_level == SyncLevel::Filesystem
            && self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes >= FLUSH_BYTES
            && !self.flushing.swap(true, Ordering::Relaxed)
    }

    /// Flushes in the background. A failure is remembered, and every later barrier fails.
    pub(super) fn flush_ahead(&self) {
        self.unflushed.store(0, Ordering::Relaxed);
        let _flushing = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.disk.flush_ahead().is_err() {
            self.doubtful.store(true, Ordering::SeqCst);
        }
        self.flushing.store(false, Ordering::Relaxed);
    }

    /// Notes that entries of a directory changed, for the next barrier.
    pub(super) fn changed(&self, directory: &str) {
        if self.sync_level == SyncLevel::File {
            self.unsynced().add(directory);
        }
    }

    /// Notes a directory and all above it: an object in it is durable only with their entries, which another process may have made.
    pub(super) fn relied_on(&self, directory: &str) {
        mutated!("fs-directories-are-not-flushed" => return);
        if self.sync_level == SyncLevel::File {
            let mut unsynced = self.unsynced();
            unsynced.add("");
            for (at, _) in directory.match_indices('/') {
                unsynced.add(&directory[..at]);
            }
            unsynced.add(directory);
        }
    }

    /// Notes the use of a file that another process may have stored, which may have died before it flushed it. One flush of the filesystem takes
    /// less time than one of each reused chunk.
    pub(super) fn reused(&self, directory: &str) {
        self.relied_on(directory);
        mutated!("fs-reused-chunks-are-not-flushed" => return);
        if self.sync_level == SyncLevel::File {
            self.unsynced().reuses += 1;
        }
    }

    /// Makes a directory and notes it in one step: a barrier between the two would miss a directory that another put already uses.
    fn make_directory(&self, directory: &str, mode: u32) -> io::Result<()> {
        if self.sync_level != SyncLevel::File {
            return self.disk.make_directory(directory, mode);
        }
        let mut unsynced = self.unsynced();
        self.disk.make_directory(directory, mode)?;
        unsynced.add(parent(directory));
        Ok(())
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        // Every change is a single insertion or removal, so a panic elsewhere leaves it whole.
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn failure(error: io::Error, action: &'static str, subject: impl Display) -> Error {
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return inner.clone();
    }
    let corrupt = Error::new(ErrorKind::Corrupt, action);
    match errno(&error) {
        Some(Errno::ELOOP) => corrupt.on(subject).because(
            "the object, or a directory above it, is a symbolic link, which is not followed, or another special file",
        ),
        Some(Errno::EISDIR | Errno::ENOTDIR) => corrupt.on(subject).because(error),
        _ => Error::io(error, action).on(subject),
    }
}

/// As [`failure`], for a put: `NotFound` means a missing directory here, and not an absent object.
fn not_stored(error: io::Error, action: &'static str, key: &Key) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::new(ErrorKind::Unavailable, action).on(key).because(error);
    }
    failure(error, action, key)
}

/// Returns `true` for the name of a temporary file.
pub(super) fn is_temporary(name: &str) -> bool {
    temporary_of(name).is_some()
}

/// The path of the object of a temporary file, if the name is that of one.
pub(super) fn temporary_of(name: &str) -> Option<&str> {
    let (of, suffix) = name.rsplit_once(".tmp_")?;
    let is_random = suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_random.then_some(of)
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

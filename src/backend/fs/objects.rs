//! What is done to single objects and directories. All of it blocks.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
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
use crate::backend::fs::version::{stamp, version, version_lock};
use crate::backend::{Deleted, Object, ObjectInfo, PutMode, Removal, Version};
use crate::buffers::Buffers;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::SnapshotName;

/// After how many bytes the next flush is begun that nobody waits for.
const FLUSH_BYTES: u64 = 32 << 20;
/// How often a put makes its directory anew.
const VANISHED_TRIES: usize = 20;

#[derive(Debug)]
pub(super) struct Inner {
    /// What objects are read into.
    pub(super) buffers: Arc<Buffers>,
    pub(super) disk: Disk,
    pub(super) lock_directory: LockDirectory,
    /// Whether a flush failed: nobody can tell any more what of all that was stored has reached the disk.
    pub(super) doubtful: AtomicBool,
    /// Held while a flush runs and until what became of it is noted.
    pub(super) flushes: Mutex<()>,
    /// Whether a flush that nobody waits for is running.
    pub(super) flushing: AtomicBool,
    pub(super) sync_level: SyncLevel,
    /// How many bytes were stored since the last such flush began.
    pub(super) unflushed: AtomicU64,
    /// Kept at level `File` only.
    pub(super) unsynced: Mutex<Unsynced>,
}

/// Directories whose entries changed since they were last flushed.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    changes: u64,
    /// Each with the number of its last change.
    directories: BTreeMap<String, u64>,
}

impl Unsynced {
    fn add(&mut self, directory: &str) {
        self.changes += 1;
        self.directories.insert(directory.to_owned(), self.changes);
    }
}

impl Inner {
    pub(super) fn get(&self, key: &Key, limit: u64) -> Result<Object> {
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
        let length = usize::try_from(size).map_err(|_| {
            Error::new(ErrorKind::Unsupported, "read").on(key).because("it does not fit into memory")
        })?;
        let mut buffer = self.buffers.take(length);
        buffer.lengthen(length);
        file.read_exact_at(&mut buffer[..length], 0).map_err(failed)?;
        Ok(Object::new(buffer.freeze_to(length), info(key, &metadata)))
    }

    pub(super) fn get_range(&self, key: &Key, range: &Range<u64>) -> Result<Object> {
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

    pub(super) fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let failed = |error| failure(error, "look up", key);
        if let Key::Namespace(_) = key {
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

    /// Stores the bytes of one object under another key too, without holding them in memory.
    pub(super) fn copy(&self, from: &Key, to: &Key, temporary: &str, mode: &PutMode) -> Result<Version> {
        if let (Key::Namespace(_), _) | (_, Key::Namespace(_)) = (from, to) {
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
        object: Contents<'_>,
        mode: &PutMode,
    ) -> io::Result<Version> {
        let stored = self.disk.write_new(temporary, object).and_then(|file| {
            let is_chunk = matches!(key, Key::Chunk(_) | Key::Quarantined(..));
            if !is_chunk {
                // What a chunk holds never changes, so nobody asks for its version.
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
        match published {
            Ok(_) => self.relied_on(parent(path)),
            // What cannot be removed is a leftover with a name that says so.
            Err(_) => _ = self.disk.remove_file(temporary),
        }
        published
    }

    fn publish(&self, temporary: &str, path: &str, key: &Key, mode: &PutMode) -> io::Result<()> {
        let _held = version_lock(self.disk.identity(), path);
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
        let mode = if directory.starts_with(".chunks/") { 0o750 } else { 0o755 };
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
        if let Key::Namespace(_) = key {
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
                    if key.is_content() {
                        self.remove_empty(parent(&path));
                    }
                    return Ok(Deleted::Absent);
                }
                removed => removed.map_err(failed)?,
            }
        }
        drop(held);
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
        let Ok(entries) = self.disk.at_directory(directory).and_then(fs::read_dir) else { return };
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

    pub(super) fn barrier(&self) -> Result<()> {
        let failed = |error| {
            self.doubtful.store(true, Ordering::SeqCst);
            Error::io(error, "flush").on(self.disk.root().display())
        };
        // One at a time: a failure is told to one flush only, and the others have to hear of it.
        let _flushing = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.doubtful.load(Ordering::SeqCst) {
            let doubtful = Error::new(ErrorKind::Unavailable, "flush").on(self.disk.root().display());
            return Err(doubtful
                .because("a flush failed before; open the store again, and verify what was stored since"));
        }
        match self.sync_level {
            SyncLevel::None => Ok(()),
            SyncLevel::Filesystem => self.disk.sync_filesystems().map_err(failed),
            SyncLevel::File => {
                // They stay until they are flushed: a barrier beside this one may not rely on what this one has begun.
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

    /// Whether so much was stored that a flush is worth while, and none is running.
    pub(super) fn wants_flush(&self, bytes: u64) -> bool {
        self.sync_level == SyncLevel::Filesystem
            && self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes >= FLUSH_BYTES
            && !self.flushing.swap(true, Ordering::Relaxed)
    }

    /// Flushes without anybody relying on it: a failure is remembered, and shows at every barrier from then on.
    pub(super) fn flush_ahead(&self) {
        self.unflushed.store(0, Ordering::Relaxed);
        let _flushing = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.disk.flush_ahead().is_err() {
            self.doubtful.store(true, Ordering::SeqCst);
        }
        self.flushing.store(false, Ordering::Relaxed);
    }

    /// Notes that entries of a directory changed.
    pub(super) fn changed(&self, directory: &str) {
        if self.sync_level == SyncLevel::File {
            self.unsynced().add(directory);
        }
    }

    /// Notes a directory and all above it: what the next barrier makes durable needs their entries too, whoever made them.
    pub(super) fn relied_on(&self, directory: &str) {
        if self.sync_level == SyncLevel::File {
            let mut unsynced = self.unsynced();
            unsynced.add("");
            for (at, _) in directory.match_indices('/') {
                unsynced.add(&directory[..at]);
            }
            unsynced.add(directory);
        }
    }

    /// Makes a directory and notes it in one step: nobody's barrier may pass between the two who put something into it.
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
            "it or a directory above it is a symbolic link, which is not followed, or another special file",
        ),
        Some(Errno::EISDIR | Errno::ENOTDIR) => corrupt.on(subject).because(error),
        _ => Error::io(error, action).on(subject),
    }
}

/// As [`failure`], for what was to be stored: where a directory is missing, it is not the object that is absent.
fn not_stored(error: io::Error, action: &'static str, key: &Key) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::new(ErrorKind::Unavailable, action).on(key).because(error);
    }
    failure(error, action, key)
}

/// Whether a file is named like the temporary file of a put that did not end.
fn is_temporary(name: &str) -> bool {
    temporary_of(name).is_some()
}

/// What the temporary file of a put that did not end was to become.
pub(super) fn temporary_of(name: &str) -> Option<&str> {
    let (of, suffix) = name.rsplit_once(".tmp_")?;
    let is_random = suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_random.then_some(of)
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

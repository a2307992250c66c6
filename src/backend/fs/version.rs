//! Versions of objects on a disk: inode, size and modification time. A rename keeps all three.

use std::collections::hash_map::DefaultHasher;
use std::fs::{File, Metadata};
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::sys::stat::FileStat;

use crate::backend::Version;
use crate::backend::fs::disk::Disk;

/// Held from looking at the version of an object until it is replaced or removed, whoever in this process does so.
pub(super) fn version_lock(disk: &Disk, path: &str) -> MutexGuard<'static, ()> {
    static LOCKS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    let mut hasher = DefaultHasher::new();
    (disk.identity(), path).hash(&mut hasher);
    LOCKS[usize::from(hasher.finish().to_le_bytes()[0]) % LOCKS.len()]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Gives a file a modification time that no other file of this process has: the clock of files stands still for some
/// milliseconds, in which an inode may be used twice.
pub(super) fn stamp(file: &File) -> io::Result<()> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let Ok(found) = file.metadata()?.modified()?.duration_since(SystemTime::UNIX_EPOCH) else {
        return Ok(());
    };
    let found = u64::try_from(found.as_nanos()).unwrap_or_default();
    let next = |last: u64| found.max(last.saturating_add(1));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(next(last.unwrap_or_default())))
}

pub(super) fn version(metadata: &Metadata) -> Version {
    written(metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// The same, of what the system told in another way.
pub(super) fn version_of(stat: &FileStat) -> Version {
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    written(stat.st_ino, size, stat.st_mtime, stat.st_mtime_nsec)
}

fn written(inode: u64, size: u64, seconds: i64, nanoseconds: i64) -> Version {
    Version::new(format!("{inode}-{size}-{seconds}.{nanoseconds:09}"))
}

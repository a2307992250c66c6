//! Versions of objects on a disk: inode, size and modification time. A rename keeps all three.
//!
//! On FUSE the inode number of a file may change a second after a rename, or with a lookup. There, 0 takes its place in the version. Size and
//! modification time remain, and no two files of one process have the same.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs::{File, Metadata};
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use nix::sys::stat::FileStat;

use crate::backend::Version;

/// Locks the version of an object, from the look at it until the object is replaced or removed. `store` is the identity of the store, so that
/// two backends of one process on the same store exclude each other.
pub(super) fn version_lock(store: Option<(u64, u64)>, path: &str) -> MutexGuard<'static, ()> {
    static LOCKS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    let mut hasher = DefaultHasher::new();
    (store, path).hash(&mut hasher);
    LOCKS[usize::from(hasher.finish().to_le_bytes()[0]) % LOCKS.len()]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Sets a modification time that no other file of this process has: the clock of the filesystem ticks every few milliseconds, and an inode
/// number may be reused between two ticks.
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
    let inode = inode_of(metadata.dev(), metadata.ino());
    written(inode, metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// As [`version`], from the result of `fstatat`.
pub(super) fn version_of(stat: &FileStat) -> Version {
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    written(inode_of(stat.st_dev, stat.st_ino), size, stat.st_mtime, stat.st_mtime_nsec)
}

/// The devices of filesystems whose inode numbers are not stable. They are facts about the host, so the process has one set.
static PASSING: RwLock<BTreeSet<u64>> = RwLock::new(BTreeSet::new());
static ANY_PASSING: AtomicBool = AtomicBool::new(false);

/// Finds out if inode numbers are stable on the filesystem of a directory. Called before a version is made of any file on it.
pub(super) fn learn_inodes(directory: &File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if nix::sys::statfs::fstatfs(directory)?.filesystem_type() == nix::sys::statfs::FUSE_SUPER_MAGIC {
        inodes_are_passing(directory.metadata()?.dev());
    }
    #[cfg(not(target_os = "linux"))]
    let _ = directory;
    Ok(())
}

fn inodes_are_passing(device: u64) {
    PASSING.write().unwrap_or_else(PoisonError::into_inner).insert(device);
    ANY_PASSING.store(true, Ordering::Release);
}

/// The inode number, or 0 where it is not stable.
pub(super) fn inode_of(device: u64, inode: u64) -> u64 {
    let is_passing = ANY_PASSING.load(Ordering::Acquire)
        && PASSING.read().unwrap_or_else(PoisonError::into_inner).contains(&device);
    if is_passing { 0 } else { inode }
}

fn written(inode: u64, size: u64, seconds: i64, nanoseconds: i64) -> Version {
    Version::new(format!("{inode}-{size}-{seconds}.{nanoseconds:09}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_count_only_where_they_are_stable() {
        let (lasting, passing) = (u64::MAX - 1, u64::MAX);
        inodes_are_passing(passing);
        assert_eq!((inode_of(lasting, 7), inode_of(passing, 7)), (7, 0));
    }
}

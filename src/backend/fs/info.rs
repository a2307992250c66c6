//! Descriptions of objects, made of the metadata of their files.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use crate::backend::fs::version::{inode_of, version};
use crate::backend::{ObjectInfo, Version};
use crate::format::layout::Key;

/// Describes the object of a file.
pub(super) fn info(key: &Key, metadata: &Metadata) -> ObjectInfo {
    ObjectInfo::new(key.clone(), metadata.len(), last_used(metadata), version(metadata))
}

/// Describes the object that marks a namespace: its directory.
pub(super) fn marker_info(key: Key, directory: &Metadata) -> ObjectInfo {
    let inode = inode_of(directory.dev(), directory.ino());
    ObjectInfo::new(key, 0, last_used(directory), Version::new(inode.to_string()))
}

/// The time of last use of a file.
pub(super) fn last_used(metadata: &Metadata) -> SystemTime {
    let accessed = (metadata.atime(), metadata.atime_nsec());
    later(accessed, (metadata.mtime(), metadata.mtime_nsec()))
}

/// The later of the access and the modification time, in seconds and nanoseconds: a reason to keep a chunk, never one to delete it.
pub(super) fn later(accessed: (i64, i64), modified: (i64, i64)) -> SystemTime {
    let time = |(seconds, nanoseconds): (i64, i64)| {
        let fraction = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default());
        match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + fraction,
            Err(_) => SystemTime::UNIX_EPOCH,
        }
    };
    time(accessed).max(time(modified))
}

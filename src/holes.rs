//! Holes in files, and the filesystems whose reports of them can be relied on.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Returns `true` if `lseek` with `SEEK_DATA` finds all data of a file, also what was written a moment ago.
#[cfg(target_os = "linux")]
pub(crate) fn are_reported(file: impl AsFd) -> bool {
    let found = rustix::fs::fstatfs(file);
    found.is_ok_and(|found| u32::try_from(found.f_type).is_ok_and(are_reported_by))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn are_reported(_: impl AsFd) -> bool {
    false
}

/// Position of the first data from an offset on; `None` if there are none. It moves the position of the file.
#[cfg(target_os = "linux")]
pub(crate) fn next_data(file: impl AsFd, offset: u64) -> Result<Option<u64>, Errno> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn next_data(_: impl AsFd, offset: u64) -> Result<Option<u64>, Errno> {
    Ok(Some(offset))
}

/// Position of the first hole from an offset on, at the latest the end of the file. It moves the position of the file.
#[cfg(target_os = "linux")]
pub(crate) fn next_hole(file: impl AsFd, offset: u64) -> Result<u64, Errno> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(offset))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn next_hole(_: impl AsFd, _: u64) -> Result<u64, Errno> {
    Err(Errno::NOSYS)
}

/// As [`are_reported`]; `magic` is `f_type` of `statfs`. ZFS before 2.2.2 reported holes in the place of fresh data, and reports of filesystems
/// in user space and on a network depend on other programs.
#[cfg(target_os = "linux")]
fn are_reported_by(magic: u32) -> bool {
    matches!(
        magic,
        0x0000_ef53 // ext2, ext3, ext4
            | 0x0102_1994 // tmpfs
            | 0x5846_5342 // XFS
            | 0x9123_683e // Btrfs
    )
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn reports_of_zfs_fuse_and_network_filesystems_are_not_relied_on() {
        let (zfs, fuse, nfs, cifs) = (0x2fc1_2fc1, 0x6573_5546, 0x6969, 0xff53_4d42);
        assert!([zfs, fuse, nfs, cifs].into_iter().all(|magic| !are_reported_by(magic)));
        assert!(are_reported_by(0x9123_683e));
    }
}

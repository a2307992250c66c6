//! Results of `stat`.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, fstat, statat};

use crate::pxar::{Device, Mtime, Stat};
use crate::tree::LinkId;

/// Unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// The part of `struct stat` that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// Seconds and nanoseconds of the last change of status.
    pub(super) changed: Mtime,
    /// Number of a device node.
    pub(super) device: Device,
    pub(super) id: LinkId,
    /// `true` if its blocks do not cover its size.
    pub(super) is_sparse: bool,
    /// Number of names.
    pub(super) links: u64,
    pub(super) size: u64,
    /// Without flags.
    pub(super) stat: Stat,
}

impl Status {
    /// Status of an open object.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::from_raw(&fstat(file)?))
    }

    /// Status of a name in a directory; of a symbolic link itself.
    pub(super) fn of_name(directory: impl AsFd, name: &CStr) -> io::Result<Self> {
        Ok(Self::from_raw(&statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Returns `true` if this object may be stored with the metadata of an entry: it is the listed one, or has the same owner and mode. With the rights
    /// of another object, users might read what they must not.
    pub(super) fn has_rights_of(&self, id: Option<LinkId>, listed: &Stat) -> bool {
        mutated!("tree-stores-contents-with-rights-of-others" => return true);
        let rights = |stat: &Stat| (stat.mode, stat.uid, stat.gid);
        id == Some(self.id) || rights(&self.stat) == rights(listed)
    }

    pub(super) fn file_type(&self) -> FileType {
        #[allow(
            clippy::useless_conversion,
            clippy::unnecessary_fallible_conversions,
            reason = "a type by system"
        )]
        FileType::from_raw_mode(self.stat.mode.try_into().unwrap_or(0))
    }

    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_fallible_conversions,
        clippy::unnecessary_cast,
        clippy::cast_sign_loss,
        clippy::cast_lossless,
        reason = "types of the fields differ between systems"
    )]
    fn from_raw(raw: &rustix::fs::Stat) -> Self {
        let time = |seconds: i64, nanoseconds: Option<u32>| Mtime {
            seconds,
            nanoseconds: nanoseconds.filter(|nanoseconds| *nanoseconds < 1_000_000_000).unwrap_or(0),
        };
        let size = raw.st_size.try_into().unwrap_or(0);
        Self {
            changed: time(raw.st_ctime as i64, raw.st_ctime_nsec.try_into().ok()),
            device: Device {
                major: rustix::fs::major(raw.st_rdev).into(),
                minor: rustix::fs::minor(raw.st_rdev).into(),
            },
            id: LinkId { device: raw.st_dev as u64, inode: raw.st_ino as u64 },
            is_sparse: (raw.st_blocks as u64).saturating_mul(BLOCK_BYTES) < size,
            links: raw.st_nlink as u64,
            size,
            stat: Stat {
                flags: 0,
                gid: raw.st_gid,
                mode: raw.st_mode.into(),
                mtime: time(raw.st_mtime as i64, raw.st_mtime_nsec.try_into().ok()),
                uid: raw.st_uid,
            },
        }
    }
}

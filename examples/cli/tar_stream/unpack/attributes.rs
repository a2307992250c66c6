//! Owners, modes, times and extended attributes of entries.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use larder::tree::{Attribute, Problem, TreeFinding};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::entries::Entry;

/// Set-user-ID and set-group-ID.
const SET_ID: u32 = 0o6000;

/// The attributes of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    extended: Vec<(String, Vec<u8>)>,
    /// `None` if the archive has something else than a number that fits.
    gid: Option<u32>,
    mode: Option<u32>,
    /// Seconds and nanoseconds.
    time: Option<(i64, i64)>,
    uid: Option<u32>,
    /// Attributes of the archive that cannot be set here.
    unsupported: Vec<String>,
}

/// Attributes to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Everything belongs to the user who restores.
    Own,
    /// As the archive says.
    Same,
}

/// Something whose attributes are set.
#[derive(Clone, Copy)]
pub(crate) enum Object<'a> {
    /// A link, a pipe or a device, in a directory under a name.
    Named { directory: BorrowedFd<'a>, is_link: bool, name: &'a OsStr },
    /// A file or a directory.
    Open(BorrowedFd<'a>),
}

impl Attributes {
    pub(crate) fn of(entry: &Entry) -> Self {
        let header = &entry.header;
        let number = |key: &str, field: Option<i64>| match entry.records.get(key) {
            Some(_) => entry.records.number(key).and_then(|id| id.try_into().ok()),
            None => field.and_then(|id| id.try_into().ok()),
        };
        let time = match entry.records.get("mtime") {
            Some(text) => std::str::from_utf8(text).ok().and_then(parse_time),
            None => header.mtime().map(|seconds| (seconds, 0)),
        };
        let mut attributes = Self {
            extended: Vec::new(),
            gid: number("gid", header.gid()),
            mode: header.mode().map(|mode| mode & 0o7777),
            time,
            uid: number("uid", header.uid()),
            unsupported: Vec::new(),
        };
        for (key, value) in entry.records.iter() {
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                attributes.extended.push((name.to_owned(), value.to_vec()));
            } else if let Some(name) = key.strip_prefix("LIBARCHIVE.xattr.") {
                match base64_simd::STANDARD.decode_to_vec(value) {
                    Ok(value) => attributes.extended.push((name.to_owned(), value)),
                    Err(_) => attributes.unsupported.push(key.to_owned()),
                }
            } else if key == "RHT.security.selinux" {
                attributes.extended.push(("security.selinux".to_owned(), [value, b"\0"].concat()));
            } else if key.starts_with("SCHILY.acl.") || key == "SCHILY.fflags" {
                attributes.unsupported.push(key.to_owned());
            }
        }
        attributes
    }

    /// Sets all that can be set, and returns what cannot.
    pub(crate) fn set(&self, object: Object<'_>, owners: Owners) -> Vec<(Attribute, String)> {
        let mut failures = Vec::new();
        let mut note = |attribute, done: Result<(), String>| {
            if let Err(why) = done {
                failures.push((attribute, why));
            }
        };
        let owned = match owners {
            Owners::Own => Ok(true),
            Owners::Same => self.set_owner(object).map(|()| true),
        };
        let has_owner = owned.is_ok() && (owners == Owners::Same || self.is_own(object));
        note(Attribute::Owner, owned.map(drop));
        // Before the mode, which may forbid it, and after the owner, whose change takes capabilities away.
        for (name, value) in &self.extended {
            let done = set_extended(object, name, value);
            note(Attribute::Extended, done.map_err(|error| format!("{name}: {error}")));
        }
        for key in &self.unsupported {
            note(Attribute::Extended, Err(format!("{key} is not supported")));
        }
        note(Attribute::Mode, self.set_mode(object, has_owner));
        note(Attribute::Times, self.set_time(object));
        failures
    }

    fn is_own(&self, object: Object<'_>) -> bool {
        owner_of(object).is_ok_and(|(uid, gid)| self.uid == Some(uid) && self.gid == Some(gid))
    }

    fn set_owner(&self, object: Object<'_>) -> Result<(), String> {
        let (Some(uid), Some(gid)) = (self.uid, self.gid) else {
            return Err("the archive has none that makes sense".to_owned());
        };
        if owner_of(object).is_ok_and(|now| now == (uid, gid)) {
            return Ok(());
        }
        if uid == u32::MAX || gid == u32::MAX {
            return Err(format!("{uid}:{gid} is no owner"));
        }
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let change = |user, group| match object {
            Object::Named { directory, name, .. } => {
                rustix::fs::chownat(directory, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
            }
            Object::Open(file) => rustix::fs::fchown(file, user, group),
        };
        change(Some(user), Some(group)).map_err(|error| {
            // The group alone may be allowed.
            let _ = change(None, Some(group));
            format!("{uid}:{gid}: {error}")
        })
    }

    /// Sets the mode. Rights of an owner are not handed to another one.
    fn set_mode(&self, object: Object<'_>, has_owner: bool) -> Result<(), String> {
        let wanted = self.mode.ok_or_else(|| "the archive has none that makes sense".to_owned())?;
        let mode = if has_owner { wanted } else { wanted & !SET_ID };
        let failed = |error: Errno| format!("{wanted:04o}: {error}");
        match object {
            Object::Named { is_link: true, .. } => return Ok(()),
            Object::Named { directory, name, .. } => {
                rustix::fs::chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty())
                    .map_err(failed)?;
            }
            Object::Open(file) => rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(failed)?,
        }
        if mode == wanted {
            Ok(())
        } else {
            Err(format!("{wanted:04o}: it would give another owner's rights away"))
        }
    }

    fn set_time(&self, object: Object<'_>) -> Result<(), String> {
        let (tv_sec, tv_nsec) =
            self.time.ok_or_else(|| "the archive has none that makes sense".to_owned())?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec, tv_nsec },
        };
        let set = match object {
            // Without opening it: that would wait at a pipe, and do who knows what at a device.
            Object::Named { directory, name, .. } => {
                rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Object::Open(file) => rustix::fs::futimens(file, &times),
        };
        set.map_err(|error| error.to_string())
    }
}

/// The findings of attributes that could not be set.
pub(crate) fn not_set(path: &[u8], failures: Vec<(Attribute, String)>) -> impl Iterator<Item = TreeFinding> {
    failures
        .into_iter()
        .map(move |(attribute, why)| TreeFinding::new(path, Problem::NotSet(attribute)).because(why))
}

fn owner_of(object: Object<'_>) -> Result<(u32, u32), Errno> {
    let status = match object {
        Object::Named { directory, name, .. } => {
            rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?
        }
        Object::Open(file) => rustix::fs::fstat(file)?,
    };
    Ok((status.st_uid, status.st_gid))
}

fn set_extended(object: Object<'_>, name: &str, value: &[u8]) -> Result<(), Errno> {
    match object {
        Object::Named { directory, name: file, .. } => {
            // There is no call that takes a directory and a name.
            let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(file);
            rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        }
        Object::Open(file) => rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()),
    }
}

/// Seconds since 1970 as a decimal number, as seconds and nanoseconds behind them.
fn parse_time(text: &str) -> Option<(i64, i64)> {
    let (number, is_negative) = text.strip_prefix('-').map_or((text, false), |number| (number, true));
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        // The system counts the fraction from the second before.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// A name as the system wants it.
pub(crate) fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

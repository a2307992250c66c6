//! Setting of metadata by descriptor, in the order that keeps them: owner, attributes, mode, times.

use std::fmt::Display;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod, fchown, fgetxattr_query,
    fremovexattr, fsetxattr, futimens,
};
use rustix::io::Errno;

use super::read::is_stored;
use super::{ACCESS_LIST, CAPABILITIES, DEFAULT_LIST, acl};
use crate::pxar::{Metadata, Mtime};
use crate::tree::disk::status::Status;
use crate::tree::{Attribute, Problem, TreeFinding};

/// Set-user-ID and set-group-ID.
const SET_ID: u32 = 0o6000;

/// Attributes that a restore sets.
#[derive(Clone, Copy, Debug)]
pub(in crate::tree::disk) struct Powers {
    /// Owners and groups of the archive.
    pub(in crate::tree::disk) owners: bool,
    /// Bits, attributes and devices that give rights to others than the owner.
    pub(in crate::tree::disk) privileges: bool,
}

/// Sets the metadata of one entry, and collects what cannot be set.
pub(in crate::tree::disk) struct MetadataWriter<'a> {
    findings: Vec<TreeFinding>,
    metadata: &'a Metadata,
    path: &'a [u8],
    powers: Powers,
}

impl<'a> MetadataWriter<'a> {
    pub(in crate::tree::disk) fn new(path: &'a [u8], metadata: &'a Metadata, powers: Powers) -> Self {
        Self { findings: Vec::new(), metadata, path, powers }
    }

    /// Attributes that could not be set.
    pub(in crate::tree::disk) fn findings(self) -> Vec<TreeFinding> {
        self.findings
    }

    /// Sets everything but flags of an open file or directory, whose status was this.
    pub(in crate::tree::disk) fn set(&mut self, file: BorrowedFd<'_>, status: &Status) {
        let has_owner = self.owner(status, |user, group| fchown(file, user, group));
        let is_directory = status.file_type().is_dir();
        if !self.metadata.xattrs.is_empty() {
            self.extended(file);
        }
        if let Some(capabilities) = &self.metadata.capabilities {
            self.capabilities(file, capabilities, has_owner);
        }
        let has_list = self.lists(file, is_directory);
        if self.metadata.project.is_some() {
            let why = "there is no safe call for it";
            self.not_set(Attribute::Project, why);
        }
        let mut mode = self.mode(is_directory, has_owner);
        if !has_list {
            mode = self.without_list(mode);
        }
        // A change of the owner may have changed the mode.
        if status.stat.permissions() != mode || self.is_other_owner(status) {
            self.check(Attribute::Mode, fchmod(file, Mode::from_raw_mode(mode)));
        }
        self.check(Attribute::Times, futimens(file, &times(self.metadata.stat.mtime)));
    }

    /// Sets the owner. Returns `true` if the object has the owner and group of the archive.
    pub(in crate::tree::disk) fn owner(
        &mut self,
        status: &Status,
        change: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> bool {
        if !self.is_other_owner(status) || !self.powers.owners {
            return !self.is_other_owner(status);
        }
        let (uid, gid) = (self.metadata.stat.uid, self.metadata.stat.gid);
        if uid == u32::MAX || gid == u32::MAX {
            self.not_set(Attribute::Owner, format_args!("{uid}:{gid} is no owner"));
            return false;
        }
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        match change(Some(user), Some(group)) {
            Ok(()) => true,
            Err(error) => {
                // The group alone may be allowed.
                let _ = change(None, Some(group));
                self.not_set(Attribute::Owner, format_args!("{uid}:{gid}: {error}"));
                false
            }
        }
    }

    /// The permission bits to set. Rights of an owner are not handed to another one.
    pub(in crate::tree::disk) fn mode(&mut self, is_directory: bool, has_owner: bool) -> u32 {
        let wanted = self.metadata.stat.permissions();
        // A directory only hands its group on.
        if wanted & SET_ID == 0 || (has_owner && (self.powers.privileges || is_directory)) {
            return wanted;
        }
        if has_owner {
            self.found(Problem::Privileges, format_args!("mode {wanted:04o}"));
        } else {
            let why = format!("{wanted:04o}: it would give another owner's rights away");
            self.not_set(Attribute::Mode, why);
        }
        wanted & !SET_ID
    }

    /// The mode without an access list: with one, the bits of the group are the mask of all users and groups of the list.
    fn without_list(&self, mode: u32) -> u32 {
        match self.metadata.acl.group_object {
            Some(group) => mode & (!0o070 | u32::try_from(group & 7).unwrap_or(0) << 3),
            None => mode,
        }
    }

    fn is_other_owner(&self, status: &Status) -> bool {
        (self.metadata.stat.uid, self.metadata.stat.gid) != (status.stat.uid, status.stat.gid)
    }

    fn extended(&mut self, file: BorrowedFd<'_>) {
        for xattr in &self.metadata.xattrs {
            let name = &*xattr.name;
            let shown = String::from_utf8_lossy(name);
            if !is_stored(name) {
                self.not_set(Attribute::Extended, format_args!("{shown}: restores do not set it"));
            } else if name.starts_with(b"trusted.") && !self.powers.privileges {
                self.found(Problem::Privileges, shown);
            } else if let Err(error) = fsetxattr(file, name, &xattr.value, XattrFlags::empty()) {
                self.not_set(Attribute::Extended, format_args!("{shown}: {error}"));
                if error == Errno::OPNOTSUPP {
                    break;
                }
            }
        }
    }

    fn capabilities(&mut self, file: BorrowedFd<'_>, value: &[u8], has_owner: bool) {
        let name = CAPABILITIES;
        if !self.powers.privileges {
            self.found(Problem::Privileges, name);
        } else if !has_owner {
            let why = format!("{name}: it would give another owner's rights away");
            self.not_set(Attribute::Extended, why);
        } else {
            self.set_extended(file, name, value);
        }
    }

    /// Returns `false` if there is an access list that cannot be set. A directory that existed loses the lists that the archive does not have: the
    /// mode would be their mask, and give their users rights.
    fn lists(&mut self, file: BorrowedFd<'_>, is_directory: bool) -> bool {
        let access = acl::access(&self.metadata.acl, self.metadata.stat.mode);
        if is_directory && access.is_none() {
            self.remove_list(file, ACCESS_LIST);
        }
        let has_list = access.is_none_or(|value| self.set_extended(file, ACCESS_LIST, &value));
        if is_directory {
            match &self.metadata.acl.inherited {
                Some(inherited) => _ = self.set_extended(file, DEFAULT_LIST, &acl::default(inherited)),
                None => self.remove_list(file, DEFAULT_LIST),
            }
        }
        has_list
    }

    fn remove_list(&mut self, file: BorrowedFd<'_>, name: &str) {
        if has_attribute(file, name)
            && let Err(error) = fremovexattr(file, name)
            && error != Errno::NODATA
        {
            self.not_set(Attribute::Extended, format_args!("{name}: {error}"));
        }
    }

    fn set_extended(&mut self, file: BorrowedFd<'_>, name: &str, value: &[u8]) -> bool {
        let set = fsetxattr(file, name, value, XattrFlags::empty());
        if let Err(error) = set {
            self.not_set(Attribute::Extended, format_args!("{name}: {error}"));
        }
        set.is_ok()
    }

    pub(in crate::tree::disk) fn check(&mut self, attribute: Attribute, done: Result<(), Errno>) {
        if let Err(error) = done {
            self.not_set(attribute, error);
        }
    }

    pub(in crate::tree::disk) fn not_set(&mut self, attribute: Attribute, why: impl Display) {
        self.found(Problem::NotSet(attribute), why);
    }

    fn found(&mut self, problem: Problem, why: impl Display) {
        self.findings.push(TreeFinding::new(self.path, problem).because(why));
    }
}

/// Returns `true` if an object has an extended attribute with a value.
pub(in crate::tree::disk) fn has_attribute(file: BorrowedFd<'_>, name: &str) -> bool {
    fgetxattr_query(file, name).is_ok_and(|length| length > 0)
}

/// The time of modification for the system, which leaves the time of access.
pub(in crate::tree::disk) fn times(mtime: Mtime) -> Timestamps {
    let Mtime { seconds, nanoseconds } = mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// Adds flags to those of an open object.
#[cfg(target_os = "linux")]
pub(in crate::tree::disk) fn add_flags(file: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let wanted = IFlags::from_bits_retain(super::flags::to_system(flags));
    let present = ioctl_getflags(file)?;
    if !present.contains(wanted) {
        ioctl_setflags(file, present | wanted)?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(in crate::tree::disk) fn add_flags(_: BorrowedFd<'_>, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

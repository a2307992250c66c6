//! Metadata of an entry, as an archive stores them.

use bytes::Bytes;

use crate::pxar::item::XATTR_BYTES;

/// Metadata of an entry. Times of access and of change of status, inode numbers and link counts are not stored.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Access control lists. Only files and directories have any.
    pub acl: Acl,
    /// Value of `security.capability`, as the kernel returns it.
    pub capabilities: Option<Bytes>,
    /// Project for quotas; `None` for the project 0.
    pub project: Option<u64>,
    /// Mode, owner, time and attribute flags.
    pub stat: Stat,
    /// Extended attributes, in the order of the archive.
    pub xattrs: Vec<Xattr>,
}

impl Metadata {
    /// Metadata without extended attributes, access control lists, capabilities and project.
    pub fn new(stat: Stat) -> Self {
        Self { stat, ..Self::default() }
    }

    /// Bytes of memory that the extended attributes take.
    pub(crate) fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|xattr| XATTR_BYTES + xattr.name.len() + xattr.value.len()).sum()
    }
}

/// Mode, owner, time and attribute flags of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "these are the fields of the format")]
pub struct Stat {
    /// Attribute flags, as the format numbers them; 0 if the filesystem has none.
    pub flags: u64,
    /// Group.
    pub gid: u32,
    /// Type and permission bits: `st_mode` of the system. With an access control list, the group bits are its mask.
    pub mode: u32,
    /// Time of the last modification.
    pub mtime: Mtime,
    /// Owner.
    pub uid: u32,
}

impl Stat {
    /// The permission bits, with set-user-ID, set-group-ID and sticky bit.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// A time of modification. The nanoseconds count forward from the seconds, also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "these are the fields of the format")]
pub struct Mtime {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds of the second, less than 1,000,000,000.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "an attribute is a name and a value")]
pub struct Xattr {
    /// Its name, such as `user.comment`, without a NUL byte.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// Access control lists in the form of the format, where the mode has the entries of the owner, of others, and of the mask.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    /// Named groups of the access list.
    pub groups: Vec<AclEntry>,
    /// Permissions of the owning group, if the access list has a mask.
    pub group_object: Option<u64>,
    /// The default list of a directory. Boxed, since few entries have one, and listings hold many entries.
    pub inherited: Option<Box<DefaultAcl>>,
    /// Named users of the access list.
    pub users: Vec<AclEntry>,
}

impl Acl {
    /// Returns `true` without any list.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The default list of a directory, from which new entries in it get their access list.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultAcl {
    /// Permissions of the owning group; `None` if the list has no such entry.
    pub group_object: Option<u64>,
    /// Named groups.
    pub groups: Vec<AclEntry>,
    /// The mask; `None` if the list has none.
    pub mask: Option<u64>,
    /// Permissions of others.
    pub other: Option<u64>,
    /// Permissions of the owner.
    pub user_object: Option<u64>,
    /// Named users.
    pub users: Vec<AclEntry>,
}

/// Permissions of a named user or group: read 4, write 2, execute 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs, reason = "these are the fields of the format")]
pub struct AclEntry {
    /// The user or group.
    pub id: u64,
    /// The permissions.
    pub permissions: u64,
}

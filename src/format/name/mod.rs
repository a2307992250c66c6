//! Names in a datastore. Values of these types are valid: only checking constructors make them.
//!
//! The grammar is an allow-list of ASCII (H85, H176), so a name can become a path or an object key without escaping and
//! without a second meaning. Nothing is normalised: text is accepted as it is, or refused.
//!
//! | name | text | limit |
//! |---|---|---|
//! | [`ArchiveName`] | safe id ending in `.blob`, `.didx` or `.fidx` | 255 bytes |
//! | [`AuthId`] | `user@realm` or `user@realm!token` | 1024 bytes |
//! | [`BackupId`] | safe id | 255 bytes |
//! | [`BackupTime`] | `YYYY-MM-DDTHH:MM:SSZ` | 1970-01-01T00:00:01Z to 9999-12-31T23:59:59Z |
//! | [`BackupType`] | `ct`, `host` or `vm` | |
//! | [`GroupName`] | `[ns/a/ns/b/]type/id` | |
//! | [`Namespace`] | safe ids joined by `/` | 7 components, 256 bytes |
//! | [`SnapshotName`] | `[ns/a/ns/b/]type/id/time` | |
//!
//! A *safe id* matches `^[A-Za-z0-9_][A-Za-z0-9._\-]*$`. Source: PBS datastore format §1.2, §1.3, §1.5.

use std::fmt;

use crate::error::ParseError;

mod archive;
mod auth;
mod group;
mod namespace;
mod snapshot;
mod time;

pub use archive::{ArchiveKind, ArchiveName};
pub use auth::AuthId;
pub use group::{BackupId, BackupType, GroupName};
pub use namespace::Namespace;
pub use snapshot::SnapshotName;
pub use time::BackupTime;

/// The kinds of names.
#[derive(Clone, Copy, Debug)]
enum NameKind {
    /// An [`ArchiveName`].
    Archive,
    /// An [`AuthId`].
    AuthId,
    /// A [`BackupId`].
    BackupId,
    /// A [`BackupTime`].
    BackupTime,
    /// A [`BackupType`].
    BackupType,
    /// A [`GroupName`].
    Group,
    /// A [`Namespace`].
    Namespace,
    /// A [`SnapshotName`].
    Snapshot,
}

/// Reason why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameFault {
    /// It contains a character that is not allowed at its position.
    Character,
    /// It, or a part of it, is empty.
    Empty,
    /// Its suffix is none of `.blob`, `.didx` and `.fidx`.
    Extension,
    /// It does not consist of the parts of this kind of name.
    Form,
    /// It is valid as text, but out of range.
    Range,
    /// It is the reserved name of the manifest or the client log.
    Reserved,
    /// It has more levels than allowed.
    TooDeep,
    /// It is longer than allowed.
    TooLong,
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Archive => "an archive name",
            Self::AuthId => "an auth id such as root@pam",
            Self::BackupId => "a backup id",
            Self::BackupTime => "a backup time such as 2025-07-14T14:20:02Z",
            Self::BackupType => "a backup type, ct, host or vm",
            Self::Group => "a group name such as vm/100",
            Self::Namespace => "a namespace such as a/b",
            Self::Snapshot => "a snapshot name such as vm/100/2025-07-14T14:20:02Z",
        })
    }
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Character => "a character is not allowed there",
            Self::Empty => "it is empty or a part of it is",
            Self::Extension => "it does not end in .blob, .didx or .fidx",
            Self::Form => "it is not made of the right parts",
            Self::Range => "its value is out of range",
            Self::Reserved => "that name is reserved",
            Self::TooDeep => "it has too many levels",
            Self::TooLong => "it is too long",
        })
    }
}

/// Maximum bytes of a directory entry on the filesystems that PBS uses (`NAME_MAX`).
const NAME_MAX: usize = 255;

impl NameKind {
    fn fault(self, fault: NameFault) -> ParseError {
        ParseError::new(format!("not {self}: {fault}"))
    }

    /// Accepts a safe id of 1 to `max` bytes.
    fn safe_id(self, text: &str, max: usize) -> Result<(), ParseError> {
        let Some((first, rest)) = text.as_bytes().split_first() else {
            return Err(self.fault(NameFault::Empty));
        };
        let anywhere = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if !anywhere(first) || !rest.iter().all(|byte| anywhere(byte) || matches!(byte, b'.' | b'-')) {
            return Err(self.fault(NameFault::Character));
        }
        if text.len() > max {
            return Err(self.fault(NameFault::TooLong));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::name::{BackupTime, GroupName, NameFault, NameKind, Namespace};
use crate::wording::text_as_json;

/// A snapshot: one backup of a group.
///
/// Written as the path relative to the datastore: `[ns/a/ns/b/]host/alpha/2025-07-14T14:20:02Z`. Ordered by group, then
/// time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    group: GroupName,
    time: BackupTime,
}

impl SnapshotName {
    /// The snapshot of `group` that was taken at `time`.
    pub(crate) const fn new(group: GroupName, time: BackupTime) -> Self {
        Self { group, time }
    }

    /// The group that the snapshot belongs to.
    pub const fn group(&self) -> &GroupName {
        &self.group
    }

    /// Time of the snapshot.
    pub const fn time(&self) -> BackupTime {
        self.time
    }

    /// The namespace that the snapshot is in.
    pub const fn namespace(&self) -> &Namespace {
        self.group.namespace()
    }
}

impl FromStr for SnapshotName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (group, time) = text.rsplit_once('/').ok_or(NameKind::Snapshot.fault(NameFault::Form))?;
        Ok(Self { group: group.parse()?, time: time.parse()? })
    }
}

text_as_json!(SnapshotName);

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.time)
    }
}

impl fmt::Debug for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotName({self})")
    }
}

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::name::{BackupTime, NAME_MAX, NameFault, NameKind, Namespace, SnapshotName};
use crate::wording::text_as_json;

/// A backup group: the snapshots of one host, guest or container over time.
///
/// Written as the path relative to the datastore: `host/alpha`, or `ns/a/ns/b/host/alpha` in a namespace. Ordered by
/// namespace, type and id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName {
    namespace: Namespace,
    backup_type: BackupType,
    id: BackupId,
}

impl GroupName {
    /// The group of that type and id in `namespace`.
    #[must_use]
    pub const fn new(namespace: Namespace, backup_type: BackupType, id: BackupId) -> Self {
        Self { namespace, backup_type, id }
    }

    /// The namespace that the group is in.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Type of the backup.
    pub const fn backup_type(&self) -> BackupType {
        self.backup_type
    }

    /// Id of the backed-up host, guest or container.
    pub const fn id(&self) -> &BackupId {
        &self.id
    }

    /// The group of the same type and id in another namespace.
    #[must_use]
    pub fn in_namespace(self, namespace: Namespace) -> Self {
        Self { namespace, ..self }
    }

    /// The snapshot of this group that was taken at `time`.
    pub fn snapshot(&self, time: BackupTime) -> SnapshotName {
        SnapshotName::new(self.clone(), time)
    }
}

impl FromStr for GroupName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (namespace, rest) = Namespace::split(text)?;
        let (backup_type, id) = rest.split_once('/').ok_or(NameKind::Group.fault(NameFault::Form))?;
        Ok(Self { namespace, backup_type: backup_type.parse()?, id: id.parse()? })
    }
}

text_as_json!(BackupId, BackupType, GroupName);

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for component in self.namespace.components() {
            write!(f, "ns/{component}/")?;
        }
        write!(f, "{}/{}", self.backup_type, self.id)
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupName({self})")
    }
}

/// Type of a backup. The format defines exactly these three, so the enum is exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupType {
    /// A container, `ct`.
    Ct,
    /// A machine, or files of one, `host`.
    Host,
    /// A virtual machine, `vm`.
    Vm,
}

impl BackupType {
    /// All types, in their order.
    pub(crate) const ALL: [Self; 3] = [Self::Ct, Self::Host, Self::Vm];

    /// The type as text: `ct`, `host` or `vm`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ct => "ct",
            Self::Host => "host",
            Self::Vm => "vm",
        }
    }
}

impl FromStr for BackupType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fault = if text.is_empty() { NameFault::Empty } else { NameFault::Form };
        Self::ALL.into_iter().find(|it| it.as_str() == text).ok_or(NameKind::BackupType.fault(fault))
    }
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Id of a backed-up host, guest or container: a safe id of at most 255 bytes, such as `100` or `alpha`.
///
/// Ids that are numbers below 2^64 come first, by value; all others follow, by their bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        NameKind::BackupId.safe_id(text, NAME_MAX)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupId({self})")
    }
}

impl Ord for BackupId {
    fn cmp(&self, other: &Self) -> Ordering {
        // `false` sorts before `true`. The bytes break the tie between 7 and 007, which are two groups.
        let rank = |id: &Self| id.0.parse::<u64>().map_or((true, 0), |number| (false, number));
        rank(self).cmp(&rank(other)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for BackupId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

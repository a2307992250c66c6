//! The part of a store that an operation covers.

use std::fmt;

use crate::format::name::{GroupName, Namespace, SnapshotName};

/// The part of a store that an operation covers.
///
/// Each operation documents the variants that it accepts, and any objects that it leaves out.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Scope {
    /// One group.
    Group(GroupName),
    /// The groups of a namespace, without those of the namespaces below it.
    Namespace(Namespace),
    /// These snapshots, of any groups.
    Snapshots(Vec<SnapshotName>),
    /// The whole store.
    Store,
    /// The groups of a namespace and of all namespaces below it.
    Tree(Namespace),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group {group}"),
            Self::Namespace(namespace) if namespace.is_root() => f.write_str("the root namespace"),
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
            Self::Snapshots(snapshots) => match &snapshots[..] {
                [snapshot] => write!(f, "snapshot {snapshot}"),
                snapshots => write!(f, "{} snapshots", snapshots.len()),
            },
            Self::Store => f.write_str("the whole store"),
            Self::Tree(namespace) if namespace.is_root() => {
                f.write_str("the root namespace and all below it")
            }
            Self::Tree(namespace) => write!(f, "namespace {namespace} and all below it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_named_in_words() {
        let (group, space): (GroupName, Namespace) = ("vm/1".parse().unwrap(), "a/b".parse().unwrap());
        let snapshot: SnapshotName = "vm/1/2026-01-02T03:04:05Z".parse().unwrap();
        let named = [
            (Scope::Group(group), "group vm/1"),
            (Scope::Namespace(space.clone()), "namespace a/b"),
            (Scope::Namespace(Namespace::root()), "the root namespace"),
            (Scope::Snapshots(vec![snapshot.clone()]), "snapshot vm/1/2026-01-02T03:04:05Z"),
            (Scope::Snapshots(vec![snapshot; 2]), "2 snapshots"),
            (Scope::Store, "the whole store"),
            (Scope::Tree(space), "namespace a/b and all below it"),
            (Scope::Tree(Namespace::root()), "the root namespace and all below it"),
        ];
        for (scope, text) in named {
            assert_eq!(scope.to_string(), text);
        }
    }
}

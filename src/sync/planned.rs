//! A plan that is ready to execute.

use crate::format::name::Namespace;
use crate::store::Datastore;
use crate::sync::kinds::{GroupPlan, Same, SnapshotPlan, Vanished};
use crate::sync::options::SyncOptions;

/// A planned sync, to inspect and then to [execute](SyncPlan::execute).
#[derive(Clone, Debug)]
#[must_use = "nothing is done before `execute`"]
pub struct SyncPlan {
    pub(super) groups: Vec<GroupPlan>,
    pub(super) new_namespaces: Vec<Namespace>,
    pub(super) options: SyncOptions,
    pub(super) same: Same,
    pub(super) source: Datastore,
    pub(super) target: Datastore,
    pub(super) vanished: Vanished,
}

impl SyncPlan {
    /// The groups with their snapshots, in the order of transfer.
    pub fn groups(&self) -> &[GroupPlan] {
        &self.groups
    }

    /// Namespaces to create at the target, each before those that it contains.
    pub fn new_namespaces(&self) -> &[Namespace] {
        &self.new_namespaces
    }

    /// All snapshots of all groups.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotPlan> {
        self.groups.iter().flat_map(|group| &group.snapshots)
    }

    /// Objects to remove from the target.
    pub fn vanished(&self) -> &Vanished {
        &self.vanished
    }
}

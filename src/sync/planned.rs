//! A plan that is ready to execute.

use crate::format::name::Namespace;
use crate::store::Datastore;
use crate::sync::context::Run;
use crate::sync::kinds::{Same, SyncGroup, SyncSnapshot, Vanished};
use crate::sync::options::SyncOptions;
use crate::sync::progress::Progress;

/// A planned sync, to inspect and then to [execute](SyncPlan::execute).
#[derive(Debug)]
#[must_use = "nothing is done before `execute`"]
pub struct SyncPlan {
    pub(super) groups: Vec<SyncGroup>,
    pub(super) new_namespaces: Vec<Namespace>,
    pub(super) options: SyncOptions,
    pub(super) progress: Progress,
    /// The locks and pins of an execution that left something to do.
    pub(super) run: Option<Run>,
    pub(super) same: Same,
    pub(super) source: Datastore,
    pub(super) target: Datastore,
    pub(super) vanished: Vanished,
}

impl SyncPlan {
    /// The groups with their snapshots, in the order of transfer.
    pub fn groups(&self) -> &[SyncGroup] {
        &self.groups
    }

    /// Namespaces to create at the target, each before those that it contains.
    pub fn new_namespaces(&self) -> &[Namespace] {
        &self.new_namespaces
    }

    /// All snapshots of all groups.
    pub fn snapshots(&self) -> impl Iterator<Item = &SyncSnapshot> {
        self.groups.iter().flat_map(|group| &group.snapshots)
    }

    /// Objects to remove from the target.
    pub fn vanished(&self) -> &Vanished {
        &self.vanished
    }
}

//! Objects of the target that the source no longer has.
//!
//! Only a complete listing proves that the source lacks something, and the sync asks the source again right
//! before it removes the object (I1). Objects that appeared at the target after the plan stay: only planned ones are removed.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Prefix;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::store::{Datastore, DeleteError, SnapshotInfo};
use crate::sync::kinds::{SyncGroup, Vanished};
use crate::sync::options::SyncOptions;
use crate::sync::progress::{Progress, Removal};

/// Finds the objects of the target that the source lacks.
pub(super) async fn find(
    target: &Datastore,
    options: &SyncOptions,
    pairs: &[(Namespace, Namespace)],
    existing: &BTreeSet<Namespace>,
    compared: &[(SyncGroup, Vec<SnapshotInfo>)],
) -> Result<Vanished> {
    let mut vanished = Vanished::default();
    let mut known = BTreeSet::new();
    for (group, theirs) in compared {
        known.insert(&group.target);
        if group.foreign_owner.is_some() {
            continue;
        }
        let times: BTreeSet<_> = group.snapshots.iter().map(|snapshot| snapshot.source.time()).collect();
        vanished.add(theirs.iter().filter(|info| !times.contains(&info.name.time())));
    }
    let origins: BTreeMap<_, _> = pairs.iter().map(|(from, to)| (to, from)).collect();
    let within: Vec<_> = existing.iter().filter(|it| options.is_of_target(it)).collect();
    for namespace in within {
        for group in target.groups(namespace).await? {
            let Some(origin) = origin(options, &group) else { continue };
            if known.contains(&group) || !options.admits(&origin) {
                continue;
            }
            if target.owner(&group).await?.as_ref() == Some(&options.owner) {
                vanished.add(target.snapshots(&group).await?.iter());
            }
        }
        if !origins.contains_key(namespace) {
            vanished.namespaces.push(namespace.clone());
        }
    }
    vanished.namespaces.sort_by_key(|namespace| (std::cmp::Reverse(namespace.depth()), namespace.clone()));
    Ok(vanished)
}

/// The group of the source that maps to this one of the target.
fn origin(options: &SyncOptions, group: &GroupName) -> Option<GroupName> {
    let namespace = options.to_source(group.namespace()).ok()?;
    Some(group.clone().in_namespace(namespace))
}

/// The inputs of a removal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) options: &'a SyncOptions,
    pub(super) source: &'a Datastore,
    pub(super) target: &'a Datastore,
    pub(super) vanished: &'a Vanished,
}

/// State of a vanished object after an attempt to remove it.
#[derive(Clone, Copy)]
enum Removed {
    /// The target does not have it, and this attempt did not remove it.
    Absent,
    Done,
    Stays,
}

/// Removes the planned objects, as far as the source still lacks them. Objects that an earlier execution removed are left out.
pub(super) async fn remove(inputs: Inputs<'_>, progress: &mut Progress) {
    let Inputs { options, vanished, .. } = inputs;
    progress.protected.clone_from(&vanished.protected);
    progress.unremoved.clear();
    for name in &vanished.snapshots {
        if options.control.is_aborted() {
            return;
        }
        let known = progress.removed_snapshots.get(name).copied();
        if known == Some(Removal::Done) {
            continue;
        }
        progress.removed_snapshots.insert(name.clone(), Removal::Started);
        match inputs.remove_snapshot(name).await {
            Ok(removed) => record(&mut progress.removed_snapshots, name, known, removed),
            // The server or the filesystem may deny it too.
            Err(error) if error.kind() == ErrorKind::Denied && inputs.is_protected(name).await => {
                progress.protected.push(name.clone());
            }
            Err(error) => drop(progress.unremoved.insert(name.to_string(), error)),
        }
    }
    for namespace in &vanished.namespaces {
        if options.control.is_aborted() {
            return;
        }
        let known = progress.removed_namespaces.get(namespace).copied();
        if known == Some(Removal::Done) {
            continue;
        }
        progress.removed_namespaces.insert(namespace.clone(), Removal::Started);
        match inputs.remove_namespace(namespace).await {
            // A namespace stays if it contains something that stays.
            Ok(removed) => record(&mut progress.removed_namespaces, namespace, known, removed),
            Err(error) => drop(progress.unremoved.insert(namespace.to_string(), error)),
        }
    }
}

/// Records the result of a removal. An object that is absent counts as removed if an earlier attempt had begun to remove it.
fn record<K: Clone + Ord>(
    removals: &mut BTreeMap<K, Removal>,
    name: &K,
    known: Option<Removal>,
    removed: Removed,
) {
    let is_done = match removed {
        Removed::Absent => known.is_some(),
        Removed::Done => true,
        Removed::Stays => false,
    };
    if is_done {
        removals.insert(name.clone(), Removal::Done);
    } else {
        removals.remove(name);
    }
}

impl Inputs<'_> {
    /// Returns `true` if the target certainly has the snapshot, and protects it.
    async fn is_protected(self, name: &SnapshotName) -> bool {
        let Ok(info) = self.target.snapshot_info(name).await else { return false };
        self.target.inner().deletions().is_protected(&info).await.unwrap_or(false)
    }

    async fn remove_snapshot(self, name: &SnapshotName) -> Result<Removed> {
        let Self { options, source, target, .. } = self;
        let Some(origin) = origin(options, name.group()) else { return Ok(Removed::Stays) };
        source.inner().catalog().look_again(Prefix::Group(origin.clone())).await?;
        match source.snapshot_info(&origin.snapshot(name.time())).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ if mutated!("sync-removes-without-asking-again") => {}
            // The source has it again.
            found => return found.map(|_| Removed::Stays),
        }
        match target.owner(name.group()).await? {
            Some(owner) if owner == options.owner || mutated!("sync-removes-groups-of-others") => {}
            // A group loses its owner with its last snapshot.
            None if !target.inner().manifests().exists(name).await? => return Ok(Removed::Absent),
            _ => {
                let error = Error::new(ErrorKind::Busy, "remove").on(name);
                return Err(error.because("the group has another owner now"));
            }
        }
        match target.delete_snapshot(name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Removed::Absent),
            deleted => deleted.map(|()| Removed::Done),
        }
    }

    async fn remove_namespace(self, namespace: &Namespace) -> Result<Removed> {
        let origin = self.options.to_source(namespace);
        let origin =
            origin.map_err(|error| Error::new(ErrorKind::Internal, "remove").on(namespace).because(error))?;
        self.source.inner().catalog().look_again(Prefix::Namespace(origin.clone())).await?;
        if self.source.has_namespace(&origin).await? {
            return Ok(Removed::Stays);
        }
        if !self.target.has_namespace(namespace).await? {
            return Ok(Removed::Absent);
        }
        let is_removed = self
            .target
            .inner()
            .deletions()
            .remove_namespace(namespace)
            .await
            .map_err(DeleteError::into_error)?;
        Ok(if is_removed { Removed::Done } else { Removed::Stays })
    }
}

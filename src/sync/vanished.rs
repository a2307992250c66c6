//! Objects of the target that the source no longer has.
//!
//! Only a complete listing proves that the source lacks something, and the sync asks the source again right
//! before it removes the object (I1). Objects that appeared at the target after the plan stay: only planned ones are removed.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::store::{Datastore, DeleteError, SnapshotInfo};
use crate::sync::kinds::{GroupPlan, Vanished};
use crate::sync::options::SyncOptions;
use crate::sync::planned::SyncPlan;
use crate::sync::report::SyncReport;

pub(super) async fn look(
    target: &Datastore,
    options: &SyncOptions,
    pairs: &[(Namespace, Namespace)],
    existing: &BTreeSet<Namespace>,
    looked: &[(GroupPlan, Vec<SnapshotInfo>)],
) -> Result<Vanished> {
    let mut vanished = Vanished::default();
    let mut known = BTreeSet::new();
    for (group, theirs) in looked {
        known.insert(&group.target);
        if group.foreign_owner.is_some() {
            continue;
        }
        let times: BTreeSet<_> = group.snapshots.iter().map(|snapshot| snapshot.source.time()).collect();
        vanished.note(theirs.iter().filter(|info| !times.contains(&info.name.time())));
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
                vanished.note(target.snapshots(&group).await?.iter());
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

/// Removes the planned objects, as far as the source still lacks them.
pub(super) async fn remove(plan: &SyncPlan, report: &mut SyncReport) -> Result<()> {
    report.protected.clone_from(&plan.vanished.protected);
    for name in &plan.vanished.snapshots {
        if plan.options.is_aborted() {
            report.is_aborted = true;
            return Ok(());
        }
        match remove_snapshot(plan, name).await {
            Ok(true) => report.removed.push(name.clone()),
            Ok(false) => {}
            Err(error) if error.kind() == ErrorKind::Denied => report.protected.push(name.clone()),
            Err(error) => report.unremoved.push((name.to_string(), error)),
        }
    }
    for namespace in &plan.vanished.namespaces {
        if plan.options.is_aborted() {
            report.is_aborted = true;
            return Ok(());
        }
        match remove_namespace(plan, namespace).await {
            Ok(true) => report.removed_namespaces.push(namespace.clone()),
            // It contains something that stays.
            Ok(false) => {}
            Err(error) => report.unremoved.push((namespace.to_string(), error)),
        }
    }
    Ok(())
}

/// Returns `true` if the object is gone.
async fn remove_snapshot(plan: &SyncPlan, name: &SnapshotName) -> Result<bool> {
    let Some(origin) = origin(&plan.options, name.group()) else { return Ok(false) };
    match plan.source.snapshot_info(&origin.snapshot(name.time())).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // The source has it again.
        found => return found.map(|_| false),
    }
    if plan.target.owner(name.group()).await?.as_ref() != Some(&plan.options.owner) {
        let error = Error::new(ErrorKind::Busy, "remove").on(name);
        return Err(error.because("the group belongs to somebody else by now"));
    }
    match plan.target.delete_snapshot(name).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        deleted => deleted.map(|()| true),
    }
}

async fn remove_namespace(plan: &SyncPlan, namespace: &Namespace) -> Result<bool> {
    let origin = plan.options.to_source(namespace);
    let origin =
        origin.map_err(|error| Error::new(ErrorKind::Internal, "remove").on(namespace).because(error))?;
    if plan.source.has_namespace(&origin).await? {
        return Ok(false);
    }
    plan.target.inner().deletions().remove_namespace(namespace).await.map_err(DeleteError::into_error)
}

//! The decisions, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Prefix;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::prune::options::PruneOptions;
use crate::prune::report::{PruneGroup, PruneGroupOutcome, PruneNamespace, PruneOutcome, PruneSnapshot};
use crate::retention::Decision;
use crate::store::{Datastore, Expected, Listed, Scope};
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

/// Number of groups listed concurrently by default.
const LISTINGS_IN_FLIGHT: usize = 8;

/// Basis of the decisions of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    Deletion,
    Rules,
}

/// A plan of what is removed and what is kept. Nothing changes before [`execute`](PrunePlan::execute).
///
/// A plan takes some hundred bytes for each snapshot.
#[derive(Clone, Debug)]
#[must_use = "nothing is removed before `execute`"]
pub struct PrunePlan {
    pub(super) basis: Basis,
    pub(super) groups: Vec<PruneGroup>,
    pub(super) namespaces: Vec<PruneNamespace>,
    pub(super) options: PruneOptions,
    pub(super) store: Datastore,
}

/// Number of snapshots of a plan by decision.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PruneCounts {
    /// Kept by a rule.
    pub keep: u64,
    /// Unfinished snapshots that stay because each is the newest of its group.
    pub keep_partial: u64,
    /// Kept because they are protected.
    pub protected: u64,
    /// Removed.
    pub remove: u64,
}

/// Plans a prune of groups by retention rules. Changes nothing.
///
/// # Errors
/// `InvalidInput` for [`Scope::Snapshots`], since rules decide about whole groups, and for a concurrency of 0; `NotFound` if the group or
/// namespace does not exist; any failure to list.
pub async fn plan(store: &Datastore, scope: &Scope, options: PruneOptions) -> Result<PrunePlan> {
    let watch = store.inner().watch(Operation::PrunePlan, Subject::Scope(scope));
    trace::watch(watch, plan_by_rules(store, scope, options), |plan| Facts::of(plan)).await
}

async fn plan_by_rules(store: &Datastore, scope: &Scope, options: PruneOptions) -> Result<PrunePlan> {
    options.control.check("plan a prune")?;
    store.inner().catalog().look_again(Prefix::Namespace(Namespace::root())).await?;
    let root = Namespace::root();
    let groups = match scope {
        Scope::Group(group) => vec![group.clone()],
        Scope::Namespace(namespace) => store.groups(existing(store, namespace).await?).await?,
        Scope::Snapshots(_) => {
            let error = Error::new(ErrorKind::InvalidInput, "plan a prune of").on(scope);
            return Err(error.because("retention rules decide about whole groups"));
        }
        Scope::Store => groups_below(store, &root).await?,
        Scope::Tree(namespace) => groups_below(store, namespace).await?,
    };
    let decide = |listed: Vec<Listed>| {
        let decisions = options.decide(&listed);
        listed
            .into_iter()
            .zip(decisions)
            .map(|(listed, decision)| {
                let expected = if listed.manifest.is_some() {
                    Expected::Finished
                } else {
                    Expected::Unfinished(listed.info.files.clone())
                };
                snapshot_plan(&listed, decision, expected)
            })
            .collect()
    };
    let mut planned = Vec::with_capacity(groups.len());
    let mut listings = listings(store, groups, &options);
    while let Some((group, listed)) = listings.try_next().await? {
        planned.push(group_plan(group, decide(listed)));
    }
    drop(listings);
    if let Scope::Group(group) = scope {
        check_there(store, group, &planned).await?;
    }
    Ok(new_plan(store, Basis::Rules, planned, Vec::new(), options))
}

/// Plans the deletion of snapshots, of a group, or of namespaces, except protected snapshots. Changes nothing.
///
/// A group loses its owner and its notes with its last snapshot. [`Scope::Namespace`] removes the namespace if no other is below
/// it; [`Scope::Tree`] and [`Scope::Store`] remove the namespaces below too. A namespace is removed when it is empty; the root stays.
///
/// # Errors
/// `InvalidInput` if the options have retention rules, since a deletion keeps nothing, or a concurrency of 0; `NotFound` if a
/// snapshot, group or namespace does not exist; any failure to list.
pub async fn plan_deletion(store: &Datastore, scope: &Scope, options: PruneOptions) -> Result<PrunePlan> {
    let watch = store.inner().watch(Operation::PrunePlan, Subject::Scope(scope));
    trace::watch(watch, plan_by_deletion(store, scope, options), |plan| Facts::of(plan)).await
}

async fn plan_by_deletion(store: &Datastore, scope: &Scope, options: PruneOptions) -> Result<PrunePlan> {
    options.control.check("plan a deletion")?;
    if !options.rules.keep_everything() {
        let error = Error::new(ErrorKind::InvalidInput, "plan the deletion of").on(scope);
        return Err(error.because("a deletion has no retention rules"));
    }
    store.inner().catalog().look_again(Prefix::Namespace(Namespace::root())).await?;
    let mut wanted: BTreeMap<GroupName, BTreeSet<SnapshotName>> = BTreeMap::new();
    let (mut groups, mut namespaces) = (Vec::new(), Vec::new());
    match scope {
        Scope::Group(group) => groups.push(group.clone()),
        Scope::Namespace(namespace) => namespaces.push(existing(store, namespace).await?.clone()),
        Scope::Store => namespaces = inner_first(store, &Namespace::root()).await?,
        Scope::Tree(namespace) => namespaces = inner_first(store, namespace).await?,
        Scope::Snapshots(snapshots) => {
            for snapshot in snapshots {
                wanted.entry(snapshot.group().clone()).or_default().insert(snapshot.clone());
            }
            groups.extend(wanted.keys().cloned());
        }
    }
    for namespace in &namespaces {
        groups.extend(store.groups(namespace).await?);
    }
    let mut planned = Vec::with_capacity(groups.len());
    let mut listings = listings(store, groups, &options);
    while let Some((group, listed)) = listings.try_next().await? {
        let of_group = wanted.remove(&group);
        let snapshots = deletions(listed, of_group)?;
        planned.push(group_plan(group, snapshots));
    }
    drop(listings);
    if let Scope::Group(group) = scope {
        check_there(store, group, &planned).await?;
    }
    Ok(new_plan(store, Basis::Deletion, planned, namespaces, options))
}

impl PrunePlan {
    /// The groups of the plan with the outcomes so far, in the order of execution.
    pub fn groups(&self) -> &[PruneGroup] {
        &self.groups
    }

    /// Namespaces that are removed if they are empty, inner ones first. None in a plan by rules.
    pub fn namespaces(&self) -> &[PruneNamespace] {
        &self.namespaces
    }

    /// Number of snapshots by decision.
    pub fn counts(&self) -> PruneCounts {
        let mut counts = PruneCounts::default();
        for snapshot in self.groups.iter().flat_map(|group| &group.snapshots) {
            match snapshot.decision {
                Decision::Keep => counts.keep += 1,
                Decision::KeepPartial => counts.keep_partial += 1,
                Decision::Protected => counts.protected += 1,
                Decision::Remove => counts.remove += 1,
            }
        }
        counts
    }
}

/// The snapshots of groups, in the order of the groups, several listed concurrently.
fn listings<'a>(
    store: &'a Datastore,
    groups: Vec<GroupName>,
    options: &PruneOptions,
) -> impl futures::Stream<Item = Result<(GroupName, Vec<Listed>)>> + Unpin + use<'a> {
    let listed = stream::iter(groups).map(move |group| {
        Box::pin(async move {
            let listed = store.inner().catalog().listed_snapshots(&group).await?;
            Ok((group, listed))
        })
    });
    listed.buffered(options.control.concurrency.unwrap_or(LISTINGS_IN_FLIGHT))
}

fn deletions(listed: Vec<Listed>, mut wanted: Option<BTreeSet<SnapshotName>>) -> Result<Vec<PruneSnapshot>> {
    let mut snapshots = Vec::new();
    for listed in listed {
        if wanted.as_mut().is_some_and(|wanted| !wanted.remove(&listed.info.name)) {
            continue;
        }
        let decision = if listed.info.protected { Decision::Protected } else { Decision::Remove };
        let expected = match &listed.manifest {
            Some(version) => Expected::Manifest(version.clone()),
            None => Expected::Unfinished(listed.info.files.clone()),
        };
        snapshots.push(snapshot_plan(&listed, decision, expected));
    }
    match wanted.iter().flatten().next() {
        Some(missing) => Err(Error::new(ErrorKind::NotFound, "plan the deletion of").on(missing)),
        None => Ok(snapshots),
    }
}

fn snapshot_plan(listed: &Listed, decision: Decision, expected: Expected) -> PruneSnapshot {
    let (name, state) = (listed.info.name.clone(), listed.info.state);
    PruneSnapshot { decision, expected, name, outcome: PruneOutcome::NotReached, state }
}

fn group_plan(group: GroupName, snapshots: Vec<PruneSnapshot>) -> PruneGroup {
    PruneGroup { group, outcome: PruneGroupOutcome::NotReached, snapshots }
}

fn new_plan(
    store: &Datastore,
    basis: Basis,
    groups: Vec<PruneGroup>,
    namespaces: Vec<Namespace>,
    options: PruneOptions,
) -> PrunePlan {
    let outcome = PruneGroupOutcome::NotReached;
    let namespaces =
        namespaces.into_iter().map(|namespace| PruneNamespace { namespace, outcome: outcome.clone() });
    PrunePlan { basis, groups, namespaces: namespaces.collect(), options, store: store.clone() }
}

async fn groups_below(store: &Datastore, namespace: &Namespace) -> Result<Vec<GroupName>> {
    let mut groups = Vec::new();
    for namespace in store.namespaces(existing(store, namespace).await?).await? {
        groups.extend(store.groups(&namespace).await?);
    }
    Ok(groups)
}

/// A namespace and all namespaces below it, inner ones first.
async fn inner_first(store: &Datastore, namespace: &Namespace) -> Result<Vec<Namespace>> {
    let mut namespaces = store.namespaces(existing(store, namespace).await?).await?;
    namespaces.reverse();
    Ok(namespaces)
}

async fn existing<'a>(store: &Datastore, namespace: &'a Namespace) -> Result<&'a Namespace> {
    if store.has_namespace(namespace).await? {
        return Ok(namespace);
    }
    Err(Error::new(ErrorKind::NotFound, "plan for").on(namespace))
}

/// Errors with `NotFound` if the group has neither snapshots nor an owner, which an interrupted deletion leaves.
async fn check_there(store: &Datastore, group: &GroupName, planned: &[PruneGroup]) -> Result<()> {
    let has_snapshots = planned.iter().any(|planned| !planned.snapshots.is_empty());
    if has_snapshots || store.groups(group.namespace()).await?.contains(group) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "plan for").on(group))
}

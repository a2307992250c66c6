//! What goes and what stays, before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Prefix;
use crate::format::name::{BackupTime, GroupName, Namespace, SnapshotName};
use crate::prune::report::PruneObserver;
use crate::retention::{Decision, RetentionItem, RetentionRules, retain};
use crate::store::{Datastore, Expected, Listed, SnapshotState};

/// How many groups are listed at the same time.
const LISTINGS_IN_FLIGHT: usize = 8;

/// Of what [`plan`] decides.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneScope {
    /// One group.
    Group(GroupName),
    /// The groups of a namespace, without those of the namespaces below it.
    Namespace(Namespace),
    /// The groups of a namespace and of all below it.
    Tree(Namespace),
}

/// What is to be deleted.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeletionScope {
    /// All of a group.
    Group(GroupName),
    /// The groups of a namespace, and itself if no namespace is below it. The root itself stays.
    Namespace(Namespace),
    /// These snapshots, of any groups.
    Snapshots(Vec<SnapshotName>),
    /// A namespace with all groups in it and all namespaces below it. The root itself stays.
    Tree(Namespace),
}

/// How [`plan`] decides.
#[derive(Clone, Default)]
#[must_use]
pub struct PruneOptions {
    rules: RetentionRules,
    utc_offset: Option<Arc<dyn Fn(BackupTime) -> i32 + Send + Sync>>,
}

impl PruneOptions {
    /// What to keep; default: no rule, so that everything is kept.
    pub fn rules(mut self, rules: RetentionRules) -> Self {
        self.rules = rules;
        self
    }

    /// The seconds by which local time is ahead of UTC at a time, as seen where hours, days, weeks, months and years are to begin;
    /// default: 0, always.
    pub fn utc_offset(mut self, offset: impl Fn(BackupTime) -> i32 + Send + Sync + 'static) -> Self {
        self.utc_offset = Some(Arc::new(offset));
        self
    }

    /// The decision about each snapshot of a group, in their order.
    pub(super) fn decide(&self, listed: &[Listed]) -> Vec<Decision> {
        let items: Vec<_> = listed
            .iter()
            .map(|Listed { info, .. }| {
                let mut item = RetentionItem::new(info.name.time());
                item.finished = info.state == SnapshotState::Finished;
                item.protected = info.protected;
                item
            })
            .collect();
        retain(&items, &self.rules, |time| self.utc_offset.as_ref().map_or(0, |offset| offset(time)))
    }
}

impl fmt::Debug for PruneOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PruneOptions").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// What goes and what stays. Nothing happens before [`execute`](PrunePlan::execute).
///
/// A plan takes up some hundred bytes for each snapshot that it is about.
#[derive(Clone, Debug)]
#[must_use = "nothing is removed before `execute`"]
pub struct PrunePlan {
    pub(super) abort: Option<Arc<AtomicBool>>,
    pub(super) groups: Vec<GroupPlan>,
    /// Those that go if they are empty, the inner ones first.
    pub(super) namespaces: Vec<Namespace>,
    pub(super) observer: Option<Arc<dyn PruneObserver>>,
    /// None for a deletion.
    pub(super) options: Option<PruneOptions>,
    pub(super) store: Datastore,
}

/// What goes and what stays of a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// The group.
    pub group: GroupName,
    /// Its snapshots that the plan is about, oldest first.
    pub snapshots: Vec<SnapshotPlan>,
}

/// Whether a snapshot goes or stays.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct SnapshotPlan {
    /// What becomes of it.
    pub decision: Decision,
    pub(super) expected: Expected,
    /// Its name.
    pub name: SnapshotName,
    /// Whether it was finished.
    pub state: SnapshotState,
}

/// How many snapshots a plan is about, by what becomes of them.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneCounts {
    /// Those that a rule keeps.
    pub keep: u64,
    /// Unfinished ones that stay, each the newest of its group.
    pub keep_partial: u64,
    /// Those that stay because they are protected.
    pub protected: u64,
    /// Those that go.
    pub remove: u64,
}

/// Plans what retention rules remove of one or several groups. Nothing is changed.
///
/// # Errors
/// `NotFound` if there is no such group or namespace; any failure to list.
pub async fn plan(store: &Datastore, scope: &PruneScope, options: PruneOptions) -> Result<PrunePlan> {
    store.look_again(Prefix::Namespace(Namespace::root())).await?;
    let groups = match scope {
        PruneScope::Group(group) => vec![group.clone()],
        PruneScope::Namespace(namespace) => store.groups(existing(store, namespace).await?).await?,
        PruneScope::Tree(namespace) => {
            let mut groups = Vec::new();
            for namespace in store.namespaces(existing(store, namespace).await?).await? {
                groups.extend(store.groups(&namespace).await?);
            }
            groups
        }
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
    let mut listings = listings(store, groups);
    while let Some((group, listed)) = listings.try_next().await? {
        planned.push(GroupPlan { group, snapshots: decide(listed) });
    }
    drop(listings);
    if let PruneScope::Group(group) = scope {
        check_there(store, group, &planned).await?;
    }
    Ok(new_plan(store, planned, Vec::new(), Some(options)))
}

/// Plans the deletion of snapshots, of a group, or of namespaces, but for what is protected. Nothing is changed.
///
/// When the last snapshot of a group is gone, its owner and its notes go too; a namespace goes when nothing is left in it.
///
/// # Errors
/// `NotFound` if there is no such snapshot, group or namespace; any failure to list.
pub async fn plan_deletion(store: &Datastore, scope: &DeletionScope) -> Result<PrunePlan> {
    store.look_again(Prefix::Namespace(Namespace::root())).await?;
    let mut wanted: BTreeMap<GroupName, BTreeSet<SnapshotName>> = BTreeMap::new();
    let (mut groups, mut namespaces) = (Vec::new(), Vec::new());
    match scope {
        DeletionScope::Group(group) => groups.push(group.clone()),
        DeletionScope::Namespace(namespace) => namespaces.push(existing(store, namespace).await?.clone()),
        DeletionScope::Tree(namespace) => {
            namespaces = store.namespaces(existing(store, namespace).await?).await?;
            // From inside out.
            namespaces.reverse();
        }
        DeletionScope::Snapshots(snapshots) => {
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
    let mut listings = listings(store, groups);
    while let Some((group, listed)) = listings.try_next().await? {
        let of_group = wanted.remove(&group);
        let snapshots = deletions(listed, of_group)?;
        planned.push(GroupPlan { group, snapshots });
    }
    drop(listings);
    if let DeletionScope::Group(group) = scope {
        check_there(store, group, &planned).await?;
    }
    Ok(new_plan(store, planned, namespaces, None))
}

impl PrunePlan {
    /// The groups that the plan is about, in the order in which they are gone through.
    pub fn groups(&self) -> &[GroupPlan] {
        &self.groups
    }

    /// The namespaces that go if nothing is left in them, the inner ones first. None where rules decide.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// How many snapshots go and stay.
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

    /// A flag that ends the execution when it becomes true: before the next snapshot, of which nothing is removed then; default: none.
    pub fn abort(mut self, flag: Arc<AtomicBool>) -> Self {
        self.abort = Some(flag);
        self
    }

    /// Who is told what became of each snapshot; default: nobody.
    pub fn observer(mut self, observer: Arc<dyn PruneObserver>) -> Self {
        self.observer = Some(observer);
        self
    }
}

/// The snapshots of groups, in the order of the groups, several at the same time.
fn listings(
    store: &Datastore,
    groups: Vec<GroupName>,
) -> impl futures::Stream<Item = Result<(GroupName, Vec<Listed>)>> + Unpin + '_ {
    let listed = stream::iter(groups).map(move |group| {
        Box::pin(async move {
            let listed = store.listed_snapshots(&group).await?;
            Ok((group, listed))
        })
    });
    listed.buffered(LISTINGS_IN_FLIGHT)
}

fn deletions(listed: Vec<Listed>, mut wanted: Option<BTreeSet<SnapshotName>>) -> Result<Vec<SnapshotPlan>> {
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

fn snapshot_plan(listed: &Listed, decision: Decision, expected: Expected) -> SnapshotPlan {
    SnapshotPlan { decision, expected, name: listed.info.name.clone(), state: listed.info.state }
}

fn new_plan(
    store: &Datastore,
    groups: Vec<GroupPlan>,
    namespaces: Vec<Namespace>,
    options: Option<PruneOptions>,
) -> PrunePlan {
    PrunePlan { abort: None, groups, namespaces, observer: None, options, store: store.clone() }
}

async fn existing<'a>(store: &Datastore, namespace: &'a Namespace) -> Result<&'a Namespace> {
    if store.has_namespace(namespace).await? {
        return Ok(namespace);
    }
    Err(Error::new(ErrorKind::NotFound, "plan for").on(namespace))
}

/// Fails if there is nothing of a group: not even an owner without snapshots, as an interrupted deletion leaves it.
async fn check_there(store: &Datastore, group: &GroupName, planned: &[GroupPlan]) -> Result<()> {
    let has_snapshots = planned.iter().any(|planned| !planned.snapshots.is_empty());
    if has_snapshots || store.groups(group.namespace()).await?.contains(group) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "plan for").on(group))
}

//! Planning of a sync.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Prefix;
use crate::format::name::{BackupTime, GroupName, Namespace};
use crate::store::{Datastore, SnapshotInfo, SnapshotState, is_of_the_object};
use crate::sync::compare::compare;
use crate::sync::key_change::KeyChange;
use crate::sync::kinds::{Resync, Same, SyncGroup, SyncSkip, SyncSnapshot, SyncStep, Vanished, Verdict};
use crate::sync::options::{SyncCandidates, SyncOptions, SyncOrder};
use crate::sync::planned::SyncPlan;
use crate::sync::progress::Progress;
use crate::sync::vanished;

/// Number of groups, and of snapshots in each, compared concurrently.
const GROUPS_IN_FLIGHT: usize = 8;
const SNAPSHOTS_IN_FLIGHT: usize = 8;

pub(super) async fn make(source: &Datastore, target: &Datastore, options: SyncOptions) -> Result<SyncPlan> {
    options.control.check("sync")?;
    let top = &options.source_namespace;
    // A program without a lease may have changed both.
    for (store, namespace) in [(source, top), (target, &options.target_namespace)] {
        store.inner().catalog().look_again(Prefix::Namespace(namespace.clone())).await?;
    }
    if !source.has_namespace(top).await? {
        return Err(Error::new(ErrorKind::NotFound, "sync")
            .on(top)
            .because("the source has no such namespace"));
    }
    let same = sameness(source, target).await?;
    let existing = existing(target, &options.target_namespace).await?;
    let pairs = pairs(source.namespaces(top).await?, &options)?;
    if same != Same::No {
        check_apart(&pairs, &existing, &options).map_err(|error| match same {
            Same::Copy => error.because(IS_COPY),
            _ => error,
        })?;
    }
    let mut groups = Vec::new();
    for (from, to) in &pairs {
        let there = if existing.contains(to) { target.groups(to).await? } else { Vec::new() };
        for group in source.groups(from).await? {
            if options.admits(&group) {
                let target = group.clone().in_namespace(to.clone());
                let is_there = there.contains(&target);
                groups.push((group, target, is_there));
            }
        }
    }
    let comparison = Comparison { options: &options, source, target };
    let comparisons: Vec<BoxFuture<'_, Result<_>>> = groups
        .into_iter()
        .map(|(from, to, is_there)| Box::pin(comparison.group(from, to, is_there)) as BoxFuture<'_, _>)
        .collect();
    let compared: Vec<(SyncGroup, Vec<SnapshotInfo>)> =
        stream::iter(comparisons).buffered(GROUPS_IN_FLIGHT).try_collect().await?;
    let vanished = if options.remove_vanished {
        vanished::find(target, &options, &pairs, &existing, &compared).await?
    } else {
        Vanished::default()
    };
    let groups: Vec<_> = compared.into_iter().map(|(group, _)| group).collect();
    let progress = Progress::new(&groups);
    let new_namespaces = missing(&pairs, &options.target_namespace, &existing);
    let (source, target) = (source.clone(), target.clone());
    Ok(SyncPlan { groups, new_namespaces, options, progress, run: None, same, source, target, vanished })
}

/// The included namespaces, shortest first, and their targets.
fn pairs(mut namespaces: Vec<Namespace>, options: &SyncOptions) -> Result<Vec<(Namespace, Namespace)>> {
    let top = options.source_namespace.depth();
    namespaces.retain(|namespace| namespace.depth() - top <= options.max_depth);
    namespaces.sort_by_key(|namespace| (namespace.depth(), namespace.clone()));
    let mut pairs = Vec::with_capacity(namespaces.len());
    for namespace in namespaces {
        let invalid = |error| Error::new(ErrorKind::InvalidInput, "sync").on(&namespace).because(error);
        let to = options.to_target(&namespace).map_err(invalid)?;
        pairs.push((namespace, to));
    }
    Ok(pairs)
}

/// Two stores that may be one.
const IS_COPY: &str = "both stores have the same identity, and parts of both the source and the target have the same name. If one is a \
    copy of the other, give it an identity of its own first: Datastore::adopt_as_new, or `maintain --store COPY adopt`";

/// Fails if source and target overlap in one store.
fn check_apart(
    pairs: &[(Namespace, Namespace)],
    existing: &BTreeSet<Namespace>,
    options: &SyncOptions,
) -> Result<()> {
    let sources: BTreeSet<_> = pairs.iter().map(|(from, _)| from).collect();
    let mut touched =
        pairs.iter().map(|(_, to)| to).chain(existing.iter().filter(|it| options.is_of_target(it)));
    match touched.find(|it| sources.contains(it)) {
        None => Ok(()),
        Some(both) => {
            let error = Error::new(ErrorKind::InvalidInput, "sync").on(both);
            Err(error.because("it is part of both the source and the target"))
        }
    }
}

async fn sameness(source: &Datastore, target: &Datastore) -> Result<Same> {
    if Arc::ptr_eq(source.inner(), target.inner()) {
        return Ok(Same::Opening);
    }
    let uuid = source.inner().current_uuid().await?;
    Ok(if uuid.is_some() && uuid == target.inner().current_uuid().await? { Same::Copy } else { Same::No })
}

/// The existing namespaces of the target above, at and below this one.
async fn existing(target: &Datastore, goal: &Namespace) -> Result<BTreeSet<Namespace>> {
    let mut found = BTreeSet::from([Namespace::root()]);
    for namespace in ancestors(goal) {
        if !target.has_namespace(&namespace).await? {
            return Ok(found);
        }
        found.insert(namespace);
    }
    found.extend(target.namespaces(goal).await?);
    Ok(found)
}

/// A namespace and its ancestors except the root, outer ones first.
fn ancestors(namespace: &Namespace) -> Vec<Namespace> {
    let mut found: Vec<_> = std::iter::successors(Some(namespace.clone()), Namespace::parent)
        .filter(|it| !it.is_root())
        .collect();
    found.reverse();
    found
}

fn missing(
    pairs: &[(Namespace, Namespace)],
    goal: &Namespace,
    existing: &BTreeSet<Namespace>,
) -> Vec<Namespace> {
    let wanted = ancestors(goal).into_iter().chain(pairs.iter().map(|(_, to)| to.clone()));
    let mut missing: Vec<_> = wanted.filter(|namespace| !existing.contains(namespace)).collect();
    missing.sort_by_key(|namespace| (namespace.depth(), namespace.clone()));
    missing.dedup();
    missing
}

/// Inputs of a comparison.
#[derive(Clone, Copy)]
struct Comparison<'a> {
    options: &'a SyncOptions,
    source: &'a Datastore,
    target: &'a Datastore,
}

/// A snapshot of the source.
struct Candidate {
    info: SnapshotInfo,
    /// `true` if it is the newest one at the target.
    is_newest: bool,
    /// The one at the target.
    present: Option<SnapshotInfo>,
    /// Reason why it is excluded, if that is certain already.
    skip: Option<SyncSkip>,
}

impl Comparison<'_> {
    /// A group, and its state at the target.
    async fn group(
        self,
        source: GroupName,
        target: GroupName,
        is_there: bool,
    ) -> Result<(SyncGroup, Vec<SnapshotInfo>)> {
        let infos = self.source.snapshots(&source).await?;
        let (mut theirs, mut foreign_owner) = (Vec::new(), None);
        if is_there {
            foreign_owner = self.target.owner(&target).await?.filter(|owner| *owner != self.options.owner);
            theirs = self.target.snapshots(&target).await?;
        }
        let comparisons: Vec<BoxFuture<'_, Result<_>>> = self
            .select(infos, &theirs)
            .into_iter()
            .map(|candidate| Box::pin(self.snapshot(&target, candidate)) as BoxFuture<'_, _>)
            .collect();
        let mut snapshots: Vec<_> =
            stream::iter(comparisons).buffered(SNAPSHOTS_IN_FLIGHT).try_collect().await?;
        if self.options.order == SyncOrder::NewestFirst {
            snapshots.reverse();
        }
        Ok((SyncGroup { foreign_owner, snapshots, source, target }, theirs))
    }

    /// Decides about snapshots as far as possible without their manifests.
    fn select(self, infos: Vec<SnapshotInfo>, theirs: &[SnapshotInfo]) -> Vec<Candidate> {
        let is_finished = |info: &&SnapshotInfo| info.state == SnapshotState::Finished;
        let there: BTreeMap<BackupTime, &SnapshotInfo> =
            theirs.iter().filter(is_finished).map(|info| (info.name.time(), info)).collect();
        let newest = there.keys().next_back().copied();
        let finished = infos.iter().filter(is_finished).count();
        let cut = self.options.transfer_last.map_or(0, |last| finished.saturating_sub(last.get()));
        let mut number = 0;
        let mut candidates = Vec::with_capacity(infos.len());
        for info in infos {
            let time = info.name.time();
            let is_last = number >= cut;
            number += usize::from(info.state == SnapshotState::Finished);
            let present = there.get(&time).copied().cloned();
            let is_newest = newest == Some(time);
            let skip = match (info.state, &present) {
                (SnapshotState::Unfinished, _) => Some(SyncSkip::Unfinished),
                (_, Some(_)) if is_newest || self.options.resync_corrupt => None,
                (_, Some(_)) => Some(SyncSkip::Present),
                (_, None) if self.options.candidates == SyncCandidates::Newer && newest > Some(time) => {
                    Some(SyncSkip::Older)
                }
                (_, None) if !is_last => Some(SyncSkip::NotAmongLast),
                (_, None) => None,
            };
            candidates.push(Candidate { info, is_newest, present, skip });
        }
        candidates
    }

    async fn snapshot(self, target: &GroupName, candidate: Candidate) -> Result<SyncSnapshot> {
        let Candidate { info, is_newest, present, skip } = candidate;
        let step = match skip {
            Some(skip) => SyncStep::Skip(skip),
            None => self.step(&info, present.as_ref(), is_newest).await?,
        };
        let target = target.snapshot(info.name.time());
        Ok(SyncSnapshot { has_client_log: info.has_client_log, source: info.name, step, target })
    }

    async fn step(
        &self,
        info: &SnapshotInfo,
        present: Option<&SnapshotInfo>,
        is_newest: bool,
    ) -> Result<SyncStep> {
        if present.is_none() && !self.options.asks_manifests() {
            return Ok(SyncStep::Transfer);
        }
        let source = match self.source.inner().manifests().stored(&info.name).await {
            // The execution reports it.
            Err(error) if is_of_the_object(&error) => {
                return Ok(if present.is_none() {
                    SyncStep::Transfer
                } else {
                    SyncStep::Skip(SyncSkip::Present)
                });
            }
            source => source?,
        };
        if let Some(skip) = self.options.objection(&source.manifest) {
            return Ok(SyncStep::Skip(skip));
        }
        let Some(present) = present else { return Ok(SyncStep::Transfer) };
        let theirs = match self.target.inner().manifests().stored(&present.name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(SyncStep::Transfer),
            Err(error) if is_of_the_object(&error) => None,
            theirs => Some(theirs?),
        };
        let theirs = theirs.as_ref().map(|theirs| (&theirs.bytes, &theirs.manifest));
        let Ok(change) = KeyChange::of(self.options, &source.manifest) else {
            // The execution reports it.
            return Ok(if is_newest { SyncStep::Transfer } else { SyncStep::Skip(SyncSkip::Present) });
        };
        let ours = (&source.bytes, &source.manifest);
        let verdict = compare(ours, change.as_ref(), theirs, self.options.resync_corrupt);
        Ok(match verdict {
            Verdict::Everything => SyncStep::Resync(Resync::Everything),
            _ if !is_newest => SyncStep::Skip(SyncSkip::Present),
            Verdict::Conflict(conflict) => SyncStep::Conflict(conflict),
            Verdict::Damaged => SyncStep::Skip(SyncSkip::Damaged),
            Verdict::Manifest => SyncStep::Resync(Resync::Manifest),
            Verdict::Same if info.has_client_log && !present.has_client_log => SyncStep::Resync(Resync::Log),
            Verdict::Same => SyncStep::Skip(SyncSkip::UpToDate),
        })
    }
}

//! The plan of a verification: its snapshots, its cost and its executions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt as _;

use crate::backend::Unreadable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::index::HEADER_BYTES;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{ArchiveKind, BackupTime, BackupType, Namespace, SnapshotName};
use crate::format::{dynamic_index, fixed_index};
use crate::store::{Copies, Datastore, Scope, SnapshotInfo, SnapshotState};
use crate::trace;
use crate::trace::{Facts, Operation, Subject};
use crate::verify::context::Run;
use crate::verify::control::Control;
use crate::verify::listing;
use crate::verify::options::{Recording, Repair, VerifyMode, VerifyOptions};
use crate::verify::progress::Progress;
use crate::verify::report::{SkipReason, SkippedSnapshot, VerifyReport};

/// Number of references up to which chunks are looked up by name, where that is cheap, and not listed.
const MOST_LOOKED_UP: u64 = 1 << 16;
/// The group that PBS skips when it verifies a whole store.
const BENCHMARK: &str = "benchmark";

/// A planned verification, to inspect and then to [execute](VerifyPlan::execute).
#[derive(Debug)]
#[must_use = "nothing is verified before `execute`"]
pub struct VerifyPlan {
    estimate: VerifyEstimate,
    options: VerifyOptions,
    scope: Scope,
    skipped: Vec<SkippedSnapshot>,
    /// `None` before the first execution.
    started: Option<Box<Started>>,
    store: Datastore,
    targets: Vec<SnapshotInfo>,
    unreadable: Vec<Unreadable>,
}

/// The state that all executions share.
#[derive(Debug)]
struct Started {
    progress: Progress,
    run: Run,
}

/// Maximum cost of a verification: with shared chunks it is much lower. Repairs cost extra.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VerifyEstimate {
    /// Bytes read.
    pub bytes: u64,
    /// Number of different chunks checked.
    pub chunks: u64,
    /// Number of entries of all indexes.
    pub references: u64,
    /// Number of read requests, without pages of listings.
    pub requests: u64,
    /// Number of snapshots.
    pub snapshots: u64,
}

/// Plans a verification and computes its cost. Lists the snapshots; for a full run or a sample of a whole store
/// also the chunks, and for a smaller scope it reads the manifests. In a directory with few chunks, a full run reads the indexes instead, and looks up the chunks
/// that they name. Writes nothing.
///
/// [`Scope::Store`] covers all snapshots except those of groups `host/benchmark`, as in PBS.
///
/// # Errors
/// `InvalidInput` for options out of range, or a node that is invalid in a task id; `NotFound` if a named snapshot does not exist or is
/// unfinished; any failure of the backend.
pub async fn plan(store: &Datastore, scope: &Scope, options: VerifyOptions) -> Result<VerifyPlan> {
    let watch = store.inner().watch(Operation::VerifyPlan, Subject::Scope(scope));
    trace::watch(watch, make_plan(store, scope, options), |plan| Facts::of(plan.estimate())).await
}

async fn make_plan(store: &Datastore, scope: &Scope, options: VerifyOptions) -> Result<VerifyPlan> {
    options.check()?;
    let (mut snapshots, mut bytes, mut unreadable) = (BTreeMap::new(), 0, Vec::new());
    for prefix in prefixes(scope) {
        let catalog = store.inner().catalog();
        catalog.look_again(prefix.clone()).await?;
        let (found, found_bytes, not_readable) = catalog.snapshots_below(prefix).await?;
        bytes += found_bytes;
        snapshots.extend(found);
        unreadable.extend(not_readable);
    }
    if let Scope::Snapshots(named) = scope {
        let is_there = |name: &&SnapshotName| {
            snapshots.get(name).is_some_and(|info| info.state != SnapshotState::Unfinished)
        };
        if let Some(missing) = named.iter().find(|name| !is_there(name)) {
            return Err(Error::new(ErrorKind::NotFound, "verify").on(missing));
        }
    }
    let mut targets: Vec<_> = snapshots.into_values().collect();
    let is_benchmark = |name: &SnapshotName| {
        let group = name.group();
        group.backup_type() == BackupType::Host && group.id().as_str() == BENCHMARK
    };
    targets.retain(|target| *scope != Scope::Store || !is_benchmark(&target.name));
    targets.sort_by(|one, other| {
        let key = |name: &SnapshotName| (name.group().clone(), Reverse(name.time()));
        key(&one.name).cmp(&key(&other.name))
    });
    let unfinished = |target: &SnapshotInfo| target.state == SnapshotState::Unfinished;
    let skipped = targets
        .extract_if(.., |target| unfinished(target))
        .map(|target| SkippedSnapshot { name: target.name, reason: SkipReason::Unfinished });
    let skipped: Vec<_> = skipped.collect();
    unreadable.extend(targets.iter().flat_map(|target| target.unreadable.iter().cloned()));
    let mut plan = VerifyPlan {
        estimate: VerifyEstimate { bytes, ..VerifyEstimate::default() },
        options,
        scope: scope.clone(),
        skipped,
        started: None,
        store: store.clone(),
        targets,
        unreadable,
    };
    plan.estimate = plan.estimated().await?;
    Ok(plan)
}

/// The prefixes that contain the snapshots of a scope, each once.
fn prefixes(scope: &Scope) -> Vec<Prefix> {
    match scope {
        Scope::Group(group) => vec![Prefix::Group(group.clone())],
        Scope::Namespace(namespace) => {
            BackupType::ALL.map(|backup_type| Prefix::Groups(namespace.clone(), backup_type)).to_vec()
        }
        Scope::Snapshots(snapshots) => {
            let named: BTreeSet<_> = snapshots.iter().cloned().collect();
            named.into_iter().map(Prefix::Snapshot).collect()
        }
        Scope::Store => vec![Prefix::Namespace(Namespace::root())],
        Scope::Tree(namespace) => vec![Prefix::Namespace(namespace.clone())],
    }
}

impl VerifyPlan {
    /// Maximum cost.
    pub fn estimate(&self) -> &VerifyEstimate {
        &self.estimate
    }

    /// The part of the store.
    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The snapshots in the order of verification: groups in the order of PBS, in each the newest first.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotName> {
        self.targets.iter().map(|target| &target.name)
    }

    /// Verifies. Groups outside the scope are not marked failed, even if they share a damaged chunk.
    ///
    /// A plan can be executed again: it continues after an abort, a failure or a dropped future, and checks again only what was busy,
    /// unreachable or not recorded. The report covers all executions.
    ///
    /// # Errors
    /// `Unavailable` if so many consecutive chunks are missing that the store cannot be trusted; nothing more is changed then. `Busy`
    /// or `Unsupported` if the run has to write and the store cannot be changed; any failure to list. Everything else
    /// is in the report.
    ///
    /// # Cancel safety
    /// A dropped future leaves each chunk in place or quarantined, and each manifest with its old or a correct new state. A quarantine
    /// in progress is completed. All locks are released.
    pub async fn execute(&mut self) -> Result<VerifyReport> {
        let watch = self.store.inner().watch(Operation::Verify, Subject::Scope(&self.scope));
        let facts =
            |report: &VerifyReport| Facts::of(report).bytes(report.bytes).damage(report.damaged.iter());
        trace::watch(watch, self.check_all(), facts).await
    }

    async fn check_all(&mut self) -> Result<VerifyReport> {
        let writes = self.options.repair == Repair::Quarantine || self.options.recording == Recording::On;
        if writes {
            self.store.inner().check_writable("verify").await?;
        }
        let started = match self.started.take() {
            Some(started) => started,
            None => self.start()?,
        };
        let Started { progress, run } = &mut **self.started.insert(started);
        // Boxed here, where the compiler can prove that it is `Send`.
        run.execute(progress).boxed().await
    }

    fn start(&self) -> Result<Box<Started>> {
        let now = self.store.inner().runtime().now();
        let start = BackupTime::try_from(now)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, "verify").because(error))?;
        let upid = self.options.upid(&self.scope, start)?;
        let (store, options) = (self.store.clone(), self.options.clone());
        let run = Run::new(store, options, self.targets.clone(), (upid, now), self.estimate.references);
        {
            let report = &mut run.findings().report;
            report.skipped.clone_from(&self.skipped);
            report.unreadable.clone_from(&self.unreadable);
        }
        Ok(Box::new(Started { progress: Progress::new(&run), run }))
    }

    async fn estimated(&self) -> Result<VerifyEstimate> {
        let mut estimate = VerifyEstimate { snapshots: self.targets.len() as u64, ..self.estimate };
        let mut blobs = (0, 0);
        estimate.requests = estimate.snapshots;
        for file in self.targets.iter().flat_map(|target| &target.files) {
            let entry_bytes = match file.name.kind() {
                ArchiveKind::Blob => {
                    blobs = (blobs.0 + 1, blobs.1 + file.stored_bytes);
                    continue;
                }
                ArchiveKind::Dynamic => dynamic_index::ENTRY_BYTES as u64,
                ArchiveKind::Fixed => fixed_index::ENTRY_BYTES as u64,
            };
            estimate.references += file.stored_bytes.saturating_sub(HEADER_BYTES as u64) / entry_bytes;
            estimate.requests += 1;
            estimate.bytes += file.stored_bytes;
        }
        let logs = self.targets.iter().filter(|target| target.has_client_log).count() as u64;
        let (chunks, bytes) = match self.options.mode {
            VerifyMode::Presence => (estimate.references, 0),
            VerifyMode::Full | VerifyMode::Sample(_) => self.chunks_at_most(estimate.references).await?,
        };
        estimate.chunks = estimate.references.min(chunks);
        match self.options.mode {
            VerifyMode::Full => {
                estimate.requests += estimate.chunks + blobs.0 + logs;
                estimate.bytes += bytes + blobs.1;
            }
            VerifyMode::Presence => {}
            VerifyMode::Sample(sample) => {
                let left = sample.requests.unwrap_or(u64::MAX).saturating_sub(estimate.requests);
                estimate.chunks = estimate.chunks.min(left);
                estimate.requests += estimate.chunks;
                let left = sample.bytes.unwrap_or(u64::MAX).saturating_sub(estimate.bytes);
                estimate.bytes += bytes.min(left);
            }
        }
        Ok(estimate)
    }

    /// Maximum number of chunks, and their bytes.
    async fn chunks_at_most(&self, references: u64) -> Result<(u64, u64)> {
        let control = Control::new(&self.options);
        if self.scope == Scope::Store {
            let capabilities = self.store.inner().backend().capabilities();
            // The budget of a sample is for the sample.
            let looks_up = self.options.mode == VerifyMode::Full
                && references <= MOST_LOOKED_UP
                && capabilities.cheap_presence
                && !capabilities.deep_listings;
            if looks_up && let Some(found) = listing::count_named(&self.store, &self.targets).await {
                return Ok(found);
            }
            return listing::count(&self.store, references, &control).await;
        }
        let mut bytes = 0_u64;
        for target in &self.targets {
            // The verification itself reports unreadable manifests.
            let key = Key::Manifest(target.name.clone());
            let Ok(stored) = self.store.inner().snapshot_files().read(&key, Copies::Use).await else {
                continue;
            };
            let Ok(manifest) = self.store.inner().manifests().parse(&target.name, stored).await else {
                continue;
            };
            let archives = manifest.files().iter().filter(|file| file.name.kind() != ArchiveKind::Blob);
            bytes = bytes.saturating_add(archives.map(|file| file.size).sum());
        }
        Ok((references, bytes))
    }
}

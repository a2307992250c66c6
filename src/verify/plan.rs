//! What a verification would cost, before anything is read.

use std::cmp::Reverse;

use futures::FutureExt as _;

use crate::backend::Unreadable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::index::HEADER_BYTES;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{ArchiveKind, BackupTime, BackupType, Namespace, SnapshotName};
use crate::format::{dynamic_index, fixed_index};
use crate::store::{Copies, Datastore, SnapshotInfo, SnapshotState};
use crate::verify::context::Run;
use crate::verify::control::Control;
use crate::verify::listing;
use crate::verify::options::{Mode, Recording, Repair, Scope, VerifyOptions};
use crate::verify::report::{SkipReason, SkippedSnapshot, VerifyReport};

/// The group that PBS leaves out when it verifies a whole store.
const BENCHMARK: &str = "benchmark";

/// A verification that can be looked at before it is executed.
#[derive(Debug)]
#[must_use = "nothing is verified before `execute`"]
pub struct VerifyPlan {
    estimate: Estimate,
    options: VerifyOptions,
    scope: Scope,
    skipped: Vec<SkippedSnapshot>,
    store: Datastore,
    targets: Vec<SnapshotInfo>,
    unreadable: Vec<Unreadable>,
}

/// What a verification costs, at most: where chunks are used again, it is much less. What is done about damage comes on top.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes that are read.
    pub bytes: u64,
    /// Different chunks that are looked at.
    pub chunks: u64,
    /// Entries of all indexes together.
    pub references: u64,
    /// Requests that are made to read something, without the pages of listings.
    pub requests: u64,
    /// Snapshots.
    pub snapshots: u64,
}

/// Finds out what is to be verified, and what that would cost. It lists the snapshots; before a full run or a sample of a whole store it
/// lists the chunks too, and of a smaller part it reads the manifests. Nothing is written.
///
/// # Errors
/// `InvalidInput` for options out of range, or a node that no task id may have; `NotFound` if the one snapshot is not there; whatever
/// the backend answers.
pub async fn plan(store: &Datastore, scope: Scope, options: VerifyOptions) -> Result<VerifyPlan> {
    options.check()?;
    let prefix = match &scope {
        Scope::Group(group) => Prefix::Group(group.clone()),
        Scope::Namespace(namespace) => Prefix::Namespace(namespace.clone()),
        Scope::Snapshot(snapshot) => Prefix::Snapshot(snapshot.clone()),
        Scope::Store => Prefix::Namespace(Namespace::root()),
    };
    let (targets, bytes, mut unreadable) = store.snapshots_below(prefix).await?;
    let mut targets: Vec<_> = targets.into_values().collect();
    if let Scope::Snapshot(snapshot) = &scope
        && targets.iter().all(|target| target.name != *snapshot || target.state == SnapshotState::Unfinished)
    {
        return Err(Error::new(ErrorKind::NotFound, "verify").on(snapshot));
    }
    let is_benchmark = |name: &SnapshotName| {
        let group = name.group();
        group.backup_type() == BackupType::Host && group.id().as_str() == BENCHMARK
    };
    targets.retain(|target| scope != Scope::Store || !is_benchmark(&target.name));
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
    let estimate = Estimate { bytes, ..Estimate::default() };
    let mut plan =
        VerifyPlan { estimate, options, scope, skipped, store: store.clone(), targets, unreadable };
    plan.estimate = plan.estimated().await?;
    Ok(plan)
}

impl VerifyPlan {
    /// What it costs at most.
    pub fn estimate(&self) -> &Estimate {
        &self.estimate
    }

    /// The snapshots, in the order in which they are verified: groups in the order of PBS, in each the newest first.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotName> {
        self.targets.iter().map(|target| &target.name)
    }

    /// Verifies. A group that is outside of the scope is not told of damage that its snapshots share.
    ///
    /// # Errors
    /// `Unavailable` if so many chunks in a row are missing that something else must be wrong, and then nothing more is changed; `Busy`
    /// or `Unsupported` if something is to be written and the store cannot be changed; whatever keeps it from listing. Everything else
    /// is in the report.
    ///
    /// # Cancel safety
    /// A dropped future leaves each chunk in its place or put aside, and each manifest with the state before or a true one. A chunk
    /// that is being put aside at that moment is put aside to the end.
    pub async fn execute(self) -> Result<VerifyReport> {
        let writes = self.options.repair == Repair::Quarantine || self.options.recording == Recording::On;
        if writes {
            self.store.check_writable("verify").await?;
        }
        let now = self.store.runtime().now();
        let start = BackupTime::try_from(now)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, "verify").because(error))?;
        let upid = self.options.upid(&self.scope, start)?;
        let Self { estimate, options, skipped, store, targets, unreadable, .. } = self;
        let run = Run::new(store, options, targets, upid, now, estimate.references);
        // Boxed here, where the compiler can see that it is `Send`.
        let mut report = run.execute(skipped).boxed().await?;
        report.unreadable = unreadable;
        Ok(report)
    }

    async fn estimated(&self) -> Result<Estimate> {
        let mut estimate = Estimate { snapshots: self.targets.len() as u64, ..self.estimate };
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
            Mode::Presence => (estimate.references, 0),
            Mode::Full | Mode::Sample(_) => self.chunks_at_most(estimate.references).await?,
        };
        estimate.chunks = estimate.references.min(chunks);
        match self.options.mode {
            Mode::Full => {
                estimate.requests += estimate.chunks + blobs.0 + logs;
                estimate.bytes += bytes + blobs.1;
            }
            Mode::Presence => {}
            Mode::Sample(sample) => {
                let left = sample.requests.unwrap_or(u64::MAX).saturating_sub(estimate.requests);
                estimate.chunks = estimate.chunks.min(left);
                estimate.requests += estimate.chunks;
                let left = sample.bytes.unwrap_or(u64::MAX).saturating_sub(estimate.bytes);
                estimate.bytes += bytes.min(left);
            }
        }
        Ok(estimate)
    }

    /// How many chunks there are at most, and their bytes.
    async fn chunks_at_most(&self, references: u64) -> Result<(u64, u64)> {
        let control = Control::new(&self.options);
        if self.scope == Scope::Store {
            return listing::count(&self.store, references, &control).await;
        }
        let mut bytes = 0_u64;
        for target in &self.targets {
            // What cannot be read is found out when it is verified.
            let key = Key::Manifest(target.name.clone());
            let Ok(stored) = self.store.stored(&key, Copies::Used).await else { continue };
            let Ok(manifest) = self.store.parse_manifest(&target.name, stored).await else { continue };
            let archives = manifest.files().iter().filter(|file| file.name().kind() != ArchiveKind::Blob);
            bytes = bytes.saturating_add(archives.map(crate::format::manifest::ManifestFile::size).sum());
        }
        Ok((references, bytes))
    }
}

//! Sync of one snapshot.
//!
//! ```text
//! source locked → target locked → compared → indexes → chunks → blobs → published, see `store::import`
//! ```

use std::sync::Arc;

use crate::chunks::{ExistingCheck, ReuseSource};
use crate::error::{ErrorKind, Result};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::{Held, ImportedManifest, SnapshotImport, StoredManifest, has_failed_verification};
use crate::sync::chunks::{self, Ends, Index, Reuse};
use crate::sync::compare::{Verdict, compare};
use crate::sync::context::{Failure, GroupRun, Run};
use crate::sync::kinds::{Same, Skip, SnapshotPlan};
use crate::sync::options::Candidates;
use crate::sync::report::{Outcome, SyncStats};

pub(super) async fn sync(run: &Run, group: &mut GroupRun<'_>, plan: &SnapshotPlan) -> Outcome {
    match bring(run, group, plan).await {
        Ok(outcome) => outcome,
        Err(Failure::Aborted) => Outcome::NotReached,
        Err(Failure::Failed(error)) => {
            // If a part is missing, the whole snapshot may be (H51).
            let may_be_gone = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound);
            if may_be_gone
                && run.source.inner().manifests().exists(&plan.source).await.is_ok_and(|is_there| !is_there)
            {
                return Outcome::SourceGone;
            }
            Outcome::Failed(error)
        }
    }
}

async fn bring(run: &Run, group: &mut GroupRun<'_>, plan: &SnapshotPlan) -> Result<Outcome, Failure> {
    let (from, to) = (&plan.source, &plan.target);
    // Before the lock: locking a missing snapshot would leave a lock file.
    if !run.source.inner().manifests().exists(from).await? {
        return Ok(Outcome::SourceGone);
    }
    let held = run.source.inner().locks().snapshot_to_read(from).await?;
    let source = run.source.inner().manifests().stored(from).await?;
    if let Some(skip) = run.options.objection(&source.manifest) {
        return Ok(Outcome::Skipped(skip));
    }
    let mut import = group.import.snapshot(to).await?;
    import.keep(Held::from(held))?;
    let verdict = match import.present() {
        None => {
            let is_older = group.newest.is_some_and(|newest| to.time() <= newest);
            if is_older && run.options.candidates == Candidates::Newer {
                return Ok(Outcome::Skipped(Skip::Older));
            }
            None
        }
        Some(present) => {
            let theirs = present.manifest.as_ref().map(|manifest| (&present.bytes, manifest));
            let ours = (&source.bytes, &source.manifest);
            Some(compare(ours, theirs, run.options.resync_corrupt))
        }
    };
    let lacks_log =
        plan.has_client_log && import.present().is_none_or(|present| !present.info.has_client_log);
    match verdict {
        None | Some(Verdict::Everything) => {}
        Some(Verdict::Conflict(conflict)) => return Ok(Outcome::Conflict(conflict)),
        Some(Verdict::Damaged) => return Ok(Outcome::Skipped(Skip::Damaged)),
        Some(Verdict::Same) if !lacks_log => return Ok(Outcome::Skipped(Skip::UpToDate)),
        Some(Verdict::Manifest | Verdict::Same) => {
            let manifest = manifest(run, from, &source, lacks_log).await?;
            import.update(manifest).await?;
            return Ok(Outcome::Done(SyncStats::default()));
        }
    }
    let filled = fill(run, group, plan, &source, &mut import).await;
    let prepared = match filled {
        Ok(stats) => manifest(run, from, &source, plan.has_client_log).await.map(|it| (stats, it)),
        Err(failure) => Err(failure),
    };
    match prepared {
        Ok((stats, manifest)) => {
            import.publish(manifest).await?;
            Ok(Outcome::Done(stats))
        }
        Err(failure) => {
            // Reports the first failure; the rest is invisible, and the next run removes it.
            let _ = import.give_up().await;
            Err(failure)
        }
    }
}

async fn manifest(
    run: &Run,
    from: &SnapshotName,
    source: &StoredManifest,
    with_log: bool,
) -> Result<ImportedManifest, Failure> {
    let log = if with_log { run.source.inner().snapshot_files().client_log(from).await? } else { None };
    let bytes = source.bytes.len() + log.as_ref().map_or(0, bytes::Bytes::len);
    run.pass(bytes as u64).await?;
    Ok(ImportedManifest { bytes: source.bytes.clone(), log })
}

/// Transfers everything but the manifest and the log.
async fn fill(
    run: &Run,
    group: &mut GroupRun<'_>,
    plan: &SnapshotPlan,
    source: &StoredManifest,
    import: &mut SnapshotImport,
) -> Result<SyncStats, Failure> {
    let from = &plan.source;
    let mut indexes = Vec::new();
    for file in source.manifest.files().iter().filter(|file| file.name().kind() != ArchiveKind::Blob) {
        run.go_on()?;
        let (bytes, reader) = run.source.inner().snapshot_files().stored_index(from, file).await?;
        run.pass(bytes.len() as u64).await?;
        import.add_index(file.name(), bytes)?;
        indexes.push(Index { mode: file.crypt_mode(), name: file.name().clone(), reader });
    }
    let of_same = match run.same {
        Same::No => None,
        // A snapshot with known gaps does not vouch for its chunks (D9).
        Same::Opening if !has_failed_verification(&source.manifest) => Some(ReuseSource::Base),
        Same::Opening | Same::Twin => Some(ReuseSource::Twin),
    };
    let stats = chunks_of(run, group, plan, (indexes, of_same), import).await?;
    for file in source.manifest.files().iter().filter(|file| file.name().kind() == ArchiveKind::Blob) {
        run.go_on()?;
        let bytes = run.source.inner().snapshot_files().stored_blob(from, file).await?;
        run.pass(bytes.len() as u64).await?;
        import.put_blob(file.name(), bytes).await?;
    }
    run.go_on()?;
    Ok(stats)
}

/// Transfers the chunks of a snapshot, or reuses them.
async fn chunks_of(
    run: &Run,
    group: &mut GroupRun<'_>,
    plan: &SnapshotPlan,
    (indexes, of_same): (Vec<Index>, Option<ReuseSource>),
    import: &mut SnapshotImport,
) -> Result<SyncStats, Failure> {
    let taken = run.target.inner().pins_beside(&run.pins());
    import.pin_with(Arc::clone(&taken))?;
    let reuse = if import.present().is_some() {
        // The one at the target is damaged: each of its chunks must be checked.
        Reuse { base: None, belief: ExistingCheck::Read, of_same: None, sent: Arc::clone(&taken), taken }
    } else {
        let sent = run.pins();
        import.pin_with(Arc::clone(&sent))?;
        let base = group.base(&plan.target).await?;
        if let Some(base) = &base {
            let held: Held = Arc::clone(&base.held);
            import.build_on(base.name.clone(), base.version.clone(), held)?;
        }
        Reuse { base, belief: ExistingCheck::ByLength, of_same, sent, taken }
    };
    let archives = indexes.iter().map(|index| index.name.clone()).collect();
    let ends = Ends { archives, source: &plan.source, target: &plan.target };
    let wanted = chunks::wanted(run, indexes, &reuse).await?;
    chunks::bring(run, &ends, wanted, &reuse).await
}

//! Sync of one snapshot.
//!
//! ```text
//! source locked → target locked → compared → indexes → chunks → blobs → published, see `store::import`
//! ```

use std::sync::Arc;

use crate::chunks::{ExistingCheck, ReuseSource};
use crate::error::{ErrorKind, Result};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::{
    Held, ImportedManifest, Present, SnapshotImport, StoredManifest, has_failed_verification,
};
use crate::sync::chunks::{self, Ends, Index, Reuse};
use crate::sync::compare::compare;
use crate::sync::context::{Failure, GroupRun, Run, Transfer};
use crate::sync::key_change::KeyChange;
use crate::sync::kinds::{Same, SyncSkip, Verdict};
use crate::sync::options::SyncCandidates;
use crate::sync::reencrypt;
use crate::sync::report::SyncOutcome;

/// Syncs a snapshot, and returns the outcome.
pub(super) async fn sync(run: &Run, group: &mut GroupRun<'_>, transfer: Transfer<'_>) -> SyncOutcome {
    let plan = transfer.plan;
    match sync_locked(run, group, transfer).await {
        Ok(outcome) => outcome,
        Err(Failure::Aborted) => SyncOutcome::NotReached,
        Err(Failure::Failed(error)) => {
            // If a part is missing, the whole snapshot may be (H51).
            let may_be_gone = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound);
            if may_be_gone
                && run.source.inner().manifests().exists(&plan.source).await.is_ok_and(|is_there| !is_there)
            {
                return SyncOutcome::SourceGone;
            }
            SyncOutcome::Failed(error)
        }
    }
}

async fn sync_locked(
    run: &Run,
    group: &mut GroupRun<'_>,
    transfer: Transfer<'_>,
) -> Result<SyncOutcome, Failure> {
    let Transfer { plan, progress, was_started, .. } = transfer;
    let (from, to) = (&plan.source, &plan.target);
    // Before the lock: locking a missing snapshot would leave a lock file.
    if !run.source.inner().manifests().exists(from).await? {
        return Ok(SyncOutcome::SourceGone);
    }
    let held = run.source.inner().locks().snapshot_to_read(from).await?;
    let source = run.source.inner().manifests().stored(from).await?;
    if let Some(skip) = run.options.objection(&source.manifest) {
        return Ok(SyncOutcome::Skipped(skip));
    }
    let change = KeyChange::of(&run.options, &source.manifest)?;
    // Its lock as a base would refuse the import.
    group.base.take_if(|base| base.name == *to);
    let mut import = group.import.snapshot(to).await?;
    import.keep(Held::from(held))?;
    let verdict = match import.present() {
        None => {
            let is_older = group.newest.is_some_and(|newest| to.time() <= newest);
            if is_older && run.options.candidates == SyncCandidates::Newer {
                return Ok(SyncOutcome::Skipped(SyncSkip::Older));
            }
            None
        }
        Some(present) => {
            let theirs = present.manifest.as_ref().map(|manifest| (&present.bytes, manifest));
            let ours = (&source.bytes, &source.manifest);
            Some(compare(ours, change.as_ref(), theirs, run.options.resync_corrupt))
        }
    };
    let lacks_log =
        plan.has_client_log && import.present().is_none_or(|present| !present.info.has_client_log);
    match verdict {
        None | Some(Verdict::Everything) => {}
        Some(Verdict::Conflict(conflict)) => return Ok(SyncOutcome::Conflict(conflict)),
        Some(Verdict::Damaged) => return Ok(SyncOutcome::Skipped(SyncSkip::Damaged)),
        // Published by an execution whose future was dropped.
        Some(Verdict::Same) if !lacks_log && was_started => {
            return Ok(SyncOutcome::Done(progress.counts.stats(0)));
        }
        Some(Verdict::Same) if !lacks_log => return Ok(SyncOutcome::Skipped(SyncSkip::UpToDate)),
        Some(Verdict::Manifest | Verdict::Same) => {
            let source = (&source, change.as_ref());
            let manifest = new_manifest(run, from, source, import.present(), lacks_log).await?;
            import.update(manifest).await?;
            return Ok(SyncOutcome::Done(progress.counts.stats(0)));
        }
    }
    match prepare(run, group, transfer, (&source, change.as_ref()), &mut import).await {
        Ok((reused, manifest)) => {
            import.publish(manifest).await?;
            Ok(SyncOutcome::Done(progress.counts.stats(reused)))
        }
        Err(failure) => {
            // Reports the first failure; the rest is invisible, and the next run removes it.
            let _ = import.give_up().await;
            Err(failure)
        }
    }
}

/// Transfers everything, up to the manifest and the log. Returns the number of reused chunks too.
async fn prepare(
    run: &Run,
    group: &mut GroupRun<'_>,
    transfer: Transfer<'_>,
    (source, change): (&StoredManifest, Option<&KeyChange>),
    import: &mut SnapshotImport,
) -> Result<(u64, ImportedManifest), Failure> {
    let (from, with_log) = (&transfer.plan.source, transfer.plan.has_client_log);
    if let Some(change) = change {
        let (reused, files) = reencrypt::fill(run, group, transfer, (source, change), import).await?;
        let manifest = reencrypt::manifest(run, from, (&source.manifest, change), files, with_log).await?;
        return Ok((reused, manifest));
    }
    let reused = fill(run, group, transfer, source, import).await?;
    Ok((reused, manifest(run, from, source, with_log).await?))
}

/// The manifest for a snapshot that the target has, whose unprotected part differs.
async fn new_manifest(
    run: &Run,
    from: &SnapshotName,
    (source, change): (&StoredManifest, Option<&KeyChange>),
    present: Option<&Present>,
    with_log: bool,
) -> Result<ImportedManifest, Failure> {
    let Some(change) = change else { return manifest(run, from, source, with_log).await };
    let theirs = present.and_then(|present| present.manifest.as_ref());
    let files = theirs.map_or_else(Vec::new, |theirs| theirs.files().to_vec());
    reencrypt::manifest(run, from, (&source.manifest, change), files, with_log).await
}

async fn manifest(
    run: &Run,
    from: &SnapshotName,
    source: &StoredManifest,
    with_log: bool,
) -> Result<ImportedManifest, Failure> {
    let log = if with_log { run.source.inner().snapshot_files().client_log(from).await? } else { None };
    let bytes = source.bytes.len() + log.as_ref().map_or(0, bytes::Bytes::len);
    run.throttle(bytes as u64).await?;
    Ok(ImportedManifest { bytes: source.bytes.clone(), log })
}

/// Transfers everything but the manifest and the log. Returns the number of reused chunks.
async fn fill(
    run: &Run,
    group: &mut GroupRun<'_>,
    transfer: Transfer<'_>,
    source: &StoredManifest,
    import: &mut SnapshotImport,
) -> Result<u64, Failure> {
    let from = &transfer.plan.source;
    let mut indexes = Vec::new();
    for file in source.manifest.files().iter().filter(|file| file.name.kind() != ArchiveKind::Blob) {
        run.check_abort()?;
        let (bytes, reader) = run.source.inner().snapshot_files().stored_index(from, file).await?;
        run.throttle(bytes.len() as u64).await?;
        import.add_index(&file.name, bytes)?;
        indexes.push(Index { mode: file.crypt_mode, name: file.name.clone(), reader });
    }
    let of_same = match run.same {
        Same::No => None,
        // A snapshot with known gaps does not vouch for its chunks (D9).
        Same::Opening if !has_failed_verification(&source.manifest) => Some(ReuseSource::Base),
        Same::Opening | Same::Copy => Some(ReuseSource::Copy),
    };
    let reused = chunks_of(run, group, transfer, (indexes, of_same), import).await?;
    for file in source.manifest.files().iter().filter(|file| file.name.kind() == ArchiveKind::Blob) {
        run.check_abort()?;
        let bytes = run.source.inner().snapshot_files().stored_blob(from, file).await?;
        run.throttle(bytes.len() as u64).await?;
        import.put_blob(&file.name, bytes).await?;
    }
    run.check_abort()?;
    Ok(reused)
}

/// Transfers the chunks of a snapshot, or reuses them.
async fn chunks_of(
    run: &Run,
    group: &mut GroupRun<'_>,
    transfer: Transfer<'_>,
    (indexes, of_same): (Vec<Index>, Option<ReuseSource>),
    import: &mut SnapshotImport,
) -> Result<u64, Failure> {
    let plan = transfer.plan;
    let taken = run.target.inner().pins_beside(&run.pins(), None);
    import.pin_with(Arc::clone(&taken))?;
    let reuse = if import.present().is_some() {
        // The one at the target is damaged: each of its chunks must be checked.
        Reuse { base: None, check: ExistingCheck::Read, of_same: None, sent: Arc::clone(&taken), taken }
    } else {
        let sent = run.pins();
        import.pin_with(Arc::clone(&sent))?;
        let base = group.base(&plan.target).await?;
        if let Some(base) = &base {
            let held: Held = Arc::clone(&base.held);
            import.build_on(base.name.clone(), base.version.clone(), held)?;
        }
        Reuse { base, check: ExistingCheck::ByLength, of_same, sent, taken }
    };
    let archives = indexes.iter().map(|index| index.name.clone()).collect();
    let ends =
        Ends { archives, counts: &transfer.progress.counts, source: &plan.source, target: transfer.name };
    let wanted = chunks::wanted(run, indexes, &reuse).await?;
    chunks::transfer(run, &ends, wanted, &reuse).await
}

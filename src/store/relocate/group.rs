//! Copy and move of one group: its metadata, and its snapshots in order.

use crate::backend::put_verified::{PutError, put_verified};
use crate::backend::{LockGuard, Object};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{BackupTime, GroupName, Namespace, SnapshotName};
use crate::store::SnapshotState;
use crate::store::catalog::delete::{DeleteError, still_held};
use crate::store::catalog::list::Listed;
use crate::store::publish::{Written, remove_written};
use crate::store::relocate::{How, Relocated, RelocatedGroup, RelocatedSnapshot, Relocator};

/// Result for a group, and the reason to stop after it, if any.
pub(super) struct Relocating {
    /// Another process may own the store, or a lock, now.
    pub(super) lost: Option<Error>,
    pub(super) report: RelocatedGroup,
}

impl Relocator<'_> {
    /// Copies or moves a group. Fails only if nothing was copied.
    pub(super) async fn relocated(
        &self,
        from: &GroupName,
        target: &Namespace,
        how: How,
    ) -> Result<Relocating, DeleteError> {
        let to = from.clone().in_namespace(target.clone());
        self.check_there(from, how).await?;
        let source_guard = match how {
            How::Copy => None,
            How::Move => Some(self.inner.locks().group_waiting(from).await?),
        };
        let target_guard = self.inner.locks().group_waiting(&to).await?;
        let snapshots = self.inner.catalog().listed_snapshots(from).await?;
        self.check_merge(from, &to, &snapshots, how).await?;
        let created = self.create_target(from, &to, target_guard.as_ref()).await?;
        let report = RelocatedGroup {
            error: None,
            from: from.clone(),
            source_gone: false,
            snapshots: Vec::with_capacity(snapshots.len()),
            to,
        };
        let mut done = Relocating { lost: None, report };
        self.relocate_snapshots(snapshots, how, &mut done).await;
        let ended = match self.clean_target(&done.report.to, created).await {
            Ok(()) => self.clean_source(from, source_guard).await,
            Err(error) => Err(error.into()),
        };
        match ended {
            Ok(gone) => done.report.source_gone = gone,
            Err(DeleteError::Failed(error)) => done.report.error = Some(error),
            Err(DeleteError::Lost(error)) => done.lost = done.lost.or(Some(error)),
        }
        Ok(done)
    }

    async fn relocate_snapshots(&self, snapshots: Vec<Listed>, how: How, done: &mut Relocating) {
        let mut is_over = false;
        for listed in snapshots {
            let outcome = if is_over {
                Relocated::NotReached
            } else {
                let target = done.report.to.snapshot(listed.info.name.time());
                match self.relocate_listed(&listed, &target, how).await {
                    Ok(outcome) => outcome,
                    Err(DeleteError::Failed(error)) if error.kind() == ErrorKind::Busy => {
                        Relocated::Busy(error)
                    }
                    Err(DeleteError::Failed(error)) => Relocated::Failed(error),
                    Err(DeleteError::Lost(error)) => {
                        done.lost = Some(error.clone());
                        Relocated::Failed(error)
                    }
                }
            };
            let Listed { info, .. } = listed;
            // Kept in order: a later call then finds the rest newer than everything at the destination.
            is_over |= matches!(outcome, Relocated::Busy(_) | Relocated::Failed(_));
            done.report.snapshots.push(RelocatedSnapshot { name: info.name, outcome });
        }
    }

    /// A snapshot still being written does not block the move.
    async fn relocate_listed(
        &self,
        listed: &Listed,
        target: &SnapshotName,
        how: How,
    ) -> Result<Relocated, DeleteError> {
        let name = &listed.info.name;
        // A listing may lag (H13).
        let is_finished = listed.manifest.is_some() || self.inner.manifests().exists(name).await?;
        if !is_finished && how == How::Copy {
            return Ok(Relocated::Unfinished);
        }
        match self.relocate_snapshot(name, target, how).await {
            Err(DeleteError::Failed(error)) if error.kind() == ErrorKind::Busy && !is_finished => {
                Ok(Relocated::Unfinished)
            }
            relocated => relocated,
        }
    }

    /// Fails if the group does not exist: locking it would leave a lock file.
    async fn check_there(&self, group: &GroupName, how: How) -> Result<()> {
        if self.inner.catalog().groups(group.namespace()).await?.contains(group) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, how.action()).on(group))
    }

    /// Refuses to merge groups of different owners, or snapshots that would be out of order.
    async fn check_merge(&self, from: &GroupName, to: &GroupName, source: &[Listed], how: How) -> Result<()> {
        let failed = |kind| Error::new(kind, how.action()).on(from);
        if let (Some(ours), Some(theirs)) =
            (self.inner.metadata().owner(from).await?, self.inner.metadata().owner(to).await?)
            && ours != theirs
        {
            let why = format!("it belongs to {ours}, and {to} to {theirs}");
            return Err(failed(ErrorKind::Denied).because(why));
        }
        let target = self.inner.catalog().snapshots(to).await?;
        let is_finished = |state| state == SnapshotState::Finished;
        let there: Vec<BackupTime> =
            target.iter().filter(|info| is_finished(info.state)).map(|info| info.name.time()).collect();
        // A snapshot at both places was copied before, or turns out to differ later.
        let oldest = source
            .iter()
            .filter(|listed| is_finished(listed.info.state))
            .map(|listed| listed.info.name.time())
            .find(|time| !there.contains(time));
        if let (Some(oldest), Some(newest)) = (oldest, there.last())
            && oldest <= *newest
        {
            let why = format!("its snapshot of {oldest} is not newer than that of {newest} in {to}");
            return Err(failed(ErrorKind::InvalidInput).because(why));
        }
        Ok(())
    }

    /// Copies the metadata of a group: the owner first, which makes it a group (H44). Returns the stored objects.
    async fn create_target(
        &self,
        from: &GroupName,
        to: &GroupName,
        guard: &dyn LockGuard,
    ) -> Result<Vec<Written>, DeleteError> {
        still_held(guard).await?;
        let mut created = Vec::new();
        for (source, target) in [
            (Key::Owner(from.clone()), Key::Owner(to.clone())),
            (Key::GroupNotes(from.clone()), Key::GroupNotes(to.clone())),
        ] {
            match self.copy_small(&source, target).await {
                Ok(written) => created.extend(written),
                Err(error) => {
                    // Reports the first failure.
                    let _ = remove_written(self.inner, &created).await;
                    return Err(error.into());
                }
            }
        }
        Ok(created)
    }

    /// Copies an object to a free key, if it exists. Returns the stored object.
    async fn copy_small(&self, from: &Key, to: Key) -> Result<Option<Written>> {
        let backend = &self.inner.backend;
        let Some(Object { bytes, .. }) = self.inner.metadata().get_small(from).await? else {
            return Ok(None);
        };
        if backend.has(&to).await? {
            return Ok(None);
        }
        self.inner.check_no_pending_delete(&to)?;
        let mode = backend.capabilities().create_mode();
        // The destination group is locked, so an equal object is the one of this put (H18).
        let stored = put_verified(backend.as_ref(), &to, bytes, mode).await.map_err(PutError::into_error)?;
        Ok(Some(Written { key: to, version: stored.version }))
    }

    /// Removes the metadata of the target, if no snapshot was copied there.
    async fn clean_target(&self, to: &GroupName, created: Vec<Written>) -> Result<()> {
        if created.is_empty() || !self.inner.catalog().snapshots(to).await?.is_empty() {
            return self.inner.backend.barrier().await;
        }
        remove_written(self.inner, &created).await
    }

    /// Removes the metadata of the source of a move, if it has no snapshots; returns `true` if it has none.
    async fn clean_source(
        &self,
        from: &GroupName,
        guard: Option<Box<dyn LockGuard>>,
    ) -> Result<bool, DeleteError> {
        match guard {
            None => Ok(false),
            Some(guard) => self.inner.deletions().delete_group_if_empty(from, guard).await,
        }
    }
}

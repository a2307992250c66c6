//! Copy and move of one snapshot.

use bytes::Bytes;
use futures::future::{self, FutureExt as _};
use futures::stream::{self, StreamExt as _};

use crate::backend::{Backend, LockGuard, LockMode, PutMode};
use crate::chunks::moves::Relocating;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::manifest::MANIFEST_BYTES;
use crate::format::name::SnapshotName;
use crate::store::SnapshotInfo;
use crate::store::catalog::delete::{DeleteError, DeleteOutcome, rest_of, still_held};
use crate::store::catalog::list::Listed;
use crate::store::publish::{Written, remove_written};
use crate::store::relocate::{How, Relocated, Relocator};

/// Number of files copied concurrently.
const COPIES_IN_FLIGHT: usize = 4;
/// Bytes of each of two files compared at once.
const COMPARED_BYTES: u64 = 4 << 20;

/// The locks of a snapshot at its two places.
struct Guards {
    source: Box<dyn LockGuard>,
    target: Box<dyn LockGuard>,
}

/// Reason why a copy was aborted.
struct Broken {
    /// `true` if the copied files may be removed: their manifest neither exists nor may still appear.
    may_clean: bool,
    trouble: DeleteError,
}

impl Relocator<'_> {
    pub(super) async fn relocate_snapshot(
        &self,
        source: &SnapshotName,
        target: &SnapshotName,
        how: How,
    ) -> Result<Relocated, DeleteError> {
        let mode = if how == How::Move { LockMode::Exclusive } else { LockMode::Shared };
        let guards = Guards {
            source: self.inner.locks().snapshot_waiting(source, mode).await?,
            target: self.inner.locks().snapshot_waiting(target, LockMode::Exclusive).await?,
        };
        let Some(found) = self.inner.catalog().listed_snapshot(source).await? else {
            if self.inner.manifests().exists(source).await? {
                let error = Error::new(ErrorKind::Unavailable, "list").on(source);
                return Err(error.because("its manifest is there, and listings do not show it").into());
            }
            return Ok(Relocated::Gone);
        };
        // An unreadable file would not be copied, and would be lost with the source.
        found.info.check_readable("relocate")?;
        let is_there = self.inner.manifests().exists(target).await?;
        if is_there {
            // Otherwise the snapshot that the source is given up for may still go.
            self.inner.check_no_pending_delete_of(target)?;
        }
        let files = self.files(&found, target).await?;
        let is_finished = found.manifest.is_some() || self.inner.manifests().exists(source).await?;
        match (is_finished, is_there, how) {
            (false, _, How::Copy) => Ok(Relocated::Unfinished),
            (false, false, How::Move) => self.remove_dead(&found.info, guards).await,
            (false, true, How::Move) => {
                let _relocating = self.record_moves(&files).await?;
                self.remove_remains(&found.info, target, &files, guards).await
            }
            (true, true, How::Copy) => {
                self.check_same(&found.info, target, &files).await?;
                Ok(Relocated::AlreadyThere)
            }
            (true, true, How::Move) => {
                let _relocating = self.record_moves(&files).await?;
                self.check_same(&found.info, target, &files).await?;
                self.protect_too(&found.info, target).await?;
                let manifest = self.inner.locks().manifest(source).await?;
                self.remove_source(&found.info, &files, guards, manifest).await.map(|()| Relocated::Moved)
            }
            (true, false, _) => {
                // The moves stay recorded until the source is gone.
                let _relocating = self.record_moves(&files).await?;
                let manifest = self.copied(&found.info, target, &files, &guards).await?;
                match how {
                    How::Copy => Ok(Relocated::Copied),
                    How::Move => self
                        .remove_source(&found.info, &files, guards, manifest)
                        .await
                        .map(|()| Relocated::Moved),
                }
            }
        }
    }

    /// Keys of the files of a snapshot at the source and the destination, without its manifest and its protection mark. Where listings
    /// may lag, it also looks up files that they do not show (H13), because a file that is not copied is lost.
    async fn files(&self, found: &Listed, target: &SnapshotName) -> Result<Vec<(Key, Key)>> {
        let source = &found.info.name;
        let mut sources = rest_of(&found.info);
        if !self.inner.backend.capabilities().consistent_listing {
            let mut wanted = vec![Key::ClientLog(source.clone())];
            match self.inner.manifests().read(source).await {
                Ok((manifest, _)) => {
                    let names = manifest.files().iter().map(|file| file.name.clone());
                    wanted.extend(names.map(|name| Key::Archive(source.clone(), name)));
                }
                // A damaged manifest names no files, and an unfinished snapshot has none.
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
            for key in wanted {
                if !sources.contains(&key) && self.inner.backend.has(&key).await? {
                    sources.push(key);
                }
            }
        }
        let moved = |key: Key| match &key {
            Key::Archive(_, name) => Some((key.clone(), Key::Archive(target.clone(), name.clone()))),
            Key::ClientLog(_) => Some((key, Key::ClientLog(target.clone()))),
            _ => None,
        };
        Ok(sources.into_iter().filter_map(moved).collect())
    }

    /// Records for collectors the keys at which indexes are about to appear (H8).
    async fn record_moves(&self, files: &[(Key, Key)]) -> Result<Relocating> {
        let indexes: Vec<_> = files.iter().map(|(_, to)| to).filter(|key| key.is_index()).cloned().collect();
        self.inner.chunks.reset_all_gc_candidates().await?;
        let relocating = self.inner.chunks.moves_in_progress().record_moves(&indexes);
        if !mutated!("move-outside-of-the-journal") {
            self.inner.backend.record_moves(&indexes).await?;
        }
        Ok(relocating)
    }

    /// Copies a finished snapshot. Returns the lock of the manifest at the source, which covers the copied version.
    async fn copied(
        &self,
        info: &SnapshotInfo,
        target: &SnapshotName,
        files: &[(Key, Key)],
        guards: &Guards,
    ) -> Result<Box<dyn LockGuard>, DeleteError> {
        for name in [&info.name, target] {
            if let Some(left) = self.inner.manifest_pending_for(name) {
                let error = Error::new(ErrorKind::Busy, "relocate").on(name).retry_in(left);
                return Err(error.because("its manifest may still arrive").into());
            }
        }
        self.inner.check_no_pending_delete_of(target)?;
        self.check_remains(files, target).await?;
        let mut written = Vec::new();
        match self.copy_all(info, target, files, guards, &mut written).await {
            Ok(manifest) => Ok(manifest),
            Err(Broken { may_clean, trouble }) => {
                if may_clean {
                    // Reports the first failure; leftovers are unfinished.
                    let _ = remove_written(self.inner, &written).await;
                }
                Err(trouble)
            }
        }
    }

    async fn copy_all(
        &self,
        info: &SnapshotInfo,
        target: &SnapshotName,
        files: &[(Key, Key)],
        guards: &Guards,
        written: &mut Vec<Written>,
    ) -> Result<Box<dyn LockGuard>, Broken> {
        let early = |trouble| Broken { may_clean: true, trouble };
        self.copy_files(files, written).await.map_err(|error| early(error.into()))?;
        let protected = self.protect_too(info, target).await.map_err(|error| early(error.into()))?;
        written.extend(protected);
        if !mutated!("move-manifest-before-files-are-durable") {
            self.inner.backend.barrier().await.map_err(|error| early(error.into()))?;
        }
        // From here on notes and verify states cannot change; a change would be lost with the source.
        let manifest = self.inner.locks().manifest(&info.name).await.map_err(|error| early(error.into()))?;
        let blob = self.inner.backend.get(&Key::Manifest(info.name.clone()), MANIFEST_BYTES).await;
        let blob = blob.map_err(|error| early(error.into()))?.bytes;
        self.still_ours(guards).await.map_err(early)?;
        self.publish_copy(target, blob).await?;
        self.inner
            .backend
            .barrier()
            .await
            .map_err(|error| Broken { may_clean: false, trouble: error.into() })?;
        Ok(manifest)
    }

    /// Copies files, and compares the copies.
    async fn copy_files(&self, files: &[(Key, Key)], written: &mut Vec<Written>) -> Result<()> {
        let copies: Vec<_> = files.iter().map(|(from, to)| self.copy_file(from, to).boxed()).collect();
        let mut copies = stream::iter(copies).buffer_unordered(COPIES_IN_FLIGHT);
        let mut outcome = Ok(());
        // Waits for all copies, even after a failure, so that the stored files can be removed.
        while let Some((stored, copied)) = copies.next().await {
            written.extend(stored);
            outcome = outcome.and(copied);
        }
        outcome
    }

    /// Copies a file; returns the stored object, and `true` if it is equal.
    async fn copy_file(&self, from: &Key, to: &Key) -> (Option<Written>, Result<()>) {
        let backend = &self.inner.backend;
        let stored = match backend.copy(from, to, backend.capabilities().create_mode()).await {
            Ok(version) => {
                if to.is_index() {
                    self.inner.note_published(to);
                }
                Some(Written { key: to.clone(), version })
            }
            // An equal leftover of an earlier attempt is kept.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
            Err(error) => return (None, Err(error)),
        };
        let same = match is_same(self.inner.uncached_backend().as_ref(), from, to).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let error = Error::new(ErrorKind::Conflict, "relocate").on(to);
                Err(error.because("what is there is not what was copied"))
            }
            Err(error) => Err(error),
        };
        (stored, same)
    }

    /// Stores the manifest at the destination.
    async fn publish_copy(&self, target: &SnapshotName, blob: Bytes) -> Result<(), Broken> {
        let Err(failed) = self.inner.put_manifest(target, blob).await else { return Ok(()) };
        Err(Broken { may_clean: failed.is_certain, trouble: failed.error.into() })
    }

    /// Protects the destination if the source is protected, before its manifest is stored (H47). Returns the stored object.
    async fn protect_too(&self, info: &SnapshotInfo, target: &SnapshotName) -> Result<Option<Written>> {
        mutated!("move-loses-protection" => return Ok(None));
        // Whatever the listing shows: it may lag.
        if !self.inner.backend.has(&Key::Protected(info.name.clone())).await? {
            return Ok(None);
        }
        let key = Key::Protected(target.clone());
        if self.inner.backend.has(&key).await? {
            return Ok(None);
        }
        self.inner.check_no_pending_delete(&key)?;
        let version = self.inner.backend.put(&key, Bytes::new(), PutMode::Replace).await?;
        self.inner.backend.barrier().await?;
        Ok(Some(Written { key, version }))
    }

    /// Removes the source of a move after the destination is complete, protected or not.
    async fn remove_source(
        &self,
        info: &SnapshotInfo,
        files: &[(Key, Key)],
        guards: Guards,
        manifest: Box<dyn LockGuard>,
    ) -> Result<(), DeleteError> {
        if let Some(left) = self.inner.manifest_pending_for(&info.name) {
            let error = Error::new(ErrorKind::Busy, "delete").on(&info.name).retry_in(left);
            return Err(error.because("its manifest may still arrive").into());
        }
        self.still_ours(&guards).await?;
        self.inner.deletions().delete_all(&[Key::Manifest(info.name.clone())]).await?;
        self.inner.backend.barrier().await?;
        manifest.release_deleted().await;
        self.remove_rest(info, files, guards).await
    }

    async fn remove_rest(
        &self,
        info: &SnapshotInfo,
        files: &[(Key, Key)],
        guards: Guards,
    ) -> Result<(), DeleteError> {
        let mut rest: Vec<_> = files.iter().map(|(from, _)| from.clone()).collect();
        // It may be protected although the lagging listing did not show it.
        rest.push(Key::Protected(info.name.clone()));
        self.inner.deletions().delete_all(&rest).await?;
        self.inner.backend.barrier().await?;
        guards.source.release_deleted().await;
        Ok(())
    }

    /// Removes leftovers of an interrupted move at the source. The destination is complete.
    async fn remove_remains(
        &self,
        info: &SnapshotInfo,
        target: &SnapshotName,
        files: &[(Key, Key)],
        guards: Guards,
    ) -> Result<Relocated, DeleteError> {
        if self.inner.manifest_pending_for(&info.name).is_some() {
            return Ok(Relocated::Unfinished);
        }
        for (from, to) in files {
            match is_same(self.inner.uncached_backend().as_ref(), from, to).await {
                Ok(true) => {}
                // It belongs to another writer.
                Ok(false) => return Ok(Relocated::Unfinished),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Relocated::Unfinished),
                Err(error) => return Err(error.into()),
            }
        }
        self.protect_too(info, target).await?;
        self.still_ours(&guards).await?;
        self.inner.deletions().delete_absent_manifest(&info.name).await?;
        self.remove_rest(info, files, guards).await.map(|()| Relocated::Moved)
    }

    /// Removes leftovers of an interrupted backup at the source of a move, if its writer is certainly dead.
    async fn remove_dead(&self, info: &SnapshotInfo, guards: Guards) -> Result<Relocated, DeleteError> {
        let alone = match self.inner.locks().store_alone().await {
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(Relocated::Unfinished),
            alone => alone?,
        };
        match self.inner.deletions().remove_unfinished(info, alone, guards.source).await? {
            DeleteOutcome::Gone | DeleteOutcome::Removed => Ok(Relocated::Gone),
            DeleteOutcome::Busy(_) | DeleteOutcome::Changed | DeleteOutcome::Protected => {
                Ok(Relocated::Unfinished)
            }
        }
    }

    /// Fails unless the unfinished snapshot at the destination is a part of the one being copied.
    async fn check_remains(&self, files: &[(Key, Key)], target: &SnapshotName) -> Result<()> {
        let Some(there) = self.inner.catalog().listed_snapshot(target).await? else { return Ok(()) };
        let other = |key: &Key, why: &'static str| {
            let error = Error::new(ErrorKind::Conflict, "relocate").on(key);
            Err(error.because(why))
        };
        for key in rest_of(&there.info) {
            let Some((from, to)) = files.iter().find(|(_, to)| *to == key) else {
                return other(&key, "an unfinished snapshot with other files is in the way");
            };
            // Without conditional creation it would be overwritten.
            match is_same(self.inner.uncached_backend().as_ref(), from, to).await {
                Ok(true) => {}
                Ok(false) => return other(&key, "what is there is not what was to be copied"),
                // The listing lags: the object is gone.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fails unless the finished snapshots at both places have the same files, and the same manifest except for notes and verify
    /// states (H52).
    async fn check_same(
        &self,
        info: &SnapshotInfo,
        target: &SnapshotName,
        files: &[(Key, Key)],
    ) -> Result<()> {
        mutated!("move-over-another-snapshot" => return Ok(()));
        let other = || Error::new(ErrorKind::Conflict, "relocate").on(&info.name);
        let ((ours, _), (theirs, _)) =
            future::try_join(self.inner.manifests().read(&info.name), self.inner.manifests().read(target))
                .await?;
        let key = |manifest: &crate::format::manifest::Manifest| manifest.key_fingerprint().ok();
        if ours.files() != theirs.files() || key(&ours) != key(&theirs) {
            return Err(other().because(format!("{target} is another snapshot")));
        }
        for (from, to) in files {
            match is_same(self.inner.uncached_backend().as_ref(), from, to).await {
                Ok(true) => {}
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => return Err(other().because(format!("{to} is missing or differs"))),
            }
        }
        Ok(())
    }

    /// Fails as lost unless both locks hold and this process still owns the store. A collector of another process needs no exclusion: it
    /// reads the move journal.
    async fn still_ours(&self, guards: &Guards) -> Result<(), DeleteError> {
        still_held(guards.source.as_ref()).await?;
        still_held(guards.target.as_ref()).await?;
        self.inner.deletions().still_owned().await
    }
}

/// Returns `true` if two objects have the same bytes.
async fn is_same(backend: &dyn Backend, one: &Key, other: &Key) -> Result<bool> {
    let (ours, theirs) = future::try_join(backend.head(one), backend.head(other)).await?;
    if ours.size != theirs.size {
        return Ok(false);
    }
    // Equal versions mean equal contents.
    if ours.version == theirs.version && !ours.version.as_str().is_empty() {
        return Ok(true);
    }
    let mut start = 0;
    while start < ours.size {
        let end = ours.size.min(start + COMPARED_BYTES);
        let ours = backend.get_range(one, start..end);
        let (ours, theirs) = future::try_join(ours, backend.get_range(other, start..end)).await?;
        if ours.bytes != theirs.bytes {
            return Ok(false);
        }
        start = end;
    }
    Ok(true)
}

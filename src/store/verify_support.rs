//! Access to the store for verification: uncached reads, and recording of results.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::backend::lock_wait::lock_store;
use crate::backend::{ListEntry, ListQuery, LockGuard, LockMode, LockScope, Unreadable, list_all};
use crate::chunks::{Examined, QuarantineOutcome};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::Blob;
use crate::format::index::IndexReader;
use crate::format::layout::{Key, Prefix};
use crate::format::manifest::MANIFEST_BYTES;
use crate::format::manifest::{Manifest, ManifestFile, VerifyState};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::catalog::list::{Listed, note, note_unreadable};
use crate::store::restore::snapshot::{BLOB_BYTES, INDEX_BYTES};
use crate::store::{Datastore, SnapshotInfo};

/// Use of local copies of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    Passed,
    Used,
}

impl Datastore {
    /// All snapshots below a prefix, unfinished ones among them, by one listing, the bytes of their manifests and logs, and what
    /// cannot be read in the place of groups and namespaces.
    pub(crate) async fn snapshots_below(
        &self,
        prefix: Prefix,
    ) -> Result<(BTreeMap<SnapshotName, SnapshotInfo>, u64, Vec<Unreadable>)> {
        let listing = list_all(self.backend().as_ref(), &ListQuery::all(prefix)).await?;
        let (mut snapshots, mut bytes, mut unreadable) = (BTreeMap::new(), 0, Vec::new());
        for entry in listing.into_entries() {
            match entry {
                ListEntry::Object(object) => {
                    if matches!(object.key, Key::ClientLog(_) | Key::Manifest(_)) {
                        bytes += object.size;
                    }
                    note(&mut snapshots, object);
                }
                ListEntry::Unreadable(entry) => unreadable.extend(note_unreadable(&mut snapshots, entry)),
                ListEntry::Foreign(_) | ListEntry::Name(_) | ListEntry::Prefix(_) => {}
            }
        }
        let snapshots = snapshots.into_iter().map(|(name, Listed { info, .. })| (name, info));
        Ok((snapshots.collect(), bytes, unreadable))
    }

    /// Number of chunks worth processing concurrently.
    pub(crate) fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    /// The stored form of a manifest, an index or a blob.
    pub(crate) async fn stored(&self, key: &Key, copies: Copies) -> Result<Bytes> {
        let limit = match key {
            Key::Manifest(_) => MANIFEST_BYTES,
            Key::Archive(_, name) if name.kind() != ArchiveKind::Blob => INDEX_BYTES,
            _ => BLOB_BYTES,
        };
        let backend = match copies {
            Copies::Passed => self.uncached_backend(),
            Copies::Used => self.backend(),
        };
        Ok(backend.get(key, limit).await?.bytes)
    }

    /// The manifest of a snapshot, from its stored form.
    pub(crate) async fn parse_manifest(&self, snapshot: &SnapshotName, stored: Bytes) -> Result<Manifest> {
        self.inner.parse_manifest(snapshot, stored).await
    }

    /// An index from its bytes, checked against its entry in the manifest.
    pub(crate) async fn parse_index(
        &self,
        key: &Key,
        file: &ManifestFile,
        stored: Bytes,
    ) -> Result<IndexReader> {
        self.inner.parse_index(key, file, stored).await
    }

    /// Checks a blob against its entry in the manifest, or without one only by itself.
    pub(crate) async fn check_blob(
        &self,
        key: &Key,
        file: Option<&ManifestFile>,
        stored: Bytes,
    ) -> Result<()> {
        let wanted = file.map(|file| (file.size(), file.checksum()));
        let bytes = stored.clone();
        let check = move || {
            let corrupt = || Error::new(ErrorKind::Corrupt, "check blob");
            if wanted.is_some_and(|wanted| wanted != (bytes.len() as u64, Digest::of(&bytes))) {
                return Err(corrupt().because("it is not the one in the manifest"));
            }
            let blob = Blob::parse(bytes).map_err(|error| corrupt().because(error))?;
            blob.check_crc().map_err(|error| corrupt().because(error))?;
            Ok(blob.kind().is_encrypted())
        };
        let is_encrypted =
            self.runtime().run_blocking("check blob", check).await.map_err(|error| error.on(key))?;
        if !is_encrypted {
            let limit = usize::try_from(BLOB_BYTES).unwrap_or(usize::MAX);
            self.inner.chunks.decode_blob(stored, limit).await.map_err(|error| error.on(key))?;
        }
        Ok(())
    }

    /// Locks a snapshot against deletion.
    pub(crate) async fn lock_to_read(&self, snapshot: &SnapshotName) -> Result<Box<dyn LockGuard>> {
        self.inner.backend.lock(&LockScope::Snapshot(snapshot.clone()), LockMode::Shared).await
    }

    /// Writes down what a verification found.
    pub(crate) async fn record_verification(
        &self,
        snapshot: &SnapshotName,
        state: &VerifyState,
    ) -> Result<()> {
        self.update_manifest(snapshot, |manifest| manifest.set_verify_state(Some(state))).await
    }

    /// Prepares quarantine and reinstatement: takes the lock of the store, and begins a lease term with open presence records (H16).
    pub(crate) async fn lock_to_repair(&self) -> Result<Box<dyn LockGuard>> {
        let inner = &self.inner;
        let guard = lock_store(inner.backend.as_ref(), LockMode::Shared).await?;
        let uuid = self.uuid().ok_or_else(|| Error::new(ErrorKind::Internal, "repair chunks"))?;
        inner.chunks.begin_repairs(uuid).await?;
        Ok(guard)
    }

    /// Quarantines a corrupt chunk. Completes even if the caller is dropped.
    pub(crate) async fn quarantine(&self, digest: Digest, length: u64) -> QuarantineOutcome {
        let store = self.clone();
        let work = async move {
            let guard = store.lock_to_repair().await?;
            Ok(store.inner.chunks.quarantine(guard.as_ref(), digest, length).await)
        };
        self.runtime()
            .run_detached("quarantine a chunk", work)
            .await
            .unwrap_or_else(QuarantineOutcome::Failed)
    }

    /// Reinstates a missing chunk, if a quarantined copy is good.
    pub(crate) async fn reinstate(&self, digest: Digest, length: u64) -> Result<Option<Examined>> {
        if !self.inner.chunks.has_quarantined(digest).await? {
            return Ok(None);
        }
        let guard = self.lock_to_repair().await?;
        self.inner.chunks.reinstate(guard.as_ref(), digest, length).await
    }

    /// Makes missing chunks suspects until they are stored again.
    pub(crate) async fn suspect_missing(&self, digests: &[Digest]) -> Result<()> {
        // Where presence is cheap, writers see that they are missing.
        if digests.is_empty() || self.inner.backend.capabilities().cheap_presence {
            return Ok(());
        }
        let _guard = self.lock_to_repair().await?;
        self.inner.chunks.suspect(digests).await
    }

    /// Takes those off the list of suspects that need not be there any more.
    pub(crate) async fn settle_suspects(&self) -> Result<()> {
        let cleared = self.inner.chunks.cleared_suspects();
        if cleared.is_empty() {
            return Ok(());
        }
        let _held = lock_store(self.inner.backend.as_ref(), LockMode::Shared).await?;
        self.inner.backend.barrier().await?;
        self.inner.chunks.unlist_suspects(&cleared).await
    }
}

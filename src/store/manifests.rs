//! Manifests of snapshots: read, checked, encoded and updated.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::put_verified::PutError;
use crate::backend::{Object, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::manifest::{MANIFEST_BYTES, Manifest, VerifyResult, VerifyState};
use crate::format::name::SnapshotName;
use crate::store::StoreInner;

/// A manifest with its stored bytes.
#[derive(Clone, Debug)]
pub(crate) struct StoredManifest {
    pub(crate) bytes: Bytes,
    pub(crate) manifest: Manifest,
    pub(crate) version: Version,
}

/// Manifests of snapshots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manifests<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Manifests of the store.
    pub(crate) fn manifests(self: &Arc<Self>) -> Manifests<'_> {
        Manifests { inner: self }
    }
}

impl Manifests<'_> {
    /// Reads the manifest of a snapshot.
    pub(crate) async fn read(&self, snapshot: &SnapshotName) -> Result<(Manifest, Version)> {
        let object = self.object(snapshot).await?;
        let version = object.info.version;
        Ok((self.parse(snapshot, object.bytes).await?, version))
    }

    /// Reads the stored bytes of a manifest.
    pub(crate) async fn object(&self, snapshot: &SnapshotName) -> Result<Object> {
        self.inner.backend.get(&Key::Manifest(snapshot.clone()), MANIFEST_BYTES).await
    }

    /// Reads the manifest of a snapshot, and keeps its stored bytes.
    pub(crate) async fn stored(&self, name: &SnapshotName) -> Result<StoredManifest> {
        let object = self.object(name).await?;
        let (bytes, version) = (object.bytes.clone(), object.info.version.clone());
        Ok(StoredManifest { bytes, manifest: self.parse(name, object.bytes).await?, version })
    }

    /// Parses the stored bytes of a manifest.
    pub(crate) async fn parse(&self, snapshot: &SnapshotName, stored: Bytes) -> Result<Manifest> {
        let key = Key::Manifest(snapshot.clone());
        let limit = usize::try_from(MANIFEST_BYTES).unwrap_or(usize::MAX);
        let json =
            self.inner.chunks.decode_blob(stored, limit, None).await.map_err(|error| error.on(&key))?;
        let corrupt = || Error::new(ErrorKind::Corrupt, "read").on(&key);
        let manifest = Manifest::parse(&json).map_err(|error| corrupt().because(error))?;
        let group = snapshot.group();
        let same = manifest.backup_type() == group.backup_type()
            && manifest.id() == group.id()
            && manifest.time() == snapshot.time();
        if same || mutated!("manifest-of-another-snapshot") {
            Ok(manifest)
        } else {
            Err(corrupt().because("it is of another snapshot"))
        }
    }

    /// The stored form of a manifest, if it is within the limit for reading.
    pub(crate) async fn encode(&self, manifest: &Manifest) -> Result<Bytes> {
        let json = Bytes::from(manifest.to_json());
        let fits = |bytes: &Bytes| bytes.len() as u64 <= MANIFEST_BYTES;
        let blob = if fits(&json) { Some(self.inner.chunks.encode(&json, None).await?) } else { None };
        blob.filter(fits).ok_or_else(|| {
            let error = Error::new(ErrorKind::InvalidInput, "store the manifest");
            error.because("it is longer than 16 MiB")
        })
    }

    /// Updates a manifest under its lock.
    pub(crate) async fn update(
        &self,
        snapshot: &SnapshotName,
        change: impl FnOnce(&mut Manifest) + Send,
    ) -> Result<()> {
        self.inner.check_writable("change a manifest").await?;
        let _held = self.inner.locks().manifest(snapshot).await?;
        let (mut manifest, version) = self.read(snapshot).await?;
        change(&mut manifest);
        let blob = self.encode(&manifest).await.map_err(|error| error.on(snapshot))?;
        let mode = self.inner.instead_of(Some(version));
        self.inner.replace_manifest(snapshot, blob, mode).await.map_err(PutError::into_error)?;
        self.inner.backend.barrier().await
    }

    /// Returns `true` if a snapshot is finished: asks for its manifest, because a listing may lag.
    pub(crate) async fn exists(&self, name: &SnapshotName) -> Result<bool> {
        self.inner.backend.has(&Key::Manifest(name.clone())).await
    }

    /// Returns `true` if a name that a listing showed as free belongs to a finished snapshot, which puts would replace. Where the backend
    /// stores on conditions, they fail instead.
    pub(crate) async fn is_taken(&self, name: &SnapshotName) -> Result<bool> {
        mutated!("listed-as-free-is-free" => return Ok(false));
        let capabilities = self.inner.backend.capabilities();
        let may_be = !capabilities.consistent_listing && !capabilities.conditional_put;
        Ok(may_be && self.exists(name).await?)
    }

    /// Records the result of a verification.
    pub(crate) async fn record_verification(
        &self,
        snapshot: &SnapshotName,
        state: &VerifyState,
    ) -> Result<()> {
        self.update(snapshot, |manifest| manifest.set_verify_state(Some(state))).await
    }
}

/// Returns `true` if a verification found the snapshot damaged. An unreadable state counts as damaged, as in PBS.
pub(crate) fn has_failed_verification(manifest: &Manifest) -> bool {
    mutated!("base-that-failed-verification" => return false);
    match manifest.verify_state() {
        Ok(state) => state.is_some_and(|state| state.state == VerifyResult::Failed),
        Err(_) => true,
    }
}

/// Returns `true` if the error is about the object itself: it is bad or absent, and not unreachable.
pub(crate) fn is_of_the_object(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::KeyRequired | ErrorKind::NotFound)
}

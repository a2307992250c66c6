//! What is read of a store that snapshots are taken from, in the form in which it is stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{LockGuard, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::Blob;
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::manifest::{Manifest, ManifestFile};
use crate::format::name::SnapshotName;
use crate::rt::semaphore::Permit;
use crate::store::Datastore;
use crate::store::identity::Identity;
use crate::store::restore::snapshot::BLOB_BYTES;

/// A manifest as it is stored, and what it says.
#[derive(Clone, Debug)]
pub(crate) struct StoredManifest {
    pub(crate) bytes: Bytes,
    pub(crate) manifest: Manifest,
    pub(crate) version: Version,
}

/// Something that is locked.
pub(crate) type Held = Arc<dyn LockGuard>;

impl Datastore {
    /// Reads the manifest of a snapshot.
    pub(crate) async fn stored_manifest(&self, name: &SnapshotName) -> Result<StoredManifest> {
        let object = self.inner.stored_manifest(name).await?;
        let (bytes, version) = (object.bytes.clone(), object.info.version.clone());
        Ok(StoredManifest { bytes, manifest: self.inner.parse_manifest(name, object.bytes).await?, version })
    }

    /// Reads an index, checked against the manifest (H39).
    pub(crate) async fn stored_index(
        &self,
        name: &SnapshotName,
        file: &ManifestFile,
    ) -> Result<(Bytes, IndexReader)> {
        self.inner.stored_index(name, file).await
    }

    /// Reads a blob, checked against the manifest (H39).
    pub(crate) async fn stored_blob(&self, name: &SnapshotName, file: &ManifestFile) -> Result<Bytes> {
        let bytes = self.inner.stored_blob(name, file).await?;
        self.checked_blob(Key::Archive(name.clone(), file.name().clone()), bytes).await
    }

    /// Reads the client log, checked against its own checksum.
    pub(crate) async fn stored_client_log(&self, name: &SnapshotName) -> Result<Option<Bytes>> {
        let key = Key::ClientLog(name.clone());
        match self.inner.backend.get(&key, BLOB_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            object => self.checked_blob(key, object?.bytes).await.map(Some),
        }
    }

    async fn checked_blob(&self, key: Key, bytes: Bytes) -> Result<Bytes> {
        let check = move || {
            let checked = Blob::parse(bytes).and_then(|blob| blob.check_crc().map(|()| blob.into_bytes()));
            checked.map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(key).because(error))
        };
        self.inner.runtime().run_blocking("check blob", check).await
    }

    /// Locks a snapshot against deletion.
    pub(crate) async fn hold(&self, name: &SnapshotName) -> Result<Held> {
        Ok(Arc::from(self.lock_to_read(name).await?))
    }

    /// Whether a snapshot is finished, by a look at its manifest and not by a listing.
    pub(crate) async fn has_manifest(&self, name: &SnapshotName) -> Result<bool> {
        self.inner.backend.has(&Key::Manifest(name.clone())).await
    }

    /// The identity of the store as it is now: somebody else may have given it one.
    pub(crate) async fn current_uuid(&self) -> Result<Option<String>> {
        if let Some(uuid) = self.uuid() {
            return Ok(Some(uuid.to_owned()));
        }
        let identity = Identity::read(self.inner.backend.as_ref()).await?;
        Ok(identity.map(|identity| identity.uuid))
    }

    /// Whether both are one opening of a store.
    pub(crate) fn is_same_opening(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The right to hold so many bytes that were read.
    pub(crate) async fn read_permit(&self, bytes: u64) -> Permit {
        self.inner.restore_budget.acquire(usize::try_from(bytes).unwrap_or(usize::MAX)).await
    }

    /// The right to hold so many bytes that are to be stored. Whoever waits for it may hold one to read; never the other way
    /// round, so that nobody waits in a circle.
    pub(crate) async fn write_permit(&self, bytes: u64) -> Permit {
        self.inner.budget.acquire(usize::try_from(bytes).unwrap_or(usize::MAX)).await
    }
}

/// Whether the error says that the object is bad, and not that it could not be reached.
pub(crate) fn is_of_the_object(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported)
}

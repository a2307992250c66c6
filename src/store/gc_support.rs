//! Access to the store for garbage collection, verification, pruning and sync.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{Backend, Deleted, ObjectInfo, Orphan, PutMode, Removal};
use crate::chunks::ChunkStore;
use crate::error::{Error, ErrorKind, Result};
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::manifest::ManifestFile;
use crate::format::name::ArchiveKind;
use crate::rt::Runtime;
use crate::rt::semaphore::Permit;
use crate::store::Datastore;
use crate::store::restore::snapshot::INDEX_BYTES;

/// An index that was read and checked, and the memory that it takes.
#[derive(Debug)]
pub(crate) struct CheckedIndex {
    pub(crate) index: IndexReader,
    /// Given back when the index is dropped.
    #[expect(dead_code, reason = "held, not asked")]
    permit: Permit,
}

impl Datastore {
    /// The backend, with copies of metadata in front of it if there is local state.
    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// The gate for chunks.
    pub(crate) fn chunks(&self) -> &ChunkStore {
        &self.inner.chunks
    }

    /// Refuses to change a store that needs what this version does not know (H92), and gives it an identity if it has none.
    pub(crate) async fn check_writable(&self, action: &'static str) -> Result<()> {
        self.inner.check_writable(action).await
    }

    /// Writes a state that can be made again. On a full store the old one is removed first to make room.
    ///
    /// # Errors
    /// `Full` if there is no room for it then, either.
    pub(crate) async fn put_state(backend: &dyn Backend, key: Key, bytes: Bytes) -> Result<()> {
        let full = match backend.put(&key, bytes.clone(), PutMode::Replace).await {
            Err(error) if error.kind() == ErrorKind::Full => error,
            put => return put.map(drop),
        };
        match backend.delete(&[Removal::any(key.clone())]).await?.pop() {
            // A second request may delete the new one too.
            Some(Ok(Deleted::InDoubt)) | None => Err(full),
            Some(deleted) => {
                deleted?;
                backend.put(&key, bytes, PutMode::Replace).await.map(drop)
            }
        }
    }

    /// As [`check_writable`](Datastore::check_writable), for what only removes. A full store need not be given an identity.
    pub(crate) async fn check_deletable(&self, action: &'static str) -> Result<()> {
        match self.inner.check_writable(action).await {
            // One without an identity needs no feature.
            Err(error) if error.kind() == ErrorKind::Full => Ok(()),
            checked => checked,
        }
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    /// The backend itself: what it says comes from no copy (H10).
    pub(crate) fn uncached_backend(&self) -> &Arc<dyn Backend> {
        match &self.inner.local {
            Some(local) => local.metadata_cache.uncached_backend(),
            None => &self.inner.backend,
        }
    }

    /// Indexes that this process stored recently, which a listing may not show yet.
    pub(crate) fn published(&self) -> Vec<Key> {
        self.inner.published()
    }

    /// Reads an index that a listing of the backend itself just showed, from the copy of that version if there is one. It is what
    /// its header or the manifest says; of an unfinished snapshot, what its header says (H171).
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is no valid index (H9).
    pub(crate) async fn checked_index(&self, info: &ObjectInfo) -> Result<CheckedIndex> {
        let Key::Archive(snapshot, name) = &info.key else {
            return Err(Error::new(ErrorKind::InvalidInput, "read index").on(&info.key));
        };
        let permit = self.read_permit(info.size).await;
        let copy = match &self.inner.local {
            Some(local) => local.metadata_cache.copy_of_version(info).await?,
            None => None,
        };
        let bytes = match copy {
            Some(bytes) => bytes,
            None => self.uncached_backend().get(&info.key, INDEX_BYTES).await?.bytes,
        };
        let index = self.inner.any_index(name.kind(), bytes).await.map_err(|error| error.on(&info.key))?;
        if index.checksum() != index.header().checksum {
            let (manifest, _) = self.inner.manifest(snapshot).await?;
            if manifest.file(name).map(ManifestFile::checksum) != Some(index.checksum()) {
                let error = Error::new(ErrorKind::Corrupt, "read index").on(&info.key);
                return Err(error.because("its checksum fits neither its header nor the manifest"));
            }
        }
        Ok(CheckedIndex { index, permit })
    }

    /// Reads an index that lies where no key says.
    ///
    /// # Errors
    /// As [`checked_index`](Datastore::checked_index).
    pub(crate) async fn orphan_index(&self, orphan: &Orphan) -> Result<CheckedIndex> {
        let kind = if orphan.path.to_ascii_lowercase().ends_with(".fidx") {
            ArchiveKind::Fixed
        } else {
            ArchiveKind::Dynamic
        };
        let bytes = self.uncached_backend().get_orphan(orphan, INDEX_BYTES).await?;
        let permit = self.read_permit(bytes.len() as u64).await;
        let index = self.inner.any_index(kind, bytes).await.map_err(|error| error.on(&orphan.path))?;
        if index.checksum() != index.header().checksum {
            let error = Error::new(ErrorKind::Corrupt, "read index").on(&orphan.path);
            return Err(error.because("its checksum does not fit its header"));
        }
        Ok(CheckedIndex { index, permit })
    }
}

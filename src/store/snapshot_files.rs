//! Indexes, blobs and client logs of snapshots, checked as they are read.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{ObjectInfo, Orphan};
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::Blob;
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::manifest::{MANIFEST_BYTES, ManifestFile};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::rt::semaphore::Permit;
use crate::store::StoreInner;

/// Maximum bytes of an index: enough for 400 million chunks.
pub(in crate::store) const INDEX_BYTES: u64 = 16 << 30;

/// Maximum bytes of a stored blob, and of its contents.
pub(in crate::store) const BLOB_BYTES: u64 = 128 << 20;

/// A checked index, with its share of the memory budget.
#[derive(Debug)]
pub(crate) struct CheckedIndex {
    pub(crate) index: IndexReader,
    /// Released when the index is dropped.
    #[expect(dead_code, reason = "held, not asked")]
    permit: Permit,
}

/// Use of local copies of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Reads from the uncached backend.
    Bypass,
    /// Reads a local copy of the current version, if there is one.
    Use,
}

/// Indexes, blobs and client logs of snapshots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotFiles<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Files of the snapshots of the store.
    pub(crate) fn snapshot_files(self: &Arc<Self>) -> SnapshotFiles<'_> {
        SnapshotFiles { inner: self }
    }
}

impl SnapshotFiles<'_> {
    /// Reads an index and checks it against its entry in the manifest.
    pub(crate) async fn index(&self, snapshot: &SnapshotName, file: &ManifestFile) -> Result<IndexReader> {
        self.stored_index(snapshot, file).await.map(|(_, index)| index)
    }

    /// Reads an index as [`index`](SnapshotFiles::index) does, and returns its stored bytes too.
    pub(crate) async fn stored_index(
        &self,
        snapshot: &SnapshotName,
        file: &ManifestFile,
    ) -> Result<(Bytes, IndexReader)> {
        let key = Key::Archive(snapshot.clone(), file.name.clone());
        let object = self.inner.backend.get(&key, INDEX_BYTES).await.map_err(|error| lost(error, &key))?;
        let index = self.parse_index(&key, file, object.bytes.clone()).await?;
        Ok((object.bytes, index))
    }

    /// Parses an index, without a manifest.
    pub(crate) async fn any_index(&self, kind: ArchiveKind, stored: Bytes) -> Result<IndexReader> {
        let parse = move || {
            let parsed = IndexReader::parse(kind, stored);
            parsed.map_err(|error| Error::new(ErrorKind::Corrupt, "read index").because(error))
        };
        self.inner.runtime().run_blocking("read index", parse).await
    }

    /// Parses an index and checks it against its entry in the manifest.
    pub(crate) async fn parse_index(
        &self,
        key: &Key,
        file: &ManifestFile,
        stored: Bytes,
    ) -> Result<IndexReader> {
        let index = self.any_index(file.name.kind(), stored).await.map_err(|error| error.on(key))?;
        let is_it = index.checksum() == file.checksum && index.size() == file.size;
        if !is_it && !mutated!("index-is-not-that-of-the-manifest") {
            let error = Error::new(ErrorKind::Corrupt, "read").on(key);
            return Err(error.because("it is not the one in the manifest"));
        }
        Ok(index)
    }

    /// Reads the stored bytes of a blob and checks them against its entry in the manifest.
    pub(crate) async fn blob_of_manifest(
        &self,
        snapshot: &SnapshotName,
        file: &ManifestFile,
    ) -> Result<Bytes> {
        self.checked_blob(snapshot, file, |_| Ok(())).await
    }

    /// Reads the stored bytes of a blob and checks them against the manifest and its own checksum (H39).
    pub(crate) async fn stored_blob(&self, snapshot: &SnapshotName, file: &ManifestFile) -> Result<Bytes> {
        self.checked_blob(snapshot, file, |bytes| check_crc("read", bytes).map(drop)).await
    }

    /// Reads the client log, checked against its own checksum.
    pub(crate) async fn client_log(&self, name: &SnapshotName) -> Result<Option<Bytes>> {
        let key = Key::ClientLog(name.clone());
        let bytes = match self.inner.backend.get(&key, BLOB_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            object => object?.bytes,
        };
        let stored = bytes.clone();
        let check = move || check_crc("read", stored).map(drop);
        self.inner.runtime().run_blocking("check blob", check).await.map_err(|error| error.on(key))?;
        Ok(Some(bytes))
    }

    /// Checks a blob against its entry in the manifest, or without one only by itself.
    pub(crate) async fn check_blob(
        &self,
        key: &Key,
        file: Option<&ManifestFile>,
        stored: Bytes,
        decrypting: Option<&EncryptionKey>,
    ) -> Result<()> {
        let wanted = file.map(entry_of);
        let bytes = stored.clone();
        let check = move || {
            if let Some(wanted) = wanted {
                check_entry("check blob", &bytes, wanted)?;
            }
            Ok(check_crc("check blob", bytes)?.kind().is_encrypted())
        };
        let is_encrypted =
            self.inner.runtime().run_blocking("check blob", check).await.map_err(|error| error.on(key))?;
        // Without the key, the checksum of an encrypted blob is all that can be verified.
        if !is_encrypted || decrypting.is_some() {
            self.decode_either(stored, decrypting).await.map_err(|error| error.on(key))?;
        }
        Ok(())
    }

    /// Decodes a stored blob. With a key it must be encrypted, without one it must be plain.
    pub(crate) async fn decode(&self, stored: Bytes, key: Option<&EncryptionKey>) -> Result<Bytes> {
        let limit = usize::try_from(BLOB_BYTES).unwrap_or(usize::MAX);
        self.inner.chunks.decode_blob(stored, limit, key).await
    }

    /// Decodes a stored blob that may be plain although there is a key, such as a client log, whose mode no manifest says.
    pub(crate) async fn decode_either(&self, stored: Bytes, key: Option<&EncryptionKey>) -> Result<Bytes> {
        let is_encrypted = Blob::parse(stored.clone()).is_ok_and(|blob| blob.kind().is_encrypted());
        self.decode(stored, key.filter(|_| is_encrypted)).await
    }

    /// Reads the stored bytes of a blob. Checks them against its entry in the manifest, and then further.
    async fn checked_blob(
        &self,
        snapshot: &SnapshotName,
        file: &ManifestFile,
        further: impl FnOnce(Bytes) -> Result<()> + Send + 'static,
    ) -> Result<Bytes> {
        let key = Key::Archive(snapshot.clone(), file.name.clone());
        let object = self.inner.backend.get(&key, BLOB_BYTES).await.map_err(|error| lost(error, &key))?;
        let (bytes, wanted) = (object.bytes.clone(), entry_of(file));
        let check = move || {
            check_entry("read", &bytes, wanted)?;
            further(bytes)
        };
        self.inner.runtime().run_blocking("check blob", check).await.map_err(|error| error.on(key))?;
        Ok(object.bytes)
    }

    /// Reads the stored bytes of a manifest, an index or a blob.
    pub(crate) async fn read(&self, key: &Key, copies: Copies) -> Result<Bytes> {
        let limit = match key {
            Key::Manifest(_) => MANIFEST_BYTES,
            key if key.is_index() => INDEX_BYTES,
            _ => BLOB_BYTES,
        };
        let backend = match copies {
            Copies::Bypass => self.inner.uncached_backend(),
            Copies::Use => self.inner.backend(),
        };
        Ok(backend.get(key, limit).await?.bytes)
    }

    /// Reads an index that an uncached listing just showed, or its local copy of the listed version. Checks it against its
    /// header or, failing that, the manifest (H171).
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is no valid index (H9).
    pub(crate) async fn checked_index(&self, info: &ObjectInfo) -> Result<CheckedIndex> {
        let Key::Archive(snapshot, name) = &info.key else {
            return Err(Error::new(ErrorKind::InvalidInput, "read index").on(&info.key));
        };
        let permit = self.inner.read_permit(info.size).await;
        let copy = match &self.inner.local {
            Some(local) => local.metadata_cache.copy_of_version(info).await?,
            None => None,
        };
        let bytes = match copy {
            Some(bytes) => bytes,
            None => self.inner.uncached_backend().get(&info.key, INDEX_BYTES).await?.bytes,
        };
        let index = self.any_index(name.kind(), bytes).await.map_err(|error| error.on(&info.key))?;
        if index.checksum() != index.header().checksum {
            let (manifest, _) = self.inner.manifests().read(snapshot).await?;
            if manifest.file(name).map(|file| file.checksum) != Some(index.checksum()) {
                let error = Error::new(ErrorKind::Corrupt, "read index").on(&info.key);
                return Err(error.because("its checksum fits neither its header nor the manifest"));
            }
        }
        Ok(CheckedIndex { index, permit })
    }

    /// Reads an orphan index, which no key names.
    ///
    /// # Errors
    /// As [`checked_index`](SnapshotFiles::checked_index).
    pub(crate) async fn orphan_index(&self, orphan: &Orphan) -> Result<CheckedIndex> {
        let kind = if orphan.path.to_ascii_lowercase().ends_with(".fidx") {
            ArchiveKind::Fixed
        } else {
            ArchiveKind::Dynamic
        };
        let bytes = self.inner.uncached_backend().get_orphan(orphan, INDEX_BYTES).await?;
        let permit = self.inner.read_permit(bytes.len() as u64).await;
        let index = self.any_index(kind, bytes).await.map_err(|error| error.on(&orphan.path))?;
        if index.checksum() != index.header().checksum {
            let error = Error::new(ErrorKind::Corrupt, "read index").on(&orphan.path);
            return Err(error.because("its checksum does not fit its header"));
        }
        Ok(CheckedIndex { index, permit })
    }
}

/// Size and checksum of a file in the manifest.
fn entry_of(file: &ManifestFile) -> (u64, Digest) {
    (file.size, file.checksum)
}

/// Fails with `Corrupt` unless the stored bytes of a blob have the size and checksum in the manifest.
fn check_entry(action: &'static str, bytes: &Bytes, wanted: (u64, Digest)) -> Result<()> {
    if wanted == (bytes.len() as u64, Digest::of(bytes)) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, action).because("it is not the one in the manifest"))
}

/// Parses a stored blob. Fails with `Corrupt` unless its own checksum is correct.
fn check_crc(action: &'static str, stored: Bytes) -> Result<Blob> {
    let checked = Blob::parse(stored).and_then(|blob| blob.check_crc().map(|()| blob));
    checked.map_err(|error| Error::new(ErrorKind::Corrupt, action).because(error))
}

/// Turns `NotFound` for a file in the manifest into `Corrupt`: `NotFound` is for names that callers give.
fn lost(error: Error, key: &Key) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::Corrupt, "read").on(key).because(error),
        _ => error,
    }
}

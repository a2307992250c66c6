//! A finished snapshot, opened for reading.

use std::sync::Arc;

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::{LockGuard, LockMode, LockScope, Object, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::manifest::MANIFEST_BYTES;
use crate::format::manifest::{CryptMode, Manifest, ManifestFile, VerifyResult};
use crate::format::name::{ArchiveKind, ArchiveName, SnapshotName};
use crate::store::{ArchiveReader, Datastore, StoreInner};

/// Maximum bytes of an index: enough for 400 million chunks.
pub(in crate::store) const INDEX_BYTES: u64 = 16 << 30;

/// Maximum bytes of a stored blob, and of its contents.
pub(in crate::store) const BLOB_BYTES: u64 = 128 << 20;

/// A finished snapshot with a valid manifest.
///
/// It is locked against deletion until its last reader and archive are dropped. A snapshot
/// from [`finish`](crate::store::SnapshotWriter::finish) is locked when its first archive is opened.
#[derive(Debug)]
pub struct SnapshotReader {
    lock: AsyncMutex<Option<Arc<dyn LockGuard>>>,
    manifest: Manifest,
    name: SnapshotName,
    store: Datastore,
}

impl Datastore {
    /// Opens a finished snapshot.
    ///
    /// # Errors
    /// `NotFound` if it does not exist or is unfinished; `Busy` while it is being deleted; `Corrupt` if its manifest cannot be
    /// read, or belongs to another snapshot.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotReader> {
        // The manifest first: locking a missing snapshot would leave a lock file.
        self.inner.manifest(name).await?;
        let lock = self.inner.backend.lock(&LockScope::Snapshot(name.clone()), LockMode::Shared).await?;
        let (manifest, _) = self.inner.manifest(name).await?;
        let lock = AsyncMutex::new(Some(Arc::from(lock)));
        Ok(SnapshotReader { lock, manifest, name: name.clone(), store: self.clone() })
    }
}

impl SnapshotReader {
    pub(in crate::store) fn published(store: Datastore, name: SnapshotName, manifest: Manifest) -> Self {
        Self { lock: AsyncMutex::new(None), manifest, name, store }
    }

    /// Returns `true` if other processes cannot delete the snapshot while the reader exists. It is `false` in a bucket, and in a read-only
    /// directory if the snapshot has no lock file: a deletion then makes the restore fail.
    ///
    /// # Errors
    /// `Busy` if the snapshot is being deleted.
    pub async fn is_locked(&self) -> Result<bool> {
        Ok(self.hold().await?.keeps_processes_out())
    }

    pub(in crate::store) fn store(&self) -> &Datastore {
        &self.store
    }

    /// Name of the snapshot.
    pub fn name(&self) -> &SnapshotName {
        &self.name
    }

    /// Manifest of the snapshot, as of its opening.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Opens an archive by the name that the writer was given, such as `disk.img`, or by its full name, such as `disk.img.fidx`. Reads
    /// the whole index and checks it against the manifest; chunks are read on demand.
    ///
    /// # Errors
    /// `NotFound` if the manifest has no such archive; `Corrupt` if the index is missing or not the one in the manifest;
    /// `InvalidInput` for a blob, which [`blob`](SnapshotReader::blob) reads, and for a short name that two archives share;
    /// `Unsupported` if the archive is encrypted.
    pub async fn archive(&self, name: &str) -> Result<ArchiveReader> {
        let (name, file) = self.file(name, &[ArchiveKind::Fixed, ArchiveKind::Dynamic])?;
        if name.kind() == ArchiveKind::Blob {
            let error = Error::new(ErrorKind::InvalidInput, "open archive").on(&name);
            return Err(error.because("a blob is read whole, with `blob`"));
        }
        refuse_encrypted(file)?;
        let lock = self.hold().await?;
        let index = self.store.inner.index(&self.name, file).await?;
        ArchiveReader::new(self.store.clone(), self.name.clone(), name, index, lock).await
    }

    /// Reads a blob by the name that the writer was given, such as `app.conf`, or by its full name, such as `app.conf.blob`. Checks it
    /// against the manifest.
    ///
    /// # Errors
    /// As for [`archive`](SnapshotReader::archive).
    pub async fn blob(&self, name: &str) -> Result<Bytes> {
        let (name, file) = self.file(name, &[ArchiveKind::Blob])?;
        if name.kind() != ArchiveKind::Blob {
            let error = Error::new(ErrorKind::InvalidInput, "read blob").on(&name);
            return Err(error.because("an archive of chunks is opened, with `archive`"));
        }
        // Not by its mode: PBS stores the encrypted key of a backup plain, with another mode in the manifest.
        let _lock = self.hold().await?;
        let stored = self.store.inner.stored_blob(&self.name, file).await?;
        let limit = usize::try_from(BLOB_BYTES).unwrap_or(usize::MAX);
        let blob = self.store.inner.chunks.decode_blob(stored, limit).await;
        blob.map_err(|error| error.on(Key::Archive(self.name.clone(), name)))
    }

    /// Reads the client log; `None` if there is none. Only its own checksum protects it.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` if it is encrypted.
    pub async fn client_log(&self) -> Result<Option<Bytes>> {
        let _lock = self.hold().await?;
        let key = Key::ClientLog(self.name.clone());
        let object = match self.store.inner.backend.get(&key, BLOB_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            object => object?,
        };
        let limit = usize::try_from(BLOB_BYTES).unwrap_or(usize::MAX);
        let log = self.store.inner.chunks.decode_blob(object.bytes, limit).await;
        log.map(Some).map_err(|error| error.on(key))
    }

    /// Finds an archive of one of these kinds by its full name, or by the name without suffix that the writer was given.
    fn file(&self, name: &str, kinds: &[ArchiveKind]) -> Result<(ArchiveName, &ManifestFile)> {
        if let Ok(full) = name.parse::<ArchiveName>()
            && let Some(file) = self.manifest.file(&full)
        {
            return Ok((full, file));
        }
        let with_suffix = kinds.iter().filter_map(|kind| ArchiveName::with_kind(name, *kind).ok());
        let mut found = with_suffix.filter_map(|full| Some((self.manifest.file(&full)?, full)));
        match (found.next(), found.next()) {
            (Some((file, full)), None) => Ok((full, file)),
            (Some((_, first)), Some((_, second))) => {
                let error = Error::new(ErrorKind::InvalidInput, "open archive").on(name);
                Err(error.because(format!("the snapshot has {first} and {second}; give the full name")))
            }
            (None, _) => {
                let error = Error::new(ErrorKind::NotFound, "open archive").on(name);
                Err(error.because(format!("{} has no such archive", self.name)))
            }
        }
    }

    /// Locks the snapshot against deletion, once for all readers of it.
    pub(in crate::store) async fn hold(&self) -> Result<Arc<dyn LockGuard>> {
        let mut held = self.lock.lock().await;
        if let Some(lock) = &*held {
            return Ok(Arc::clone(lock));
        }
        let lock = self.store.hold(&self.name).await?;
        *held = Some(Arc::clone(&lock));
        Ok(lock)
    }
}

impl StoreInner {
    /// Reads the manifest of a snapshot.
    pub(in crate::store) async fn manifest(&self, snapshot: &SnapshotName) -> Result<(Manifest, Version)> {
        let object = self.stored_manifest(snapshot).await?;
        let version = object.info.version;
        Ok((self.parse_manifest(snapshot, object.bytes).await?, version))
    }

    /// Reads the stored bytes of a manifest.
    pub(in crate::store) async fn stored_manifest(&self, snapshot: &SnapshotName) -> Result<Object> {
        self.backend.get(&Key::Manifest(snapshot.clone()), MANIFEST_BYTES).await
    }

    /// Parses the stored bytes of a manifest.
    pub(in crate::store) async fn parse_manifest(
        &self,
        snapshot: &SnapshotName,
        stored: Bytes,
    ) -> Result<Manifest> {
        let key = Key::Manifest(snapshot.clone());
        let limit = usize::try_from(MANIFEST_BYTES).unwrap_or(usize::MAX);
        let json = self.chunks.decode_blob(stored, limit).await.map_err(|error| error.on(&key))?;
        let corrupt = || Error::new(ErrorKind::Corrupt, "read").on(&key);
        let manifest = Manifest::parse(&json).map_err(|error| corrupt().because(error))?;
        let group = snapshot.group();
        let same = manifest.backup_type() == group.backup_type()
            && manifest.id() == group.id()
            && manifest.time() == snapshot.time();
        if same { Ok(manifest) } else { Err(corrupt().because("it is of another snapshot")) }
    }

    /// Reads an index and checks it against its entry in the manifest.
    pub(in crate::store) async fn index(
        &self,
        snapshot: &SnapshotName,
        file: &ManifestFile,
    ) -> Result<IndexReader> {
        self.stored_index(snapshot, file).await.map(|(_, index)| index)
    }

    /// The same, with the stored bytes.
    pub(in crate::store) async fn stored_index(
        &self,
        snapshot: &SnapshotName,
        file: &ManifestFile,
    ) -> Result<(Bytes, IndexReader)> {
        let key = Key::Archive(snapshot.clone(), file.name().clone());
        let object = self.backend.get(&key, INDEX_BYTES).await.map_err(|error| lost(error, &key))?;
        let index = self.parse_index(&key, file, object.bytes.clone()).await?;
        Ok((object.bytes, index))
    }

    /// Parses an index, without a manifest.
    pub(in crate::store) async fn any_index(&self, kind: ArchiveKind, stored: Bytes) -> Result<IndexReader> {
        let parse = move || {
            let parsed = IndexReader::parse(kind, stored);
            parsed.map_err(|error| Error::new(ErrorKind::Corrupt, "read index").because(error))
        };
        self.runtime().run_blocking("read index", parse).await
    }

    /// Parses an index and checks it against its entry in the manifest.
    pub(in crate::store) async fn parse_index(
        &self,
        key: &Key,
        file: &ManifestFile,
        stored: Bytes,
    ) -> Result<IndexReader> {
        let index = self.any_index(file.name().kind(), stored).await.map_err(|error| error.on(key))?;
        if index.checksum() != file.checksum() || index.size() != file.size() {
            let error = Error::new(ErrorKind::Corrupt, "read").on(key);
            return Err(error.because("it is not the one in the manifest"));
        }
        Ok(index)
    }

    /// Reads the stored bytes of a blob and checks them against its entry in the manifest.
    pub(in crate::store) async fn stored_blob(
        &self,
        snapshot: &SnapshotName,
        file: &ManifestFile,
    ) -> Result<Bytes> {
        let key = Key::Archive(snapshot.clone(), file.name().clone());
        let object = self.backend.get(&key, BLOB_BYTES).await.map_err(|error| lost(error, &key))?;
        let bytes = object.bytes.clone();
        let digest = move || Ok(Digest::of(&bytes));
        let checksum = self.runtime().run_blocking("check blob", digest).await?;
        if object.bytes.len() as u64 != file.size() || checksum != file.checksum() {
            return Err(Error::new(ErrorKind::Corrupt, "read")
                .on(key)
                .because("it is not the one in the manifest"));
        }
        Ok(object.bytes)
    }
}

/// Returns `true` if a verification found the snapshot damaged. An unreadable state counts as damaged, as in PBS.
pub(crate) fn has_failed_verification(manifest: &Manifest) -> bool {
    match manifest.verify_state() {
        Ok(state) => state.is_some_and(|state| state.state == VerifyResult::Failed),
        Err(_) => true,
    }
}

/// Turns `NotFound` for a file in the manifest into `Corrupt`: `NotFound` is for names that callers give.
fn lost(error: Error, key: &Key) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::Corrupt, "read").on(key).because(error),
        _ => error,
    }
}

/// Names the archive and the snapshot of a damaged or missing chunk.
pub(crate) fn in_archive(
    error: Error,
    digest: Digest,
    archive: &ArchiveName,
    snapshot: &SnapshotName,
) -> Error {
    match error.kind() {
        ErrorKind::Corrupt => {
            let chunk = format!("{digest} of {archive} in {snapshot}");
            Error::new(ErrorKind::Corrupt, "read chunk").on(chunk).because(error)
        }
        _ => error,
    }
}

pub(in crate::store) fn refuse_encrypted(file: &ManifestFile) -> Result<()> {
    if file.crypt_mode() == CryptMode::Encrypt {
        let error = Error::new(ErrorKind::Unsupported, "read").on(file.name());
        return Err(error.because("it is encrypted"));
    }
    Ok(())
}

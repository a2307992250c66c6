//! A finished snapshot, opened for reading.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::LockGuard;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::Key;
use crate::format::manifest::{CryptMode, Manifest, ManifestFile};
use crate::format::name::{ArchiveKind, ArchiveName, GroupName, SnapshotName};
use crate::store::key_use::is_encrypted_key;
use crate::store::snapshot_files::BLOB_BYTES;
use crate::store::{ArchiveReader, StoreInner};

/// Number of attempts to open a latest snapshot that another process deletes.
const ATTEMPTS: usize = 3;

/// A finished snapshot with a valid manifest.
///
/// It is locked against deletion until its last reader and archive are dropped. A snapshot
/// from [`finish`](crate::store::SnapshotWriter::finish) is locked when its first archive is opened.
#[derive(Debug)]
pub struct SnapshotReader {
    /// The key that authenticated the manifest.
    key: Option<EncryptionKey>,
    lock: AsyncMutex<Option<Arc<dyn LockGuard>>>,
    manifest: Manifest,
    name: SnapshotName,
    store: Arc<StoreInner>,
}

impl SnapshotReader {
    pub(in crate::store) async fn open(store: &Arc<StoreInner>, name: &SnapshotName) -> Result<Self> {
        let is_traceless = store.backend.capabilities().traceless_locks;
        if !is_traceless {
            // The manifest first: locking a missing snapshot would leave a lock file.
            store.manifests().read(name).await?;
        }
        let lock = match store.locks().snapshot_to_read(name).await {
            // A snapshot that is not finished is missing, not busy.
            Err(error) if is_traceless => {
                return Err(store.manifests().read(name).await.err().unwrap_or(error));
            }
            lock => lock?,
        };
        let (manifest, _) = store.manifests().read(name).await?;
        let lock = AsyncMutex::new(Some(Arc::from(lock)));
        Ok(Self { key: None, lock, manifest, name: name.clone(), store: Arc::clone(store) })
    }

    /// Opens the newest finished snapshot of a group, or the newest that is not later than `until`.
    pub(in crate::store) async fn open_latest(
        store: &Arc<StoreInner>,
        group: &GroupName,
        until: Option<SystemTime>,
    ) -> Result<Option<Self>> {
        let mut attempts = 0;
        loop {
            let name = match until {
                Some(time) => store.catalog().latest_until(group, time).await?,
                None => store.catalog().latest(group).await?,
            };
            let Some(name) = name else { return Ok(None) };
            attempts += 1;
            match Self::open(store, &name).await {
                // It was deleted after it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts < ATTEMPTS => {}
                opened => return opened.map(Some),
            }
        }
    }

    pub(in crate::store) fn published(
        store: Arc<StoreInner>,
        name: SnapshotName,
        manifest: Manifest,
        key: Option<EncryptionKey>,
    ) -> Self {
        Self { key, lock: AsyncMutex::new(None), manifest, name, store }
    }

    /// Checks that the snapshot was made with this key and that its manifest is authentic, and decrypts archives with it from then on. A snapshot that
    /// is signed and not encrypted can be read without its key; unlocking it checks the signature.
    ///
    /// The result of [`finish`](crate::store::SnapshotWriter::finish) is unlocked.
    ///
    /// # Errors
    /// `WrongKey` if the snapshot was made with another key, or without one; `Corrupt` if the manifest names the key and was changed after it was
    /// signed. The reader stays as it was.
    pub fn unlock(&mut self, key: &EncryptionKey) -> Result<()> {
        self.manifest
            .authenticate(key)
            .map_err(|error| Error::new(error.kind(), "unlock").on(&self.name).because(error))?;
        self.key = Some(key.clone());
        Ok(())
    }

    /// Returns `true` if other processes cannot delete the snapshot while the reader exists. It is `false` in a bucket, and in a read-only
    /// directory if the snapshot has no lock file: a deletion then makes the restore fail.
    ///
    /// # Errors
    /// `Busy` if the snapshot is being deleted.
    pub async fn is_locked(&self) -> Result<bool> {
        Ok(self.hold().await?.keeps_processes_out())
    }

    pub(in crate::store) fn store(&self) -> &Arc<StoreInner> {
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
    /// `KeyRequired` if the archive is encrypted and the reader is not [unlocked](Self::unlock).
    pub async fn archive(&self, name: &str) -> Result<ArchiveReader> {
        let (name, file) = self.file(name, &[ArchiveKind::Fixed, ArchiveKind::Dynamic])?;
        if name.kind() == ArchiveKind::Blob {
            let error = Error::new(ErrorKind::InvalidInput, "open archive").on(&name);
            return Err(error.because("a blob is read whole, with `blob`"));
        }
        let key = self.key_of(file)?;
        let lock = self.hold().await?;
        let index = self.store.snapshot_files().index(&self.name, file).await?;
        ArchiveReader::new(self.store.clone(), self.name.clone(), (name, key), index, lock).await
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
        let key = if is_encrypted_key(&name) { None } else { self.key_of(file)? };
        let _lock = self.hold().await?;
        let stored = self.store.snapshot_files().blob_of_manifest(&self.name, file).await?;
        let blob = self.store.snapshot_files().decode(stored, key).await;
        blob.map_err(|error| error.on(Key::Archive(self.name.clone(), name)))
    }

    /// Reads the client log; `None` if there is none. Only its own checksum protects a plain log, and no signature says that it belongs to this snapshot.
    ///
    /// # Errors
    /// `Corrupt`; `KeyRequired` if it is encrypted and the reader is not [unlocked](Self::unlock).
    pub async fn client_log(&self) -> Result<Option<Bytes>> {
        let _lock = self.hold().await?;
        let place = Key::ClientLog(self.name.clone());
        let object = match self.store.backend.get(&place, BLOB_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            object => object?,
        };
        let log = self.store.snapshot_files().decode_either(object.bytes, self.key.as_ref()).await;
        log.map(Some).map_err(|error| error.on(place))
    }

    /// The key of an archive; `None` if it is plain.
    fn key_of(&self, file: &ManifestFile) -> Result<Option<&EncryptionKey>> {
        if file.crypt_mode != CryptMode::Encrypt {
            return Ok(None);
        }
        let needed = || {
            let error = Error::new(ErrorKind::KeyRequired, "read").on(&file.name);
            match self.manifest.key_fingerprint() {
                Ok(Some(fingerprint)) => error.because(format!("its key is {fingerprint}")),
                _ => error,
            }
        };
        self.key.as_ref().map(Some).ok_or_else(needed)
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
                Err(error.because(self.archives()))
            }
        }
    }

    /// The archives that there are, for the error about one that is not.
    fn archives(&self) -> String {
        let mut names: Vec<_> = self.manifest.files().iter().map(|file| file.name.as_str()).collect();
        let more = names.len().saturating_sub(MAX_NAMED);
        names.truncate(MAX_NAMED);
        let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
        match names[..] {
            [] => format!("{} has no archives", self.name),
            _ => format!("{} has {}{and_more}", self.name, names.join(", ")),
        }
    }

    /// Locks the snapshot against deletion, once for all readers of it.
    pub(in crate::store) async fn hold(&self) -> Result<Arc<dyn LockGuard>> {
        let mut held = self.lock.lock().await;
        if let Some(lock) = &*held {
            return Ok(Arc::clone(lock));
        }
        let lock: Arc<dyn LockGuard> = Arc::from(self.store.locks().snapshot_to_read(&self.name).await?);
        *held = Some(Arc::clone(&lock));
        Ok(lock)
    }
}

/// Maximum number of archives that an error names.
const MAX_NAMED: usize = 20;

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

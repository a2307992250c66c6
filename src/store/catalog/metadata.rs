//! Metadata of namespaces, groups and snapshots: owner, notes, protection, states.

use bytes::Bytes;

use crate::backend::lock_wait::{MANIFEST_WAIT, lock_with_timeout};
use crate::backend::{LockMode, LockScope, Object, PutMode, Removal, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::manifest::Manifest;
use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::format::status::{GcStatus, decode_owner, encode_owner};
use crate::store::Datastore;

/// Maximum bytes of an owner file, of notes and of `.gc-status`.
pub(in crate::store) const SMALL_OBJECT_BYTES: u64 = 1 << 20;

/// Protection of a snapshot against deletion.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Not protected.
    Off,
    /// Protected.
    On,
}

impl Datastore {
    /// Creates a namespace, whose parent must exist.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` if the parent does not exist; `Busy` if a pending delete may still remove a namespace of
    /// that name.
    pub async fn create_namespace(&self, namespace: &Namespace) -> Result<()> {
        self.inner.check_writable("create a namespace").await?;
        let failed = |kind| Error::new(kind, "create namespace").on(namespace);
        let parent = namespace.parent().ok_or_else(|| failed(ErrorKind::AlreadyExists))?;
        if !self.has_namespace(&parent).await? {
            return Err(failed(ErrorKind::NotFound).because(format!("there is no namespace {parent}")));
        }
        if self.has_namespace(namespace).await? {
            return Err(failed(ErrorKind::AlreadyExists));
        }
        self.inner.check_settled(&Key::Namespace(namespace.clone()))?;
        let mode = self.inner.backend.capabilities().create_mode();
        self.put_small(Key::Namespace(namespace.clone()), Bytes::new(), mode).await
    }

    /// Owner of a group; `None` without one, as after an interrupted deletion.
    ///
    /// # Errors
    /// `Corrupt` if the owner cannot be read.
    pub async fn owner(&self, group: &GroupName) -> Result<Option<AuthId>> {
        let key = Key::Owner(group.clone());
        let Some(object) = self.get_small(&key).await? else { return Ok(None) };
        let owner = decode_owner(&object.bytes);
        owner.map(Some).map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(key).because(error))
    }

    /// Changes the owner of a group.
    ///
    /// # Errors
    /// `NotFound` if the group has no owner yet; `Busy` while a backup of the group is running, or a pending delete may still
    /// remove the owner.
    pub async fn set_owner(&self, group: &GroupName, owner: &AuthId) -> Result<()> {
        self.inner.check_writable("change an owner").await?;
        let _held = self.inner.backend.lock(&LockScope::Group(group.clone()), LockMode::Exclusive).await?;
        let key = Key::Owner(group.clone());
        let found = self.inner.backend.head(&key).await?;
        self.inner.check_settled(&key)?;
        let mode = self.instead_of(Some(found.version));
        self.put_small(key, encode_owner(owner).into(), mode).await
    }

    /// Notes of a group.
    ///
    /// # Errors
    /// `Corrupt` if they are not UTF-8.
    pub async fn group_notes(&self, group: &GroupName) -> Result<Option<String>> {
        let key = Key::GroupNotes(group.clone());
        let Some(object) = self.get_small(&key).await? else { return Ok(None) };
        let notes = String::from_utf8(object.bytes.into());
        notes.map(Some).map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(key).because(error))
    }

    /// Changes the notes of a group; an empty text removes them.
    ///
    /// # Errors
    /// `NotFound` if the group does not exist; `Busy` while a backup of it is running, or a pending delete may still remove
    /// the notes; `InvalidInput` beyond 1 MiB.
    pub async fn set_group_notes(&self, group: &GroupName, notes: &str) -> Result<()> {
        self.inner.check_writable("change notes").await?;
        let _held = self.inner.backend.lock(&LockScope::Group(group.clone()), LockMode::Exclusive).await?;
        self.inner.backend.head(&Key::Owner(group.clone())).await?;
        let key = Key::GroupNotes(group.clone());
        if notes.is_empty() {
            return self.remove_small(key).await;
        }
        self.inner.check_settled(&key)?;
        let found = match self.inner.backend.head(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found?.version),
        };
        let mode = self.instead_of(found);
        self.put_small(key, Bytes::copy_from_slice(notes.as_bytes()), mode).await
    }

    /// Changes the notes of a snapshot, which are part of its manifest; an empty text removes them.
    ///
    /// # Errors
    /// `NotFound` if the snapshot does not exist or is unfinished; `Busy` if others keep changing the manifest; `InvalidInput`
    /// if the manifest would be longer than 16 MiB with them.
    pub async fn set_notes(&self, snapshot: &SnapshotName, notes: &str) -> Result<()> {
        let notes = (!notes.is_empty()).then_some(notes);
        self.update_manifest(snapshot, |manifest| manifest.set_notes(notes)).await
    }

    /// Changes the protection of a snapshot.
    ///
    /// # Errors
    /// `NotFound` if the snapshot does not exist, or is unfinished and unprotected; `Busy` while it is read or written, or
    /// a pending delete may still remove the protection.
    pub async fn set_protection(&self, snapshot: &SnapshotName, protection: Protection) -> Result<()> {
        self.inner.check_writable("change protection").await?;
        let scope = LockScope::Snapshot(snapshot.clone());
        let _held = self.inner.backend.lock(&scope, LockMode::Exclusive).await?;
        let manifest = Key::Manifest(snapshot.clone());
        let key = Key::Protected(snapshot.clone());
        match (self.inner.backend.head(&manifest).await, protection) {
            // An interrupted move leaves an unfinished snapshot, which may be protected.
            (Err(error), Protection::Off) if error.kind() == ErrorKind::NotFound => {
                _ = self.inner.backend.head(&key).await?;
            }
            (found, _) => _ = found?,
        }
        match protection {
            Protection::Off => self.remove_small(key).await,
            Protection::On => {
                // An acknowledged protection stays (H17, H47).
                self.inner.check_settled(&key)?;
                self.inner.check_settled(&manifest)?;
                self.put_small(key, Bytes::new(), PutMode::Replace).await
            }
        }
    }

    /// Result of the last garbage collection; `None` if there was none or it cannot be parsed.
    ///
    /// # Errors
    /// Any failure to read the object.
    pub async fn gc_status(&self) -> Result<Option<GcStatus>> {
        let object = self.get_small(&Key::GcStatus).await?;
        Ok(object.and_then(|object| GcStatus::parse(&object.bytes).ok()))
    }

    /// Updates a manifest under its lock.
    pub(in crate::store) async fn update_manifest(
        &self,
        snapshot: &SnapshotName,
        change: impl FnOnce(&mut Manifest) + Send,
    ) -> Result<()> {
        self.inner.check_writable("change a manifest").await?;
        let backend = self.inner.backend.as_ref();
        let _held = lock_with_timeout(
            backend,
            &LockScope::Manifest(snapshot.clone()),
            LockMode::Exclusive,
            MANIFEST_WAIT,
        )
        .await?;
        let (mut manifest, version) = self.inner.manifest(snapshot).await?;
        change(&mut manifest);
        let blob = self.inner.encode_manifest(&manifest).await.map_err(|error| error.on(snapshot))?;
        let mode = self.instead_of(Some(version));
        self.put_small(Key::Manifest(snapshot.clone()), blob, mode).await
    }

    /// Replaces only the version that was read: a late put must not undo a newer one (H18).
    pub(in crate::store) fn instead_of(&self, found: Option<Version>) -> PutMode {
        match found {
            _ if !self.inner.backend.capabilities().conditional_put => PutMode::Replace,
            Some(version) => PutMode::IfMatch(version),
            None => PutMode::Create,
        }
    }

    pub(in crate::store) async fn get_small(&self, key: &Key) -> Result<Option<Object>> {
        match self.inner.backend.get(key, SMALL_OBJECT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            object => object.map(Some),
        }
    }

    async fn put_small(&self, key: Key, bytes: Bytes, mode: PutMode) -> Result<()> {
        if bytes.len() as u64 > SMALL_OBJECT_BYTES && !matches!(key, Key::Manifest(_)) {
            return Err(Error::new(ErrorKind::InvalidInput, "store")
                .on(key)
                .because("it is longer than 1 MiB"));
        }
        self.inner.backend.put(&key, bytes, mode).await?;
        self.inner.backend.barrier().await
    }

    async fn remove_small(&self, key: Key) -> Result<()> {
        for removed in self.inner.delete(&[Removal::any(key)]).await? {
            removed?;
        }
        self.inner.backend.barrier().await
    }
}

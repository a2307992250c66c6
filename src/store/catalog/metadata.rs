//! Metadata of namespaces, groups and snapshots: owner, notes, protection, states.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{Object, PutMode, Removal};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::format::status::{GcStatus, decode_owner, encode_owner};
use crate::store::StoreInner;

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

/// Metadata of namespaces, groups and snapshots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metadata<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Metadata of the store.
    pub(crate) fn metadata(self: &Arc<Self>) -> Metadata<'_> {
        Metadata { inner: self }
    }
}

impl Metadata<'_> {
    /// See [`Datastore::create_namespace`](crate::store::Datastore::create_namespace).
    pub(crate) async fn create_namespace(&self, namespace: &Namespace) -> Result<()> {
        self.inner.check_writable("create a namespace").await?;
        let failed = |kind| Error::new(kind, "create namespace").on(namespace);
        let parent = namespace.parent().ok_or_else(|| failed(ErrorKind::AlreadyExists))?;
        if !self.inner.catalog().has_namespace(&parent).await? {
            return Err(failed(ErrorKind::NotFound).because(format!("there is no namespace {parent}")));
        }
        if self.inner.catalog().has_namespace(namespace).await? {
            return Err(failed(ErrorKind::AlreadyExists));
        }
        self.inner.check_no_pending_delete(&Key::Namespace(namespace.clone()))?;
        let mode = self.inner.backend.capabilities().create_mode();
        self.put_small(Key::Namespace(namespace.clone()), Bytes::new(), mode).await
    }

    /// See [`Datastore::owner`](crate::store::Datastore::owner).
    pub(crate) async fn owner(&self, group: &GroupName) -> Result<Option<AuthId>> {
        let key = Key::Owner(group.clone());
        let Some(object) = self.get_small(&key).await? else { return Ok(None) };
        let owner = decode_owner(&object.bytes);
        owner.map(Some).map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(key).because(error))
    }

    /// See [`Datastore::set_owner`](crate::store::Datastore::set_owner).
    pub(crate) async fn set_owner(&self, group: &GroupName, owner: &AuthId) -> Result<()> {
        self.inner.check_writable("change an owner").await?;
        let _held = self.inner.locks().group(group).await?;
        let key = Key::Owner(group.clone());
        let found = self.inner.backend.head(&key).await?;
        self.inner.check_no_pending_delete(&key)?;
        let mode = self.inner.instead_of(Some(found.version));
        self.put_small(key, encode_owner(owner).into(), mode).await
    }

    /// See [`Datastore::group_notes`](crate::store::Datastore::group_notes).
    pub(crate) async fn group_notes(&self, group: &GroupName) -> Result<Option<String>> {
        let key = Key::GroupNotes(group.clone());
        let Some(object) = self.get_small(&key).await? else { return Ok(None) };
        let notes = String::from_utf8(object.bytes.into());
        notes.map(Some).map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(key).because(error))
    }

    /// See [`Datastore::set_group_notes`](crate::store::Datastore::set_group_notes).
    pub(crate) async fn set_group_notes(&self, group: &GroupName, notes: &str) -> Result<()> {
        self.inner.check_writable("change notes").await?;
        let _held = self.inner.locks().group(group).await?;
        self.inner.backend.head(&Key::Owner(group.clone())).await?;
        let key = Key::GroupNotes(group.clone());
        if notes.is_empty() {
            return self.remove_small(key).await;
        }
        self.inner.check_no_pending_delete(&key)?;
        let found = match self.inner.backend.head(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found?.version),
        };
        let mode = self.inner.instead_of(found);
        self.put_small(key, Bytes::copy_from_slice(notes.as_bytes()), mode).await
    }

    /// See [`Datastore::set_notes`](crate::store::Datastore::set_notes).
    pub(crate) async fn set_notes(&self, snapshot: &SnapshotName, notes: &str) -> Result<()> {
        let notes = (!notes.is_empty()).then_some(notes);
        self.inner.manifests().update(snapshot, |manifest| manifest.set_notes(notes)).await
    }

    /// See [`Datastore::set_protection`](crate::store::Datastore::set_protection).
    pub(crate) async fn set_protection(&self, snapshot: &SnapshotName, protection: Protection) -> Result<()> {
        self.inner.check_writable("change protection").await?;
        let _held = self.inner.locks().snapshot(snapshot).await?;
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
                self.inner.check_no_pending_delete(&key)?;
                self.inner.check_no_pending_delete(&manifest)?;
                self.put_small(key, Bytes::new(), PutMode::Replace).await
            }
        }
    }

    /// See [`Datastore::gc_status`](crate::store::Datastore::gc_status).
    pub(crate) async fn gc_status(&self) -> Result<Option<GcStatus>> {
        let object = self.get_small(&Key::GcStatus).await?;
        Ok(object.and_then(|object| GcStatus::parse(&object.bytes).ok()))
    }

    pub(in crate::store) async fn get_small(&self, key: &Key) -> Result<Option<Object>> {
        match self.inner.backend.get(key, SMALL_OBJECT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            object => object.map(Some),
        }
    }

    pub(in crate::store) async fn put_small(&self, key: Key, bytes: Bytes, mode: PutMode) -> Result<()> {
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

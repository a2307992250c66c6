//! Identity of a store, read and written.
//!
//! PBS ignores the object. A store made by PBS has none until this crate changes it. Reading never writes it. A packed store always has
//! one, and is not opened without it.

use std::ops::Deref;

use bytes::Bytes;

use crate::backend::lock_wait::lock_store;
use crate::backend::{Backend, LockMode, PutMode, has_objects};
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::store_record::{LIMIT_BYTES, StoreRecord};
use crate::format::layout::{Key, Prefix};
use crate::format::name::Namespace;
use crate::packs::PackOptions;
use crate::rt::Runtime;

/// The identity record of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity(StoreRecord);

impl Deref for Identity {
    type Target = StoreRecord;

    fn deref(&self) -> &StoreRecord {
        &self.0
    }
}

impl Identity {
    /// A new identity.
    pub(super) fn draw(runtime: &dyn Runtime) -> Self {
        Self(StoreRecord::new(random(runtime)))
    }

    /// The same identity for a store whose chunks are in packs of this size.
    pub(super) fn packed(self, pack_bytes: u64) -> Self {
        Self(self.0.packed(pack_bytes))
    }

    /// Reads the stored identity; `None` for a store of PBS.
    pub(super) async fn read(backend: &dyn Backend) -> Result<Option<Self>> {
        let object = match backend.get(&Key::Store, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            object => object?,
        };
        let identity = StoreRecord::parse(&object.bytes);
        identity
            .map(|record| Some(Self(record)))
            .map_err(|error| Error::new(ErrorKind::Corrupt, "read").on(Key::Store).because(error))
    }

    /// Returns `true` if there are objects of a packed store. If it has no identity, it lost that: without one it would pass for an empty
    /// store, whose chunks are objects of their own.
    pub(super) async fn is_lost(backend: &dyn Backend) -> Result<bool> {
        let content = Prefix::Enclosed(Box::new(Prefix::Namespace(Namespace::root())));
        Ok(has_objects(backend, content).await? || has_objects(backend, Prefix::Packs).await?)
    }

    /// Gives a packed store an identity that lost its own.
    pub(super) async fn replace_lost(backend: &dyn Backend) -> Result<()> {
        let _held = lock_store(backend, LockMode::Shared).await?;
        let pack_bytes = PackOptions::default().target_bytes()? as u64;
        Self::draw(backend.runtime().as_ref()).packed(pack_bytes).create(backend).await?;
        backend.barrier().await
    }

    /// Stores the identity of a new store. The caller holds the lock of the store.
    pub(super) async fn create(&self, backend: &dyn Backend) -> Result<()> {
        if let Some(left) = backend.in_doubt(&Key::Store) {
            let why = format!(
                "a request to delete the last one may still be executed for {} s",
                left.as_secs() + 1
            );
            return Err(Error::new(ErrorKind::Busy, "create").on(Key::Store).because(why).retry_in(left));
        }
        self.write(backend, backend.capabilities().create_mode()).await
    }

    /// The same record with a new identity.
    pub(super) fn renewed(self, runtime: &dyn Runtime) -> Self {
        Self(self.0.renewed(random(runtime)))
    }

    /// Replaces the stored record. The caller holds the exclusive lock of the store.
    pub(super) async fn replace(&self, backend: &dyn Backend) -> Result<()> {
        self.write(backend, PutMode::Replace).await
    }

    /// Marks a store whose destruction begins or continues.
    pub(super) async fn mark_destroying(mut self, backend: &dyn Backend) -> Result<()> {
        self.0.mark_destroying();
        self.write(backend, PutMode::Replace).await
    }

    async fn write(&self, backend: &dyn Backend, mode: PutMode) -> Result<()> {
        let json = self
            .0
            .encode()
            .map_err(|error| Error::new(ErrorKind::Internal, "write").on(Key::Store).because(error))?;
        backend.put(&Key::Store, Bytes::from(json), mode).await.map(drop)
    }
}

fn random(runtime: &dyn Runtime) -> [u8; 16] {
    let mut random = [0; 16];
    runtime.fill_random(&mut random);
    random
}

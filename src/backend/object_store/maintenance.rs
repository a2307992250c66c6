//! Coordination within the process, and maintenance.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use object_store::{ObjectStoreExt as _, PutPayload};

use crate::backend::housekeeping::{indexes_among, shows_a_store};
use crate::backend::object_store::errors::failed;
use crate::backend::object_store::trial::new_location;
use crate::backend::object_store::{CONTENT, IN_FLIGHT, ObjectStoreBackend, location};
use crate::backend::{
    Backend as _, Coordination, Housekeeping, LeaseTerm, LockGuard, LockMode, LockScope, ObjectInfo, Orphan,
    PendingMoves, PutMode, Version,
};
use crate::error::Result;
use crate::format::layout::Key;
use crate::rt::Runtime;

#[async_trait]
impl Coordination for ObjectStoreBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    async fn clock(&self) -> Result<SystemTime> {
        let unread = |error| failed(error, "read the clock of", &self.client);
        let place = new_location(self.runtime.as_ref())?;
        self.client.put(&place, PutPayload::from_static(b"clock")).await.map_err(unread)?;
        let stored = self.client.head(&place).await;
        // The name is not used again: a late deletion does no harm, nor does an object that stays.
        let _ = self.client.delete(&place).await;
        Ok(stored.map_err(unread)?.last_modified.into())
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        self.locks.lock(scope, mode, self.runtime.now())
    }

    async fn check_owned(&self) -> Result<()> {
        Ok(())
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        None
    }

    async fn begin_term(&self) -> Result<()> {
        Ok(())
    }

    fn in_doubt(&self, _: &Key) -> Option<Duration> {
        None
    }

    async fn record_moves(&self, _: &[Key]) -> Result<()> {
        Ok(())
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        Ok(None)
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Housekeeping for ObjectStoreBackend {
    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        // Clients have no condition on a version for a copy.
        let object = self.get(from, u64::MAX).await?;
        self.put(to, object.bytes, mode).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        let head = |key: Key| async move { self.head(&key).await };
        Ok(stream::iter(keys.to_vec()).map(head).buffered(IN_FLIGHT).collect().await)
    }

    async fn has_store(&self) -> Result<bool> {
        shows_a_store(self).await
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        Ok(indexes_among(foreign))
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        let place = location(&format!("{CONTENT}{}", orphan.path))?;
        self.get_object(&place, &orphan.path, limit).await.map(|(bytes, _)| bytes)
    }

    async fn remove_leftovers(&self, _: &[String], _: Duration) -> Result<u64> {
        Ok(0)
    }

    async fn keep_reserve(&self) -> Result<()> {
        Ok(())
    }
}

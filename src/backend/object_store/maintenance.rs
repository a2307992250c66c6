//! The clock of the place, and maintenance.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};

use crate::backend::coordination::ObjectClock;
use crate::backend::housekeeping::{indexes_among, shows_a_store};
use crate::backend::object_store::errors::failed;
use crate::backend::object_store::trial::new_location;
use crate::backend::object_store::{CONTENT, IN_FLIGHT, ObjectStoreBackend, location};
use crate::backend::{Backend as _, Housekeeping, ObjectInfo, Orphan, PutMode, Version};
use crate::error::Result;
use crate::format::layout::Key;
use crate::rt::Runtime;

/// The clock of a place: the time of an object that is stored to read it.
pub(super) struct PlaceClock {
    pub(super) client: Arc<dyn ObjectStore>,
    pub(super) runtime: Arc<dyn Runtime>,
}

impl fmt::Debug for PlaceClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaceClock").finish_non_exhaustive()
    }
}

#[async_trait]
impl ObjectClock for PlaceClock {
    async fn now(&self) -> Result<SystemTime> {
        let unread = |error| failed(error, "read the clock of", &self.client);
        let place = new_location(self.runtime.as_ref())?;
        self.client.put(&place, PutPayload::from_static(b"clock")).await.map_err(unread)?;
        let stored = self.client.head(&place).await;
        // The name is not used again: a late deletion does no harm, nor does an object that stays.
        let _ = self.client.delete(&place).await;
        Ok(stored.map_err(unread)?.last_modified.into())
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

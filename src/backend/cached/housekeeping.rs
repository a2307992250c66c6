//! Maintenance through the metadata cache: copies change the generation, everything else goes to the uncached backend.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::cached::{Kept, Known, MetadataCache};
use crate::backend::{Cursor, Housekeeping, ObjectInfo, Orphan, PutMode, Version};
use crate::error::Result;
use crate::format::layout::{Key, Prefix};

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for MetadataCache {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner.begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        if !to.is_content() {
            return self.inner.copy(from, to, mode).await;
        }
        let (change, known) = (self.begin_change(), self.known(from));
        let version = self.inner.copy(from, to, mode).await?;
        // Without a known size the generation cannot describe the new object, and is in doubt.
        if let Known::Present(Kept { size, .. }) = known {
            let kept = Kept { last_used: self.inner.runtime().now(), size, version: version.clone() };
            self.state().change(to.path(), Some(kept));
            change.end();
        }
        Ok(version)
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        self.inner.head_many(keys).await
    }

    async fn has_store(&self) -> Result<bool> {
        self.inner.has_store().await
    }

    fn is_new(&self) -> bool {
        self.inner.is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.inner.orphans(foreign).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.inner.get_orphan(orphan, limit).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.inner.remove_leftovers(foreign, age).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.inner.keep_reserve().await
    }
}

//! Maintenance of a store in a bucket: copies, batches of lookups, orphans, stale uploads, the reserve.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};

use crate::backend::housekeeping::{indexes_among, shows_a_store};
use crate::backend::s3::lease::Care;
use crate::backend::s3::{CONTENT, IN_FLIGHT, S3Backend, version};
use crate::backend::{Backend as _, Housekeeping, ObjectInfo, Orphan, PutMode, Version};
use crate::error::Result;
use crate::format::layout::Key;
use crate::s3::Support;

#[async_trait]
impl Housekeeping for S3Backend {
    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        self.lease.before_change().await?;
        if from == to && mode == PutMode::Replace {
            // Servers refuse a copy that changes nothing.
            return Ok(self.head(from).await?.version);
        }
        // No server can be trusted with a condition on a copy.
        if mode != PutMode::Replace || self.server.copy != Support::Yes {
            let size = self.head(from).await?.size;
            let object = self.get(from, size).await?;
            return self.put(to, object.bytes, mode).await;
        }
        let attempt = self.begin_change(Care::Confirmed).await?;
        let copied = match self.reserve.before_data(attempt.client()).await {
            Ok(()) => attempt.client().copy(&self.render(from), &self.render(to)).await,
            Err(error) => Err(error),
        };
        let etag = attempt.finish(copied)?;
        if etag.is_empty() { Ok(self.head(to).await?.version) } else { Ok(version(&etag)) }
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        let head = |key: Key| async move { self.head(&key).await };
        let heads = stream::iter(keys.to_vec()).map(head).buffered(IN_FLIGHT);
        Ok(heads.collect().await)
    }

    async fn has_store(&self) -> Result<bool> {
        shows_a_store(self).await
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        Ok(indexes_among(foreign))
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        let rendered = format!("{}{CONTENT}{}", self.store, orphan.path);
        self.certainly(|| self.client.get(&rendered, limit)).await.map(|(bytes, _)| bytes)
    }

    async fn remove_leftovers(&self, _: &[String], age: Duration) -> Result<u64> {
        self.abort_stale_uploads(age).await.map(|aborted| aborted as u64)
    }

    async fn keep_reserve(&self) -> Result<()> {
        let attempt = self.begin_change(Care::Confirmed).await?;
        let kept = self.reserve.keep(attempt.client()).await;
        attempt.finish(kept)
    }
}

//! A lock that is held in a bucket.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::backend::LockGuard;
use crate::backend::s3::lease::Lease;
use crate::error::Result;

/// A lock within this process; with the lease, if its holder may change something.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) held: Box<dyn LockGuard>,
    pub(super) is_of_the_store: bool,
    pub(super) lease: Option<Arc<Lease>>,
    /// The epoch with which the lease was taken when the lock was.
    pub(super) since: Option<u64>,
}

#[async_trait]
impl LockGuard for Guard {
    async fn check(&self) -> Result<()> {
        let Some(lease) = &self.lease else { return Ok(()) };
        lease.check_continues(self.since).await?;
        // The lock of the store is checked before each batch of deletions. One read of the lease covers all that is done under it.
        if self.is_of_the_store { lease.check().await } else { Ok(()) }
    }

    fn keeps_processes_out(&self) -> bool {
        self.lease.is_some()
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.held.oldest_shared()
    }

    async fn release_deleted(self: Box<Self>) {}
}

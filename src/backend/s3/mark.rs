//! The owner mark `.in-use` of a store in a bucket, which PBS and this crate read and write.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::s3::place::{Place, bare, is_marker};
use crate::backend::s3::reserve::Reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::s3::{BucketClient, Condition, ListRequest, ListedObject};

/// Name of the host in a mark, if the caller names none.
pub(super) const DEFAULT_HOST: &str = "larder";

/// Maximum size of the mark in bytes.
const LIMIT_BYTES: u64 = 64 << 10;

/// The host and the process that open a store in a bucket, and their permission to take it over.
#[derive(Clone, Debug)]
#[must_use]
pub struct Ownership {
    pub(super) host: String,
    pub(super) instance: Option<String>,
    reuse: bool,
    take_over: bool,
}

impl Default for Ownership {
    fn default() -> Self {
        Self { host: DEFAULT_HOST.to_owned(), instance: None, reuse: false, take_over: false }
    }
}

impl Ownership {
    /// The host name in the owner mark `.in-use`; default: `larder`. A store whose mark has another name cannot be changed. The name does not
    /// exclude other processes with the same name: the lease does.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// A text that at most one process at a time uses, such as the content of a file that it locks; default: a random text. A process with
    /// the same instance as a dead one takes over its lease without waiting for it to expire.
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = Some(instance.into());
        self
    }

    /// Returns `true` if [`instance`](Self::instance) was called.
    pub(crate) fn has_instance(&self) -> bool {
        self.instance.is_some()
    }

    /// Allows changes to a store that has data and no owner mark, such as one that was detached. Without it, such a store can only be read.
    pub fn reuse(mut self) -> Self {
        self.reuse = true;
        self
    }

    /// Replaces the owner mark of another host, such as a PBS that is no longer in use. Does not take a lease that has not expired. A PBS
    /// that still runs continues to use the store, and both will damage it.
    pub fn take_over(mut self) -> Self {
        self.take_over = true;
        self
    }
}

/// The contents of the owner mark.
#[derive(Debug, Serialize, Deserialize)]
struct InUse {
    hostname: Option<String>,
}

/// The owner mark of one store.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) client: BucketClient,
    pub(super) ownership: Ownership,
    pub(super) place: Place,
    pub(super) reserve: Arc<Reserve>,
}

impl Mark {
    /// Stores the mark of this host, unless the store has it. Returns `true` if the store had it: otherwise another host may have used the
    /// store meanwhile.
    ///
    /// # Errors
    /// `Denied` if the mark names another host, or the store has data and no mark, and the caller did not permit that; `Busy` if another
    /// process changes the mark at the same time.
    pub(super) async fn claim(&self) -> Result<bool> {
        let mark = InUse { hostname: Some(self.ownership.host.clone()) };
        let json = serde_json::to_vec(&mark).map_err(|error| {
            Error::new(ErrorKind::Internal, "write").on(&self.place.in_use).because(error)
        })?;
        let condition = match self.client.get(&self.place.in_use, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_reuse().await?;
                self.place.condition(None)
            }
            Err(error) => return Err(error),
            Ok((bytes, head)) => {
                let found: Option<InUse> = serde_json::from_slice(&bytes).ok();
                let host = found.and_then(|found| found.hostname);
                if host.as_ref() == Some(&self.ownership.host) {
                    return Ok(true);
                }
                if !self.ownership.take_over && !mutated!("mark-of-another-host-is-ignored") {
                    let who = host.map_or_else(|| "an unknown host".to_owned(), |host| format!("{host:?}"));
                    return Err(Error::new(ErrorKind::Denied, "lock the store")
                        .on(&self.place.in_use)
                        .because(format!(
                            "the store is in use by {who}; set `Ownership::take_over` to take it over"
                        )));
                }
                self.place.condition(Some(bare(&head.etag)))
            }
        };
        match self.reserve.put(&self.client, &self.place.in_use, json.into(), &condition).await {
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Conflict) => {
                Err(Error::new(ErrorKind::Busy, "lock the store").on(&self.place.in_use))
            }
            put => put.map(|_| false),
        }
    }

    /// Removes the mark.
    pub(super) async fn remove(&self, client: &BucketClient) -> Result<()> {
        client.delete(&self.place.in_use, &Condition::Always).await.map(drop)
    }

    /// Fails for a store that has data and no mark, unless the caller permits its use.
    async fn check_reuse(&self) -> Result<()> {
        for prefix in self.place.data.iter().filter(|_| !self.ownership.reuse && !self.ownership.take_over) {
            let mut request = ListRequest::new(prefix);
            request.max_keys = Some(1);
            let is_data = |object: &ListedObject| !is_marker(&object.key, object.size);
            if self.client.find_listed(&request, is_data).await?.is_some() {
                let refused = Error::new(ErrorKind::Denied, "lock the store").on(prefix);
                return Err(refused.because(
                    "the store has data and no owner mark; set `Ownership::reuse` to use it again",
                ));
            }
        }
        Ok(())
    }
}

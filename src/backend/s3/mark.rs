//! The mark in a bucket by which PBS and this crate see whose a store is, `.in-use`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::s3::place::{Place, bare, is_marker};
use crate::backend::s3::reserve::Reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::s3::{Condition, ListRequest, S3Client};

/// Maximum size of the mark in bytes.
const LIMIT_BYTES: u64 = 64 << 10;

/// Who opens a store in a bucket, for others who want it too.
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
        Self { host: "larder".to_owned(), instance: None, reuse: false, take_over: false }
    }
}

impl Ownership {
    /// The name in the mark `.in-use`, by which people recognise who uses the store; default: `larder`. A store whose mark has
    /// another name is not changed. The name excludes nobody who uses the same: the lease does that.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// A text that only one process at a time uses, ever, such as one that is kept in
    /// a locked file. A process with the same instance takes up the lease of one that died without waiting for it to expire.
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = Some(instance.into());
        self
    }

    /// Uses a store that has data and no mark, such as one that was detached. Without it, such a store is only read.
    pub fn reuse(mut self) -> Self {
        self.reuse = true;
        self
    }

    /// Takes the store away from whoever is named in `.in-use`, such as a PBS that is gone. It does not take a lease that
    /// is alive. A PBS that is not gone goes on using the store, and both will damage it.
    pub fn take_over(mut self) -> Self {
        self.take_over = true;
        self
    }
}

/// The mark that PBS knows.
#[derive(Debug, Serialize, Deserialize)]
struct InUse {
    hostname: Option<String>,
}

/// The mark of one store.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) client: S3Client,
    pub(super) ownership: Ownership,
    pub(super) place: Place,
    pub(super) reserve: Arc<Reserve>,
}

impl Mark {
    /// Puts the mark of this host, unless it is there.
    /// Whether it was there already: otherwise somebody else may have used the store.
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
                if !self.ownership.take_over {
                    let who = host.map_or_else(|| "somebody unknown".to_owned(), |host| format!("{host:?}"));
                    return Err(Error::new(ErrorKind::Denied, "lock the store")
                        .on(&self.place.in_use)
                        .because(format!("it is in use by {who}, and to take it over was not asked for")));
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

    pub(super) async fn remove(&self, client: &S3Client) -> Result<()> {
        client.delete(&self.place.in_use, &Condition::Always).await.map(drop)
    }

    /// Refuses a store that has data and belongs to nobody, unless it may be used again.
    async fn check_reuse(&self) -> Result<()> {
        for prefix in self.place.data.iter().filter(|_| !self.ownership.reuse && !self.ownership.take_over) {
            let mut request = ListRequest::new(prefix);
            request.max_keys = Some(1);
            let mut token = None;
            loop {
                let page = self.client.list(&request, token.as_deref()).await?;
                if page.listing.objects.iter().any(|object| !is_marker(&object.key, object.size)) {
                    let refused = Error::new(ErrorKind::Denied, "lock the store").on(prefix);
                    return Err(refused.because(
                        "it has data and belongs to nobody, and to use it again was not asked for",
                    ));
                }
                token = page.next;
                if token.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }
}

//! The presence records of one handle of a store, and the lease term in which they are valid.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::chunks::ChunkStore;
use crate::error::Result;
use crate::format::Digest;
use crate::local::LocalState;
use crate::local::presence::PresenceStore;

/// Presence records of one handle.
#[derive(Debug)]
pub(super) struct Presence {
    backend: Arc<dyn Backend>,
    local: Option<Arc<LocalState>>,
    /// The records, and the epoch of their lease term.
    pub(super) opened: Mutex<Option<(u64, Arc<PresenceStore>)>>,
}

impl Presence {
    pub(super) fn new(backend: Arc<dyn Backend>, local: Option<Arc<LocalState>>) -> Self {
        Self { backend, local, opened: Mutex::default() }
    }

    /// Opens the presence records for the lease term with this epoch, if there is local state.
    pub(super) async fn open(&self, identity: &str, epoch: u64, continues: Option<u64>) -> Result<()> {
        let Some(local) = self.local.clone() else { return Ok(()) };
        let identity = identity.to_owned();
        let open = move || Ok(local.presence(&identity, epoch, continues));
        let opened = self.backend.runtime().run_blocking("open records", open).await?;
        let opened = opened.map(|records| (epoch, records));
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(())
    }

    /// The records, while their lease term lasts.
    pub(super) fn records(&self) -> Option<Arc<PresenceStore>> {
        let epoch = self.backend.lease_term()?.epoch;
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened
            .as_ref()
            .filter(|(of, _)| *of == epoch || mutated!("records-outlive-their-term"))
            .map(|(_, records)| Arc::clone(records))
    }
}

impl ChunkStore {
    /// Opens the presence records of the store with this identity, if there is local state and this process alone may change
    /// the store.
    pub(crate) async fn open_presence(&self, identity: &str) -> Result<()> {
        // Records save requests, and a lookup needs none here.
        if self.backend.capabilities().cheap_presence {
            return Ok(());
        }
        let Some(lease_term) = self.backend.lease_term() else { return Ok(()) };
        self.fetcher.presence.open(identity, lease_term.epoch, lease_term.continues).await
    }

    pub(super) async fn recorded(&self, digest: Digest) -> Result<Option<u64>> {
        let Some(presence) = self.fetcher.presence.records() else { return Ok(None) };
        let look = move || Ok(presence.get(&digest).map(u64::from));
        self.backend.runtime().run_blocking("look up chunk", look).await
    }

    /// Records that the store has the chunk. Without the record, a later backup sends it again.
    pub(super) async fn record(&self, digest: Digest, size: u64) {
        let (Some(presence), Ok(size)) = (self.fetcher.presence.records(), u32::try_from(size)) else {
            return;
        };
        let record = move || Ok(presence.set(digest, size));
        let _ = self.backend.runtime().run_blocking("record chunk", record).await;
    }

    /// Begins a new lease term, which invalidates the presence records of all other processes (H16).
    pub(crate) async fn begin_term(&self, identity: &str) -> Result<()> {
        let before = self.backend.lease_term().filter(|_| !self.backend.capabilities().cheap_presence);
        let Some(before) = before else { return self.backend.begin_term().await };
        let presences = self.shared().presences();
        // The records of this process must be open before their term ends, to be carried over.
        for presence in &presences {
            presence.open(identity, before.epoch, before.continues).await?;
        }
        self.backend.begin_term().await?;
        let Some(after) = self.backend.lease_term() else { return Ok(()) };
        for presence in &presences {
            presence.open(identity, after.epoch, Some(before.epoch)).await?;
        }
        Ok(())
    }
}

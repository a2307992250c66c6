//! The presence records of one handle of a store, and the lease term in which they are valid.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::error::Result;
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
        opened.as_ref().filter(|(of, _)| *of == epoch).map(|(_, records)| Arc::clone(records))
    }
}

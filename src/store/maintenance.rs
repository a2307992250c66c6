//! What the rooms above the store need of it: garbage collection, verification, pruning and sync.

use std::sync::Arc;

use crate::backend::Backend;
use crate::error::Result;
use crate::rt::Runtime;
use crate::store::Datastore;
use crate::store::chunks::ChunkStore;

impl Datastore {
    /// The backend, with copies of metadata in front of it if there is local state.
    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// The gate for chunks.
    pub(crate) fn chunks(&self) -> &ChunkStore {
        &self.inner.chunks
    }

    /// Refuses to change a store that needs what this version does not know (H92), and gives it an identity if it has none.
    pub(crate) async fn check_writable(&self, action: &'static str) -> Result<()> {
        self.inner.check_writable(action).await
    }

    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    /// The backend itself: what it says comes from no copy (H10).
    pub(crate) fn truth(&self) -> &Arc<dyn Backend> {
        match &self.inner.local {
            Some(local) => local.mirrored.truth(),
            None => &self.inner.backend,
        }
    }
}

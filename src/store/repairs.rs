//! Quarantine, reinstatement and suspects: what a verification changes in the chunks.

use std::sync::Arc;

use crate::chunks::{QuarantineOutcome, Reinstatement};
use crate::crypt::EncryptionKey;
use crate::error::Result;
use crate::format::Digest;
use crate::store::StoreInner;

/// Changes that a verification makes to chunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repairs<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Repairs of the store.
    pub(crate) fn repairs(self: &Arc<Self>) -> Repairs<'_> {
        Repairs { inner: self }
    }
}

impl Repairs<'_> {
    /// Quarantines a corrupt chunk. Completes even if the caller is dropped.
    pub(crate) async fn quarantine(
        &self,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> QuarantineOutcome {
        let (store, key) = (Arc::clone(self.inner), key.cloned());
        let work = async move {
            let guard = store.locks().store_to_repair().await?;
            Ok(store.chunks.quarantine(guard.as_ref(), digest, length, key.as_ref()).await)
        };
        self.inner
            .runtime()
            .run_detached("quarantine a chunk", work)
            .await
            .unwrap_or_else(QuarantineOutcome::Failed)
    }

    /// Reinstates a missing chunk, if a quarantined copy is good.
    pub(crate) async fn reinstate(
        &self,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> Result<Reinstatement> {
        if !self.inner.chunks.has_quarantined(digest).await? {
            return Ok(Reinstatement::None);
        }
        let guard = self.inner.locks().store_to_repair().await?;
        self.inner.chunks.reinstate(guard.as_ref(), digest, length, key).await
    }

    /// Makes missing chunks suspects until they are stored again.
    pub(crate) async fn suspect_missing(&self, digests: &[Digest]) -> Result<()> {
        // Where presence is cheap, writers see that they are missing.
        if digests.is_empty() || self.inner.backend.capabilities().certain_presence {
            return Ok(());
        }
        let _guard = self.inner.locks().store_to_repair().await?;
        self.inner.chunks.add_suspects(digests).await
    }

    /// Removes chunks from the suspect list that were found good or stored again.
    pub(crate) async fn clear_suspects(&self) -> Result<()> {
        let cleared = self.inner.chunks.cleared_suspects();
        if cleared.is_empty() {
            return Ok(());
        }
        let _held = self.inner.locks().store().await?;
        self.inner.backend.barrier().await?;
        self.inner.chunks.unlist_suspects(&cleared).await
    }
}

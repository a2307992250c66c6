//! Retirement of chunks in packs: the decision which copies a vanishing pack must leave behind.

use std::sync::Arc;

use bytes::Bytes;

use crate::chunks::ChunkStore;
use crate::error::Result;
use crate::format::Digest;
use crate::packs::PackedBackend;
use crate::packs::reclaim::PackCopy;

impl ChunkStore {
    /// Checks the stored form of a copy that is about to be relied on, as far as that is possible without a key.
    pub(crate) async fn check_copy(&self, digest: Digest, blob: Bytes) -> Result<Result<Bytes>> {
        let codecs = Arc::clone(self.codecs());
        let check = move || Ok(codecs.inspect_any(blob.clone(), digest).map(|()| blob));
        self.backend.runtime().run_blocking("check chunk", check).await
    }

    /// Hides those of the copies from writers that nothing needs, and returns the others.
    ///
    /// Each decision is made under the digest lock, which is taken without waiting: a task with the lock is about to use the chunk (I3, H6). A
    /// writer pins under the lock before it looks the chunk up, so it finds a retired chunk absent and stores it again (H1).
    pub(crate) fn retire(
        &self,
        packs: &PackedBackend,
        copies: &[PackCopy],
        is_needed: impl Fn(&Digest) -> bool,
    ) -> Vec<PackCopy> {
        let shared = self.shared();
        let stays = |copy: &&PackCopy| {
            let Some(_digest_lock) = shared.digest_locks.try_lock(copy.digest) else { return true };
            let is_pinned = shared.pins.is_pinned(&copy.digest) && !mutated!("retire-ignores-pins");
            if is_pinned || is_needed(&copy.digest) {
                return true;
            }
            if !mutated!("retire-without-notice") {
                packs.retire(copy);
            }
            false
        };
        copies.iter().filter(stays).copied().collect()
    }
}

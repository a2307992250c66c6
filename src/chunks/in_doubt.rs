//! Chunks with a pending delete.
//!
//! A delete request without an answer may be executed later (H17). Until that is impossible, the chunk counts as
//! missing: a writer that needs it stores it, and before it publishes an index it waits for the end of that time and checks
//! that the chunk exists. The same holds for chunks that an earlier holder of the store may have been deleting.

use bytes::Bytes;

use crate::chunks::ChunkStore;
use crate::chunks::pins::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::{LIMIT_BYTES, prefixes};
use crate::format::layout::Key;

impl ChunkStore {
    /// Returns `true` if a pending delete may remove the chunk; its writer then checks it before it publishes.
    pub(super) fn note_pending_delete(&self, writer: &WriterPins, digest: Digest) -> bool {
        mutated!("put-forgets-pending-deletes" => return false);
        let is_pending =
            self.shared().delete_pending_for(&digest, self.backend.runtime().monotonic()).is_some();
        if is_pending {
            writer.require_check(digest);
        }
        is_pending
    }

    /// Waits until no pending delete can remove a chunk of this writer, and makes sure that all exist (H17). Usually
    /// there is nothing to wait for; otherwise it may take half an hour.
    ///
    /// # Errors
    /// `Conflict` if a chunk was deleted: the backup has to be repeated.
    pub(crate) async fn await_pending_deletes(&self, writer: &WriterPins) -> Result<()> {
        mutated!("publish-before-deletes-end" => return Ok(()));
        let (runtime, to_check) = (self.backend.runtime(), writer.to_check());
        if to_check.is_empty() {
            return Ok(());
        }
        let left = |digest| self.shared().delete_pending_for(digest, runtime.monotonic());
        while let Some(left) = to_check.iter().filter_map(left).max() {
            runtime.sleep(left).await;
        }
        let keys: Vec<_> = to_check.iter().copied().map(Key::Chunk).collect();
        let mut lost = None;
        for (digest, found) in to_check.iter().zip(self.backend.head_many(&keys).await?) {
            match found {
                Ok(_) => writer.note_checked(digest),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // Other users of the pins have to store it again.
                    writer.unconfirm(*digest);
                    self.fetcher.mark_suspect(*digest).await;
                    lost = Some(*digest);
                }
                Err(error) => return Err(error),
            }
        }
        match lost {
            None => Ok(()),
            Some(digest) => {
                let error = Error::new(ErrorKind::Conflict, "store chunk").on(digest);
                Err(error.because("it was removed after it was stored"))
            }
        }
    }

    /// Chunks that a pending delete may remove.
    pub(crate) fn pending_deletes(&self) -> Vec<Digest> {
        self.shared().pending_deletes(self.backend.runtime().monotonic())
    }

    /// Reads which chunks an earlier holder of the store may have been deleting: the list of candidates names them all.
    pub(crate) async fn inherit_pending_deletes(&self, candidates: &Key) -> Result<()> {
        let now = self.backend.runtime().monotonic();
        let in_doubt = self.backend.lease_term().filter(|lease_term| lease_term.in_doubt);
        let Some(since) = in_doubt.map(|lease_term| lease_term.since) else { return Ok(()) };
        if self.shared().has_inherited(since, now) {
            return Ok(());
        }
        let found = match self.backend.get(candidates, LIMIT_BYTES).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => Bytes::new(),
            object => object?.bytes,
        };
        let prefixes = move || Ok(prefixes(&found));
        let mut prefixes = self.backend.runtime().run_blocking("read GC candidates", prefixes).await?;
        // Chunks being quarantined, too.
        let suspects = self.fetcher.suspects();
        prefixes.extend(
            suspects.iter().map(|digest| std::array::from_fn::<_, 12, _>(|at| digest.as_bytes()[at])),
        );
        drop(suspects);
        self.shared().inherit(prefixes, since, now);
        Ok(())
    }
}

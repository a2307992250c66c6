//! Reuse of chunks that a snapshot names and the writer has not read.

use crate::backend::Touched;
use crate::chunks::ChunkStore;
use crate::chunks::pins::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MIN_BLOB_BYTES;
use crate::format::layout::Key;

/// Source of the claim that the store has a chunk already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReuseSource {
    /// A locked snapshot of this store names it: trusted where the backend does not know (D9).
    Base,
    /// A snapshot of a store with the same identity names it, which may be a copy of the store. The chunk must be seen.
    Copy,
}

impl ChunkStore {
    /// Pins chunks that a base names and the writer has not read, and makes sure that they are in the store.
    ///
    /// # Errors
    /// `Corrupt` if one of them is missing or corrupt: the base is damaged.
    pub(crate) async fn reuse(&self, writer: &WriterPins, digests: &[Digest]) -> Result<()> {
        let mut wanted = digests.to_vec();
        // In order, so that two writers that need the same chunks do not deadlock.
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|digest| !writer.is_confirmed(digest));
        let mut digest_locks = Vec::with_capacity(wanted.len());
        for digest in &wanted {
            digest_locks.push(self.shared().digest_locks.lock(*digest).await);
        }
        // Before the lookup, and under the digest locks: from here on no sweep of this process removes the chunks (I2, I3).
        wanted.retain(|digest| !writer.pin(*digest));
        let keys: Vec<Key> = wanted.iter().copied().map(Key::Chunk).collect();
        for digest in &wanted {
            // The writer has no contents to store again. It waits before it publishes, and fails if the chunk is gone then (H17).
            self.note_pending_delete(writer, *digest);
        }
        for (digest, touched) in wanted.into_iter().zip(self.touch_again(&keys).await?) {
            let is_suspect = self.fetcher.suspects().contains(&digest);
            match touched {
                _ if is_suspect => {
                    let error = Error::new(ErrorKind::Corrupt, "reuse chunk").on(digest);
                    return Err(error.because("the base names it, but it was found bad or gone"));
                }
                Touched::Present(info) if info.size >= MIN_BLOB_BYTES as u64 => {}
                // The base stays locked until the snapshot is published, so every collector marks its chunks (D9).
                Touched::Unknown => {}
                _ => {
                    return Err(Error::new(ErrorKind::Corrupt, "reuse chunk")
                        .on(digest)
                        .because("the base names it, but it is missing or empty"));
                }
            }
            writer.confirm(digest);
        }
        Ok(())
    }

    /// Touches chunks that the store should have. In a packed store, another process may have stored them since the view was read.
    async fn touch_again(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let touched = self.backend.touch(keys).await?;
        let is_whole = touched.iter().all(|touched| *touched != Touched::Absent);
        match &self.packs {
            Some(packs) if !is_whole => {
                // If the view is not read now, another task may have read it meanwhile.
                packs.look_for_chunks().await?;
                self.backend.touch(keys).await
            }
            _ => Ok(touched),
        }
    }

    /// Pins a chunk that some source says is in the store; returns `true` if it certainly is.
    ///
    /// # Errors
    /// Any failure of the backend.
    ///
    /// # Cancel safety
    /// As for [`put_stored`](Self::put_stored).
    pub(crate) async fn reuse_if_present(
        &self,
        writer: &WriterPins,
        digest: Digest,
        source: ReuseSource,
    ) -> Result<bool> {
        if writer.is_confirmed(&digest) {
            return Ok(true);
        }
        let _digest_lock = self.shared().digest_locks.lock(digest).await;
        // Before the lookup, and under the digest lock: from here on no sweep of this process removes the chunk (I2, I3).
        if !mutated!("reuse-pins-nothing") && writer.pin(digest) {
            return Ok(true);
        }
        // Not certain: the caller brings the chunk and stores it.
        let is_suspect = self.fetcher.suspects().contains(&digest) && !mutated!("reuse-believes-suspects");
        if is_suspect || self.note_pending_delete(writer, digest) {
            return Ok(false);
        }
        let key = Key::Chunk(digest);
        let least = MIN_BLOB_BYTES as u64;
        let is_there = match self.touch_one(&key).await? {
            Touched::Absent => false,
            Touched::Present(info) => info.size >= least || mutated!("reuse-of-an-empty-chunk"),
            Touched::Unknown if source == ReuseSource::Base => true,
            Touched::Unknown => match self.backend.head(&key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                found => found?.size >= least,
            },
        };
        if is_there {
            writer.confirm(digest);
        }
        Ok(is_there)
    }
}

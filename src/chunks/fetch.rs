//! Reading of chunks, from the local disk or the store, once for all concurrent readers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, WeakShared};

use crate::backend::Backend;
use crate::buffers::BytesList;
use crate::chunks::CachePolicy;
use crate::chunks::codecs::Codecs;
use crate::chunks::presence::Presence;
use crate::chunks::shared::Binding;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MAX_ENCODED_CHUNK_BYTES;
use crate::format::layout::Key;
use crate::local::LocalState;
use crate::packs::PackedBackend;
use crate::rt::limit::Limit;
use crate::trace;

/// Reads chunks for one handle.
#[derive(Debug)]
pub(super) struct Fetcher {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) binding: Binding,
    pub(super) codecs: Arc<Codecs>,
    /// One job for each processor encodes or decodes a chunk. More take memory and time, even one that would replace another at once.
    pub(super) coding: Arc<Limit>,
    flights: Mutex<HashMap<Wanted, WeakShared<Flight>>>,
    pub(super) local: Option<Arc<LocalState>>,
    packs: Option<PackedBackend>,
    /// The presence records of this handle.
    pub(super) presence: Arc<Presence>,
}

/// A chunk that a reader wants. Readers with different keys share nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) cache_policy: CachePolicy,
    pub(super) digest: Digest,
    pub(super) key: Option<EncryptionKey>,
    /// Plaintext length.
    pub(super) length: usize,
}

type Flight = BoxFuture<'static, Result<BytesList>>;

impl Fetcher {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        codecs: Arc<Codecs>,
        local: Option<Arc<LocalState>>,
        packs: Option<PackedBackend>,
        identity: Option<&str>,
    ) -> Self {
        let presence = Arc::new(Presence::new(Arc::clone(&backend), local.clone()));
        let binding = Binding::new(identity, &presence);
        let coding = Limit::new(backend.runtime().parallelism().get());
        Self { backend, binding, codecs, coding, flights: Mutex::default(), local, packs, presence }
    }

    /// Joins the read of a chunk in progress, or begins one. It continues while any reader wants it.
    pub(super) fn join(self: Arc<Self>, wanted: Wanted) -> Shared<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&wanted).and_then(WeakShared::upgrade) {
            return flight;
        }
        let (fetcher, reading) = (Arc::clone(&self), wanted.clone());
        let flight = async move {
            let landing = Landing { fetcher: Arc::clone(&fetcher), wanted: reading };
            fetcher.read(&landing.wanted).await
        };
        let flight = flight.boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (wanted, weak)));
        flight
    }

    async fn read(&self, wanted: &Wanted) -> Result<BytesList> {
        let Wanted { cache_policy, digest, ref key, length } = *wanted;
        if let Some(plaintext) = self.read_locally(wanted).await? {
            return Ok(plaintext);
        }
        let fetched = self.fetch(digest, length, key.as_ref()).await;
        if let Err(error) = &fetched
            && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
        {
            if !self.suspects().contains(&digest) {
                trace::damage(&format_args!("chunk {digest}"), error);
            }
            if !mutated!("read-forgets-damage") {
                self.mark_suspect(digest).await;
            }
        }
        let (stored, plaintext) = fetched?;
        if cache_policy == CachePolicy::Populate {
            self.keep(digest, stored).await;
        }
        Ok(plaintext)
    }

    pub(super) fn suspects(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.binding.suspects()
    }

    /// Makes a chunk a suspect after it was found missing or corrupt: the next backup that contains it stores it again (H22, H23).
    pub(super) async fn mark_suspect(&self, digest: Digest) {
        // If the disk fails, the suspect still makes the record void in this process.
        let _ = self.mark_suspect_durably(digest).await;
    }

    /// As [`mark_suspect`](Self::mark_suspect), durably: when it returns, later processes have no record either.
    ///
    /// # Errors
    /// If the local disk fails.
    pub(super) async fn mark_suspect_durably(&self, digest: Digest) -> Result<()> {
        self.suspects().insert(digest);
        self.forget_records(&[digest]).await
    }

    /// Forgets the presence records of these chunks in all handles, so that writers store them again.
    ///
    /// # Errors
    /// If a local disk fails.
    pub(super) async fn forget_records(&self, digests: &[Digest]) -> Result<()> {
        let presences = self.binding.current().presences();
        let records: Vec<_> = presences.iter().filter_map(|presence| presence.records()).collect();
        if digests.is_empty() || records.is_empty() {
            return Ok(());
        }
        let digests = digests.to_vec();
        let forget = move || {
            for presence in records {
                presence.forget_all(&digests).map_err(|error| Error::io(error, "forget chunks"))?;
            }
            Ok(())
        };
        self.backend.runtime().run_blocking("forget chunks", forget).await
    }

    /// Reads a chunk from the local disk. A damaged copy is removed and counts as a miss (H66).
    async fn read_locally(&self, wanted: &Wanted) -> Result<Option<BytesList>> {
        let Some(local) = self.local.clone().filter(|local| local.chunks.is_some()) else { return Ok(None) };
        let codecs = Arc::clone(&self.codecs);
        let Wanted { digest, key, length, .. } = wanted.clone();
        let read = move || {
            let Some(cache) = &local.chunks else { return Ok(None) };
            let Some(stored) = cache.get(&digest) else { return Ok(None) };
            match codecs.decode_list(&stored, digest, length, key.as_ref()) {
                Ok(plaintext) => Ok(Some(plaintext)),
                Err(error) if error.kind() == ErrorKind::KeyRequired => Ok(None),
                Err(_) => {
                    cache.remove_damaged(&digest);
                    Ok(None)
                }
            }
        };
        self.backend.runtime().run_blocking("read chunk", read).await
    }

    /// Reads a chunk from the store: its stored bytes and its checked contents (H68).
    pub(super) async fn fetch(
        &self,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<(Bytes, BytesList)> {
        // A chunk found bad meanwhile stays a suspect.
        let was_suspect = self.suspects().contains(&digest);
        let mut fetched = self.fetch_copy(digest, length, key).await;
        // In a packed store, another process may have stored a good copy elsewhere. The view may know it already: another reader may have read
        // the view again since the damaged copy was read.
        if let (Err(error), Some(packs)) = (&fetched, &self.packs)
            && error.kind() == ErrorKind::Corrupt
            && !mutated!("damaged-chunk-has-one-copy")
        {
            packs.look_for_copies().await?;
            fetched = self.fetch_copy(digest, length, key).await;
            if fetched.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt) {
                fetched = self.fetch_any_copy(packs, digest, length, key).await?.map_or(fetched, Ok);
            }
        }
        let fetched = fetched?;
        if was_suspect {
            self.suspects().remove(&digest);
        }
        Ok(fetched)
    }

    async fn fetch_copy(
        &self,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<(Bytes, BytesList)> {
        let object = self.backend.get(&Key::Chunk(digest), MAX_ENCODED_CHUNK_BYTES as u64).await?;
        self.decode(object.bytes, digest, length, key).await
    }

    /// Reads the first copy in packs that is good. Without the key, the backend cannot tell copies of an encrypted chunk apart whose checksums
    /// fit.
    async fn fetch_any_copy(
        &self,
        packs: &PackedBackend,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<Option<(Bytes, BytesList)>> {
        let copies = packs.readable_copies(&digest).await?;
        if copies.len() < 2 {
            return Ok(None);
        }
        for copy in copies {
            let Ok(stored) = packs.read_copy(&copy).await else { continue };
            if let Ok(fetched) = self.decode(stored, digest, length, key).await {
                return Ok(Some(fetched));
            }
        }
        Ok(None)
    }

    async fn decode(
        &self,
        stored: Bytes,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<(Bytes, BytesList)> {
        let (codecs, key) = (Arc::clone(&self.codecs), key.cloned());
        let decode = move || {
            let plaintext = codecs.decode_list(&stored, digest, length, key.as_ref())?;
            Ok((stored, plaintext))
        };
        self.coding.run(self.backend.runtime().as_ref(), "decode chunk", decode).await
    }

    /// Keeps the stored form of a chunk on the local disk, if there is local state. A failure to keep it is ignored (H63).
    pub(super) async fn keep(&self, digest: Digest, stored: Bytes) {
        let Some(local) = self.local.clone().filter(|local| local.chunks.is_some()) else { return };
        let keep = move || {
            if let Some(cache) = &local.chunks {
                cache.insert(&digest, &stored);
            }
            Ok(())
        };
        let _ = self.backend.runtime().run_blocking("keep chunk", keep).await;
    }
}

/// Ends a shared read: later readers begin another.
struct Landing {
    fetcher: Arc<Fetcher>,
    wanted: Wanted,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.fetcher.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.wanted);
    }
}

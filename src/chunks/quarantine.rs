//! Inspection, quarantine and reinstatement of chunks.
//!
//! # Quarantine
//! All of it happens under the digest lock and the lock of the store, in a task of its own that completes even if its caller
//! is dropped (H26, H161):
//!
//! | step | left by a crash after it |
//! |---|---|
//! | suspect: in memory, its record forgotten on the disk, on the list of suspects | the chunk, which the next upload replaces |
//! | read and checked once more: good by now → nothing is done | the same |
//! | copied to `<digest>.N.bad`, N the first of 0 to 8 that is free, else 9; the length of the copy compared | the same, and a copy |
//! | barrier, lock still held | the same |
//! | deleted: that version only, where the backend can | no chunk, a copy; the next upload stores it |
//! | the copy on the local disk removed | the same |
//! | off the list of suspects, after the next barrier | the same |
//!
//! A missing or unreadable chunk is never quarantined (I7).
//!
//! # Reinstatement
//! If a chunk is missing and a quarantined copy passes all checks, for instance because a provider returned wrong data for a
//! while, the copy is copied back, but never over an existing object (H98).
//!
//! An encrypted chunk that was checked without the key stays a suspect: a checksum finds neither a changed tag nor a changed
//! initialisation vector, and an attacker who changes the contents also changes the checksum. A writer or reader with the key clears it.

use bytes::Bytes;

use crate::backend::{ListEntry, ListQuery, LockGuard, ObjectInfo, PutMode, Removal, list_all};
use crate::chunks::ChunkStore;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MAX_ENCODED_CHUNK_BYTES;
use crate::format::layout::{Key, Prefix};

pub(crate) use crate::chunks::codecs::Examined;

/// Number of the copy that is replaced when there are ten.
const LAST: u8 = 9;

/// Result of the inspection of a stored chunk.
#[derive(Debug)]
pub(crate) enum Inspected {
    /// Complete, and fails a check.
    Corrupt,
    Good(Examined),
    /// Certainly missing.
    Missing,
    /// Unknown.
    Unreachable(Error),
}

/// Outcome of a quarantine.
#[derive(Debug)]
pub(crate) enum QuarantineOutcome {
    /// The chunk is gone.
    Absent,
    /// Quarantined: a copy exists, and the chunk is removed.
    Done,
    /// The chunk stays, as a suspect.
    Failed(Error),
    /// The chunk is good now.
    Healed(Examined),
}

/// Outcome of a reinstatement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reinstatement {
    /// A quarantined copy was good, and is in its place again.
    Done(Examined),
    /// No quarantined copy is good.
    None,
    /// A writer stored the chunk meanwhile.
    Stored,
}

impl ChunkStore {
    /// Reads and checks a chunk where it is, past all copies, none of which is made or moved (H69). Returns how many bytes were read, too.
    pub(crate) async fn inspect(
        &self,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> (Inspected, u64) {
        // A chunk found bad meanwhile stays a suspect.
        let was_suspect = self.fetcher.suspects().contains(&digest);
        let (found, info) = self.inspect_at(&Key::Chunk(digest), digest, length, key).await;
        if was_suspect && matches!(found, Inspected::Good(examined) if examined.clears_suspicion()) {
            self.fetcher.suspects().remove(&digest);
        }
        (found, info.map_or(0, |info| info.size))
    }

    /// Looks up a chunk without reading it.
    pub(crate) async fn find(&self, digest: Digest) -> Result<ObjectInfo> {
        self.backend.head(&Key::Chunk(digest)).await
    }

    async fn inspect_at(
        &self,
        place: &Key,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> (Inspected, Option<ObjectInfo>) {
        let object = match self.backend.get(place, MAX_ENCODED_CHUNK_BYTES as u64).await {
            Ok(object) => object,
            Err(error) => {
                let found = match error.kind() {
                    ErrorKind::Corrupt => Inspected::Corrupt,
                    ErrorKind::NotFound => Inspected::Missing,
                    ErrorKind::Unavailable if mutated!("verify-unreachable-is-missing") => Inspected::Missing,
                    _ => Inspected::Unreachable(error),
                };
                return (found, None);
            }
        };
        let (bytes, codecs, key): (Bytes, _, _) = (object.bytes, self.codecs().clone(), key.cloned());
        let examine = move || Ok(codecs.examine(bytes, digest, length, key.as_ref()));
        let found = match self.backend.runtime().run_blocking("check chunk", examine).await {
            Ok(Ok(examined)) => Inspected::Good(examined),
            Ok(Err(_)) => Inspected::Corrupt,
            Err(error) => Inspected::Unreachable(error),
        };
        (found, Some(object.info))
    }

    /// Begins a lease term in which chunks may be removed, unless this is one, and opens its presence records (H16).
    pub(crate) async fn begin_repairs(&self, identity: &str) -> Result<()> {
        let mut begun = self.repairs.lock().await;
        let epoch = || self.backend.lease_term().map(|lease_term| lease_term.epoch);
        if epoch().is_some() && *begun != epoch() {
            self.begin_term(identity).await?;
            *begun = epoch();
        }
        self.open_presence(identity).await
    }

    /// Quarantines a corrupt chunk.
    ///
    /// # Cancel safety
    /// Not safe to drop: a deletion must end under the digest lock. Run it as a task of its own.
    pub(crate) async fn quarantine(
        &self,
        guard: &dyn LockGuard,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> QuarantineOutcome {
        let _digest_lock = self.shared().digest_locks.lock(digest).await;
        match self.quarantine_inside(guard, digest, length, key).await {
            Ok(done) => done,
            Err(error) => QuarantineOutcome::Failed(error),
        }
    }

    async fn quarantine_inside(
        &self,
        guard: &dyn LockGuard,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> Result<QuarantineOutcome> {
        let place = Key::Chunk(digest);
        // First and durably: whatever interrupts the rest, the next upload replaces the chunk or stores it again (H99).
        self.add_suspects(&[digest]).await?;
        let found = match self.inspect_at(&place, digest, length, key).await {
            (Inspected::Good(examined), _) if !mutated!("quarantine-without-a-second-look") => {
                if examined.clears_suspicion() {
                    self.fetcher.suspects().remove(&digest);
                }
                return Ok(QuarantineOutcome::Healed(examined));
            }
            (Inspected::Missing, _) => return Ok(QuarantineOutcome::Absent),
            (Inspected::Unreachable(error), _) => return Err(error),
            (Inspected::Corrupt | Inspected::Good(_), Some(info)) => info,
            // Too long to read.
            (Inspected::Corrupt | Inspected::Good(_), None) => self.backend.head(&place).await?,
        };
        guard.check().await?;
        self.copy_to_quarantine(digest, found.size).await?;
        // The copy is durable before the original is deleted: it may be the only one, and can turn out to be good.
        if !mutated!("quarantine-before-its-copy-is-durable") {
            self.backend.barrier().await?;
        }
        // Again, since copying takes time: another process that owns the store now may have stored a good chunk here.
        guard.check().await?;
        // Before the delete: writers that rely on the chunk look it up before they publish.
        self.shared().pins.unconfirm(digest);
        self.remove_from_place(digest, found).await?;
        self.note_quarantined(digest);
        self.drop_copy(digest).await;
        Ok(QuarantineOutcome::Done)
    }

    /// Copies a chunk of this length to the first free name.
    async fn copy_to_quarantine(&self, digest: Digest, size: u64) -> Result<()> {
        let backend = self.backend.as_ref();
        let key = Key::Chunk(digest);
        for number in 0..=LAST {
            let quarantined = Key::Quarantined(digest, number);
            let mode = if number == LAST {
                PutMode::Replace
            } else if backend.has(&quarantined).await? {
                continue;
            } else {
                backend.capabilities().create_mode()
            };
            match backend.copy(&key, &quarantined, mode).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                copied => drop(copied?),
            }
            let copied = backend.head(&quarantined).await?.size;
            if copied == size {
                return Ok(());
            }
            let why = format!("the copy {quarantined} has {copied} bytes instead of {size}");
            return Err(Error::new(ErrorKind::Conflict, "quarantine").on(key).because(why));
        }
        Err(Error::new(ErrorKind::Internal, "quarantine").on(key))
    }

    async fn remove_from_place(&self, digest: Digest, found: ObjectInfo) -> Result<()> {
        let backend = self.backend.as_ref();
        let version = backend.capabilities().conditional_delete.then_some(found.version);
        // With a condition the request can remove only the bad version, whenever it is executed. Without one it may remove a good chunk
        // that is stored later, so it is a pending delete until it is answered (H17).
        let shared = self.shared();
        let ticket = version.is_none().then(|| shared.begin_deletes(&[digest], backend.runtime()));
        let deleted = backend.delete(&[Removal { key: Key::Chunk(digest), version }]).await;
        let deleted = deleted.and_then(|deleted| {
            let missing = || Err(Error::new(ErrorKind::Internal, "delete").on(digest));
            deleted.into_iter().next().unwrap_or_else(missing)
        });
        if let Some(ticket) = ticket {
            ticket.finish(&digest, &deleted);
        }
        deleted.map(drop)
    }

    /// Removes a local copy: it dates from when the chunk was good, or is as bad.
    async fn drop_copy(&self, digest: Digest) {
        let Some(local) = self.fetcher.local.clone().filter(|local| local.chunks.is_some()) else { return };
        let remove = move || {
            if let Some(cache) = &local.chunks {
                cache.remove(&digest);
            }
            Ok(())
        };
        let _ = self.backend.runtime().run_blocking("remove a copy", remove).await;
    }

    /// Returns `true` if the chunk has quarantined copies.
    pub(crate) async fn has_quarantined(&self, digest: Digest) -> Result<bool> {
        Ok(!self.quarantined(digest).await?.is_empty())
    }

    /// The quarantined copies of a chunk.
    async fn quarantined(&self, digest: Digest) -> Result<Vec<Key>> {
        let (first, last) = (Key::Chunk(digest), Key::Quarantined(digest, LAST));
        let query = ListQuery::all(Prefix::Chunks).between(Some(first), Some(last)).names();
        let keys = list_all(self.backend.as_ref(), &query).await?.into_entries().into_iter();
        let keys = keys.filter_map(|entry| match entry {
            ListEntry::Name(key) => Some(key),
            ListEntry::Object(info) => Some(info.key),
            ListEntry::Foreign(_) | ListEntry::Prefix(_) | ListEntry::Unreadable(_) => None,
        });
        Ok(keys.filter(|key| matches!(key, Key::Quarantined(of, _) if *of == digest)).collect())
    }

    /// Reinstates a missing chunk, if a quarantined copy is good, and no writer stored it meanwhile. Fails if none is, and one cannot be read.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk in its place or not.
    pub(crate) async fn reinstate(
        &self,
        guard: &dyn LockGuard,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> Result<Reinstatement> {
        let _digest_lock = self.shared().digest_locks.lock(digest).await;
        let (backend, place) = (self.backend.as_ref(), Key::Chunk(digest));
        // A reinstated chunk would vanish again, without a writer that could store it.
        let left = self.shared().delete_pending_for(&digest, backend.runtime().monotonic());
        if let Some(left) = left.filter(|_| !mutated!("reinstate-despite-a-pending-delete")) {
            let error = Error::new(ErrorKind::Busy, "reinstate").on(digest).retry_in(left);
            return Err(
                error.because("an earlier request to delete it got no answer, and may still be executed")
            );
        }
        let mut unread = None;
        for quarantined in self.quarantined(digest).await? {
            let examined = match self.inspect_at(&quarantined, digest, length, key).await.0 {
                Inspected::Good(examined) => examined,
                Inspected::Unreachable(error) => {
                    unread = Some(error);
                    continue;
                }
                Inspected::Corrupt | Inspected::Missing => continue,
            };
            if backend.has(&place).await? {
                return Ok(Reinstatement::Stored);
            }
            guard.check().await?;
            match backend.copy(&quarantined, &place, backend.capabilities().create_mode()).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Ok(Reinstatement::Stored);
                }
                copied => drop(copied?),
            }
            // Durable before it counts as good.
            backend.barrier().await?;
            if examined.clears_suspicion() {
                self.fetcher.suspects().remove(&digest);
            }
            return Ok(Reinstatement::Done(examined));
        }
        // That copy may be good.
        unread.map_or(Ok(Reinstatement::None), Err)
    }

    /// Makes chunks suspects of this process only.
    pub(crate) async fn mark_suspect(&self, digest: Digest) {
        self.fetcher.mark_suspect(digest).await;
    }
}

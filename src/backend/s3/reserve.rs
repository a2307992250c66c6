//! The reserve: two objects whose deletion makes room in a full bucket.
//!
//! Deletions and garbage collection begin with puts: of the owner mark and the lease, of the GC candidates, of the suspects, of the identity
//! that says `destroying`. A server with an exhausted quota refuses them, often even those that replace an object. The objects `reserve-0` and
//! `reserve-1` are stored while the bucket has room, and are deleted when one of these puts fails as `Full`. No decision depends on them.
//!
//! # Size
//! Each is 256 KiB: enough for 16,000 GC candidates, which are 60 GiB of garbage in chunks of 4 MiB, or for the largest lease. A
//! collection shortens a longer list. They are two because a server may count objects instead of bytes, and refuse to replace one at the
//! limit: the first collection stores a new object, the GC candidates, and then replaces it and the lease. The contents do not compress, and
//! mean nothing.
//!
//! # Orders
//! ```text
//! put for a deletion:   put ── Full ──▶ DELETE reserve-0 → put ── Full ──▶ DELETE reserve-1 → put ── Full ──▶ DELETE .gc-status → put
//! put of data:          reserve spent by this process? ── yes ──▶ reserve stored again at full size, or Full → put
//! create a store:       identity → barrier → reserve-1 → reserve-0
//! end of a collection:  GC candidates → reserve-1 → reserve-0, unless they exist → .gc-status
//! close:                lease released → reserve-1 → reserve-0, if this process spent them
//! ```
//! The reserve is deleted before `.gc-status`, since that object has a content: people read it, and the next collection learns from it that the
//! store had snapshots. `.gc-status` is deleted last, also in a store without a reserve.
//!
//! As far as this process knows, data never takes the room of the reserve: a backup whose lease spent the reserve fails as `Full` until the
//! reserve is stored again. Otherwise a backup each night would use up the room that the next deletion needs. The reserve is stored after the
//! lease was released, without a lease: stored before, it could take the room that the release needs, on a server that refuses to replace.
//! With less room, each object is stored with half the size, down to 64 KiB.
//!
//! # States
//! `reserve-1` is stored first and deleted last, so `reserve-0` at full size proves that both exist.
//!
//! | known to this process | becomes | by |
//! |---|---|---|
//! | nothing | whole | a `HEAD` that shows `reserve-0` at full size |
//! | nothing | spent | a `HEAD` that shows its absence, or a `DELETE` that was sent, whatever its answer |
//! | whole | spent | a `DELETE` that was sent |
//! | spent | whole | puts of all missing objects |
//! | any | nothing | closing the store, or deleting its lease |
//!
//! # Failures
//! | event | effect |
//! |---|---|
//! | a late `DELETE` removes the reserve after it was stored again | the store has none until a collection finds that, in another process or after the store was opened again |
//! | a late put stores it after it was spent | more room is reserved than this process knows; the next process finds it |
//! | a late put stores it after the store was destroyed | an object without a function remains; creating or destroying a store there replaces or removes it |
//! | the process dies after it spent the reserve | the store has none until the next complete collection, and others may use the room |
//! | another program uses the room that was freed | the put fails as `Full`, as without a reserve |
//! | the server counts deletions late | the put fails as `Full`; an attempt after the server has counted them succeeds |

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::PutMode;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::s3::{BucketClient, Condition, Stored};

/// Number of objects.
const PARTS: u8 = Key::RESERVES;
/// Size of each in bytes.
const PART_BYTES: usize = 256 << 10;
/// Minimum size of each in bytes, in a bucket without room for the full size.
const MIN_PART_BYTES: usize = 64 << 10;

/// The reserve of one store, and the knowledge of this process about it.
#[derive(Debug)]
pub(super) struct Reserve {
    /// Held while the reserve is stored.
    making: AsyncMutex<()>,
    state: Mutex<State>,
    /// The name of the store and a `/`, or empty.
    store: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Objects with lower numbers are known to be absent.
    gone: u8,
    /// Both are known to exist at full size.
    is_whole: bool,
    /// Number of deletions.
    spent: u64,
}

impl Reserve {
    /// The reserve of the store whose keys begin with `store`.
    pub(super) fn new(store: &str) -> Self {
        Self { making: AsyncMutex::default(), state: Mutex::default(), store: store.to_owned() }
    }

    /// Stores an object of the store. A put that a deletion needs may spend the reserve; any other put fails while the reserve is spent and
    /// cannot be stored again.
    ///
    /// # Errors
    /// As for [`BucketClient::put`].
    pub(super) async fn store(
        &self,
        client: &BucketClient,
        (key, mode): (&Key, &PutMode),
        (rendered, object, condition): (&str, Bytes, &Condition),
    ) -> Result<Stored> {
        let is_needed = match key {
            // A segment names the packs that a collection drops.
            Key::GcCandidates | Key::Segment(_) | Key::Suspects => true,
            // The identity is replaced to mark the store as being destroyed.
            Key::Store => *mode == PutMode::Replace,
            _ => false,
        };
        if is_needed {
            return self.put(client, rendered, object, condition).await;
        }
        self.before_data(client).await?;
        client.put_object(rendered, object, condition).await
    }

    /// Stores an object that a deletion needs. In a full bucket, deletes the objects of the reserve one after the other to make room.
    ///
    /// # Errors
    /// As for [`BucketClient::put`] and [`BucketClient::delete`]; `Full` if the bucket is full without these objects too.
    pub(super) fn put<'a>(
        &'a self,
        client: &'a BucketClient,
        key: &'a str,
        bytes: Bytes,
        condition: &'a Condition,
    ) -> BoxFuture<'a, Result<Stored>> {
        Box::pin(async move {
            let is_full = |put: &Result<Stored>| matches!(put, Err(error) if error.kind() == ErrorKind::Full);
            let mut put = client.put_object(key, bytes.clone(), condition).await;
            while is_full(&put) && !mutated!("reserve-is-never-spent") {
                let Some(number) = self.spend() else { break };
                let client = client.after_failure();
                let _ = client.delete(&self.key(&Key::Reserve(number)), &Condition::Always).await?;
                put = client.put_object(key, bytes.clone(), condition).await;
            }
            if is_full(&put) {
                let client = client.after_failure();
                let _ = client.delete(&self.key(&Key::GcStatus), &Condition::Always).await?;
                put = client.put_object(key, bytes, condition).await;
            }
            put
        })
    }

    /// Fails while the reserve is spent and cannot be stored again. Called before a put of data.
    ///
    /// # Errors
    /// `Full`; as for [`BucketClient::put`].
    pub(super) async fn before_data(&self, client: &BucketClient) -> Result<()> {
        if self.state().gone == 0 { Ok(()) } else { self.restore(client, PART_BYTES).await }
    }

    /// Stores the reserve, unless it exists.
    ///
    /// # Errors
    /// `Full`; as for [`BucketClient::head`] and [`BucketClient::put`].
    pub(super) async fn keep(&self, client: &BucketClient) -> Result<()> {
        let state = *self.state();
        if state.gone == 0 && !state.is_whole {
            match client.head(&self.key(&Key::Reserve(0))).await {
                Ok(head) if head.size >= PART_BYTES as u64 => self.state().is_whole = true,
                Ok(_) => return self.grow(client).await,
                Err(error) if error.kind() == ErrorKind::NotFound => self.state().gone = PARTS,
                Err(error) => return Err(error),
            }
        }
        self.restore(client, MIN_PART_BYTES).await
    }

    /// Ends the use of the store. Stores the reserve again if this process spent it; after a failure, the next collection stores it.
    pub(super) async fn end(&self, client: &BucketClient) {
        let _ = self.restore(client, MIN_PART_BYTES).await;
        self.forget();
    }

    /// Forgets all knowledge about the reserve.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        (state.gone, state.is_whole) = (0, false);
    }

    /// Marks the next object as deleted, and returns its number; `None` if both are.
    fn spend(&self) -> Option<u8> {
        let mut state = self.state();
        let number = Some(state.gone).filter(|number| *number < PARTS)?;
        *state = State { gone: number + 1, is_whole: false, spent: state.spent + 1 };
        Some(number)
    }

    /// Stores the absent objects, with at least `least` bytes each.
    async fn restore(&self, client: &BucketClient, least: usize) -> Result<()> {
        let _alone = self.making.lock().await;
        let before = *self.state();
        let mut is_whole = before.is_whole || before.gone == PARTS;
        for number in (0..before.gone).rev() {
            is_whole &= self.put_part(client, number, least).await? == PART_BYTES;
            let mut state = self.state();
            if state.spent != before.spent {
                // A put of the lease spent it meanwhile.
                return Err(Error::new(ErrorKind::Full, "store the reserve"));
            }
            state.gone = number;
        }
        let mut state = self.state();
        state.is_whole = is_whole && state.gone == 0;
        Ok(())
    }

    /// Replaces a smaller reserve at full size, if the bucket has room.
    async fn grow(&self, client: &BucketClient) -> Result<()> {
        let _alone = self.making.lock().await;
        let before = self.state().spent;
        for number in (0..PARTS).rev() {
            match self.put_part(client, number, PART_BYTES).await {
                Err(error) if error.kind() == ErrorKind::Full => return Ok(()),
                put => put?,
            };
        }
        let mut state = self.state();
        state.is_whole = state.spent == before;
        Ok(())
    }

    /// Stores one object and returns its size, which is halved as long as the bucket has no room for it.
    async fn put_part(&self, client: &BucketClient, number: u8, least: usize) -> Result<usize> {
        let (key, mut size) = (self.key(&Key::Reserve(number)), PART_BYTES);
        loop {
            match client.put(&key, contents(size), &Condition::Always).await {
                Err(error) if error.kind() == ErrorKind::Full && size / 2 >= least => size /= 2,
                put => return put.map(|_| size),
            }
        }
    }

    fn key(&self, key: &Key) -> String {
        format!("{}{key}", self.store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that do not compress, the same each time.
fn contents(size: usize) -> Bytes {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; size.next_multiple_of(8)];
    for next in bytes.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        next.copy_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

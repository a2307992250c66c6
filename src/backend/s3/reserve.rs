//! The reserve: two objects whose deletion makes room in a bucket that takes no more objects.
//!
//! Deleting and collecting garbage begin with puts: of the mark and the lease, of the list of candidates, of the list of suspects, of the
//! identity that says `destroying`. A server whose quota is used up refuses them, often even those that replace an object. `reserve-0` and
//! `reserve-1` are stored while there is room, and are deleted when one of these puts is answered as `Full`. Nothing is decided by them.
//!
//! # Size
//! 256 KiB each, so that either holds a list of 16,000 candidates, which are 60 GiB of garbage in chunks of 4 MiB, or a lease at its longest.
//! A longer list is shortened by the collection. They are two because a server may count objects instead of bytes and refuse
//! to replace any at the limit: the first collection makes a new object, the list of candidates, and has to replace it and the lease
//! afterwards. The contents cannot be compressed to nothing, and have no meaning.
//!
//! # Orders
//! ```text
//! a put that deleting needs:  put ── Full ──▶ DELETE reserve-0 → put ── Full ──▶ DELETE reserve-1 → put ── Full ──▶ DELETE .gc-status → put
//! a put of data:              reserve spent by this process? ── yes ──▶ reserve stored again in full, or Full → put
//! creating a store:           identity → barrier → reserve-1 → reserve-0
//! end of a collection:        list of candidates → reserve-1 → reserve-0, unless they are there → .gc-status
//! closing:                    lease given back → reserve-1 → reserve-0, if this process spent them
//! ```
//! The reserve goes before `.gc-status`, since that one has a content: people read it, and the next collection takes from it that there
//! were snapshots. `.gc-status` goes last, also where there is no reserve.
//!
//! Data never takes the room that the reserve left, as far as this process knows: a backup whose lease cost the reserve is refused as
//! `Full` until the reserve is stored again. Otherwise a backup each night would use up what the next deletion needs.
//! When the lease was given back the reserve is stored without it: before, the lease could not be given back on a server that refuses to
//! replace. Where there is less room than it takes, each object is stored with half the size, down to 64 KiB.
//!
//! # States
//! `reserve-1` is stored first and deleted last, so `reserve-0` of full size shows that both are there.
//!
//! | known to this process | becomes | by |
//! |---|---|---|
//! | nothing | whole | a `HEAD` that shows `reserve-0` of full size |
//! | nothing | spent | a `HEAD` that shows none, or a `DELETE` that was sent, whatever was answered |
//! | whole | spent | a `DELETE` that was sent |
//! | spent | whole | a put of all that is missing |
//! | any | nothing | the store is closed, or its lease deleted |
//!
//! # What may go wrong
//! | event | effect |
//! |---|---|
//! | a late `DELETE` removes the reserve after it was stored again | there is none until a collection by another process, or after the store was opened again, finds that |
//! | a late put stores it after it was spent | more room is kept than is known of; the next process finds it |
//! | a late put stores it after the store was destroyed | an object without a function is left; whoever makes or destroys a store there replaces or removes it |
//! | the process dies after it spent the reserve | there is none until the next collection that ends well, and others may use up the room |
//! | somebody else uses up the room that was freed | the put fails as `Full`, as without a reserve |
//! | the server counts late what was deleted | the put fails as `Full`; once the server has counted it, a second try succeeds |

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::PutMode;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::s3::{Condition, S3Client};

/// How many objects there are.
const PARTS: u8 = Key::RESERVES;
/// The size of each in bytes.
const PART_BYTES: usize = 256 << 10;
/// The smallest size in bytes with which one is stored where there is no room for more.
const MIN_PART_BYTES: usize = 64 << 10;

/// The reserve of one store, and what this process knows of it.
#[derive(Debug)]
pub(super) struct Reserve {
    /// Held while it is stored again.
    making: AsyncMutex<()>,
    state: Mutex<State>,
    /// The name of the store and a `/`, or empty.
    store: String,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Those with lower numbers are known to be gone.
    gone: u8,
    /// Both are known to be there in full size.
    is_whole: bool,
    /// How often one of them was deleted.
    spent: u64,
}

impl Reserve {
    /// The reserve of the store whose keys begin with `store`.
    pub(super) fn new(store: &str) -> Self {
        Self { making: AsyncMutex::default(), state: Mutex::default(), store: store.to_owned() }
    }

    /// Stores an object of the store: one that deleting needs with room that is freed for it, any other only while the reserve is
    /// not spent.
    ///
    /// # Errors
    /// Those of [`S3Client::put`].
    pub(super) async fn store(
        &self,
        client: &S3Client,
        (key, mode): (&Key, &PutMode),
        (rendered, object, condition): (&str, Bytes, &Condition),
    ) -> Result<String> {
        let is_needed = match key {
            Key::GcCandidates | Key::Suspects => true,
            // Its destruction is written there.
            Key::Store => *mode == PutMode::Replace,
            _ => false,
        };
        if is_needed {
            return self.put(client, rendered, object, condition).await;
        }
        self.before_data(client).await?;
        client.put(rendered, object, condition).await
    }

    /// Stores an object that deleting needs. In a full bucket it frees room, one object after the other.
    ///
    /// # Errors
    /// Those of [`S3Client::put`] and [`S3Client::delete`]; `Full` if there is nothing left to delete.
    pub(super) async fn put(
        &self,
        client: &S3Client,
        key: &str,
        bytes: Bytes,
        condition: &Condition,
    ) -> Result<String> {
        let is_full = |put: &Result<String>| matches!(put, Err(error) if error.kind() == ErrorKind::Full);
        let mut put = client.put(key, bytes.clone(), condition).await;
        while is_full(&put) {
            let Some(number) = self.spend() else { break };
            let _ = client.delete(&self.key(&Key::Reserve(number)), &Condition::Always).await?;
            put = client.put(key, bytes.clone(), condition).await;
        }
        if is_full(&put) {
            let _ = client.delete(&self.key(&Key::GcStatus), &Condition::Always).await?;
            put = client.put(key, bytes, condition).await;
        }
        put
    }

    /// Refuses data while the reserve is spent and cannot be stored again.
    ///
    /// # Errors
    /// `Full`; those of [`S3Client::put`].
    pub(super) async fn before_data(&self, client: &S3Client) -> Result<()> {
        if self.state().gone == 0 { Ok(()) } else { self.restore(client, PART_BYTES).await }
    }

    /// Makes sure that there is a reserve.
    ///
    /// # Errors
    /// `Full`; those of [`S3Client::head`] and [`S3Client::put`].
    pub(super) async fn keep(&self, client: &S3Client) -> Result<()> {
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

    /// The store is closed. Stores the reserve again if this process spent it; where that fails, the next collection does it.
    pub(super) async fn end(&self, client: &S3Client) {
        let _ = self.restore(client, MIN_PART_BYTES).await;
        self.forget();
    }

    /// Nothing is known of it any more.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        (state.gone, state.is_whole) = (0, false);
    }

    /// The number of the next one to be deleted.
    fn spend(&self) -> Option<u8> {
        let mut state = self.state();
        let number = Some(state.gone).filter(|number| *number < PARTS)?;
        *state = State { gone: number + 1, is_whole: false, spent: state.spent + 1 };
        Some(number)
    }

    /// Stores what is gone of it, with at least so many bytes each.
    async fn restore(&self, client: &S3Client, least: usize) -> Result<()> {
        let _alone = self.making.lock().await;
        let before = *self.state();
        let mut is_whole = before.is_whole || before.gone == PARTS;
        for number in (0..before.gone).rev() {
            is_whole &= self.put_part(client, number, least).await? == PART_BYTES;
            let mut state = self.state();
            if state.spent != before.spent {
                // The lease needed it meanwhile.
                return Err(Error::new(ErrorKind::Full, "store the reserve"));
            }
            state.gone = number;
        }
        let mut state = self.state();
        state.is_whole = is_whole && state.gone == 0;
        Ok(())
    }

    /// Stores it with its full size over one that is smaller, if there is room.
    async fn grow(&self, client: &S3Client) -> Result<()> {
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

    /// Stores one of them and returns its size: half of it, and again half, where there is no room.
    async fn put_part(&self, client: &S3Client, number: u8, least: usize) -> Result<usize> {
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
    let next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        Some(word.to_le_bytes())
    };
    std::iter::from_fn(next).flatten().take(size).collect()
}

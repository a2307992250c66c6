//! One object at a time: the traits between the store and the place of its bytes.
//!
//! The store never asks for the kind of its backend. Three traits hold the differences:
//!
//! | trait | answers | a backend that one process uses alone |
//! |---|---|---|
//! | [`Backend`] | reading, storing, deleting and listing objects | implements its eleven methods |
//! | [`Coordination`] | locks, the lease, the move journal, clock and runtime | has a [`SingleProcess`] |
//! | [`Housekeeping`] | leftovers and orphans, and batches that a backend can do faster | has none |
//!
//! [`Capabilities`] are the facts that the store asks for. Callers hold an `Arc<dyn Backend>`, on which the methods of all three traits
//! can be called.

pub(crate) mod cached;
mod capabilities;
#[cfg(feature = "testing")]
pub mod conformance;
mod coordination;
#[cfg(feature = "testing")]
pub(crate) mod fault;
pub mod fs;
mod housekeeping;
pub(crate) mod in_doubt;
#[cfg(feature = "testing")]
pub(crate) mod late;
pub(crate) mod list;
mod lock;
mod lock_table;
pub(crate) mod lock_wait;
pub(crate) mod memory;
mod object;
#[cfg(feature = "object_store")]
mod object_store;
pub(crate) mod put_verified;
#[cfg(feature = "testing")]
pub(crate) mod record;
#[cfg(feature = "s3")]
mod s3;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

pub use capabilities::{Capabilities, LockReach};
pub use coordination::{Coordination, LeaseTerm, PendingMoves, SingleProcess};
pub use fs::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
pub use housekeeping::{Housekeeping, Orphan};
pub use list::{Cursor, Depth, Details, ListEntry, ListPage, ListQuery, Unreadable, page_of};
pub(crate) use list::{Pager, has_objects, list_all};
pub(crate) use lock::HeldBriefly;
pub use lock::{LockGuard, LockMode, LockScope};
pub use lock_table::LockTable;
pub use memory::MemoryBackend;
pub use object::{Deleted, Object, ObjectInfo, PutMode, Removal, Touched, Version};
#[cfg(feature = "object_store")]
pub use object_store::{ListingOrder, ObjectStoreBackend};
#[cfg(feature = "s3")]
pub use s3::{Ownership, S3Backend};

/// The objects of one store.
///
/// All methods may be called at the same time from any number of tasks. Keys are typed; a backend renders them by `Display` or in
/// another way that keeps their byte order.
///
/// # Contract
/// * **Atomic**: a reader sees the whole object or none of it, before, during and after any `put`, also one that failed.
/// * **Read your writes**: a `get` or `head` that begins after a `put` completed returns the new object.
/// * **Create never replaces**: under [`PutMode::Create`] and [`PutMode::IfMatch`] the backend overwrites only what the mode
///   allows; a backend that cannot promise this returns `Unsupported` and writes nothing.
/// * **Durable**: when `barrier` returns, every object whose `put` or `copy` had completed before it began, and every completed
///   `delete`, survives a crash of this process and of its host, at the level of durability that the backend was opened with.
/// * **Ordered**: listings are in byte order of the paths, each key once.
/// * **Complete**: a page without a cursor is the last. A listing may miss or show objects that were stored or deleted while it ran.
/// * **Foreign is reported**: a listing shows a file or object that no key names as [`ListEntry::Foreign`], and the backend leaves it
///   alone. For a link, pipe or device in the place of an object or a prefix, a listing outside of the chunks shows
///   [`ListEntry::Unreadable`].
/// * **Absent is certain**: `NotFound` and [`Touched::Absent`] mean that the object does not exist. Every other failure has another
///   kind.
/// * **Limited**: `get` refuses an object that is larger than its limit as `Corrupt`, before the bytes are in memory.
/// * **Locks exclude**: see [`Coordination::lock`].
///
/// The conformance suite, `backend::conformance` under the feature `testing`, has a test for each of these.
/// `manual::backend` explains what each promise is for, and has a complete implementation.
///
/// # Cancel safety
/// Any future may be dropped. A change that it had begun happens entirely or not at all, possibly after the drop.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The capabilities of this backend.
    fn capabilities(&self) -> &Capabilities;

    /// Coordination with the other users of the store: [`SingleProcess`] for a backend that one process uses alone.
    fn coordination(&self) -> &dyn Coordination;

    /// Maintenance of the place itself; `None` if the backend has nothing to add to the substitutes, which are made of the methods of
    /// this trait.
    ///
    /// A wrapper must pass on the answer of the backend below, or implement [`Housekeeping`] by calls to it: garbage collection would
    /// otherwise miss the indexes that only [`Housekeeping::orphans`] finds.
    fn housekeeping(&self) -> Option<&dyn Housekeeping>;

    /// Reads a whole object of at most `limit` bytes. The limit is that of the format for this kind of object, `u64::MAX` if there is
    /// none. Compare it with the size that the place reports, before the bytes are fetched: a larger object is not what its name says, and
    /// could fill the memory.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if the object is larger than `limit`.
    async fn get(&self, key: &Key, limit: u64) -> Result<Object>;

    /// Reads the bytes `range` of an object. [`Object::info`] describes the whole object: a caller that reads it in several pieces
    /// compares the versions.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if the range is empty or reaches beyond the end of the object.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object>;

    /// Describes an object without reading it.
    ///
    /// # Errors
    /// `NotFound`.
    async fn head(&self, key: &Key) -> Result<ObjectInfo>;

    /// Stores a whole object and returns its version. It is durable only after a later [`barrier`](Backend::barrier).
    ///
    /// # Errors
    /// Nothing was written: `AlreadyExists` under [`PutMode::Create`] if the key is taken; `Conflict` under [`PutMode::IfMatch`] if the
    /// object is absent or of another version; `Unsupported` if the backend lacks the mode; `Full`. Unknown whether it was written:
    /// `Unavailable`; a read of the object decides. Writers that race with equal contents may all succeed.
    ///
    /// Puts with a condition exclude one another. On some servers, a put without a condition that runs at the same time has no effect
    /// although the server confirms it: change an object always with a condition, or never.
    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version>;

    /// Deletes any number of objects, with a result for each in the order given. Deleting an absent object succeeds. A backend that has
    /// directories removes those that become empty.
    ///
    /// The key of a namespace stands for the namespace itself: look below its [prefix](crate::format::layout::Prefix::Namespace) for any
    /// other object first, and refuse the deletion if there is one.
    ///
    /// # Errors
    /// For one object: `Conflict` if its version is no longer the one in the removal, or if a namespace is not empty; `Unsupported` if
    /// the removal has a version and the backend lacks `conditional_delete`. For the whole call: any number of the objects may be gone.
    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>>;

    /// Returns one page of a listing: the first without a cursor, the next with the cursor of the page before. The cursor is the own text
    /// of the backend, such as the last path of the page. The caller may ask for a page again with the same cursor, and a later page may
    /// come long after the one before. [`page_of`] makes pages from a sorted map.
    ///
    /// # Errors
    /// Any failure to read the whole page. A page is never silently incomplete.
    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage>;

    /// Sets the time of last use of the objects to now, if the backend [tracks it](Capabilities::tracks_last_use), and describes them
    /// as far as it can without a request over a network. Results are in the order given.
    ///
    /// # Errors
    /// Any failure other than absence, for all of them together.
    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>>;

    /// Returns when everything stored before is durable; see **Durable**.
    ///
    /// # Errors
    /// Any failure to make it durable. The caller must then publish nothing that relies on it.
    async fn barrier(&self) -> Result<()>;
}

/// [`Coordination`], [`Housekeeping`] with its substitutes, and comfort, for callers.
impl dyn Backend + '_ {
    /// Returns `true` if the object exists.
    ///
    /// # Errors
    /// As for [`head`](Backend::head), except `NotFound`.
    pub(crate) async fn has(&self, key: &Key) -> Result<bool> {
        match self.head(key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// See [`Coordination::runtime`].
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        self.coordination().runtime()
    }

    /// See [`Coordination::clock`].
    ///
    /// # Errors
    /// As for [`Coordination::clock`].
    pub async fn clock(&self) -> Result<SystemTime> {
        self.coordination().clock().await
    }

    /// See [`Coordination::lock`].
    ///
    /// # Errors
    /// As for [`Coordination::lock`].
    pub async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        self.coordination().lock(scope, mode).await
    }

    /// See [`Coordination::check_owned`].
    ///
    /// # Errors
    /// As for [`Coordination::check_owned`].
    pub async fn check_owned(&self) -> Result<()> {
        self.coordination().check_owned().await
    }

    /// See [`Coordination::lease_term`].
    pub fn lease_term(&self) -> Option<LeaseTerm> {
        self.coordination().lease_term()
    }

    /// See [`Coordination::begin_term`].
    ///
    /// # Errors
    /// As for [`Coordination::begin_term`].
    pub async fn begin_term(&self) -> Result<()> {
        self.coordination().begin_term().await
    }

    /// See [`Coordination::in_doubt`].
    pub fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.coordination().in_doubt(key)
    }

    /// See [`Coordination::record_moves`].
    ///
    /// # Errors
    /// As for [`Coordination::record_moves`].
    pub async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        self.coordination().record_moves(keys).await
    }

    /// See [`Coordination::pending_moves`].
    ///
    /// # Errors
    /// As for [`Coordination::pending_moves`].
    pub async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        self.coordination().pending_moves().await
    }

    /// See [`Coordination::release`].
    ///
    /// # Errors
    /// As for [`Coordination::release`].
    pub async fn release(&self) -> Result<()> {
        self.coordination().release().await
    }

    /// See [`Coordination::close`].
    ///
    /// # Errors
    /// As for [`Coordination::close`].
    pub async fn close(&self) -> Result<()> {
        self.coordination().close().await
    }
}

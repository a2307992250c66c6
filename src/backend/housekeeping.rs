//! Maintenance of the place of a store: leftovers, orphans, and batches.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::Backend;
use crate::backend::list::{Cursor, has_objects};
use crate::backend::object::{ObjectInfo, PutMode, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::Namespace;

/// Maintenance of the place itself, and operations that a backend can do faster than by the methods of [`Backend`].
///
/// For a backend without it, callers use a substitute for each method, which its documentation names.
#[async_trait]
pub trait Housekeeping: fmt::Debug + Send + Sync {
    /// Begins listings of parts of a prefix, whose first pages have the returned cursor instead of none. They all show the same state.
    /// Substitute: `None`, for a backend without such a cursor.
    ///
    /// # Errors
    /// As for [`Backend::list`].
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        let _ = prefix;
        Ok(None)
    }

    /// Stores the bytes of one object under another key as well, with the rules of [`Backend::put`]. Substitute: `get` and `put`.
    ///
    /// # Errors
    /// `NotFound` if the object `from` does not exist; as for `put`.
    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version>;

    /// Describes several objects as [`Backend::head`] would, with a result for each in the order given. Substitute: one `head` after the
    /// other.
    ///
    /// # Errors
    /// For one object, as for `head`. For the whole call, any failure that concerns all of them.
    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>>;

    /// Returns `true` if this place has a store, whichever program made it, and even if it is empty. The store asks when it is opened and
    /// has no [identity](Key::Store). Substitute: the owner mark of PBS ([`Key::InUse`]), or any object among snapshots and chunks,
    /// proves that there is a store.
    ///
    /// # Errors
    /// Any failure to look.
    async fn has_store(&self) -> Result<bool>;

    /// Returns `true` if this handle made the place, and has stored nothing in it. The store asks when it is created, and need not look for chunks
    /// then. Substitute: `false`.
    fn is_new(&self) -> bool {
        false
    }

    /// Finds the index files among `foreign`, the paths that a listing showed as [foreign](crate::backend::ListEntry::Foreign), and in
    /// the directories among them. The collector keeps the chunks that they name. Substitute: none.
    ///
    /// # Errors
    /// Any failure to look everywhere.
    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>>;

    /// Reads an orphan that [`orphans`](Housekeeping::orphans) found. Substitute: `NotFound`.
    ///
    /// # Errors
    /// As for [`Backend::get`].
    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes>;

    /// Removes the leftovers of puts that began at least `age` ago and never ended, and returns their number. Of the temporary files, it
    /// removes only those in `foreign`, the paths that a listing showed as [foreign](crate::backend::ListEntry::Foreign). The caller
    /// holds the exclusive lock of the store. Substitute: nothing.
    ///
    /// # Errors
    /// Any failure to remove them.
    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64>;

    /// Stores an object that the backend can delete to make room in a full store, unless it exists. The caller holds the lock of the store. The
    /// store calls it when it is created, and after each complete collection. Substitute: nothing, for a backend that deletes without
    /// a put.
    ///
    /// # Errors
    /// `Full` if the store has no room for it; any other failure to store it. The store works without it.
    async fn keep_reserve(&self) -> Result<()>;
}

/// An orphan: an index file in a place that no key names.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The path relative to the root of the store.
    pub path: String,
}

impl Orphan {
    /// The orphan at a path.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into() }
    }
}

/// [`Housekeeping`], or the substitute for it.
impl dyn Backend + '_ {
    /// See [`Housekeeping::begin_listing`].
    ///
    /// # Errors
    /// As for [`Housekeeping::begin_listing`].
    pub async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        match self.housekeeping() {
            Some(housekeeping) => housekeeping.begin_listing(prefix).await,
            None => Ok(None),
        }
    }

    /// See [`Housekeeping::copy`].
    ///
    /// # Errors
    /// As for [`Housekeeping::copy`].
    pub async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        if let Some(housekeeping) = self.housekeeping() {
            return housekeeping.copy(from, to, mode).await;
        }
        let object = self.get(from, u64::MAX).await?;
        self.put(to, object.bytes, mode).await
    }

    /// See [`Housekeeping::head_many`].
    ///
    /// # Errors
    /// As for [`Housekeeping::head_many`].
    pub async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        if let Some(housekeeping) = self.housekeeping() {
            return housekeeping.head_many(keys).await;
        }
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(self.head(key).await);
        }
        Ok(found)
    }

    /// See [`Housekeeping::has_store`].
    ///
    /// # Errors
    /// As for [`Housekeeping::has_store`].
    pub async fn has_store(&self) -> Result<bool> {
        match self.housekeeping() {
            Some(housekeeping) => housekeeping.has_store().await,
            None => shows_a_store(self).await,
        }
    }

    /// See [`Housekeeping::is_new`].
    pub fn is_new(&self) -> bool {
        self.housekeeping().is_some_and(Housekeeping::is_new)
    }

    /// See [`Housekeeping::orphans`].
    ///
    /// # Errors
    /// As for [`Housekeeping::orphans`].
    pub async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        match self.housekeeping() {
            Some(housekeeping) => housekeeping.orphans(foreign).await,
            None => Ok(Vec::new()),
        }
    }

    /// See [`Housekeeping::get_orphan`].
    ///
    /// # Errors
    /// As for [`Housekeeping::get_orphan`].
    pub async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        match self.housekeeping() {
            Some(housekeeping) => housekeeping.get_orphan(orphan, limit).await,
            None => Err(Error::new(ErrorKind::NotFound, "read").on(&orphan.path)),
        }
    }

    /// See [`Housekeeping::remove_leftovers`].
    ///
    /// # Errors
    /// As for [`Housekeeping::remove_leftovers`].
    pub async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        match self.housekeeping() {
            Some(housekeeping) => housekeeping.remove_leftovers(foreign, age).await,
            None => Ok(0),
        }
    }

    /// See [`Housekeeping::keep_reserve`].
    ///
    /// # Errors
    /// As for [`Housekeeping::keep_reserve`].
    pub async fn keep_reserve(&self) -> Result<()> {
        match self.housekeeping() {
            Some(housekeeping) => housekeeping.keep_reserve().await,
            None => Ok(()),
        }
    }
}

/// Returns `true` if objects prove that there is a store: the substitute for [`Housekeeping::has_store`].
///
/// # Errors
/// As for [`Backend::head`] and [`Backend::list`].
pub(super) async fn shows_a_store(backend: &dyn Backend) -> Result<bool> {
    if backend.has(&Key::InUse).await? {
        return Ok(true);
    }
    for prefix in [Prefix::Namespace(Namespace::root()), Prefix::Chunks] {
        if has_objects(backend, prefix).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The orphans of a place without directories: foreign objects whose names end like those of indexes.
#[cfg(any(feature = "object_store", feature = "s3"))]
pub(super) fn indexes_among(foreign: &[String]) -> Vec<Orphan> {
    let is_index = |path: &&String| path.ends_with(".fidx") || path.ends_with(".didx");
    foreign.iter().filter(is_index).map(Orphan::new).collect()
}

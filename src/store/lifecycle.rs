//! Creation, adoption and destruction of whole stores.
//!
//! | step | left by an interruption |
//! |---|---|
//! | create: lock → nothing is there → identity → reserve | nothing, or an empty store, with or without a reserve |
//! | attach: there is a store → lock → identity | a store that can be attached again |
//! | adopt a copy: lock alone → GC candidates → identity | a store with the old identity or the new one |
//! | detach: mark of the owner | the store, with or without the mark |
//! | destroy: lock alone → identity says `destroying` → manifests → the rest of the snapshots and groups → markers of namespaces, the inner ones first → chunks → state of the garbage collection, list of suspects, reserve, mark → identity → lease | a store that cannot be opened, and whose destruction can be begun again (H57) |

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::lock_wait::lock_store;
use crate::backend::{Backend, ListEntry, ListQuery, LockGuard, LockMode, Removal, has_objects, list_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::Namespace;
use crate::store::identity::Identity;
use crate::store::{Datastore, Options, Refresh};

/// Number of objects deleted between two checks of the lock.
const DELETED_AT_ONCE: usize = 1000;

/// Result of the destruction of a store.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destruction {
    /// Number of removed objects.
    pub deleted: u64,
    /// Foreign paths, which were left alone.
    pub foreign: Vec<String>,
}

impl Datastore {
    /// Creates a store on an empty backend: gives it an identity, and opens it. No other method makes a store.
    ///
    /// # Errors
    /// `AlreadyExists` if the place has any part of a store: [`attach`](Datastore::attach) opens an existing one. `Busy` or `Denied` if
    /// another process or host owns the place; `InvalidInput` for options out of range.
    pub async fn create(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        options.check()?;
        {
            let _held = lock_store(backend.as_ref(), LockMode::Shared).await?;
            let exists = |why: &'static str| {
                Err(Error::new(ErrorKind::AlreadyExists, "create the store").because(why))
            };
            if Identity::read(backend.as_ref()).await?.is_some() {
                return exists("there is a store");
            }
            for prefix in [Prefix::Namespace(Namespace::root()), Prefix::Chunks] {
                if has_objects(backend.as_ref(), prefix).await? {
                    return exists("there are snapshots or chunks of a store");
                }
            }
            Identity::draw(backend.runtime().as_ref()).create(backend.as_ref()).await?;
            backend.barrier().await?;
            // The store works without it, and its first collection tries again.
            let _ = backend.keep_reserve().await;
        }
        Self::open(backend, options).await
    }

    /// Opens an existing store in order to change it: one of PBS, or one that was detached. A store in a bucket then belongs to
    /// this host, and to this process until it is closed; a store without an identity gets one.
    ///
    /// # Errors
    /// As for [`open`](Datastore::open), including `NotFound`, after which nothing is written; `Busy` if another process uses the store; `Denied` if it belongs to another host;
    /// `Unsupported` if this version cannot change it.
    pub async fn attach(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        let store = Self::open(backend, options).await?;
        // A lease stays with the backend from here on; other locks are taken for each change.
        let _held = lock_store(store.inner.backend.as_ref(), LockMode::Shared).await?;
        store.inner.check_writable("attach the store").await?;
        Ok(store)
    }

    /// Gives the store a new identity and returns it. Use it for a copy of a store, made from its files or a snapshot of its
    /// disk: the copy has the identity of the original, and both count as one store until the copy is adopted. Adopt only
    /// the copy, because the records under the old identity belong to the original: the copy refuses the local state of the original from
    /// then on, and its GC candidates are reset. The list of suspects stays.
    ///
    /// This handle can change nothing afterwards, and neither can other handles of a store in a directory; open it again. Close all other handles of a
    /// store in a bucket before.
    ///
    /// # Errors
    /// `Busy` while a backup or another process uses the store; `Conflict` if its identity changed since it was opened;
    /// `Unsupported` if the store has features that this version does not know.
    ///
    /// # Cancel safety
    /// A dropped future leaves the old identity or the new one.
    pub async fn adopt_as_new(&self) -> Result<String> {
        self.inner.check_writable("adopt the store").await?;
        let backend = self.uncached_backend().as_ref();
        let alone = lock_alone(backend).await?;
        self.check_identity("adopt the store").await?;
        let drawn = match Identity::read(backend).await? {
            Some(found) => found.renewed(backend.runtime().as_ref()),
            None => Identity::draw(backend.runtime().as_ref()),
        };
        alone.check().await?;
        // They are candidates of the original.
        for deleted in backend.delete(&[Removal::any(Key::GcCandidates)]).await? {
            deleted?;
        }
        backend.barrier().await?;
        alone.check().await?;
        self.inner.is_renamed.store(true, Ordering::SeqCst);
        drawn.replace(backend).await?;
        backend.barrier().await?;
        Ok(drawn.uuid)
    }

    /// Fails with `Conflict` if the store was [adopted](Datastore::adopt_as_new) since it was opened. In a bucket no other process can do that
    /// while this one holds the lease.
    pub(crate) async fn check_identity(&self, action: &'static str) -> Result<()> {
        let Some(known) = self.uuid() else { return Ok(()) };
        let backend = self.uncached_backend().as_ref();
        if backend.lease_term().is_some() {
            return Ok(());
        }
        match Identity::read(backend).await? {
            Some(found) if found.uuid != known => Err(renamed(action)),
            _ => Ok(()),
        }
    }

    /// Brings the local state up to date: one listing of all metadata, and the objects without a copy of the listed
    /// version, many at a time. Backups and restores continue meanwhile. Until the store is closed, listings, manifests, owners and
    /// notes are then read without requests, if this process alone may change the store; otherwise copies are used for
    /// unchanged objects.
    ///
    /// # Errors
    /// `InvalidInput` for a store without local state; any failure of the backend. The previous state stays.
    ///
    /// # Cancel safety
    /// A dropped future leaves the previous state.
    pub async fn refresh(&self) -> Result<Refresh> {
        let without = || {
            let error = Error::new(ErrorKind::InvalidInput, "refresh");
            error.because("the store was opened without local state")
        };
        self.inner.local.as_ref().ok_or_else(without)?.metadata_cache.refresh().await
    }

    /// Releases what the backend holds for the store. Call it after all writers and readers are dropped.
    ///
    /// # Errors
    /// As for [`Coordination::close`](crate::backend::Coordination::close).
    pub async fn close(self) -> Result<()> {
        self.inner.backend.close().await
    }

    /// Closes the store and gives up its ownership: in a bucket, removes the owner mark. All data stays. Call it after all
    /// writers are dropped: any other fails to finish.
    ///
    /// # Errors
    /// `Busy` if another process owns the store now.
    pub async fn detach(self) -> Result<()> {
        self.inner.backend.release().await
    }

    /// Deletes the whole store with its data. Foreign objects are left alone and reported. Repeat an interrupted
    /// destruction; until it completes, the store cannot be opened. A put of a dropped future may arrive
    /// later; another destruction removes the object. If a delete request got no answer, the lease in a
    /// bucket stays, and keeps a new store from being created there for half an hour.
    ///
    /// # Errors
    /// `NotFound` if there is no store, after which nothing is written; `Busy` while the store is in use, or requests of an earlier owner may still arrive; `Unsupported` if the store has
    /// features that this version does not know; any failure of the backend. Objects deleted until then are gone.
    pub async fn destroy(backend: Arc<dyn Backend>) -> Result<Destruction> {
        let backend = backend.as_ref();
        // A destruction that was interrupted at its last step leaves only a lease.
        let is_there = Identity::read(backend).await?.is_some()
            || backend.has_store().await?
            || backend.has(&Key::Lease).await?;
        if !is_there {
            return Err(Error::new(ErrorKind::NotFound, "destroy the store").because("there is no store"));
        }
        let alone = lock_alone(backend).await?;
        let identity = match Identity::read(backend).await? {
            Some(identity) => identity,
            None => Identity::draw(backend.runtime().as_ref()),
        };
        if let Some(write_blocker) = identity.write_blocker() {
            return Err(Error::new(ErrorKind::Unsupported, "destroy the store").because(write_blocker));
        }
        identity.mark_destroying(backend).await?;
        backend.barrier().await?;
        let mut done = Destruction::default();
        for query in [Prefix::Namespace(Namespace::root()), Prefix::Chunks] {
            let mut keys = Vec::new();
            for entry in list_all(backend, &ListQuery::all(query)).await?.into_entries() {
                match entry {
                    ListEntry::Name(key) => keys.push(key),
                    ListEntry::Object(object) => keys.push(object.key),
                    ListEntry::Foreign(path) => done.foreign.push(path),
                    ListEntry::Unreadable(unreadable) => done.foreign.push(unreadable.path),
                    ListEntry::Prefix(_) => {}
                }
            }
            keys.sort_by_cached_key(rank);
            // One by one: a batch has no order.
            for of_one_rank in keys.chunk_by(|one, next| rank(one).0 == rank(next).0) {
                delete_keys(backend, alone.as_ref(), of_one_rank, &mut done).await?;
            }
        }
        let mut of_the_store = vec![Key::GcStatus, Key::GcCandidates, Key::Suspects];
        of_the_store.extend((0..Key::RESERVES).map(Key::Reserve));
        of_the_store.push(Key::InUse);
        delete_keys(backend, alone.as_ref(), &of_the_store, &mut done).await?;
        delete_keys(backend, alone.as_ref(), &[Key::Store], &mut done).await?;
        // Last, and not part of the store: an empty place excludes no process.
        for deleted in backend.delete(&[Removal::any(Key::Lease)]).await? {
            deleted?;
        }
        backend.barrier().await?;
        Ok(done)
    }
}

/// The identity of the store changed since it was opened.
pub(super) fn renamed(action: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, action)
        .because("the store was adopted as a new one since it was opened: open it again")
}

/// The lock of the store, without another holder in this process.
async fn lock_alone(backend: &dyn Backend) -> Result<Box<dyn LockGuard>> {
    let alone = lock_store(backend, LockMode::Exclusive).await?;
    if alone.oldest_shared().is_some() {
        return Err(Error::new(ErrorKind::Busy, "lock the store alone").because("a backup is running"));
    }
    Ok(alone)
}

/// Order of deletion: manifests, other files, objects of groups, namespaces from the inside out.
/// Keys of one number are deleted together.
fn rank(key: &Key) -> (usize, String) {
    let path = key.path();
    match key {
        Key::Manifest(_) => (0, path),
        Key::Owner(_) | Key::GroupNotes(_) => (2, path),
        // A parent has the shorter path.
        Key::Namespace(_) => (usize::MAX - path.len(), path),
        _ => (1, path),
    }
}

async fn delete_keys(
    backend: &dyn Backend,
    alone: &dyn LockGuard,
    keys: &[Key],
    done: &mut Destruction,
) -> Result<()> {
    for batch in keys.chunks(DELETED_AT_ONCE) {
        alone.check().await?;
        let removals: Vec<_> = batch.iter().cloned().map(Removal::any).collect();
        for deleted in backend.delete(&removals).await? {
            deleted?;
            done.deleted += 1;
        }
        backend.barrier().await?;
    }
    Ok(())
}

//! How a store begins and ends.
//!
//! | step | what it leaves when it is cut off |
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

/// How many objects are deleted between two looks at the lock.
const DELETED_AT_ONCE: usize = 1000;

/// What the destruction of a store removed, and what it left.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destruction {
    /// Objects that are gone.
    pub deleted: u64,
    /// Paths of what is no object of a store, and was left alone.
    pub foreign: Vec<String>,
}

impl Datastore {
    /// Makes a store on a backend that has nothing yet: gives it an identity, and opens it. Nothing else makes a store.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything of a store: [`attach`](Datastore::attach) takes what is there. `Busy` or `Denied` if
    /// the place is somebody else's; `InvalidInput` for options out of range.
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
            // The store works without, and its first collection tries again.
            let _ = backend.keep_reserve().await;
        }
        Self::open(backend, options).await
    }

    /// Opens a store whose data is there already, to change it: one of PBS, or one that was detached. In a bucket it now belongs to
    /// this host, and to this process until it is closed; it also gets an identity, if it has none.
    ///
    /// # Errors
    /// Those of [`open`](Datastore::open), `NotFound` among them, and then nothing is written; `Busy` if another process uses the store; `Denied` if it belongs to another host;
    /// `Unsupported` if it cannot be changed by this version.
    pub async fn attach(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        let store = Self::open(backend, options).await?;
        // Held by the backend from here on, where it is a lease; otherwise each change takes its own lock.
        let _held = lock_store(store.inner.backend.as_ref(), LockMode::Shared).await?;
        store.inner.check_writable("attach the store").await?;
        Ok(store)
    }

    /// Gives the store an identity of its own, which is returned. For a copy of a store, made by a copy of its files or a snapshot of its
    /// disk: it has the identity of the original, and the two are taken for one store, until the copy is adopted. Adopt the
    /// copy only, since all that was noted under the old identity stays with the original: local state of the original is refused from
    /// then on, and chunks that a collection saw unused are seen for the first time again. The list of suspect chunks stays.
    ///
    /// This opening changes nothing any more, and neither do others of the store in a directory; open it again. Close all others of a
    /// store in a bucket before.
    ///
    /// # Errors
    /// `Busy` while a backup or another process uses the store; `Conflict` if its identity is no longer that with which it was opened;
    /// `Unsupported` if the store needs what this version does not know.
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
        // They were seen in the original.
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

    /// Fails with `Conflict` if the store was [adopted](Datastore::adopt_as_new) since it was opened. In a bucket nobody else can have done
    /// so while this process has it.
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

    /// Brings what is kept locally to the state of the store: one listing of all metadata, and the objects of which there is no copy of
    /// that version, many at a time. Running backups and restores go on. Until the store is closed, listings, manifests, owners and
    /// notes are then read without requests, if this process alone may change the store; otherwise copies are used for
    /// what has not changed.
    ///
    /// # Errors
    /// `InvalidInput` for a store that was opened without local state; whatever the backend answers. What was known before stays.
    ///
    /// # Cancel safety
    /// A dropped future leaves what was known before.
    pub async fn refresh(&self) -> Result<Refresh> {
        let without = || {
            let error = Error::new(ErrorKind::InvalidInput, "refresh");
            error.because("the store was opened without local state")
        };
        self.inner.local.as_ref().ok_or_else(without)?.metadata_cache.refresh().await
    }

    /// Gives back what the backend holds for the store. Call it when all writers and readers are gone.
    ///
    /// # Errors
    /// Those of [`Coordination::close`](crate::backend::Coordination::close).
    pub async fn close(self) -> Result<()> {
        self.inner.backend.close().await
    }

    /// Closes the store, and gives it up: in a bucket, the mark that says whose it is goes. All data stays. Call it when all
    /// writers are gone: one that is not will fail to finish.
    ///
    /// # Errors
    /// `Busy` if the store is somebody else's by now.
    pub async fn detach(self) -> Result<()> {
        self.inner.backend.release().await
    }

    /// Deletes everything of a store, its data among it. What is no object of a store is left alone and reported. A destruction
    /// that was cut off is begun again in the same way, and until then the store cannot be opened. What a dropped future was still
    /// storing may arrive after the end; destroying once more removes it. If a request that deletes something got no answer, the lease in a
    /// bucket stays, and says for how long no store can be made at this place.
    ///
    /// # Errors
    /// `NotFound` if there is no store, and then nothing is written; `Busy` while anybody uses the store, or requests of an earlier user may still arrive; `Unsupported` if the store needs
    /// what this version does not know; whatever the backend answers. What was deleted until then is gone.
    pub async fn destroy(backend: Arc<dyn Backend>) -> Result<Destruction> {
        let backend = backend.as_ref();
        // A lease alone is what a destruction leaves that was cut off at its last step.
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
            // One after the other: what is deleted together has no order.
            for of_one_rank in keys.chunk_by(|one, next| rank(one).0 == rank(next).0) {
                delete_keys(backend, alone.as_ref(), of_one_rank, &mut done).await?;
            }
        }
        let mut of_the_store = vec![Key::GcStatus, Key::GcCandidates, Key::Suspects];
        of_the_store.extend((0..Key::RESERVES).map(Key::Reserve));
        of_the_store.push(Key::InUse);
        delete_keys(backend, alone.as_ref(), &of_the_store, &mut done).await?;
        delete_keys(backend, alone.as_ref(), &[Key::Store], &mut done).await?;
        // The last, and no part of the store: nobody is kept out of a place where nothing is.
        for deleted in backend.delete(&[Removal::any(Key::Lease)]).await? {
            deleted?;
        }
        backend.barrier().await?;
        Ok(done)
    }
}

/// The store has another identity than the one with which it was opened.
pub(super) fn renamed(action: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, action)
        .because("the store was adopted as a new one since it was opened: open it again")
}

/// The lock of the store, with nobody of this process beside.
async fn lock_alone(backend: &dyn Backend) -> Result<Box<dyn LockGuard>> {
    let alone = lock_store(backend, LockMode::Exclusive).await?;
    if alone.oldest_shared().is_some() {
        return Err(Error::new(ErrorKind::Busy, "lock the store alone").because("a backup is running"));
    }
    Ok(alone)
}

/// In which order keys are deleted: manifests, then other files, then what belongs to groups, then namespaces from inside out.
/// Those of one number at the same time.
fn rank(key: &Key) -> (usize, String) {
    let path = key.path();
    match key {
        Key::Manifest(_) => (0, path),
        Key::Owner(_) | Key::GroupNotes(_) => (2, path),
        // One that contains another has the shorter path.
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

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
use crate::store::{Options, Refresh, StoreInner};

/// Number of objects deleted between two checks of the lock.
const DELETED_AT_ONCE: usize = 1000;

/// Result of the destruction of a store.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Destruction {
    /// Number of removed objects.
    pub deleted: u64,
    /// Foreign paths, which were left alone.
    pub foreign: Vec<String>,
}

/// See [`Datastore::create`](crate::store::Datastore::create).
pub(super) async fn create(backend: Arc<dyn Backend>, options: Options) -> Result<Arc<StoreInner>> {
    options.check()?;
    {
        let _held = lock_store(backend.as_ref(), LockMode::Shared).await?;
        let exists =
            |why: &'static str| Err(Error::new(ErrorKind::AlreadyExists, "create the store").because(why));
        if Identity::read(backend.as_ref()).await?.is_some() {
            return exists("there is a store");
        }
        // A process that stores chunks in a new place gives it an identity first.
        let is_new = backend.is_new();
        for prefix in parts(true).into_iter().filter(|prefix| !is_new || *prefix != Prefix::Chunks) {
            if has_objects(backend.as_ref(), prefix).await? {
                return exists("there are snapshots or chunks of a store");
            }
        }
        let identity = Identity::draw(backend.runtime().as_ref());
        let identity = match options.packs {
            Some(packs) => identity.packed(packs.target_bytes()? as u64),
            None => identity,
        };
        identity.create(backend.as_ref()).await?;
        backend.barrier().await?;
        // The store works without it, and its first collection tries again.
        let _ = backend.keep_reserve().await;
    }
    StoreInner::open(backend, options).await
}

/// See [`Datastore::attach`](crate::store::Datastore::attach).
pub(super) async fn attach(backend: Arc<dyn Backend>, options: Options) -> Result<Arc<StoreInner>> {
    let found = Identity::read(backend.as_ref()).await?;
    if found.is_none() && Identity::is_lost(backend.as_ref()).await? {
        Identity::replace_lost(backend.as_ref()).await?;
    }
    let store = StoreInner::open(backend, options).await?;
    // A lease stays with the backend from here on; other locks are taken for each change.
    let _held = lock_store(store.backend.as_ref(), LockMode::Shared).await?;
    store.check_writable("attach the store").await?;
    Ok(store)
}

/// See [`Datastore::adopt_as_new`](crate::store::Datastore::adopt_as_new).
pub(super) async fn adopt_as_new(store: &Arc<StoreInner>) -> Result<String> {
    store.check_writable("adopt the store").await?;
    let backend = store.uncached_backend().as_ref();
    let alone = lock_alone(backend).await?;
    store.check_identity("adopt the store").await?;
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
    store.is_renamed.store(true, Ordering::SeqCst);
    drawn.replace(backend).await?;
    backend.barrier().await?;
    Ok(drawn.uuid.clone())
}

/// See [`Datastore::refresh`](crate::store::Datastore::refresh).
pub(super) async fn refresh(store: &Arc<StoreInner>) -> Result<Refresh> {
    let without = || {
        let error = Error::new(ErrorKind::InvalidInput, "refresh");
        error.because("the store was opened without local state")
    };
    store.local.as_ref().ok_or_else(without)?.metadata_cache.refresh().await
}

/// See [`Datastore::destroy`](crate::store::Datastore::destroy).
pub(super) async fn destroy(backend: Arc<dyn Backend>) -> Result<Destruction> {
    let backend = backend.as_ref();
    // A destruction that was interrupted at its last step leaves only a lease.
    let is_there = Identity::read(backend).await?.is_some()
        || backend.has_store().await?
        || backend.has(&Key::Lease).await?;
    if !is_there {
        return Err(Error::new(ErrorKind::NotFound, "destroy the store").because("there is no store"));
    }
    let alone = lock_alone(backend).await?;
    let found = Identity::read(backend).await?;
    let may_be_packed = found.as_ref().is_none_or(|identity| identity.pack_bytes().is_some());
    let identity = found.unwrap_or_else(|| Identity::draw(backend.runtime().as_ref()));
    if let Some(write_blocker) = identity.write_blocker() {
        return Err(Error::new(ErrorKind::Unsupported, "destroy the store").because(write_blocker));
    }
    identity.clone().mark_destroying(backend).await?;
    backend.barrier().await?;
    let mut done = Destruction::default();
    for query in parts(may_be_packed) {
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

/// The identity of the store changed since it was opened.
pub(super) fn renamed(action: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, action)
        .because("the store was adopted as a new one since it was opened: open it again")
}

/// The parts of a store: snapshots first.
fn parts(may_be_packed: bool) -> Vec<Prefix> {
    let root = Prefix::Namespace(Namespace::root());
    let mut parts = vec![root.clone(), Prefix::Chunks];
    if may_be_packed {
        parts.insert(1, Prefix::Enclosed(Box::new(root)));
        parts.extend([Prefix::Segments, Prefix::Packs]);
    }
    parts
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
    match key.exposed() {
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

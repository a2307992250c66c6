//! How a backup begins.
//!
//! 1. The group is locked. Another backup of the group means `Busy`, after half a second in which a dropped one may be cleaned up.
//! 2. Leftovers of dead writers are removed. That needs evidence that the writer is dead (I1): no other process holds the lock of
//!    the store, the snapshot is not locked, those locks reach all possible writers, and its manifest neither exists nor may
//!    still arrive. Without evidence, or if they cannot be deleted, the leftovers stay; readers ignore them. The store is locked alone
//!    while files are deleted, but not while the disk is flushed, and the writer never waits for that lock.
//! 3. The store is locked, shared, until the backup ends: no process collects garbage meanwhile (H4, H5). The writer waits up to ten
//!    seconds for a process that removes leftovers, but not for a collection.
//! 4. The time is checked against the newest snapshot, or with [`BackupBuilder::allow_earlier`] against all (H53), and the owner against the caller, or written for a new group.
//! 5. The new snapshot is locked.

use std::sync::Arc;
use std::time::SystemTime;

use crate::chunks::CachePolicy;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{AuthId, GroupName, SnapshotName};
use crate::observer::Observer;
use crate::store::backup::group::{choose_time, claim, free_time, remove_leftovers};
use crate::store::backup::session::Guards;
use crate::store::backup::writer::SnapshotWriter;
use crate::store::events::{ArchiveEvent, Events};
use crate::store::locks::Held;
use crate::store::publish::PublicationLocks;
use crate::store::{KeyUse, StoreInner};
use crate::trace::{Operation, Subject};

/// A backup that is about to begin.
#[derive(Debug)]
#[must_use = "nothing happens before `begin`"]
pub struct BackupBuilder {
    allows_earlier: bool,
    group: GroupName,
    cache_policy: CachePolicy,
    events: Events,
    key_use: KeyUse,
    owner: AuthId,
    store: Arc<StoreInner>,
    time: Option<SystemTime>,
}

impl BackupBuilder {
    pub(in crate::store) fn new(store: &Arc<StoreInner>, group: &GroupName) -> Self {
        Self {
            allows_earlier: false,
            group: group.clone(),
            cache_policy: CachePolicy::Populate,
            events: Events::default(),
            key_use: KeyUse::None,
            owner: AuthId::root(),
            store: Arc::clone(store),
            time: None,
        }
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<ArchiveEvent>>) -> Self {
        self.events = Events::to(observer);
        self
    }

    /// Encrypts all archives with this key, and signs the manifest with it; default: neither. Replaces [`sign`](Self::sign).
    ///
    /// Names and sizes of archives, notes, the boundaries of chunks, and which chunks are equal stay visible to everyone who can read the store; see
    /// the page on encryption in the manual.
    pub fn encrypt(mut self, key: &EncryptionKey) -> Self {
        self.key_use = KeyUse::Encrypt(key.clone());
        self
    }

    /// Signs the manifest with this key, and leaves the archives plain; default: no signature. Replaces [`encrypt`](Self::encrypt).
    pub fn sign(mut self, key: &EncryptionKey) -> Self {
        self.key_use = KeyUse::Sign(key.clone());
        self
    }

    /// Keeps no local copies of new chunks. By default they are kept, if the store was opened with local state.
    pub fn no_cache(mut self) -> Self {
        self.cache_policy = CachePolicy::Bypass;
        self
    }

    /// Owner of the backup; default: `root@pam`. A new group gets this owner. An existing group must belong to them.
    pub fn owner(mut self, owner: AuthId) -> Self {
        self.owner = owner;
        self
    }

    /// Time of the snapshot, truncated to seconds; default: now, or the second after the newest snapshot if that is at most a
    /// minute in the future.
    pub fn time(mut self, time: SystemTime) -> Self {
        self.time = Some(time);
        self
    }

    /// Allows a time before the newest snapshot, as after a clock that was in the future, or for snapshots that are imported from elsewhere;
    /// default: such a time is an error. The new snapshot is then not the [latest](crate::store::Datastore::latest), a sync that transfers
    /// only newer snapshots leaves it out, and retention rules count it at its time.
    pub fn allow_earlier(mut self) -> Self {
        self.allows_earlier = true;
        self
    }

    /// Begins the backup.
    ///
    /// # Errors
    /// `Busy` if another backup of the group is running and does not end within half a second, if another process collects
    /// garbage, or if pending deletes could remove the new objects; `Denied` if the group belongs to another
    /// owner; `InvalidInput` if the [time](Self::time) is not later than that of the newest snapshot, and `Conflict` if the clock of the host is
    /// not, unless [`allow_earlier`](Self::allow_earlier) permits both; `AlreadyExists` if there is a snapshot of that time; `NotFound` if the namespace does not exist.
    ///
    /// # Cancel safety
    /// A dropped future leaves at most a group that has an owner and no snapshots.
    pub async fn begin(self) -> Result<SnapshotWriter> {
        let watch = self.store.watch(Operation::Backup, Subject::Scope(&self.group));
        match watch.run(self.begin_snapshot()).await {
            Ok(writer) => Ok(writer.watched(watch)),
            Err(error) => {
                watch.end(Err(&error));
                Err(error)
            }
        }
    }

    async fn begin_snapshot(self) -> Result<SnapshotWriter> {
        let Self { allows_earlier, group, cache_policy, events, key_use, owner, store, time } = self;
        let inner = &store;
        inner.check_writable("begin a backup").await?;
        let failed = |kind| Error::new(kind, "begin a backup of").on(&group);
        if !store.catalog().has_namespace(group.namespace()).await? {
            return Err(
                failed(ErrorKind::NotFound).because(format!("there is no namespace {}", group.namespace()))
            );
        }
        let group_guard = store.locks().group_waiting(&group).await?;
        let witnesses = store.witnesses(Some(&group));
        witnesses.begin().await?;
        let snapshots = remove_leftovers(&store, &group).await?;
        let store_guard = store.locks().store_to_write().await?;
        let pending = inner.snapshots_with_pending_delete(&group);
        let newest = snapshots.iter().map(|snapshot| snapshot.name.time()).max().filter(|_| !allows_earlier);
        let last_left = pending.iter().map(SnapshotName::time).max().filter(|_| !allows_earlier);
        let wanted = time;
        let mut time = choose_time(wanted, inner.runtime().now(), newest, last_left)
            .map_err(|refused| failed(refused.kind()).because(refused))?;
        if wanted.is_none() {
            time = free_time(&store, &group, time);
        }
        let name = group.snapshot(time);
        let exists = || Error::new(ErrorKind::AlreadyExists, "begin backup").on(&name);
        if snapshots.iter().any(|found| found.name == name) {
            return Err(exists());
        }
        inner.check_no_pending_delete_of(&name)?;
        let snapshot_guard = store.locks().snapshot(&name).await?;
        // Only the newest snapshots were listed. The lock of the group keeps others from making one of this name.
        if allows_earlier && store.catalog().listed_snapshot(&name).await?.is_some() {
            return Err(exists());
        }
        if store.manifests().is_taken(&name).await? {
            return Err(exists());
        }
        let locks = PublicationLocks {
            group: Held::from(group_guard),
            others: Vec::new(),
            snapshot: snapshot_guard,
            store: Held::from(store_guard),
        };
        let guards = Guards { bases: Vec::new(), locks };
        let written = claim(&store, &group, &owner, &snapshots).await?;
        Ok(SnapshotWriter::new(store, name, guards, written, events, (cache_policy, key_use, witnesses)))
    }
}

//! How a backup begins.
//!
//! 1. The group is locked. A backup of it that runs elsewhere means `Busy`, after a moment of patience with one that was dropped
//!    and is being cleaned up.
//! 2. What dead writers left behind is removed. It needs evidence that they are dead (I1): no other process holds the lock of
//!    the store, the snapshot itself is not locked, those locks reach everybody who could write, and a manifest of it neither
//!    is there nor may still arrive. Without it, or if they cannot be deleted, the leftovers stay; they are invisible anyway. The
//!    lock of the store is held alone while files are deleted, not while the disk is flushed, and never waited for.
//! 3. The store is locked, shared, until the backup ends: no process collects garbage meanwhile (H4, H5). A process that removes
//!    leftovers right now is waited for, up to ten seconds; a collection is not.
//! 4. The time is checked against the newest snapshot (H53) and the owner against the caller, or written for a new group.
//! 5. The new snapshot is locked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::backend::lock_wait::{GROUP_WAIT, lock_with_timeout};
use crate::backend::put_verified::{PutError, put_verified};
use crate::backend::{LockMode, LockReach, LockScope};
use crate::chunks::CachePolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{AuthId, BackupTime, GroupName, SnapshotName};
use crate::format::status::encode_owner;
use crate::store::Datastore;
use crate::store::backup::session::{Guards, Written};
use crate::store::backup::writer::SnapshotWriter;
use crate::store::catalog::delete::DeleteError;
use crate::store::catalog::list::{SnapshotInfo, SnapshotState};
use crate::store::events::{Observer, Silent};

/// Maximum lag of the clock behind the newest snapshot for a backup without an explicit time.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(1);

/// A backup that is about to begin.
#[derive(Debug)]
#[must_use = "nothing happens before `begin`"]
pub struct BackupBuilder {
    group: GroupName,
    cache_policy: CachePolicy,
    observer: Arc<dyn Observer>,
    owner: AuthId,
    store: Datastore,
    time: Option<SystemTime>,
}

impl Datastore {
    /// Prepares a backup: a new snapshot of a group, which is made if there is none yet.
    pub fn backup(&self, group: &GroupName) -> BackupBuilder {
        BackupBuilder {
            group: group.clone(),
            cache_policy: CachePolicy::Populate,
            observer: Arc::new(Silent),
            owner: AuthId::root(),
            store: self.clone(),
            time: None,
        }
    }
}

impl BackupBuilder {
    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Keeps no copies of new chunks on the local disk; default: those that are stored are kept, if the store was opened with local
    /// state.
    pub fn no_cache(mut self) -> Self {
        self.cache_policy = CachePolicy::Bypass;
        self
    }

    /// On whose behalf the backup is made; default: `root@pam`. A new group belongs to them, an existing one must.
    pub fn owner(mut self, owner: AuthId) -> Self {
        self.owner = owner;
        self
    }

    /// The time of the snapshot, cut to seconds; default: now, or the second after the newest snapshot if that is at most a
    /// minute in the future.
    pub fn time(mut self, time: SystemTime) -> Self {
        self.time = Some(time);
        self
    }

    /// Begins the backup.
    ///
    /// # Errors
    /// `Busy` if another backup of the group is running and does not end within half a second, or another process collects
    /// garbage, or requests that got no answer may still delete what would be written; `Denied` if the group belongs to somebody
    /// else; `InvalidInput` if the time is not later than that of the newest snapshot; `NotFound` if the namespace does not exist.
    ///
    /// # Cancel safety
    /// A dropped future leaves at most a group that has an owner and no snapshots.
    pub async fn begin(self) -> Result<SnapshotWriter> {
        let Self { group, cache_policy, observer, owner, store, time } = self;
        let inner = &store.inner;
        inner.check_writable("begin a backup").await?;
        let failed = |kind| Error::new(kind, "begin a backup of").on(&group);
        if !store.has_namespace(group.namespace()).await? {
            return Err(
                failed(ErrorKind::NotFound).because(format!("there is no namespace {}", group.namespace()))
            );
        }
        let scope = LockScope::Group(group.clone());
        let group_guard =
            lock_with_timeout(inner.backend.as_ref(), &scope, LockMode::Exclusive, GROUP_WAIT).await?;
        let witnesses = store.witnesses(Some(&group));
        witnesses.begin().await?;
        let snapshots = store.remove_leftovers(&group).await?;
        let store_guard = store.lock_store_shared().await?;
        let leaving = inner.leaving_snapshots(&group);
        let newest = snapshots.iter().map(|snapshot| snapshot.name.time()).max();
        let last_left = leaving.iter().map(SnapshotName::time).max();
        let wanted = time;
        let mut time = choose_time(wanted, inner.runtime().now(), newest, last_left)
            .map_err(|why| failed(ErrorKind::InvalidInput).because(why))?;
        if wanted.is_none() {
            time = store.settled_time(&group, time);
        }
        let name = group.snapshot(time);
        if snapshots.iter().any(|found| found.name == name) {
            return Err(Error::new(ErrorKind::AlreadyExists, "begin backup").on(&name));
        }
        inner.check_name_settled(&name)?;
        let snapshot_guard =
            inner.backend.lock(&LockScope::Snapshot(name.clone()), LockMode::Exclusive).await?;
        let guards =
            Guards { bases: Vec::new(), group: group_guard, snapshot: snapshot_guard, store: store_guard };
        let written = store.claim(&group, &owner, &snapshots).await?;
        Ok(SnapshotWriter::new(store, name, guards, written, observer, (cache_policy, witnesses)))
    }

    /// The name of the group.
    pub fn group(&self) -> &GroupName {
        &self.group
    }
}

impl Datastore {
    /// The first time from this one on, at most a minute later, of which no snapshot may still be being deleted.
    fn settled_time(&self, group: &GroupName, time: BackupTime) -> BackupTime {
        let seconds = i64::try_from(CLOCK_TOLERANCE.as_secs()).unwrap_or_default();
        let times = (0..=seconds).filter_map(|more| BackupTime::from_epoch(time.epoch() + more).ok());
        let is_settled = |time: &BackupTime| self.inner.check_name_settled(&group.snapshot(*time)).is_ok();
        times.into_iter().find(is_settled).unwrap_or(time)
    }

    /// Makes sure that the group belongs to the caller. Returns what had to be written.
    pub(in crate::store) async fn claim(
        &self,
        group: &GroupName,
        caller: &AuthId,
        snapshots: &[SnapshotInfo],
    ) -> Result<Vec<Written>> {
        let key = Key::Owner(group.clone());
        match self.owner(group).await? {
            Some(owner) if caller.may_access(&owner) => {
                // Its deletion may be on its way, but not while the group has a finished snapshot: that goes before.
                if !snapshots.iter().any(|snapshot| snapshot.state == SnapshotState::Finished) {
                    self.inner.check_settled(&key)?;
                }
                Ok(Vec::new())
            }
            Some(owner) => Err(Error::new(ErrorKind::Denied, "begin a backup of")
                .on(group)
                .because(format!("the group belongs to {owner}, not to {caller}"))),
            None => {
                self.inner.check_settled(&key)?;
                let backend = &self.inner.backend;
                let mode = backend.capabilities().create_mode();
                let owner = Bytes::from(encode_owner(caller));
                // The group is locked, so an equal owner is the one of this put (H18, H44).
                let version =
                    put_verified(backend.as_ref(), &key, owner, mode).await.map_err(PutError::into_error)?;
                Ok(vec![Written { key, version }])
            }
        }
    }

    /// Removes the unfinished ones among the newest snapshots of a group, if their writers are certainly gone. Returns what is left of the
    /// newest. Older ones are not looked at: there are many, and pruning removes them.
    pub(in crate::store) async fn remove_leftovers(&self, group: &GroupName) -> Result<Vec<SnapshotInfo>> {
        let snapshots = self.newest_snapshots(group).await?;
        let backend = &self.inner.backend;
        // A lock that does not reach all processes is no evidence that none of them writes.
        let is_evidence = backend.capabilities().lock_reach != LockReach::Process;
        if !is_evidence || snapshots.iter().all(|snapshot| snapshot.state == SnapshotState::Finished) {
            return Ok(snapshots);
        }
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Unfinished) {
            match self.remove_leftover(&snapshot.name).await {
                Err(DeleteError::Lost(error)) => return Err(error),
                // They block nothing, and the next backup tries again.
                Err(DeleteError::Failed(_)) | Ok(()) => {}
            }
        }
        self.newest_snapshots(group).await
    }

    /// Removes an unfinished snapshot if nobody else writes to the store at this moment, and otherwise leaves it. The lock of the store
    /// is not waited for, and held while the files are deleted only: other processes wait for it.
    async fn remove_leftover(&self, name: &SnapshotName) -> Result<(), DeleteError> {
        let backend = &self.inner.backend;
        let guard = backend.lock(&LockScope::Snapshot(name.clone()), LockMode::Exclusive).await?;
        let alone = backend.lock(&LockScope::Store, LockMode::Brief).await?;
        // A snapshot that was unfinished before the lock was taken may be finished now.
        match self.listed_snapshot(name).await? {
            Some(found) if found.info.state == SnapshotState::Unfinished => {
                self.remove_unfinished(&found.info, alone, guard).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// The time of a new snapshot: the one that was asked for, or now, and later than all there are. Now is also later than those that
/// may still be being deleted.
fn choose_time(
    wanted: Option<SystemTime>,
    now: SystemTime,
    newest: Option<BackupTime>,
    last_left: Option<BackupTime>,
) -> std::result::Result<BackupTime, String> {
    let newest = if wanted.is_some() { newest } else { newest.max(last_left) };
    let time = BackupTime::try_from(wanted.unwrap_or(now)).map_err(|error| error.to_string())?;
    let Some(newest) = newest.filter(|newest| *newest >= time) else { return Ok(time) };
    let ahead = SystemTime::from(newest).duration_since(time.into()).unwrap_or_default();
    if wanted.is_none() && ahead <= CLOCK_TOLERANCE {
        return BackupTime::from_epoch(newest.epoch() + 1).map_err(|error| error.to_string());
    }
    Err(format!("the time {time} is not later than that of the newest snapshot, {newest}"))
}

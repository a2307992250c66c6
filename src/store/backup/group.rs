//! The group of a new snapshot: its owner, its times, and leftovers of dead writers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use thiserror::Error as ThisError;

use crate::backend::put_verified::{PutError, put_verified};
use crate::backend::{LockMode, LockReach, LockScope};
use crate::error::{Error, ErrorKind, ParseError, Result};
use crate::format::layout::Key;
use crate::format::name::{AuthId, BackupTime, GroupName, SnapshotName};
use crate::format::status::encode_owner;
use crate::store::StoreInner;
use crate::store::catalog::delete::DeleteError;
use crate::store::catalog::list::{SnapshotInfo, SnapshotState};
use crate::store::publish::Written;

/// Maximum lag of the clock behind the newest snapshot for a backup without an explicit time.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(1);

/// The first time, from this one to a minute later, whose snapshot has no pending delete.
pub(in crate::store) fn free_time(
    store: &Arc<StoreInner>,
    group: &GroupName,
    time: BackupTime,
) -> BackupTime {
    let seconds = i64::try_from(CLOCK_TOLERANCE.as_secs()).unwrap_or_default();
    let times = (0..=seconds).filter_map(|more| BackupTime::from_epoch(time.epoch() + more).ok());
    let is_free = |time: &BackupTime| store.check_no_pending_delete_of(&group.snapshot(*time)).is_ok();
    times.into_iter().find(is_free).unwrap_or(time)
}

/// Makes sure that the group belongs to the caller. Returns the owner object if it was stored.
pub(in crate::store) async fn claim(
    store: &Arc<StoreInner>,
    group: &GroupName,
    caller: &AuthId,
    snapshots: &[SnapshotInfo],
) -> Result<Vec<Written>> {
    let key = Key::Owner(group.clone());
    match store.metadata().owner(group).await? {
        Some(owner) if caller.may_access(&owner) => {
            // A delete of the owner may be pending, but not while the group has a finished snapshot, which is deleted before it.
            if !snapshots.iter().any(|snapshot| snapshot.state == SnapshotState::Finished) {
                store.check_no_pending_delete(&key)?;
            }
            Ok(Vec::new())
        }
        Some(owner) => Err(Error::new(ErrorKind::Denied, "begin a backup of")
            .on(group)
            .because(format!("the group belongs to {owner}, not to {caller}"))),
        None => {
            store.check_no_pending_delete(&key)?;
            let backend = &store.backend;
            let mode = backend.capabilities().create_mode();
            let owner = Bytes::from(encode_owner(caller));
            // The group is locked, so an equal owner is the one of this put (H18, H44).
            let stored =
                put_verified(backend.as_ref(), &key, owner, mode).await.map_err(PutError::into_error)?;
            Ok(vec![Written { key, version: stored.version }])
        }
    }
}

/// Removes unfinished snapshots among the newest of a group, if their writers are certainly dead. Returns the remaining newest
/// snapshots. Older ones are left to pruning, because a group may have many.
pub(in crate::store) async fn remove_leftovers(
    store: &Arc<StoreInner>,
    group: &GroupName,
) -> Result<Vec<SnapshotInfo>> {
    let snapshots = store.catalog().newest_snapshots(group).await?;
    let backend = &store.backend;
    // A lock that does not reach all processes is no evidence that none of them writes.
    let is_evidence = backend.capabilities().lock_reach != LockReach::Process;
    if !is_evidence || snapshots.iter().all(|snapshot| snapshot.state == SnapshotState::Finished) {
        return Ok(snapshots);
    }
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Unfinished) {
        match remove_leftover(store, &snapshot.name).await {
            Err(DeleteError::Lost(error)) => return Err(error),
            // They block nothing, and the next backup tries again.
            Err(DeleteError::Failed(_)) | Ok(()) => {}
        }
    }
    store.catalog().newest_snapshots(group).await
}

/// Removes an unfinished snapshot, unless another process writes to the store at this moment. Does not wait for the lock of the
/// store, and holds it only while the files are deleted, because other processes wait for it.
pub(in crate::store) async fn remove_leftover(
    store: &Arc<StoreInner>,
    name: &SnapshotName,
) -> Result<(), DeleteError> {
    let backend = &store.backend;
    let guard = store.locks().snapshot(name).await?;
    let alone = backend.lock(&LockScope::Store, LockMode::Brief).await?;
    // A snapshot that was unfinished before the lock was taken may be finished now.
    match store.catalog().listed_snapshot(name).await? {
        Some(found) if found.info.state == SnapshotState::Unfinished => {
            store.deletions().remove_unfinished(&found.info, alone, guard).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// Reason why no snapshot can be made with a time.
#[derive(Debug, ThisError)]
pub(super) enum TimeRefused {
    #[error("{0}")]
    Invalid(ParseError),
    #[error(
        "the clock of this host says {now}, but the newest snapshot is of {newest}: one of the clocks is or was wrong; \
        delete that snapshot, or set `BackupBuilder::allow_earlier`"
    )]
    Clock { newest: BackupTime, now: BackupTime },
    #[error(
        "the time {time} is not later than that of the newest snapshot, {newest}; `BackupBuilder::allow_earlier` permits that"
    )]
    NotLater { newest: BackupTime, time: BackupTime },
}

impl TimeRefused {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Clock { .. } => ErrorKind::Conflict,
            Self::Invalid(_) | Self::NotLater { .. } => ErrorKind::InvalidInput,
        }
    }
}

/// Time of a new snapshot: the requested one, or now. It must be later than all existing snapshots; a time that was not requested
/// is also later than those with a pending delete.
pub(super) fn choose_time(
    wanted: Option<SystemTime>,
    now: SystemTime,
    newest: Option<BackupTime>,
    last_left: Option<BackupTime>,
) -> Result<BackupTime, TimeRefused> {
    let newest = if wanted.is_some() { newest } else { newest.max(last_left) };
    let time = BackupTime::try_from(wanted.unwrap_or(now)).map_err(TimeRefused::Invalid)?;
    let Some(newest) = newest.filter(|newest| *newest >= time) else { return Ok(time) };
    let ahead = SystemTime::from(newest).duration_since(time.into()).unwrap_or_default();
    if wanted.is_none() && ahead <= CLOCK_TOLERANCE {
        return BackupTime::from_epoch(newest.epoch() + 1).map_err(TimeRefused::Invalid);
    }
    Err(match wanted {
        None => TimeRefused::Clock { newest, now: time },
        Some(_) => TimeRefused::NotLater { newest, time },
    })
}

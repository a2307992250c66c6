//! Locks: scopes, modes and guards.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{GroupName, SnapshotName};

/// The subject of a lock.
#[expect(clippy::exhaustive_enums, reason = "a backend must handle each of them")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LockScope {
    /// A group: its owner, and the right to add snapshots.
    Group(GroupName),
    /// The manifest of a snapshot, while it is read, changed and stored again.
    Manifest(SnapshotName),
    /// A snapshot: shared by its readers, exclusive for its writer and its deletion.
    Snapshot(SnapshotName),
    /// The whole store against other processes: shared by writers, exclusive for garbage collection.
    Store,
}

impl fmt::Display for LockScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group {group}"),
            Self::Manifest(snapshot) => write!(f, "manifest of {snapshot}"),
            Self::Snapshot(snapshot) => write!(f, "snapshot {snapshot}"),
            Self::Store => f.write_str("the store"),
        }
    }
}

/// The mode of a lock.
#[expect(clippy::exhaustive_enums, reason = "a backend must handle each of them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Excludes all other holders, but only while some files are deleted. The store waits for such a holder, and gives up at once on
    /// one that holds the lock exclusively for long.
    Brief,
    /// Excludes all other holders.
    Exclusive,
    /// Excludes exclusive holders.
    Shared,
}

impl LockMode {
    /// Returns `true` if the mode excludes all other holders.
    pub(crate) fn is_alone(self) -> bool {
        self != Self::Shared
    }
}

/// The source of a `Busy` whose holder has a [brief](LockMode::Brief) lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldBriefly;

impl HeldBriefly {
    /// Returns `true` if the holder has a brief lock, so that a caller should wait for it.
    pub(crate) fn caused(error: &Error) -> bool {
        error.kind() == ErrorKind::Busy
            && std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<Self>)
    }
}

impl fmt::Display for HeldBriefly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another backup is removing the leftovers of dead writers")
    }
}

impl std::error::Error for HeldBriefly {}

/// A lock that is held. Dropping the guard releases it at once.
#[async_trait]
pub trait LockGuard: fmt::Debug + Send + Sync {
    /// Checks that the lock is still held. The store calls it before every step that cannot be undone.
    ///
    /// # Errors
    /// `Busy` if another holder may have it by now; `Unavailable` if that could not be found out.
    async fn check(&self) -> Result<()>;

    /// Returns `true` if the lock excludes other processes that can reach the store. It excludes only tasks of this process in memory,
    /// for readers of a bucket, and in a directory where a lock file is absent and cannot be made, since the reader has no right to
    /// write or the disk is full.
    fn keeps_processes_out(&self) -> bool;

    /// For [`LockScope::Store`]: the time at which the oldest shared holder in this process took it. The collector keeps chunks that were used
    /// since then.
    fn oldest_shared(&self) -> Option<SystemTime>;

    /// Releases the lock of an object that was deleted while it was held, and removes the lock file, where the backend has one.
    async fn release_deleted(self: Box<Self>);
}

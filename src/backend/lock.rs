//! Locks: their scopes, modes and guards.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{GroupName, SnapshotName};

/// What a lock is on.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LockScope {
    /// A group.
    Group(GroupName),
    /// The manifest of a snapshot, while it is read, changed and written back.
    Manifest(SnapshotName),
    /// A snapshot.
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

/// Whom a lock tolerates.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Nobody else, and only for the moment that some deletions take. The store waits for the holder to finish, where it would
    /// give up at once on one that holds the lock for long.
    Brief,
    /// Nobody else.
    Exclusive,
    /// Other shared holders.
    Shared,
}

impl LockMode {
    /// Returns `true` if no other holder is tolerated.
    pub fn is_alone(self) -> bool {
        self != Self::Shared
    }
}

/// The source of a `Busy` whose holder has the lock [for a moment](LockMode::Brief) only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldBriefly;

impl HeldBriefly {
    /// Returns `true` if the lock is worth waiting for.
    pub(crate) fn caused(error: &Error) -> bool {
        error.kind() == ErrorKind::Busy
            && std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<Self>)
    }
}

impl fmt::Display for HeldBriefly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another backup removes what dead writers left")
    }
}

impl std::error::Error for HeldBriefly {}

/// A lock that is held. Dropping it gives it back at once.
#[async_trait]
pub trait LockGuard: fmt::Debug + Send + Sync {
    /// Whether the lock still holds. To be asked before every step that cannot be undone.
    ///
    /// # Errors
    /// `Busy` if it was lost to somebody else, `Unavailable` if that could not be found out.
    async fn check(&self) -> Result<()>;

    /// Returns `true` if the lock excludes other processes that can reach the store. It is `false` where only tasks of this process
    /// are excluded: in memory; for readers of a bucket; and in a directory where no lock file is there and none can be made, since
    /// the reader may not write or the disk is full.
    fn keeps_processes_out(&self) -> bool;

    /// For [`LockScope::Store`]: when the oldest shared holder in this process took it. Chunks used since then are in use.
    fn oldest_shared(&self) -> Option<SystemTime>;

    /// Gives back the lock of an object that was deleted while it was held, and removes what the lock itself left behind
    /// where the backend does such a thing.
    async fn release_deleted(self: Box<Self>);
}

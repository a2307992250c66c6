//! Locks among the tasks of one process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;

use crate::backend::{HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};

/// The locks that tasks of one process hold, by the rules of [`Coordination::lock`](crate::backend::Coordination::lock).
///
/// For an own [`Coordination`](crate::backend::Coordination); [`SingleProcess`](crate::backend::SingleProcess) has one. All openings of
/// one store in a process must share a table: they do if they share the backend. Clones share their locks.
///
/// | scope | a shared lock is granted | an exclusive or brief lock is granted |
/// |---|---|---|
/// | group, manifest, snapshot | while no holder has it exclusively | while it has no holder |
/// | store | always: it excludes other processes only | while no holder has it exclusively; shared holders stay |
///
/// # Locks that reach other processes
/// Take the lock of the table first, then the one that other processes see, and put both into one guard. The guard releases the outer
/// lock before the inner one, so that no task of this process takes a lock that still counts as held outside. It passes on
/// [`oldest_shared`](LockGuard::oldest_shared) of the inner guard, and its [`check`](LockGuard::check) asks if the outer lock is still held.
///
/// ```
/// use std::time::SystemTime;
///
/// use larder::ErrorKind;
/// use larder::backend::{LockMode, LockScope, LockTable};
///
/// # fn main() -> larder::Result<()> {
/// let locks = LockTable::default();
/// let group = LockScope::Group("vm/100".parse().unwrap());
/// let reader = locks.lock(&group, LockMode::Shared, SystemTime::now())?;
/// let refused = locks.lock(&group, LockMode::Exclusive, SystemTime::now()).unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::Busy);
/// drop(reader);
/// let _writer = locks.lock(&group, LockMode::Exclusive, SystemTime::now())?;
///
/// // Writers hold the store as shared, and a collector beside them holds it exclusively.
/// let _backup = locks.lock(&LockScope::Store, LockMode::Shared, SystemTime::now())?;
/// let collector = locks.lock(&LockScope::Store, LockMode::Exclusive, SystemTime::now())?;
/// assert!(collector.oldest_shared().is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct LockTable {
    /// An entry exists only while its lock is held.
    holders: Arc<Mutex<HashMap<LockScope, Holders>>>,
}

/// The holders of one lock, numbered in the order in which they took it.
#[derive(Debug, Default)]
struct Holders {
    exclusive: Option<LockMode>,
    next: u64,
    shared: BTreeMap<u64, SystemTime>,
}

impl LockTable {
    /// Takes a lock at the time `now`, by the wall clock of the runtime, without waiting. It is held until the guard is dropped.
    ///
    /// The guard excludes no other process and says so; its `check` always succeeds.
    ///
    /// # Errors
    /// `Busy` while another holder has it in a mode that excludes this one.
    pub fn lock(&self, scope: &LockScope, mode: LockMode, now: SystemTime) -> Result<Box<dyn LockGuard>> {
        let mut table = self.table();
        let holders = table.entry(scope.clone()).or_default();
        let side_by_side = *scope == LockScope::Store;
        let free = if mode.is_alone() {
            holders.exclusive.is_none() && (side_by_side || holders.shared.is_empty())
        } else {
            holders.exclusive.is_none() || side_by_side
        };
        if !free {
            let busy = Error::new(ErrorKind::Busy, "lock").on(scope);
            let is_brief = holders.exclusive == Some(LockMode::Brief);
            return Err(if is_brief { busy.because(HeldBriefly) } else { busy });
        }
        let number = holders.next;
        holders.next += 1;
        match mode {
            LockMode::Brief | LockMode::Exclusive => holders.exclusive = Some(mode),
            LockMode::Shared => {
                holders.shared.insert(number, now);
            }
        }
        Ok(Box::new(Held { mode, number, scope: scope.clone(), table: self.clone() }))
    }

    /// The strongest mode among the holders of the lock of the store; `None` if it is not held.
    pub(super) fn store_mode(&self) -> Option<LockMode> {
        let table = self.table();
        let holders = table.get(&LockScope::Store)?;
        holders.exclusive.or((!holders.shared.is_empty()).then_some(LockMode::Shared))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<LockScope, Holders>> {
        // Every change to the table is a single insertion or removal, so a panic elsewhere leaves it whole.
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock that is held in a [`LockTable`].
#[derive(Debug)]
struct Held {
    mode: LockMode,
    number: u64,
    scope: LockScope,
    table: LockTable,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.table.table();
        let Some(holders) = table.get_mut(&self.scope) else { return };
        match self.mode {
            LockMode::Brief | LockMode::Exclusive => holders.exclusive = None,
            LockMode::Shared => {
                holders.shared.remove(&self.number);
            }
        }
        if holders.exclusive.is_none() && holders.shared.is_empty() {
            table.remove(&self.scope);
        }
    }
}

#[async_trait]
impl LockGuard for Held {
    async fn check(&self) -> Result<()> {
        Ok(())
    }

    fn keeps_processes_out(&self) -> bool {
        false
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.table.table().get(&self.scope).and_then(|holders| holders.shared.values().min().copied())
    }

    async fn release_deleted(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn group(name: &str) -> LockScope {
        LockScope::Group(name.parse().unwrap())
    }

    #[test]
    fn the_modes_of_a_lock_exclude_each_other_as_documented() {
        use LockMode::{Brief, Exclusive, Shared};
        for scope in [group("vm/1"), LockScope::Store] {
            for held in [Brief, Exclusive, Shared] {
                for wanted in [Brief, Exclusive, Shared] {
                    let locks = LockTable::default();
                    let _guard = locks.lock(&scope, held, at(0)).unwrap();
                    let is_of_the_store = scope == LockScope::Store;
                    let granted = match (held, wanted) {
                        (Shared, Shared) => true,
                        (Shared, _) | (_, Shared) => is_of_the_store,
                        _ => false,
                    };
                    match locks.clone().lock(&scope, wanted, at(0)) {
                        Ok(_) => assert!(granted, "{scope}: {wanted:?} beside {held:?}"),
                        Err(error) => {
                            assert!(!granted, "{scope}: {wanted:?} beside {held:?}");
                            assert_eq!(error.kind(), ErrorKind::Busy);
                            assert_eq!(
                                HeldBriefly::caused(&error),
                                held == Brief,
                                "callers wait for a brief holder"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_released_lock_leaves_no_entry() {
        let locks = LockTable::default();
        let first = locks.lock(&group("vm/1"), LockMode::Shared, at(1)).unwrap();
        let second = locks.lock(&group("vm/1"), LockMode::Shared, at(2)).unwrap();
        let other = locks.lock(&group("vm/10"), LockMode::Exclusive, at(3)).unwrap();
        drop(first);
        assert!(locks.lock(&group("vm/1"), LockMode::Exclusive, at(4)).is_err());
        drop((second, other));
        assert!(locks.table().is_empty());
    }

    #[test]
    fn the_oldest_shared_holder_is_known_until_it_leaves() {
        let locks = LockTable::default();
        let late = locks.lock(&LockScope::Store, LockMode::Shared, at(20)).unwrap();
        // The clock was set back.
        let early = locks.lock(&LockScope::Store, LockMode::Shared, at(10)).unwrap();
        let alone = locks.lock(&LockScope::Store, LockMode::Exclusive, at(30)).unwrap();
        assert_eq!(alone.oldest_shared(), Some(at(10)));
        assert_eq!(locks.store_mode(), Some(LockMode::Exclusive));
        drop(early);
        assert_eq!(alone.oldest_shared(), Some(at(20)));
        drop(alone);
        assert_eq!(locks.store_mode(), Some(LockMode::Shared));
        drop(late);
        assert_eq!(locks.store_mode(), None);
    }
}

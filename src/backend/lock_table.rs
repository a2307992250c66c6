//! Locks among the tasks of one process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;

use crate::backend::{HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};

/// The holders of each lock in this process. An entry exists only while its lock is held.
#[derive(Debug, Default)]
pub(super) struct LockTable {
    holders: Mutex<HashMap<LockScope, Holders>>,
}

/// The holders of one lock, numbered in the order in which they took it.
#[derive(Debug, Default)]
struct Holders {
    exclusive: Option<LockMode>,
    next: u64,
    shared: BTreeMap<u64, SystemTime>,
}

impl LockTable {
    /// Takes a lock by the rules of `Coordination::lock`.
    pub(super) fn lock(self: &Arc<Self>, scope: &LockScope, mode: LockMode, now: SystemTime) -> Result<Held> {
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
        Ok(Held { mode, number, scope: scope.clone(), table: Arc::clone(self) })
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
pub(super) struct Held {
    mode: LockMode,
    number: u64,
    scope: LockScope,
    table: Arc<LockTable>,
}

impl Held {
    pub(super) fn oldest_shared(&self) -> Option<SystemTime> {
        self.table.table().get(&self.scope).and_then(|holders| holders.shared.values().min().copied())
    }
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
        Held::oldest_shared(self)
    }

    async fn release_deleted(self: Box<Self>) {}
}

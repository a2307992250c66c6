//! What the processes of one host share on a disk: locks that exclude each other, and the move journal.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::backend::{
    Coordination as _, HeldBriefly, LockGuard, LockMode, LockScope, LockTable, Orphan, PendingMoves,
    SingleProcess,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

/// Locks and moves of all processes.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    locks: LockTable,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A collector reads the journal.
    is_read: bool,
    journal: Vec<Key>,
    next: u64,
    /// Holders of the lock of the store: the process, and the mode.
    store: BTreeMap<u64, (u64, LockMode)>,
}

impl Sharing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lock for a process, among whose tasks `local` has the locks of the store.
    pub(crate) async fn lock(
        self: &Arc<Self>,
        (process, local): (u64, &SingleProcess),
        scope: &LockScope,
        mode: LockMode,
    ) -> Result<Box<dyn LockGuard>> {
        if *scope != LockScope::Store {
            return self.locks.lock(scope, mode, local.runtime().now());
        }
        let inner = local.lock(scope, mode).await?;
        let mut state = self.state();
        let mut others = state.store.values().filter(|(other, _)| *other != process);
        if let Some((_, other)) = others.find(|(_, other)| mode.is_alone() || other.is_alone()) {
            let busy = Error::new(ErrorKind::Busy, "lock").on(scope);
            return Err(if *other == LockMode::Brief { busy.because(HeldBriefly) } else { busy });
        }
        state.next += 1;
        let number = state.next;
        state.store.insert(number, (process, mode));
        Ok(Box::new(Held { inner, number, sharing: Arc::clone(self) }))
    }

    pub(crate) async fn record_moves(&self, runtime: &dyn Runtime, keys: &[Key]) -> Result<()> {
        for _ in 0..60 {
            {
                let mut state = self.state();
                if !state.is_read {
                    state.journal.extend_from_slice(keys);
                    return Ok(());
                }
            }
            runtime.sleep(Duration::from_secs(1)).await;
        }
        Err(Error::new(ErrorKind::Busy, "record moves"))
    }

    pub(crate) fn pending_moves(self: &Arc<Self>) -> Result<Box<dyn PendingMoves>> {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_read, true) {
            return Err(Error::new(ErrorKind::Busy, "read moves"));
        }
        Ok(Box::new(Moves { keys: state.journal.clone(), sharing: Arc::clone(self) }))
    }

    /// All processes died.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        state.is_read = false;
        state.store.clear();
    }
}

/// The lock of the store, within a process and outside.
#[derive(Debug)]
struct Held {
    inner: Box<dyn LockGuard>,
    number: u64,
    sharing: Arc<Sharing>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sharing.state().store.remove(&self.number);
    }
}

#[async_trait]
impl LockGuard for Held {
    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }

    fn keeps_processes_out(&self) -> bool {
        true
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.inner.oldest_shared()
    }

    async fn release_deleted(self: Box<Self>) {}
}

/// The moves that a collector reads.
#[derive(Debug)]
struct Moves {
    keys: Vec<Key>,
    sharing: Arc<Sharing>,
}

impl Drop for Moves {
    fn drop(&mut self) {
        self.sharing.state().is_read = false;
    }
}

#[async_trait]
impl PendingMoves for Moves {
    fn keys(&self) -> &[Key] {
        &self.keys
    }

    fn orphans(&self) -> &[Orphan] {
        &[]
    }

    async fn clear(self: Box<Self>) -> Result<()> {
        self.sharing.state().journal.drain(..self.keys.len());
        Ok(())
    }
}

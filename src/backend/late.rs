//! Changes that a server executes after their callers gave up on them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::select;

use crate::rt::Runtime;

/// The changes that a server still has to execute. Its clock goes on while the host sleeps.
#[derive(Debug, Default)]
pub(crate) struct LateChanges {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The time by which the server is ahead of the host, which is about to sleep for as long.
    ahead: Duration,
    /// When each change is due, by the monotonic clock.
    due: BTreeMap<u64, Duration>,
    next: u64,
    waiting: Vec<oneshot::Sender<()>>,
}

/// A change that waits for its time. It was executed when this is dropped.
#[derive(Debug)]
pub(crate) struct LateChange {
    all: Arc<LateChanges>,
    number: u64,
}

impl LateChanges {
    /// Adds a change that the server executes at this time of the monotonic clock.
    pub(crate) fn add(self: &Arc<Self>, due: Duration) -> LateChange {
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.due.insert(number, due);
        LateChange { all: Arc::clone(self), number }
    }

    /// Lets the server execute what is due within this time. Then the host may sleep for as long, and calls [`woke`](Self::woke).
    pub(crate) async fn hasten(&self, runtime: &dyn Runtime, time: Duration) {
        loop {
            let changed = {
                let mut state = self.state();
                state.ahead = time;
                let until = runtime.monotonic() + time;
                if !state.due.values().any(|due| *due <= until) {
                    return;
                }
                state.notify();
                state.changed()
            };
            // The sender is kept until it is used.
            let _ = changed.await;
        }
    }

    /// The host slept.
    pub(crate) fn woke(&self) {
        let mut state = self.state();
        state.ahead = Duration::ZERO;
        state.notify();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn changed(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(sender);
        receiver
    }

    fn notify(&mut self) {
        for waiting in self.waiting.drain(..) {
            // A task that was dropped waits no more.
            let _ = waiting.send(());
        }
    }
}

impl LateChange {
    /// Waits until it is due.
    pub(crate) async fn wait(&self, runtime: &dyn Runtime) {
        loop {
            let (left, changed) = {
                let mut state = self.all.state();
                let now = runtime.monotonic() + state.ahead;
                match state.due.get(&self.number).and_then(|due| due.checked_sub(now)) {
                    None | Some(Duration::ZERO) => return,
                    Some(left) => (left, state.changed()),
                }
            };
            select(runtime.sleep(left), changed).await;
        }
    }
}

impl Drop for LateChange {
    fn drop(&mut self) {
        let mut state = self.all.state();
        state.due.remove(&self.number);
        state.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::rt::SimRuntime;

    #[test]
    fn a_server_executes_late_changes_while_the_host_sleeps() {
        let sim = SimRuntime::new(1);
        let (late, executed) = (Arc::<LateChanges>::default(), Arc::new(AtomicU64::new(0)));
        for minutes in [10, 30, 90] {
            let change = late.add(sim.monotonic() + Duration::from_mins(minutes));
            let (own, executed) = (sim.clone(), Arc::clone(&executed));
            sim.spawn(Box::pin(async move {
                change.wait(&own).await;
                executed.fetch_add(minutes, Ordering::SeqCst);
            }));
        }
        sim.block_on(async {
            sim.sleep(Duration::from_mins(5)).await;
            late.hasten(&sim, Duration::from_hours(1)).await;
            assert_eq!(executed.load(Ordering::SeqCst), 40);
            assert_eq!(sim.monotonic(), Duration::from_mins(5));
            sim.suspend(Duration::from_hours(1));
            late.woke();
            sim.sleep(Duration::from_mins(24)).await;
            assert_eq!(executed.load(Ordering::SeqCst), 40);
            sim.sleep(Duration::from_mins(2)).await;
            assert_eq!(executed.load(Ordering::SeqCst), 130);
        });
    }
}

//! Where the store of a history is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::Backend;
use crate::error::Result;

/// The place of one store during one history: what stays when a process ends or its host crashes.
///
/// The history wraps the backends that [`open`](Place::open) returns: it delays calls, cuts their connections and loses their answers.
/// The place itself only has to be what it is, and to forget unflushed data in a crash.
#[async_trait]
pub trait Place: fmt::Debug + Send + Sync + 'static {
    /// Opens the place in a new process. At the first call the place is empty. Everything runs on the simulated runtime with which the
    /// place was made: a backend that waits for anything else makes no progress.
    ///
    /// A process keeps no memory of an earlier one. So that nothing which a process has in memory outlives it, the place can show the
    /// object [`Key::Store`](crate::format::layout::Key::Store) with an identity that differs from instance to instance.
    ///
    /// # Errors
    /// `Unavailable`, after which the history tries again. Any other error ends the history.
    async fn open(&self, instance: u64) -> Result<Arc<dyn Backend>>;

    /// Stops the host of all processes: calls that begin later have no effect. The seed decides what is left of data that no barrier had
    /// flushed.
    fn crash(&self, seed: u64);

    /// Gives the store to the process that is opened next, while the present one still runs. Returns `false` if the place cannot do that; default: it cannot.
    fn hand_over(&self) -> bool {
        false
    }

    /// Begins or ends the faults that the place has by itself. Returns `true` if it has any: then it executes changes late by itself, and
    /// keeps processes apart, and the history only lets calls fail. Default: it has none.
    fn own_faults(&self, on: bool) -> bool {
        let _ = on;
        false
    }

    /// Returns `true` if two processes may have the place open and change it at the same time; default: no.
    fn is_shared(&self) -> bool {
        false
    }

    /// The longest time for which a listing may show an old state, by the clock of the runtime; default: zero.
    fn max_lag(&self) -> Duration {
        Duration::ZERO
    }

    /// The longest time after which a change that got no answer may still be executed, by the clock of the runtime; zero, the default, if none is. The
    /// history lets changes be executed as late as that. They are executed in time also while the host sleeps.
    fn max_late(&self) -> Duration {
        Duration::ZERO
    }
}

//! Options that all plans share: an abort flag, an observer, and a limit of concurrency.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;

/// The part of a plan's options that controls its execution. `E` is the type of its events.
pub(crate) struct ExecutionControl<E: 'static> {
    pub(crate) abort: Arc<AtomicBool>,
    pub(crate) concurrency: Option<usize>,
    pub(crate) observer: Option<Arc<dyn Observer<E>>>,
}

impl<E> ExecutionControl<E> {
    /// # Errors
    /// `InvalidInput` if the limit of concurrency is 0.
    pub(crate) fn check(&self, action: &'static str) -> Result<()> {
        if self.concurrency == Some(0) {
            return Err(Error::new(ErrorKind::InvalidInput, action).because("its concurrency is 0"));
        }
        Ok(())
    }

    /// Returns `true` if the caller has set the abort flag.
    pub(crate) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }

    pub(crate) fn notify(&self, event: &E) {
        if let Some(observer) = &self.observer {
            observer.on_event(event);
        }
    }
}

// Written out, because derived ones would require the same of the events.
impl<E> Clone for ExecutionControl<E> {
    fn clone(&self) -> Self {
        Self {
            abort: Arc::clone(&self.abort),
            concurrency: self.concurrency,
            observer: self.observer.clone(),
        }
    }
}

impl<E> fmt::Debug for ExecutionControl<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionControl")
            .field("abort", &self.abort)
            .field("concurrency", &self.concurrency)
            .field("observer", &self.observer)
            .finish()
    }
}

impl<E> Default for ExecutionControl<E> {
    fn default() -> Self {
        Self { abort: Arc::default(), concurrency: None, observer: None }
    }
}

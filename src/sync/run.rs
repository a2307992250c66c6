//! A sync that is under way.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Rate;
use crate::store::{Budget, Datastore, WriterPins};
use crate::sync::events::SyncEvent;
use crate::sync::options::SyncOptions;
use crate::sync::plan::{Same, SyncPlan};
use crate::sync::report::SyncReport;
use crate::sync::{group, vanished};

/// What all groups of a sync have in common.
#[derive(Debug)]
pub(in crate::sync) struct Run {
    pub(in crate::sync) options: SyncOptions,
    /// What was transferred, and is not transferred again; pinned meanwhile.
    pins: Mutex<Arc<WriterPins>>,
    pub(in crate::sync) rate: Option<Rate>,
    /// One for each chunk that may be read.
    pub(in crate::sync) reads: Slots,
    pub(in crate::sync) same: Same,
    pub(in crate::sync) source: Datastore,
    pub(in crate::sync) target: Datastore,
    /// One for each chunk that may be stored.
    pub(in crate::sync) writes: Slots,
}

/// How much is done at the same time.
#[derive(Debug)]
pub(in crate::sync) struct Slots {
    pub(in crate::sync) budget: Arc<Budget>,
    pub(in crate::sync) count: usize,
}

/// Why something was not done.
#[derive(Debug)]
pub(in crate::sync) enum Failure {
    /// The flag was set.
    Aborted,
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Slots {
    fn new(store: &Datastore, options: &SyncOptions) -> Self {
        let most = options.in_flight.map_or(usize::MAX, std::num::NonZeroUsize::get);
        let count = store.chunks_in_flight().min(most);
        Self { budget: Budget::new(count), count }
    }
}

impl Run {
    pub(in crate::sync) fn event(&self, event: &SyncEvent<'_>) {
        self.options.observer.on_event(event);
    }

    pub(in crate::sync) fn go_on(&self) -> Result<(), Failure> {
        if self.options.is_aborted() { Err(Failure::Aborted) } else { Ok(()) }
    }

    pub(in crate::sync) fn pins(&self) -> Arc<WriterPins> {
        Arc::clone(&self.pins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what was transferred, if it is too much to be remembered. What it belongs to is visible, or was given up.
    pub(in crate::sync) fn forget(&self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.confirmed() > self.options.remember_chunks {
            *pins = self.target.pins();
        }
    }

    /// Waits until so many bytes may be passed on.
    pub(in crate::sync) async fn pass(&self, bytes: u64) {
        if let Some(rate) = &self.rate {
            rate.take(bytes, self.target.runtime().as_ref()).await;
        }
    }
}

pub(in crate::sync) async fn execute(plan: SyncPlan) -> Result<SyncReport> {
    let mut report = SyncReport::default();
    plan.target.check_writable("sync").await?;
    // Until the end, so that no other process collects what was transferred and is not visible yet (H4, H5).
    let _held = plan.target.hold_store().await?;
    for namespace in &plan.new_namespaces {
        match plan.target.create_namespace(namespace).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => {
                created?;
                report.new_namespaces.push(namespace.clone());
            }
        }
    }
    let run = Run {
        options: plan.options.clone(),
        pins: Mutex::new(plan.target.pins()),
        rate: plan.options.bytes_per_second.map(Rate::new),
        reads: Slots::new(&plan.source, &plan.options),
        same: plan.same,
        source: plan.source.clone(),
        target: plan.target.clone(),
        writes: Slots::new(&plan.target, &plan.options),
    };
    for group in &plan.groups {
        let done = group::sync(&run, group).await;
        report.groups.push(done);
    }
    report.is_aborted = plan.options.is_aborted();
    if !report.is_aborted {
        vanished::remove(&plan, &mut report).await?;
    }
    Ok(report)
}

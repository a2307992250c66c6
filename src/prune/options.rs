//! Options of a prune or a deletion.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::format::name::BackupTime;
use crate::observer::Observer;
use crate::prune::report::PruneEvent;
use crate::retention::{Decision, RetentionItem, RetentionRules, retain};
use crate::store::{ExecutionControl, Listed, SnapshotState};

/// Options of a prune or a deletion.
#[derive(Clone, Default)]
#[must_use]
pub struct PruneOptions {
    pub(super) control: ExecutionControl<PruneEvent>,
    pub(super) rules: RetentionRules,
    utc_offset: Option<Arc<dyn Fn(BackupTime) -> i32 + Send + Sync>>,
}

impl PruneOptions {
    /// Aborts the execution while this flag is `true`; checked before each snapshot, group and namespace. Default: none.
    pub fn abort(mut self, flag: Arc<AtomicBool>) -> Self {
        self.control.abort = flag;
        self
    }

    /// Number of groups listed concurrently for the plan, at least 1; default: 8. The execution removes one snapshot at a time.
    pub fn concurrency(mut self, groups: usize) -> Self {
        self.control.concurrency = Some(groups);
        self
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<PruneEvent>>) -> Self {
        self.control.observer = Some(observer);
        self
    }

    /// Retention rules; default: none, so that everything is kept. A [deletion](crate::prune::plan_deletion) has none.
    pub fn rules(mut self, rules: RetentionRules) -> Self {
        self.rules = rules;
        self
    }

    /// Seconds by which local time is ahead of UTC at a given time, which sets where hours, days, weeks, months and years begin;
    /// default: 0, always.
    pub fn utc_offset(mut self, offset: impl Fn(BackupTime) -> i32 + Send + Sync + 'static) -> Self {
        self.utc_offset = Some(Arc::new(offset));
        self
    }

    /// The decision about each snapshot of a group, in order.
    pub(super) fn decide(&self, listed: &[Listed]) -> Vec<Decision> {
        let items: Vec<_> = listed
            .iter()
            .map(|Listed { info, .. }| {
                let mut item = RetentionItem::new(info.name.time());
                item.finished = info.state == SnapshotState::Finished;
                item.protected = info.protected;
                item
            })
            .collect();
        retain(&items, &self.rules, |time| self.utc_offset.as_ref().map_or(0, |offset| offset(time)))
    }
}

impl fmt::Debug for PruneOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PruneOptions")
            .field("control", &self.control)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

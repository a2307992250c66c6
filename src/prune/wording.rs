//! Wording of plans, events and reports.

use std::fmt;

use crate::prune::plan::{PruneCounts, PrunePlan};
use crate::prune::report::{
    PruneEvent, PruneGroup, PruneGroupOutcome, PruneNamespace, PruneOutcome, PruneReport, PruneSnapshot,
    PruneStop,
};
use crate::wording::{Causes, Count, Parts, count_of, fields_as_json};

impl fmt::Display for PruneCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.number(self.keep, "to keep");
        parts.number(self.keep_partial, "to keep because they are unfinished and the newest");
        parts.number(self.protected, "protected");
        write!(f, "{} to remove", Count(self.remove, "snapshot"))?;
        let rest = parts.line();
        if rest.is_empty() { Ok(()) } else { write!(f, ", {rest}") }
    }
}

/// One line: the number of groups, and of snapshots by decision.
impl fmt::Display for PrunePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", count_of(self.groups().len(), "group"), self.counts())
    }
}

fields_as_json!(PrunePlan, plan => {
    counts: plan.counts(),
    groups: plan.groups(),
    namespaces: plan.namespaces(),
});

/// One line: its name and its outcome, or the decision before it was reached.
impl fmt::Display for PruneSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            PruneOutcome::NotReached => write!(f, "{}: {}", self.name, self.decision),
            outcome => write!(f, "{}: {outcome}", self.name),
        }
    }
}

impl fmt::Display for PruneGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = count_of(self.snapshots.len(), "snapshot");
        write!(f, "group {}, {snapshots}: {}", self.group, self.outcome)
    }
}

impl fmt::Display for PruneNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {}: {}", self.namespace, self.outcome)
    }
}

impl fmt::Display for PruneGroupOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "failed: {}", Causes(error)),
            Self::Kept => f.write_str("kept"),
            Self::NotReached => f.write_str("not reached"),
            Self::Removed => f.write_str("removed"),
        }
    }
}

impl fmt::Display for PruneOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(error) => write!(f, "kept, it is in use: {}", Causes(error)),
            Self::Changed => f.write_str("kept, it changed since the plan"),
            Self::Failed(error) => write!(f, "failed: {}", Causes(error)),
            Self::Gone => f.write_str("already gone"),
            Self::Kept => f.write_str("kept"),
            Self::NotReached => f.write_str("not reached"),
            Self::Protected => f.write_str("kept, it is protected"),
            Self::Removed => f.write_str("removed"),
        }
    }
}

impl fmt::Display for PruneStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("aborted"),
            Self::Lost(error) => write!(f, "stopped: {}", Causes(error)),
        }
    }
}

impl fmt::Display for PruneEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::SnapshotFinished { done, outcome, snapshot, total } = self;
        write!(f, "{done} of {total}: {snapshot}: {outcome}")
    }
}

/// A few lines: the number of removed snapshots, and each failure.
impl fmt::Display for PruneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Parts::default();
        let all: usize = self.groups.iter().map(|group| group.snapshots.len()).sum();
        lines.add(format_args!("removed {} of {}", Count(self.removed(), "snapshot"), all));
        if self.left() > 0 {
            lines.add(format_args!("not removed yet: {}", Count(self.left(), "snapshot")));
        }
        for snapshot in self.groups.iter().flat_map(|group| &group.snapshots) {
            if matches!(snapshot.outcome, PruneOutcome::Busy(_) | PruneOutcome::Failed(_)) {
                lines.add(snapshot);
            }
        }
        for group in self.groups.iter().filter(|group| matches!(group.outcome, PruneGroupOutcome::Failed(_)))
        {
            lines.add(group);
        }
        for one in self.namespaces.iter().filter(|one| matches!(one.outcome, PruneGroupOutcome::Failed(_))) {
            lines.add(one);
        }
        if let Some(stopped) = &self.stopped {
            lines.add(stopped);
        }
        f.write_str(&lines.lines())
    }
}

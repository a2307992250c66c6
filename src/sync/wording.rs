//! Wording of plans, events and reports.

use std::fmt;

use crate::sync::events::SyncEvent;
use crate::sync::kinds::{Resync, SyncConflict, SyncGroup, SyncSkip, SyncSnapshot, SyncStep, Vanished};
use crate::sync::planned::SyncPlan;
use crate::sync::report::{
    SyncGroupOutcome, SyncGroupReport, SyncOutcome, SyncReport, SyncSnapshotReport, SyncStats,
};
use crate::wording::{Causes, Count, Parts, Size, count_of, fields_as_json};

impl fmt::Display for SyncConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Content => "the target has another snapshot of that name, with other data",
            Self::Encryption => "the target has that snapshot, encrypted or signed differently",
            Self::Key => "the target has that snapshot, with another key or signature",
        })
    }
}

impl fmt::Display for SyncSkip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => "the target has it, damaged, and it is not to be replaced",
            Self::NotAmongLast => "it is not among the newest ones wanted",
            Self::NotEncrypted => "it is not completely encrypted",
            Self::NotVerified => "it has not passed a verification",
            Self::Older => "the target lacks it, but has a newer one",
            Self::Present => "the target has it, and a newer one",
            Self::Unfinished => "it is unfinished",
            Self::UpToDate => "the target has the same",
        })
    }
}

impl fmt::Display for Resync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everything => "all of it, because the one at the target is damaged",
            Self::Log => "its client log",
            Self::Manifest => "its notes and verify state",
        })
    }
}

impl fmt::Display for SyncStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(conflict) => write!(f, "conflict: {conflict}"),
            Self::Resync(part) => write!(f, "transfer again: {part}"),
            Self::Skip(reason) => write!(f, "skip: {reason}"),
            Self::Transfer => f.write_str("transfer"),
        }
    }
}

impl fmt::Display for SyncSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.step)
    }
}

impl fmt::Display for SyncGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.foreign_owner {
            Some(owner) => write!(f, "group {}: left alone, it belongs to {owner}", self.target),
            None => write!(f, "group {}: {}", self.target, count_of(self.snapshots.len(), "snapshot")),
        }
    }
}

/// One line.
impl fmt::Display for Vanished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (snapshots, namespaces) = (self.snapshots.len(), self.namespaces.len());
        write!(f, "{} and {}", count_of(snapshots, "snapshot"), count_of(namespaces, "namespace"))?;
        if self.protected.is_empty() { Ok(()) } else { write!(f, ", {} protected", self.protected.len()) }
    }
}

/// One or two lines: the snapshots by step, and the removals if there are any.
impl fmt::Display for SyncPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number =
            |is: fn(&SyncStep) -> bool| self.snapshots().filter(|snapshot| is(&snapshot.step)).count();
        let transfers = number(|step| matches!(step, SyncStep::Transfer));
        write!(f, "{} to transfer", count_of(transfers, "snapshot"))?;
        let rest = [
            (number(|step| matches!(step, SyncStep::Resync(_))), "to transfer again"),
            (number(|step| matches!(step, SyncStep::Skip(_))), "skipped"),
            (number(|step| matches!(step, SyncStep::Conflict(_))), "in conflict"),
        ];
        for (number, text) in rest.into_iter().filter(|(number, _)| *number > 0) {
            write!(f, ", {number} {text}")?;
        }
        let vanished = self.vanished();
        if *vanished == Vanished::default() { Ok(()) } else { write!(f, "\nto remove: {vanished}") }
    }
}

fields_as_json!(SyncPlan, plan => {
    groups: plan.groups(),
    new_namespaces: plan.new_namespaces(),
    vanished: plan.vanished(),
});

impl fmt::Display for SyncStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, bytes) = (Count(self.chunks_sent, "chunk"), Size(self.bytes_sent));
        write!(f, "sent {sent}, {bytes}; {} reused", self.chunks_reused)
    }
}

impl fmt::Display for SyncOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(conflict) => write!(f, "conflict: {conflict}"),
            Self::Done(stats) => write!(f, "done: {stats}"),
            Self::Failed(error) => write!(f, "failed: {}", Causes(error)),
            Self::NotReached => f.write_str("not reached"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
            Self::SourceGone => f.write_str("the source deleted it meanwhile"),
        }
    }
}

impl fmt::Display for SyncSnapshotReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.outcome)
    }
}

impl fmt::Display for SyncGroupOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Failed(error) => write!(f, "failed: {}", Causes(error)),
            Self::Foreign(owner) => write!(f, "left alone, it belongs to {owner}"),
            Self::NotReached => f.write_str("not reached"),
        }
    }
}

impl fmt::Display for SyncGroupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = count_of(self.snapshots.len(), "snapshot");
        write!(f, "group {}, {snapshots}: {}", self.target, self.outcome)
    }
}

impl fmt::Display for SyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChunkReused { digest, snapshot } => write!(f, "{snapshot}: reused chunk {digest}"),
            Self::ChunkSent { digest, snapshot, stored } => {
                write!(f, "{snapshot}: sent chunk {digest}, {}", Size(*stored))
            }
            Self::SnapshotFinished { outcome, snapshot } => write!(f, "{snapshot}: {outcome}"),
            Self::SnapshotStarted { snapshot } => write!(f, "{snapshot}: started"),
        }
    }
}

/// A few lines: the totals, then each failure, conflict and group left alone.
impl fmt::Display for SyncReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Parts::default();
        let done = self.snapshots().filter(|one| matches!(one.outcome, SyncOutcome::Done(_))).count();
        let removed = self.removed.len();
        lines.add(format_args!(
            "{} transferred, {removed} removed: {}",
            count_of(done, "snapshot"),
            self.stats()
        ));
        if self.is_aborted {
            lines.add("aborted");
        }
        let is_done = |group: &&SyncGroupReport| matches!(group.outcome, SyncGroupOutcome::Done);
        self.groups.iter().filter(|group| !is_done(group)).for_each(|group| lines.add(group));
        for snapshot in self.snapshots() {
            if matches!(snapshot.outcome, SyncOutcome::Conflict(_) | SyncOutcome::Failed(_)) {
                lines.add(snapshot);
            }
        }
        for (name, error) in &self.unremoved {
            lines.add(format_args!("not removed: {name}: {}", Causes(error)));
        }
        f.write_str(&lines.lines())
    }
}

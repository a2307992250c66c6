//! Wording of plans, events and reports.

use std::fmt;

use crate::gc::options::GcEvent;
use crate::gc::plan::{GcPlan, SafetyLimit};
use crate::gc::report::{
    ChunkTally, GcDamagedSnapshot, GcEnd, GcFailure, GcReport, GcSummary, PackPlan, PackTally,
};
use crate::wording::{Causes, Count, Parts, Size, fields_as_json};

impl fmt::Display for ChunkTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Count(self.chunks, "chunk"))?;
        // Without a look at the sizes they are unknown.
        if self.bytes > 0 { write!(f, ", {}", Size(self.bytes)) } else { Ok(()) }
    }
}

impl fmt::Display for PackTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", Count(self.packs, "pack"), Size(self.bytes))
    }
}

/// One line: the packs, and those that would be deleted, rewritten and merged.
impl fmt::Display for PackPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = Count(self.segments, "segment");
        write!(f, "{}, {} unused, {segments}", self.packs, Size(self.unused_bytes))?;
        for (tally, action) in [(self.delete, "delete"), (self.repack, "rewrite"), (self.merge, "merge")] {
            if tally.packs > 0 {
                write!(f, "; {action} {tally}")?;
            }
        }
        if self.copied_bytes > 0 {
            let requests = Count(self.gets + self.puts, "request");
            write!(f, "; copy {} with {requests} or more", Size(self.copied_bytes))?;
        }
        Ok(())
    }
}

impl fmt::Display for GcDamagedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} missing", self.name, Count(self.missing, "chunk"))
    }
}

/// A few lines: chunks by what becomes of them, then missing chunks and foreign paths if there are any.
impl fmt::Display for GcSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Parts::default();
        lines.add(format_args!("{} of {}", Count(self.indexes, "index"), Size(self.archive_bytes)));
        lines.add(format_args!("in use: {}", self.in_use));
        lines.add(format_args!("garbage: {}", self.garbage));
        lines.add(format_args!("unreferenced, kept for now: {}", self.waiting));
        if let Some(packs) = &self.packs {
            lines.add(format_args!("packs: {packs}"));
        }
        if self.quarantined.chunks > 0 {
            let garbage = self.quarantined_garbage.chunks;
            lines.add(format_args!("quarantined: {}; {garbage} of them are garbage", self.quarantined));
        }
        if self.missing > 0 {
            let snapshots = Count(self.damaged_count, "snapshot");
            lines.add(format_args!("missing: {}, in {snapshots}", Count(self.missing, "chunk")));
        }
        if self.foreign_count > 0 {
            lines.add(format_args!("left alone: {}", Count(self.foreign_count, "foreign path")));
        }
        f.write_str(&lines.lines())
    }
}

impl fmt::Display for SafetyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSnapshots => f.write_str("the store has chunks and no snapshot"),
            Self::Share(percent) => write!(f, "more than {percent} percent of the chunks would be removed"),
        }
    }
}

/// The lines of the summary, and the reason for a confirmation if the plan needs one.
impl fmt::Display for GcPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary())?;
        match self.safety_limit() {
            Some(limit) => write!(f, "\nneeds confirmation: {limit}"),
            None => Ok(()),
        }
    }
}

fields_as_json!(GcPlan, plan => { safety_limit: plan.safety_limit(), summary: plan.summary() });

impl fmt::Display for GcEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChunksListed { chunks } => write!(f, "listed {}", Count(*chunks, "chunk")),
            Self::IndexMarked { chunks } => write!(f, "marked an index of {}", Count(*chunks, "chunk")),
            Self::Removed { bytes, chunks } => {
                write!(f, "removed {}, {}", Count(*chunks, "chunk"), Size(*bytes))
            }
            Self::ShardListed { done, of } => write!(f, "listed part {done} of {of}"),
        }
    }
}

impl fmt::Display for GcEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("aborted"),
            Self::Complete => f.write_str("complete"),
            Self::Stopped(error) => write!(f, "stopped: {}", Causes(error)),
        }
    }
}

impl fmt::Display for GcFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, Causes(&self.error))
    }
}

/// A few lines: the way it ended and the removed chunks, then the rest if there is any.
impl fmt::Display for GcReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Parts::default();
        lines.add(format_args!("{}: removed {}", self.end, self.removed));
        if self.removed_quarantined.chunks > 0 {
            lines.add(format_args!("removed from quarantine: {}", self.removed_quarantined));
        }
        if self.waiting.chunks > 0 {
            lines.add(format_args!("unreferenced, kept for now: {}", self.waiting));
        }
        let mut stayed = Parts::default();
        stayed.number(self.pinned, "came into use");
        stayed.number(self.busy, "locked by another operation");
        stayed.number(self.absent, "already gone");
        if self.pinned + self.busy + self.absent > 0 {
            lines.add(format_args!("not removed: {}", stayed.line()));
        }
        if self.failed > 0 {
            lines.add(format_args!("failed: {}", Count(self.failed, "object")));
        }
        if self.leftovers > 0 {
            lines.add(format_args!("removed: {} of unfinished puts", Count(self.leftovers, "leftover")));
        }
        if let Some(error) = &self.leftovers_refused {
            lines.add(format_args!("leftovers of unfinished puts stay: {}", Causes(error)));
        }
        for remark in &self.remarks {
            lines.add(Causes(remark));
        }
        f.write_str(&lines.lines())
    }
}

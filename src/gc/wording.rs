//! Wording of plans, events and reports.

use std::fmt;

use crate::gc::options::GcEvent;
use crate::gc::plan::{GcPlan, SafetyLimit};
use crate::gc::prices::{Amount, PackCost};
use crate::gc::report::{
    ChunkTally, GcDamagedSnapshot, GcEnd, GcFailure, GcReport, GcSummary, LeftPacks, PackAction, PackPlan,
    PackTally,
};
use crate::wording::{Causes, Count, Parts, Size, fields_as_json, text_as_json};

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

text_as_json!(Amount);

/// The cost, and the part of it for early deletion unless it is 0.
impl fmt::Display for PackCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "costs {}", self.once)?;
        if self.early_deletion > Amount::default() {
            write!(f, ", of which {} for early deletion", self.early_deletion)?;
        }
        write!(f, "; saves {} a month", self.saved_monthly)
    }
}

/// One line: the packs, what is done to them, and the cost if it is known.
impl fmt::Display for PackAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", Count(self.packs, "pack"), Size(self.bytes))?;
        for (bytes, requests, action) in
            [(self.read_bytes, self.gets, "read"), (self.written_bytes, self.puts, "write")]
        {
            if requests > 0 {
                write!(f, "; {action} {} with {}", Size(bytes), Count(requests, "request"))?;
            }
        }
        write!(f, "; free {} with {}", Size(self.freed_bytes), Count(self.deletes, "request"))?;
        self.cost.map_or(Ok(()), |cost| write!(f, "; {cost}"))
    }
}

/// One line: the packs by the reason why they stay.
impl fmt::Display for LeftPacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (self.in_use, "in use"),
            (self.tolerated, "tolerated waste"),
            (self.small, "small, but too few to merge"),
            (self.soon_again, "would be rewritten again soon"),
            (self.limited, "beyond the limit of copied bytes"),
            (self.kept, "younger than packs are kept"),
            (self.quarantined, "with the last copy of a corrupt chunk"),
            (self.unsettled, "not recorded yet, or just dropped"),
        ];
        let mut separator = "";
        for (tally, reason) in reasons.iter().filter(|(tally, _)| tally.packs > 0) {
            write!(f, "{separator}{reason}: {tally}")?;
            separator = "; ";
        }
        Ok(())
    }
}

/// One line: the packs, and those that would be deleted, rewritten and merged.
impl fmt::Display for PackPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = Count(self.segments, "segment");
        write!(f, "{}, {} unused, {segments}", self.packs, Size(self.unused_bytes))?;
        for (action, name) in [(self.delete, "delete"), (self.repack, "rewrite"), (self.merge, "merge")] {
            if action.packs > 0 {
                write!(f, "; {name} {}, {}", Count(action.packs, "pack"), Size(action.bytes))?;
            }
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
            for (action, name) in
                [(packs.delete, "deleted"), (packs.repack, "rewritten"), (packs.merge, "merged")]
            {
                if action.packs > 0 {
                    lines.add(format_args!("packs to be {name}: {action}"));
                }
            }
            if packs.leave != LeftPacks::default() {
                lines.add(format_args!("packs that stay: {}", packs.leave));
            }
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

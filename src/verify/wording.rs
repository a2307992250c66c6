//! Wording of plans, events and reports.

use std::fmt;

use crate::verify::plan::{VerifyEstimate, VerifyPlan};
use crate::verify::report::{
    ArchiveDamage, CheckStrength, ChunkCounts, ChunkFinding, Incomplete, ObjectFault, SkipReason,
    SkippedSnapshot, SnapshotDamage, VerifyEvent, VerifyReport,
};
use crate::wording::{Causes, Count, Parts, Size, count_of, fields_as_json};

impl fmt::Display for VerifyEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (snapshots, chunks) = (Count(self.snapshots, "snapshot"), Count(self.chunks, "chunk"));
        let (bytes, requests) = (Size(self.bytes), Count(self.requests, "request"));
        write!(f, "at most {snapshots}, {chunks}, {bytes} to read, {requests}")
    }
}

/// One line: the scope and the estimate.
impl fmt::Display for VerifyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.scope(), self.estimate())
    }
}

fields_as_json!(VerifyPlan, plan => {
    estimate: plan.estimate(),
    scope: plan.scope(),
    snapshots: plan.snapshots().collect::<Vec<_>>(),
});

impl fmt::Display for ChunkCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.count(self.digest, "good chunk");
        parts.number(self.checksum, "good by checksum");
        parts.number(self.presence, "present");
        parts.number(self.corrupt, "corrupt");
        parts.number(self.missing, "missing");
        parts.number(self.unreachable, "unreachable");
        f.write_str(&parts.line_or("no chunks"))
    }
}

impl fmt::Display for CheckStrength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "checksum",
            Self::Digest => "digest",
            Self::Presence => "presence",
        })
    }
}

impl fmt::Display for ChunkFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt => f.write_str("corrupt"),
            Self::Good(strength) => write!(f, "good, by {strength}"),
            Self::Missing => f.write_str("missing"),
            Self::Unreachable(kind) => write!(f, "unreachable: {kind}"),
        }
    }
}

impl fmt::Display for ObjectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Corrupt => "corrupt",
            Self::Missing => "missing",
            Self::Signature => "not authentic",
        })
    }
}

impl fmt::Display for ArchiveDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        if let Some(fault) = self.fault {
            parts.add(fault);
        }
        parts.count(self.corrupt, "corrupt chunk");
        parts.count(self.missing, "missing chunk");
        parts.number(self.misfits, "of the wrong length or encryption");
        write!(f, "{}: {}", self.name, parts.line_or("damaged"))
    }
}

/// One line: its name, then the manifest or the archives.
impl fmt::Display for SnapshotDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        let mut parts = Parts::default();
        if let Some(fault) = self.manifest {
            parts.add(format_args!("manifest: {fault}"));
        }
        self.archives.iter().for_each(|archive| parts.add(archive));
        f.write_str(&parts.line_or("damaged"))
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aborted => "aborted",
            Self::Budget => "the budget was used up before any chunk was read",
            Self::Unreachable => "something could not be reached",
        })
    }
}

impl fmt::Display for SkippedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "it is being written or deleted",
            Self::Unfinished => "it is unfinished",
            Self::Unreachable(kind) => return write!(f, "its manifest could not be read: {kind}"),
            Self::Vanished => "it was deleted meanwhile",
            Self::VerifiedBefore => "it was verified recently",
        })
    }
}

impl fmt::Display for VerifyEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChunkChecked { digest, finding } => write!(f, "chunk {digest}: {finding}"),
            Self::SnapshotFinished { snapshot, state: None } => write!(f, "{snapshot}: check ended"),
            Self::SnapshotFinished { snapshot, state: Some(state) } => write!(f, "{snapshot}: {state}"),
            Self::SnapshotStarted { snapshot } => write!(f, "{snapshot}: check started"),
        }
    }
}

/// A few lines: the result and the cost, then everything that needs attention.
impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Parts::default();
        let damaged = self.damaged.len();
        if self.next_rotation.is_some() {
            let damaged = count_of(damaged, "damaged snapshot");
            lines.add(format_args!("sample: {}; {damaged}", self.chunks));
        } else {
            let sound = Count(self.sound, "good snapshot");
            lines.add(format_args!("{sound}, {damaged} damaged; {}", self.chunks));
        }
        lines.add(format_args!("read {} in {}", Size(self.bytes), Count(self.requests, "request")));
        if let Some(incomplete) = self.incomplete {
            lines.add(format_args!("incomplete: {incomplete}"));
        }
        self.damaged.iter().for_each(|damage| lines.add(format_args!("damaged: {damage}")));
        self.damaged_logs.iter().for_each(|name| lines.add(format_args!("damaged client log: {name}")));
        self.unreadable.iter().for_each(|entry| lines.add(format_args!("unreadable: {entry}")));
        let is_recent = |skipped: &&SkippedSnapshot| skipped.reason == SkipReason::VerifiedBefore;
        let recent = self.skipped.iter().filter(is_recent).count();
        if recent > 0 {
            lines.add(format_args!("verified recently: {}", count_of(recent, "snapshot")));
        }
        for skipped in self.skipped.iter().filter(|skipped| !is_recent(skipped)) {
            lines.add(format_args!("skipped: {skipped}"));
        }
        if self.quarantined + self.reinstated > 0 {
            let (quarantined, reinstated) = (Count(self.quarantined, "chunk"), self.reinstated);
            lines.add(format_args!("quarantined {quarantined}, reinstated {reinstated}"));
        }
        for (digest, error) in &self.unrepaired_because {
            lines.add(format_args!("not repaired: chunk {digest}: {}", Causes(error)));
        }
        for (name, kind) in &self.unrecorded {
            lines.add(format_args!("result not recorded: {name}: {kind}"));
        }
        if self.unsteady > 0 {
            lines.add(format_args!(
                "corrupt once and good when read again: {}",
                Count(self.unsteady, "object")
            ));
        }
        if self.is_suspicion_damaged {
            lines.add("the list of suspects is damaged, and nothing was quarantined");
        }
        f.write_str(&lines.lines())
    }
}

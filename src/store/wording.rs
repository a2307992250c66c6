//! Wording of listings, events and results.

use std::fmt;

use crate::packs::{PackRequests, PackUsage};
use crate::store::backup::session::{ArchiveSummary, BackupStats, BackupSummary};
use crate::store::catalog::delete::Deletion;
use crate::store::catalog::list::{FileInfo, SnapshotInfo, SnapshotState};
use crate::store::events::ArchiveEvent;
use crate::store::lifecycle::Destruction;
use crate::store::relocate::{Relocated, RelocatedGroup, RelocatedSnapshot, Relocation};
use crate::wording::{Causes, Count, Parts, Size, count_of};

impl fmt::Display for ArchiveSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, Size(self.size))?;
        if self.chunks == 0 { Ok(()) } else { write!(f, " in {}", Count(self.chunks, "chunk")) }
    }
}

impl fmt::Display for BackupStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {}, stored {}: ", Size(self.bytes_read), Size(self.bytes_written))?;
        let mut parts = Parts::default();
        parts.count(self.chunks_new, "new chunk");
        parts.number(self.chunks_known, "known");
        parts.number(self.chunks_reused, "reused");
        f.write_str(&parts.line_or("no chunks"))
    }
}

/// One line.
impl fmt::Display for PackUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (packs, segments) = (Count(self.packs, "pack"), Count(self.segments, "segment"));
        write!(f, "{packs}, {}", Size(self.bytes))?;
        if self.metadata_packs > 0 {
            write!(f, ", of which {} of metadata, {}", self.metadata_packs, Size(self.metadata_bytes))?;
        }
        write!(f, "; {segments}")
    }
}

/// One line, of the numbers that are not 0.
impl fmt::Display for PackRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.number(self.pack_gets, "reads of packs");
        parts.number(self.pack_puts, "puts of packs");
        parts.number(self.pack_deletes, "deletions of packs");
        parts.number(self.segment_gets, "reads of segments");
        parts.number(self.segment_puts, "puts of segments");
        parts.number(self.segment_deletes, "deletions of segments");
        parts.number(self.lists, "pages of listings");
        f.write_str(&parts.line_or("none"))
    }
}

/// A line for the snapshot, and one for each archive.
impl fmt::Display for BackupSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.stats)?;
        self.archives.iter().try_for_each(|archive| write!(f, "\n{archive}"))
    }
}

impl fmt::Display for FileInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, Size(self.stored_bytes))
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::Unfinished => "unfinished",
            Self::Unreadable => "unreadable",
        })
    }
}

/// One line: its name, its state and its number of files.
impl fmt::Display for SnapshotInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.add(self.state);
        if self.protected {
            parts.add("protected");
        }
        parts.add(count_of(self.files.len(), "file"));
        if self.has_client_log {
            parts.add("client log");
        }
        self.unreadable.iter().for_each(|entry| parts.add(entry));
        write!(f, "{}: {}", self.name, parts.line())
    }
}

impl fmt::Display for ArchiveEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArchiveFinished { archive, size } => write!(f, "{archive}: finished, {}", Size(*size)),
            Self::ArchiveStarted { archive, size: None } => write!(f, "{archive}: started"),
            Self::ArchiveStarted { archive, size: Some(size) } => {
                write!(f, "{archive}: started, {}", Size(*size))
            }
            Self::ChunkKnown { archive, size } => write!(f, "{archive}: known chunk, {}", Size(*size)),
            Self::ChunkRestored { archive, size } => write!(f, "{archive}: restored chunk, {}", Size(*size)),
            Self::ChunkReused { archive, size } => write!(f, "{archive}: reused chunk, {}", Size(*size)),
            Self::ChunkStored { archive, size, stored } => {
                write!(f, "{archive}: new chunk, {}, stored in {}", Size(*size), Size(*stored))
            }
        }
    }
}

impl fmt::Display for Deletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deleted {}", count_of(self.deleted.len(), "snapshot"))?;
        if self.protected.is_empty() { Ok(()) } else { write!(f, ", {} protected", self.protected.len()) }
    }
}

impl fmt::Display for Destruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "removed {}", Count(self.deleted, "object"))?;
        match self.foreign.len() {
            0 => Ok(()),
            foreign => write!(f, ", left {} alone", count_of(foreign, "foreign path")),
        }
    }
}

impl fmt::Display for Relocated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyThere => f.write_str("the destination has it already"),
            Self::Busy(error) => write!(f, "in use: {}", Causes(error)),
            Self::Copied => f.write_str("copied"),
            Self::Failed(error) => write!(f, "failed: {}", Causes(error)),
            Self::Gone => f.write_str("gone"),
            Self::Moved => f.write_str("moved"),
            Self::NotReached => f.write_str("not reached"),
            Self::Unfinished => f.write_str("left in place, it is unfinished"),
        }
    }
}

impl fmt::Display for RelocatedSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.outcome)
    }
}

/// One line: source, destination and number of snapshots.
impl fmt::Display for RelocatedGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} to {}: {}", self.from, self.to, count_of(self.snapshots.len(), "snapshot"))?;
        match &self.error {
            Some(error) => write!(f, ", failed: {}", Causes(error)),
            None => Ok(()),
        }
    }
}

/// A few lines: the totals, then each failure and each namespace that stays.
impl fmt::Display for Relocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = || self.groups.iter().flat_map(|group| &group.snapshots);
        let done = |one: &&RelocatedSnapshot| matches!(one.outcome, Relocated::Copied | Relocated::Moved);
        let mut lines = Parts::default();
        let (all, groups) = (snapshots().count(), count_of(self.groups.len(), "group"));
        lines.add(format_args!(
            "{} of {all} copied or moved, {groups}",
            count_of(snapshots().filter(done).count(), "snapshot")
        ));
        self.groups.iter().filter(|group| group.error.is_some()).for_each(|group| lines.add(group));
        for one in snapshots() {
            if matches!(one.outcome, Relocated::Busy(_) | Relocated::Failed(_)) {
                lines.add(one);
            }
        }
        for namespace in &self.kept_namespaces {
            lines.add(format_args!("namespace {namespace} is not empty, and stays"));
        }
        if let Some(error) = &self.stopped {
            lines.add(format_args!("stopped: {}", Causes(error)));
        }
        f.write_str(&lines.lines())
    }
}

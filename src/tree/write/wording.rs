//! Wording of events and results.

use std::fmt;

use crate::tree::report::Shown;
use crate::tree::write::findings::TreeEvent;
use crate::tree::write::summary::{TreeCounts, TreeSummary};
use crate::wording::{Count, Parts, Size, text_as_json};

impl fmt::Display for TreeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DirectoryEntered { path } => write!(f, "{}: entered", Shown(path)),
            Self::FileRead { path, size } => write!(f, "{}: read, {}", Shown(path), Size(*size)),
            Self::FileReused { path, size } => write!(f, "{}: unchanged, {}", Shown(path), Size(*size)),
            Self::Found(finding) => finding.fmt(f),
        }
    }
}

text_as_json!(TreeEvent);

impl fmt::Display for TreeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.add(format_args!("{} in {}", Size(self.bytes), Count(self.files, "file")));
        if self.files_reused > 0 {
            parts.add(format_args!("{} in {} unchanged", Size(self.bytes_reused), self.files_reused));
        }
        parts.add(if self.directories == 1 {
            "1 directory".to_owned()
        } else {
            format!("{} directories", self.directories)
        });
        parts.count(self.hard_links, "hard link");
        parts.count(self.others, "other");
        f.write_str(&parts.line())
    }
}

/// A line with the counts, the archives, and the report.
impl fmt::Display for TreeSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.counts, self.base)?;
        self.archives.iter().try_for_each(|archive| write!(f, "\n{archive}"))?;
        if self.report.findings.is_empty() { Ok(()) } else { write!(f, "\n{}", self.report) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_events_are_lines() {
        let counts = TreeCounts {
            bytes: 3 << 20,
            bytes_reused: 1 << 20,
            directories: 2,
            files: 3,
            files_reused: 1,
            hard_links: 1,
            others: 0,
        };
        assert_eq!(
            counts.to_string(),
            "3.0 MiB in 3 files, 1.0 MiB in 1 unchanged, 2 directories, 1 hard link"
        );
        let event = TreeEvent::FileRead { path: "a\nb".into(), size: 1024 };
        assert_eq!(event.to_string(), "a\\nb: read, 1.0 KiB");
    }
}

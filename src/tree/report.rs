//! Findings of a backup or restore of a tree, and their list.

use std::fmt;

use crate::wording::{Count, Parts, count_of, fields_as_json, word_as_json};

/// Maximum number of findings that a [`TreeReport`] keeps; it counts the others.
const MAX_FINDINGS: usize = 100_000;

/// An entry that a backup or restore of a tree could not handle as asked.
///
/// `Display` gives one line: the path, the problem and its cause. It escapes line breaks, other control characters, bytes that are not
/// UTF-8, and backslashes.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFinding {
    /// The cause, such as the error of the system, as text on one line.
    pub cause: Option<String>,
    /// The path, byte for byte.
    pub path: Vec<u8>,
    /// The problem.
    pub problem: Problem,
}

impl TreeFinding {
    /// A problem with an entry; `path` is its full path.
    pub fn new(path: impl Into<Vec<u8>>, problem: Problem) -> Self {
        Self { cause: None, path: path.into(), problem }
    }

    /// Adds the cause, such as the error of the system.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(Shown(cause.to_string().as_bytes()).to_string());
        self
    }

    /// The path as text on one line: different paths give different texts.
    pub fn shown_path(&self) -> String {
        Shown(&self.path).to_string()
    }
}

fields_as_json!(TreeFinding, finding => {
    path: finding.shown_path(),
    problem: finding.problem,
    message: finding.problem.to_string(),
    cause: finding.cause,
    notice: finding.problem.is_notice(),
});

impl fmt::Display for TreeFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Shown(&self.path), self.problem)?;
        self.cause.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

/// An attribute of an entry that could not be set or read.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Attribute {
    /// Extended attributes, including access control lists and capabilities.
    Extended,
    /// Attribute flags, such as immutable.
    Flags,
    /// The permission bits.
    Mode,
    /// The owner or the group.
    Owner,
    /// The project for quotas.
    Project,
    /// The times.
    Times,
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Extended => "extended attributes",
            Self::Flags => "attribute flags",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Project => "project",
            Self::Times => "times",
        })
    }
}

/// The kind of a [`TreeFinding`]. Positions are in bytes from the start of the file.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Problem {
    /// Backup: a line of this file is no valid exclude pattern and was ignored. A notice.
    BadPattern,
    /// Backup: the file changed while it was read; its parts may be of different times.
    Changed,
    /// Restore: a hard link could not be made; the entry is a copy of the linked file.
    Copied,
    /// Restore: the contents of the file are damaged in the store.
    Damaged,
    /// Restore: a device, left out because the restore was not asked for devices. A notice.
    Device,
    /// Restore: later entries may be lost, because a part of the archive is damaged or malformed.
    EntriesLost,
    /// Restore: another entry has this name and is in the way.
    Exists,
    /// Backup: the file grew while it was read; its earlier size was stored.
    Grown,
    /// Backup: a directory on another filesystem, stored empty. A notice.
    MountPoint,
    /// Restore: the entry could not be created.
    NotCreated,
    /// Restore: the attribute could not be set; the rest of the entry was restored.
    NotSet(Attribute),
    /// Restore: the contents of the file could not be written.
    NotWritten,
    /// Restore: the archive lacks the directory of the entry.
    Orphan,
    /// Backup: the target store or its local state, left out. A notice.
    OwnStore,
    /// Restore: rights beyond those of the owner, such as set-user-ID bits, capabilities and attributes `trusted.*`, left out because the
    /// restore was not asked for them. A notice.
    Privileges,
    /// Restore: the archive has several entries of this name; the last replaced an earlier one.
    Replaced,
    /// Backup: a file `.pxarexclude-cli` in the root, a name that archives use for the exclude patterns of a backup; left out. A notice.
    Reserved,
    /// Backup: the file shrank while it was read; zeros were stored from this position on.
    Shrunk(u64),
    /// Restore: something of this name exists and was kept, as asked. A notice.
    Skipped,
    /// Conversion to `tar`: a socket, which that format cannot hold; left out. A notice.
    Socket,
    /// Restore: the entry follows a damaged part of the archive, which may have held some of its attributes.
    Uncertain,
    /// Backup: the entry could not be read and was left out.
    Unreadable,
    /// Backup: the attribute could not be read; the entry was stored without.
    UnreadableAttribute(Attribute),
    /// Backup: the directory could not be listed; it was stored without some or all of its contents.
    UnreadableContents,
    /// Backup: the file could not be read from this position on; zeros were stored instead.
    UnreadableFrom(u64),
    /// Restore: the path of the entry leaves the target.
    Unsafe,
    /// Restore: the kind of the entry is unknown or unsupported.
    Unsupported,
    /// Backup: the entry vanished after its directory was listed.
    Vanished,
    /// Backup: a virtual filesystem, such as `/proc`, stored as an empty directory. A notice.
    VirtualFilesystem,
}

impl Problem {
    /// A stable short name for programs: lower case, with underscores.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadPattern => "bad_pattern",
            Self::Changed => "changed",
            Self::Copied => "copied",
            Self::Damaged => "damaged",
            Self::Device => "device",
            Self::EntriesLost => "entries_lost",
            Self::Exists => "exists",
            Self::Grown => "grown",
            Self::MountPoint => "mount_point",
            Self::NotCreated => "not_created",
            Self::NotSet(_) => "not_set",
            Self::NotWritten => "not_written",
            Self::Orphan => "orphan",
            Self::OwnStore => "own_store",
            Self::Privileges => "privileges",
            Self::Replaced => "replaced",
            Self::Reserved => "reserved",
            Self::Shrunk(_) => "shrunk",
            Self::Skipped => "skipped",
            Self::Socket => "socket",
            Self::Uncertain => "uncertain",
            Self::Unreadable => "unreadable",
            Self::UnreadableAttribute(_) => "unreadable_attribute",
            Self::UnreadableContents => "unreadable_contents",
            Self::UnreadableFrom(_) => "unreadable_from",
            Self::Unsafe => "unsafe",
            Self::Unsupported => "unsupported",
            Self::Vanished => "vanished",
            Self::VirtualFilesystem => "virtual_filesystem",
        }
    }

    /// Returns `true` if the entry was left out by a rule or by its nature, so that no data is missing.
    pub fn is_notice(&self) -> bool {
        matches!(
            self,
            Self::BadPattern
                | Self::Device
                | Self::MountPoint
                | Self::OwnStore
                | Self::Privileges
                | Self::Reserved
                | Self::Skipped
                | Self::Socket
                | Self::VirtualFilesystem
        )
    }
}

word_as_json!(Problem, code);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadPattern => "a line of it is no valid exclude pattern; ignored",
            Self::Changed => "it changed while it was read; its parts may be of different times",
            Self::Copied => "a copy, since a hard link could not be made",
            Self::Damaged => "its contents are damaged in the store",
            Self::Device => "a device; left out",
            Self::EntriesLost => "entries behind it may be lost",
            Self::Exists => "something of this name exists",
            Self::Grown => "it became longer while it was read; its first size is stored",
            Self::MountPoint => "another filesystem is mounted there; its contents are left out",
            Self::NotCreated => "it could not be created",
            Self::NotSet(attribute) => return write!(f, "its {attribute} could not be set"),
            Self::NotWritten => "its contents could not be written",
            Self::Orphan => "the archive has no directory for it; left out",
            Self::OwnStore => "it belongs to the store of this backup; left out",
            Self::Privileges => "rights beyond those of its owner are left out",
            Self::Replaced => "a later entry of this name took the place of an earlier one",
            Self::Reserved => "its name is reserved for exclude patterns; left out",
            Self::Shrunk(at) => {
                return write!(f, "it became shorter while it was read; from byte {at} on, zeros are stored");
            }
            Self::Skipped => "something of this name exists; kept",
            Self::Socket => "a socket; left out",
            Self::Uncertain => {
                "it follows a damaged part of the archive, in which some of its attributes may lie"
            }
            Self::Unreadable => "it cannot be read; left out",
            Self::UnreadableAttribute(attribute) => {
                return write!(f, "its {attribute} cannot be read; stored without");
            }
            Self::UnreadableContents => "the directory cannot be listed; contents are left out",
            Self::UnreadableFrom(at) => {
                return write!(f, "it cannot be read from byte {at} on; zeros are stored instead");
            }
            Self::Unsafe => "its path leads out of the target; left out",
            Self::Unsupported => "an entry of an unsupported kind; left out",
            Self::Vanished => "it vanished; left out",
            Self::VirtualFilesystem => "a filesystem that the kernel makes up; its contents are left out",
        })
    }
}

/// The findings of a backup or a restore, in order.
///
/// It keeps the first 100,000 and counts the others.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TreeReport {
    /// Number of findings beyond the retained ones.
    pub beyond: u64,
    /// The retained findings.
    pub findings: Vec<TreeFinding>,
    /// Number of findings that are not notices.
    pub losses: u64,
}

impl TreeReport {
    /// Adds a finding.
    pub fn add(&mut self, finding: TreeFinding) {
        self.losses += u64::from(!finding.problem.is_notice());
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.beyond += 1;
        }
    }

    /// Returns `true` if all findings are notices: everything asked for was done.
    pub fn is_complete(&self) -> bool {
        self.losses == 0
    }
}

/// A few lines: the number of problems and of notices, then each problem.
impl fmt::Display for TreeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notices = self.findings.iter().filter(|finding| finding.problem.is_notice()).count();
        let mut lines = Parts::default();
        lines.add(format_args!("{}, {}", Count(self.losses, "problem"), count_of(notices, "notice")));
        self.findings
            .iter()
            .filter(|finding| !finding.problem.is_notice())
            .for_each(|finding| lines.add(finding));
        if self.beyond > 0 {
            lines.add(format_args!("and {} more", self.beyond));
        }
        f.write_str(&lines.lines())
    }
}

/// Bytes as text on one line; different bytes give different texts.
pub(super) struct Shown<'a>(pub(super) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    // Besides control characters, these break a line in some programs.
                    '\u{2028}' | '\u{2029}' => write!(f, "{}", character.escape_unicode())?,
                    _ if character.is_control() => write!(f, "{}", character.escape_unicode())?,
                    _ => write!(f, "{character}")?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_finding_is_one_line_with_path_problem_and_cause() {
        let finding = TreeFinding::new(*b"a\nb\\\xff", Problem::Shrunk(7)).because("two\nlines");
        let line =
            r"a\nb\\\xff: it became shorter while it was read; from byte 7 on, zeros are stored: two\nlines";
        assert_eq!(finding.to_string(), line);
        assert_eq!(finding.path, b"a\nb\\\xff");
    }

    #[test]
    fn a_report_is_complete_until_something_is_missing() {
        let mut report = TreeReport::default();
        for problem in [Problem::Socket, Problem::OwnStore, Problem::MountPoint, Problem::VirtualFilesystem] {
            report.add(TreeFinding::new("a", problem));
        }
        assert!(report.is_complete());
        report.add(TreeFinding::new("b", Problem::NotSet(Attribute::Owner)));
        assert!(!report.is_complete());
        assert_eq!((report.losses, report.findings.len()), (1, 5));
    }

    #[test]
    fn a_report_counts_findings_beyond_its_limit() {
        let mut report = TreeReport::default();
        for _ in 0..MAX_FINDINGS + 3 {
            report.add(TreeFinding::new("a", Problem::Vanished));
        }
        assert_eq!((report.findings.len(), report.beyond), (MAX_FINDINGS, 3));
        assert_eq!(report.losses, MAX_FINDINGS as u64 + 3);
    }

    proptest! {
        #[test]
        fn different_paths_have_different_texts(a: Vec<u8>, b: Vec<u8>) {
            let show = |path: &[u8]| TreeFinding::new(path, Problem::Vanished).shown_path();
            prop_assert_eq!(a == b, show(&a) == show(&b));
            prop_assert!(!show(&a).contains(char::is_control));
        }
    }
}

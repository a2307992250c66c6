//! An entry of a tree.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;

use crate::calendar::DateTime;
use crate::pxar::{ArchiveEntry, EntryContents, FileKind, Metadata, last_name};
use crate::tree::report::Shown;
use crate::wording::fields_as_json;

/// An entry of a tree.
///
/// `Display` gives one line, as `ls -l` does, with the time in UTC. It escapes line breaks, other control characters, bytes that are not UTF-8,
/// and backslashes.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// Where its contents are in the archive.
    pub contents: EntryContents,
    /// Its kind.
    pub kind: FileKind,
    /// Its metadata. A hard link has those of its [target](crate::tree::Tree::target), and none here.
    pub metadata: Metadata,
    /// Its path from the root, byte for byte, without a slash in front; empty for the root.
    pub path: Bytes,
    /// Position of its name in the archive, which identifies it there; 0 for the root.
    pub position: u64,
}

impl TreeEntry {
    /// The last name of its path; empty for the root.
    pub fn file_name(&self) -> &OsStr {
        OsStr::from_bytes(last_name(&self.path))
    }

    /// Its path from the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// Size of a file in bytes; 0 for other kinds.
    pub fn size(&self) -> u64 {
        match self.kind {
            FileKind::File { size } => size,
            _ => 0,
        }
    }

    fn letter(&self) -> char {
        match self.kind {
            FileKind::BlockDevice(_) => 'b',
            FileKind::CharDevice(_) => 'c',
            FileKind::Directory => 'd',
            FileKind::Fifo => 'p',
            FileKind::File { .. } => '-',
            FileKind::HardLink { .. } => 'h',
            FileKind::Socket => 's',
            FileKind::Symlink { .. } => 'l',
        }
    }

    /// A stable name of the kind for programs.
    #[cfg(feature = "serde")]
    fn kind_code(&self) -> &'static str {
        match self.kind {
            FileKind::BlockDevice(_) => "block_device",
            FileKind::CharDevice(_) => "char_device",
            FileKind::Directory => "directory",
            FileKind::Fifo => "fifo",
            FileKind::File { .. } => "file",
            FileKind::HardLink { .. } => "hard_link",
            FileKind::Socket => "socket",
            FileKind::Symlink { .. } => "symlink",
        }
    }

    #[cfg(feature = "serde")]
    fn link_target(&self) -> Option<&Bytes> {
        match &self.kind {
            FileKind::HardLink { target } | FileKind::Symlink { target } => Some(target),
            _ => None,
        }
    }

    /// The permission bits as nine letters.
    fn permissions(&self) -> String {
        let mode = self.metadata.stat.mode;
        let special = |group: u32| match group {
            6 => (0o4000, 's', 'S'),
            3 => (0o2000, 's', 'S'),
            _ => (0o1000, 't', 'T'),
        };
        let letters = [6, 3, 0].into_iter().flat_map(|group| {
            let bits = mode >> group;
            let (bit, with_execute, without) = special(group);
            let execute = match (bits & 1 != 0, mode & bit != 0) {
                (true, true) => with_execute,
                (false, true) => without,
                (true, false) => 'x',
                (false, false) => '-',
            };
            [if bits & 4 != 0 { 'r' } else { '-' }, if bits & 2 != 0 { 'w' } else { '-' }, execute]
        });
        letters.collect()
    }
}

impl From<ArchiveEntry> for TreeEntry {
    fn from(entry: ArchiveEntry) -> Self {
        let ArchiveEntry { contents, kind, metadata, path, position } = entry;
        Self { contents, kind, metadata, path, position }
    }
}

impl fmt::Display for TreeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stat = &self.metadata.stat;
        write!(f, "{}{} {}/{} ", self.letter(), self.permissions(), stat.uid, stat.gid)?;
        match self.kind {
            FileKind::BlockDevice(device) | FileKind::CharDevice(device) => {
                write!(f, "{},{}", device.major, device.minor)?;
            }
            _ => write!(f, "{}", self.size())?,
        }
        let DateTime { year, month, day, hour, minute, second } = DateTime::from_epoch(stat.mtime.seconds);
        write!(f, " {year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} ")?;
        let path = if self.path.is_empty() { &b"."[..] } else { &self.path };
        write!(f, "{}", Shown(path))?;
        match &self.kind {
            FileKind::HardLink { target } => write!(f, " link to {}", Shown(target)),
            FileKind::Symlink { target } => write!(f, " -> {}", Shown(target)),
            _ => Ok(()),
        }
    }
}

fields_as_json!(TreeEntry, entry => {
    path: Shown(&entry.path).to_string(),
    kind: entry.kind_code(),
    size: entry.size(),
    mode: format!("{:04o}", entry.metadata.stat.permissions()),
    uid: entry.metadata.stat.uid,
    gid: entry.metadata.stat.gid,
    mtime: entry.metadata.stat.mtime.seconds,
    mtime_nanoseconds: entry.metadata.stat.mtime.nanoseconds,
    target: entry.link_target().map(|target| Shown(target).to_string()),
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pxar::{Device, Mtime, Stat};

    fn entry(path: &'static [u8], kind: FileKind, mode: u32) -> TreeEntry {
        let mtime = Mtime { seconds: 1_700_000_000, nanoseconds: 0 };
        let metadata = Metadata::new(Stat { mode, mtime, uid: 1000, gid: 100, ..Stat::default() });
        TreeEntry {
            contents: EntryContents::None,
            kind,
            metadata,
            path: Bytes::from_static(path),
            position: 0,
        }
    }

    #[test]
    fn an_entry_is_one_line() {
        let target = Bytes::from_static(b"x\ny");
        for (entry, line) in [
            (
                entry(b"a/b\xff\n", FileKind::File { size: 12 }, 0o104_754),
                r"-rwsr-xr-- 1000/100 12 2023-11-14 22:13:20 a/b\xff\n",
            ),
            (entry(b"", FileKind::Directory, 0o041_776), "drwxrwxrwT 1000/100 0 2023-11-14 22:13:20 ."),
            (
                entry(b"l", FileKind::Symlink { target: target.clone() }, 0o120_777),
                r"lrwxrwxrwx 1000/100 0 2023-11-14 22:13:20 l -> x\ny",
            ),
            (
                entry(b"h", FileKind::HardLink { target }, 0),
                r"h--------- 1000/100 0 2023-11-14 22:13:20 h link to x\ny",
            ),
            (
                entry(b"n", FileKind::CharDevice(Device { major: 1, minor: 3 }), 0o022_640),
                "crw-r-S--- 1000/100 1,3 2023-11-14 22:13:20 n",
            ),
        ] {
            assert_eq!(entry.to_string(), line);
        }
    }

    #[test]
    fn paths_are_those_of_the_system() {
        let entry = entry(b"a/b\xff", FileKind::Fifo, 0o010_600);
        assert_eq!(entry.file_name().as_bytes(), b"b\xff");
        assert_eq!(entry.as_path().parent(), Some(Path::new("a")));
    }
}

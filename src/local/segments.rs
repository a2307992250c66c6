//! Copies of large index segments of a packed store, on a local disk.
//!
//! A segment never changes, and its name is used once, so a copy is good as long as its bytes are: readers check the checksums in it. Files
//! are written under a temporary name, renamed, and not flushed. One that a crash damaged fails the checksums, which makes it a miss (H41).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::local::private;

const TEMPORARY: &str = "new-";

/// The copies of one store.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    directory: PathBuf,
    temporaries: AtomicU64,
}

/// A copy that is being written.
#[derive(Debug)]
pub(crate) struct PartialCopy {
    file: File,
    /// The path of the whole copy; `None` after the rename.
    target: Option<PathBuf>,
    temporary: PathBuf,
}

impl SegmentFiles {
    /// Opens the copies in a directory, which is made if it is absent. Unfinished ones are removed.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        private::open_directory(directory, TEMPORARY)?;
        Ok(Self { directory: directory.to_owned(), temporaries: AtomicU64::new(0) })
    }

    /// Length of a copy; `None` if there is none.
    pub(crate) fn len(&self, name: &str) -> Option<u64> {
        fs::metadata(self.directory.join(name)).ok().map(|found| found.len())
    }

    /// Reads a part of a copy.
    pub(crate) fn read(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let file = private::open(&self.directory.join(name))?;
        if file.metadata()?.len() < range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = range.end.saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Begins a copy.
    pub(crate) fn begin(&self, name: &str) -> io::Result<PartialCopy> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!("{TEMPORARY}{number}"));
        let file = private::create(&temporary)?;
        Ok(PartialCopy { file, target: Some(self.directory.join(name)), temporary })
    }

    /// Removes a copy, if there is one.
    pub(crate) fn remove(&self, name: &str) {
        // One that stays fails its checksums again.
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// Removes all copies but these.
    pub(crate) fn retain(&self, names: &HashSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_copy = |name: &str| !name.starts_with(TEMPORARY);
            if name.to_str().is_some_and(|name| is_copy(name) && !names.contains(name)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl PartialCopy {
    /// Adds bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Makes the copy visible.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let Some(target) = self.target.take() else { return Ok(()) };
        fs::rename(&self.temporary, target)
    }
}

impl Drop for PartialCopy {
    fn drop(&mut self) {
        if self.target.is_some() {
            // The next opening removes one that stays.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_read_by_range_and_unfinished_ones_leave_nothing() {
        let scratch = larder_testing::scratch();
        let files = SegmentFiles::open(scratch.path()).unwrap();
        for name in ["a-0", "a-1", "a-2"] {
            let mut copy = files.begin(name).unwrap();
            copy.write(b"01").unwrap();
            copy.write(b"234").unwrap();
            if name != "a-2" {
                copy.finish().unwrap();
            }
        }
        assert_eq!((files.len("a-0"), files.len("a-2")), (Some(5), None));
        assert_eq!(files.read("a-0", 1..4).unwrap(), b"123");
        assert!(files.read("a-0", 3..6).is_err() && files.read("a-0", 0..u64::MAX).is_err());
        files.retain(&HashSet::from(["a-1".to_owned()])).unwrap();
        assert_eq!((files.len("a-0"), files.len("a-1")), (None, Some(5)));
        fs::write(scratch.path().join("new-7"), b"torn").unwrap();
        let again = SegmentFiles::open(scratch.path()).unwrap();
        again.remove("a-1");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

//! Copies of the metadata of a store, on a local disk.
//!
//! A copy is a file of its own, named by the SHA-256 of the path of its object, a zero byte and its version. So a copy never changes, and
//! copies of an older and of a newer state lie side by side: which of them count, a listing of the store says, and nothing here
//! (H40, H82). Names are lower-case hexadecimal digits, whatever the keys are (H85, H87).
//!
//! ```text
//! 4 bytes magic · 4 bytes length, little-endian · 4 bytes CRC-32 of the body, little-endian · body
//! ```
//! Files are written under a temporary name and renamed, and not flushed: one that a crash damaged fails its check, which makes it
//! a miss (H41).

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::format::Digest;
use crate::local::private;

const HEAD_BYTES: usize = 12;
const MAGIC: [u8; 4] = *b"LMd1";

/// The copies of one store.
#[derive(Debug)]
pub(crate) struct Mirror {
    directory: PathBuf,
    temporaries: AtomicU64,
}

/// The name of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CopyName(Digest);

impl CopyName {
    pub(crate) fn new(path: &str, version: &str) -> Self {
        Self(Digest::of(&[path.as_bytes(), version.as_bytes()].join(&0)))
    }
}

impl Mirror {
    /// Opens the copies in a directory, which is made if it is absent. What a crash left half written is removed.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        private::open_directory(directory, TEMPORARY)?;
        Ok(Self { directory: directory.to_owned(), temporaries: AtomicU64::new(0) })
    }

    /// The body of a copy, if it exists and is complete. A damaged one is removed.
    pub(crate) fn get(&self, name: &CopyName) -> Option<Bytes> {
        let path = self.path(name);
        let body = checked(&Bytes::from(private::read(&path).ok()?));
        if body.is_none() {
            // Another task may have removed it.
            let _ = fs::remove_file(&path);
        }
        body
    }

    /// Returns `true` if a copy exists, complete or not.
    pub(crate) fn contains(&self, name: &CopyName) -> bool {
        self.path(name).exists()
    }

    /// Keeps a copy.
    pub(crate) fn put(&self, name: &CopyName, body: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = self.directory.join(format!("{TEMPORARY}{number}"));
        let written = write(&temporary, body).and_then(|()| match fs::rename(&temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                private::make_directory(path.parent().unwrap_or(&self.directory))?;
                fs::rename(&temporary, &path)
            }
            renamed => renamed,
        });
        if written.is_err() {
            // The first failure is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Removes all copies but these.
    pub(crate) fn retain(&self, live: &HashSet<CopyName>) -> io::Result<()> {
        for directory in fs::read_dir(&self.directory)? {
            let directory = directory?;
            if !directory.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(directory.path())? {
                let file = file?;
                let name = file.file_name();
                let name = name.to_str().and_then(|name| name.parse().ok()).map(CopyName);
                if name.is_some_and(|name| !live.contains(&name)) {
                    fs::remove_file(file.path())?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, name: &CopyName) -> PathBuf {
        let name = name.0.to_string();
        self.directory.join(&name[..2]).join(name)
    }
}

fn write(path: &Path, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let mut file = match private::create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The directory was removed from outside; it is made again.
            private::make_directory(path.parent().unwrap_or(path))?;
            private::create(path)?
        }
        file => file?,
    };
    file.write_all(&head)?;
    file.write_all(body)
}

/// The body of a file, if it is complete.
pub(crate) fn checked(bytes: &Bytes) -> Option<Bytes> {
    let head: [u8; HEAD_BYTES] = bytes.get(..HEAD_BYTES)?.try_into().ok()?;
    let body = bytes.slice(HEAD_BYTES..);
    let word = |at: usize| head.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    let is_whole = head.starts_with(&MAGIC)
        && word(4).map(u64::from) == Some(body.len() as u64)
        && word(8) == Some(crc32fast::hash(&body));
    is_whole.then_some(body)
}

const TEMPORARY: &str = "tmp-";

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::TempDir, Mirror) {
        let directory = larder_testing::scratch();
        let mirror = Mirror::open(&directory.path().join("mirror")).unwrap();
        (directory, mirror)
    }

    #[test]
    fn a_copy_is_found_by_path_and_version() {
        let (_directory, mirror) = opened();
        let name = CopyName::new("vm/1/owner", "v1");
        assert_eq!((mirror.get(&name), mirror.contains(&name)), (None, false));
        mirror.put(&name, b"").unwrap();
        mirror.put(&name, b"root@pam").unwrap();
        assert_eq!(mirror.get(&name).unwrap(), "root@pam");
        assert_eq!(mirror.get(&CopyName::new("vm/1/owner", "v2")), None);
        assert_ne!(CopyName::new("a", "bc"), CopyName::new("ab", "c"));
        mirror.put(&CopyName::new("a", "1"), b"a").unwrap();
        mirror.retain(&[name].into()).unwrap();
        assert!(mirror.contains(&name) && !mirror.contains(&CopyName::new("a", "1")));
    }

    /// Proves H41.
    #[test]
    fn a_torn_or_changed_copy_is_a_miss() {
        let (_directory, mirror) = opened();
        let name = CopyName::new("a", "1");
        mirror.put(&name, b"body").unwrap();
        let whole = fs::read(mirror.path(&name)).unwrap();
        for cut in 0..whole.len() {
            fs::write(mirror.path(&name), &whole[..cut]).unwrap();
            assert_eq!(mirror.get(&name), None, "{cut}");
            assert!(!mirror.contains(&name), "it is gone");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            fs::write(mirror.path(&name), changed).unwrap();
            assert_eq!(mirror.get(&name), None, "{at}");
        }
        fs::write(mirror.path(&name), [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(mirror.get(&name), None);
    }

    /// Proves H74.
    #[test]
    fn a_lost_mirror_fails_no_operation() {
        let (directory, mirror) = opened();
        let name = CopyName::new("a", "1");
        mirror.put(&name, b"body").unwrap();
        fs::remove_dir_all(directory.path().join("mirror")).unwrap();
        assert_eq!(mirror.get(&name), None);
        mirror.put(&name, b"body").unwrap();
        assert_eq!(mirror.get(&name).unwrap(), "body");
        fs::write(directory.path().join("mirror/tmp-9"), "x").unwrap();
        let again = Mirror::open(&directory.path().join("mirror")).unwrap();
        assert_eq!(again.get(&name).unwrap(), "body");
        assert!(!directory.path().join("mirror/tmp-9").exists());
    }
}

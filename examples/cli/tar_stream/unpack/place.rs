//! Where entries go: below one directory, and nowhere else.
//!
//! Every directory is opened by its name in the one above, and never through a link, so no entry leads out of the target and
//! paths may be longer than the system takes at once. Files are written as `NAME.restoring-<16 digits>` and renamed when they are
//! whole; what is there is not replaced, but for an earlier entry of the same name.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::attributes::os;

/// Bytes of a name at the start of its temporary form.
const KEPT_NAME_BYTES: usize = 100;

/// The path of an entry below the target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Below(Vec<Vec<u8>>);

impl Below {
    /// A path as an archive has it; `None` if it leads out.
    pub(crate) fn parse(path: &[u8]) -> Option<Self> {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        let parts: Vec<_> = parts.map(<[u8]>::to_vec).collect();
        (!parts.iter().any(|part| part == b"..")).then_some(Self(parts))
    }

    /// The directory above and the name; `None` for the target itself.
    pub(crate) fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0.split_last().map(|(name, above)| (above, name.as_slice()))
    }

    pub(crate) fn parts(&self) -> &[Vec<u8>] {
        &self.0
    }
}

/// The directories below the target.
pub(crate) struct Directories {
    /// The one that was opened last.
    current: (Vec<Vec<u8>>, Arc<OwnedFd>),
    /// Directories that appeared through their contents, before any entry named them.
    made: HashSet<Vec<Vec<u8>>>,
    root: Arc<OwnedFd>,
}

impl Directories {
    pub(crate) fn new(root: OwnedFd) -> Self {
        let root = Arc::new(root);
        Self { current: (Vec::new(), Arc::clone(&root)), made: HashSet::new(), root }
    }

    pub(crate) fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// Returns `true` if a directory was made only because there is something in it.
    pub(crate) fn has_made(&self, path: &[Vec<u8>]) -> bool {
        self.made.contains(path)
    }

    /// Opens a directory, and creates missing ones on the way.
    pub(crate) fn open(&mut self, path: &[Vec<u8>]) -> io::Result<Arc<OwnedFd>> {
        let (known, open) = &self.current;
        let (mut open, rest) = match path.strip_prefix(known.as_slice()) {
            Some(rest) => (Arc::clone(open), rest),
            None => (Arc::clone(&self.root), path),
        };
        let known = path.len() - rest.len();
        for (at, part) in rest.iter().enumerate() {
            let next = match open_directory(&open, part) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&open, os(part), Mode::from_raw_mode(0o777))?;
                    self.made.insert(path[..=known + at].to_vec());
                    open_directory(&open, part)?
                }
                opened => opened?,
            };
            open = Arc::new(next);
        }
        self.current = (path.to_vec(), Arc::clone(&open));
        Ok(open)
    }
}

/// Opens a directory that is no link.
pub(crate) fn open_directory(above: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, os(name), flags, Mode::empty())
}

/// The object that may have the name of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// An earlier entry, which is replaced.
    Entry,
    Nothing,
}

/// A file that is being written.
pub(crate) struct NewFile {
    directory: Arc<OwnedFd>,
    pub(crate) file: File,
    is_whole: bool,
    name: Vec<u8>,
    temporary: Vec<u8>,
}

impl NewFile {
    pub(crate) fn create(directory: Arc<OwnedFd>, name: Vec<u8>, names: &Names) -> io::Result<Self> {
        loop {
            let temporary = names.of(&name);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, os(&temporary), flags, Mode::from_raw_mode(0o600)) {
                Err(Errno::EXIST) => {}
                opened => {
                    let file = File::from(opened?);
                    return Ok(Self { directory, file, is_whole: false, name, temporary });
                }
            }
        }
    }

    /// Gives the file its name. Returns `true` if that replaced an earlier entry.
    pub(crate) fn finish(mut self, before: Before) -> Result<bool, Errno> {
        let (from, to) = (os(&self.temporary), os(&self.name));
        let replaces = before == Before::Entry
            && rustix::fs::statat(&self.directory, to, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        match before {
            Before::Entry => rustix::fs::renameat(&self.directory, from, &self.directory, to)?,
            Before::Nothing => rename_new(&self.directory, from, to)?,
        }
        self.is_whole = true;
        Ok(replaces)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_whole {
            // If it stays, its name says what it is.
            let _ = rustix::fs::unlinkat(self.directory.as_fd(), os(&self.temporary), AtFlags::empty());
        }
    }
}

fn rename_new(directory: &OwnedFd, from: &std::ffi::OsStr, to: &std::ffi::OsStr) -> Result<(), Errno> {
    #[cfg(target_os = "linux")]
    match rustix::fs::renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE) {
        Err(error) if is_incapable(error) => {}
        renamed => return renamed,
    }
    match rustix::fs::linkat(directory, from, directory, to, AtFlags::empty()) {
        Err(error) if is_incapable(error) => {}
        linked => return linked.and_then(|()| rustix::fs::unlinkat(directory, from, AtFlags::empty())),
    }
    // Neither exists: no other program writes here.
    match rustix::fs::statat(directory, to, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(directory, from, directory, to),
        Err(error) => Err(error),
    }
}

/// Returns `true` for the answers of filesystems that cannot do what was asked.
fn is_incapable(error: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM].contains(&error)
}

/// Temporary names that no other process uses.
pub(crate) struct Names {
    next: AtomicU64,
}

impl Names {
    pub(crate) fn new() -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        Self { next: RandomState::new().hash_one(std::process::id()).into() }
    }

    fn of(&self, name: &[u8]) -> Vec<u8> {
        let mut end = name.len().min(KEPT_NAME_BYTES);
        // Some filesystems refuse names that are not UTF-8.
        while end < name.len() && end > 0 && name[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        [&name[..end], format!(".restoring-{number:016x}").as_bytes()].concat()
    }
}

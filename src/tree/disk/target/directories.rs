//! The directories of a target that entries are created in.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, fremovexattr, mkdirat, unlinkat};
use rustix::io::Errno;

use super::own::{OwnEntries, exists};
use super::{Existing, checked, split};
use crate::tree::disk::metadata::write::has_attribute;
use crate::tree::disk::metadata::{ACCESS_LIST, DEFAULT_LIST};
use crate::tree::disk::open;
use crate::tree::disk::status::Status;
use crate::tree::restore::target::TargetError;
use crate::tree::{LinkId, Problem};

/// Maximum number of directories held open, besides the root. The usual limit of a process is 1024 descriptors.
const MAX_OPEN: usize = 256;

/// Directories that were entered and not left.
#[derive(Debug)]
pub(super) struct Directories {
    entered: Mutex<Entered>,
    root: Parent,
}

#[derive(Debug, Default)]
struct Entered {
    by_path: HashMap<Vec<u8>, Known>,
    /// Paths of open ones, the oldest first; some are left already.
    open: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Known {
    id: LinkId,
    inherits: bool,
    /// Closed if too many others were opened later.
    open: Option<Arc<OwnedFd>>,
}

/// A directory to create entries in.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) fd: Arc<OwnedFd>,
    /// `true` if new entries inherit an access control list, which is not that of the archive.
    pub(super) inherits: bool,
}

impl Directories {
    pub(super) fn new(root: OwnedFd) -> io::Result<Self> {
        // An error here says more than one for each entry.
        Status::of(&root)?;
        let inherits = has_attribute(root.as_fd(), DEFAULT_LIST);
        Ok(Self { entered: Mutex::default(), root: Parent { fd: Arc::new(root), inherits } })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.fd.as_fd()
    }

    /// Creates a directory, or enters an existing one.
    pub(super) fn enter(
        &self,
        path: &[u8],
        existing: Existing,
        own: &Mutex<OwnEntries>,
    ) -> Result<(), TargetError> {
        let (above, name) = split(path)?;
        let parent = self.get(above)?;
        let mut own = OwnEntries::lock(own, existing);
        let mut is_new = make(&parent, &name, existing)?;
        let mut opened = open::directory(&parent.fd, &name);
        if let (Err(Errno::NOTDIR | Errno::LOOP), false, Existing::Replace, Some(own)) =
            (&opened, is_new, existing, &own)
        {
            remove(&parent, &name, own)?;
            is_new = make(&parent, &name, Existing::Refuse)?;
            opened = open::directory(&parent.fd, &name);
        }
        let fd = match opened {
            Err(Errno::NOTDIR | Errno::LOOP) if !is_new => return Err(exists(Problem::Exists)),
            opened => opened.map_err(io::Error::from)?,
        };
        if is_new && parent.inherits {
            // Otherwise it would spread to all entries below.
            remove_inherited_lists(&fd);
        }
        let inherits = !is_new && has_attribute(fd.as_fd(), DEFAULT_LIST);
        let id = Status::of(&fd)?.id;
        if let Some(own) = &mut own {
            if is_new {
                own.add_directory(id, path);
            } else if !own.add_existing(id, path) {
                return Err(exists(Problem::Exists));
            }
        }
        drop(own);
        self.lock().add(path, Known { id, inherits, open: Some(Arc::new(fd)) });
        Ok(())
    }

    /// A directory that was entered.
    pub(super) fn get(&self, path: &[u8]) -> io::Result<Parent> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        let known = self.lock().look(path)?;
        if let (Some(fd), inherits) = (known.open, known.inherits) {
            return Ok(Parent { fd, inherits });
        }
        let fd = Arc::new(self.open_known(path, known.id)?);
        let again = Known { id: known.id, inherits: known.inherits, open: Some(Arc::clone(&fd)) };
        self.lock().add(path, again);
        Ok(Parent { fd, inherits: known.inherits })
    }

    /// Ends the work in a directory, and returns it.
    pub(super) fn leave(&self, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        let parent = self.get(path)?;
        self.lock().by_path.remove(path);
        Ok(parent.fd)
    }

    /// Opens an object by walking down from the root, provided that it is a certain one.
    pub(super) fn open_known(&self, path: &[u8], id: LinkId) -> io::Result<OwnedFd> {
        let file = if path.is_empty() {
            self.root.fd.try_clone()?
        } else {
            let (above, name) = split(path)?;
            open::to_read(self.walk(above)?, &name)?
        };
        if Status::of(&file)?.id == id {
            Ok(file)
        } else {
            Err(io::Error::other("another object took its place"))
        }
    }

    /// Opens a directory by walking down from the root.
    pub(super) fn walk(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut directory = self.root.fd.try_clone()?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            directory = open::directory(&directory, &checked(name)?)?;
        }
        Ok(directory)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entered> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered {
    fn add(&mut self, path: &[u8], known: Known) {
        self.by_path.insert(path.to_vec(), known);
        self.open.push_back(path.to_vec());
        while self.open.len() > MAX_OPEN {
            let oldest = self.open.pop_front();
            if let Some(known) = oldest.and_then(|oldest| self.by_path.get_mut(&oldest)) {
                known.open = None;
            }
        }
    }

    fn look(&self, path: &[u8]) -> io::Result<Known> {
        let Known { id, inherits, open } = self
            .by_path
            .get(path)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its directory is not restored"))?;
        Ok(Known { id: *id, inherits: *inherits, open: open.clone() })
    }
}

/// Fails if an existing entry is of the same restore.
pub(super) fn check_replaceable(parent: &Parent, name: &CStr, own: &OwnEntries) -> Result<(), TargetError> {
    let is_own = Status::of_name(&parent.fd, name).is_ok_and(|status| own.has(status.id));
    if is_own && !mutated!("restore-replaces-its-own-entries") {
        return Err(exists(Problem::Exists));
    }
    Ok(())
}

/// Removes an existing entry that is neither a directory nor of the same restore.
fn remove(parent: &Parent, name: &CStr, own: &OwnEntries) -> Result<(), TargetError> {
    check_replaceable(parent, name, own)?;
    match unlinkat(&parent.fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Err(exists(Problem::Exists)),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Makes a directory; returns `false` if the name is taken, and may be.
fn make(parent: &Parent, name: &CStr, existing: Existing) -> Result<bool, TargetError> {
    match mkdirat(&parent.fd, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) if existing == Existing::Refuse => Err(exists(Problem::Exists)),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Removes the access control lists that a new directory inherited.
pub(super) fn remove_inherited_lists(directory: &OwnedFd) {
    let _ = (fremovexattr(directory, DEFAULT_LIST), fremovexattr(directory, ACCESS_LIST));
}

/// Removes the access control list that a new entry inherited.
pub(super) fn remove_inherited(parent: &Parent, file: BorrowedFd<'_>) {
    if parent.inherits {
        let _ = fremovexattr(file, ACCESS_LIST);
    }
}

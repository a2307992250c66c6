//! Opening of targets.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, Mode, OFlags, mkdir, openat};

use super::directories::{Directories, remove_inherited_lists};
use super::{DirectoryTarget, Existing, State};
use crate::error::{Error, Result};
use crate::rt::Runtime;
use crate::tree::disk::metadata::write::Powers;

impl DirectoryTarget {
    /// Creates the directory, which must not exist; the directory above must.
    ///
    /// The root gets the metadata of the archive in the end.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, `Denied` and similar.
    pub async fn create(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let create = move || {
            let created = mkdir(&path, Mode::RWXU).and_then(|()| open(&path, OFlags::NOFOLLOW));
            if let Ok(root) = &created {
                // If a list stays, the restore removes it from every entry, and from the root in the end.
                remove_inherited_lists(root);
            }
            created.map_err(|error| Error::io(error.into(), "create").on(path.display()))
        };
        let root = runtime.run_blocking("create", create).await?;
        Self::new(runtime, root, true)
    }

    /// Restores into an existing directory, empty or not, whose own metadata stay as they are. A symbolic link to a directory means that directory.
    ///
    /// # Errors
    /// `NotFound`, `Denied` and similar.
    pub async fn open(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let open = move || {
            open(&path, OFlags::empty()).map_err(|error| Error::io(error.into(), "open").on(path.display()))
        };
        let root = runtime.run_blocking("open", open).await?;
        Self::new(runtime, root, false)
    }

    fn new(runtime: Arc<dyn Runtime>, root: OwnedFd, sets_root: bool) -> Result<Self> {
        let directories =
            Directories::new(root).map_err(|error: io::Error| Error::io(error, "open a target"))?;
        let state = State { directories, own: Mutex::default(), seals: Mutex::default(), sets_root };
        let owners = nix::unistd::geteuid().is_root();
        let powers = Powers { owners, privileges: false };
        Ok(Self { existing: Existing::Refuse, flushes: true, powers, runtime, state: Arc::new(state) })
    }
}

fn open(path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | flags, Mode::empty())
}

//! A directory of this host as the source of a backup.

mod contents;
mod directory;
mod early;
mod listing;
mod patterns;

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, openat};

use self::directory::{Ancestor, Directory, Place};
use self::listing::is_virtual;
use self::patterns::Layer;
use super::metadata::read::{Failure, MetadataReader};
use super::open;
use super::status::Status;
use crate::buffers::Buffers;
use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;
use crate::tree::{Excludes, LinkId, Problem, SourceRoot, TreeFinding, TreeSource};

/// Maximum bytes of free buffers for contents of files.
const BUFFER_BYTES: usize = 16 << 20;

/// A directory of this host as the [source](TreeSource) of a backup.
///
/// It reads what an archive can hold: kinds, owners, modes, times in nanoseconds, attribute flags (Linux), access control lists, capabilities,
/// the extended attributes `user.*`, `trusted.*` (as root) and `security.NTACL`, sockets, and files with several names. Symbolic links, devices,
/// pipes and sockets have no extended attributes, as with PBS clients. It does not read project ids of quotas and attributes of FAT filesystems,
/// for which there is no safe system call.
///
/// Every entry is opened by its name in the open directory above it and never through a symbolic link. Files are opened without a change of
/// their time of access where the system allows it. Holes of large files are not read on ext4, XFS, Btrfs and tmpfs; the archive has zeros for them.
///
/// Left out, each with a [finding](crate::tree::TreeFinding):
///
/// | entry | default | option |
/// |---|---|---|
/// | contents of directories on other filesystems | left out | [`all_filesystems`](Self::all_filesystems), [`include_filesystem`](Self::include_filesystem) |
/// | contents of virtual filesystems, such as `/proc` | left out | |
/// | directories of the store of the backup | read | [`own_directory`](Self::own_directory) |
/// | entries that cannot be read | left out | |
///
/// Left out without a finding: what the [patterns](Self::excludes) and the pattern files of the tree exclude.
///
/// # Pattern files
/// A file `.pxarexclude` has exclude patterns for its directory and everything below, one a line, as [`Excludes::push_lines`] reads them; a pattern
/// with a slash in front begins at this directory. The deepest file with a match decides, then the patterns of the caller. A line that is no valid
/// pattern is [reported](crate::tree::Problem::BadPattern) and ignored. Only regular files count. A pattern file is stored like any file.
#[derive(Clone, Debug)]
pub struct DirectorySource {
    root: Arc<OwnedFd>,
    runtime: Arc<dyn Runtime>,
    rules: Rules,
}

/// Rules for the entries that a source leaves out.
#[derive(Clone, Debug)]
struct Rules {
    all_filesystems: bool,
    /// Devices that are entered beside that of the root.
    devices: HashSet<u64>,
    excludes: Excludes,
    own: Vec<LinkId>,
    pattern_files: bool,
}

impl DirectorySource {
    /// Opens a directory. A symbolic link to a directory means that directory.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, and `InvalidInput` if it is no directory.
    pub async fn open(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let root = open_root(runtime.as_ref(), path.as_ref()).await?;
        let rules = Rules {
            all_filesystems: false,
            devices: HashSet::new(),
            excludes: Excludes::default(),
            own: Vec::new(),
            pattern_files: true,
        };
        Ok(Self { root: Arc::new(root), runtime, rules })
    }

    /// Exclude patterns for paths below the root; default: none. The archive records them.
    #[must_use]
    pub fn excludes(mut self, excludes: Excludes) -> Self {
        self.rules.excludes = excludes;
        self
    }

    /// Enters directories on other filesystems than that of the root; default: they are stored empty. Virtual filesystems are stored empty
    /// all the same.
    #[must_use]
    pub fn all_filesystems(mut self) -> Self {
        self.rules.all_filesystems = true;
        self
    }

    /// Enters directories on the filesystem of this directory too, wherever it is mounted in the tree; default: on that of the root alone. What is
    /// mounted below it is another filesystem.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, and `InvalidInput` if it is no directory.
    pub async fn include_filesystem(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let (runtime, subject) = (self.runtime.as_ref(), path.as_ref().to_owned());
        let directory = open_root(runtime, &subject).await?;
        let look = move || {
            let status = Status::of(&directory);
            status.map_err(|error| Error::io(error, "look at").on(subject.display()))
        };
        let status = runtime.run_blocking("look at a directory", look).await?;
        self.rules.devices.insert(status.id.device);
        Ok(self)
    }

    /// Ignores the files `.pxarexclude` of the tree; default: their patterns apply.
    #[must_use]
    pub fn ignore_pattern_files(mut self) -> Self {
        self.rules.pattern_files = false;
        self
    }

    /// Leaves out a directory of the store of the backup or of its local state, under whatever name it appears in the tree.
    ///
    /// # Errors
    /// `InvalidInput` if the source lies in that directory; `NotFound`, `Denied`.
    pub async fn own_directory(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let own = open_root(self.runtime.as_ref(), path.as_ref()).await?;
        let (root, subject) = (Arc::clone(&self.root), path.as_ref().to_owned());
        let check = move || {
            let failed = |error| Error::io(error, "look at").on(subject.display());
            let id = Status::of(&own).map_err(failed)?.id;
            if ancestry(&root).map_err(failed)?.contains(&id) {
                let error = Error::new(ErrorKind::InvalidInput, "back up").on(subject.display());
                return Err(error.because("the directory to back up belongs to the store of the backup"));
            }
            Ok(id)
        };
        let id = self.runtime.run_blocking("look at a directory", check).await?;
        self.rules.own.push(id);
        Ok(self)
    }
}

#[async_trait]
impl TreeSource for DirectorySource {
    async fn root(&self) -> io::Result<SourceRoot> {
        let source = self.clone();
        let open = move || Ok(source.open_tree());
        self.runtime.run_blocking("open the root", open).await.map_err(io::Error::other)?
    }

    fn recorded_excludes(&self) -> Vec<Bytes> {
        self.rules.excludes.texts().map(Bytes::copy_from_slice).collect()
    }
}

impl DirectorySource {
    fn open_tree(self) -> io::Result<SourceRoot> {
        // Of its own, since each has a position.
        let root = open::directory(self.root.as_fd(), c".")?;
        let status = Status::of(&root)?;
        if is_virtual(&root) {
            let why = "it is on a virtual filesystem, which has no stored contents";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let mut failures = Vec::new();
        let metadata = MetadataReader::new(status.id.device).read(root.as_fd(), &status, &mut failures);
        let not_read = |failure: Failure| {
            TreeFinding::new("", Problem::UnreadableAttribute(failure.attribute)).because(failure.error)
        };
        let findings = failures.into_iter().map(not_read).collect();
        let rules = Arc::new(self.rules);
        let patterns = Layer::of_caller(&rules.excludes);
        let place = Place { ancestor: Ancestor::root(status.id), findings, path: Vec::new(), patterns };
        let buffers = Buffers::new(BUFFER_BYTES);
        let directory = Directory::new((self.runtime, buffers), rules, root, place, Arc::default());
        Ok(SourceRoot { directory: Box::new(directory), metadata })
    }
}

async fn open_root(runtime: &dyn Runtime, path: &Path) -> Result<OwnedFd> {
    let path = path.to_owned();
    let open = move || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &path, flags, Mode::empty()).map_err(|error| {
            let error = io::Error::from(error);
            let is_other = error.kind() == io::ErrorKind::NotADirectory;
            if is_other {
                Error::new(ErrorKind::InvalidInput, "open").on(path.display()).because(error)
            } else {
                Error::io(error, "open").on(path.display())
            }
        })
    };
    runtime.run_blocking("open", open).await
}

/// The directory and the ones that it lies in, as far up as this process may look.
fn ancestry(directory: &OwnedFd) -> io::Result<Vec<LinkId>> {
    let mut ids = vec![Status::of(directory)?.id];
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut above: Option<OwnedFd> = None;
    let parent: &CStr = c"..";
    while let Ok(next) = openat(above.as_ref().unwrap_or(directory), parent, flags, Mode::empty()) {
        let id = Status::of(&next)?.id;
        if ids.last() == Some(&id) {
            break;
        }
        ids.push(id);
        above = Some(next);
    }
    Ok(ids)
}

//! A directory of this host as the target of a restore.

mod directories;
mod file;
mod own;
mod root;
mod special;
mod temporary;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use self::directories::Directories;
use self::file::LargeFile;
use self::own::OwnEntries;
use super::metadata::flags::{KNOWN, SEALING};
use super::metadata::write::{MetadataWriter, Powers, add_flags};
use super::status::Status;
use crate::pxar::{FileKind, Metadata};
use crate::rt::Runtime;
use crate::tree::restore::target::{SmallFile, TargetError, TargetFile, TreeTarget};
use crate::tree::{Attribute, LinkId, Problem, TreeFinding};

/// A directory of this host as the [target](TreeTarget) of a restore.
///
/// # Confinement
/// Every directory is opened by its name in the one above it, and never through a symbolic link; a directory that is opened again must be the
/// same as before. New files are created exclusively. So no entry, and no other program that changes the target meanwhile, leads the
/// restore out of the target. Hard links are made to files of this restore only.
///
/// # Existing entries
/// | [`Existing`] | entry of the archive | directory of the archive |
/// |---|---|---|
/// | `Refuse`, the default | not restored, [reported](crate::tree::Problem::Exists) | the same, with everything below |
/// | `Skip` | not restored, a [notice](crate::tree::Problem::Skipped) | restored into an existing directory, with its metadata; in the place of anything else as `Refuse` |
/// | `Replace` | replaces anything but a directory | restored into an existing directory, with its metadata; replaces anything else |
///
/// No entry replaces another one of the same restore, and no two directories become one, as on a filesystem that takes two names for the same: the
/// second is not restored and [reported](crate::tree::Problem::Exists), whatever the policy.
///
/// # Metadata
/// It sets, in an order that keeps them: owner, extended attributes, capabilities, access control lists, mode, time of modification, flags. By default
/// the owner only as root, and neither set-user-ID and set-group-ID bits of files, capabilities, attributes `trusted.*` nor devices, which give rights
/// to others: [`privileges`](Self::privileges) asks for them. Bits and capabilities are never set if the owner is another one. Flags that
/// seal an object, such as immutable, are set in the end. Project ids of quotas and FAT attributes cannot be set, for lack of a safe system call.
///
/// # Files
/// Blocks of zeros become holes. A file is `NAME.restoring-<16 digits>` until it is whole, and so is any entry that replaces another one.
/// With [`Existing::Refuse`], a file of up to 1 MiB has its own name at once, with mode 0600 until it is whole: repeat a restore that a crash interrupted
/// with [`Existing::Replace`]. [`finish`](TreeTarget::finish) flushes everything, except [on request](Self::without_flush).
#[derive(Clone, Debug)]
pub struct DirectoryTarget {
    existing: Existing,
    /// `true` if the end flushes the filesystem.
    flushes: bool,
    powers: Powers,
    runtime: Arc<dyn Runtime>,
    state: Arc<State>,
}

/// Policy of a [`DirectoryTarget`] for an entry whose name exists.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Reports it, and leaves the entry of the archive out.
    #[default]
    Refuse,
    /// Removes it, except for a directory.
    Replace,
    /// Keeps it, as asked.
    Skip,
}

#[derive(Debug)]
struct State {
    directories: Directories,
    /// Entries of this restore, which it does not replace.
    own: Mutex<OwnEntries>,
    /// Flags to set in the end.
    seals: Mutex<Vec<Seal>>,
    /// `true` if the root is of this restore, and gets the metadata of the archive.
    sets_root: bool,
}

/// Flags that are set when nothing else changes any more.
#[derive(Debug)]
struct Seal {
    flags: u64,
    id: LinkId,
    path: Vec<u8>,
}

/// Result of a call of the target.
type Outcome = Result<Vec<TreeFinding>, TargetError>;

impl State {
    fn own(&self) -> MutexGuard<'_, OwnEntries> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirectoryTarget {
    /// Policy for an entry whose name exists; default: [`Existing::Refuse`].
    #[must_use]
    pub fn existing(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    /// Leaves everything to the user who restores; default as root: owners and groups of the archive are set.
    #[must_use]
    pub fn without_owners(mut self) -> Self {
        self.powers.owners = false;
        self
    }

    /// Sets owners and groups of the archive; the default as root. Another user may set some groups.
    #[must_use]
    pub fn owners(mut self) -> Self {
        self.powers.owners = true;
        self
    }

    /// Restores what gives rights to others than the owner: set-user-ID and set-group-ID bits of files, capabilities, attributes `trusted.*`, and
    /// devices. Only for archives that you trust; default: they are left out, each with a notice.
    #[must_use]
    pub fn privileges(mut self) -> Self {
        self.powers.privileges = true;
        self
    }

    /// Leaves the restored data to the system, which writes them within some seconds; default: the restore ends when everything on the filesystem
    /// is on disk, also data of other programs.
    #[must_use]
    pub fn without_flush(mut self) -> Self {
        self.flushes = false;
        self
    }

    async fn run<T: Send + 'static>(
        &self,
        path: &[u8],
        job: impl FnOnce(&Self, &[u8]) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, TargetError> {
        let (this, path) = (self.clone(), path.to_vec());
        let done = self.runtime.run_blocking("restore an entry", move || Ok(job(&this, &path))).await;
        done.map_err(io::Error::other)?
    }

    fn finish_one(&self, path: &[u8], metadata: &Metadata) -> Outcome {
        let directory = self.state.directories.leave(path)?;
        if path.is_empty() && !self.state.sets_root {
            return Ok(Vec::new());
        }
        let status = Status::of(&directory)?;
        let mut writer = MetadataWriter::new(path, metadata, self.powers);
        writer.set(directory.as_fd(), &status);
        self.flags(path, metadata, &directory, status.id, &mut writer);
        Ok(writer.findings())
    }

    /// Sets flags now or in the end.
    fn flags(
        &self,
        path: &[u8],
        metadata: &Metadata,
        file: impl AsFd,
        id: LinkId,
        writer: &mut MetadataWriter<'_>,
    ) {
        let flags = metadata.stat.flags & KNOWN;
        if flags & !SEALING != 0
            && let Err(error) = add_flags(file.as_fd(), flags & !SEALING)
        {
            writer.not_set(Attribute::Flags, error);
        }
        if flags & SEALING != 0 {
            let seal = Seal { flags: flags & SEALING, id, path: path.to_vec() };
            self.state.seals.lock().unwrap_or_else(PoisonError::into_inner).push(seal);
        }
    }

    /// Sets the flags that were left for the end, then flushes the filesystem.
    fn complete(&self) -> io::Result<Vec<TreeFinding>> {
        let mut findings = Vec::new();
        let seals = std::mem::take(&mut *self.state.seals.lock().unwrap_or_else(PoisonError::into_inner));
        for seal in seals {
            let set = self.state.directories.open_known(&seal.path, seal.id);
            if let Err(error) = set.and_then(|file| add_flags(file.as_fd(), seal.flags)) {
                let finding = TreeFinding::new(seal.path, Problem::NotSet(Attribute::Flags));
                findings.push(finding.because(error));
            }
        }
        if self.flushes {
            flush(self.state.directories.root())?;
        }
        Ok(findings)
    }
}

#[async_trait]
impl TreeTarget for DirectoryTarget {
    async fn directory(&self, path: &[u8], _: &Metadata) -> Outcome {
        let enter =
            |this: &Self, path: &[u8]| this.state.directories.enter(path, this.existing, &this.state.own);
        self.run(path, enter).await.map(|()| Vec::new())
    }

    async fn small_file(&self, path: &[u8], contents: Bytes, metadata: &Metadata) -> Outcome {
        let metadata = metadata.clone();
        self.run(path, move |this, path| this.write_small(path, &contents, &metadata)).await
    }

    async fn small_files(&self, files: Vec<SmallFile>) -> Vec<Outcome> {
        let count = files.len();
        let write = move |this: &Self, _: &[u8]| {
            let write = |file: &SmallFile| this.write_small(&file.path, &file.contents, &file.metadata);
            Ok(files.iter().map(write).collect())
        };
        self.run(b"", write).await.unwrap_or_else(|error: TargetError| {
            let TargetError { cause, problem } = error;
            let failed = |_| Err(TargetError::new(problem, io::Error::new(cause.kind(), cause.to_string())));
            (0..count).map(failed).collect()
        })
    }

    async fn file(
        &self,
        path: &[u8],
        size: u64,
        metadata: &Metadata,
    ) -> Result<Box<dyn TargetFile>, TargetError> {
        let metadata = metadata.clone();
        let create = move |this: &Self, path: &[u8]| LargeFile::create(this, path, size, metadata);
        Ok(Box::new(self.run(path, create).await?))
    }

    async fn special(&self, path: &[u8], kind: &FileKind, metadata: &Metadata) -> Outcome {
        let (kind, metadata) = (kind.clone(), metadata.clone());
        self.run(path, move |this, path| this.make_special(path, &kind, &metadata)).await
    }

    async fn hard_link(&self, path: &[u8], target: &[u8]) -> Result<(), TargetError> {
        let target = target.to_vec();
        self.run(path, move |this, path| this.link(path, &target)).await
    }

    async fn finish_directory(&self, path: &[u8], metadata: &Metadata) -> Outcome {
        let metadata = metadata.clone();
        self.run(path, move |this, path| this.finish_one(path, &metadata)).await
    }

    async fn finish(&self) -> io::Result<Vec<TreeFinding>> {
        let complete = |this: &Self, _: &[u8]| Ok(this.complete());
        self.run(b"", complete).await.map_err(|error| error.cause)?
    }
}

/// Flushes everything on a filesystem.
#[cfg(target_os = "linux")]
fn flush(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(directory)?)
}

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
fn flush(_: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}

/// The directory of a path, and the last name.
fn split(path: &[u8]) -> io::Result<(&[u8], CString)> {
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        // A slash in front: no name at all.
        Some(0) => (&path[..0], &path[..0]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    Ok((directory, checked(name)?))
}

/// A name for the system. The restore checks names too; a target does not depend on it.
fn checked(name: &[u8]) -> io::Result<CString> {
    mutated!("restore-leads-out-of-its-target" => return Ok(CString::new(name)?));
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of the target"));
    }
    Ok(CString::new(name)?)
}

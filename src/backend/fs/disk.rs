//! Every change that the backend makes to the disk goes through here, so that tests can record the changes and replay what
//! a crash would have left of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;

#[cfg(feature = "testing")]
use crate::backend::fs::replay::{DiskOp, DiskRecord};

/// The directory of a store, and the only hand that changes what is in it. Paths are relative to it. All calls block.
#[derive(Debug)]
pub(super) struct Disk {
    /// Device and inode of `.chunks`, by which the store is known to be still there.
    chunks: Option<(u64, u64)>,
    /// The root, open for as long as the backend is: the system reports a failure to write back once to each descriptor that
    /// was open when it happened, and never to one that is opened later.
    flushing: Option<File>,
    owner: Option<(u32, u32)>,
    #[cfg(feature = "testing")]
    record: Option<std::sync::Arc<DiskRecord>>,
    root: PathBuf,
}

/// What a new file is to hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Contents<'a> {
    Bytes(&'a Bytes),
    /// All that is in that file, wherever it is being read.
    File(&'a File),
}

/// Whether a rename may put one file in the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replacing {
    Forbidden,
    Intended,
}

impl Disk {
    /// Everything that is made from now on is given to that user and group.
    pub(super) fn new(root: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self {
            chunks: None,
            flushing: None,
            owner,
            #[cfg(feature = "testing")]
            record: None,
            root,
        }
    }

    /// Sees every failure to write back from now on, and notices when the store goes away.
    pub(super) fn watching(mut self, chunks: &fs::Metadata) -> io::Result<Self> {
        self.flushing = Some(File::open(&self.root)?);
        self.chunks = Some((chunks.dev(), chunks.ino()));
        Ok(self)
    }

    /// Fails unless the store is where it was: a disk that was unmounted leaves a directory in which nothing is, and nothing
    /// that is found or missing there says anything of the store.
    pub(super) fn check_there(&self) -> io::Result<()> {
        let Some(known) = self.chunks else { return Ok(()) };
        match fs::symlink_metadata(self.root.join(".chunks")) {
            Ok(found) if (found.dev(), found.ino()) == known => Ok(()),
            _ => Err(Errno::ENODEV.into()),
        }
    }

    /// What was found, unless it is that nothing is there because the store is not.
    fn certainly<T>(&self, found: io::Result<T>) -> io::Result<T> {
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_there().and(Err(error)),
            found => found,
        }
    }

    #[cfg(feature = "testing")]
    pub(super) fn recording(mut self, record: Option<std::sync::Arc<DiskRecord>>) -> Self {
        self.record = record;
        self
    }

    /// What no other store has while this one is open.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        self.chunks
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The full path, if nothing on the way to it is a link or another special file (H78). What stands at the path itself is not looked at.
    pub(super) fn at(&self, path: &str) -> io::Result<PathBuf> {
        let path = path.trim_end_matches('/');
        for (end, _) in path.match_indices('/') {
            let above = fs::symlink_metadata(self.root.join(&path[..end]))?;
            // Below a regular file nothing is found; a link, a pipe or a device may hide what was there.
            if !above.is_dir() && !above.is_file() {
                return Err(Errno::ELOOP.into());
            }
        }
        Ok(self.root.join(path))
    }

    /// The same for a directory, which must not be a link itself.
    pub(super) fn at_directory(&self, path: &str) -> io::Result<PathBuf> {
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        self.at(&format!("{path}/."))
    }

    /// Opens a regular file for reading; never follows a link, never waits for a pipe.
    pub(super) fn open(&self, path: &str) -> io::Result<(File, fs::Metadata)> {
        let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
        let file =
            self.at(path).and_then(|path| OpenOptions::new().read(true).custom_flags(flags).open(path));
        let file = self.certainly(file)?;
        let metadata = file.metadata()?;
        if metadata.is_file() { Ok((file, metadata)) } else { Err(Errno::ELOOP.into()) }
    }

    /// What is known of a regular file, which is not read. Anything else at the path is an error.
    pub(super) fn metadata(&self, path: &str) -> io::Result<fs::Metadata> {
        let metadata = self.any_metadata(path)?;
        if metadata.is_file() { Ok(metadata) } else { Err(Errno::ELOOP.into()) }
    }

    /// What is known of whatever stands at the path.
    pub(super) fn any_metadata(&self, path: &str) -> io::Result<fs::Metadata> {
        self.certainly(self.at(path).and_then(fs::symlink_metadata))
    }

    /// Writes a new file, readable by all, whatever the umask.
    pub(super) fn write_new(&self, path: &str, contents: Contents<'_>) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(self.at(path)?)?;
        match contents {
            Contents::Bytes(bytes) => {
                self.note(|| DiskOp::Write { path: path.to_owned(), bytes: bytes.clone() });
                file.write_all(bytes)?;
            }
            Contents::File(mut from) => {
                from.rewind()?;
                io::copy(&mut from, &mut file)?;
                self.note(|| {
                    let bytes = fs::read(self.root.join(path)).unwrap_or_default().into();
                    DiskOp::Write { path: path.to_owned(), bytes }
                });
            }
        }
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(file)
    }

    pub(super) fn sync_file(&self, path: &str, file: &File) -> io::Result<()> {
        file.sync_all()?;
        self.note(|| DiskOp::SyncFile { path: path.to_owned() });
        Ok(())
    }

    /// Flushes the entries of a directory; one that is gone has none.
    pub(super) fn sync_directory(&self, path: &str) -> io::Result<()> {
        match self.at_directory(path).and_then(File::open) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?.sync_all()?,
        }
        self.note(|| DiskOp::SyncDirectory { path: path.to_owned() });
        Ok(())
    }

    /// Flushes everything on the filesystem of the store.
    pub(super) fn sync_filesystem(&self) -> io::Result<()> {
        self.flush_ahead()?;
        self.note(|| DiskOp::SyncFilesystem);
        Ok(())
    }

    /// The same, unrecorded: a replay must not count on what nobody waits for.
    pub(super) fn flush_ahead(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        match &self.flushing {
            Some(root) => nix::unistd::syncfs(root.as_fd())?,
            None => nix::unistd::syncfs(File::open(&self.root)?.as_fd())?,
        }
        #[cfg(not(target_os = "linux"))]
        nix::unistd::sync();
        Ok(())
    }

    pub(super) fn rename(&self, from: &str, to: &str, replacing: Replacing) -> io::Result<()> {
        match replacing {
            Replacing::Forbidden => rename_without_replacing(&self.at(from)?, &self.at(to)?)?,
            Replacing::Intended => fs::rename(self.at(from)?, self.at(to)?)?,
        }
        self.note(|| DiskOp::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    pub(super) fn make_directory(&self, path: &str, mode: u32) -> io::Result<()> {
        self.check_there()?;
        let full = self.at(path)?;
        fs::DirBuilder::new().mode(mode).create(&full)?;
        self.note(|| DiskOp::MakeDirectory { path: path.to_owned() });
        fs::set_permissions(&full, fs::Permissions::from_mode(mode))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::lchown(&full, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    pub(super) fn remove_file(&self, path: &str) -> io::Result<()> {
        self.certainly(self.at(path).and_then(fs::remove_file))?;
        self.note(|| DiskOp::RemoveFile { path: path.to_owned() });
        Ok(())
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.at(path)?)?;
        self.note(|| DiskOp::RemoveDirectory { path: path.to_owned() });
        Ok(())
    }

    /// Sets the access time to now and leaves the modification time alone.
    pub(super) fn touch(&self, path: &str) -> io::Result<()> {
        let (now, omit) = (TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
        let flag = UtimensatFlags::NoFollowSymlink;
        let touched =
            self.at(path).and_then(|path| Ok(nix::sys::stat::utimensat(AT_FDCWD, &path, &now, &omit, flag)?));
        self.certainly(touched)
    }

    #[cfg(feature = "testing")]
    fn note(&self, op: impl FnOnce() -> DiskOp) {
        if let Some(record) = &self.record {
            record.push(op());
        }
    }

    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, reason = "the twin that records needs it")]
    fn note<T>(&self, _: impl FnOnce() -> T) {}
}

/// Names changes for [`Disk::note`] where nothing is recorded; never made.
#[cfg(not(feature = "testing"))]
#[allow(dead_code, reason = "built only inside closures that are never called")]
enum DiskOp {
    MakeDirectory { path: String },
    RemoveDirectory { path: String },
    RemoveFile { path: String },
    Rename { from: String, to: String },
    SyncDirectory { path: String },
    SyncFile { path: String },
    SyncFilesystem,
    Write { path: String, bytes: Bytes },
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
    match nix::fcntl::renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        // Not every filesystem can do it in one step.
        Err(Errno::EINVAL | Errno::ENOSYS) => link_and_remove(from, to),
        result => Ok(result?),
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    link_and_remove(from, to)
}

fn link_and_remove(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    // It is there, whatever becomes of its other name, which listings report as foreign.
    let _ = fs::remove_file(from);
    Ok(())
}

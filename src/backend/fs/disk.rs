//! Every change of the backend to the disk goes through this file, so that tests can record the changes and replay the state after a
//! crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use rustix::fs::FlockOperation;

use crate::backend::fs::call::{FreeSpace, is_refused, named};
use crate::backend::fs::disk_op::{DiskCall, DiskOp};
use crate::backend::fs::filesystems::{self, Filesystems};
#[cfg(feature = "testing")]
use crate::backend::fs::replay::DiskRecord;
use crate::backend::fs::version::inode_of;
use crate::locked_file::LockedFile;
use crate::rename::{self, may_be_lacking};

/// The directory of a store. All changes of its contents are methods of this type. Paths are relative to it. All calls block.
#[derive(Debug)]
pub(super) struct Disk {
    /// Device and inode of `.chunks`, which prove that the store is still mounted.
    chunks: Option<(u64, u64)>,
    /// The file whose lock is the substitute for a rename without replacing.
    creation_lock: Option<PathBuf>,
    /// The filesystems that a barrier flushes; `None` before the store is opened.
    filesystems: Option<Filesystems>,
    owner: Option<(u32, u32)>,
    #[cfg(feature = "testing")]
    record: Option<std::sync::Arc<DiskRecord>>,
    free_space: FreeSpace,
    root: PathBuf,
}

/// The contents of a new file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Contents<'a> {
    Bytes(&'a Bytes),
    /// The whole contents of this file, whatever its position.
    File(&'a File),
}

/// Permission of a rename to replace a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replacing {
    Forbidden,
    Intended,
}

impl Disk {
    /// The directory `root`, in which new files and directories get this owner.
    pub(super) fn new(root: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self {
            chunks: None,
            creation_lock: None,
            filesystems: None,
            owner,
            #[cfg(feature = "testing")]
            record: None,
            free_space: FreeSpace::default(),
            root,
        }
    }

    /// From now on notices every failure to write back, and a store that was unmounted.
    pub(super) fn watching(mut self, chunks: &fs::Metadata) -> io::Result<Self> {
        let filesystems = Filesystems::default();
        filesystems.meet(self.device("", &fs::metadata(&self.root)?), "", &self.root)?;
        for path in [".chunks", ".larder"] {
            let full = self.root.join(path);
            match fs::symlink_metadata(&full) {
                Ok(found) if found.is_dir() => match filesystems.meet(self.device(path, &found), path, &full)
                {
                    // A reader needs no permission to flush. The first change opens the directory again, and fails then.
                    Err(error) if is_refused(&error) => {}
                    met => met?,
                },
                _ => {}
            }
        }
        self.filesystems = Some(filesystems);
        // `meet` has found out by now if inode numbers are stable.
        self.chunks = Some((chunks.dev(), inode_of(chunks.dev(), chunks.ino())));
        Ok(self)
    }

    /// Locks this file for a rename without replacing, where the filesystem has neither such a rename nor links.
    pub(super) fn locking_creation(mut self, path: PathBuf) -> Self {
        self.creation_lock = Some(path);
        self
    }

    /// Returns `true` if the chunks lie on another filesystem than the root, which may have another clock.
    pub(super) fn are_chunks_apart(&self) -> bool {
        let root = fs::metadata(&self.root).ok();
        self.chunks.zip(root).is_some_and(|((device, _), root)| device != root.dev())
    }

    /// The device number of the filesystem of a directory.
    #[cfg_attr(
        not(feature = "testing"),
        expect(clippy::unused_self, reason = "the simulation of mounts needs it")
    )]
    fn device(&self, path: &str, found: &fs::Metadata) -> u64 {
        #[cfg(feature = "testing")]
        if let Some(number) = self.record.as_ref().and_then(|record| record.mount_of(path)) {
            return u64::MAX - number as u64;
        }
        let _ = path;
        found.dev()
    }

    /// Fails unless the store is still mounted. An unmounted disk leaves an empty directory, in which the absence of a file proves
    /// nothing about the store.
    pub(super) fn check_there(&self) -> io::Result<()> {
        mutated!("fs-unmounted-store-is-empty" => return Ok(()));
        let Some(known) = self.chunks else { return Ok(()) };
        match fs::symlink_metadata(self.root.join(".chunks")) {
            Ok(found) if (found.dev(), inode_of(found.dev(), found.ino())) == known => Ok(()),
            _ => Err(Errno::ENODEV.into()),
        }
    }

    /// Passes a result on, unless it is `NotFound` because the store is not mounted.
    fn certainly<T>(&self, found: io::Result<T>) -> io::Result<T> {
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_there().and(Err(error)),
            found => found,
        }
    }

    pub(super) fn with_free_space(mut self, free_space: FreeSpace) -> Self {
        self.free_space = free_space;
        self
    }

    #[cfg(feature = "testing")]
    pub(super) fn recording(mut self, record: Option<std::sync::Arc<DiskRecord>>) -> Self {
        self.record = record;
        self
    }

    /// The identity of the store on this host: no other store has it while this one is open.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        self.chunks
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The full path, if no directory above it is a link or another special file (H78). The path itself is not looked up.
    pub(super) fn at(&self, path: &str) -> io::Result<PathBuf> {
        self.walk(path, |_, _, _| Ok(()))
    }

    /// As [`at`](Disk::at), before a change: the next barrier flushes the filesystems of all directories above the path.
    fn at_to_change(&self, path: &str) -> io::Result<PathBuf> {
        let Some(filesystems) = &self.filesystems else { return self.at(path) };
        self.walk(path, |above, full, found| filesystems.meet(self.device(above, found), above, full))
    }

    fn walk(
        &self,
        path: &str,
        mut each: impl FnMut(&str, &Path, &fs::Metadata) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        self.look();
        let path = path.trim_end_matches('/');
        for (end, _) in path.match_indices('/') {
            let full = self.root.join(&path[..end]);
            let above = fs::symlink_metadata(&full)?;
            // Nothing can be below a regular file; a link, a pipe or a device may hide objects.
            if !above.is_dir() && !above.is_file() && !mutated!("fs-links-are-followed") {
                return Err(Errno::ELOOP.into());
            }
            if above.is_dir() {
                each(&path[..end], &full, &above)?;
            }
        }
        Ok(self.root.join(path))
    }

    /// As [`at`](Disk::at), for a directory that must not be a link itself.
    pub(super) fn at_directory(&self, path: &str) -> io::Result<PathBuf> {
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        self.at(&format!("{path}/."))
    }

    /// Opens a regular file for reading. Never follows a link, never waits for a pipe.
    pub(super) fn open(&self, path: &str) -> io::Result<(File, fs::Metadata)> {
        let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
        let file =
            self.at(path).and_then(|path| OpenOptions::new().read(true).custom_flags(flags).open(path));
        let file = self.certainly(file)?;
        let metadata = file.metadata()?;
        if metadata.is_file() { Ok((file, metadata)) } else { Err(Errno::ELOOP.into()) }
    }

    /// The metadata of a regular file. Any other kind of entry is an error.
    pub(super) fn metadata(&self, path: &str) -> io::Result<fs::Metadata> {
        let metadata = self.any_metadata(path)?;
        if metadata.is_file() { Ok(metadata) } else { Err(Errno::ELOOP.into()) }
    }

    /// The metadata of an entry of any kind.
    pub(super) fn any_metadata(&self, path: &str) -> io::Result<fs::Metadata> {
        self.certainly(self.at(path).and_then(fs::symlink_metadata))
    }

    /// Writes a new file that all users can read, whatever the umask.
    pub(super) fn write_new(&self, path: &str, contents: Contents<'_>) -> io::Result<File> {
        self.free_space.check()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(self.at_to_change(path)?)
            .map_err(named("create a file"))?;
        match contents {
            Contents::Bytes(bytes) => {
                self.note(|| DiskOp::Write { path: path.to_owned(), bytes: bytes.clone() });
                file.write_all(bytes).map_err(named("write"))?;
            }
            Contents::File(mut from) => {
                from.rewind()?;
                io::copy(&mut from, &mut file).map_err(named("copy"))?;
                self.note(|| {
                    let bytes = fs::read(self.root.join(path)).unwrap_or_default().into();
                    DiskOp::Write { path: path.to_owned(), bytes }
                });
            }
        }
        let mode = file.set_permissions(fs::Permissions::from_mode(0o644));
        mode.map_err(named("set permissions"))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(named("set the owner"))?;
        }
        Ok(file)
    }

    pub(super) fn sync_file(&self, path: &str, file: &File) -> io::Result<()> {
        mutated!("fs-files-are-not-flushed" => return Ok(()));
        file.sync_all().map_err(named("flush"))?;
        self.note(|| DiskOp::SyncFile { path: path.to_owned() });
        Ok(())
    }

    /// Flushes the entries of a directory, if it exists. Fails if the store is not mounted.
    pub(super) fn sync_directory(&self, path: &str) -> io::Result<()> {
        match self.certainly(self.at_directory(path).and_then(File::open)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?.sync_all().map_err(named("flush a directory"))?,
        }
        self.note(|| DiskOp::SyncDirectory { path: path.to_owned() });
        Ok(())
    }

    /// Flushes all filesystems of the store.
    pub(super) fn sync_filesystems(&self) -> io::Result<()> {
        self.flush(|path| self.note(|| DiskOp::SyncFilesystem { path: path.to_owned() }))
    }

    /// As [`sync_filesystems`](Disk::sync_filesystems), without a record: a replay must not rely on a flush that no barrier waits for.
    pub(super) fn flush_ahead(&self) -> io::Result<()> {
        self.flush(|_| ())
    }

    fn flush(&self, flushed: impl Fn(&str)) -> io::Result<()> {
        let done = self.fail(DiskCall::Flush).and_then(|()| match &self.filesystems {
            Some(filesystems) => filesystems.flush(flushed),
            None => File::open(&self.root).and_then(|root| filesystems::flush(&root)).map(|()| flushed("")),
        });
        done.map_err(named("flush a filesystem"))
    }

    pub(super) fn rename(&self, from: &str, to: &str, replacing: Replacing) -> io::Result<()> {
        self.fail(DiskCall::Rename { from, to }).map_err(named("rename"))?;
        let (full_from, full_to) = (self.at_to_change(from)?, self.at_to_change(to)?);
        match replacing {
            Replacing::Forbidden => self.rename_without_replacing(&full_from, &full_to)?,
            Replacing::Intended => fs::rename(full_from, full_to).map_err(named("rename"))?,
        }
        self.note(|| DiskOp::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    pub(super) fn make_directory(&self, path: &str, mode: u32) -> io::Result<()> {
        self.check_there()?;
        self.free_space.check()?;
        let full = self.at_to_change(path)?;
        fs::DirBuilder::new().mode(mode).create(&full).map_err(named("make a directory"))?;
        self.note(|| DiskOp::MakeDirectory { path: path.to_owned() });
        fs::set_permissions(&full, fs::Permissions::from_mode(mode))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::lchown(&full, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// As [`make_directory`](Disk::make_directory), for many in a new one that nobody else uses: its path is resolved once.
    pub(super) fn make_directories(
        &self,
        parent: &str,
        names: impl Iterator<Item = String>,
        mode: u32,
    ) -> io::Result<()> {
        self.check_there()?;
        let full = self.at_to_change(&format!("{parent}/."))?;
        let directory = File::open(&full)?;
        // A umask may withhold permissions. It does so from all of them, as a list of default permissions does.
        let mut is_withheld = None;
        for name in names {
            self.free_space.check()?;
            let mode_bits = rustix::fs::Mode::from_raw_mode(mode);
            let made = rustix::fs::mkdirat(&directory, name.as_str(), mode_bits);
            made.map_err(|error| named("make a directory")(error.into()))?;
            self.note(|| DiskOp::MakeDirectory { path: format!("{parent}/{name}") });
            let is_withheld = if let Some(known) = is_withheld {
                known
            } else {
                let found = fs::symlink_metadata(full.join(&name))?;
                *is_withheld.insert(found.permissions().mode() & 0o7777 != mode)
            };
            if is_withheld {
                fs::set_permissions(full.join(&name), fs::Permissions::from_mode(mode))?;
            }
            if let Some((uid, gid)) = self.owner {
                std::os::unix::fs::lchown(full.join(&name), Some(uid), Some(gid))?;
            }
        }
        Ok(())
    }

    pub(super) fn remove_file(&self, path: &str) -> io::Result<()> {
        self.certainly(self.at_to_change(path).and_then(fs::remove_file)).map_err(named("remove"))?;
        self.note(|| DiskOp::RemoveFile { path: path.to_owned() });
        Ok(())
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.at_to_change(path)?).map_err(named("remove a directory"))?;
        self.note(|| DiskOp::RemoveDirectory { path: path.to_owned() });
        Ok(())
    }

    /// Sets the access time to now, and where that is refused, both times: for a file of another user that the caller may write, the
    /// system permits only that.
    pub(super) fn touch(&self, path: &str) -> io::Result<()> {
        let touched = self.at_to_change(path).and_then(|full| {
            let set = |modified: TimeSpec, call| {
                self.fail(call)?;
                let flag = UtimensatFlags::NoFollowSymlink;
                Ok(nix::sys::stat::utimensat(AT_FDCWD, &full, &TimeSpec::UTIME_NOW, &modified, flag)?)
            };
            match set(TimeSpec::UTIME_OMIT, DiskCall::SetAccessTime) {
                Err(error) if is_refused(&error) => set(TimeSpec::UTIME_NOW, DiskCall::SetTimes),
                touched => touched,
            }
        });
        self.certainly(touched).map_err(named("set the times"))
    }

    /// Renames a file to a name that must be free, in one step where the filesystem can do it.
    ///
    /// Where it has neither such a rename nor links (FUSE, SMB), the name is looked up and the file renamed under a lock that every process of
    /// this crate takes for this purpose. A failure of both calls does not prove that they are lacking: if the plain rename fails too,
    /// the first error is returned.
    fn rename_without_replacing(&self, from: &Path, to: &Path) -> io::Result<()> {
        let renamed =
            self.fail(DiskCall::RenameWithoutReplacing).and_then(|()| rename::in_one_step(from, to));
        let lacking = match renamed {
            Err(error) if may_be_lacking(&error) => error,
            done => return done.map_err(named("rename without replacing")),
        };
        let linked = self.fail(DiskCall::Link).and_then(|()| rename::link(from, to));
        match linked {
            Err(error) if may_be_lacking(&error) => {}
            Ok(()) => {
                // The object has its name. If the temporary name remains, listings report it as foreign.
                let _ = fs::remove_file(from);
                return Ok(());
            }
            failed => return failed.map_err(named("link")),
        }
        let Some(lock) = &self.creation_lock else { return Err(named("rename without replacing")(lacking)) };
        let _held = lock_creation(lock, self.owner).map_err(named("lock the creation of files"))?;
        match fs::symlink_metadata(to) {
            Ok(_) => Err(Errno::EEXIST.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(from, to).map_err(|_| named("rename without replacing")(lacking))
            }
            Err(error) => Err(named("look up")(error)),
        }
    }

    /// Fails if a test lets this call fail.
    #[cfg(feature = "testing")]
    fn fail(&self, call: DiskCall<'_>) -> io::Result<()> {
        self.record.as_ref().and_then(|record| record.error_of(call)).map_or(Ok(()), Err)
    }

    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "builds with tests need it")]
    fn fail(&self, _: DiskCall<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Sets both times to now, which needs no more than permission to write.
    pub(super) fn touch_whole(&self, path: &str) -> io::Result<()> {
        let (now, flag) = (TimeSpec::UTIME_NOW, UtimensatFlags::NoFollowSymlink);
        let path = self.at(path)?;
        Ok(nix::sys::stat::utimensat(AT_FDCWD, &path, &now, &now, flag)?)
    }

    #[cfg(feature = "testing")]
    fn note(&self, op: impl FnOnce() -> DiskOp) {
        if let Some(record) = &self.record {
            record.push(op());
        }
    }

    /// Counts a lookup of a path.
    #[cfg(feature = "testing")]
    fn look(&self) {
        if let Some(record) = &self.record {
            record.look();
        }
    }

    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, reason = "builds with tests need it")]
    fn look(&self) {}

    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, reason = "builds with tests need it")]
    fn note(&self, _: impl FnOnce() -> DiskOp) {}
}

/// Waits for the lock under which files are created. Its holder looks up a name and renames a file.
fn lock_creation(path: &Path, owner: Option<(u32, u32)>) -> io::Result<LockedFile> {
    let give = |path: &Path| match owner {
        Some((uid, gid)) if fs::symlink_metadata(path)?.uid() != uid => {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid))
        }
        _ => Ok(()),
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        fs::create_dir_all(parent)?;
        give(parent)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o660);
    let file = options.custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits()).open(path)?;
    give(path)?;
    Ok(LockedFile::lock(file, FlockOperation::LockExclusive)?)
}

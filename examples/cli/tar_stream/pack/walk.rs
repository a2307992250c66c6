//! The walk through a tree. It goes from directory to directory by descriptors and single names, so that neither the length of a
//! path nor the depth of the tree has a limit, and no link that takes the place of a directory leads out of the tree.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::vec;

use larder::tree::{Attribute, EntryKind, Problem, TreeFinding, is_virtual_filesystem};
use rustix::fs::{Dir, Mode, OFlags, fstatfs, openat, readlinkat};
use tar::Builder;

use super::contents::Contents;
use super::header::{Entry, Records, Source, extended_attributes};
use super::{Blocks, FileId, Listener, Options, Root, id_of};

/// Number of directories held open, besides the root.
const OPEN_LEVELS: usize = 64;

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Never waits, as opening a pipe would that took the place of a file.
const READ: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Writes the whole tree as a tar stream. Fails if the root cannot be read or the stream cannot be written.
pub(super) fn write(
    root: Root,
    options: &Options,
    listener: &Listener,
    blocks: &mut Blocks,
) -> io::Result<()> {
    let Root { directory, path } = root;
    let metadata = directory.metadata()?;
    let mut walk = Walk {
        builder: Builder::new(blocks),
        levels: Vec::new(),
        links: HashMap::new(),
        listener,
        options,
        path: Vec::new(),
        root_device: metadata.dev(),
        root_path: path,
    };
    walk.add(&Source::Opened(&directory), &metadata, None)?;
    let names = list(&directory, |error| Err(io::Error::new(error.kind(), walk.whole_path_with(&error))))?;
    walk.levels.push(Level { directory: Some(directory), id: id_of(&metadata), names: names.into_iter() });
    while let Some(level) = walk.levels.last_mut() {
        match level.names.next() {
            Some(name) => {
                let length = walk.path.len();
                if !walk.path.is_empty() {
                    walk.path.push(b'/');
                }
                walk.path.extend_from_slice(name.as_bytes());
                if !walk.visit(&name)? {
                    walk.path.truncate(length);
                }
            }
            None => walk.leave()?,
        }
    }
    walk.builder.finish()
}

struct Walk<'a> {
    builder: Builder<&'a mut Blocks>,
    /// The directories from the root to the present one.
    levels: Vec<Level>,
    /// Files with several names, with the first name under which they were stored.
    links: HashMap<FileId, Vec<u8>>,
    listener: &'a Listener,
    options: &'a Options,
    /// The present entry, relative to the root.
    path: Vec<u8>,
    root_device: u64,
    root_path: PathBuf,
}

struct Level {
    /// Closed while the walk is far below; see [`OPEN_LEVELS`].
    directory: Option<File>,
    id: FileId,
    /// Names that are still to be visited.
    names: vec::IntoIter<OsString>,
}

impl Walk<'_> {
    /// Writes one entry of the present directory. Returns `true` if it is a directory that the walk is in now.
    fn visit(&mut self, name: &OsStr) -> io::Result<bool> {
        let Some(parent) = self.levels.last().and_then(|level| level.directory.as_ref()) else {
            return Err(io::Error::other("the walk lost its directory"));
        };
        let handle = match openat(parent, name, LOOK, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(error) => return self.missed(error.into()).map(|()| false),
        };
        let metadata = match handle.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return self.missed(error).map(|()| false),
        };
        let kind = if metadata.is_dir() { EntryKind::Directory } else { EntryKind::Other };
        if self.options.excludes.excludes(&self.path, kind) {
            return Ok(false);
        }
        if metadata.is_dir() {
            return self.visit_directory(name, &metadata);
        }
        let file_type = metadata.file_type();
        if file_type.is_socket() {
            self.found(Problem::Socket, None)?;
        } else if file_type.is_symlink() {
            match readlinkat(&handle, "", Vec::new()) {
                Ok(target) => self.add_unopened(name, &metadata, Some(target.to_bytes()))?,
                Err(error) => self.missed(error.into())?,
            }
        } else if !file_type.is_file() {
            self.add_unopened(name, &metadata, None)?;
        } else if let Some(first) = self.links.get(&id_of(&metadata)).filter(|_| metadata.nlink() > 1) {
            let first = first.clone();
            self.add_unopened(name, &metadata, Some(&first))?;
        } else {
            match open_file(parent, name) {
                Ok((file, metadata)) => self.add_file(&file, &metadata)?,
                Err(error) => self.missed(error)?,
            }
        }
        Ok(false)
    }

    fn visit_directory(&mut self, name: &OsStr, metadata: &Metadata) -> io::Result<bool> {
        if self.options.own.contains(&id_of(metadata)) {
            self.found(Problem::OwnStore, None)?;
            return Ok(false);
        }
        let parent = self.levels.last();
        let opened = match parent.and_then(|level| level.directory.as_ref()) {
            Some(parent) => openat(parent, name, READ | OFlags::DIRECTORY, Mode::empty()),
            None => Err(rustix::io::Errno::NOENT),
        };
        let directory = match opened {
            Ok(directory) => File::from(directory),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                self.found(Problem::Vanished, None)?;
                return Ok(false);
            }
            Err(error) if is_shortage(&error.into()) => return self.missed(error.into()).map(|()| false),
            Err(error) => {
                self.add_unopened(name, metadata, None)?;
                self.found(Problem::UnreadableContents, Some(error.into()))?;
                return Ok(false);
            }
        };
        // Another one may have taken its place.
        let metadata = match directory.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return self.missed(error).map(|()| false),
        };
        let id = id_of(&metadata);
        if self.options.own.contains(&id) {
            self.found(Problem::OwnStore, None)?;
            return Ok(false);
        }
        let parent_device = parent_device(&self.levels);
        self.add(&Source::Opened(&directory), &metadata, None)?;
        let device = metadata.dev();
        let is_included = device == self.root_device
            || self.options.included.iter().any(|(_, included)| *included == device);
        if self.options.one_file_system && !is_included {
            self.found(Problem::MountPoint, None)?;
            return Ok(false);
        }
        if Some(metadata.dev()) != parent_device && is_virtual(&directory) {
            self.found(Problem::VirtualFilesystem, None)?;
            return Ok(false);
        }
        if self.levels.iter().any(|level| level.id == id) {
            let why = io::Error::other("the directory lies within itself");
            self.found(Problem::UnreadableContents, Some(why))?;
            return Ok(false);
        }
        let names = list(&directory, |error| self.found(Problem::UnreadableContents, Some(error)))?;
        self.levels.push(Level { directory: Some(directory), id, names: names.into_iter() });
        // The root stays open: the walk may have to start from it again.
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1).filter(|far| *far > 0) {
            self.levels[far].directory = None;
        }
        Ok(true)
    }

    /// Returns to the parent directory, which is opened again if the walk was far below.
    fn leave(&mut self) -> io::Result<()> {
        let left = self.levels.pop();
        let length = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.path.truncate(length);
        let Some(level) = self.levels.last() else { return Ok(()) };
        if level.directory.is_some() {
            return Ok(());
        }
        let id = level.id;
        let above =
            left.and_then(|left| left.directory).and_then(|left| open_directory(&left, OsStr::new(".."), id));
        let directory = above.or_else(|| self.open_from_root(id));
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        match directory {
            Some(directory) => level.directory = Some(directory),
            None if level.names.len() == 0 => {}
            None => {
                level.names = Vec::new().into_iter();
                let why = io::Error::other("it was moved while it was read");
                self.found(Problem::UnreadableContents, Some(why))?;
            }
        }
        Ok(())
    }

    /// Opens the present directory by walking down from the root.
    fn open_from_root(&self, id: FileId) -> Option<File> {
        let mut directory = self.levels.first()?.directory.as_ref()?.try_clone().ok()?;
        for (name, level) in self.path.split(|byte| *byte == b'/').zip(self.levels.get(1..)?) {
            directory = open_directory(&directory, OsStr::from_bytes(name), level.id)?;
        }
        (id_of(&directory.metadata().ok()?) == id).then_some(directory)
    }

    fn add_file(&mut self, file: &File, metadata: &Metadata) -> io::Result<()> {
        let contents = match Contents::plan(file, metadata.clone()) {
            Ok(contents) => contents,
            Err(error) => return self.missed(error),
        };
        let attributes = self.attributes(&Source::Opened(file))?;
        let name = self.name();
        let entry = Entry {
            attributes,
            link: None,
            metadata,
            name: &name,
            size: contents.stored_size(),
            sparse_size: contents.sparse_size(),
        };
        entry.write(&mut self.builder)?;
        if metadata.nlink() > 1 {
            self.links.insert(id_of(metadata), name);
        }
        match contents.write(self.builder.get_mut())? {
            Some((problem, cause)) => self.found(problem, cause),
            None => Ok(()),
        }
    }

    /// Writes an entry without contents that is not opened.
    fn add_unopened(&mut self, name: &OsStr, metadata: &Metadata, link: Option<&[u8]>) -> io::Result<()> {
        let parent = self.levels.last().and_then(|level| level.directory.as_ref());
        let parent = parent.map(|parent| PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())));
        // Without /proc only the path is left, which may be too long.
        let path = match parent.filter(|parent| parent.exists()) {
            Some(parent) => parent.join(name),
            None => PathBuf::from(OsString::from_vec(self.whole_path())),
        };
        self.add(&Source::Path(&path), metadata, link)
    }

    fn add(&mut self, source: &Source<'_>, metadata: &Metadata, link: Option<&[u8]>) -> io::Result<()> {
        // Another name of a file has no attributes of its own.
        let is_second = link.is_some() && !metadata.is_symlink();
        let attributes = if is_second { Records::new() } else { self.attributes(source)? };
        let name = self.name();
        let entry = Entry { attributes, link, metadata, name: &name, size: 0, sparse_size: None };
        entry.write(&mut self.builder)
    }

    fn attributes(&self, source: &Source<'_>) -> io::Result<Records> {
        let (records, failed) = extended_attributes(source);
        if let Some(error) = failed {
            self.found(Problem::UnreadableAttribute(Attribute::Extended), Some(error))?;
        }
        Ok(records)
    }

    /// An entry that could not be looked at or opened.
    fn missed(&self, error: io::Error) -> io::Result<()> {
        if is_shortage(&error) {
            return Err(io::Error::new(error.kind(), self.whole_path_with(&error)));
        }
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle => {
                self.found(Problem::Vanished, None)
            }
            _ => self.found(Problem::Unreadable, Some(error)),
        }
    }

    fn found(&self, problem: Problem, cause: Option<io::Error>) -> io::Result<()> {
        let finding = TreeFinding::new(self.whole_path(), problem);
        self.listener.found(match cause {
            Some(cause) => finding.because(cause),
            None => finding,
        })
    }

    /// The name of the present entry in the stream.
    fn name(&self) -> Vec<u8> {
        if self.path.is_empty() { b".".into() } else { [b"./", self.path.as_slice()].concat() }
    }

    /// The path of the present entry as a user would give it.
    fn whole_path(&self) -> Vec<u8> {
        let root = self.root_path.as_os_str().as_bytes();
        match (self.path.as_slice(), root) {
            (b"", _) => root.to_vec(),
            (path, [.., b'/']) => [root, path].concat(),
            (path, _) => [root, b"/", path].concat(),
        }
    }

    fn whole_path_with(&self, error: &io::Error) -> String {
        format!("{}: {error}", Path::new(OsStr::from_bytes(&self.whole_path())).display())
    }
}

/// Opens a file for reading, as it is at that moment.
fn open_file(parent: &File, name: &OsStr) -> io::Result<(File, Metadata)> {
    let opened = match openat(parent, name, READ | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may leave the time of access as it is.
        Err(rustix::io::Errno::PERM) => openat(parent, name, READ, Mode::empty()),
        opened => opened,
    };
    let file = File::from(opened?);
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata))
    } else {
        Err(io::Error::other("something else took the place of the file while it was opened"))
    }
}

/// Opens a directory, provided that it is a certain one.
fn open_directory(parent: &File, name: &OsStr, id: FileId) -> Option<File> {
    let directory = File::from(openat(parent, name, READ | OFlags::DIRECTORY, Mode::empty()).ok()?);
    (id_of(&directory.metadata().ok()?) == id).then_some(directory)
}

/// The names in a directory, in order; the ones before an error, if that is accepted.
fn list(directory: &File, failed: impl FnOnce(io::Error) -> io::Result<()>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    let mut read = || -> io::Result<()> {
        for entry in Dir::new(directory.try_clone()?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(())
    };
    read().or_else(failed)?;
    names.sort_unstable();
    Ok(names)
}

/// This process ran out of something: the entry is not to blame, and the next ones would fail as well.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

fn parent_device(levels: &[Level]) -> Option<u64> {
    levels.last().map(|level| level.id.0)
}

fn is_virtual(directory: &File) -> bool {
    let magic = fstatfs(directory).map(|found| found.f_type);
    magic.is_ok_and(|magic| u32::try_from(magic).is_ok_and(is_virtual_filesystem))
}

//! Unpacks a tar stream into a directory.
//!
//! All that can be restored is restored, and everything else is reported: entries of unknown kinds, attributes that cannot be set,
//! names that exist, damage in the archive. Only what all entries depend on ends it: an archive that cannot be read any more, and a
//! full disk.
//!
//! | where | what |
//! |---|---|
//! | this thread | reads the archive; writes large files, links and nodes |
//! | [`WRITERS`] threads | write small files |
//! | in the end | hard links; attributes of directories, which filling them would change; one flush |

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

pub(crate) mod attributes;
mod data;
mod entries;
mod header;
mod place;
mod records;
pub(crate) mod source;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;

use larder::tree::{Problem, TreeFinding};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::attributes::{Attributes, Object, Owners, not_set, os};
use self::data::{DataError, SMALL_FILE_BYTES, read_small, write_data, write_with_holes};
use self::entries::{Entries, Entry};
use self::place::{Before, Below, Directories, Names, NewFile, open_directory};
use self::source::{ReadError, Source, lost};
use crate::cli::findings::Findings;

/// Number of threads that write small files.
const WRITERS: usize = 2;

/// Unpacks a tar stream into a directory that is new or empty.
///
/// # Errors
/// If the directory is not empty, the archive is no tar or cannot be read any more, or the disk is full. What was restored before
/// stays, and each file is whole or has a temporary name.
pub(crate) fn unpack(
    source: impl Source,
    directory: &Path,
    owners: Owners,
    findings: &Findings,
) -> io::Result<()> {
    let root = empty_directory(directory)?;
    let shared = Shared {
        findings: findings.clone(),
        full: Mutex::default(),
        names: Names::new(),
        owners,
        pending: Mutex::default(),
        settled: Condvar::new(),
    };
    let mut entries = Entries::new(source, findings.clone());
    let mut unpack = Unpack {
        directories: Directories::new(root),
        hasher: RandomState::new(),
        later: BTreeMap::new(),
        links: Vec::new(),
        seen: HashSet::new(),
        shared: &shared,
    };
    let read: io::Result<()> = thread::scope(|scope| {
        let senders: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (sender, receiver) = mpsc::sync_channel::<SmallFile>(64);
                let shared = &shared;
                scope.spawn(move || receiver.into_iter().for_each(|file| file.write(shared)));
                sender
            })
            .collect();
        let mut turn = 0;
        let mut give = |file: SmallFile| {
            turn += 1;
            shared.begin();
            // The writers go on as long as there are senders.
            let _ = senders[turn % WRITERS].send(file);
        };
        while let Some(entry) = entries.next()? {
            unpack.add(&mut entries, entry, &mut give)?;
            shared.check_space()?;
        }
        Ok(())
    });
    // Existing entries get their attributes, however the restore ended.
    unpack.finish();
    read?;
    shared.check_space()?;
    flush(&unpack.directories)
}

fn empty_directory(path: &Path) -> io::Result<OwnedFd> {
    fs::create_dir_all(path)?;
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the directory is not empty"));
    }
    Ok(File::open(path)?.into())
}

/// Flushes everything that was restored, with all else on the filesystem.
fn flush(directories: &Directories) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(directories.root())?;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = directories;
        rustix::fs::sync();
    }
    Ok(())
}

/// State shared by the threads.
struct Shared {
    findings: Findings,
    /// Why nothing more can be written.
    full: Mutex<Option<io::Error>>,
    names: Names,
    owners: Owners,
    /// Number of small files in flight.
    pending: Mutex<usize>,
    settled: Condvar,
}

impl Shared {
    fn begin(&self) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn end(&self) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.settled.notify_all();
    }

    /// Waits for all small files that are on their way.
    fn settle(&self) {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.settled.wait_while(pending, |pending| *pending > 0));
    }

    fn check_space(&self) -> io::Result<()> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn report(&self, path: &[u8], problem: Problem, why: impl std::fmt::Display) {
        self.findings.add(TreeFinding::new(path, problem).because(why));
    }

    /// Reports that an entry could not be made.
    fn fail(&self, path: &[u8], problem: Problem, error: io::Error) {
        use io::ErrorKind::{AlreadyExists, QuotaExceeded, StorageFull};
        let problem = if error.kind() == AlreadyExists { Problem::Exists } else { problem };
        self.findings.add(TreeFinding::new(path, problem).because(&error));
        if matches!(error.kind(), QuotaExceeded | StorageFull) {
            *self.full.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    fn set(&self, path: &[u8], attributes: &Attributes, object: Object<'_>) {
        not_set(path, attributes.set(object, self.owners)).for_each(|finding| self.findings.add(finding));
    }

    /// Makes a symbolic link, a pipe or a device.
    fn node(&self, made: &Made, entry: &Entry) {
        let Made { attributes, before, directory, name, path } = made;
        if *before == Before::Entry && rustix::fs::unlinkat(directory, os(name), AtFlags::empty()).is_ok() {
            self.findings.add(TreeFinding::new(path.clone(), Problem::Replaced));
        }
        match make(directory, name, entry) {
            Ok(()) => {
                let (directory, name) = (directory.as_fd(), os(name));
                let is_link = entry.header.kind() == b'2';
                self.set(path, attributes, Object::Named { directory, is_link, name });
            }
            Err(error) => self.fail(path, Problem::NotCreated, error),
        }
    }

    /// Makes a file: under a temporary name, until it has all its contents and attributes.
    fn file(
        &self,
        made: Made,
        contents: impl FnOnce(&File) -> Result<(), DataError>,
    ) -> Result<(), io::Error> {
        let Made { attributes, before, directory, name, path } = made;
        let file = match NewFile::create(directory, name, &self.names) {
            Ok(file) => file,
            Err(error) => {
                self.fail(&path, Problem::NotCreated, error);
                return Ok(());
            }
        };
        match contents(&file.file) {
            Ok(()) => {}
            Err(DataError::Nonsense(why)) => {
                self.report(&path, Problem::Damaged, why);
                return Ok(());
            }
            Err(DataError::Read(ReadError::Damaged(range, error))) => {
                let why = lost(&range, &error);
                self.report(&path, Problem::Damaged, why);
                return Ok(());
            }
            Err(DataError::Read(ReadError::Failed(error))) => return Err(error),
            Err(DataError::Write(error)) => {
                self.fail(&path, Problem::NotWritten, error);
                return Ok(());
            }
        }
        self.set(&path, &attributes, Object::Open(file.file.as_fd()));
        match file.finish(before) {
            Ok(false) => {}
            Ok(true) => self.findings.add(TreeFinding::new(path, Problem::Replaced)),
            Err(error) => self.fail(&path, Problem::NotCreated, error.into()),
        }
        Ok(())
    }
}

/// The parts of an entry, without its contents.
struct Made {
    attributes: Attributes,
    before: Before,
    directory: Arc<OwnedFd>,
    name: Vec<u8>,
    path: Vec<u8>,
}

struct SmallFile {
    data: Vec<u8>,
    made: Made,
}

impl SmallFile {
    fn write(self, shared: &Shared) {
        let Self { data, made } = self;
        let contents = |file: &File| {
            write_with_holes(file, 0, &data).and_then(|()| file.set_len(data.len() as u64))?;
            Ok(())
        };
        // Nothing is read, which alone could fail.
        let _ = shared.file(made, contents);
        shared.end();
    }
}

struct Link {
    attributes: Attributes,
    path: Vec<u8>,
    to: Below,
    under: Below,
}

struct Unpack<'a> {
    directories: Directories,
    hasher: RandomState,
    /// Attributes of directories.
    later: BTreeMap<Below, Attributes>,
    links: Vec<Link>,
    /// Hashes of the paths of all entries before.
    seen: HashSet<u64>,
    shared: &'a Shared,
}

impl Unpack<'_> {
    /// Restores an entry.
    ///
    /// # Errors
    /// If the archive cannot be read any more.
    fn add<S: Source>(
        &mut self,
        entries: &mut Entries<S>,
        entry: Entry,
        give: &mut impl FnMut(SmallFile),
    ) -> io::Result<()> {
        let shared = self.shared;
        let kind = entry.header.kind();
        if kind == b'V' {
            // The label of the whole archive.
            return Ok(());
        }
        let Some(below) = Below::parse(&entry.path) else {
            shared.findings.add(TreeFinding::new(entry.path, Problem::Unsafe));
            return Ok(());
        };
        let attributes = Attributes::of(&entry);
        let is_directory =
            matches!(kind, b'5' | b'D') || matches!(kind, 0 | b'0') && entry.path.ends_with(b"/");
        if is_directory {
            self.add_directory(&entry.path, below, attributes);
            return Ok(());
        }
        let is_known = matches!(kind, 0 | b'0'..=b'7') || kind == b'S' && entry.sparse.is_some();
        let Some((above, name)) = below.split().filter(|_| is_known) else {
            let why = format!("kind {:?}", char::from(kind));
            shared.report(&entry.path, Problem::Unsupported, why);
            return Ok(());
        };
        let directory = match self.directories.open(above) {
            Ok(directory) => directory,
            Err(error) => {
                shared.fail(&entry.path, Problem::Orphan, error);
                return Ok(());
            }
        };
        let (before, name, path) = (self.before(&below), name.to_vec(), entry.path.clone());
        let made = Made { attributes, before, directory, name, path };
        match kind {
            b'1' => match Below::parse(&entry.link) {
                // Other threads may still be writing what it links to.
                Some(to) => {
                    let attributes = made.attributes;
                    self.links.push(Link { attributes, path: entry.path, to, under: below });
                }
                None => shared.findings.add(TreeFinding::new(entry.path, Problem::Unsafe)),
            },
            b'2' | b'3' | b'4' | b'6' => shared.node(&made, &entry),
            _ if entry.data_bytes > SMALL_FILE_BYTES || entry.sparse.is_some() || before == Before::Entry => {
                return shared.file(made, |file| write_data(&mut entries.stream, &entry, file));
            }
            _ => match read_small(&mut entries.stream, &entry) {
                Ok(data) => give(SmallFile { data, made }),
                // Reports it, and leaves no file.
                Err(error) => return shared.file(made, |_| Err(error)),
            },
        }
        Ok(())
    }

    /// The object that may have the name of an entry.
    fn before(&mut self, below: &Below) -> Before {
        if self.seen.insert(self.hasher.hash_one(below)) {
            return Before::Nothing;
        }
        self.shared.settle();
        Before::Entry
    }

    fn add_directory(&mut self, path: &[u8], below: Below, attributes: Attributes) {
        if let Some((above, name)) = below.split() {
            let is_new = self.seen.insert(self.hasher.hash_one(&below));
            let made = self.directories.open(above).and_then(|directory| {
                match rustix::fs::mkdirat(&directory, os(name), Mode::from_raw_mode(0o700)) {
                    // An entry in it may have come first.
                    Err(Errno::EXIST) => {
                        open_directory(&directory, name)?;
                        Ok(!is_new || self.directories.has_made(below.parts()))
                    }
                    made => Ok(made.map(|()| true)?),
                }
            });
            match made {
                Ok(true) => {}
                Ok(false) => self.shared.report(path, Problem::Exists, "both directories are one here"),
                Err(error) => return self.shared.fail(path, Problem::NotCreated, error),
            }
        }
        self.later.insert(below, attributes);
    }

    /// Makes what has to wait for all others.
    fn finish(&mut self) {
        for link in std::mem::take(&mut self.links) {
            if let Err(error) = self.link(&link) {
                self.shared.fail(&link.path, Problem::NotCreated, error);
            }
        }
        // Those within first: the attributes of a directory may forbid to get into it.
        while let Some((below, attributes)) = self.later.pop_last() {
            let path = if below.split().is_none() { b".".to_vec() } else { below.parts().join(&b'/') };
            match self.directories.open(below.parts()) {
                Ok(directory) => self.shared.set(&path, &attributes, Object::Open(directory.as_fd())),
                Err(error) => self.shared.fail(&path, Problem::NotCreated, error),
            }
        }
    }

    fn link(&mut self, link: &Link) -> io::Result<()> {
        let (Some((from_above, from)), Some((above, name))) = (link.to.split(), link.under.split()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let source = self.directories.open(from_above)?;
        let directory = self.directories.open(above)?;
        match rustix::fs::linkat(&source, os(from), &directory, os(name), AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => {
                Err(io::Error::new(io::ErrorKind::NotFound, "the file that it links to was not restored"))
            }
            Err(Errno::EXIST) => {
                let status =
                    |directory, name| rustix::fs::statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW);
                let (one, other) = (status(&source, from)?, status(&directory, name)?);
                if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
                    Ok(())
                } else {
                    Err(Errno::EXIST.into())
                }
            }
            Err(error @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut source = File::from(rustix::fs::openat(&source, os(from), flags, Mode::empty())?);
                if !source.metadata()?.is_file() {
                    return Err(error.into());
                }
                self.shared.report(&link.path, Problem::Copied, error);
                let made = Made {
                    attributes: link.attributes.clone(),
                    before: Before::Nothing,
                    directory,
                    name: name.to_vec(),
                    path: link.path.clone(),
                };
                self.shared.file(made, |mut file| {
                    io::copy(&mut source, &mut file)?;
                    Ok(())
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes a symbolic link, a pipe or a device.
fn make(directory: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let kind = match entry.header.kind() {
        b'2' => return Ok(rustix::fs::symlinkat(os(&entry.link), directory, os(name))?),
        b'3' => FileType::CharacterDevice,
        b'4' => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = if kind == FileType::Fifo {
        0
    } else {
        let (major, minor) = entry.header.device().ok_or(io::ErrorKind::InvalidData)?;
        rustix::fs::makedev(major, minor)
    };
    Ok(rustix::fs::mknodat(directory, os(name), kind, Mode::from_raw_mode(0o600), device)?)
}

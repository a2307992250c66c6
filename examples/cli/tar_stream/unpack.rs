//! Unpacks a tar stream into a directory.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use filetime::FileTime;
use tar::{Archive, EntryType, Header};

/// The most bytes of a file that is handed to another thread to be written.
const SMALL_FILE_BYTES: u64 = 256 << 10;

/// How many threads write small files.
const WRITERS: usize = 2;

/// Unpacks a tar stream into a directory that is new or empty. Small files are written by other threads.
pub(crate) fn unpack(stream: impl Read, directory: &Path) -> io::Result<()> {
    let mut unpacked = Unpack::new(directory)?;
    let mut archive = Archive::new(io::BufReader::with_capacity(256 << 10, stream));
    thread::scope(|scope| {
        let (senders, workers): (Vec<_>, Vec<_>) = (0..WRITERS)
            .map(|_| {
                let (sender, receiver) = mpsc::sync_channel::<SmallFile>(64);
                let worker = scope.spawn(move || receiver.into_iter().try_for_each(SmallFile::write));
                (sender, worker)
            })
            .unzip();
        let mut turn = 0;
        let mut give = |file: SmallFile| {
            turn += 1;
            // A writer that is gone has failed, and says so at the end.
            let _ = senders[turn % WRITERS].send(file);
        };
        let read = archive
            .entries()
            .and_then(|entries| entries.into_iter().try_for_each(|entry| unpacked.add(entry?, &mut give)));
        drop(senders);
        let written = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
        written.collect::<io::Result<Vec<()>>>().and(read)
    })?;
    unpacked.finish()
}

/// What is set on a file after it was made.
#[derive(Clone, Default)]
struct Attributes {
    extended: Vec<(String, Vec<u8>)>,
    gid: u32,
    mode: u32,
    time: Option<FileTime>,
    uid: u32,
}

struct SmallFile {
    attributes: Attributes,
    data: Vec<u8>,
    path: PathBuf,
}

impl SmallFile {
    fn write(self) -> io::Result<()> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let mut file = new_file(&self.path).map_err(named)?;
        file.write_all(&self.data).map_err(named)?;
        self.attributes.set_on_file(&file, &self.path).map_err(named)
    }
}

struct Unpack {
    /// Directories made so far; nothing is ever made below anything else, so no link leads out.
    directories: HashSet<PathBuf>,
    /// What is set last, because filling a directory changes its time.
    later: Vec<(PathBuf, Attributes)>,
    links: Vec<(PathBuf, PathBuf)>,
    root: PathBuf,
}

impl Unpack {
    fn new(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        if fs::read_dir(root)?.next().is_some() {
            let text = format!("{}: the directory is not empty", root.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let directories = HashSet::from([root.to_owned()]);
        Ok(Self { directories, later: Vec::new(), links: Vec::new(), root: root.to_owned() })
    }

    fn add<R: Read>(
        &mut self,
        mut entry: tar::Entry<'_, R>,
        give: &mut impl FnMut(SmallFile),
    ) -> io::Result<()> {
        let (attributes, link) = attributes(&mut entry)?;
        let Some(path) = self.path(&entry.path()?)? else { return Ok(()) };
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => {
                if self.directories.insert(path.clone()) {
                    fs::create_dir(&path)?;
                }
                self.later.push((path, attributes));
            }
            EntryType::Symlink => {
                std::os::unix::fs::symlink(link.ok_or(io::ErrorKind::InvalidData)?, &path)?;
                attributes.set_on_link(&path)?;
            }
            // Other threads may still be writing what it links to.
            EntryType::Link => {
                let target = self.path(&link.ok_or(io::ErrorKind::InvalidData)?)?;
                self.links.push((target.ok_or(io::ErrorKind::InvalidData)?, path));
            }
            EntryType::Regular | EntryType::Continuous if entry.size() <= SMALL_FILE_BYTES => {
                let mut data = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
                entry.read_to_end(&mut data)?;
                give(SmallFile { attributes, data, path });
            }
            EntryType::Regular | EntryType::Continuous => {
                let mut file = new_file(&path)?;
                copy(&mut entry, &mut file)?;
                attributes.set_on_file(&file, &path)?;
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                make_node(&path, entry.header())?;
                attributes.set_on_path(&path)?;
            }
            _ => eprintln!("{}: an entry of an unknown kind, left out", path.display()),
        }
        Ok(())
    }

    /// Where an entry goes; `None` for the directory itself. Its parent must have come before it as a directory.
    fn path(&mut self, name: &Path) -> io::Result<Option<PathBuf>> {
        let mut path = self.root.clone();
        for component in name.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(part) => path.push(part),
                _ => return Err(io::Error::other(format!("{}: the path leads out", name.display()))),
            }
        }
        if path == self.root {
            return Ok(Some(path));
        }
        match path.parent() {
            Some(parent) if self.directories.contains(parent) => Ok(Some(path)),
            _ => Err(io::Error::other(format!("{}: it lies in no directory of the archive", name.display()))),
        }
    }

    fn finish(self) -> io::Result<()> {
        for (target, path) in &self.links {
            fs::hard_link(target, path)?;
        }
        for (path, attributes) in self.later.iter().rev() {
            attributes.set_on_path(path)?;
        }
        Ok(())
    }
}

fn copy(from: &mut impl Read, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<(Attributes, Option<PathBuf>)> {
    let header = entry.header();
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let mut attributes = Attributes {
        extended: Vec::new(),
        gid: number(header.gid()?),
        mode: header.mode()?,
        time: Some(FileTime::from_unix_time(i64::try_from(header.mtime()?).unwrap_or(0), 0)),
        uid: number(header.uid()?),
    };
    let mut link =
        entry.link_name_bytes().map(|name| PathBuf::from(std::ffi::OsString::from_vec(name.into_owned())));
    if let Some(records) = entry.pax_extensions()? {
        for record in records {
            let record = record?;
            let (Ok(key), value) = (record.key(), record.value_bytes()) else { continue };
            let text = || std::str::from_utf8(value).unwrap_or_default();
            match key {
                "gid" => attributes.gid = text().parse().unwrap_or(attributes.gid),
                "uid" => attributes.uid = text().parse().unwrap_or(attributes.uid),
                "linkpath" => link = Some(PathBuf::from(OsStr::from_bytes(value))),
                "mtime" => attributes.time = parse_time(text()).or(attributes.time),
                _ => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        attributes.extended.push((name.to_owned(), value.to_vec()));
                    } else if let Some(name) = key.strip_prefix("LIBARCHIVE.xattr.")
                        && let Ok(value) = base64_simd::STANDARD.decode_to_vec(value)
                    {
                        attributes.extended.push((name.to_owned(), value));
                    }
                }
            }
        }
    }
    Ok((attributes, link))
}

fn parse_time(text: &str) -> Option<FileTime> {
    let (number, is_negative) = text.strip_prefix('-').map_or((text, false), |number| (number, true));
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => FileTime::from_unix_time(seconds, nanoseconds),
        (true, 0) => FileTime::from_unix_time(-seconds, 0),
        (true, _) => FileTime::from_unix_time(-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

impl Attributes {
    fn set_on_file(&self, file: &File, path: &Path) -> io::Result<()> {
        if is_root() {
            std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        }
        // Before the mode, which may forbid it, and after the owner, whose change takes capabilities away.
        self.set_extended(path);
        file.set_permissions(fs::Permissions::from_mode(self.mode))?;
        match self.time {
            Some(time) => filetime::set_file_handle_times(file, None, Some(time)),
            None => Ok(()),
        }
    }

    fn set_on_path(&self, path: &Path) -> io::Result<()> {
        if is_root() {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
        }
        self.set_extended(path);
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode))?;
        match self.time {
            // Without opening it: that would wait at a pipe, and do who knows what at a device.
            Some(time) => filetime::set_symlink_file_times(path, time, time),
            None => Ok(()),
        }
    }

    fn set_on_link(&self, path: &Path) -> io::Result<()> {
        if is_root() {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
        }
        self.set_extended(path);
        match self.time {
            Some(time) => filetime::set_symlink_file_times(path, time, time),
            None => Ok(()),
        }
    }

    fn set_extended(&self, path: &Path) {
        for (name, value) in &self.extended {
            if let Err(error) = xattr::set(path, name, value) {
                eprintln!("{}: {name}: {error}", path.display());
            }
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn make_node(path: &Path, header: &Header) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let kind = match header.entry_type() {
        EntryType::Fifo => FileType::Fifo,
        EntryType::Char => FileType::CharacterDevice,
        _ => FileType::BlockDevice,
    };
    let device = match kind {
        FileType::Fifo => 0,
        _ => makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)),
    };
    Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

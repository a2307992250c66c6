//! A directory as a tar stream, and back.
//!
//! The stream is POSIX.1-2001 (pax): long names, times to the nanosecond and extended attributes are in pax records.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use filetime::FileTime;
use futures::channel::mpsc as channel;
use futures::executor::block_on;
use futures::io::AsyncRead;
use futures::sink::SinkExt as _;
use futures::stream::TryStreamExt as _;
use tar::{Archive, Builder, EntryType, Header};

/// How many bytes go through the channel at once.
const BLOCK_BYTES: usize = 1 << 20;

/// The most bytes of a file that is handed to another thread to be written.
const SMALL_FILE_BYTES: u64 = 256 << 10;

/// How many threads write small files.
const WRITERS: usize = 2;

/// Reads a directory on a thread of its own and yields it as a tar stream, always in the same order.
pub(crate) fn of_directory(directory: PathBuf) -> impl AsyncRead + Send + Unpin {
    let (sender, receiver) = channel::channel::<io::Result<Vec<u8>>>(4);
    thread::spawn(move || {
        let mut blocks = Blocks { block: Vec::with_capacity(BLOCK_BYTES), sender };
        let written = write_tree(&directory, &mut blocks).and_then(|()| blocks.flush());
        if let Err(error) = written {
            // Whoever does not read any more needs no error either.
            let _ = block_on(blocks.sender.send(Err(error)));
        }
    });
    receiver.into_async_read()
}

/// Collects what is written into blocks and sends them.
struct Blocks {
    block: Vec<u8>,
    sender: channel::Sender<io::Result<Vec<u8>>>,
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..length]);
        if self.block.len() == BLOCK_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        if block.is_empty() {
            return Ok(());
        }
        block_on(self.sender.send(Ok(block))).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn write_tree(directory: &Path, blocks: &mut Blocks) -> io::Result<()> {
    // A link to a directory means the directory, and one that is not there is no empty one.
    let directory = &fs::canonicalize(directory)?;
    let mut tree = Tree { builder: Builder::new(blocks), buffer: vec![0; 256 << 10], links: HashMap::new() };
    tree.add(directory, Path::new("."))?;
    tree.builder.finish()
}

struct Tree<'a> {
    buffer: Vec<u8>,
    builder: Builder<&'a mut Blocks>,
    /// Files with several names, by device and inode, with the first name under which they came.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Tree<'_> {
    fn add(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            // It went away since the directory was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        if metadata.file_type().is_socket() {
            eprintln!("{}: a socket, left out", path.display());
            return Ok(());
        }
        self.add_entry(path, name, &metadata)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        if metadata.is_dir() {
            let mut names =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            for child in names {
                self.add(&path.join(&child), &name.join(&child))?;
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_metadata(metadata);
        let mut records = times_and_attributes(path, metadata)?;
        set_name(&mut header, name, metadata, &mut records);
        if metadata.is_symlink() {
            let target = fs::read_link(path)?;
            set_link(&mut header, EntryType::Symlink, &target, &mut records);
        } else if metadata.is_file() && metadata.nlink() > 1 {
            match self.links.get(&(metadata.dev(), metadata.ino())) {
                Some(first) => set_link(&mut header, EntryType::Link, &first.clone(), &mut records),
                None => {
                    self.links.insert((metadata.dev(), metadata.ino()), name.to_owned());
                }
            }
        }
        let is_data = header.entry_type() == EntryType::Regular;
        let size = if is_data { metadata.len() } else { 0 };
        header.set_size(size);
        if header.set_overflow(metadata, &mut records) {
            header.set_cksum();
        }
        if let Some(ustar) = header.as_ustar_mut() {
            // Readers want numbers there for whatever is no file and no directory.
            let device = if is_device(metadata) { metadata.rdev() } else { 0 };
            ustar.set_device_major(rustix::fs::major(device));
            ustar.set_device_minor(rustix::fs::minor(device));
        }
        header.set_cksum();
        for (key, kind) in [("path", EntryType::GNULongName), ("linkpath", EntryType::GNULongLink)] {
            if let Some(name) = records.remove(key) {
                if name.contains(&b'\n') {
                    self.add_long_name(kind, &name)?;
                } else {
                    records.insert(key.into(), name);
                }
            }
        }
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        self.builder.append_pax_extensions(records)?;
        self.builder.get_mut().write_all(header.as_bytes())?;
        if is_data { self.add_data(path, size) } else { Ok(()) }
    }

    /// Says a name that no pax record can hold: many readers take a newline for the end of a record.
    fn add_long_name(&mut self, kind: EntryType, name: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path("././@LongLink")?;
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        let mut block = header.as_bytes().to_vec();
        block.extend_from_slice(name);
        block.push(0);
        block.resize(block.len().next_multiple_of(512), 0);
        self.builder.get_mut().write_all(&block)
    }

    /// Writes the bytes of a file: as many as the header says, whatever becomes of the file meanwhile.
    fn add_data(&mut self, path: &Path, size: u64) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = file.read(&mut self.buffer[..wanted])?;
            if read == 0 {
                eprintln!("{}: it became shorter while it was read; the rest is zeros", path.display());
                self.buffer[..wanted].fill(0);
            }
            let part = if read == 0 { wanted } else { read };
            self.builder.get_mut().write_all(&self.buffer[..part])?;
            left -= part as u64;
        }
        let padding = usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0);
        self.builder.get_mut().write_all(&[0; 512][..padding])
    }
}

fn is_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() || metadata.file_type().is_block_device()
}

trait HeaderExt {
    fn set_overflow(&mut self, metadata: &Metadata, records: &mut Records) -> bool;
}

impl HeaderExt for Header {
    /// Numbers that the fields of the header cannot hold go into pax records.
    fn set_overflow(&mut self, metadata: &Metadata, records: &mut Records) -> bool {
        const OCTAL_LIMIT: u64 = 0o7_777_777;
        let mut changed = false;
        if u64::from(metadata.uid()) > OCTAL_LIMIT {
            records.insert("uid".into(), metadata.uid().to_string().into());
            self.set_uid(0);
            changed = true;
        }
        if u64::from(metadata.gid()) > OCTAL_LIMIT {
            records.insert("gid".into(), metadata.gid().to_string().into());
            self.set_gid(0);
            changed = true;
        }
        if !(0..1 << 33).contains(&metadata.mtime()) {
            records.insert("mtime".into(), render_time(metadata.mtime(), metadata.mtime_nsec()).into());
            self.set_mtime(0);
            changed = true;
        }
        changed
    }
}

type Records = BTreeMap<String, Vec<u8>>;

fn times_and_attributes(path: &Path, metadata: &Metadata) -> io::Result<Records> {
    let mut records = Records::new();
    if metadata.mtime_nsec() != 0 {
        records.insert("mtime".into(), render_time(metadata.mtime(), metadata.mtime_nsec()).into());
    }
    let names = match xattr::list(path) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(records),
        names => names?,
    };
    for name in names {
        if let Some(name_text) = name.to_str()
            && let Some(value) = xattr::get(path, &name)?
        {
            if value.contains(&b'\n') {
                // See `add_long_name`; this form is that of libarchive.
                let text = base64_simd::STANDARD.encode_to_string(&value);
                records.insert(format!("LIBARCHIVE.xattr.{name_text}"), text.into());
            } else {
                records.insert(format!("SCHILY.xattr.{name_text}"), value);
            }
        }
    }
    Ok(records)
}

fn set_name(header: &mut Header, name: &Path, metadata: &Metadata, records: &mut Records) {
    let mut bytes = name.as_os_str().as_bytes().to_vec();
    if metadata.is_dir() {
        bytes.push(b'/');
    }
    if header.set_path(OsStr::from_bytes(&bytes)).is_err() || !bytes.is_ascii() {
        records.insert("path".into(), bytes.clone());
        bytes.truncate(100);
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.prefix = [0; 155];
            ustar.name = [0; 100];
            ustar.name[..bytes.len()].copy_from_slice(&bytes);
        }
    }
}

fn set_link(header: &mut Header, kind: EntryType, target: &Path, records: &mut Records) {
    header.set_entry_type(kind);
    let bytes = target.as_os_str().as_bytes();
    // `set_link_name` tidies targets up; a link has to say what it said.
    if bytes.len() > 100 || !bytes.is_ascii() {
        records.insert("linkpath".into(), bytes.to_vec());
    }
    if let Some(ustar) = header.as_ustar_mut() {
        let length = bytes.len().min(100);
        ustar.linkname = [0; 100];
        ustar.linkname[..length].copy_from_slice(&bytes[..length]);
    }
}

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

/// Seconds since 1970 as a decimal number. Before it, the system counts the fraction from the second before, a number from the
/// one after.
fn render_time(seconds: i64, nanoseconds: i64) -> String {
    match (seconds, nanoseconds) {
        (..0, 1..) => {
            let whole = (seconds + 1).unsigned_abs();
            format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
        }
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
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

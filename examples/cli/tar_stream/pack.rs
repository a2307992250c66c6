//! Writes a directory as a tar stream.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use futures::channel::mpsc as channel;
use futures::executor::block_on;
use futures::io::AsyncRead;
use futures::sink::SinkExt as _;
use futures::stream::TryStreamExt as _;
use tar::{Builder, EntryType, Header};

/// How many bytes go through the channel at once.
const BLOCK_BYTES: usize = 1 << 20;

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

//! Headers of a tar stream: one entry with its pax records.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use tar::{Builder, EntryType, Header};
use xattr::FileExt as _;

pub(super) type Records = BTreeMap<String, Vec<u8>>;

/// One entry, without its contents.
pub(super) struct Entry<'a> {
    pub(super) attributes: Records,
    /// The first name of a file that has several, or the target of a symbolic link.
    pub(super) link: Option<&'a [u8]>,
    pub(super) metadata: &'a Metadata,
    /// As it stands in the stream: `./a/b`.
    pub(super) name: &'a [u8],
    /// The size of the file, if it has holes; its contents then begin with a map.
    pub(super) sparse_size: Option<u64>,
    /// Number of bytes that follow.
    pub(super) size: u64,
}

impl Entry<'_> {
    pub(super) fn write<W: Write>(self, builder: &mut Builder<W>) -> io::Result<()> {
        let metadata = self.metadata;
        let mut header = Header::new_ustar();
        header.set_metadata(metadata);
        let mut records = self.attributes;
        if metadata.mtime_nsec() != 0 {
            records.insert("mtime".into(), render_time(metadata.mtime(), metadata.mtime_nsec()).into());
        }
        set_name(&mut header, self.name, metadata, &mut records);
        if let Some(link) = self.link {
            let kind = if metadata.is_symlink() { EntryType::Symlink } else { EntryType::Link };
            set_link(&mut header, kind, link, &mut records);
        }
        header.set_size(self.size);
        set_overflow(&mut header, metadata, &mut records);
        if let Some(size) = self.sparse_size {
            set_sparse(&mut header, self.name, size, &mut records);
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
                    add_long_name(builder, kind, &name)?;
                } else {
                    records.insert(key.into(), name);
                }
            }
        }
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        builder.append_pax_extensions(records)?;
        builder.get_mut().write_all(header.as_bytes())
    }
}

/// Writes a name that no pax record can hold: many readers take a newline for the end of a record.
fn add_long_name<W: Write>(builder: &mut Builder<W>, kind: EntryType, name: &[u8]) -> io::Result<()> {
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
    builder.get_mut().write_all(&block)
}

fn is_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() || metadata.file_type().is_block_device()
}

/// Numbers that the fields of the header cannot hold go into pax records.
fn set_overflow(header: &mut Header, metadata: &Metadata, records: &mut Records) {
    const OCTAL_LIMIT: u64 = 0o7_777_777;
    if u64::from(metadata.uid()) > OCTAL_LIMIT {
        records.insert("uid".into(), metadata.uid().to_string().into());
        header.set_uid(0);
    }
    if u64::from(metadata.gid()) > OCTAL_LIMIT {
        records.insert("gid".into(), metadata.gid().to_string().into());
        header.set_gid(0);
    }
    if !(0..1 << 33).contains(&metadata.mtime()) {
        records.insert("mtime".into(), render_time(metadata.mtime(), metadata.mtime_nsec()).into());
        header.set_mtime(0);
    }
}

fn set_name(header: &mut Header, name: &[u8], metadata: &Metadata, records: &mut Records) {
    let mut bytes = name.to_vec();
    if metadata.is_dir() {
        bytes.push(b'/');
    }
    if header.set_path(OsStr::from_bytes(&bytes)).is_err() || !bytes.is_ascii() {
        set_plain_name(header, &bytes);
        records.insert("path".into(), bytes);
    }
}

/// A name as far as it fits into the header.
fn set_plain_name(header: &mut Header, name: &[u8]) {
    let name = &name[..name.len().min(100)];
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.prefix = [0; 155];
        ustar.name = [0; 100];
        ustar.name[..name.len()].copy_from_slice(name);
    }
}

fn set_link(header: &mut Header, kind: EntryType, target: &[u8], records: &mut Records) {
    header.set_entry_type(kind);
    // `set_link_name` tidies targets up; a link has to say what it said.
    if target.len() > 100 || !target.is_ascii() {
        records.insert("linkpath".into(), target.to_vec());
    }
    if let Some(ustar) = header.as_ustar_mut() {
        let length = target.len().min(100);
        ustar.linkname = [0; 100];
        ustar.linkname[..length].copy_from_slice(&target[..length]);
    }
}

/// The GNU format for files with holes, version 1.0. A reader that does not know it unpacks the map and the data under the
/// name in the header, which is therefore another one.
fn set_sparse(header: &mut Header, name: &[u8], size: u64, records: &mut Records) {
    records.insert("GNU.sparse.major".into(), b"1".into());
    records.insert("GNU.sparse.minor".into(), b"0".into());
    records.insert("GNU.sparse.realsize".into(), size.to_string().into());
    // A name that no record can hold comes before, and readers take it for the real one.
    if !name.contains(&b'\n') {
        records.insert("GNU.sparse.name".into(), name.to_vec());
        // Some readers take the last of both.
        records.remove("path");
        let base = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
        set_plain_name(header, &[b"./GNUSparseFile.0/", base].concat());
    } else if !records.contains_key("path") {
        records.insert("path".into(), name.to_vec());
    }
}

/// Extended attributes as records, and the error of the first one that could not be read.
pub(super) fn extended_attributes(source: &Source<'_>) -> (Records, Option<io::Error>) {
    let mut records = Records::new();
    let names = match source.names() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return (records, None),
        Err(error) => return (records, Some(error)),
        Ok(names) => names,
    };
    let mut failed = None;
    for name in names {
        let Some(text) = name.to_str().filter(|text| !text.contains(['=', '\n'])) else {
            let why = format!("{}: a record cannot hold this name", name.display());
            failed.get_or_insert(io::Error::other(why));
            continue;
        };
        match source.value(&name) {
            Ok(Some(value)) if value.contains(&b'\n') => {
                // See `add_long_name`; this form is that of libarchive.
                let encoded = base64_simd::STANDARD.encode_to_string(&value);
                records.insert(format!("LIBARCHIVE.xattr.{text}"), encoded.into());
            }
            Ok(Some(value)) => {
                records.insert(format!("SCHILY.xattr.{text}"), value);
            }
            Ok(None) => {}
            Err(error) => {
                failed.get_or_insert(io::Error::new(error.kind(), format!("{text}: {error}")));
            }
        }
    }
    (records, failed)
}

/// Where attributes are read.
pub(super) enum Source<'a> {
    /// An open file or directory.
    Opened(&'a File),
    /// A path that ends at the entry itself, also if that is a link.
    Path(&'a Path),
}

impl Source<'_> {
    fn names(&self) -> io::Result<Vec<OsString>> {
        Ok(match self {
            Self::Opened(file) => file.list_xattr()?.collect(),
            Self::Path(path) => xattr::list(path)?.collect(),
        })
    }

    fn value(&self, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Opened(file) => file.get_xattr(name),
            Self::Path(path) => xattr::get(path, name),
        }
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

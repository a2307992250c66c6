//! Encoder of archives.

mod error;
mod metadata;
mod payload;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use error::TreeEncodeError;
use metadata::{push_item, push_numbers};
pub use payload::{EXCLUDE_FILE, PAYLOAD_END, PAYLOAD_START, exclude_lines, exclude_prelude, payload_header};

use crate::pxar::goodbye::{self, Row};
use crate::pxar::hash::name_hash;
use crate::pxar::item::{self, HEADER_BYTES, MAX_HEAD_BYTES, MAX_NAME_BYTES};
use crate::pxar::kind::FileKind;
use crate::pxar::metadata::Metadata;

/// Encoder of an archive: it turns entries, in their order, into bytes.
///
/// Children of a directory follow in the order of their names, byte by byte; [`EXCLUDE_FILE`] alone may follow the others of the root. The caller
/// [takes](Self::take) the bytes when it wants to. The encoder keeps 24 bytes for each child of the directories that are open.
///
/// After an error, the archive is as it was before the call, and another entry may follow.
///
/// ```
/// use larder::pxar::{Encoder, Metadata, Stat};
///
/// let directory = Metadata::new(Stat { mode: 0o040_755, ..Stat::default() });
/// let file = Metadata::new(Stat { mode: 0o100_644, ..Stat::default() });
/// let mut archive = Encoder::unified(&directory)?;
/// archive.file(b"greeting", &file, 5)?;
/// archive.contents(b"hello")?;
/// assert_eq!(archive.finish()?.len(), 222);
/// # Ok::<(), larder::pxar::TreeEncodeError>(())
/// ```
#[derive(Debug)]
pub struct Encoder {
    directories: Vec<Directory>,
    last_offset: Option<u64>,
    missing: u64,
    out: Vec<u8>,
    split: bool,
    taken: u64,
}

/// A directory that is open.
#[derive(Debug)]
struct Directory {
    entry: u64,
    filename: u64,
    hash: u64,
    last_name: Vec<u8>,
    rows: Vec<Row>,
}

/// Contents of a file in an archive in split form: where they are in the payload stream, and how they came there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "these are the facts that the format needs")]
pub struct PayloadReference {
    /// Position of the [header](payload_header) in the payload stream.
    pub offset: u64,
    /// How the contents came there.
    pub origin: PayloadOrigin,
    /// Size of the file in bytes.
    pub size: u64,
}

/// How the contents of a file came into a payload stream. Tables of directories differ, as those of the stock clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the format has these two")]
pub enum PayloadOrigin {
    /// In chunks of an earlier snapshot.
    Reused,
    /// This backup wrote them.
    Written,
}

impl Encoder {
    /// Starts an archive in the unified form, which has the contents of files in it.
    ///
    /// # Errors
    /// `Kind` if the metadata are not those of a directory; `Length`; `Name` of an attribute.
    pub fn unified(root: &Metadata) -> Result<Self, TreeEncodeError> {
        Self::start(root, false, Vec::new())
    }

    /// Starts an archive in the split form, whose contents are in a payload stream. The prelude comes from [`exclude_prelude`], or is empty.
    ///
    /// # Errors
    /// As [`unified`](Self::unified).
    pub fn split(root: &Metadata, prelude: &[u8]) -> Result<Self, TreeEncodeError> {
        let mut out = Vec::new();
        push_numbers(item::FORMAT_VERSION, &[item::SPLIT_VERSION], &mut out);
        if !prelude.is_empty() {
            push_item(item::PRELUDE, &[prelude], &mut out);
        }
        Self::start(root, true, out)
    }

    fn start(root: &Metadata, split: bool, mut out: Vec<u8>) -> Result<Self, TreeEncodeError> {
        check_type(root, item::DIRECTORY)?;
        let start = out.len();
        metadata::encode(root, &mut out)?;
        check_head(out.len() - start)?;
        // The last row of the root leads to the start of the stream, also where that is no ENTRY.
        let root = Directory { entry: 0, filename: 0, hash: 0, last_name: Vec::new(), rows: Vec::new() };
        Ok(Self { directories: vec![root], last_offset: None, missing: 0, out, split, taken: 0 })
    }

    /// Position of the next byte in the archive.
    pub fn position(&self) -> u64 {
        self.taken + self.out.len() as u64
    }

    /// Number of open directories, the root included.
    pub fn depth(&self) -> usize {
        self.directories.len()
    }

    /// Number of bytes that wait to be taken.
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// Takes the bytes since the last call. They follow one another in the archive.
    pub fn take(&mut self) -> Bytes {
        let bytes = Bytes::from(std::mem::take(&mut self.out));
        self.taken += bytes.len() as u64;
        bytes
    }

    /// Adds a file to an archive in unified form; [`contents`](Self::contents) of this size follow. Returns its position, to which hard links lead.
    ///
    /// # Errors
    /// `Form` in a split archive; `ContentsMissing` of the file before; `Kind`, `Length`, `Name`, `Order`.
    pub fn file(&mut self, name: &[u8], metadata: &Metadata, size: u64) -> Result<u64, TreeEncodeError> {
        if self.split {
            return Err(TreeEncodeError::Form);
        }
        let whole = size.checked_add(HEADER_BYTES as u64).ok_or(TreeEncodeError::Length("a file"))?;
        let position = self.add(name, size, |out| {
            check_type(metadata, item::REGULAR)?;
            metadata::encode(metadata, out)?;
            out.extend_from_slice(&item::header(item::PAYLOAD, whole));
            Ok(())
        })?;
        self.missing = size;
        Ok(position)
    }

    /// Adds contents of the file that was added last.
    ///
    /// # Errors
    /// `ContentsTooLong`
    pub fn contents(&mut self, bytes: &[u8]) -> Result<(), TreeEncodeError> {
        self.missing =
            self.missing.checked_sub(bytes.len() as u64).ok_or(TreeEncodeError::ContentsTooLong)?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Counts contents of the file that was added last, which the caller itself puts behind all bytes that it took. None may be
    /// pending.
    ///
    /// # Errors
    /// `ContentsTooLong`; `Nesting` if bytes are pending.
    pub fn contents_elsewhere(&mut self, bytes: u64) -> Result<(), TreeEncodeError> {
        if !self.out.is_empty() {
            return Err(TreeEncodeError::Nesting);
        }
        self.missing = self.missing.checked_sub(bytes).ok_or(TreeEncodeError::ContentsTooLong)?;
        self.taken += bytes;
        Ok(())
    }

    /// Bytes of the contents of the last file that are still missing.
    pub fn missing_contents(&self) -> u64 {
        self.missing
    }

    /// Adds a file to an archive in split form. Returns its position, to which hard links lead.
    ///
    /// # Errors
    /// `Form` in a unified archive; `PayloadOffset` unless offsets grow from file to file; `Kind`, `Length`, `Name`, `Order`.
    pub fn file_reference(
        &mut self,
        name: &[u8],
        metadata: &Metadata,
        contents: PayloadReference,
    ) -> Result<u64, TreeEncodeError> {
        if !self.split {
            return Err(TreeEncodeError::Form);
        }
        if contents.offset < HEADER_BYTES as u64
            || self.last_offset.is_some_and(|last| contents.offset <= last)
        {
            return Err(TreeEncodeError::PayloadOffset);
        }
        let counted = match contents.origin {
            PayloadOrigin::Reused => 0,
            PayloadOrigin::Written => contents.size,
        };
        let position = self.add(name, counted, |out| {
            check_type(metadata, item::REGULAR)?;
            metadata::encode(metadata, out)?;
            push_numbers(item::PAYLOAD_REF, &[contents.offset, contents.size], out);
            Ok(())
        })?;
        self.last_offset = Some(contents.offset);
        Ok(position)
    }

    /// Adds a further name of a file that was added before at `position` as `target`, which is its path from the root.
    ///
    /// # Errors
    /// `LinkTarget`, `ContentsMissing`, `Name`, `Order`.
    pub fn hard_link(&mut self, name: &[u8], target: &[u8], position: u64) -> Result<(), TreeEncodeError> {
        let distance = self.position().checked_sub(position).filter(|distance| *distance > 0);
        let distance = distance.filter(|_| item::is_link_path(target)).ok_or(TreeEncodeError::LinkTarget)?;
        self.add(name, 0, |out| {
            push_item(item::HARDLINK, &[&distance.to_le_bytes(), target, &[0]], out);
            Ok(())
        })?;
        Ok(())
    }

    /// Adds a symbolic link, a device, a pipe or a socket.
    ///
    /// # Errors
    /// `Kind` if the type of the mode differs, and for other kinds; `LinkTarget`, `ContentsMissing`, `Length`, `Name`, `Order`.
    pub fn special(
        &mut self,
        name: &[u8],
        metadata: &Metadata,
        kind: &FileKind,
    ) -> Result<(), TreeEncodeError> {
        let of_mode = kind.type_bits();
        self.add(name, 0, |out| {
            check_type(metadata, of_mode)?;
            metadata::encode(metadata, out)?;
            match kind {
                FileKind::BlockDevice(device) | FileKind::CharDevice(device) => {
                    push_numbers(item::DEVICE, &[device.major, device.minor], out);
                }
                FileKind::Fifo | FileKind::Socket => {}
                FileKind::Symlink { target } if target.len() > MAX_NAME_BYTES => {
                    return Err(TreeEncodeError::Length("the target of a link"));
                }
                FileKind::Symlink { target } if item::is_symlink_target(target) => {
                    push_item(item::SYMLINK, &[target, &[0]], out);
                }
                FileKind::Symlink { .. } => return Err(TreeEncodeError::LinkTarget),
                FileKind::Directory | FileKind::File { .. } | FileKind::HardLink { .. } => {
                    return Err(TreeEncodeError::Kind);
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Adds a directory and enters it: its children follow.
    ///
    /// # Errors
    /// `Kind`, `ContentsMissing`, `Length`, `Name`, `Order`.
    pub fn enter(&mut self, name: &[u8], metadata: &Metadata) -> Result<(), TreeEncodeError> {
        let hash = name_hash(name);
        let filename = self.add(name, 0, |out| {
            check_type(metadata, item::DIRECTORY)?;
            metadata::encode(metadata, out)
        })?;
        // The row needs the end of the directory.
        let parent = self.directories.last_mut().ok_or(TreeEncodeError::Nesting)?;
        parent.rows.pop();
        let entry = filename + (HEADER_BYTES + name.len() + 1) as u64;
        self.directories.push(Directory { entry, filename, hash, last_name: Vec::new(), rows: Vec::new() });
        Ok(())
    }

    /// Leaves the directory that was entered last.
    ///
    /// # Errors
    /// `Nesting` if only the root is open; `ContentsMissing`.
    pub fn leave(&mut self) -> Result<(), TreeEncodeError> {
        self.check_contents()?;
        if self.directories.len() < 2 {
            return Err(TreeEncodeError::Nesting);
        }
        let Some(directory) = self.close() else { return Err(TreeEncodeError::Nesting) };
        let size = self.position() - directory.filename;
        let row = Row { hash: directory.hash, position: directory.filename, size };
        self.directories.last_mut().ok_or(TreeEncodeError::Nesting)?.rows.push(row);
        Ok(())
    }

    /// Ends the archive. Returns the bytes that were not taken yet.
    ///
    /// # Errors
    /// `Nesting` if a directory other than the root is open; `ContentsMissing`.
    pub fn finish(mut self) -> Result<Bytes, TreeEncodeError> {
        self.check_contents()?;
        if self.directories.len() != 1 {
            return Err(TreeEncodeError::Nesting);
        }
        self.close();
        Ok(self.out.into())
    }

    /// Writes the table of the innermost directory.
    fn close(&mut self) -> Option<Directory> {
        let mut directory = self.directories.pop()?;
        let position = self.position();
        goodbye::encode(std::mem::take(&mut directory.rows), position, directory.entry, &mut self.out);
        Some(directory)
    }

    fn check_contents(&self) -> Result<(), TreeEncodeError> {
        if self.missing == 0 {
            Ok(())
        } else {
            Err(TreeEncodeError::ContentsMissing { missing: self.missing })
        }
    }

    /// Adds a FILENAME, the items of the entry, and its row, whose size counts `contents` more bytes.
    fn add(
        &mut self,
        name: &[u8],
        contents: u64,
        items: impl FnOnce(&mut Vec<u8>) -> Result<(), TreeEncodeError>,
    ) -> Result<u64, TreeEncodeError> {
        self.check_contents()?;
        if !item::is_name(name) {
            return Err(TreeEncodeError::Name);
        }
        let in_root = self.directories.len() == 1;
        let (start, position) = (self.out.len(), self.position());
        let directory = self.directories.last_mut().ok_or(TreeEncodeError::Nesting)?;
        let exempt = in_root && name == EXCLUDE_FILE && directory.last_name != EXCLUDE_FILE;
        if !exempt && (name <= &directory.last_name[..] || in_root && directory.last_name == EXCLUDE_FILE) {
            return Err(TreeEncodeError::Order);
        }
        push_item(item::FILENAME, &[name, &[0]], &mut self.out);
        let encoded = items(&mut self.out).and_then(|()| check_head(self.out.len() - start));
        if let Err(error) = encoded {
            self.out.truncate(start);
            return Err(error);
        }
        let size = contents.checked_add((self.out.len() - start) as u64);
        // Every later position must fit as well.
        let Some(size) =
            size.filter(|size| position.checked_add(*size).is_some_and(|end| end < u64::MAX / 2))
        else {
            self.out.truncate(start);
            return Err(TreeEncodeError::Length("the archive"));
        };
        directory.rows.push(Row { hash: name_hash(name), position, size });
        directory.last_name.clear();
        directory.last_name.extend_from_slice(name);
        Ok(position)
    }
}

/// No decoder reads a longer head.
fn check_head(bytes: usize) -> Result<(), TreeEncodeError> {
    if bytes <= MAX_HEAD_BYTES { Ok(()) } else { Err(TreeEncodeError::Length("the metadata")) }
}

fn check_type(metadata: &Metadata, bits: u32) -> Result<(), TreeEncodeError> {
    let mode = metadata.stat.mode;
    if mode & item::TYPE_MASK == bits && mode >> 16 == 0 { Ok(()) } else { Err(TreeEncodeError::Kind) }
}

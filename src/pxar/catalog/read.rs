//! Reader of catalogs.

use std::collections::HashSet;

use bytes::Bytes;

use crate::pxar::catalog::MAGIC;
use crate::pxar::fault::{TreeDecodeError, TreeFault};
use crate::pxar::item::is_name;

/// Maximum number of directories on the way to an entry.
const MAX_DEPTH: u32 = 4096;

/// Bytes of the position of the root.
const TAIL_BYTES: usize = 8;

/// Reader of a catalog in memory. It decodes a directory when it is asked for it.
#[derive(Clone, Debug)]
pub struct CatalogReader {
    bytes: Bytes,
    root: CatalogDirectory,
}

/// A directory of a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogDirectory {
    block: usize,
    depth: u32,
    /// Where the block of the parent starts. This one ends before it, so no way through the catalog is endless.
    limit: usize,
    /// No block of the directory and below it starts before this position, so that directories share none.
    start: usize,
}

/// An entry of a directory in a catalog.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its kind.
    pub kind: CatalogKind,
    /// Its name; in the root, the full name of an archive.
    pub name: Bytes,
}

/// Kind of an entry in a catalog.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogKind {
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A directory, or an archive.
    Directory(CatalogDirectory),
    /// A named pipe.
    Fifo,
    /// A regular file.
    File {
        /// Time of the last modification, in whole seconds since 1970.
        mtime: i64,
        /// Bytes of its contents.
        size: u64,
    },
    /// A further name of a regular file.
    HardLink,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
}

impl CatalogReader {
    /// Opens a catalog.
    ///
    /// # Errors
    /// `Magic`, `Truncated`, `Bounds` for the position of the root.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, TreeDecodeError> {
        let bytes = bytes.into();
        let fault = |fault, offset: usize| TreeDecodeError::new(fault, offset as u64);
        if bytes.get(..MAGIC.len()).is_some_and(|magic| magic != MAGIC) {
            return Err(fault(TreeFault::Magic, 0));
        }
        let tail = bytes.last_chunk::<TAIL_BYTES>().filter(|_| bytes.len() >= MAGIC.len() + 2 + TAIL_BYTES);
        let tail = tail.ok_or_else(|| fault(TreeFault::Truncated, bytes.len()))?;
        let limit = bytes.len() - TAIL_BYTES;
        let block = usize::try_from(u64::from_le_bytes(*tail)).ok();
        let block = block.filter(|block| (MAGIC.len()..=limit - 2).contains(block));
        let block = block.ok_or_else(|| fault(TreeFault::Bounds, limit))?;
        Ok(Self { root: CatalogDirectory { block, depth: 0, limit, start: MAGIC.len() }, bytes })
    }

    /// The root, whose entries are the archives.
    pub fn root(&self) -> CatalogDirectory {
        self.root
    }

    /// Entries of a directory, in the order of the archive.
    ///
    /// # Errors
    /// Any [`TreeFault`], if the block is malformed.
    pub fn entries(&self, directory: CatalogDirectory) -> Result<Vec<CatalogEntry>, TreeDecodeError> {
        let mut whole =
            Cursor { at: directory.block, bytes: self.bytes.get(..directory.limit).unwrap_or_default() };
        let length = whole.size()?;
        let end = whole.at.checked_add(length).filter(|end| length > 0 && *end <= directory.limit);
        let Some(end) = end else { return Err(whole.fault(TreeFault::Bounds)) };
        let mut cursor = Cursor { at: whole.at, bytes: &self.bytes[..end] };
        let count = cursor.size()?;
        // A letter, the length of a name, and a name of one byte.
        if count > length / 3 {
            return Err(cursor.fault(TreeFault::Bounds));
        }
        let mut entries: Vec<CatalogEntry> = Vec::with_capacity(count);
        let (mut sorted, mut start) = (true, directory.start);
        for _ in 0..count {
            let entry = self.entry(&mut cursor, directory, &mut start)?;
            sorted &= entries.last().is_none_or(|last| last.name < entry.name);
            entries.push(entry);
        }
        if cursor.at != end {
            return Err(cursor.fault(TreeFault::Trailing));
        }
        if !sorted && entries.iter().map(|entry| &entry.name).collect::<HashSet<_>>().len() < entries.len() {
            return Err(TreeDecodeError::new(TreeFault::DuplicateName, directory.block as u64));
        }
        Ok(entries)
    }

    /// The end of the block at this position, as its length says.
    fn end_of(&self, block: usize) -> Option<usize> {
        let mut cursor = Cursor { at: block, bytes: &self.bytes };
        let length = cursor.size().ok()?;
        cursor.at.checked_add(length)
    }

    fn entry(
        &self,
        cursor: &mut Cursor<'_>,
        directory: CatalogDirectory,
        start: &mut usize,
    ) -> Result<CatalogEntry, TreeDecodeError> {
        let first = cursor.at;
        let letter = cursor.byte()?;
        let length = cursor.size()?;
        let range = cursor.at..cursor.at.saturating_add(length);
        let name = cursor.bytes.get(range.clone()).ok_or_else(|| cursor.fault(TreeFault::Bounds))?;
        if !is_name(name) {
            return Err(cursor.fault(TreeFault::Name));
        }
        let name = self.bytes.slice(range.clone());
        cursor.at = range.end;
        let kind = match letter {
            b'b' => CatalogKind::BlockDevice,
            b'c' => CatalogKind::CharDevice,
            b'd' => {
                let distance = cursor.size()?;
                let block =
                    directory.block.checked_sub(distance).filter(|block| distance > 0 && *block >= *start);
                let block = block.ok_or_else(|| cursor.fault(TreeFault::Bounds).of(&name))?;
                let depth = directory.depth + 1;
                if depth > MAX_DEPTH {
                    return Err(cursor.fault(TreeFault::Depth).of(&name));
                }
                // Siblings stand in order, each with its own directories before it. So no byte is listed twice.
                let end = self.end_of(block).filter(|end| *end <= directory.block).unwrap_or(block + 1);
                let start = std::mem::replace(start, end);
                CatalogKind::Directory(CatalogDirectory { block, depth, limit: directory.block, start })
            }
            b'f' => CatalogKind::File { size: cursor.unsigned()?, mtime: cursor.signed()? },
            b'h' => CatalogKind::HardLink,
            b'l' => CatalogKind::Symlink,
            b'p' => CatalogKind::Fifo,
            b's' => CatalogKind::Socket,
            _ => return Err(TreeDecodeError::new(TreeFault::Item, first as u64).of(&name)),
        };
        Ok(CatalogEntry { kind, name })
    }
}

/// Place in a block.
pub(super) struct Cursor<'a> {
    pub(super) at: usize,
    pub(super) bytes: &'a [u8],
}

impl Cursor<'_> {
    fn fault(&self, fault: TreeFault) -> TreeDecodeError {
        TreeDecodeError::new(fault, self.at as u64)
    }

    fn byte(&mut self) -> Result<u8, TreeDecodeError> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.fault(TreeFault::Truncated))?;
        self.at += 1;
        Ok(byte)
    }

    /// A number that counts bytes or entries in memory.
    fn size(&mut self) -> Result<usize, TreeDecodeError> {
        usize::try_from(self.unsigned()?).map_err(|_| self.fault(TreeFault::Bounds))
    }

    pub(super) fn unsigned(&mut self) -> Result<u64, TreeDecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            self.add(&mut number, byte, shift)?;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.fault(TreeFault::Number))
    }

    pub(super) fn signed(&mut self) -> Result<i64, TreeDecodeError> {
        let mut number = 0;
        for shift in (0..=70).step_by(7) {
            let byte = self.byte()?;
            if byte == 0 && shift > 0 {
                // The magnitude of the least number is one more than that of the greatest.
                return 0_i64.checked_sub_unsigned(number).ok_or_else(|| self.fault(TreeFault::Number));
            }
            self.add(&mut number, byte, shift)?;
            if byte & 0x80 == 0 {
                return i64::try_from(number).map_err(|_| self.fault(TreeFault::Number));
            }
        }
        Err(self.fault(TreeFault::Number))
    }

    /// Adds seven bits to a number of 64.
    fn add(&self, number: &mut u64, byte: u8, shift: u32) -> Result<(), TreeDecodeError> {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits);
        *number |= shifted.ok_or_else(|| self.fault(TreeFault::Number))?;
        Ok(())
    }
}

//! Writer of catalogs.

use bytes::Bytes;

use crate::pxar::catalog::MAGIC;
use crate::pxar::encode::TreeEncodeError;
use crate::pxar::item::is_name;
use crate::pxar::kind::FileKind;

/// Encoder of a catalog: it turns entries, in the order of the archives, into bytes.
///
/// Directories of the root are the archives, by their full names, such as `root.pxar.didx`. The writer keeps the names in open directories.
///
/// ```
/// use larder::pxar::{CatalogWriter, FileKind};
///
/// let mut catalog = CatalogWriter::new();
/// catalog.enter(b"root.pxar.didx")?;
/// catalog.entry(b"greeting", &FileKind::File { size: 5 }, 1_700_000_000)?;
/// catalog.leave()?;
/// assert!(catalog.finish()?.starts_with(b"\x91\xfd\x60\xf9\xc4\x67\x58\xd5"));
/// # Ok::<(), larder::pxar::TreeEncodeError>(())
/// ```
#[derive(Debug)]
pub struct CatalogWriter {
    /// The root first. Never empty.
    open: Vec<Block>,
    out: Vec<u8>,
    taken: u64,
}

/// A directory that is open.
#[derive(Debug, Default)]
struct Block {
    /// Entries without the distances of directories, which depend on the position of this block.
    entries: Vec<u8>,
    count: u64,
    /// Where distances belong, with the positions of the directories.
    directories: Vec<(usize, u64)>,
    name: Vec<u8>,
}

impl Default for CatalogWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl CatalogWriter {
    /// Starts a catalog.
    pub fn new() -> Self {
        Self { open: vec![Block::default()], out: MAGIC.to_vec(), taken: 0 }
    }

    /// Adds a directory, or an archive, and enters it.
    ///
    /// # Errors
    /// `Name`
    pub fn enter(&mut self, name: &[u8]) -> Result<(), TreeEncodeError> {
        if !is_name(name) {
            return Err(TreeEncodeError::Name);
        }
        self.open.push(Block { name: name.to_vec(), ..Block::default() });
        Ok(())
    }

    /// Leaves the directory that was entered last.
    ///
    /// # Errors
    /// `Nesting` if there is none.
    pub fn leave(&mut self) -> Result<(), TreeEncodeError> {
        if self.open.len() < 2 {
            return Err(TreeEncodeError::Nesting);
        }
        let Some(block) = self.open.pop() else { return Err(TreeEncodeError::Nesting) };
        let position = self.push(&block);
        if let Some(parent) = self.open.last_mut() {
            parent.add(b'd', &block.name);
            parent.directories.push((parent.entries.len(), position));
        }
        Ok(())
    }

    /// Adds an entry other than a directory. Only files have a time, in seconds since 1970.
    ///
    /// # Errors
    /// `Name`; `Kind` for a directory; `Nesting` outside of an archive.
    pub fn entry(&mut self, name: &[u8], kind: &FileKind, mtime: i64) -> Result<(), TreeEncodeError> {
        let letter = match kind {
            FileKind::BlockDevice(_) => b'b',
            FileKind::CharDevice(_) => b'c',
            FileKind::Directory => return Err(TreeEncodeError::Kind),
            FileKind::Fifo => b'p',
            FileKind::File { .. } => b'f',
            FileKind::HardLink { .. } => b'h',
            FileKind::Socket => b's',
            FileKind::Symlink { .. } => b'l',
        };
        if !is_name(name) {
            return Err(TreeEncodeError::Name);
        }
        let [_, .., block] = &mut self.open[..] else { return Err(TreeEncodeError::Nesting) };
        block.add(letter, name);
        if let FileKind::File { size } = kind {
            push_unsigned(*size, &mut block.entries);
            push_signed(mtime, &mut block.entries);
        }
        Ok(())
    }

    /// Adds the archives of another catalog, of which nothing was taken.
    pub(crate) fn append(&mut self, other: Self) {
        // Distances between blocks stay what they are.
        let shift = self.taken + (self.out.len() - MAGIC.len()) as u64;
        self.out.extend_from_slice(other.out.get(MAGIC.len()..).unwrap_or_default());
        let (Some(root), Some(added)) = (self.open.first_mut(), other.open.into_iter().next()) else {
            return;
        };
        let before = root.entries.len();
        root.entries.extend_from_slice(&added.entries);
        root.count += added.count;
        root.directories
            .extend(added.directories.into_iter().map(|(at, position)| (before + at, position + shift)));
    }

    /// Number of bytes that wait to be taken.
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// Takes the bytes since the last call. They follow one another in the catalog.
    pub fn take(&mut self) -> Bytes {
        let bytes = Bytes::from(std::mem::take(&mut self.out));
        self.taken += bytes.len() as u64;
        bytes
    }

    /// Ends the catalog. Returns the bytes that were not taken yet.
    ///
    /// # Errors
    /// `Nesting` if a directory is open.
    pub fn finish(mut self) -> Result<Bytes, TreeEncodeError> {
        let (Some(root), true) = (self.open.pop(), self.open.is_empty()) else {
            return Err(TreeEncodeError::Nesting);
        };
        let position = self.push(&root);
        self.out.extend_from_slice(&position.to_le_bytes());
        Ok(self.out.into())
    }

    /// Writes a block and returns its position.
    fn push(&mut self, block: &Block) -> u64 {
        let position = self.taken + self.out.len() as u64;
        let mut content = Vec::with_capacity(block.entries.len() + 10 + 5 * block.directories.len());
        push_unsigned(block.count, &mut content);
        let mut copied = 0;
        for (at, directory) in &block.directories {
            content.extend_from_slice(&block.entries[copied..*at]);
            push_unsigned(position - directory, &mut content);
            copied = *at;
        }
        content.extend_from_slice(&block.entries[copied..]);
        push_unsigned(content.len() as u64, &mut self.out);
        self.out.extend_from_slice(&content);
        position
    }
}

impl Block {
    fn add(&mut self, letter: u8, name: &[u8]) {
        self.count += 1;
        self.entries.push(letter);
        push_unsigned(name.len() as u64, &mut self.entries);
        self.entries.extend_from_slice(name);
    }
}

pub(super) fn push_unsigned(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(low_bits(number) | 0x80);
        number >>= 7;
    }
    out.push(low_bits(number));
}

pub(super) fn push_signed(number: i64, out: &mut Vec<u8>) {
    let mut magnitude = number.unsigned_abs();
    if number >= 0 {
        return push_unsigned(magnitude, out);
    }
    while magnitude > 0 {
        out.push(low_bits(magnitude) | 0x80);
        magnitude >>= 7;
    }
    out.push(0);
}

/// The lowest seven bits.
fn low_bits(number: u64) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

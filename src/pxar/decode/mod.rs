//! Decoder of archives.

pub(crate) mod head;
pub(crate) mod items;
mod names;
#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

use crate::pxar::decode::head::{ArchiveForm, ContentsAt, EntryHead, EntryPlace, parse_head, parse_start};
use crate::pxar::decode::items::{FaultAt, Items, Parsed, parsed};
use crate::pxar::decode::names::Names;
use crate::pxar::fault::{TreeDecodeError, TreeFault};
use crate::pxar::goodbye::{MIN_TABLE_BYTES, ROW_BYTES};
use crate::pxar::item::{self, HEADER_BYTES, MAX_DEPTH, MAX_PATH_BYTES};
use crate::pxar::kind::FileKind;
use crate::pxar::metadata::Metadata;
use crate::pxar::path::joined;

/// Decoder of an archive from its start to its end. It turns bytes into entries in the order of the archive.
///
/// The caller [feeds](Self::feed) bytes from [`position`](Self::position) on, in pieces of any size, and asks for what is
/// [next](Self::next_part). The position jumps when contents are skipped, so that a caller with random access need not read them. Memory is bounded by
/// the head of an entry and the names in open directories.
///
/// The decoder does not compare lookup tables with the entries: an archive whose tables are damaged can be decoded.
///
/// ```
/// use larder::pxar::{ArchivePart, Decoder, Encoder, Metadata, Stat};
///
/// let directory = Metadata::new(Stat { mode: 0o040_755, ..Stat::default() });
/// let archive = Encoder::unified(&directory)?.finish()?;
/// let mut decoder = Decoder::new();
/// decoder.feed(archive);
/// assert!(matches!(decoder.next_part()?, ArchivePart::Entry(root) if root.path.is_empty()));
/// assert_eq!(decoder.next_part()?, ArchivePart::DirectoryEnd);
/// assert_eq!(decoder.next_part()?, ArchivePart::End);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Bytes,
    /// Contents of the last file that are not decoded yet.
    contents: u64,
    has_root: bool,
    /// Minimum number of bytes for progress.
    needs: usize,
    open: Vec<OpenDirectory>,
    path: Vec<u8>,
    /// Position of the start of the buffer.
    position: u64,
    start: Option<Start>,
}

/// Facts from the start of the archive.
#[derive(Debug)]
struct Start {
    form: ArchiveForm,
    prelude: Bytes,
}

/// A directory between its entry and its end.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    /// Number of children so far; `None` if some may have been missed.
    children: Option<u64>,
    /// `true` if its entry could not be decoded.
    pub(crate) is_lost: bool,
    names: Names,
    /// Length of the path of its parent.
    parent_path: usize,
    /// Position of its name; 0 for the root.
    pub(crate) position: u64,
}

/// A part of an archive.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchivePart {
    /// Contents of the last file, in archives in unified form. Pieces follow one another until its size is reached.
    Contents(Bytes),
    /// The end of the directory that was entered last.
    DirectoryEnd,
    /// The end of the archive, at [`position`](Decoder::position). If the caller has fewer bytes, it has only a part of the archive.
    End,
    /// An entry. A directory is entered: its children follow.
    Entry(Box<ArchiveEntry>),
    /// The decoder needs more bytes.
    NeedsBytes,
}

/// An entry of an archive.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveEntry {
    /// Where its contents are.
    pub contents: EntryContents,
    /// Its kind.
    pub kind: FileKind,
    /// Its metadata. A hard link has those of its target, and none here.
    pub metadata: Metadata,
    /// Its path from the root, without a slash in front; empty for the root.
    pub path: Bytes,
    /// Position of its name, to which hard links lead; 0 for the root.
    pub position: u64,
}

/// Where the contents of an entry are.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryContents {
    /// In the archive, from this position on.
    Archive {
        /// Position of the first byte.
        position: u64,
    },
    /// The entry has none.
    None,
    /// The contents of the entry at this position, to which a hard link leads.
    Of {
        /// Position of that entry.
        position: u64,
    },
    /// In the payload stream.
    Payload {
        /// Position of the [header](crate::pxar::payload_header) in front of the contents.
        offset: u64,
    },
}

impl Decoder {
    /// Starts to decode an archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Position of the next byte to feed.
    pub fn position(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    /// Takes bytes from [`position`](Self::position) on.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.buffer.is_empty() {
            self.buffer = bytes;
            return;
        }
        // Usually the beginning of one head is joined with a whole chunk.
        let buffer = std::mem::take(&mut self.buffer);
        let mut joined = buffer.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        joined.extend_from_slice(&bytes);
        self.buffer = joined.freeze();
    }

    /// The prelude of an archive in split form, in general JSON with exclude patterns; `None` before the root is decoded, and without one.
    pub fn prelude(&self) -> Option<&Bytes> {
        self.start.as_ref().map(|start| &start.prelude).filter(|prelude| !prelude.is_empty())
    }

    /// Returns `true` if contents are in a payload stream; `false` before the root is decoded.
    pub fn is_split(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.form == ArchiveForm::Split)
    }

    /// Decodes the next part.
    ///
    /// # Errors
    /// Any [`TreeFault`] except `Table`; the decoder stays where it is.
    pub fn next_part(&mut self) -> Result<ArchivePart, TreeDecodeError> {
        if self.contents > 0 {
            return Ok(self.next_contents());
        }
        if self.buffer.len() < self.needs {
            return Ok(ArchivePart::NeedsBytes);
        }
        if self.start.is_none()
            && let Some(needs) = self.read_start()?
        {
            return Ok(needs);
        }
        if !self.has_root {
            return self.next_entry(EntryPlace::Root);
        }
        if self.open.is_empty() {
            let is_end = self.buffer.is_empty();
            return if is_end { Ok(ArchivePart::End) } else { Err(self.fault(TreeFault::Trailing, 0)) };
        }
        let Some(kind) = self.buffer.first_chunk::<8>() else { return Ok(self.need(HEADER_BYTES)) };
        match u64::from_le_bytes(*kind) {
            item::GOODBYE => self.next_end(),
            _ => self.next_entry(EntryPlace::Child),
        }
    }

    /// Skips what is left of the contents of the last file. [`position`](Self::position) may jump.
    pub fn skip_contents(&mut self) {
        self.skip(self.contents);
        self.contents = 0;
    }

    /// The open directories, the root first.
    pub(crate) fn directories(&self) -> &[OpenDirectory] {
        &self.open
    }

    /// Starts at the children of a directory with this path, or of the root. Positions are those of the names on the way.
    pub(crate) fn within(form: ArchiveForm, names: &[(&[u8], u64)]) -> Self {
        let start = Some(Start { form, prelude: Bytes::new() });
        let mut decoder = Self { has_root: true, start, ..Self::default() };
        decoder.enter(b"", 0);
        for (name, position) in names {
            decoder.enter(name, *position);
        }
        decoder
    }

    /// Enters a directory whose entry cannot be decoded.
    pub(crate) fn enter_lost(&mut self, name: &[u8], position: u64) {
        self.enter(name, position);
        if let Some(directory) = self.open.last_mut() {
            directory.is_lost = true;
        }
    }

    fn enter(&mut self, name: &[u8], position: u64) {
        let parent_path = self.path.len();
        self.path = self.path_of(name);
        let names = Names::default();
        self.open.push(OpenDirectory { children: None, is_lost: false, names, parent_path, position });
    }

    /// The name of the open directory with this index; empty for the root.
    pub(crate) fn name_of(&self, index: usize) -> Option<&[u8]> {
        let start = self.open.get(index)?.parent_path;
        let end = self.open.get(index + 1).map_or(self.path.len(), |inner| inner.parent_path);
        let name = self.path.get(start..end)?;
        Some(name.strip_prefix(b"/").unwrap_or(name))
    }

    /// Number of bytes that were fed and not decoded. A caller that feeds as many again bounds the work on a head in many pieces.
    pub(crate) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Length of the path of the innermost of the first `depth` open directories.
    pub(crate) fn path_bytes(&self, depth: usize) -> usize {
        self.open.get(depth).map_or(self.path.len(), |inner| inner.parent_path)
    }

    /// Position of the item that is decoded next.
    pub(crate) fn item_position(&self) -> u64 {
        self.position
    }

    /// Goes on at an entry or a table behind a part that cannot be decoded. The first `depth` directories stay open.
    pub(crate) fn resume(&mut self, depth: usize, position: u64) {
        while self.open.len() > depth
            && let Some(directory) = self.open.pop()
        {
            self.path.truncate(directory.parent_path);
        }
        if let Some(directory) = self.open.last_mut() {
            directory.children = None;
        }
        self.buffer = Bytes::new();
        (self.contents, self.needs, self.position) = (0, 0, position);
    }

    /// Path of the innermost directory.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    fn next_contents(&mut self) -> ArchivePart {
        let length = usize::try_from(self.contents).unwrap_or(usize::MAX).min(self.buffer.len());
        if length == 0 {
            return ArchivePart::NeedsBytes;
        }
        let piece = self.buffer.split_to(length);
        self.position += length as u64;
        self.contents -= length as u64;
        ArchivePart::Contents(piece)
    }

    /// Decodes what stands before the root, unless it needs more bytes.
    fn read_start(&mut self) -> Result<Option<ArchivePart>, TreeDecodeError> {
        match parse_start(&self.buffer).map_err(|fault| self.located(fault))? {
            Parsed::Needs(bytes) => Ok(Some(self.need(bytes))),
            Parsed::Done(start) => {
                self.skip(start.bytes as u64);
                self.start = Some(Start { form: start.form, prelude: start.prelude });
                Ok(None)
            }
        }
    }

    fn next_entry(&mut self, place: EntryPlace) -> Result<ArchivePart, TreeDecodeError> {
        let form = if self.is_split() { ArchiveForm::Split } else { ArchiveForm::Unified };
        match parse_head(&self.buffer, form, place).map_err(|fault| self.located(fault))? {
            Parsed::Needs(bytes) => Ok(self.need(bytes)),
            Parsed::Done(head) => self.entry(head, place),
        }
    }

    fn entry(&mut self, head: EntryHead, place: EntryPlace) -> Result<ArchivePart, TreeDecodeError> {
        let parent_path = self.path.len();
        let separator = usize::from(parent_path > 0);
        if parent_path + separator + head.name.len() > MAX_PATH_BYTES {
            return Err(self.fault(TreeFault::Depth, 0));
        }
        let position = if place == EntryPlace::Root { 0 } else { self.position };
        let contents = match head.contents {
            ContentsAt::Here => EntryContents::Archive { position: self.position + head.bytes as u64 },
            ContentsAt::Link(distance) => {
                let target = position.checked_sub(distance).ok_or_else(|| self.fault(TreeFault::Link, 0))?;
                EntryContents::Of { position: target }
            }
            ContentsAt::None => EntryContents::None,
            ContentsAt::Payload(offset) => EntryContents::Payload { offset },
        };
        let here = match (&head.kind, head.contents) {
            (FileKind::File { size }, ContentsAt::Here) => *size,
            _ => 0,
        };
        let end = (self.position + head.bytes as u64).checked_add(here);
        if end.is_none() {
            return Err(self.fault(TreeFault::Bounds, 0));
        }
        let is_directory = head.kind == FileKind::Directory;
        if is_directory && self.open.len() >= MAX_DEPTH && !mutated!("pxar-has-no-depth-limit") {
            return Err(self.fault(TreeFault::Depth, 0));
        }
        if let Some(directory) = self.open.last_mut() {
            if !directory.names.insert(&head.name) {
                return Err(self.fault(TreeFault::DuplicateName, 0).of(&self.path_of(&head.name)));
            }
            directory.children = directory.children.map(|children| children + 1);
        }
        let path = Bytes::from(self.path_of(&head.name));
        if is_directory {
            self.path.clear();
            self.path.extend_from_slice(&path);
            let names = Names::default();
            let directory = OpenDirectory { children: Some(0), is_lost: false, names, parent_path, position };
            self.open.push(directory);
        }
        self.skip(head.bytes as u64);
        self.contents = here;
        self.has_root = true;
        let EntryHead { kind, metadata, .. } = head;
        let entry = ArchiveEntry { contents, kind, metadata, path, position };
        Ok(ArchivePart::Entry(Box::new(entry)))
    }

    fn next_end(&mut self) -> Result<ArchivePart, TreeDecodeError> {
        let header =
            parsed(Items::new(&self.buffer, HEADER_BYTES).header()).map_err(|fault| self.located(fault))?;
        let Parsed::Done(header) = header else { return Ok(self.need(HEADER_BYTES)) };
        let size = header.content.saturating_add(HEADER_BYTES as u64);
        let children = size.checked_sub(MIN_TABLE_BYTES).filter(|rows| rows.is_multiple_of(ROW_BYTES as u64));
        let children = children.map(|rows| rows / ROW_BYTES as u64);
        let counted = self.open.last().and_then(|directory| directory.children);
        if children.is_none() || counted.is_some_and(|counted| children != Some(counted)) {
            return Err(self.fault(TreeFault::Content, 0));
        }
        if self.position.checked_add(size).is_none() {
            return Err(self.fault(TreeFault::Bounds, 0));
        }
        if let Some(directory) = self.open.pop() {
            self.path.truncate(directory.parent_path);
        }
        self.skip(size);
        Ok(ArchivePart::DirectoryEnd)
    }

    /// Passes over bytes, which may not be there yet.
    fn skip(&mut self, bytes: u64) {
        let here = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.buffer.len());
        let _ = self.buffer.split_to(here);
        self.position += bytes;
        self.needs = 0;
    }

    fn need(&mut self, bytes: usize) -> ArchivePart {
        self.needs = bytes;
        ArchivePart::NeedsBytes
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        joined(&self.path, name)
    }

    fn located(&self, fault: FaultAt) -> TreeDecodeError {
        self.fault(fault.fault, fault.at)
    }

    /// A fault in the entry at the position, of which the directory is known.
    fn fault(&self, fault: TreeFault, at: usize) -> TreeDecodeError {
        TreeDecodeError::new(fault, self.position + at as u64).of(&self.path)
    }
}

//! Sequential reads of whole packs.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::format::blob::DecodeError;
use crate::format::larder::pack::directory::{PackDirectory, PackTail};
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{
    DIRECTORY_ENTRY_BYTES, ENTRY_HEADER_BYTES, ENTRY_MAGIC, HEADER_BYTES, MAX_PACK_ENTRIES, PackClass,
    PackEntry, PackHeader, TRAILER_BYTES,
};

/// Bytes at the end of a pack that contain any directory.
const MAX_TAIL_BYTES: usize = (TRAILER_BYTES + DIRECTORY_ENTRY_BYTES * MAX_PACK_ENTRIES) as usize;

/// Reads a pack from front to back, in pieces of any size.
///
/// The headers of the entries alone lead from one to the next; neither directory nor trailer has to exist. Where no valid header of an entry
/// is, the scanner looks for the next one byte by byte: magic number, length and checksum must fit, and the checksum is bound to session and
/// offset. It reports the bytes in between as [`PackPart::Damage`]. A damaged header costs the blob behind it; the directory at the end
/// says where that blob is. A damaged blob costs nothing else, because its length is in the header.
///
/// A scanner that is fed only when it asks keeps at most one entry and one piece, 40 bytes for each entry, and twice the longest
/// directory, which has 5 MiB.
#[derive(Debug)]
pub(crate) struct PackScanner {
    class: Option<PackClass>,
    /// Parts that were found and not yet returned.
    found: VecDeque<PackPart>,
    is_complete: bool,
    name: PackName,
    /// Bytes that are no entry, since `Place::Lost`, or the last of them.
    passed: Vec<u8>,
    place: Place,
    seen: Vec<PackEntry>,
    unread: Unread,
}

/// A part of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PackPart {
    /// Bytes between entries that are neither an entry nor the directory.
    Damage {
        /// Their place.
        range: Range<u64>,
    },
    /// The end of the pack. Nothing follows.
    End {
        /// The directory, if it is valid and has all entries that were read. If it is not, bytes behind the last entry are reported by this
        /// error and not as damage.
        directory: Result<PackDirectory, DecodeError>,
    },
    /// A chunk. The blob was not looked at.
    Entry {
        /// The stored chunk. It shares memory with the piece if it lies in one.
        blob: Bytes,
        /// Its place.
        entry: PackEntry,
    },
    /// The scanner needs another piece, or the call of [`end`](PackScanner::end).
    NeedsBytes,
}

/// The part that is expected at the position.
#[derive(Clone, Copy, Debug)]
enum Place {
    Ended,
    Entry,
    Header,
    /// No valid header was at this offset.
    Lost(u64),
}

impl PackScanner {
    /// A scanner at the start of a pack.
    pub(crate) fn new(name: PackName) -> Self {
        Self {
            class: None,
            found: VecDeque::new(),
            is_complete: false,
            name,
            passed: Vec::new(),
            place: Place::Header,
            seen: Vec::new(),
            unread: Unread::default(),
        }
    }

    /// Adds the next bytes of the pack.
    pub(crate) fn feed(&mut self, piece: Bytes) {
        self.unread.push(piece);
    }

    /// States that the pack has no more bytes.
    pub(crate) fn end(&mut self) {
        self.is_complete = true;
    }

    /// The class of the pack, once its header was read; `None` if the header is damaged.
    pub(crate) fn class(&self) -> Option<PackClass> {
        self.class
    }

    /// The next part.
    ///
    /// # Errors
    /// `Field` if the header is that of a pack of another writer: the pack is not the one of this name.
    pub(crate) fn next_part(&mut self) -> Result<PackPart, DecodeError> {
        loop {
            if let Some(part) = self.found.pop_front() {
                return Ok(part);
            }
            let part = match self.place {
                Place::Header => self.header()?,
                Place::Entry => self.entry(),
                Place::Lost(start) => self.search(start),
                Place::Ended => Some(PackPart::NeedsBytes),
            };
            if let Some(part) = part {
                return Ok(part);
            }
        }
    }

    fn header(&mut self) -> Result<Option<PackPart>, DecodeError> {
        let Some(header) = self.unread.peek::<{ HEADER_BYTES as usize }>() else {
            return Ok(self.wait_or_lose());
        };
        match PackHeader::parse(&header) {
            Ok(header) if header.session != self.name.session => {
                return Err(DecodeError::Field { offset: 12, name: "session of the pack" });
            }
            Ok(header) => {
                self.class = Some(header.class);
                self.unread.skip(HEADER_BYTES as usize);
                self.place = Place::Entry;
            }
            Err(_) => self.lose(),
        }
        Ok(None)
    }

    fn entry(&mut self) -> Option<PackPart> {
        let Some(entry) = self.peek_entry() else {
            if self.unread.len() < ENTRY_HEADER_BYTES as usize {
                return self.wait_or_lose();
            }
            self.lose();
            return None;
        };
        if self.unread.len() < (ENTRY_HEADER_BYTES + entry.len) as usize {
            return self.wait_or_lose();
        }
        self.unread.skip(ENTRY_HEADER_BYTES as usize);
        let blob = self.unread.take(entry.len as usize);
        self.seen.push(entry);
        Some(PackPart::Entry { blob, entry })
    }

    /// The entry whose header is at the position.
    fn peek_entry(&self) -> Option<PackEntry> {
        let offset = u32::try_from(self.unread.position).ok()?;
        PackEntry::parse(&self.name.session, offset, &self.unread.peek()?)
            .filter(|_| self.seen.len() < MAX_PACK_ENTRIES as usize)
    }

    fn wait_or_lose(&mut self) -> Option<PackPart> {
        if !self.is_complete {
            return Some(PackPart::NeedsBytes);
        }
        self.lose();
        None
    }

    /// Begins a search behind the position, where no whole entry is.
    fn lose(&mut self) {
        self.place = Place::Lost(self.unread.position);
        self.pass(1);
    }

    /// Looks for the header of an entry.
    fn search(&mut self, start: u64) -> Option<PackPart> {
        loop {
            let Some(piece) = self.unread.first() else { return self.end_search(start) };
            let candidate = (0..piece.len()).find(|at| may_start(&piece[*at..]));
            self.pass(candidate.unwrap_or(piece.len()));
            if candidate.is_none() {
                continue;
            }
            if self.unread.len() < ENTRY_HEADER_BYTES as usize && !self.is_complete {
                return Some(PackPart::NeedsBytes);
            }
            if self.peek_entry().is_some() {
                self.passed = Vec::new();
                self.place = Place::Entry;
                return Some(PackPart::Damage { range: start..self.unread.position });
            }
            self.pass(1);
        }
    }

    fn end_search(&mut self, start: u64) -> Option<PackPart> {
        if !self.is_complete {
            return Some(PackPart::NeedsBytes);
        }
        let directory = self.directory();
        if let Ok(directory) = &directory
            && start < directory.offset().into()
        {
            self.found.push_back(PackPart::Damage { range: start..directory.offset().into() });
        }
        self.found.push_back(PackPart::End { directory });
        self.place = Place::Ended;
        None
    }

    /// The directory in the bytes behind the last entry.
    fn directory(&self) -> Result<PackDirectory, DecodeError> {
        let size = self.unread.position;
        let tail = &self.passed[self.passed.len().saturating_sub(MAX_TAIL_BYTES)..];
        let PackTail::Directory(directory) = PackDirectory::parse(&self.name, size, tail)? else {
            return Err(DecodeError::Field { offset: size, name: "offset of the directory" });
        };
        let mut listed = directory.entries().iter();
        if !self.seen.iter().all(|seen| listed.any(|entry| entry == seen)) {
            return Err(DecodeError::Field { offset: directory.offset().into(), name: "entries" });
        }
        Ok(directory)
    }

    /// Passes over bytes that are no entry, and keeps the last of them.
    fn pass(&mut self, count: usize) {
        if self.passed.len() > 2 * MAX_TAIL_BYTES {
            self.passed.drain(..self.passed.len() - MAX_TAIL_BYTES);
        }
        let Self { passed, unread, .. } = self;
        unread.read(count, |part| passed.extend_from_slice(part));
    }
}

/// Returns `true` if an entry may start here, where a piece has these bytes left.
fn may_start(rest: &[u8]) -> bool {
    let known = rest.len().min(ENTRY_MAGIC.len());
    rest[..known] == ENTRY_MAGIC[..known]
}

/// Bytes that were fed and not read. No piece is empty.
#[derive(Debug, Default)]
struct Unread {
    len: usize,
    pieces: VecDeque<Bytes>,
    position: u64,
}

impl Unread {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn first(&self) -> Option<&Bytes> {
        self.pieces.front()
    }

    /// The next bytes, which stay unread; `None` if there are fewer.
    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        if let Some(bytes) = self.pieces.front().and_then(|piece| piece.first_chunk()) {
            return Some(*bytes);
        }
        let mut bytes = [0; N];
        let unread = self.pieces.iter().flat_map(|piece| piece.iter());
        bytes.iter_mut().zip(unread).for_each(|(byte, next)| *byte = *next);
        Some(bytes)
    }

    fn skip(&mut self, count: usize) {
        self.read(count, |_| {});
    }

    /// Takes that many bytes, without a copy if they lie in one piece.
    fn take(&mut self, count: usize) -> Bytes {
        if let Some(piece) = self.pieces.front().filter(|piece| piece.len() >= count) {
            let taken = piece.slice(..count);
            self.skip(count);
            return taken;
        }
        let mut taken = Vec::with_capacity(count.min(self.len));
        self.read(count, |part| taken.extend_from_slice(part));
        taken.into()
    }

    /// Reads that many bytes, or all if there are fewer.
    fn read(&mut self, count: usize, mut to: impl FnMut(&[u8])) {
        let mut left = count;
        while left > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let part = piece.split_to(left.min(piece.len()));
            to(&part);
            left -= part.len();
            self.len -= part.len();
            self.position += part.len() as u64;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

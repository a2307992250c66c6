//! Cursor over items.

use crate::pxar::fault::TreeFault;
use crate::pxar::item::HEADER_BYTES;

/// A decoded value, or the number of bytes from the same start that decoding needs at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed<T> {
    Done(T),
    Needs(usize),
}

/// A violation and its distance from the start of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultAt {
    pub(crate) fault: TreeFault,
    pub(crate) at: usize,
}

/// Why decoding stops early.
#[derive(Debug)]
pub(super) enum Stop {
    Fault(FaultAt),
    Needs(usize),
}

/// Turns a stop for lack of bytes into a result.
pub(super) fn parsed<T>(result: Result<T, Stop>) -> Result<Parsed<T>, FaultAt> {
    match result {
        Ok(value) => Ok(Parsed::Done(value)),
        Err(Stop::Fault(fault)) => Err(fault),
        Err(Stop::Needs(bytes)) => Ok(Parsed::Needs(bytes)),
    }
}

/// The header of an item.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: u64,
    /// Bytes of the content.
    pub(super) content: u64,
}

/// A place in a sequence of items.
#[derive(Debug)]
pub(super) struct Items<'a> {
    at: usize,
    bytes: &'a [u8],
    /// Maximum number of bytes to ask for.
    limit: usize,
}

impl<'a> Items<'a> {
    pub(super) fn new(bytes: &'a [u8], limit: usize) -> Self {
        Self { at: 0, bytes, limit }
    }

    /// Distance of the next item from the start.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn fault(&self, fault: TreeFault) -> Stop {
        Stop::Fault(FaultAt { fault, at: self.at })
    }

    /// The header of the next item, which stays the next.
    pub(super) fn header(&self) -> Result<Header, Stop> {
        let header = self.slice(0, HEADER_BYTES)?;
        let (kind, size) = (number(header, 0), number(header, 1));
        let content = size.checked_sub(HEADER_BYTES as u64);
        Ok(Header { kind, content: content.ok_or_else(|| self.fault(TreeFault::Content))? })
    }

    /// Passes over the header of the next item.
    pub(super) fn skip_header(&mut self) {
        self.at += HEADER_BYTES;
    }

    /// The content of the next item, if its length is permitted. The item behind it is the next.
    pub(super) fn content(&mut self, header: Header, least: usize, most: usize) -> Result<&'a [u8], Stop> {
        let length = usize::try_from(header.content).ok().filter(|length| (least..=most).contains(length));
        let length = length.ok_or_else(|| self.fault(TreeFault::Content))?;
        let content = self.slice(HEADER_BYTES, length)?;
        self.at += HEADER_BYTES + length;
        Ok(content)
    }

    /// The content of the next item: numbers.
    pub(super) fn numbers<const N: usize>(&mut self, header: Header) -> Result<[u64; N], Stop> {
        let content = self.content(header, 8 * N, 8 * N)?;
        Ok(std::array::from_fn(|index| number(content, index)))
    }

    fn slice(&self, from: usize, length: usize) -> Result<&'a [u8], Stop> {
        let start = self.at + from;
        let end = start.checked_add(length).filter(|end| *end <= self.limit);
        let end = end.ok_or_else(|| self.fault(TreeFault::Bounds))?;
        self.bytes.get(start..end).ok_or(Stop::Needs(end))
    }
}

/// The number with this index in a sequence of numbers.
pub(super) fn number(bytes: &[u8], index: usize) -> u64 {
    let number = bytes.as_chunks::<8>().0.get(index);
    number.map_or(0, |number| u64::from_le_bytes(*number))
}

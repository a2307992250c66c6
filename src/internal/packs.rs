//! Packs and index segments.

use std::ops::Range;

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::larder::pack::directory::{PackDirectory, PackTail};
use crate::format::larder::pack::name::{PackName, SessionId};
use crate::format::larder::pack::scanner::{PackPart, PackScanner};
use crate::format::larder::pack::{PackClass, PackEntry};
use crate::format::larder::segment::builder::SegmentBuilder;
use crate::format::larder::segment::head::{HeadPart, SegmentHead};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::{Segment, SegmentPack};
use crate::format::layout::Key;

/// Session of all packs and segments here.
pub const SESSION: [u8; 16] = [0xa5; 16];

/// Place of a chunk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The chunk.
    pub digest: Digest,
    /// Number of the pack in the table of its segment.
    pub pack: u32,
    /// Offset of the blob in the pack.
    pub offset: u32,
    /// Offset of the first byte behind the blob.
    pub end: u32,
}

/// The result of a scan of a pack.
#[derive(Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Passed bytes.
    pub damage: Vec<Range<u64>>,
    /// The entries of the directory.
    pub directory: Result<Vec<Place>, DecodeError>,
    /// The entries with their blobs.
    pub entries: Vec<(Place, Bytes)>,
}

/// The path of a pack or a segment, parsed and written again.
pub fn rewritten_path(path: &str) -> Option<String> {
    let pack = PackName::from_path(path).map(|name| name.path());
    pack.or_else(|| SegmentName::from_path(path).map(|name| name.path()))
}

/// The entries of pack 7, by the last bytes of it.
///
/// # Errors
/// As the parser; `Truncated` if more bytes are needed.
pub fn directory(pack_bytes: u64, suffix: &[u8]) -> Result<Vec<Place>, DecodeError> {
    match PackDirectory::parse(&pack_name(), pack_bytes, suffix)? {
        PackTail::Directory(directory) => Ok(places(&directory)),
        PackTail::Needs { suffix_bytes } => {
            Err(DecodeError::Truncated { want: suffix_bytes.into(), have: suffix.len() as u64 })
        }
    }
}

/// Scans pack 7 in pieces of this length.
///
/// # Errors
/// As the scanner.
pub fn scan(pack: &[u8], piece: usize) -> Result<Scanned, DecodeError> {
    let (mut scanner, mut pieces) = (PackScanner::new(pack_name()), pack.chunks(piece));
    let (mut damage, mut entries) = (Vec::new(), Vec::new());
    loop {
        match scanner.next_part()? {
            PackPart::Damage { range } => damage.push(range),
            PackPart::End { directory } => {
                return Ok(Scanned {
                    damage,
                    directory: directory.map(|directory| places(&directory)),
                    entries,
                });
            }
            PackPart::Entry { blob, entry } => entries.push((place(&entry, 0), blob)),
            PackPart::NeedsBytes => match pieces.next() {
                Some(piece) => scanner.feed(Bytes::copy_from_slice(piece)),
                None => scanner.end(),
            },
        }
    }
}

/// All records of segment 3.
///
/// # Errors
/// As the parser.
pub fn records(segment: &Bytes) -> Result<Vec<Place>, DecodeError> {
    Ok(records_of(Segment::parse(&segment_name(), segment)?.records()))
}

/// All records of segment 3, slot by slot.
///
/// # Errors
/// As the parser.
pub fn records_by_slots(segment: &Bytes) -> Result<Vec<Place>, DecodeError> {
    let (mut have, all) = (0, segment.len() as u64);
    let head = loop {
        let prefix = segment.slice(..usize::try_from(have).unwrap_or(usize::MAX).min(segment.len()));
        match SegmentHead::parse(&segment_name(), all, &prefix)? {
            HeadPart::Head(head) => break head,
            HeadPart::Needs { prefix_bytes } if prefix_bytes > have && prefix_bytes <= all => {
                have = prefix_bytes;
            }
            HeadPart::Needs { prefix_bytes } => {
                return Err(DecodeError::Truncated { want: prefix_bytes, have });
            }
        }
    };
    let mut found = Vec::new();
    for slot in 0..head.slots() {
        let range = head.range_of(&(slot..slot + 1));
        let in_memory = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = segment.slice(in_memory(range.start)..in_memory(range.end));
        found.extend(records_of(&head.records(slot..slot + 1, bytes)?));
    }
    Ok(found)
}

/// The key of a pack of [`SESSION`].
pub fn pack_key(n: u32) -> Option<Key> {
    Some(Key::Pack(PackName { session: SessionId::from_bytes(SESSION), n }))
}

/// A segment of [`SESSION`] with a record for each pack, number within the pack, and chunk; all blobs have this length.
pub fn segment(
    n: u32,
    pack_bytes: usize,
    length: usize,
    records: impl Iterator<Item = (u32, u64, Digest)>,
) -> Option<(Key, Bytes)> {
    let session = SessionId::from_bytes(SESSION);
    let (bytes, len) = (u32::try_from(pack_bytes).ok()?, u32::try_from(length).ok()?);
    let name = SegmentName { session, n };
    let mut builder = SegmentBuilder::new(name);
    let mut last = None;
    for (n, at, digest) in records {
        let number = match last {
            Some((last, number)) if last == n => number,
            _ => {
                let name = PackName { session, n };
                builder.add_pack(SegmentPack { bytes, class: PackClass::Data, name }).ok()?
            }
        };
        last = Some((n, number));
        let offset = 1024 + u32::try_from(at).ok()?.checked_mul(len + 64)?;
        builder.push(number, PackEntry { digest, len, offset }).ok()?;
    }
    let parts = builder.finish().ok()?.parts;
    Some((Key::Segment(name), parts.iter().flatten().copied().collect()))
}

fn pack_name() -> PackName {
    PackName { session: SessionId::from_bytes(SESSION), n: 7 }
}

fn segment_name() -> SegmentName {
    SegmentName { session: SessionId::from_bytes(SESSION), n: 3 }
}

fn place(entry: &PackEntry, pack: u32) -> Place {
    Place { digest: entry.digest, pack, offset: entry.offset, end: entry.end() }
}

fn places(directory: &PackDirectory) -> Vec<Place> {
    directory.entries().iter().map(|entry| place(entry, 0)).collect()
}

fn records_of(records: &SlotRecords) -> Vec<Place> {
    records.iter().map(|record| place(&record.entry, record.pack)).collect()
}

pub use self::open::packed;

mod open {
    use std::sync::Arc;

    use crate::backend::Backend;
    use crate::packs::{Limits, PackedBackend};

    /// The objects of a packed store, past its rules, by a handle of its own.
    ///
    /// # Panics
    /// If the store cannot be read.
    #[expect(clippy::unwrap_used, reason = "for tests")]
    pub async fn packed(backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let limits =
            Limits { index_bytes: 8 << 20, local: None, memory_bytes: 32 << 20, target_bytes: 8 << 20 };
        Arc::new(PackedBackend::open(backend, "", limits).await.unwrap())
    }
}

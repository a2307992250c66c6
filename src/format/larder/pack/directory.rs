//! The end of a pack: its directory and its trailer.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::format::blob::DecodeError;
use crate::format::larder::fields::Fields;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{
    DIRECTORY_ENTRY_BYTES, ENTRY_HEADER_BYTES, HEADER_BYTES, MAX_PACK_BYTES, MAX_PACK_ENTRIES,
    MIN_PACK_BYTES, PackClass, PackEntry, PackHeader, TRAILER_BYTES, TRAILER_MAGIC, VERSION,
};

/// Bytes of the trailer before its checksum.
const CHECKED_BYTES: usize = 32;

/// The entries of a pack, in order. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackDirectory {
    class: PackClass,
    entries: Vec<PackEntry>,
    name: PackName,
    pack_bytes: u32,
}

/// Contents of the last bytes of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PackTail {
    /// The whole directory.
    Directory(PackDirectory),
    /// Only a part of the directory, which starts further ahead.
    Needs {
        /// Number of bytes at the end of the pack that contain it.
        suffix_bytes: u32,
    },
}

impl PackDirectory {
    /// The directory of these entries, which follow one another; `None` if there are none.
    pub(super) fn new(name: PackName, class: PackClass, entries: Vec<PackEntry>) -> Option<Self> {
        let count = u32::try_from(entries.len()).ok()?;
        let pack_bytes = entries.last()?.end() + count * DIRECTORY_ENTRY_BYTES + TRAILER_BYTES;
        Some(Self { class, entries, name, pack_bytes })
    }

    /// Reads the last bytes of a pack, 64 or more. A suffix of 64 KiB contains the directories of most packs.
    ///
    /// Nothing is allocated before the checksum fits.
    ///
    /// # Errors
    /// `Checksum` also if the pack is another one; `Field`, `Magic`, `Truncated`.
    pub(crate) fn parse(name: &PackName, pack_bytes: u64, suffix: &[u8]) -> Result<PackTail, DecodeError> {
        let size = u32::try_from(pack_bytes).ok().filter(|size| *size <= MAX_PACK_BYTES);
        let size = size.ok_or(DecodeError::Field { offset: 0, name: "size of the pack" })?;
        let truncated = |want: u32, have: u64| DecodeError::Truncated { want: want.into(), have };
        if size < MIN_PACK_BYTES {
            return Err(truncated(MIN_PACK_BYTES, pack_bytes));
        }
        let suffix_bytes = suffix.len() as u64;
        let (rest, trailer) = suffix
            .split_last_chunk::<{ TRAILER_BYTES as usize }>()
            .filter(|_| suffix_bytes <= pack_bytes)
            .ok_or_else(|| truncated(TRAILER_BYTES, suffix_bytes))?;
        let trailer_offset = size - TRAILER_BYTES;
        let parsed = Trailer::parse(trailer, name, trailer_offset)?;
        let directory_bytes = trailer_offset - parsed.directory;
        let Some(start) = rest.len().checked_sub(directory_bytes as usize) else {
            return Ok(PackTail::Needs { suffix_bytes: directory_bytes + TRAILER_BYTES });
        };
        let directory = rest.get(start..).unwrap_or_default();
        if checksum(name, parsed.class, directory, trailer)[..] != trailer[CHECKED_BYTES..] {
            return Err(DecodeError::Checksum);
        }
        let entries = parse_entries(directory, parsed.directory)?;
        let directory = Self { class: parsed.class, entries, name: *name, pack_bytes: size };
        Ok(PackTail::Directory(directory))
    }

    /// The directory and the trailer, as they end the pack.
    pub(crate) fn encode(&self) -> Bytes {
        let mut tail = Vec::with_capacity(self.tail_bytes() as usize);
        for entry in &self.entries {
            tail.extend(entry.digest.as_bytes());
            tail.extend(entry.offset.to_le_bytes());
            tail.extend(entry.len.to_le_bytes());
        }
        let count = tail.len() / DIRECTORY_ENTRY_BYTES as usize;
        let mut trailer = [0; TRAILER_BYTES as usize];
        trailer[..8].copy_from_slice(&TRAILER_MAGIC);
        trailer[8..10].copy_from_slice(&VERSION.to_le_bytes());
        trailer[10..12].copy_from_slice(&self.class.code().to_le_bytes());
        trailer[12..16].copy_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        trailer[16..24].copy_from_slice(&u64::from(self.offset()).to_le_bytes());
        trailer[24..32].copy_from_slice(&u64::from(self.name.n).to_le_bytes());
        let checksum = checksum(&self.name, self.class, &tail, &trailer);
        trailer[CHECKED_BYTES..].copy_from_slice(&checksum);
        tail.extend(trailer);
        tail.into()
    }

    /// The class of the pack.
    pub(crate) fn class(&self) -> PackClass {
        self.class
    }

    /// All entries in the order of the pack.
    pub(crate) fn entries(&self) -> &[PackEntry] {
        &self.entries
    }

    /// All entries in the order of the pack.
    pub(crate) fn into_entries(self) -> Vec<PackEntry> {
        self.entries
    }

    /// The name of the pack.
    pub(crate) fn name(&self) -> PackName {
        self.name
    }

    /// Offset of the directory: the end of the last blob.
    pub(crate) fn offset(&self) -> u32 {
        self.pack_bytes - self.tail_bytes()
    }

    /// Size of the pack in bytes.
    pub(crate) fn pack_bytes(&self) -> u32 {
        self.pack_bytes
    }

    /// Bytes of directory and trailer. At most [`MAX_PACK_ENTRIES`] entries, so it fits.
    fn tail_bytes(&self) -> u32 {
        let count = u32::try_from(self.entries.len()).unwrap_or(MAX_PACK_ENTRIES);
        count * DIRECTORY_ENTRY_BYTES + TRAILER_BYTES
    }
}

/// Fields of a trailer.
struct Trailer {
    class: PackClass,
    /// Offset of the directory. It and the trailer fill the rest of the pack.
    directory: u32,
}

impl Trailer {
    fn parse(
        trailer: &[u8; TRAILER_BYTES as usize],
        name: &PackName,
        offset: u32,
    ) -> Result<Self, DecodeError> {
        let invalid =
            |at: u32, name| move || DecodeError::Field { offset: u64::from(offset) + u64::from(at), name };
        let mut fields = Fields::of(trailer);
        fields.array().filter(|magic| *magic == TRAILER_MAGIC).ok_or(DecodeError::Magic)?;
        fields.u16().filter(|version| *version == VERSION).ok_or_else(invalid(8, "version"))?;
        let class = fields.u16().and_then(PackClass::of_code).ok_or_else(invalid(10, "class"))?;
        let count = fields.u32().filter(|count| (1..=MAX_PACK_ENTRIES).contains(count));
        let count = count.ok_or_else(invalid(12, "number of entries"))?;
        let directory = offset.checked_sub(count * DIRECTORY_ENTRY_BYTES);
        let directory = directory.filter(|directory| fields.u64() == Some(u64::from(*directory)));
        let directory = directory.ok_or_else(invalid(16, "offset of the directory"))?;
        fields.u64().filter(|n| *n == u64::from(name.n)).ok_or_else(invalid(24, "number of the pack"))?;
        Ok(Self { class, directory })
    }
}

fn checksum(
    name: &PackName,
    class: PackClass,
    directory: &[u8],
    trailer: &[u8; TRAILER_BYTES as usize],
) -> [u8; 32] {
    let header = PackHeader { class, session: name.session }.encode();
    let checksum = Sha256::new().chain_update(header).chain_update(directory);
    checksum.chain_update(&trailer[..CHECKED_BYTES]).finalize().into()
}

/// The entries of a directory at this offset.
fn parse_entries(directory: &[u8], offset: u32) -> Result<Vec<PackEntry>, DecodeError> {
    let (rows, _) = directory.as_chunks::<{ DIRECTORY_ENTRY_BYTES as usize }>();
    let mut entries: Vec<PackEntry> = Vec::with_capacity(rows.len());
    let mut end = HEADER_BYTES;
    for (number, row) in (0_u64..).zip(rows) {
        let at = u64::from(offset) + number * u64::from(DIRECTORY_ENTRY_BYTES);
        let mut fields = Fields::of(row);
        let digest = fields.digest().ok_or(DecodeError::Field { offset: at, name: "digest" })?;
        let begins = fields.u32().filter(|blob| *blob == end + ENTRY_HEADER_BYTES);
        let begins = begins.ok_or(DecodeError::Field { offset: at + 32, name: "offset of a blob" })?;
        let invalid_len = DecodeError::Field { offset: at + 36, name: "length of a blob" };
        let entry = PackEntry { digest, len: fields.u32().ok_or(invalid_len)?, offset: begins };
        if !entry.fits(MAX_PACK_BYTES) || entry.end() > offset {
            return Err(invalid_len);
        }
        end = entry.end();
        entries.push(entry);
    }
    if end != offset {
        return Err(DecodeError::Field { offset: offset.into(), name: "end of the last blob" });
    }
    let mut digests: Vec<_> = entries.iter().map(|entry| entry.digest).collect();
    digests.sort_unstable();
    if digests.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(DecodeError::Field { offset: offset.into(), name: "digest twice" });
    }
    Ok(entries)
}

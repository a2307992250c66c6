//! Packs: many chunks in one immutable object, `.larder/packs/<cc>/<session>-<n>`.
//!
//! A pack is a header, entries, a directory and a trailer, with nothing in between. Integers are little-endian; a checksum of four bytes
//! is a CRC-32 (ISO-HDLC).
//!
//! **Header**
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | magic | [`MAGIC`] |
//! | 8 | 2 | version | 1 |
//! | 10 | 2 | class | 0: data, 1: metadata |
//! | 12 | 16 | session | of the writer, as in the name of the pack |
//! | 28 | 4 | checksum | of everything before |
//!
//! **Entry**, at offset e, the first at 32
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | e | 4 | magic | [`ENTRY_MAGIC`] |
//! | e + 4 | 4 | length | of the blob: [`MIN_BLOB_BYTES`] to [`MAX_ENCODED_CHUNK_BYTES`] |
//! | e + 8 | 32 | digest | of the chunk |
//! | e + 40 | 4 | checksum | of the session (16 bytes), e (4 bytes) and the first 40 bytes of the entry |
//! | e + 44 | length | blob | the chunk as a loose store has it, see [`blob`](crate::format::blob) |
//!
//! **Directory**, at offset d, behind the last entry
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | d + 40·i | 32 | digest | of chunk i; entries in the order of the pack, no digest twice |
//! | d + 40·i + 32 | 4 | offset | of blob i: 44 behind the end of the blob before it, 76 for the first |
//! | d + 40·i + 36 | 4 | length | of blob i |
//!
//! **Trailer**, the last 64 bytes
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | magic | [`TRAILER_MAGIC`] |
//! | 8 | 2 | version | 1 |
//! | 10 | 2 | class | as in the header |
//! | 12 | 4 | count | number of entries: 1 to [`MAX_PACK_ENTRIES`] |
//! | 16 | 8 | directory | its offset d |
//! | 24 | 8 | n | the number in the name of the pack, less than 2³² |
//! | 32 | 32 | checksum | SHA-256 of the header, the directory and the first 32 bytes of the trailer |
//!
//! A pack has at most [`MAX_PACK_BYTES`], so offsets fit 32 bits.
//!
//! # Damage that the checksums detect
//! A change of any byte of the header, of the header of an entry, of the directory or of the trailer is detected, and so is any truncation. The name of the
//! pack is part of it: the bytes of one pack under the name of another are refused. A changed blob is not detected here but by the
//! checksum of the blob and by the digest.
//! The checksum of an entry covers session and offset. So entries of another pack, which a chunk may contain where a store is itself backed up,
//! do not pass for entries of this one (H198).
//!
//! # Reading
//! The end of a pack is enough to know its entries: [`PackDirectory::parse`](directory::PackDirectory::parse). A sequential read needs neither directory nor trailer and
//! continues behind a damaged entry: [`PackScanner`](scanner::PackScanner).

use crc32fast::Hasher;
use thiserror::Error;

use crate::format::Digest;
use crate::format::blob::{DecodeError, MAX_ENCODED_CHUNK_BYTES, MIN_BLOB_BYTES};
use crate::format::larder::fields::Fields;
use crate::format::larder::pack::name::SessionId;
use crate::format::name::ArchiveName;

pub(crate) mod builder;
pub(crate) mod directory;
pub(crate) mod name;
pub(crate) mod scanner;

/// The first eight bytes of a pack: those of the SHA-256 of `larder pack v1.0`.
pub(crate) const MAGIC: [u8; 8] = [0x12, 0xce, 0x43, 0x08, 0x7c, 0x5f, 0x83, 0x42];
/// The first four bytes of an entry: those of the SHA-256 of `larder pack entry v1.0`.
pub(crate) const ENTRY_MAGIC: [u8; 4] = [0xaa, 0x0d, 0x92, 0xe6];
/// The first eight bytes of a trailer: those of the SHA-256 of `larder pack trailer v1.0`.
pub(crate) const TRAILER_MAGIC: [u8; 8] = [0x93, 0x9e, 0x00, 0x18, 0xa4, 0x6b, 0x00, 0xae];

/// Maximum bytes of a pack: 128 MiB.
pub(crate) const MAX_PACK_BYTES: u32 = 128 << 20;
/// Maximum number of entries of a pack: 131,072. Its directory has at most 5 MiB.
pub(crate) const MAX_PACK_ENTRIES: u32 = 1 << 17;
/// Bytes of the header of a pack.
pub(crate) const HEADER_BYTES: u32 = 32;
/// Bytes of the header of an entry.
pub(crate) const ENTRY_HEADER_BYTES: u32 = 44;
/// Bytes of an entry of a directory.
pub(crate) const DIRECTORY_ENTRY_BYTES: u32 = 40;
/// Bytes of the trailer of a pack.
pub(crate) const TRAILER_BYTES: u32 = 64;
/// Minimum bytes of a pack: one entry with the shortest blob.
pub(crate) const MIN_PACK_BYTES: u32 =
    HEADER_BYTES + ENTRY_HEADER_BYTES + MIN_LENGTH + DIRECTORY_ENTRY_BYTES + TRAILER_BYTES;

const VERSION: u16 = 1;
/// Minimum bytes of a stored chunk.
#[expect(clippy::cast_possible_truncation, reason = "it is 12")]
pub(crate) const MIN_LENGTH: u32 = MIN_BLOB_BYTES as u32;
/// Maximum bytes of a stored chunk.
#[expect(clippy::cast_possible_truncation, reason = "it is 44 more than 16 MiB")]
pub(crate) const MAX_LENGTH: u32 = MAX_ENCODED_CHUNK_BYTES as u32;

/// The length of a blob that a pack may contain.
///
/// # Errors
/// `Length` for any other blob.
pub(crate) fn blob_length(blob: &[u8]) -> Result<u32, PackWriteError> {
    let len = u32::try_from(blob.len()).ok().filter(|len| (MIN_LENGTH..=MAX_LENGTH).contains(len));
    len.ok_or(PackWriteError::Length { len: blob.len() })
}

/// Kind of the chunks of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PackClass {
    /// Contents of files, images and streams.
    Data,
    /// Metadata archives and catalogs, which are read without the data.
    Metadata,
}

impl PackClass {
    /// The class of the chunks of an archive, by its name: `.mpxar` and `.pcat1` have metadata alone.
    pub(crate) fn of_archive(name: &ArchiveName) -> Self {
        let stem = name.as_str().strip_suffix(".didx").unwrap_or_default();
        if stem.ends_with(".mpxar") || stem.ends_with(".pcat1") { Self::Metadata } else { Self::Data }
    }

    pub(in crate::format::larder) const fn code(self) -> u16 {
        match self {
            Self::Data => 0,
            Self::Metadata => 1,
        }
    }

    pub(in crate::format::larder) const fn of_code(code: u16) -> Option<Self> {
        match code {
            0 => Some(Self::Data),
            1 => Some(Self::Metadata),
            _ => None,
        }
    }
}

/// Place of a chunk in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackEntry {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Length of the blob in bytes.
    pub(crate) len: u32,
    /// Offset of the blob in the pack; the header of the entry is before it.
    pub(crate) offset: u32,
}

impl PackEntry {
    /// Offset of the first byte behind the blob.
    pub(crate) const fn end(&self) -> u32 {
        self.offset.saturating_add(self.len)
    }

    /// Returns `true` if an entry can be here in a pack of this size.
    pub(in crate::format::larder) fn fits(&self, pack_bytes: u32) -> bool {
        let contents_end = pack_bytes.saturating_sub(TRAILER_BYTES + DIRECTORY_ENTRY_BYTES);
        (MIN_LENGTH..=MAX_LENGTH).contains(&self.len)
            && self.offset >= HEADER_BYTES + ENTRY_HEADER_BYTES
            && self.offset.checked_add(self.len).is_some_and(|end| end <= contents_end)
    }

    /// The header of the entry.
    pub(crate) fn header(&self, session: &SessionId) -> [u8; ENTRY_HEADER_BYTES as usize] {
        let mut header = [0; ENTRY_HEADER_BYTES as usize];
        header[..4].copy_from_slice(&ENTRY_MAGIC);
        header[4..8].copy_from_slice(&self.len.to_le_bytes());
        header[8..40].copy_from_slice(self.digest.as_bytes());
        let checksum = entry_checksum(session, self.offset.saturating_sub(ENTRY_HEADER_BYTES), &header);
        header[40..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// The entry whose header is at this offset; `None` if it is not a valid one.
    pub(crate) fn parse(
        session: &SessionId,
        offset: u32,
        header: &[u8; ENTRY_HEADER_BYTES as usize],
    ) -> Option<Self> {
        let mut fields = Fields::of(header);
        let (magic, len, digest) = (fields.array()?, fields.u32()?, fields.digest()?);
        let entry = Self { digest, len, offset: offset.checked_add(ENTRY_HEADER_BYTES)? };
        let is_valid = magic == ENTRY_MAGIC
            && fields.u32()? == entry_checksum(session, offset, header)
            && entry.fits(MAX_PACK_BYTES);
        is_valid.then_some(entry)
    }
}

fn entry_checksum(session: &SessionId, offset: u32, header: &[u8; ENTRY_HEADER_BYTES as usize]) -> u32 {
    let mut checksum = Hasher::new();
    checksum.update(session.as_bytes());
    checksum.update(&offset.to_le_bytes());
    checksum.update(&header[..40]);
    checksum.finalize()
}

/// The header of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackHeader {
    /// The class of the pack.
    pub(crate) class: PackClass,
    /// The writer of the pack.
    pub(crate) session: SessionId,
}

impl PackHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10..12].copy_from_slice(&self.class.code().to_le_bytes());
        header[12..28].copy_from_slice(self.session.as_bytes());
        let checksum = crc32fast::hash(&header[..28]);
        header[28..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// The header in the first bytes of a pack.
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Magic`, `Truncated`.
    pub(crate) fn parse(pack: &[u8]) -> Result<Self, DecodeError> {
        let truncated = DecodeError::Truncated { want: HEADER_BYTES.into(), have: pack.len() as u64 };
        let header: &[u8; HEADER_BYTES as usize] = pack.first_chunk().ok_or(truncated)?;
        let mut fields = Fields::of(header);
        if fields.array() != Some(MAGIC) {
            return Err(DecodeError::Magic);
        }
        let (version, class, session) = (fields.u16(), fields.u16(), fields.array());
        if fields.u32() != Some(crc32fast::hash(&header[..28])) {
            return Err(DecodeError::Checksum);
        }
        if version != Some(VERSION) {
            return Err(DecodeError::Field { offset: 8, name: "version" });
        }
        let class = class.and_then(PackClass::of_code);
        let class = class.ok_or(DecodeError::Field { offset: 10, name: "class" })?;
        Ok(Self { class, session: SessionId::from_bytes(session.ok_or(truncated)?) })
    }
}

/// Reason why a chunk cannot be added to a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum PackWriteError {
    /// The pack has this chunk already.
    #[error("the pack has this chunk already")]
    Duplicate,
    /// The pack would be too large, or have too many entries.
    #[error("the pack is full")]
    Full,
    /// The blob is shorter or longer than a chunk can be.
    #[error("{len} bytes are no stored chunk")]
    Length {
        /// Its length in bytes.
        len: usize,
    },
}

#[cfg(test)]
mod tests;

//! Packs in the making.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::buffers::Buffer;
use crate::format::Digest;
use crate::format::larder::pack::directory::PackDirectory;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{
    DIRECTORY_ENTRY_BYTES, ENTRY_HEADER_BYTES, HEADER_BYTES, MAX_PACK_BYTES, MAX_PACK_ENTRIES, PackClass,
    PackEntry, PackHeader, PackWriteError, TRAILER_BYTES, blob_length,
};

/// A pack that grows, in one buffer.
pub(crate) struct PackBuilder {
    bytes: Buffer,
    class: PackClass,
    digests: HashSet<Digest>,
    end: u32,
    entries: Vec<PackEntry>,
    name: PackName,
}

/// A complete pack.
#[derive(Clone, Debug)]
pub(crate) struct FinishedPack {
    pub(crate) bytes: Bytes,
    /// Its directory, which has its name, class and size too.
    pub(crate) directory: PackDirectory,
}

impl PackBuilder {
    /// A pack without entries. Its bytes replace those of the buffer.
    pub(crate) fn new(name: PackName, class: PackClass, mut bytes: Buffer) -> Self {
        bytes.clear();
        bytes.extend(PackHeader { class, session: name.session }.encode());
        Self { bytes, class, digests: HashSet::new(), end: HEADER_BYTES, entries: Vec::new(), name }
    }

    /// Adds a chunk in stored form. Returns its place.
    ///
    /// # Errors
    /// `Duplicate`; `Full` if the complete pack would exceed [`MAX_PACK_BYTES`] or [`MAX_PACK_ENTRIES`]; `Length`. The pack is as before then.
    pub(crate) fn push(&mut self, digest: Digest, blob: &[u8]) -> Result<PackEntry, PackWriteError> {
        let len = blob_length(blob)?;
        let is_full = self.size_with(blob.len()) > MAX_PACK_BYTES.into();
        if is_full || self.entries.len() >= MAX_PACK_ENTRIES as usize {
            return Err(PackWriteError::Full);
        }
        if !self.digests.insert(digest) {
            return Err(PackWriteError::Duplicate);
        }
        let entry = PackEntry { digest, len, offset: self.end + ENTRY_HEADER_BYTES };
        self.bytes.extend_from_slice(&entry.header(&self.name.session));
        self.bytes.extend_from_slice(blob);
        self.entries.push(entry);
        self.end = entry.end();
        Ok(entry)
    }

    /// The entries so far, in order.
    pub(crate) fn entries(&self) -> &[PackEntry] {
        &self.entries
    }

    /// Returns `true` if the pack has this chunk.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    /// Bytes of the pack so far.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        self.bytes.get(range)
    }

    /// Size in bytes of the complete pack, if nothing is added.
    pub(crate) fn size(&self) -> u64 {
        let directory = self.entries.len() as u64 * u64::from(DIRECTORY_ENTRY_BYTES);
        u64::from(self.end) + directory + u64::from(TRAILER_BYTES)
    }

    /// Size in bytes of the complete pack, if one more blob of this length is added.
    pub(crate) fn size_with(&self, blob_bytes: usize) -> u64 {
        let overhead = u64::from(ENTRY_HEADER_BYTES + DIRECTORY_ENTRY_BYTES);
        self.size().saturating_add(overhead).saturating_add(blob_bytes as u64)
    }

    /// Ends the pack. `None` if it has no entries.
    pub(crate) fn finish(mut self) -> Option<FinishedPack> {
        let directory = PackDirectory::new(self.name, self.class, self.entries)?;
        self.bytes.extend_from_slice(&directory.encode());
        Some(FinishedPack { bytes: self.bytes.freeze(), directory })
    }
}

impl fmt::Debug for PackBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, entries) = (self.name, self.entries.len());
        f.debug_struct("PackBuilder").field("name", &name).field("entries", &entries).finish_non_exhaustive()
    }
}

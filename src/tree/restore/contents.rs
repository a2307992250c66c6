//! Contents of the files that a walk passes.

use bytes::{Bytes, BytesMut};

use crate::error::Result;
use crate::pxar::EntryContents;
use crate::store::ArchiveReader;
use crate::tree::read::{Tree, TreeEntry, TreeFile, TreeWalk};

/// Reads contents in the order of the archive.
pub(super) struct ContentsReader {
    /// The payload stream of the split form.
    payload: Option<ArchiveReader>,
}

/// Contents of one file, read in pieces.
pub(super) enum Pieces<'a> {
    File(TreeFile),
    Payload {
        payload: &'a mut ArchiveReader,
        position: u64,
    },
    /// Behind the entry that the walk yielded last.
    Walk(&'a mut TreeWalk),
}

impl ContentsReader {
    pub(super) fn new(tree: &Tree) -> Self {
        Self { payload: tree.payload_in_order() }
    }

    /// As [`new`](Self::new), for a walk through all contents: no chunk is read again that was passed.
    pub(super) fn once(tree: &Tree) -> Self {
        Self { payload: tree.payload_in_order().map(ArchiveReader::bypass_cache) }
    }

    /// Contents of the file that the walk yielded last.
    ///
    /// # Errors
    /// `Corrupt` if they are not there; any failure of the backend.
    pub(super) async fn begin<'a>(
        &'a mut self,
        tree: &Tree,
        walk: &'a mut TreeWalk,
        entry: &TreeEntry,
    ) -> Result<Pieces<'a>> {
        match (entry.contents, &mut self.payload) {
            (EntryContents::Payload { offset }, Some(payload)) => {
                let position = tree.check_payload(payload, entry, offset).await?;
                Ok(Pieces::Payload { payload, position })
            }
            (contents, _) => {
                if let EntryContents::Archive { position } = contents {
                    tree.check_inline(entry, position)?;
                }
                Ok(Pieces::Walk(walk))
            }
        }
    }
}

impl Pieces<'_> {
    /// The next bytes, at most `limit` of them and at least one.
    ///
    /// # Errors
    /// `Corrupt` for a missing or damaged chunk; any failure of the backend.
    pub(super) async fn next(&mut self, limit: u64) -> Result<Bytes> {
        let mut bytes = match self {
            Self::File(file) => file.next_chunk().await?,
            Self::Payload { payload, position } => {
                let mut bytes = payload.read_part_at(*position).await?;
                bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                *position += bytes.len() as u64;
                bytes
            }
            Self::Walk(walk) => walk.next_contents().await?,
        };
        bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// The next bytes as [`next`](Self::next), with those after them that lie in the same chunk and need no reading.
    ///
    /// # Errors
    /// As for [`next`](Self::next).
    pub(super) async fn next_parts(&mut self, limit: u64) -> Result<Vec<Bytes>> {
        let first = self.next(limit).await?;
        let mut rest = limit - first.len() as u64;
        let mut parts = vec![first];
        while rest > 0 && self.is_at_hand() {
            let part = self.next(rest).await?;
            if part.is_empty() {
                break;
            }
            rest -= part.len() as u64;
            parts.push(part);
        }
        Ok(parts)
    }

    /// Returns `true` if the next bytes need no reading.
    fn is_at_hand(&self) -> bool {
        match self {
            Self::File(file) => file.is_at_hand(),
            Self::Payload { payload, position } => payload.is_at_hand(*position),
            Self::Walk(walk) => walk.is_at_hand(),
        }
    }

    /// All bytes of a small file; usually a part of a chunk, without a copy.
    ///
    /// # Errors
    /// As for [`next`](Self::next).
    pub(super) async fn whole(&mut self, size: u64) -> Result<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let first = self.next(size).await?;
        if first.len() as u64 == size {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
        whole.extend_from_slice(&first);
        while (whole.len() as u64) < size {
            let next = self.next(size - whole.len() as u64).await?;
            if next.is_empty() {
                break;
            }
            whole.extend_from_slice(&next);
        }
        Ok(whole.freeze())
    }
}

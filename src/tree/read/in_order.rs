//! Reading of contents in the order of the archive, beside a walk.

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::pxar::{ArchivePart, TreeDecodeError, TreeFault, payload_header};
use crate::store::ArchiveReader;
use crate::tree::read::walk::TreeWalk;
use crate::tree::read::{Tree, TreeEntry};

/// Bytes of the header in front of contents in the payload stream, and of the mark at its end.
const HEADER_BYTES: u64 = 16;

impl Tree {
    /// A reader of the payload stream from its start, with read-ahead; `None` in the unified form.
    pub(in crate::tree) fn payload_in_order(&self) -> Option<ArchiveReader> {
        self.shared.streams.payload().map(|payload| payload.another(0, payload.size()))
    }

    /// Checks the header of the contents of a file in the payload stream, with a reader in order, and returns the position of its first byte.
    pub(in crate::tree) async fn check_payload(
        &self,
        payload: &mut ArchiveReader,
        entry: &TreeEntry,
        offset: u64,
    ) -> Result<u64> {
        let (size, streams) = (entry.size(), &self.shared.streams);
        let fault =
            || streams.damaged(TreeDecodeError::new(TreeFault::Payload, entry.position).of(&entry.path));
        let start = offset.checked_add(HEADER_BYTES);
        let end = start.and_then(|start| start.checked_add(size)?.checked_add(HEADER_BYTES));
        let start = start.filter(|_| end.is_some_and(|end| end <= payload.size())).ok_or_else(fault)?;
        let expected = payload_header(size).map_err(|_| fault())?;
        let mut at = 0;
        while at < expected.len() {
            let found = payload.read_part_at(offset + at as u64).await?;
            let length = found.len().min(expected.len() - at);
            if length == 0 || found[..length] != expected[at..at + length] {
                return Err(fault());
            }
            at += length;
        }
        Ok(start)
    }

    /// Checks that the contents of a file in the unified form end within the archive.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(in crate::tree) fn check_inline(&self, entry: &TreeEntry, position: u64) -> Result<()> {
        self.shared.streams.check_inline(entry, position)
    }
}

impl TreeWalk {
    /// A walk whose caller reads no chunk again that it has passed.
    pub(in crate::tree) fn once(mut self) -> Self {
        self.archive = self.archive.bypass_cache();
        self
    }

    /// Returns `true` if [`next_contents`](Self::next_contents) needs no reading.
    pub(in crate::tree) fn is_at_hand(&self) -> bool {
        self.archive.is_at_hand(self.decoder.position())
    }

    /// Returns the next contents of the file that [`next`](Self::next) yielded last, in the unified form. The caller counts them.
    ///
    /// # Errors
    /// `Corrupt` for a missing or damaged chunk: then the caller gives the file up. Any failure of the backend.
    pub(in crate::tree) async fn next_contents(&mut self) -> Result<Bytes> {
        loop {
            match self.decoder.next_part() {
                Ok(ArchivePart::Contents(bytes)) => return Ok(bytes),
                Ok(ArchivePart::NeedsBytes) => {}
                _ => return Ok(Bytes::new()),
            }
            let position = self.decoder.position();
            let bytes = self.archive.read_part_at(position).await?;
            if bytes.is_empty() {
                let error = crate::error::Error::new(ErrorKind::Corrupt, "read file");
                return Err(error.because("the archive ends within its contents"));
            }
            self.decoder.feed(bytes);
        }
    }
}

//! The streams of an archive, with their heads and contents.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::decode::head::{ArchiveForm, EntryHead, EntryPlace, parse_head, parse_start};
use crate::pxar::decode::items::{FaultAt, Parsed};
use crate::pxar::{EntryContents, FileKind, TreeDecodeError, TreeFault, payload_header};
use crate::store::ArchiveReader;
use crate::tree::read::entry::TreeEntry;

/// Bytes to read beyond the needed ones, so that long heads are not parsed often.
const MORE_BYTES: usize = 1 << 20;

/// Maximum distance of the chunk that is fetched along when a file is opened.
const FETCHED_ALONG_BYTES: u64 = 4 << 20;

/// Bytes of the header of an item: enough to see which one follows.
const HEADER_BYTES: usize = 16;

/// The streams of an archive.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) archive: ArchiveReader,
    /// The payload stream of the split form.
    payload: Option<ArchiveReader>,
}

/// Facts from the start of an archive, and its root.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) head: EntryHead,
    pub(super) prelude: Bytes,
}

impl Streams {
    pub(super) fn unified(archive: ArchiveReader, cache_bytes: usize) -> Self {
        Self { archive: archive.share_cache(cache_bytes), payload: None }
    }

    pub(super) fn split(archive: ArchiveReader, payload: ArchiveReader, cache_bytes: usize) -> Self {
        let [archive, payload] = [archive, payload].map(|stream| stream.share_cache(cache_bytes));
        Self { archive, payload: Some(payload) }
    }

    pub(super) fn payload(&self) -> Option<&ArchiveReader> {
        self.payload.as_ref()
    }

    pub(super) fn is_split(&self) -> bool {
        self.payload.is_some()
    }

    pub(super) fn form(&self) -> ArchiveForm {
        if self.is_split() { ArchiveForm::Split } else { ArchiveForm::Unified }
    }

    /// Length of the archive.
    pub(super) fn size(&self) -> u64 {
        self.archive.size()
    }

    /// Reads the root.
    pub(super) async fn root(&self) -> Result<Root> {
        let (limit, form) = (self.size(), self.form());
        let start = self.decode(0, limit, parse_start).await?;
        if start.form != form {
            return Err(self.damaged(TreeDecodeError::new(TreeFault::Version, 0)));
        }
        let head = self.decode(start.bytes as u64, limit, |bytes| parse_head(bytes, form, EntryPlace::Root));
        Ok(Root { head: head.await?, prelude: start.prelude })
    }

    /// Reads the head of an entry at a position, of which no byte lies at `limit` or behind.
    pub(super) async fn head(&self, position: u64, limit: u64) -> Result<EntryHead> {
        let form = self.form();
        let within = limit.saturating_add(HEADER_BYTES as u64).min(self.size());
        let head = self.decode(position, within, |bytes| parse_head(bytes, form, EntryPlace::Child)).await?;
        let contents = match (&head.kind, self.is_split()) {
            (FileKind::File { size }, false) => *size,
            _ => 0,
        };
        let end = position.checked_add(head.bytes as u64).and_then(|end| end.checked_add(contents));
        if end.is_none_or(|end| end > limit) {
            return Err(self.damaged(TreeDecodeError::new(TreeFault::Bounds, position)));
        }
        Ok(head)
    }

    /// Decodes what stands at a position, with as few chunks as it takes.
    async fn decode<T>(
        &self,
        position: u64,
        limit: u64,
        parse: impl Fn(&[u8]) -> Result<Parsed<T>, FaultAt>,
    ) -> Result<T> {
        let most = usize::try_from(limit.saturating_sub(position)).unwrap_or(usize::MAX);
        let mut bytes = self.archive.read_some_at(position, most).await?;
        loop {
            match parse(&bytes) {
                Ok(Parsed::Done(value)) => return Ok(value),
                Ok(Parsed::Needs(needs)) if needs > bytes.len() && needs <= most => {
                    let length = needs.max(bytes.len().saturating_mul(2)).min(most).min(needs + MORE_BYTES);
                    bytes = self.archive.read_exact_at(position, length).await?;
                }
                Ok(Parsed::Needs(_)) => {
                    return Err(self.damaged(TreeDecodeError::new(TreeFault::Truncated, position)));
                }
                Err(FaultAt { fault, at }) => {
                    return Err(self.damaged(TreeDecodeError::new(fault, position.saturating_add(at as u64))));
                }
            }
        }
    }

    /// The stream and the first byte of the contents of a file, after a check that they are there.
    pub(super) async fn contents(&self, entry: &TreeEntry) -> Result<(&ArchiveReader, u64)> {
        let size = entry.size();
        match (entry.contents, &self.payload) {
            (EntryContents::Archive { position }, None) => {
                self.check_inline(entry, position)?;
                Ok((&self.archive, position))
            }
            (EntryContents::Payload { offset }, Some(payload)) => {
                let fault =
                    || self.damaged(TreeDecodeError::new(TreeFault::Payload, entry.position).of(&entry.path));
                let start = offset.checked_add(HEADER_BYTES as u64);
                let end = start.and_then(|start| start.checked_add(size)?.checked_add(HEADER_BYTES as u64));
                let start =
                    start.filter(|_| end.is_some_and(|end| end <= payload.size())).ok_or_else(fault)?;
                let header = payload.read_exact_at(offset, HEADER_BYTES);
                // A small file is read as a whole next. Its last chunk is fetched along; a failure is that of the read.
                let last = start + size.min(FETCHED_ALONG_BYTES).saturating_sub(1);
                let (header, _) = futures::future::join(header, payload.read_at(last, 1)).await;
                let header = header?;
                if payload_header(size).is_ok_and(|expected| header == expected[..]) {
                    Ok((payload, start))
                } else {
                    Err(fault())
                }
            }
            _ => {
                let error =
                    Error::new(ErrorKind::InvalidInput, "open file").on(String::from_utf8_lossy(&entry.path));
                Err(error.because("it is no file"))
            }
        }
    }

    /// Checks that contents at this position of the archive end within it: a header may claim any size.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn check_inline(&self, entry: &TreeEntry, position: u64) -> Result<()> {
        let is_within = position.checked_add(entry.size()).is_some_and(|end| end <= self.size());
        let fault = || TreeDecodeError::new(TreeFault::Bounds, entry.position).of(&entry.path);
        if is_within { Ok(()) } else { Err(self.damaged(fault())) }
    }

    /// The error of a malformed archive.
    pub(super) fn damaged(&self, error: TreeDecodeError) -> Error {
        Error::new(ErrorKind::Corrupt, "read tree").on(self.archive.name()).because(error)
    }
}

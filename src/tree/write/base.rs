//! The entries of the base, read in step with the walk.
//!
//! Both the walk and the archive of the base go through a tree depth first and by names. So the base is decoded once, from its start to its
//! end, beside the walk, and a comparison costs no look-up. In an archive in another order some files are not found, and are read again.

use std::cmp::Ordering;

use crate::error::{ErrorKind, Result};
use crate::pxar::{ArchiveEntry, ArchivePart, Decoder, EntryContents, FileKind, last_name};
use crate::store::ArchiveReader;
use crate::tree::SourceEntry;

/// Place in the tree of the base: in one of its directories, before one of the entries.
#[derive(Debug)]
pub(super) struct BaseCursor {
    decoder: Decoder,
    /// The part that was decoded and not taken.
    next: Option<ArchivePart>,
    /// Bytes of the payload archive.
    payload_bytes: u64,
    reader: ArchiveReader,
    state: State,
    /// Files that were modified at this second since 1970 or later may have changed once more after the base read them, in the same tick of
    /// the clock of their filesystem.
    uncertain_from: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The archive is damaged: nothing behind this place is found.
    Damaged,
    Good,
}

impl BaseCursor {
    /// Opens the base; the cursor is in its root.
    pub(super) async fn open(reader: ArchiveReader, payload_bytes: u64, uncertain_from: i64) -> Result<Self> {
        let (decoder, state) = (Decoder::new(), State::Good);
        let mut cursor = Self { decoder, next: None, payload_bytes, reader, state, uncertain_from };
        cursor.take().await?;
        Ok(cursor)
    }

    /// Returns `true` if the base turned out to be damaged.
    pub(super) fn is_damaged(&self) -> bool {
        self.state == State::Damaged
    }

    /// Moves behind the entry of this name in the directory of the cursor and returns it, if there is one. A directory is entered.
    pub(super) async fn find(&mut self, name: &[u8]) -> Result<Option<ArchiveEntry>> {
        loop {
            let order = match self.peek().await? {
                Some(ArchivePart::Entry(entry)) => last_name(&entry.path).cmp(name),
                _ => return Ok(None),
            };
            if order == Ordering::Greater {
                return Ok(None);
            }
            let Some(ArchivePart::Entry(entry)) = self.take().await? else { return Ok(None) };
            if order == Ordering::Equal {
                return Ok(Some(*entry));
            }
            if entry.kind == FileKind::Directory {
                self.leave().await?;
            }
        }
    }

    /// Moves behind the end of the directory of the cursor.
    pub(super) async fn leave(&mut self) -> Result<()> {
        let mut depth = 1;
        while depth > 0 {
            match self.take().await? {
                Some(ArchivePart::Entry(entry)) if entry.kind == FileKind::Directory => depth += 1,
                Some(ArchivePart::Entry(_)) => {}
                Some(ArchivePart::DirectoryEnd) => depth -= 1,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Position of the contents of a file in the payload archive of the base, if the file is unchanged: its size and all metadata are equal. As in
    /// the clients of PBS, values of extended attributes are not compared: they are stored anew, and say nothing about the contents.
    pub(super) fn unchanged(&self, entry: &SourceEntry, old: &ArchiveEntry) -> Option<u64> {
        let (FileKind::File { size }, EntryContents::Payload { offset }) = (&entry.kind, old.contents) else {
            return None;
        };
        let (new, before) = (&entry.metadata, &old.metadata);
        let same_names =
            || new.xattrs.iter().map(|xattr| &xattr.name).eq(before.xattrs.iter().map(|xattr| &xattr.name));
        let is_same = old.kind == entry.kind
            && new.stat == before.stat
            && new.stat.mtime.seconds < self.uncertain_from
            && new.acl == before.acl
            && new.capabilities == before.capabilities
            && new.project == before.project
            && same_names();
        let end = offset.checked_add(16).and_then(|start| start.checked_add(*size));
        (is_same && offset >= 16 && end.is_some_and(|end| end <= self.payload_bytes)).then_some(offset)
    }

    async fn peek(&mut self) -> Result<Option<&ArchivePart>> {
        if self.next.is_none() {
            self.next = self.decode().await?;
        }
        Ok(self.next.as_ref())
    }

    async fn take(&mut self) -> Result<Option<ArchivePart>> {
        match self.next.take() {
            Some(part) => Ok(Some(part)),
            None => self.decode().await,
        }
    }

    /// The next part; `None` at the end and behind damage.
    async fn decode(&mut self) -> Result<Option<ArchivePart>> {
        while self.state == State::Good {
            match self.decoder.next_part() {
                Ok(ArchivePart::NeedsBytes) => self.feed().await?,
                Ok(ArchivePart::Contents(_)) => {}
                Ok(ArchivePart::End) => return Ok(None),
                Ok(part) => return Ok(Some(part)),
                Err(_) => self.state = State::Damaged,
            }
        }
        Ok(None)
    }

    async fn feed(&mut self) -> Result<()> {
        let (before, goal) = (self.decoder.waiting(), self.decoder.waiting() * 2);
        loop {
            // The decoder jumps over tables. The rest of a chunk is fed without copying it, while the next chunks are fetched.
            let is_fed = match self.reader.read_part_at(self.decoder.position()).await {
                Ok(bytes) if bytes.is_empty() => false,
                Ok(bytes) => {
                    self.decoder.feed(bytes);
                    true
                }
                // A damaged base costs the detection of changes, and nothing else.
                Err(error) if error.kind() == ErrorKind::Corrupt => false,
                Err(error) => return Err(error),
            };
            if self.decoder.waiting() == before {
                self.state = State::Damaged;
            }
            if !is_fed || self.decoder.waiting() >= goal {
                return Ok(());
            }
        }
    }
}

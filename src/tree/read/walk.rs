//! Walks through trees in the order of the archive.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::pxar::decode::Decoder;
use crate::pxar::goodbye::Table;
use crate::pxar::{ArchivePart, EntryContents, FileKind, Metadata, Stat, TreeDecodeError, TreeFault};
use crate::store::ArchiveReader;
use crate::tree::read::Tree;
use crate::tree::read::entry::TreeEntry;
use crate::tree::read::lookup::{Found, names_of};
use crate::tree::read::lost::{Resumption, resume};
use crate::tree::{Problem, TreeFinding};
use crate::wording::Causes;

/// Mode of a directory whose entry is lost.
const LOST_MODE: u32 = 0o040_700;

/// A walk through a tree, in the order of the archive: a directory, then what is in it, then its [end](TreeStep::DirectoryEnd).
///
/// Memory is bounded by the chunks that are fetched ahead, and 8 bytes for each entry of the open directories; behind damage, 36 bytes, as far as the
/// tables of these directories take about 64 MiB.
#[derive(Debug)]
pub struct TreeWalk {
    pub(super) archive: ArchiveReader,
    /// Number of open directories above the start of the walk.
    base: usize,
    pub(super) decoder: Decoder,
    /// Tables of open directories, once the walk needed them.
    held: Vec<Arc<Table>>,
    is_done: bool,
    /// Paths of the directories that the walk has entered.
    open: Vec<Bytes>,
    steps: VecDeque<TreeStep>,
    tree: Tree,
}

/// A step of a walk through a tree.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeStep {
    /// The end of a directory that the walk has entered, with its path.
    DirectoryEnd(Bytes),
    /// An entry. A directory is entered.
    Entry(Box<TreeEntry>),
    /// A part of the tree that is damaged or malformed. The walk goes on behind it.
    ///
    /// The path of [`EntriesLost`](Problem::EntriesLost) is that of the directory in which entries may be missing. That of
    /// [`Uncertain`](Problem::Uncertain) is the made-up path of a directory whose name and metadata are lost, and which the next step enters.
    Lost(TreeFinding),
}

impl TreeWalk {
    pub(super) fn whole(tree: &Tree) -> Self {
        Self::new(tree, Decoder::new(), 0)
    }

    pub(super) fn below(tree: &Tree, found: &Found) -> Self {
        if found.entry.path.is_empty() {
            return Self::whole(tree);
        }
        let names = names_of(&found.entry.path).unwrap_or_default();
        let parents: Vec<_> = names.into_iter().zip(found.parents.iter().copied()).collect();
        let mut decoder = Decoder::within(tree.shared.streams.form(), &parents);
        let base = parents.len() + 1;
        decoder.resume(base, found.entry.position);
        Self::new(tree, decoder, base)
    }

    fn new(tree: &Tree, decoder: Decoder, base: usize) -> Self {
        let streams = &tree.shared.streams;
        let archive = streams.archive.another(0, streams.size());
        let (held, open, steps) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { archive, base, decoder, held, is_done: false, open, steps, tree: tree.clone() }
    }

    /// Returns the next step; `None` at the end.
    ///
    /// # Errors
    /// Any failure of the backend; damage is a step. The walk goes on with the next call.
    ///
    /// # Cancel safety
    /// A dropped future loses no step.
    pub async fn next(&mut self) -> Result<Option<TreeStep>> {
        // A restore may have read them before, with `next_contents`.
        self.decoder.skip_contents();
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Ok(Some(step));
            }
            if self.is_done {
                return Ok(None);
            }
            match self.decoder.next_part() {
                Ok(ArchivePart::NeedsBytes) => self.fill().await?,
                Ok(ArchivePart::Contents(_)) => self.decoder.skip_contents(),
                Ok(ArchivePart::DirectoryEnd) => self.leave(),
                Ok(ArchivePart::End) => self.end(),
                Ok(ArchivePart::Entry(entry)) => self.add(TreeEntry::from(*entry)),
                Err(error) => self.pass_fault(error).await?,
            }
        }
    }

    fn add(&mut self, entry: TreeEntry) {
        if entry.kind == FileKind::Directory {
            self.open.push(entry.path.clone());
        } else if self.open.is_empty() {
            self.is_done = true;
        }
        self.steps.push_back(TreeStep::Entry(Box::new(entry)));
    }

    fn leave(&mut self) {
        if let Some(path) = self.open.pop() {
            self.steps.push_back(TreeStep::DirectoryEnd(path));
        }
        // The whole archive also has an end to check.
        self.is_done |= self.open.is_empty() && self.base > 0;
    }

    fn end(&mut self) {
        self.is_done = true;
        let size = self.archive.size();
        if self.decoder.position() != size {
            let fault =
                if self.decoder.position() < size { TreeFault::Trailing } else { TreeFault::Truncated };
            self.lose(&TreeDecodeError::new(fault, self.decoder.position()).to_string());
        }
    }

    fn lose(&mut self, cause: &str) {
        let path = self.open.last().map_or(&b""[..], |path| path);
        self.steps.push_back(TreeStep::Lost(TreeFinding::new(path, Problem::EntriesLost).because(cause)));
    }

    /// Reads more bytes for the decoder.
    async fn fill(&mut self) -> Result<()> {
        let position = self.decoder.position();
        if position >= self.archive.size() {
            self.lose(&TreeDecodeError::new(TreeFault::Truncated, position).to_string());
            self.go_to(None);
            return Ok(());
        }
        let goal = self.decoder.waiting() * 2;
        match self.archive.read_part_at(position).await {
            Ok(bytes) => {
                self.decoder.feed(bytes);
                self.fill_up(goal).await
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let damaged = self.archive.chunk_range(position).map_or(position + 1, |range| range.end);
                let cause = Causes(&error).to_string();
                self.pass(damaged, &cause).await
            }
            Err(error) => Err(error),
        }
    }

    /// Reads more bytes until this number waits, as far as the archive is intact.
    async fn fill_up(&mut self, goal: usize) -> Result<()> {
        while self.decoder.waiting() < goal && self.decoder.position() < self.archive.size() {
            match self.archive.read_part_at(self.decoder.position()).await {
                Ok(bytes) => self.decoder.feed(bytes),
                // The walk passes it when it needs these bytes.
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Passes an entry that is malformed.
    async fn pass_fault(&mut self, error: TreeDecodeError) -> Result<()> {
        if error.fault == TreeFault::Trailing {
            self.is_done = true;
            self.lose(&error.to_string());
            return Ok(());
        }
        self.pass(self.decoder.item_position().saturating_add(1), &error.to_string()).await
    }

    /// Goes on at `after` or behind it.
    async fn pass(&mut self, after: u64, cause: &str) -> Result<()> {
        if self.decoder.directories().is_empty() && self.base == 0 && self.open.is_empty() {
            return self.pass_root(after, cause).await;
        }
        let found = resume(&self.tree, &self.decoder, after, &mut self.held).await?;
        self.lose(cause);
        self.go_to(found);
        Ok(())
    }

    /// Goes on behind a root that cannot be decoded.
    async fn pass_root(&mut self, after: u64, cause: &str) -> Result<()> {
        let decoder = Decoder::within(self.tree.shared.streams.form(), &[]);
        let found = resume(&self.tree, &decoder, after, &mut self.held).await?;
        self.lose(cause);
        if found.is_some() {
            self.decoder = decoder;
            self.enter_lost(Bytes::new(), 0);
        }
        self.go_to(found);
        Ok(())
    }

    fn go_to(&mut self, found: Option<Resumption>) {
        let Some(found) = found.filter(|found| found.depth > self.base || self.base == 0) else {
            while let Some(path) = self.open.pop() {
                self.steps.push_back(TreeStep::DirectoryEnd(path));
            }
            self.is_done = true;
            return;
        };
        self.decoder.resume(found.depth, found.position);
        while self.open.len() + self.base > found.depth
            && let Some(path) = self.open.pop()
        {
            self.steps.push_back(TreeStep::DirectoryEnd(path));
        }
        for (name, position) in found.lost {
            self.decoder.enter_lost(&name, position);
            self.enter_lost(Bytes::copy_from_slice(self.decoder.path()), position);
        }
    }

    /// Enters a directory whose entry is lost.
    fn enter_lost(&mut self, path: Bytes, position: u64) {
        self.steps.push_back(TreeStep::Lost(TreeFinding::new(&path[..], Problem::Uncertain)));
        let metadata = Metadata::new(Stat { mode: LOST_MODE, ..Stat::default() });
        let (contents, kind) = (EntryContents::None, FileKind::Directory);
        self.add(TreeEntry { contents, kind, metadata, path, position });
    }
}

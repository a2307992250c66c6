//! The task that restores, and those that it starts.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{self, BoxFuture, Either};
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::batch::Batches;
use super::contents::ContentsReader;
use super::directories::{Complete, Directories, DirectoryNumber, Ready, when_ready};
use super::report::{TreeRestoreEvent, TreeRestoreSummary};
use super::selection::{Selected, Selection};
use super::target::{TargetError, TreeTarget};
use super::walked::WalkedFiles;
use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;
use crate::pxar::{FileKind, Metadata};
use crate::tree::read::{Tree, TreeEntry, TreeStep, TreeWalk};
use crate::tree::{EntryKind, Problem, TreeFinding};

/// Maximum number of calls of the target at once.
const MAX_TASKS: usize = 64;

/// Maximum bytes of small files and of extended attributes that are being written.
const MAX_TASK_BYTES: u64 = 8 << 20;

/// State of a restore.
pub(super) struct Engine<'a> {
    pub(super) batches: Batches,
    /// First copy of a file, by the position to which hard links lead.
    pub(super) copies: HashMap<u64, Bytes>,
    pub(super) directories: Directories,
    /// Files that are being written.
    pub(super) files: HashSet<Bytes>,
    /// `false` if only parts of the tree are restored: the metadata of the root then stay.
    finishes_root: bool,
    full: Option<Error>,
    /// Tasks begin when they are polled.
    has_new_tasks: bool,
    /// Directories from the root to the present one.
    levels: Vec<Level>,
    observer: Option<Arc<dyn Observer<TreeRestoreEvent>>>,
    summary: TreeRestoreSummary,
    pub(super) target: &'a dyn TreeTarget,
    pub(super) task_bytes: u64,
    pub(super) tasks: FuturesUnordered<BoxFuture<'a, Done>>,
    pub(super) tree: &'a Tree,
    pub(super) walked: WalkedFiles,
}

/// A directory that the walk is in.
struct Level {
    metadata: Metadata,
    /// `None` until something in it is restored.
    number: Option<DirectoryNumber>,
    path: Bytes,
    selected: Selected,
}

/// A task that ended.
pub(super) struct Done {
    /// Bytes that it held.
    pub(super) bytes: u64,
    pub(super) directory: Option<DirectoryNumber>,
    pub(super) entries: Vec<Restored>,
    /// `true` for small files of the directory.
    pub(super) is_batch: bool,
}

/// An entry whose task ended.
pub(super) struct Restored {
    /// `None` for metadata of directories, which are not counted.
    pub(super) kind: Option<FileKind>,
    /// `None` if the entry is left out with its directory.
    pub(super) outcome: Option<Result<Vec<TreeFinding>, TargetError>>,
    pub(super) path: Bytes,
}

impl Done {
    /// A task for one entry.
    pub(super) fn of(bytes: u64, directory: Option<DirectoryNumber>, entry: Restored) -> Self {
        Self { bytes, directory, entries: vec![entry], is_batch: false }
    }
}

impl<'a> Engine<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        target: &'a dyn TreeTarget,
        observer: Option<Arc<dyn Observer<TreeRestoreEvent>>>,
    ) -> Self {
        Self {
            batches: Batches::default(),
            copies: HashMap::new(),
            directories: Directories::default(),
            files: HashSet::new(),
            finishes_root: false,
            full: None,
            has_new_tasks: false,
            levels: Vec::new(),
            observer,
            summary: TreeRestoreSummary::default(),
            target,
            task_bytes: 0,
            tasks: FuturesUnordered::new(),
            tree,
            walked: WalkedFiles::default(),
        }
    }

    /// Restores what is selected.
    pub(super) async fn run(mut self, selection: Selection) -> Result<TreeRestoreSummary> {
        self.finishes_root = selection.is_whole();
        if !selection.is_whole() {
            // Before anything is created.
            check_paths(self.tree, &selection).await?;
        }
        let restored = if selection.is_whole() || selection.has_patterns() {
            let (mut walk, contents) = (self.tree.walk().once(), ContentsReader::once(self.tree));
            self.walk(&mut walk, contents, &selection).await
        } else {
            self.paths(&selection).await
        };
        if restored.is_ok() {
            self.leave_to(0);
        }
        self.close_batch();
        // Tasks under way belong to the caller's target: they end in any case.
        while let Some(done) = self.next_done().await {
            self.settle(done);
        }
        restored?;
        self.check_space()?;
        let finished = self.target.finish().await;
        let failed = |error| Error::io(error, "finish a restore");
        for finding in finished.map_err(failed)? {
            self.found(finding);
        }
        Ok(self.summary)
    }

    /// Restores selected paths, one after another.
    async fn paths(&mut self, selection: &Selection) -> Result<()> {
        // Its metadata stay.
        self.enter(Bytes::new(), Metadata::default(), Selected::No);
        for path in selection.top_paths() {
            match self.path(&path, selection).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.found(
                        TreeFinding::new(path, Problem::EntriesLost).because(format_args!("{error:#}")),
                    );
                }
                done => done?,
            }
        }
        Ok(())
    }

    async fn path(&mut self, path: &[u8], selection: &Selection) -> Result<()> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let above: Vec<&[u8]> = ends.map(|end| &path[..end]).collect();
        let is_above = |level: &Level| level.path.is_empty() || above.contains(&&*level.path);
        let common = self.levels.iter().take_while(|level| is_above(level)).count();
        self.leave_to(common);
        for directory in above.iter().skip(common.saturating_sub(1)) {
            let entry = self.tree.entry(directory).await?;
            self.enter(entry.path, entry.metadata, Selected::No);
        }
        // Other paths may lie in the same chunks.
        let mut walk = self.tree.walk_from(path).await?;
        self.walk(&mut walk, ContentsReader::new(self.tree), selection).await
    }

    async fn walk(
        &mut self,
        walk: &mut TreeWalk,
        mut contents: ContentsReader,
        selection: &Selection,
    ) -> Result<()> {
        while let Some(step) = self.wait(walk.next()).await? {
            match step {
                TreeStep::Lost(finding) => {
                    self.walked.note_loss();
                    self.found(finding);
                }
                TreeStep::DirectoryEnd(_) => self.leave(),
                TreeStep::Entry(entry) => self.entry(*entry, walk, &mut contents, selection).await?,
            }
            self.make_room().await;
            self.check_space()?;
        }
        Ok(())
    }

    async fn entry(
        &mut self,
        entry: TreeEntry,
        walk: &mut TreeWalk,
        contents: &mut ContentsReader,
        selection: &Selection,
    ) -> Result<()> {
        let is_directory = entry.kind == FileKind::Directory;
        let kind = if is_directory { EntryKind::Directory } else { EntryKind::Other };
        let selected = if entry.path.is_empty() {
            selection.root()
        } else {
            let above = self.levels.last().map_or(Selected::No, |level| level.selected);
            selection.selects(&entry.path, kind, above)
        };
        let is_selected = selected != Selected::No;
        if matches!(entry.kind, FileKind::File { .. }) {
            self.walked.note(entry.position, &entry.path);
        }
        if is_directory {
            self.enter(entry.path, entry.metadata, selected);
            if is_selected {
                self.create_levels();
            }
            return Ok(());
        }
        let Some(directory) = is_selected.then(|| self.create_levels()).flatten() else { return Ok(()) };
        match entry.kind {
            FileKind::File { .. } => self.file(entry, directory, walk, contents).await,
            FileKind::HardLink { .. } => self.hard_link(entry, directory, selection).await,
            _ => {
                self.special(entry, directory);
                Ok(())
            }
        }
    }

    fn enter(&mut self, path: Bytes, metadata: Metadata, selected: Selected) {
        self.levels.push(Level { metadata, number: None, path, selected });
    }

    /// Creates the directories that the walk is in, and returns the last.
    fn create_levels(&mut self) -> Option<DirectoryNumber> {
        let last = self.levels.last()?;
        if last.number.is_some() {
            // With those above it.
            return last.number;
        }
        let mut parent = None;
        for index in 0..self.levels.len() {
            let level = self.levels.get_mut(index)?;
            if level.number.is_none() {
                let (path, metadata) = (level.path.clone(), level.metadata.clone());
                let (number, ready) = self.directories.add(parent, path.clone(), metadata.clone());
                level.number = Some(number);
                self.create_directory(number, parent, (path, metadata), ready);
            }
            parent = self.levels.get(index)?.number;
        }
        parent
    }

    fn create_directory(
        &mut self,
        number: DirectoryNumber,
        parent: Option<DirectoryNumber>,
        (path, metadata): (Bytes, Metadata),
        ready: futures::channel::oneshot::Sender<bool>,
    ) {
        let Some(parent) = parent else {
            // The root exists. The receiver is held as long as the directory is open.
            let _ = ready.send(true);
            return;
        };
        // Its creation is a task of itself; that of the parent ends with its metadata.
        self.directories.begin(number);
        let parent_ready = self.directories.ready(parent);
        let target = self.target;
        let bytes = weight(&metadata);
        self.task_bytes += bytes;
        self.start(async move {
            let outcome = when_ready(parent_ready, target.directory(&path, &metadata)).await;
            let _ = ready.send(matches!(outcome, Some(Ok(_))));
            let kind = Some(FileKind::Directory);
            Done::of(bytes, Some(number), Restored { kind, outcome, path })
        });
    }

    fn leave(&mut self) {
        self.close_batch();
        let Some(level) = self.levels.pop() else { return };
        if let Some(complete) = level.number.and_then(|number| self.directories.leave(number)) {
            self.finish_directory(complete);
        }
    }

    fn leave_to(&mut self, depth: usize) {
        while self.levels.len() > depth {
            self.leave();
        }
    }

    fn finish_directory(&mut self, complete: Complete) {
        let Complete { metadata, parent, path, ready } = complete;
        if path.is_empty() && !self.finishes_root {
            return;
        }
        let target = self.target;
        let bytes = weight(&metadata);
        self.task_bytes += bytes;
        self.start(async move {
            let outcome = when_ready(ready, target.finish_directory(&path, &metadata)).await;
            Done::of(bytes, parent, Restored { kind: None, outcome, path })
        });
    }

    /// Begins a task for an entry in a directory.
    pub(super) fn begin(&mut self, directory: DirectoryNumber) -> Ready {
        self.directories.begin(directory);
        self.directories.ready(directory)
    }

    /// Starts a task. The caller counts its bytes.
    pub(super) fn start(&mut self, task: impl Future<Output = Done> + Send + 'a) {
        self.has_new_tasks = true;
        self.tasks.push(Box::pin(task));
    }

    /// Waits for the end of a task.
    async fn next_done(&mut self) -> Option<Done> {
        self.start_waiting();
        self.tasks.next().await
    }

    /// Lets new tasks begin, and waits until there is room for another one.
    async fn make_room(&mut self) {
        while std::mem::take(&mut self.has_new_tasks)
            && let Some(Some(done)) = future::poll_immediate(self.tasks.next()).await
        {
            self.settle(done);
        }
        while self.tasks.len() + self.batches.waiting() >= MAX_TASKS || self.task_bytes >= MAX_TASK_BYTES {
            let Some(done) = self.next_done().await else { break };
            self.settle(done);
        }
    }

    /// Waits until a file is written.
    pub(super) async fn wait_for_file(&mut self, path: &[u8]) {
        self.close_batch();
        while self.files.contains(path) {
            let Some(done) = self.next_done().await else { break };
            self.settle(done);
        }
    }

    /// Waits for something, and lets tasks progress meanwhile.
    pub(super) async fn wait<T>(&mut self, wanted: impl Future<Output = T> + Send) -> T {
        let mut wanted = pin!(wanted);
        if let Some(value) = future::poll_immediate(wanted.as_mut()).await {
            return value;
        }
        self.close_batch();
        loop {
            self.start_waiting();
            if self.tasks.is_empty() {
                return wanted.await;
            }
            match future::select(wanted.as_mut(), self.tasks.next()).await {
                Either::Left((value, _)) => return value,
                Either::Right((Some(done), _)) => self.settle(done),
                Either::Right((None, _)) => {}
            }
        }
    }

    /// Takes the result of a task.
    pub(super) fn settle(&mut self, done: Done) {
        let Done { bytes, directory, entries, is_batch } = done;
        self.task_bytes -= bytes;
        for entry in entries {
            self.settle_entry(entry);
        }
        let Some(directory) = directory else { return };
        if is_batch {
            self.start_next(directory);
        }
        if let Some(complete) = self.directories.end(directory) {
            self.finish_directory(complete);
        }
    }

    fn settle_entry(&mut self, entry: Restored) {
        let Restored { kind, outcome, path } = entry;
        if matches!(kind, Some(FileKind::File { .. })) {
            self.files.remove(&path);
        }
        match outcome {
            Some(Ok(findings)) => {
                for finding in findings {
                    self.found(finding);
                }
                if let Some(kind) = kind {
                    self.summary.count(&kind);
                    self.emit(|| TreeRestoreEvent::EntryRestored);
                }
            }
            Some(Err(error)) => self.failed(&path, error),
            None => {}
        }
    }

    /// Reports an entry that the target did not restore.
    pub(super) fn failed(&mut self, path: &[u8], error: TargetError) {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let TargetError { cause, problem } = error;
        self.found(TreeFinding::new(path, problem).because(&cause));
        if matches!(cause.kind(), QuotaExceeded | StorageFull) {
            self.full.get_or_insert(Error::io(cause, "restore a tree"));
        }
    }

    /// Reports damage of an entry, and fails with any other error.
    pub(super) fn damaged(&mut self, path: &[u8], error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        self.walked.forget(path);
        self.found(TreeFinding::new(path, Problem::Damaged).because(format_args!("{error:#}")));
        Ok(())
    }

    pub(super) fn found(&mut self, finding: TreeFinding) {
        self.emit(|| TreeRestoreEvent::Found { finding: finding.clone() });
        self.summary.report.add(finding);
    }

    pub(super) fn emit(&self, event: impl FnOnce() -> TreeRestoreEvent) {
        if let Some(observer) = &self.observer {
            observer.on_event(&event());
        }
    }

    fn check_space(&mut self) -> Result<()> {
        self.full.take().map_or(Ok(()), Err)
    }
}

/// Fails for a selected path that does not exist.
async fn check_paths(tree: &Tree, selection: &Selection) -> Result<()> {
    for path in selection.top_paths() {
        match tree.entry(path).await {
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Bytes of extended attributes.
pub(super) fn weight(metadata: &Metadata) -> u64 {
    metadata.xattr_bytes() as u64
}

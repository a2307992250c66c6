//! Small files that the target gets in one call.
//!
//! Each call costs a job of the runtime, so files of the same directory go together. Threads that create files in one directory wait for its lock, on some
//! filesystems for most of the time, so the batches of a directory follow one another while there is work in other directories.

use std::collections::{HashMap, VecDeque};

use super::directories::{DirectoryNumber, when_ready};
use super::engine::{Done, Engine, Restored, weight};
use super::report::TreeRestoreEvent;
use super::target::{SmallFile, TargetError};
use crate::pxar::FileKind;
use crate::tree::Problem;

/// Maximum number of files of a batch.
const MAX_FILES: usize = 16;

/// Bytes with which a batch is complete.
const MAX_BYTES: u64 = 1 << 20;

/// With fewer calls of the target than this, batches of the same directory run at once. About half of the time of a file is its creation, so a third thread
/// would only wait.
const MIN_TASKS: usize = 2;

/// Small files that wait.
#[derive(Default)]
pub(super) struct Batches {
    /// Number of running batches by directory.
    busy: HashMap<DirectoryNumber, usize>,
    /// Takes further files.
    open: Option<Batch>,
    /// Complete batches of busy directories, the oldest first.
    waiting: VecDeque<Batch>,
}

/// Files of one directory.
struct Batch {
    bytes: u64,
    directory: DirectoryNumber,
    files: Vec<SmallFile>,
}

impl Batches {
    /// Number of complete batches that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A batch of a directory has ended. Returns the next one.
    fn end(&mut self, directory: DirectoryNumber) -> Option<Batch> {
        let busy = self.busy.get_mut(&directory)?;
        *busy -= 1;
        if *busy > 0 {
            return None;
        }
        self.busy.remove(&directory);
        let next = self.waiting.iter().position(|batch| batch.directory == directory)?;
        self.waiting.remove(next)
    }
}

impl Engine<'_> {
    /// Restores a file whose contents are read.
    pub(super) fn small(&mut self, directory: DirectoryNumber, file: SmallFile) {
        if self.batches.open.as_ref().is_some_and(|batch| batch.directory != directory) {
            self.close_batch();
        }
        let size = file.contents.len() as u64;
        self.emit(|| TreeRestoreEvent::ContentsRestored { size });
        self.files.insert(file.path.clone());
        let directories = &mut self.directories;
        let batch = self.batches.open.get_or_insert_with(|| {
            directories.begin(directory);
            Batch { bytes: 0, directory, files: Vec::new() }
        });
        batch.bytes += size + weight(&file.metadata);
        batch.files.push(file);
        if batch.files.len() >= MAX_FILES || batch.bytes >= MAX_BYTES {
            self.close_batch();
        }
    }

    /// Hands over the files that came last, or lets them wait for others of their directory.
    pub(super) fn close_batch(&mut self) {
        let Some(batch) = self.batches.open.take() else { return };
        self.task_bytes += batch.bytes;
        if self.batches.busy.contains_key(&batch.directory) {
            self.batches.waiting.push_back(batch);
        } else {
            self.start_batch(batch);
        }
    }

    /// Starts waiting batches as long as too few tasks run.
    pub(super) fn start_waiting(&mut self) {
        while self.tasks.len() < MIN_TASKS
            && let Some(batch) = self.batches.waiting.pop_front()
        {
            self.start_batch(batch);
        }
    }

    /// Starts the next batch of a directory after one has ended.
    pub(super) fn start_next(&mut self, directory: DirectoryNumber) {
        if let Some(batch) = self.batches.end(directory) {
            self.start_batch(batch);
        }
    }

    fn start_batch(&mut self, batch: Batch) {
        let Batch { bytes, directory, files } = batch;
        *self.batches.busy.entry(directory).or_default() += 1;
        let (ready, target) = (self.directories.ready(directory), self.target);
        self.start(async move {
            let kind = |file: &SmallFile| Some(FileKind::File { size: file.contents.len() as u64 });
            let entries: Vec<_> = files.iter().map(|file| (kind(file), file.path.clone())).collect();
            let mut outcomes = when_ready(ready, target.small_files(files)).await.map(Vec::into_iter);
            let mut outcome =
                || outcomes.as_mut().map(|outcomes| outcomes.next().unwrap_or_else(|| Err(missing())));
            let restored = |(kind, path)| Restored { kind, outcome: outcome(), path };
            let entries = entries.into_iter().map(restored).collect();
            Done { bytes, directory: Some(directory), entries, is_batch: true }
        });
    }
}

/// The target returned fewer results than it got files.
fn missing() -> TargetError {
    TargetError::new(Problem::NotCreated, std::io::Error::other("the target returned no result"))
}

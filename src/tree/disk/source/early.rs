//! Small files that are read when their directory is listed.
//!
//! A backup that reads every file would open each twice: for its metadata, and for its contents. Contents that are read early wait in their directory, within a
//! bound for the whole tree, until the backup opens the file, or leaves the directory.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::contents::{self, Listed};
use crate::tree::disk::status::Status;
use crate::tree::{EARLY_BYTES, EARLY_FILE_BYTES};

/// Bytes that may still be read early in a tree: none before the backup has said that it reads everything.
#[derive(Debug, Default)]
pub(super) struct EarlyBudget(AtomicU64);

impl EarlyBudget {
    /// The backup reads every file.
    pub(super) fn allow(&self) {
        self.0.store(EARLY_BYTES, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The files of one directory that were read early.
#[derive(Debug)]
pub(super) struct EarlyFiles {
    budget: Arc<EarlyBudget>,
    by_name: Mutex<HashMap<Bytes, (Listed, Bytes)>>,
}

impl EarlyFiles {
    pub(super) fn new(budget: Arc<EarlyBudget>) -> Self {
        Self { budget, by_name: Mutex::default() }
    }

    pub(super) fn budget(&self) -> &Arc<EarlyBudget> {
        &self.budget
    }

    /// Reads an open file of this status, if it is small and within the budget. A file that cannot be read as it is listed is left for its turn.
    pub(super) fn read(&self, name: &Bytes, file: OwnedFd, status: Status) {
        let size = status.size;
        if size == 0 || size > EARLY_FILE_BYTES || !self.budget.take(size) {
            return;
        }
        let listed = (size, status.stat.mtime);
        match contents::unchanged(File::from(file), status, listed) {
            None => self.budget.give_back(size),
            Some(bytes) => {
                if let Some((_, replaced)) = self.by_name().insert(name.clone(), (listed, bytes)) {
                    self.budget.give_back(replaced.len() as u64);
                }
            }
        }
    }

    /// Returns `true` if a file was read early.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.by_name().contains_key(name)
    }

    /// Takes a file that was read as it was listed.
    pub(super) fn take(&self, name: &[u8], listed: Listed) -> Option<Bytes> {
        let (found, bytes) = self.by_name().remove(name)?;
        self.budget.give_back(bytes.len() as u64);
        (found == listed).then_some(bytes)
    }

    fn by_name(&self) -> MutexGuard<'_, HashMap<Bytes, (Listed, Bytes)>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EarlyFiles {
    fn drop(&mut self) {
        let left = self.by_name().values().map(|(_, bytes)| bytes.len() as u64).sum();
        self.budget.give_back(left);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(files: &EarlyFiles, name: &'static str, file: &File) -> Listed {
        let status = Status::of(file).unwrap();
        files.read(&Bytes::from(name), file.try_clone().unwrap().into(), status);
        (status.size, status.stat.mtime)
    }

    #[test]
    fn small_files_are_read_early_within_the_budget_of_the_tree() {
        let (mut file, budget) = (tempfile::tempfile().unwrap(), Arc::<EarlyBudget>::default());
        file.write_all(b"contents").unwrap();
        let files = EarlyFiles::new(Arc::clone(&budget));
        let listed = read(&files, "unasked", &file);
        assert!(!files.has(b"unasked"));
        budget.allow();
        for name in ["a", "b", "b", "c"] {
            read(&files, name, &file);
        }
        assert_eq!(budget.0.load(Ordering::Relaxed), EARLY_BYTES - 24);
        assert_eq!(files.take(b"a", listed).unwrap(), b"contents"[..]);
        assert_eq!(files.take(b"a", listed), None);
        // It was listed again, and had changed.
        assert_eq!(files.take(b"b", (9, listed.1)), None);
        budget.0.store(7, Ordering::Relaxed);
        read(&files, "d", &file);
        assert!(!files.has(b"d") && files.has(b"c"));
        drop(files);
        assert_eq!(budget.0.load(Ordering::Relaxed), 7 + 8);
    }

    #[test]
    fn a_file_that_changed_after_its_status_was_read_is_left_for_its_turn() {
        let (mut file, budget) = (tempfile::tempfile().unwrap(), Arc::<EarlyBudget>::default());
        file.write_all(b"contents").unwrap();
        budget.allow();
        let files = EarlyFiles::new(Arc::clone(&budget));
        let before = Status::of(&file).unwrap();
        file.set_len(20).unwrap();
        files.read(&Bytes::from("grown"), file.try_clone().unwrap().into(), before);
        file.set_len(2).unwrap();
        files.read(&Bytes::from("shrunk"), file.try_clone().unwrap().into(), before);
        assert!(!files.has(b"grown") && !files.has(b"shrunk"));
        assert_eq!(budget.0.load(Ordering::Relaxed), EARLY_BYTES);
    }
}

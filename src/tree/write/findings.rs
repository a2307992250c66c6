//! Findings and progress of a backup of a tree.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::observer::Observer;
use crate::tree::{Problem, TreeFinding, TreeReport};

/// A progress event of a backup of a tree. Paths are relative to the root, byte for byte.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEvent {
    /// A directory was entered: its contents follow.
    DirectoryEntered {
        /// Its path.
        path: Bytes,
    },
    /// The contents of a file were read and written.
    FileRead {
        /// Its path.
        path: Bytes,
        /// Its size in bytes.
        size: u64,
    },
    /// The contents of a file come from the base: the file was not opened.
    FileReused {
        /// Its path.
        path: Bytes,
        /// Its size in bytes.
        size: u64,
    },
    /// An entry could not be handled as asked.
    Found(TreeFinding),
}

/// The report of a backup of a tree, and its observer.
#[derive(Clone, Default)]
pub(super) struct Findings {
    is_base_damaged: Arc<AtomicBool>,
    observer: Option<Arc<dyn Observer<TreeEvent>>>,
    report: Arc<Mutex<TreeReport>>,
}

impl Findings {
    pub(super) fn new(observer: Option<Arc<dyn Observer<TreeEvent>>>) -> Self {
        Self { is_base_damaged: Arc::default(), observer, report: Arc::default() }
    }

    /// Calls the observer, and makes the event only if there is one.
    pub(super) fn emit(&self, event: impl FnOnce() -> TreeEvent) {
        if let Some(observer) = &self.observer {
            observer.on_event(&event());
        }
    }

    pub(super) fn add(&self, finding: TreeFinding) {
        self.emit(|| TreeEvent::Found(finding.clone()));
        self.report.lock().unwrap_or_else(PoisonError::into_inner).add(finding);
    }

    /// Reports an entry that could not be opened or listed.
    pub(super) fn lost(&self, path: Vec<u8>, error: &std::io::Error, otherwise: Problem) {
        let problem =
            if error.kind() == std::io::ErrorKind::NotFound { Problem::Vanished } else { otherwise };
        self.add(TreeFinding::new(path, problem).because(error));
    }

    /// Notes that a part of the base could not be decoded.
    pub(super) fn note_damaged_base(&self) {
        self.is_base_damaged.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_base_damaged(&self) -> bool {
        self.is_base_damaged.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> TreeReport {
        std::mem::take(&mut *self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Findings").field("is_observed", &self.observer.is_some()).finish_non_exhaustive()
    }
}

//! The entries of a restore by their identity.
//!
//! A restore that skips or replaces existing entries must tell them from its own, which a filesystem that ignores case takes for the same. It
//! creates an entry and notes it within one lock, so that two tasks see one another.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Existing;
use crate::tree::disk::status::Status;
use crate::tree::restore::target::TargetError;
use crate::tree::{LinkId, Problem};

/// Entries of a restore.
#[derive(Debug, Default)]
pub(super) struct OwnEntries {
    /// Directories, with the hashes of their paths in the archive.
    directories: HashMap<LinkId, u64>,
    /// Files, to which the restore may link. Those of a restore that refuses what exists are noted when they are whole, the others when they are created.
    pub(super) files: HashSet<LinkId>,
    hasher: RandomState,
    /// Links, devices, pipes and sockets. None if the restore refuses what exists.
    pub(super) others: HashSet<LinkId>,
}

impl OwnEntries {
    /// The lock under which entries are created; `None` if existing ones are refused in any case.
    pub(super) fn lock(own: &Mutex<Self>, existing: Existing) -> Option<MutexGuard<'_, Self>> {
        (existing != Existing::Refuse).then(|| own.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns `true` for an entry of this restore that is no directory.
    pub(super) fn has(&self, id: LinkId) -> bool {
        self.files.contains(&id) || self.others.contains(&id)
    }

    /// Adds a directory that was created.
    pub(super) fn add_directory(&mut self, id: LinkId, path: &[u8]) {
        self.directories.insert(id, self.hasher.hash_one(path));
    }

    /// Adds a directory that exists; returns `false` if it is one of this restore with another path.
    pub(super) fn add_existing(&mut self, id: LinkId, path: &[u8]) -> bool {
        let hash = self.hasher.hash_one(path);
        *self.directories.entry(id).or_insert(hash) == hash
    }

    /// The error of an entry that replaces nothing although its name is taken, in a restore that skips existing entries.
    pub(super) fn skipped(&self, directory: impl AsFd, name: &std::ffi::CStr) -> TargetError {
        let is_own = |id| self.has(id) || self.directories.contains_key(&id);
        let is_own = Status::of_name(directory, name).is_ok_and(|status| is_own(status.id));
        exists(if is_own { Problem::Exists } else { Problem::Skipped })
    }
}

/// The error of an entry whose name is taken.
pub(super) fn exists(problem: Problem) -> TargetError {
    TargetError::new(problem, std::io::ErrorKind::AlreadyExists.into())
}

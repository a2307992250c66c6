//! Requests without an answer, and the names that they affect (I6).
//!
//! | request | while it is in doubt |
//! |---|---|
//! | put of a manifest, even if the manifest was found stored afterwards | the files of its snapshot stay, and the snapshot is not deleted |
//! | delete of an object | nothing that must last is stored under its name (H17): no new snapshot of the same time, no protection, notes or owner |
//!
//! Both end after the maximum time of a request.
//!
//! This file has the requests of this handle. The backend [knows](crate::backend::Coordination::in_doubt) names with requests of other and
//! dead processes; the checks ask both.

use std::time::Duration;

use bytes::Bytes;

use crate::backend::put_verified::{PutError, put_verified};
use crate::backend::{Deleted, PutMode, Removal};
use crate::chunks::pending::{PendingDeletes, PendingPuts};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{GroupName, SnapshotName};
use crate::store::StoreInner;

/// Requests of this handle without an answer.
#[derive(Debug, Default)]
pub(super) struct InDoubt {
    deletes: PendingDeletes<Key>,
    manifests: PendingPuts<SnapshotName>,
}

fn snapshot_of(key: &Key) -> Option<&SnapshotName> {
    match key {
        Key::Archive(name, _) | Key::ClientLog(name) | Key::Manifest(name) | Key::Protected(name) => {
            Some(name)
        }
        _ => None,
    }
}

fn in_doubt(left: Duration) -> Error {
    let seconds = left.as_secs() + 1;
    let why =
        format!("an earlier request to delete it got no answer, and may still be executed for {seconds} s");
    Error::new(ErrorKind::Busy, "store").because(why).retry_in(left)
}

impl StoreInner {
    /// Stores the manifest of a new snapshot, which is the last of its files. If the outcome is not certain, or the future is dropped, the
    /// put is pending: the manifest may still appear.
    pub(super) async fn put_manifest(&self, name: &SnapshotName, blob: Bytes) -> Result<(), PutError> {
        // Before the request, because this future may be dropped and the request still executed.
        let ticket = self.in_doubt.manifests.begin(name, self.runtime());
        let mode = self.backend.capabilities().create_mode();
        let put = put_verified(self.backend.as_ref(), &Key::Manifest(name.clone()), blob, mode).await;
        ticket.end(name, put.as_ref().map_or_else(|error| error.is_certain, |put| put.is_over));
        put.map(drop)
    }

    /// Replaces a manifest. A put that compares no version is pending if its outcome is not certain: it may store the manifest again after a
    /// deletion.
    pub(super) async fn replace_manifest(
        &self,
        name: &SnapshotName,
        blob: Bytes,
        mode: PutMode,
    ) -> Result<(), PutError> {
        let compares = matches!(mode, PutMode::IfMatch(_));
        let put = put_verified(self.backend.as_ref(), &Key::Manifest(name.clone()), blob, mode).await;
        if !compares && !put.as_ref().map_or_else(|error| error.is_certain, |put| put.is_over) {
            drop(self.in_doubt.manifests.begin(name, self.runtime()));
        }
        put.map(drop)
    }

    /// Time for which the manifest of this snapshot may still appear; `None` if it does not.
    pub(super) fn manifest_pending_for(&self, name: &SnapshotName) -> Option<Duration> {
        mutated!("manifest-in-doubt-is-forgotten" => return None);
        self.in_doubt.manifests.remaining(name, self.runtime().monotonic())
    }

    /// Deletes objects, and records the deletes without an answer as pending.
    ///
    /// # Errors
    /// As for [`Backend::delete`](crate::backend::Backend::delete).
    pub(super) async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        // Before the request, because this future may be dropped and the request still executed.
        let keys = removals.iter().map(|removal| &removal.key);
        let ticket = self.in_doubt.deletes.begin(keys, self.runtime());
        let results = self.backend.delete(removals).await;
        for (at, removal) in removals.iter().enumerate() {
            match &results {
                Ok(results) => {
                    if let Some(result) = results.get(at) {
                        ticket.finish(&removal.key, result);
                    }
                }
                Err(error) => ticket.finish(&removal.key, &Err(error.clone())),
            }
        }
        results
    }

    /// Refuses to store an object that a pending delete may remove.
    ///
    /// # Errors
    /// `Busy` while such a request may still be executed.
    pub(super) fn check_no_pending_delete(&self, key: &Key) -> Result<()> {
        mutated!("object-in-doubt-is-relied-on" => return Ok(()));
        let own = self.in_doubt.deletes.remaining(key, self.runtime().monotonic());
        own.max(self.backend.in_doubt(key)).map_or(Ok(()), |left| Err(in_doubt(left).on(key)))
    }

    /// Refuses a snapshot of which a pending delete may remove an object.
    ///
    /// # Errors
    /// `Busy` while such a request may still be executed.
    pub(super) fn check_no_pending_delete_of(&self, name: &SnapshotName) -> Result<()> {
        mutated!("name-in-doubt-is-used-again" => return Ok(()));
        let is_of_it = |key: &Key| snapshot_of(key) == Some(name);
        let own = self.in_doubt.deletes.longest_of(is_of_it, self.runtime().monotonic());
        let left = own.max(self.backend.in_doubt(&Key::Manifest(name.clone())));
        left.map_or(Ok(()), |left| Err(in_doubt(left).on(name)))
    }

    /// The snapshots of a group with a pending delete.
    pub(super) fn snapshots_with_pending_delete(&self, group: &GroupName) -> Vec<SnapshotName> {
        let keys = self.in_doubt.deletes.keys(self.runtime().monotonic());
        let names = keys.iter().filter_map(snapshot_of);
        names.filter(|name| name.group() == group).cloned().collect()
    }
}

//! Directories of a restore between their creation and their end.

use std::collections::HashMap;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt as _, Shared};

use crate::pxar::Metadata;

/// Number of a directory of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DirectoryNumber(u64);

/// Completes with `true` if the directory can take entries.
pub(super) type Ready = Shared<BoxFuture<'static, bool>>;

/// Directories with work below or ahead.
#[derive(Default)]
pub(super) struct Directories {
    next: u64,
    open: HashMap<DirectoryNumber, Open>,
}

struct Open {
    /// `true` when the walk has left it.
    is_left: bool,
    metadata: Metadata,
    parent: Option<DirectoryNumber>,
    path: Bytes,
    /// Number of tasks for entries in it, its own creation included.
    pending: usize,
    ready: Ready,
}

/// A directory of which everything below is done.
pub(super) struct Complete {
    pub(super) metadata: Metadata,
    pub(super) parent: Option<DirectoryNumber>,
    pub(super) path: Bytes,
    pub(super) ready: Ready,
}

impl Directories {
    /// Adds a directory, which is one task of its parent until it is complete. The sender tells when it can take entries.
    pub(super) fn add(
        &mut self,
        parent: Option<DirectoryNumber>,
        path: Bytes,
        metadata: Metadata,
    ) -> (DirectoryNumber, oneshot::Sender<bool>) {
        let number = DirectoryNumber(self.next);
        self.next += 1;
        let (sender, receiver) = oneshot::channel();
        let ready = receiver.map(|ready| ready.unwrap_or(false)).boxed().shared();
        self.open.insert(number, Open { is_left: false, metadata, parent, path, pending: 0, ready });
        if let Some(parent) = parent {
            self.begin(parent);
        }
        (number, sender)
    }

    /// Completes when a directory can take entries.
    pub(super) fn ready(&self, number: DirectoryNumber) -> Ready {
        let open = self.open.get(&number).map(|open| open.ready.clone());
        open.unwrap_or_else(|| futures::future::ready(false).boxed().shared())
    }

    /// Begins a task in a directory.
    pub(super) fn begin(&mut self, number: DirectoryNumber) {
        if let Some(open) = self.open.get_mut(&number) {
            open.pending += 1;
        }
    }

    /// Ends a task in a directory.
    pub(super) fn end(&mut self, number: DirectoryNumber) -> Option<Complete> {
        let open = self.open.get_mut(&number)?;
        open.pending -= 1;
        self.take_complete(number)
    }

    /// The walk leaves a directory.
    pub(super) fn leave(&mut self, number: DirectoryNumber) -> Option<Complete> {
        self.open.get_mut(&number)?.is_left = true;
        self.take_complete(number)
    }

    fn take_complete(&mut self, number: DirectoryNumber) -> Option<Complete> {
        let open = self.open.get(&number)?;
        if open.pending > 0 || !open.is_left {
            return None;
        }
        let Open { metadata, parent, path, ready, .. } = self.open.remove(&number)?;
        Some(Complete { metadata, parent, path, ready })
    }
}

/// Waits for a directory, then for the task in it; `None` if the directory takes no entries.
pub(super) async fn when_ready<T>(ready: Ready, task: impl Future<Output = T>) -> Option<T> {
    if ready.await { Some(task.await) } else { None }
}

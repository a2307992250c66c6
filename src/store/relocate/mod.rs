//! How groups and namespaces are copied and moved within a store.
//!
//! # The order, for each snapshot, the oldest first
//! ```text
//! locks → announced → files and client log, compared → mark of protection → barrier → locks still held → manifest → barrier
//!       → for a move: manifest of the source → barrier → its other files → barrier
//! ```
//! Before the manifest is at the destination there is nothing but an unfinished snapshot there, and the source is whole (H58). From
//! then on the destination is whole, and only then the source goes, its manifest first (H42). So a complete snapshot is there at all
//! times, and what a crash leaves is either unfinished, or twice the same. The same call goes on from there.
//!
//! A group has its owner at the destination before its first snapshot, and loses what belongs to it when its last one is gone.
//!
//! # While garbage is collected
//! The destinations of indexes are announced before anything is copied: to whoever collects garbage in this process, and through the
//! backend to others (H8). Chunks are not touched at all.

mod group;
mod snapshot;

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Prefix;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::store::Datastore;
use crate::store::catalog::delete::DeleteError;

/// What was copied or moved. That something could not be is told here, and is no error.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct Relocation {
    /// What became of each group.
    pub groups: Vec<RelocatedGroup>,
    /// Namespaces that were moved and are still there, since something is left in them.
    pub kept_namespaces: Vec<Namespace>,
    /// Why it ended early, if it did: the store may be somebody else's by now, or a namespace could not be made or removed.
    pub stopped: Option<Error>,
}

/// What became of a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct RelocatedGroup {
    /// Why nothing of it was copied or moved, or what belongs to the group could not be removed.
    pub error: Option<Error>,
    /// The source.
    pub from: GroupName,
    /// Whether the source is gone, with all that belonged to it.
    pub source_gone: bool,
    /// What became of each snapshot, oldest first.
    pub snapshots: Vec<RelocatedSnapshot>,
    /// The destination.
    pub to: GroupName,
}

/// What became of a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct RelocatedSnapshot {
    /// Its name at the source.
    pub name: SnapshotName,
    /// What became of it.
    pub outcome: Relocated,
}

/// What became of a snapshot that was to be copied or moved.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Relocated {
    /// The same snapshot is at the destination already.
    AlreadyThere,
    /// Somebody uses it, at the source or at the destination, also when it was tried once more. Those after it were not reached.
    Busy(Error),
    /// It is at both places now.
    Copied,
    /// It could not be copied or moved. It is whole at the source or at the destination. Those after it were not reached.
    Failed(Error),
    /// It was gone before its turn came, or was unfinished, its writer certainly dead, and was removed.
    Gone,
    /// It is at the destination only.
    Moved,
    /// An earlier one could not be copied or moved, and they must stay in order.
    NotReached,
    /// It is unfinished, and stays where it is: a backup was cut off, or perhaps is being written by another host.
    Unfinished,
}

impl Relocation {
    /// Whether everything that is finished is at the destination, and for a move nowhere else.
    pub fn is_complete(&self) -> bool {
        let is_done = |snapshot: &RelocatedSnapshot| {
            !matches!(snapshot.outcome, Relocated::Busy(_) | Relocated::Failed(_) | Relocated::NotReached)
        };
        self.stopped.is_none()
            && self.groups.iter().all(|group| group.error.is_none() && group.snapshots.iter().all(is_done))
    }
}

/// Whether the source stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Copy,
    Move,
}

impl How {
    fn action(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Move => "move",
        }
    }
}

impl Datastore {
    /// Copies a group into another namespace, which must exist. Type and id stay. Where there is such a group, its owner must be the
    /// same and all its snapshots older than those that are copied; its notes stay. What is there already is not copied again.
    ///
    /// # Errors
    /// `NotFound` if there is no such group or namespace; `InvalidInput` if it is there already, or is not newer; `Denied` if the group
    /// there belongs to somebody else; `Busy` if a backup of it is running. Nothing was copied then. What else goes wrong is in the
    /// result.
    ///
    /// # Cancel safety
    /// A dropped future leaves whole snapshots, and perhaps an unfinished one, at the destination. The same call goes on.
    pub async fn copy_group(&self, group: &GroupName, target: &Namespace) -> Result<Relocation> {
        self.relocate_group(group, target, How::Copy).await
    }

    /// Moves a group into another namespace. With the rules of [`copy_group`](Datastore::copy_group); protected snapshots are moved
    /// too, and stay protected. When the last one is gone, the source group goes.
    ///
    /// # Errors
    /// As [`copy_group`](Datastore::copy_group); `Busy` also while a backup of the source group is running.
    ///
    /// # Cancel safety
    /// A dropped future leaves each snapshot whole at the source, at the destination, or at both. The same call goes on.
    pub async fn move_group(&self, group: &GroupName, target: &Namespace) -> Result<Relocation> {
        self.relocate_group(group, target, How::Move).await
    }

    /// Copies a namespace, with all groups in it and all namespaces below it, to another name. What is above that name must exist; if
    /// the namespace itself does, groups are merged as by [`copy_group`](Datastore::copy_group).
    ///
    /// # Errors
    /// `NotFound` if there is no such namespace, or nothing to put it into; `InvalidInput` for the root, if one of the two contains the
    /// other, or if it would become too deep. Nothing was copied then. What else goes wrong is in the result.
    ///
    /// # Cancel safety
    /// As [`copy_group`](Datastore::copy_group).
    pub async fn copy_namespace(&self, namespace: &Namespace, new_name: &Namespace) -> Result<Relocation> {
        self.relocate_namespace(namespace, new_name, How::Copy).await
    }

    /// Moves a namespace to another name. With the rules of [`copy_namespace`](Datastore::copy_namespace). What cannot be moved stays,
    /// with the namespaces that it is in.
    ///
    /// # Errors
    /// As [`copy_namespace`](Datastore::copy_namespace).
    ///
    /// # Cancel safety
    /// As [`move_group`](Datastore::move_group).
    pub async fn move_namespace(&self, namespace: &Namespace, new_name: &Namespace) -> Result<Relocation> {
        self.relocate_namespace(namespace, new_name, How::Move).await
    }

    async fn relocate_group(&self, from: &GroupName, target: &Namespace, how: How) -> Result<Relocation> {
        self.inner.check_writable(how.action()).await?;
        self.look_again(Prefix::Namespace(Namespace::root())).await?;
        let failed = |kind| Error::new(kind, how.action()).on(from);
        if from.namespace() == target {
            return Err(failed(ErrorKind::InvalidInput).because("it is in that namespace"));
        }
        if !self.has_namespace(target).await? {
            return Err(failed(ErrorKind::NotFound).because(format!("there is no namespace {target}")));
        }
        let group = self.relocated(from, target, how).await.map_err(DeleteError::into_error)?;
        Ok(Relocation { stopped: group.lost, groups: vec![group.report], ..Relocation::default() })
    }

    async fn relocate_namespace(&self, from: &Namespace, to: &Namespace, how: How) -> Result<Relocation> {
        self.inner.check_writable(how.action()).await?;
        self.look_again(Prefix::Namespace(Namespace::root())).await?;
        let targets = self.namespace_targets(from, to, how).await?;
        let mut done = Relocation::default();
        for (namespace, target) in &targets {
            if let Err(error) = self.ensure_namespace(target).await {
                done.stopped = Some(error);
                return Ok(done);
            }
            for group in self.groups(namespace).await? {
                match self.relocated(&group, target, how).await {
                    Ok(relocated) => {
                        done.stopped = relocated.lost;
                        done.groups.push(relocated.report);
                    }
                    Err(DeleteError::Failed(error)) => {
                        let to = group.clone().in_namespace(target.clone());
                        let report = RelocatedGroup {
                            error: Some(error),
                            from: group,
                            source_gone: false,
                            snapshots: Vec::new(),
                            to,
                        };
                        done.groups.push(report);
                    }
                    Err(DeleteError::Lost(error)) => done.stopped = Some(error),
                }
                if done.stopped.is_some() {
                    return Ok(done);
                }
            }
        }
        if how == How::Move {
            // From inside out.
            for (namespace, _) in targets.iter().rev() {
                match self.remove_namespace(namespace).await {
                    Ok(true) => {}
                    Ok(false) => done.kept_namespaces.push(namespace.clone()),
                    Err(trouble) => {
                        done.stopped = Some(trouble.into_error());
                        return Ok(done);
                    }
                }
            }
            self.inner.backend.barrier().await?;
        }
        Ok(done)
    }

    /// The namespaces that are copied or moved, the outer ones first, each with its new name.
    async fn namespace_targets(
        &self,
        from: &Namespace,
        to: &Namespace,
        how: How,
    ) -> Result<Vec<(Namespace, Namespace)>> {
        let failed = |kind| Error::new(kind, how.action()).on(from);
        let invalid = |why: &'static str| Err(failed(ErrorKind::InvalidInput).because(why));
        if from.is_root() {
            return invalid("it is the root");
        }
        if from.contains(to) || to.contains(from) {
            return invalid("one of the two namespaces contains the other");
        }
        if !self.has_namespace(from).await? {
            return Err(failed(ErrorKind::NotFound));
        }
        let parent = to.parent().unwrap_or_default();
        if !self.has_namespace(&parent).await? {
            return Err(failed(ErrorKind::NotFound).because(format!("there is no namespace {parent}")));
        }
        let mut targets = Vec::new();
        for namespace in self.namespaces(from).await? {
            let mut target = to.clone();
            for name in namespace.components().skip(from.depth()) {
                let child = target.child(name);
                target = child.map_err(|error| failed(ErrorKind::InvalidInput).because(error))?;
            }
            targets.push((namespace, target));
        }
        Ok(targets)
    }

    async fn ensure_namespace(&self, namespace: &Namespace) -> Result<()> {
        if self.has_namespace(namespace).await? {
            return Ok(());
        }
        match self.create_namespace(namespace).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            created => created,
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;

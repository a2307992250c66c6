//! Copies and moves of groups and namespaces within a store.
//!
//! # Order, for each snapshot, oldest first
//! ```text
//! locks → destinations recorded → files and client log, compared → protection mark → barrier → locks checked → manifest → barrier
//!       → for a move: manifest of the source → barrier → its other files → barrier
//! ```
//! Until the manifest is stored, the destination has an unfinished snapshot at most, and the source is complete (H58). After
//! that the destination is complete, and only then is the source removed, its manifest first (H42). So a complete snapshot exists at all
//! times, and a crash leaves an unfinished one, or two equal ones. The same call continues from there.
//!
//! A group gets its owner at the destination before its first snapshot, and loses its metadata with its last one.
//!
//! # Concurrent garbage collection
//! The destinations of indexes are recorded before anything is copied: in this process, and in the move
//! journal for others (H8). Chunks are not touched.

mod group;
mod snapshot;

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Prefix;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::store::StoreInner;
use crate::store::catalog::delete::DeleteError;

/// Result of a copy or move. Failures are reported here, not as errors.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Relocation {
    /// Results by group.
    pub groups: Vec<RelocatedGroup>,
    /// Moved namespaces that still exist, because they are not empty.
    pub kept_namespaces: Vec<Namespace>,
    /// Reason why it ended early, if it did: another process may own the store now, or a namespace could not be created or removed.
    pub stopped: Option<Error>,
}

/// Result for a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RelocatedGroup {
    /// Reason why nothing of it was copied or moved, or why its metadata could not be removed.
    pub error: Option<Error>,
    /// The source.
    pub from: GroupName,
    /// `true` if the source is removed, with all its metadata.
    pub source_gone: bool,
    /// Outcome for each snapshot, oldest first.
    pub snapshots: Vec<RelocatedSnapshot>,
    /// The destination.
    pub to: GroupName,
}

/// Result for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RelocatedSnapshot {
    /// Its name at the source.
    pub name: SnapshotName,
    /// The outcome.
    pub outcome: Relocated,
}

/// Outcome for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Relocated {
    /// The destination has the same snapshot already.
    AlreadyThere,
    /// In use at the source or the destination for half a second, or an earlier request may still change one of them. It is complete at the
    /// source, at the destination, or at both. Later snapshots were not reached.
    Busy(Error),
    /// Copied: it is at both places now.
    Copied,
    /// Failed. It is complete at the source, at the destination, or at both. Later snapshots were not reached.
    Failed(Error),
    /// Gone before its turn, or removed because it was unfinished and its writer certainly dead.
    Gone,
    /// Moved: it is at the destination only.
    Moved,
    /// Not reached: an earlier one failed, and the order must be kept.
    NotReached,
    /// Unfinished, and left in place: a backup was interrupted, or may be in progress on another host.
    Unfinished,
}

impl Relocation {
    /// Returns `true` if every finished snapshot is at the destination, and after a move nowhere else.
    pub fn is_complete(&self) -> bool {
        let is_done = |snapshot: &RelocatedSnapshot| {
            !matches!(snapshot.outcome, Relocated::Busy(_) | Relocated::Failed(_) | Relocated::NotReached)
        };
        self.stopped.is_none()
            && self.groups.iter().all(|group| group.error.is_none() && group.snapshots.iter().all(is_done))
    }
}

/// Kind of a relocation.
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

/// Copies and moves within a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relocator<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Copies and moves within the store.
    pub(crate) fn relocator(self: &Arc<Self>) -> Relocator<'_> {
        Relocator { inner: self }
    }
}

impl Relocator<'_> {
    /// See [`Datastore::copy_group`](crate::store::Datastore::copy_group).
    pub(crate) async fn copy_group(&self, group: &GroupName, target: &Namespace) -> Result<Relocation> {
        self.relocate_group(group, target, How::Copy).await
    }

    /// See [`Datastore::move_group`](crate::store::Datastore::move_group).
    pub(crate) async fn move_group(&self, group: &GroupName, target: &Namespace) -> Result<Relocation> {
        self.relocate_group(group, target, How::Move).await
    }

    /// See [`Datastore::copy_namespace`](crate::store::Datastore::copy_namespace).
    pub(crate) async fn copy_namespace(
        &self,
        namespace: &Namespace,
        new_name: &Namespace,
    ) -> Result<Relocation> {
        self.relocate_namespace(namespace, new_name, How::Copy).await
    }

    /// See [`Datastore::move_namespace`](crate::store::Datastore::move_namespace).
    pub(crate) async fn move_namespace(
        &self,
        namespace: &Namespace,
        new_name: &Namespace,
    ) -> Result<Relocation> {
        self.relocate_namespace(namespace, new_name, How::Move).await
    }

    async fn relocate_group(&self, from: &GroupName, target: &Namespace, how: How) -> Result<Relocation> {
        self.inner.check_writable(how.action()).await?;
        self.inner.catalog().look_again(Prefix::Namespace(Namespace::root())).await?;
        let failed = |kind| Error::new(kind, how.action()).on(from);
        if from.namespace() == target {
            return Err(failed(ErrorKind::InvalidInput).because("it is in that namespace"));
        }
        if !self.inner.catalog().has_namespace(target).await? {
            return Err(failed(ErrorKind::NotFound).because(format!("there is no namespace {target}")));
        }
        let group = self.relocated(from, target, how).await.map_err(DeleteError::into_error)?;
        Ok(Relocation { stopped: group.lost, groups: vec![group.report], ..Relocation::default() })
    }

    async fn relocate_namespace(&self, from: &Namespace, to: &Namespace, how: How) -> Result<Relocation> {
        self.inner.check_writable(how.action()).await?;
        self.inner.catalog().look_again(Prefix::Namespace(Namespace::root())).await?;
        let targets = self.namespace_targets(from, to, how).await?;
        let mut done = Relocation::default();
        for (namespace, target) in &targets {
            if let Err(error) = self.ensure_namespace(target).await {
                done.stopped = Some(error);
                return Ok(done);
            }
            for group in self.inner.catalog().groups(namespace).await? {
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
            // Inner namespaces first.
            for (namespace, _) in targets.iter().rev() {
                match self.inner.deletions().remove_namespace(namespace).await {
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

    /// The namespaces to copy or move, outer ones first, with their new names.
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
        if !self.inner.catalog().has_namespace(from).await? {
            return Err(failed(ErrorKind::NotFound));
        }
        let parent = to.parent().unwrap_or_default();
        if !self.inner.catalog().has_namespace(&parent).await? {
            return Err(failed(ErrorKind::NotFound).because(format!("there is no namespace {parent}")));
        }
        let mut targets = Vec::new();
        for namespace in self.inner.catalog().namespaces(from).await? {
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
        if self.inner.catalog().has_namespace(namespace).await? {
            return Ok(());
        }
        match self.inner.metadata().create_namespace(namespace).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            created => created,
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;

//! Listings of namespaces, groups and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use std::time::SystemTime;

use crate::backend::{ListEntry, ListQuery, ObjectInfo, Pager, Unreadable, Version, list_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::{BackupType, GroupName, Namespace, SnapshotName};
use crate::store::StoreInner;

/// Number of newest snapshots of a group that are looked at first.
const NEWEST: usize = 4;

/// A snapshot in a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotInfo {
    /// Its files, by name. The manifest, the client log and the mark of protection are not among them.
    pub files: Vec<FileInfo>,
    /// `true` if it has a client log.
    pub has_client_log: bool,
    /// Its name.
    pub name: SnapshotName,
    /// `true` if it is protected against deletion.
    pub protected: bool,
    /// State of the snapshot.
    pub state: SnapshotState,
    /// The entries that make it [unreadable](SnapshotState::Unreadable).
    pub unreadable: Vec<Unreadable>,
}

impl SnapshotInfo {
    /// Errors with `Corrupt` if something of the snapshot is unreadable: it cannot be deleted, copied or moved as a whole.
    pub(crate) fn check_readable(&self, action: &'static str) -> Result<()> {
        self.unreadable.first().map_or(Ok(()), |unreadable| Err(unreadable.error(action)))
    }

    /// A snapshot of which nothing is there.
    pub(in crate::store) fn empty(name: &SnapshotName) -> Self {
        Self {
            files: Vec::new(),
            has_client_log: false,
            name: name.clone(),
            protected: false,
            state: SnapshotState::Unfinished,
            unreadable: Vec::new(),
        }
    }
}

/// A file of a snapshot in a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FileInfo {
    /// Its name.
    pub name: crate::format::name::ArchiveName,
    /// The size of the index or blob itself, in bytes. What an archive contains is in the manifest.
    pub stored_bytes: u64,
}

/// How far a snapshot got.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SnapshotState {
    /// It has a manifest.
    Finished,
    /// It has none: a backup is running or was cut off. It cannot be restored and is no base.
    Unfinished,
    /// The directory of the snapshot, or something in it, is a symbolic link or another entry that cannot be read. The snapshot may be
    /// finished. It is not deleted, copied or moved, and no garbage is collected, until the entry is removed or replaced by
    /// a plain file or directory.
    Unreadable,
}

/// A snapshot in a listing, with the version that its manifest had there, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) info: SnapshotInfo,
    pub(crate) manifest: Option<Version>,
}

/// Listings of namespaces, groups and snapshots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Catalog<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Listings of the store.
    pub(crate) fn catalog(self: &Arc<Self>) -> Catalog<'_> {
        Catalog { inner: self }
    }
}

impl Catalog<'_> {
    /// See [`Datastore::child_namespaces`](crate::store::Datastore::child_namespaces).
    pub(crate) async fn child_namespaces(&self, parent: &Namespace) -> Result<Vec<Namespace>> {
        let found = self.children(Prefix::Namespaces(parent.clone())).await?;
        let children = found.into_iter().filter_map(|prefix| match prefix {
            Prefix::Namespace(namespace) => Some(namespace),
            _ => None,
        });
        let mut children: Vec<_> = children.collect();
        children.sort();
        Ok(children)
    }

    /// See [`Datastore::namespaces`](crate::store::Datastore::namespaces).
    pub(crate) async fn namespaces(&self, top: &Namespace) -> Result<Vec<Namespace>> {
        let mut found = Vec::new();
        let mut next = vec![top.clone()];
        while let Some(namespace) = next.pop() {
            next.extend(self.child_namespaces(&namespace).await?.into_iter().rev());
            found.push(namespace);
        }
        Ok(found)
    }

    /// See [`Datastore::has_namespace`](crate::store::Datastore::has_namespace).
    pub(crate) async fn has_namespace(&self, namespace: &Namespace) -> Result<bool> {
        match namespace.parent() {
            None => Ok(true),
            // By the listing and not by the marker: a namespace with contents exists even where it has none.
            Some(parent) => Ok(self.child_namespaces(&parent).await?.contains(namespace)),
        }
    }

    /// See [`Datastore::groups`](crate::store::Datastore::groups).
    pub(crate) async fn groups(&self, namespace: &Namespace) -> Result<Vec<GroupName>> {
        let mut groups = Vec::new();
        for backup_type in [BackupType::Ct, BackupType::Host, BackupType::Vm] {
            let found = self.children(Prefix::Groups(namespace.clone(), backup_type)).await?;
            groups.extend(found.into_iter().filter_map(|prefix| match prefix {
                Prefix::Group(group) => Some(group),
                _ => None,
            }));
        }
        groups.sort();
        Ok(groups)
    }

    /// See [`Datastore::snapshots`](crate::store::Datastore::snapshots).
    pub(crate) async fn snapshots(&self, group: &GroupName) -> Result<Vec<SnapshotInfo>> {
        Ok(self.listed_snapshots(group).await?.into_iter().map(|listed| listed.info).collect())
    }

    /// See [`Datastore::latest`](crate::store::Datastore::latest).
    pub(crate) async fn latest(&self, group: &GroupName) -> Result<Option<SnapshotName>> {
        let snapshots = self.newest_snapshots(group).await?;
        let finished = snapshots.into_iter().rfind(|info| info.state == SnapshotState::Finished);
        Ok(finished.map(|info| info.name))
    }

    /// The newest finished snapshot of a group that is not later than `time`.
    pub(crate) async fn latest_until(
        &self,
        group: &GroupName,
        time: SystemTime,
    ) -> Result<Option<SnapshotName>> {
        let snapshots = self.snapshots(group).await?.into_iter().rev();
        let mut finished = snapshots.filter(|info| info.state == SnapshotState::Finished);
        Ok(finished.find(|info| SystemTime::from(info.name.time()) <= time).map(|info| info.name))
    }

    /// See [`Datastore::snapshot_info`](crate::store::Datastore::snapshot_info).
    pub(crate) async fn snapshot_info(&self, name: &SnapshotName) -> Result<SnapshotInfo> {
        let listed = self.listed_snapshot(name).await?;
        listed.map(|listed| listed.info).ok_or_else(|| Error::new(ErrorKind::NotFound, "look up").on(name))
    }

    /// The snapshots of a group, oldest first.
    pub(crate) async fn listed_snapshots(&self, group: &GroupName) -> Result<Vec<Listed>> {
        let query = ListQuery::all(Prefix::Group(group.clone()));
        Ok(self.listed(query).await?.into_values().collect())
    }

    /// The newest snapshots of a group, oldest first: the newest finished one, all that are newer, and some that are older. Costs the
    /// same however many there are, but for reading their names.
    pub(crate) async fn newest_snapshots(&self, group: &GroupName) -> Result<Vec<SnapshotInfo>> {
        let below = Prefix::Group(group.clone());
        if self.inner.backend.capabilities().deep_listings {
            let mut pager = Pager::new(ListQuery::all(below.clone()));
            // The first page of a group, which seldom has another.
            let page = pager.next(self.inner.backend.as_ref()).await?.unwrap_or_default();
            if pager.has_ended() {
                return Ok(snapshots_in(page).into_values().map(|listed| listed.info).collect());
            }
        }
        let names = self.children(below.clone()).await?.into_iter();
        let mut names: Vec<_> = names
            .filter_map(|prefix| match prefix {
                Prefix::Snapshot(name) => Some(name),
                _ => None,
            })
            .collect();
        names.sort_by_key(SnapshotName::time);
        let mut many = NEWEST;
        loop {
            let (before, newest) = names.split_at(names.len().saturating_sub(many));
            let after = before.last().map(|name| Key::Manifest(name.clone()));
            let query = ListQuery::all(below.clone()).between(after, None);
            let mut snapshots = self.listed(query).await?;
            // Of the one before, what comes after its manifest was listed too.
            snapshots.retain(|name, _| newest.first().is_none_or(|first| name.time() >= first.time()));
            let found: Vec<_> = snapshots.into_values().map(|listed| listed.info).collect();
            if before.is_empty() || found.iter().any(|info| info.state == SnapshotState::Finished) {
                return Ok(found);
            }
            many *= NEWEST;
        }
    }

    /// One snapshot, if there is anything of it.
    pub(crate) async fn listed_snapshot(&self, name: &SnapshotName) -> Result<Option<Listed>> {
        Ok(self.listed(ListQuery::all(Prefix::Snapshot(name.clone()))).await?.remove(name))
    }

    async fn listed(&self, query: ListQuery) -> Result<BTreeMap<SnapshotName, Listed>> {
        let listing = list_all(self.inner.backend.as_ref(), &query).await?;
        Ok(snapshots_in(listing.into_entries()))
    }

    async fn children(&self, prefix: Prefix) -> Result<Vec<Prefix>> {
        let listing = list_all(self.inner.backend.as_ref(), &ListQuery::children(prefix)).await?;
        let prefixes = listing.into_entries().into_iter().filter_map(|entry| match entry {
            ListEntry::Prefix(prefix) => Some(prefix),
            // It exists: a request for its contents meets the error, and no operation takes it for absent.
            ListEntry::Unreadable(unreadable) => Prefix::parse(&(unreadable.path + "/")),
            ListEntry::Foreign(_) | ListEntry::Name(_) | ListEntry::Object(_) => None,
        });
        Ok(prefixes.collect())
    }

    /// All snapshots below a prefix, unfinished ones among them, by one listing, the bytes of their manifests and logs, and what
    /// cannot be read in the place of groups and namespaces.
    pub(crate) async fn snapshots_below(
        &self,
        prefix: Prefix,
    ) -> Result<(BTreeMap<SnapshotName, SnapshotInfo>, u64, Vec<Unreadable>)> {
        let listing = list_all(self.inner.backend().as_ref(), &ListQuery::all(prefix)).await?;
        let (mut snapshots, mut bytes, mut unreadable) = (BTreeMap::new(), 0, Vec::new());
        for entry in listing.into_entries() {
            match entry {
                ListEntry::Object(object) => {
                    if matches!(object.key, Key::ClientLog(_) | Key::Manifest(_)) {
                        bytes += object.size;
                    }
                    note(&mut snapshots, object);
                }
                ListEntry::Unreadable(entry) => unreadable.extend(note_unreadable(&mut snapshots, entry)),
                ListEntry::Foreign(_) | ListEntry::Name(_) | ListEntry::Prefix(_) => {}
            }
        }
        let snapshots = snapshots.into_iter().map(|(name, Listed { info, .. })| (name, info));
        Ok((snapshots.collect(), bytes, unreadable))
    }

    /// Makes sure that no stale copy answers for metadata below a prefix.
    ///
    /// # Errors
    /// Any failure to list.
    pub(crate) async fn look_again(&self, prefix: Prefix) -> Result<()> {
        match &self.inner.local {
            Some(local) => local.metadata_cache.look_again(prefix).await,
            None => Ok(()),
        }
    }
}

fn snapshots_in(entries: Vec<ListEntry>) -> BTreeMap<SnapshotName, Listed> {
    let mut snapshots = BTreeMap::new();
    for entry in entries {
        match entry {
            ListEntry::Object(object) => note(&mut snapshots, object),
            ListEntry::Unreadable(unreadable) => _ = note_unreadable(&mut snapshots, unreadable),
            ListEntry::Foreign(_) | ListEntry::Name(_) | ListEntry::Prefix(_) => {}
        }
    }
    snapshots
}

pub(in crate::store) fn note(snapshots: &mut BTreeMap<SnapshotName, Listed>, object: ObjectInfo) {
    let (Key::Archive(name, _) | Key::ClientLog(name) | Key::Manifest(name) | Key::Protected(name)) =
        &object.key
    else {
        return;
    };
    let listed = entry(snapshots, name.clone());
    let info = &mut listed.info;
    match object.key {
        Key::Archive(_, name) => info.files.push(FileInfo { name, stored_bytes: object.size }),
        Key::ClientLog(_) => info.has_client_log = true,
        Key::Manifest(_) => {
            if info.state == SnapshotState::Unfinished {
                info.state = SnapshotState::Finished;
            }
            listed.manifest = Some(object.version);
        }
        Key::Protected(_) => info.protected = true,
        _ => {}
    }
}

/// Notes what cannot be read of a snapshot; returns it if it is no part of one.
pub(in crate::store) fn note_unreadable(
    snapshots: &mut BTreeMap<SnapshotName, Listed>,
    unreadable: Unreadable,
) -> Option<Unreadable> {
    let Some(name) = unreadable.snapshot() else { return Some(unreadable) };
    let info = &mut entry(snapshots, name).info;
    info.state = SnapshotState::Unreadable;
    info.unreadable.push(unreadable);
    None
}

fn entry(snapshots: &mut BTreeMap<SnapshotName, Listed>, name: SnapshotName) -> &mut Listed {
    snapshots
        .entry(name)
        .or_insert_with_key(|name| Listed { info: SnapshotInfo::empty(name), manifest: None })
}

//! Trees of files in archives.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use larder::crypt::EncryptionKey;
use larder::format::name::SnapshotName;
use larder::pxar::{FileKind, Metadata};
use larder::store::{Datastore, SnapshotReader};
use larder::tree::{Tree, TreeEntry};

use super::{Outcome, input};

/// Returns `true` for the name of a file archive: `root.pxar`, with or without `.didx`, and the halves of the split form.
pub(crate) fn is_tree(archive: &str) -> bool {
    let bare = archive.strip_suffix(".didx").unwrap_or(archive);
    [".pxar", ".mpxar", ".ppxar"].iter().any(|suffix| bare.ends_with(suffix))
}

/// Opens a snapshot, with the key if it is for this one.
pub(crate) async fn open_snapshot(
    store: &Datastore,
    name: &SnapshotName,
    key: Option<&EncryptionKey>,
) -> Outcome<SnapshotReader> {
    let mut snapshot = store.snapshot(name).await?;
    if let Some(key) = key {
        snapshot.unlock(key)?;
    }
    Ok(snapshot)
}

/// The names of all trees of a snapshot, such as `root`, in order.
pub(crate) fn trees_of(snapshot: &SnapshotReader) -> Vec<String> {
    let names = snapshot.manifest().files().iter().map(|file| file.name.to_string());
    let stem = |name: String| {
        let bare = name.strip_suffix(".didx")?;
        bare.strip_suffix(".pxar").or_else(|| bare.strip_suffix(".mpxar")).map(str::to_owned)
    };
    let mut stems: Vec<_> = names.filter_map(stem).collect();
    stems.sort();
    stems.dedup();
    stems
}

/// A path of an argument: without slashes at its ends.
pub(crate) fn path_of(argument: &str) -> Outcome<Vec<u8>> {
    let parts: Vec<_> = argument.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(input(format!("{argument}: a path in an archive has no \"..\"")));
    }
    Ok(parts.join("/").into_bytes())
}

/// An entry as people see it: a hard link is the file that it leads to, under its own path.
pub(crate) async fn resolved_at(tree: &Tree, entry: &TreeEntry) -> larder::Result<TreeEntry> {
    let mut resolved = tree.target(entry).await?;
    resolved.path = entry.path.clone();
    Ok(resolved)
}

/// The differences between two entries of one path, in words.
pub(crate) fn differences(old: &TreeEntry, new: &TreeEntry) -> Vec<&'static str> {
    let (before, after) = (&old.metadata, &new.metadata);
    let same_kind = std::mem::discriminant(&old.kind) == std::mem::discriminant(&new.kind);
    let is_file = matches!(new.kind, FileKind::File { .. });
    let checks = [
        (!same_kind, "kind"),
        (same_kind && is_file && old.size() != new.size(), "size"),
        (same_kind && !is_file && old.kind != new.kind, "target"),
        (before.stat.mode & 0o7777 != after.stat.mode & 0o7777, "mode"),
        ((before.stat.uid, before.stat.gid) != (after.stat.uid, after.stat.gid), "owner"),
        (before.stat.mtime != after.stat.mtime, "time"),
        (before.stat.flags != after.stat.flags, "flags"),
        (extended(before) != extended(after), "attributes"),
    ];
    checks.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what).collect()
}

fn extended(metadata: &Metadata) -> impl PartialEq {
    let mut xattrs: Vec<_> =
        metadata.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
    xattrs.sort();
    (xattrs, metadata.acl.clone(), metadata.capabilities.clone(), metadata.project)
}

/// The name of the last part of a path.
pub(crate) fn name_of(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default())
}

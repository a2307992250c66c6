//! Lookup of entries by their paths.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::decode::head::{ContentsAt, EntryHead};
use crate::pxar::goodbye::{Table, TableChild};
use crate::pxar::{EXCLUDE_FILE, EntryContents, FileKind, TreeDecodeError, TreeFault, last_name, names};
use crate::tree::read::Tree;
use crate::tree::read::entry::TreeEntry;
use crate::tree::read::tables::{DirectoryAt, head_of};

/// Maximum size of recorded exclude patterns.
const MAX_PATTERN_BYTES: u64 = 1 << 20;

/// An entry that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Where it is, if it is a directory.
    pub(super) directory: Option<DirectoryAt>,
    pub(super) entry: TreeEntry,
    /// Positions of the names on the way, without its own.
    pub(super) parents: Vec<u64>,
}

/// Finds an entry.
pub(super) async fn find(tree: &Tree, path: &[u8]) -> Result<Found> {
    let streams = &tree.shared.streams;
    let names = names_of(path)?;
    let root = DirectoryAt { entry: 0, end: streams.size() };
    let Some((last, parents)) = names.split_last() else {
        let entry =
            entry_of(streams.root().await?.head, Bytes::new(), 0).map_err(|error| streams.damaged(error))?;
        return Ok(Found { directory: Some(root), entry, parents: Vec::new() });
    };
    let (mut directory, mut positions) = (root, Vec::with_capacity(parents.len()));
    for name in parents {
        let table = tree.shared.tables.read(streams, directory).await?;
        let (child, head) = child_named(tree, &table, name).await?.ok_or_else(|| missing(path))?;
        if head.kind != FileKind::Directory {
            return Err(missing(path));
        }
        positions.push(child.position);
        directory = DirectoryAt::of_child(child, name).map_err(|error| streams.damaged(error))?;
    }
    let table = tree.shared.tables.read(streams, directory).await?;
    let (child, head) = child_named(tree, &table, last).await?.ok_or_else(|| missing(path))?;
    let directory = match head.kind {
        FileKind::Directory => {
            Some(DirectoryAt::of_child(child, last).map_err(|error| streams.damaged(error))?)
        }
        _ => None,
    };
    let path = Bytes::from(names.join(&b'/'));
    let entry = entry_of(head, path, child.position).map_err(|error| streams.damaged(error))?;
    Ok(Found { directory, entry, parents: positions })
}

/// The names of a path.
pub(super) fn names_of(path: &[u8]) -> Result<Vec<&[u8]>> {
    let names: Vec<_> = names(path).collect();
    if names.contains(&&b".."[..]) {
        let error = Error::new(ErrorKind::InvalidInput, "find entry").on(String::from_utf8_lossy(path));
        return Err(error.because("the path has `..`"));
    }
    Ok(names)
}

/// Finds a child by its name. The heads of other names with the same hash are read as well.
async fn child_named(tree: &Tree, table: &Table, name: &[u8]) -> Result<Option<(TableChild, EntryHead)>> {
    let streams = &tree.shared.streams;
    for child in table.candidates(name) {
        let head = head_of(streams, child).await?;
        if head.name == name {
            return Ok(Some((child, head)));
        }
    }
    Ok(None)
}

/// An entry of a head.
pub(super) fn entry_of(
    head: EntryHead,
    path: Bytes,
    position: u64,
) -> std::result::Result<TreeEntry, TreeDecodeError> {
    let contents = match head.contents {
        ContentsAt::Here => EntryContents::Archive { position: position + head.bytes as u64 },
        ContentsAt::Link(distance) => {
            let target = position.checked_sub(distance);
            let target = target.ok_or_else(|| TreeDecodeError::new(TreeFault::Link, position).of(&path))?;
            EntryContents::Of { position: target }
        }
        ContentsAt::None => EntryContents::None,
        ContentsAt::Payload(offset) => EntryContents::Payload { offset },
    };
    Ok(TreeEntry { contents, kind: head.kind, metadata: head.metadata, path, position })
}

/// Checks that the path of a hard link leads to the file at its position. Damage on the way hides that, and is no error.
pub(super) async fn check_path(tree: &Tree, link: &TreeEntry, target: &TreeEntry) -> Result<()> {
    let streams = &tree.shared.streams;
    match find(tree, &target.path).await {
        Ok(found) if found.entry.position == target.position => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            if error.kind() == ErrorKind::Corrupt {
                Ok(())
            } else {
                Err(error)
            }
        }
        _ => Err(streams.damaged(TreeDecodeError::new(TreeFault::Link, link.position).of(&link.path))),
    }
}

/// Reads the file at the position of a hard link. It must have the last name in the path of the link.
pub(super) async fn target(tree: &Tree, link: &TreeEntry, path: &Bytes, position: u64) -> Result<TreeEntry> {
    let streams = &tree.shared.streams;
    let damaged = || streams.damaged(TreeDecodeError::new(TreeFault::Link, link.position).of(&link.path));
    // It ends before the link: it stands earlier and is no directory.
    let head = streams.head(position, link.position).await?;
    if !matches!(head.kind, FileKind::File { .. }) || head.name != last_name(path) {
        return Err(damaged());
    }
    entry_of(head, path.clone(), position).map_err(|_| damaged())
}

/// The exclude patterns that the backup recorded.
pub(super) async fn recorded_excludes(tree: &Tree) -> Result<Bytes> {
    if tree.is_split() {
        let prelude = tree.shared.streams.root().await?.prelude;
        // A prelude may have anything in it.
        let json: Option<serde_json::Value> = serde_json::from_slice(&prelude).ok();
        let patterns = json.as_ref().and_then(|json| json.get("exclude-patterns")?.as_str());
        return Ok(patterns.map_or_else(Bytes::new, |patterns| Bytes::copy_from_slice(patterns.as_bytes())));
    }
    match tree.open(EXCLUDE_FILE).await {
        Ok(file) if file.size() <= MAX_PATTERN_BYTES => file.read_all().await,
        Ok(_) => Ok(Bytes::new()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Bytes::new()),
        Err(error) => Err(error),
    }
}

fn missing(path: &[u8]) -> Error {
    Error::new(ErrorKind::NotFound, "find entry").on(String::from_utf8_lossy(path))
}

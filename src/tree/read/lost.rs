//! The way past a damaged part of an archive: to the next entry that an intact table leads to.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::pxar::decode::Decoder;
use crate::pxar::goodbye::{Table, TableChild};
use crate::pxar::{MAX_DEPTH, MAX_PATH_BYTES};
use crate::tree::read::Tree;
use crate::tree::read::tables::DirectoryAt;

/// Maximum bytes of tables of open directories. Those of the directories below are not looked at.
const MAX_TABLES_BYTES: usize = 64 << 20;

/// Where a walk goes on.
#[derive(Debug)]
pub(super) struct Resumption {
    /// Number of open directories that stay open.
    pub(super) depth: usize,
    /// Directories to enter from there, whose names are lost: made-up names and positions.
    pub(super) lost: Vec<(Bytes, u64)>,
    /// Position of an entry or a table.
    pub(super) position: u64,
}

/// Finds the next entry or table at `after` or behind it. `None` if nothing leads there.
pub(super) async fn resume(tree: &Tree, decoder: &Decoder, after: u64) -> Result<Option<Resumption>> {
    let mut tables = intact_tables(tree, decoder).await?;
    let lost_from = decoder.item_position();
    while let Some(table) = tables.pop() {
        let depth = tables.len() + 1;
        let next = table.index_from(after);
        // An entry that starts in the damaged part and ends behind it. A directory that is open started before that part.
        let across = next.checked_sub(1).and_then(|index| table.child(index));
        if tree.is_split()
            && let Some(across) = across.filter(|child| child.position >= lost_from && child.limit > after)
            && let Some((lost, position)) =
                descend(tree, across, after, (depth, decoder.path_bytes(depth))).await?
        {
            return Ok(Some(Resumption { depth, lost, position }));
        }
        if let Some(next) = table.child(next) {
            return Ok(Some(Resumption { depth, lost: Vec::new(), position: next.position }));
        }
        if table.span().table >= after {
            return Ok(Some(Resumption { depth, lost: Vec::new(), position: table.span().table }));
        }
    }
    Ok(None)
}

/// The tables of the open directories, from the root to the last that can be read.
async fn intact_tables(tree: &Tree, decoder: &Decoder) -> Result<Vec<Arc<Table>>> {
    let streams = &tree.shared.streams;
    let mut directory = DirectoryAt { entry: 0, end: streams.size() };
    let mut tables: Vec<Arc<Table>> = Vec::new();
    let mut bytes = 0;
    for (index, open) in decoder.directories().iter().enumerate() {
        if bytes > MAX_TABLES_BYTES {
            break;
        }
        if index > 0 {
            let Some(parent) = tables.last() else { break };
            let child = parent.child(parent.index_from(open.position));
            let child = child.filter(|child| child.position == open.position);
            let found = child.and_then(|child| Some((child, child.directory_end().ok()?)));
            let Some((child, end)) = found else { break };
            let Some(name) = decoder.name_of(index) else { break };
            let Some(entry) = child.position.checked_add(17 + name.len() as u64) else { break };
            directory = DirectoryAt { entry, end };
            if open.is_lost {
                let Some(table) = unless_corrupt(tree.shared.tables.read_lost(streams, child).await)? else {
                    break;
                };
                bytes += table.memory_bytes();
                tables.push(table);
                continue;
            }
        }
        let Some(table) = unless_corrupt(tree.shared.tables.read(streams, directory).await)? else { break };
        bytes += table.memory_bytes();
        tables.push(table);
    }
    Ok(tables)
}

/// Goes down into a directory that starts in the damaged part and ends behind it, and into those in it. The depth and the length of the path
/// are those of the directory above: the way is no longer than that of an archive may be.
async fn descend(
    tree: &Tree,
    child: TableChild,
    after: u64,
    (mut depth, mut path_bytes): (usize, usize),
) -> Result<Option<(Vec<(Bytes, u64)>, u64)>> {
    let mut lost = Vec::new();
    let mut across = child;
    loop {
        let made_up = format!("damaged-directory-{}", across.position);
        depth += 1;
        path_bytes += 1 + made_up.len();
        if depth > MAX_DEPTH || path_bytes > MAX_PATH_BYTES {
            break;
        }
        let read = tree.shared.tables.read_lost(&tree.shared.streams, across).await;
        let Some(table) = unless_corrupt(read)?.filter(|table| table.span().end > after) else { break };
        let next = table.index_from(after);
        let inner = next.checked_sub(1).and_then(|index| table.child(index));
        let position = table.child(next).map_or(table.span().table, |next| next.position);
        if position < after {
            break;
        }
        lost.push((Bytes::from(made_up), across.position, position));
        match inner.filter(|inner| inner.limit > after) {
            Some(inner) => across = inner,
            None => break,
        }
    }
    let position = lost.last().map(|(.., position)| *position);
    let names = lost.into_iter().map(|(name, at, _)| (name, at)).collect();
    Ok(position.map(|position| (names, position)))
}

/// `None` instead of damage.
fn unless_corrupt<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        Err(error) => Err(error),
    }
}

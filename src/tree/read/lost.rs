//! The way past a damaged part of an archive: to the next entry that an intact table leads to.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::pxar::decode::Decoder;
use crate::pxar::goodbye::{Table, TableChild};
use crate::pxar::{MAX_DEPTH, MAX_PATH_BYTES};
use crate::tree::read::Tree;
use crate::tree::read::tables::DirectoryAt;

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

/// Finds the next entry or table at `after` or behind it. `None` if nothing leads there. `held` keeps the tables of the open directories: large ones
/// would otherwise be read again for each malformed entry.
pub(super) async fn resume(
    tree: &Tree,
    decoder: &Decoder,
    after: u64,
    held: &mut Vec<Arc<Table>>,
) -> Result<Option<Resumption>> {
    hold_tables(tree, decoder, held).await?;
    let lost_from = decoder.item_position();
    for (index, table) in held.iter().enumerate().rev() {
        let depth = index + 1;
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

/// Makes `held` the tables of the open directories, from the root to the last that can be read.
async fn hold_tables(tree: &Tree, decoder: &Decoder, held: &mut Vec<Arc<Table>>) -> Result<()> {
    let (streams, tables) = (&tree.shared.streams, &tree.shared.tables);
    let mut bytes = 0;
    for (index, open) in decoder.directories().iter().enumerate() {
        let place = match index.checked_sub(1).and_then(|above| held.get(above)) {
            _ if bytes > tree.shared.limits.held_tables => None,
            None => (index == 0).then_some(Place::At(DirectoryAt { entry: 0, end: streams.size() })),
            Some(above) => place_of(decoder, index, open.position, above),
        };
        let Some(place) = place else {
            held.truncate(index);
            break;
        };
        if !held.get(index).is_some_and(|table| place.is_of(table)) {
            held.truncate(index);
            let read = match place {
                Place::At(directory) => tables.read(streams, directory).await,
                Place::Lost(child, _) => tables.read_lost(streams, child).await,
            };
            let Some(table) = unless_corrupt(read)? else { break };
            held.push(table);
        }
        bytes += held.get(index).map_or(0, |table| table.memory_bytes());
    }
    held.truncate(decoder.directories().len());
    Ok(())
}

/// Where a directory is.
#[derive(Clone, Copy)]
enum Place {
    At(DirectoryAt),
    /// Its name is lost, and it has this end.
    Lost(TableChild, u64),
}

impl Place {
    /// Returns `true` if the table is that of the directory.
    fn is_of(&self, table: &Table) -> bool {
        let span = table.span();
        match self {
            Self::At(directory) => (span.entry, span.end) == (directory.entry, directory.end),
            Self::Lost(child, end) => span.end == *end && span.entry > child.position,
        }
    }
}

/// Where the open directory with this index and position is, by the table of the directory above.
fn place_of(decoder: &Decoder, index: usize, position: u64, above: &Table) -> Option<Place> {
    let child = above.child(above.index_from(position)).filter(|child| child.position == position)?;
    let end = child.directory_end().ok()?;
    if decoder.directories().get(index)?.is_lost {
        return Some(Place::Lost(child, end));
    }
    let entry = child.position.checked_add(17 + decoder.name_of(index)?.len() as u64)?;
    Some(Place::At(DirectoryAt { entry, end }))
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

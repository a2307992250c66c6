//! Lookup tables of directories: GOODBYE items.
//!
//! A table has a row of 24 bytes for each child, and a row for the directory at its end:
//!
//! | offset | bytes | field | row of a child | last row |
//! |---|---|---|---|---|
//! | 0 | 8 | hash | of the name | marker |
//! | 8 | 8 | offset | position of the GOODBYE − position of the FILENAME of the child | position of the GOODBYE − position of the ENTRY of the directory; for the root, − 0 |
//! | 16 | 8 | size | from the FILENAME to the end of the child | of this GOODBYE |
//!
//! The rows of the children are a complete binary search tree by hash: the children of row i are the rows 2i+1 and 2i+2.
//!
//! The size of a directory leads to its own table. In a split archive, the size of a file that was written with its contents counts these
//! too, although they are in another stream, so it is no position.

use crate::pxar::item;

/// Bytes of a row.
pub(super) const ROW_BYTES: usize = 24;

/// Bytes of the table of an empty directory.
pub(super) const MIN_TABLE_BYTES: u64 = 40;

/// A child in the table of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    /// Hash of the name.
    pub(super) hash: u64,
    /// Position of the FILENAME.
    pub(super) position: u64,
    /// Size in the table.
    pub(super) size: u64,
}

/// Size of a GOODBYE item with rows for this number of children.
pub(super) fn table_bytes(children: usize) -> usize {
    item::HEADER_BYTES + (children + 1) * ROW_BYTES
}

/// Appends a GOODBYE item that stands at `position`.
pub(super) fn encode(mut rows: Vec<Row>, position: u64, directory: u64, out: &mut Vec<u8>) {
    let size = table_bytes(rows.len());
    out.reserve(size);
    out.extend_from_slice(&item::header(item::GOODBYE, size as u64));
    rows.sort_unstable();
    let tree = out.len();
    out.resize(tree + rows.len() * ROW_BYTES, 0);
    let mut next = leftmost(0, rows.len());
    for row in &rows {
        let at = tree + next * ROW_BYTES;
        write_row(&mut out[at..at + ROW_BYTES], row.hash, position - row.position, row.size);
        next = successor(next, rows.len());
    }
    let tail = out.len();
    out.resize(tail + ROW_BYTES, 0);
    write_row(&mut out[tail..], item::GOODBYE_TAIL, position - directory, size as u64);
}

fn write_row(out: &mut [u8], hash: u64, offset: u64, size: u64) {
    out[..8].copy_from_slice(&hash.to_le_bytes());
    out[8..16].copy_from_slice(&offset.to_le_bytes());
    out[16..].copy_from_slice(&size.to_le_bytes());
}

/// The first row in the order of hashes in the tree of `rows` rows below this one.
fn leftmost(mut row: usize, rows: usize) -> usize {
    while 2 * row + 1 < rows {
        row = 2 * row + 1;
    }
    row
}

/// The next row in the order of hashes; without meaning after the last one.
fn successor(mut row: usize, rows: usize) -> usize {
    if 2 * row + 2 < rows {
        return leftmost(2 * row + 2, rows);
    }
    while row > 0 && row.is_multiple_of(2) {
        row = (row - 1) / 2;
    }
    row.saturating_sub(1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_complete_search_tree() {
        for (count, order) in [
            (1, &[0][..]),
            (2, &[1, 0]),
            (3, &[1, 0, 2]),
            (4, &[2, 1, 3, 0]),
            (5, &[3, 1, 4, 0, 2]),
            (6, &[3, 1, 5, 0, 2, 4]),
            (7, &[3, 1, 5, 0, 2, 4, 6]),
            (10, &[6, 3, 8, 1, 5, 7, 9, 0, 2, 4]),
        ] {
            let rows = (0..count).map(|hash| Row { hash, position: 0, size: 0 }).collect();
            let mut out = Vec::new();
            encode(rows, 0, 0, &mut out);
            let hashes: Vec<_> = out[16..].chunks(ROW_BYTES).map(|row| u64::from(row[0])).collect();
            assert_eq!(hashes[..order.len()], *order, "{count}");
        }
    }
}

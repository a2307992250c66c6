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

use crate::pxar::fault::{TreeDecodeError, TreeFault};
use crate::pxar::hash::name_hash;
use crate::pxar::item::{self, HEADER_BYTES};

/// Bytes of a row.
pub(crate) const ROW_BYTES: usize = 24;

/// Bytes of the table of an empty directory.
pub(super) const MIN_TABLE_BYTES: u64 = 40;

/// Bytes of the smallest child: a hard link.
const MIN_CHILD_BYTES: u64 = 44;

/// Bytes of the smallest child that is a directory: name, entry and table.
const MIN_DIRECTORY_BYTES: u64 = 18 + 48 + MIN_TABLE_BYTES;

/// Maximum number of children in a table that is read into memory, where a child takes 28 bytes. No directory of a usual filesystem is as large.
const MAX_CHILDREN: u64 = 1 << 22;

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
fn bytes_of_table(children: usize) -> usize {
    item::HEADER_BYTES + (children + 1) * ROW_BYTES
}

/// Appends a GOODBYE item that stands at `position`.
pub(super) fn encode(mut rows: Vec<Row>, position: u64, directory: u64, out: &mut Vec<u8>) {
    let size = bytes_of_table(rows.len());
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

/// Where the table of a directory is, with the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableSpan {
    /// Position of the ENTRY of the directory; 0 for the root.
    pub(crate) entry: u64,
    /// Position of the GOODBYE.
    pub(crate) table: u64,
    /// Position of the end of both.
    pub(crate) end: u64,
}

impl TableSpan {
    /// Decodes the last row of a directory that starts at `entry` and ends at `end`.
    pub(crate) fn parse(row: [u8; ROW_BYTES], entry: u64, end: u64) -> Result<Self, TreeDecodeError> {
        let tail = read_row(&row);
        let invalid = || TreeDecodeError::new(TreeFault::Table, end.saturating_sub(ROW_BYTES as u64));
        let table =
            end.checked_sub(tail.size).filter(|table| table.checked_sub(tail.position) == Some(entry));
        let table =
            table.filter(|table| entry < *table && tail.hash == item::GOODBYE_TAIL).ok_or_else(invalid)?;
        let rows =
            tail.size.checked_sub(MIN_TABLE_BYTES).filter(|rows| rows.is_multiple_of(ROW_BYTES as u64));
        let children = rows.map(|rows| rows / ROW_BYTES as u64);
        if children.is_none_or(|children| children > ((table - entry) / MIN_CHILD_BYTES).min(MAX_CHILDREN)) {
            return Err(invalid());
        }
        Ok(Self { entry, table, end })
    }

    /// Decodes the last row of a directory whose name is lost, and which starts behind `start`.
    pub(crate) fn parse_lost(row: [u8; ROW_BYTES], start: u64, end: u64) -> Result<Self, TreeDecodeError> {
        let tail = read_row(&row);
        let entry = end.checked_sub(tail.size).and_then(|table| table.checked_sub(tail.position));
        match entry.filter(|entry| *entry > start) {
            Some(entry) => Self::parse(row, entry, end),
            None => Err(TreeDecodeError::new(TreeFault::Table, end)),
        }
    }

    /// Length of the GOODBYE.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.end - self.table
    }
}

/// The table of a directory: its children by position and by hash.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Indexes of the children in the order of their hashes.
    by_hash: Vec<u32>,
    /// The children in the order of the archive.
    children: Vec<Row>,
    span: TableSpan,
}

impl Table {
    /// Decodes the whole GOODBYE item of this span.
    ///
    /// The order of its rows does not matter: the table sorts them itself.
    pub(crate) fn parse(item: &[u8], span: TableSpan) -> Result<Self, TreeDecodeError> {
        let invalid = || TreeDecodeError::new(TreeFault::Table, span.table);
        let size = span.end - span.table;
        if item.len() as u64 != size
            || item.get(..HEADER_BYTES) != Some(&item::header(item::GOODBYE, size)[..])
        {
            return Err(invalid());
        }
        let rows = item.get(HEADER_BYTES..item.len() - ROW_BYTES).ok_or_else(invalid)?;
        let mut children = Vec::with_capacity(rows.len() / ROW_BYTES);
        for row in rows.as_chunks::<ROW_BYTES>().0 {
            let Row { hash, position: offset, size } = read_row(row);
            let position = span.table.checked_sub(offset).filter(|at| *at > span.entry && *at < span.table);
            children.push(Row { hash, position: position.ok_or_else(invalid)?, size });
        }
        children.sort_unstable_by_key(|child| child.position);
        if children.windows(2).any(|pair| pair[0].position == pair[1].position) {
            return Err(invalid());
        }
        let mut by_hash: Vec<_> = (0..u32::try_from(children.len()).map_err(|_| invalid())?).collect();
        by_hash.sort_by_key(|index| children[*index as usize].hash);
        Ok(Self { by_hash, children, span })
    }

    pub(crate) fn span(&self) -> TableSpan {
        self.span
    }

    /// Number of children.
    pub(crate) fn len(&self) -> usize {
        self.children.len()
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.children.len() * (size_of::<Row>() + size_of::<u32>())
    }

    /// The child with this index in the order of the archive.
    pub(crate) fn child(&self, index: usize) -> Option<TableChild> {
        let row = self.children.get(index)?;
        let limit = self.children.get(index + 1).map_or(self.span.table, |next| next.position);
        Some(TableChild { hash: row.hash, limit, position: row.position, size: row.size })
    }

    /// The children that may have this name.
    pub(crate) fn candidates(&self, name: &[u8]) -> impl Iterator<Item = TableChild> {
        let hash = name_hash(name);
        let of = |index: &u32| self.children.get(*index as usize).map_or(0, |child| child.hash);
        let first = self.by_hash.partition_point(|index| of(index) < hash);
        let found = self.by_hash[first..].iter().take_while(move |index| of(index) == hash);
        found.filter_map(|index| self.child(*index as usize))
    }

    /// Index of the first child at this position or behind it.
    pub(crate) fn index_from(&self, position: u64) -> usize {
        self.children.partition_point(|child| child.position < position)
    }
}

/// A child in the table of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableChild {
    /// Hash of its name.
    hash: u64,
    /// Where the next child or the table starts: the child ends there or before.
    pub(crate) limit: u64,
    /// Position of its FILENAME.
    pub(crate) position: u64,
    /// Size in the table; that of a directory leads to its end.
    pub(crate) size: u64,
}

impl TableChild {
    /// Returns `true` if the hash is that of this name.
    pub(crate) fn is_named(&self, name: &[u8]) -> bool {
        self.hash == name_hash(name)
    }

    /// Where the child ends, if it is a directory.
    pub(crate) fn directory_end(&self) -> Result<u64, TreeDecodeError> {
        let end = self
            .position
            .checked_add(self.size)
            .filter(|end| *end <= self.limit || mutated!("pxar-child-reaches-out"));
        end.filter(|_| self.size >= MIN_DIRECTORY_BYTES)
            .ok_or_else(|| TreeDecodeError::new(TreeFault::Table, self.position))
    }
}

/// Reads the fields of a row; the offset stands in for the position.
fn read_row(row: &[u8; ROW_BYTES]) -> Row {
    let [hash, position, size] = std::array::from_fn(|index| {
        row.as_chunks::<8>().0.get(index).map_or(0, |field| u64::from_le_bytes(*field))
    });
    Row { hash, position, size }
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

    /// An item with these rows of children, which stands at 1000 in a directory at 100.
    fn item(rows: &[(u64, u64, u64)]) -> (Vec<u8>, TableSpan) {
        let rows =
            rows.iter().map(|(hash, position, size)| Row { hash: *hash, position: *position, size: *size });
        let mut out = Vec::new();
        encode(rows.collect(), 1000, 100, &mut out);
        let span = TableSpan { entry: 100, table: 1000, end: 1000 + out.len() as u64 };
        assert_eq!(TableSpan::parse(*out.last_chunk().unwrap(), 100, span.end), Ok(span));
        assert_eq!(TableSpan::parse_lost(*out.last_chunk().unwrap(), 99, span.end), Ok(span));
        (out, span)
    }

    #[test]
    fn a_table_finds_children_by_name_and_position_and_bounds_them() {
        let (b, c) = (name_hash(b"b"), name_hash(b"c"));
        // Two children have the hash of one name.
        let (item, span) = item(&[(b, 300, 200), (c, 150, 150), (b, 500, 5000)]);
        let table = Table::parse(&item, span).unwrap();
        let positions: Vec<_> =
            (0..4).map_while(|index| table.child(index)).map(|child| child.position).collect();
        assert_eq!(positions, [150, 300, 500]);
        let found = |name: &[u8]| table.candidates(name).map(|child| child.position).collect::<Vec<_>>();
        assert_eq!((found(b"b"), found(b"c"), found(b"x")), (vec![300, 500], vec![150], vec![]));
        assert_eq!(table.child(1).unwrap().directory_end(), Ok(500));
        assert!(table.child(2).unwrap().directory_end().is_err());
        assert_eq!([0, 150, 151, 501].map(|position| table.index_from(position)), [0, 0, 1, 3]);
    }

    /// Proves H194.
    #[test]
    fn tables_that_lead_out_of_their_directory_are_refused() {
        let faults = |item: &[u8], span| Table::parse(item, span).map(drop).unwrap_err().fault;
        for positions in [[100, 300], [1000, 300], [50, 300], [300, 300]] {
            let mut rows: Vec<_> = positions.iter().map(|position| (1, *position, 10)).collect();
            rows[0].1 = rows[0].1.min(1000);
            let (item, span) = item(&rows);
            assert_eq!(faults(&item, span), TreeFault::Table, "{positions:?}");
        }
        let (mut item, span) = item(&[(1, 200, 10)]);
        let row: [u8; ROW_BYTES] = *item.last_chunk().unwrap();
        for (entry, end) in [(99, span.end), (100, span.end + 1), (0, 20)] {
            assert_eq!(TableSpan::parse(row, entry, end).unwrap_err().fault, TreeFault::Table);
        }
        for (at, byte) in [(0, 0), (8, 0xff), (16, 41), (16, 40 - 24), (23, 0xff)] {
            let mut row = row;
            row[at] = byte;
            assert_eq!(TableSpan::parse(row, 100, span.end).unwrap_err().fault, TreeFault::Table, "{at}");
        }
        item[0] ^= 1;
        assert_eq!(faults(&item, span), TreeFault::Table);
        // More rows than fit between the directory and its table.
        let mut crowded = Vec::new();
        encode(vec![Row { hash: 0, position: 150, size: 0 }; 10], 500, 100, &mut crowded);
        let row = *crowded.last_chunk().unwrap();
        assert_eq!(
            TableSpan::parse(row, 100, 500 + crowded.len() as u64).unwrap_err().fault,
            TreeFault::Table
        );
    }
}

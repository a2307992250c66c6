//! Catalogs: names, kinds, sizes and times of all archives of a snapshot in unified form (`catalog.pcat1`).
//!
//! | part | content |
//! |---|---|
//! | 8 bytes | magic `91 fd 60 f9 c4 67 58 d5` |
//! | blocks | one for each directory, children before parents; the last is the root, whose entries are the archives |
//! | 8 bytes | position of the root, u64 |
//!
//! A block is the number of its bytes, then the number of its entries, then the entries: a letter, the length of the name, the name, and
//! more for two kinds:
//!
//! | letter | kind | more |
//! |---|---|---|
//! | `d` | directory | position of this block − position of the block of the directory |
//! | `f` | file | size, seconds of its time |
//! | `l`, `h`, `b`, `c`, `p`, `s` | symbolic link, hard link, block device, character device, pipe, socket | – |
//!
//! Numbers have 7 bits a byte, the lowest first; bit 7 says that another byte follows. A negative time is its magnitude with bit 7 in each
//! byte, then a byte 0. The position of the root has a fixed width and is little-endian.
//!
//! Source: specification of the format, made from observed catalogs.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{CatalogDirectory, CatalogEntry, CatalogKind, CatalogReader};
pub use write::CatalogWriter;

/// The first bytes of a catalog.
const MAGIC: [u8; 8] = [0x91, 0xfd, 0x60, 0xf9, 0xc4, 0x67, 0x58, 0xd5];

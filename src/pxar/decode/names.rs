//! Names in a directory, of which none may occur twice.

use std::collections::HashSet;

use crate::pxar::hash::name_hash;

/// The names in a directory so far. It keeps 8 bytes for each, while they are sorted.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// All hashes, once a name was not sorted.
    all: Option<HashSet<u64>>,
    hashes: Vec<u64>,
    last: Vec<u8>,
}

impl Names {
    /// Adds a name. Returns `false` if it is there already.
    ///
    /// A name with the hash of another counts as the same: only a hostile archive has two.
    pub(super) fn insert(&mut self, name: &[u8]) -> bool {
        let hash = name_hash(name);
        if self.all.is_none() && (self.hashes.is_empty() || name > &self.last[..]) {
            self.last.clear();
            self.last.extend_from_slice(name);
            self.hashes.push(hash);
            return true;
        }
        let hashes = &mut self.hashes;
        self.all.get_or_insert_with(|| std::mem::take(hashes).into_iter().collect()).insert(hash)
    }
}

//! Chunks in listings.

use crate::backend::{Details, ListEntry, ListQuery};
use crate::digest_set::Shard;
use crate::format::Digest;
use crate::format::layout::{Key, Prefix};

/// The chunk of a listing entry, and its size if listed; `None` for any other entry.
pub(crate) fn listed_chunk(entry: &ListEntry) -> Option<(Digest, u64)> {
    let (key, size) = match entry {
        ListEntry::Name(key) => (key, 0),
        ListEntry::Object(info) => (&info.key, info.size),
        ListEntry::Foreign(_) | ListEntry::Prefix(_) | ListEntry::Unreadable(_) => return None,
    };
    if let Key::Chunk(digest) = key { Some((*digest, size)) } else { None }
}

/// Lists the chunks of a shard, and their quarantined copies.
pub(crate) fn query_of(shard: &Shard, details: Details) -> ListQuery {
    // A digest that ends in ones may have quarantined copies.
    let after = shard.first.checked_sub(1).map(|before| Key::Quarantined(filled(before, 0xff), 9));
    let until = (shard.last != u64::MAX).then(|| Key::Quarantined(filled(shard.last, 0xff), 9));
    let mut query = ListQuery::all(Prefix::Chunks).between(after, until);
    query.details = details;
    query
}

/// The digest that begins with a mark and continues with one byte.
fn filled(mark: u64, fill: u8) -> Digest {
    Digest::from_bytes(std::array::from_fn(|at| if at < 8 { byte_of(mark, at) } else { fill }))
}

/// One of the eight bytes of a mark.
fn byte_of(mark: u64, at: usize) -> u8 {
    mark.to_le_bytes()[7 - at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest_set::mark_of;

    #[test]
    fn queries_of_shards_cover_their_chunks() {
        for count in [0, 1, 2, 3, 16, 17, 1000, 1 << 20] {
            for shard in Shard::all(count) {
                let query = query_of(&shard, Details::All);
                for (mark, inside) in [(shard.first, true), (shard.last, true)] {
                    let digest = filled(mark, 0x77);
                    assert_eq!(mark_of(&digest), mark);
                    assert_eq!(query.covers(&Key::Chunk(digest).path()), inside);
                    assert_eq!(query.covers(&Key::Quarantined(digest, 0).path()), inside);
                }
            }
        }
    }
}

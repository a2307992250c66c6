//! The chunks of a packed store as the collector goes through them: in order, each with its pack.
//!
//! A listing shows the same chunks as objects. The collector needs neither their paths nor their versions, which take more time than everything
//! else that a collection does with a chunk.

use std::sync::Arc;
use std::time::SystemTime;

use crate::backend::{Cursor, ListQuery};
use crate::error::Result;
use crate::format::Digest;
use crate::format::layout::{Key, PackName};
use crate::packs::PackedBackend;
use crate::packs::list::{LAST_COPY, PackListing};

/// A chunk, or a quarantined copy of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SurveyedChunk {
    /// Length of the blob.
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
    /// The time of the put of its pack.
    pub(crate) last_used: SystemTime,
    pub(crate) pack: Option<PackName>,
    /// Number of the quarantined copy.
    pub(crate) quarantined: Option<u8>,
}

/// Chunks that follow each other.
#[derive(Debug)]
pub(crate) struct SurveyPage {
    pub(crate) chunks: Vec<SurveyedChunk>,
    /// Foreign paths; with the last page alone.
    pub(crate) foreign: Vec<String>,
}

/// A walk over the chunks that a query of chunks shows.
#[derive(Debug)]
pub(crate) struct Survey {
    after: Option<Key>,
    begin: Cursor,
    is_over: bool,
    listing: Option<Arc<PackListing>>,
    packed: PackedBackend,
    query: ListQuery,
}

impl PackedBackend {
    /// Number of requests that the backend below executes at once. Chunks in flight are many more, so that one request reads several.
    pub(crate) fn requests_in_flight(&self) -> usize {
        self.packs.inner.capabilities().in_flight
    }
}

impl Survey {
    /// The chunks that the listing shows that [began](crate::backend::Housekeeping::begin_listing) with this cursor.
    pub(crate) fn new(packed: PackedBackend, query: ListQuery, begin: Cursor) -> Self {
        Self { after: None, begin, is_over: false, listing: None, packed, query }
    }

    /// The next page, which may be empty; `None` after the last.
    ///
    /// # Errors
    /// Any failure to list packs, or to read records; `Corrupt` if an entry in the place of a pack cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Option<SurveyPage>> {
        if self.is_over {
            return Ok(None);
        }
        let packs = &self.packed.packs;
        let listing = if let Some(listing) = &self.listing {
            listing
        } else {
            let listing = packs.listing_of(&self.begin).await?;
            listing.check_readable("collect garbage behind")?;
            self.listing.insert(listing)
        };
        let (copies, limit) = packs.page(&self.query, self.after.as_ref(), listing).await?;
        let (state, now) = (packs.state(), packs.runtime().now());
        let chunks = copies.iter().map(|(copy, place)| {
            let pack = state.view.pack(place.pack);
            SurveyedChunk {
                bytes: place.length.into(),
                digest: copy.digest,
                // An unknown time counts as new: nothing is deleted because of it.
                last_used: pack.and_then(|pack| pack.last_used).unwrap_or(now),
                pack: pack.map(|pack| pack.name),
                quarantined: copy.quarantined,
            }
        });
        let chunks = chunks.collect();
        self.is_over = limit.is_none();
        self.after = limit.map(|limit| Key::Quarantined(limit, LAST_COPY));
        let is_last = self.is_over && self.query.until.is_none();
        let foreign = if is_last { packs.foreign(listing) } else { Vec::new() };
        Ok(Some(SurveyPage { chunks, foreign }))
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::backend::{Housekeeping as _, ListEntry, PutMode, list_all};
    use crate::format::layout::Prefix;
    use crate::packs::tests::{chunk, memory, open, put};

    #[test]
    fn a_survey_shows_what_a_listing_shows_with_the_pack_of_each_chunk() {
        block_on(async {
            let below = memory();
            let packed = open(&below, "a").await;
            // Segments of different sizes, from each of which every page takes a part, and an open pack.
            for numbers in [0..10_500, 10_500..10_800, 10_800..10_803] {
                for number in numbers {
                    put(&packed, number).await;
                }
                packed.barrier_of_holder().await.unwrap();
            }
            put(&packed, 10_803).await;
            let Key::Chunk(bad) = chunk(5) else { unreachable!() };
            packed.copy(&chunk(5), &Key::Quarantined(bad, 0), PutMode::Create).await.unwrap();

            let query = ListQuery::all(Prefix::Chunks);
            let listed = list_all(&packed, &query).await.unwrap().into_entries();
            let begin = packed.begin_listing(&Prefix::Chunks).await.unwrap().unwrap();
            let mut survey = Survey::new(packed, query, begin);
            let (mut surveyed, mut pages) = (Vec::new(), 0);
            while let Some(page) = survey.next().await.unwrap() {
                surveyed.extend(page.chunks);
                pages += 1;
            }
            assert!(pages > 1);
            assert_eq!((listed.len(), surveyed.len()), (10_804, 10_804));
            for (entry, chunk) in listed.iter().zip(&surveyed) {
                let ListEntry::Object(info) = entry else { panic!("{entry:?}") };
                let key = match chunk.quarantined {
                    None => Key::Chunk(chunk.digest),
                    Some(number) => Key::Quarantined(chunk.digest, number),
                };
                let pack = chunk.pack.unwrap().to_string();
                assert_eq!((&info.key, info.size, info.last_used), (&key, chunk.bytes, chunk.last_used));
                assert_eq!(info.version.as_str().split(':').next(), Some(&pack[..]));
            }
        });
    }
}

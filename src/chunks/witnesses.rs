//! Chunks named by current snapshots.
//!
//! A presence record says that this process stored or compared a chunk. The chunk may be gone since: a program
//! without a lease, such as a PBS that is still configured for the bucket, may have deleted snapshots and collected garbage.
//! So a record counts only with a witness:
//!
//! | other evidence for the chunk | action |
//! |---|---|
//! | an active writer of this process confirmed it | trusted |
//! | a finished snapshot in an uncached listing names it | trusted |
//! | none | looked up with one request; stored if it is gone |
//!
//! An existing index is enough, whatever happened before: every collector keeps the chunks of an index, and every writer stores
//! chunks before their index. Each writer lists the metadata once, after it locked the store and when it meets the first record.
//! It reads indexes from local copies of the listed version, those of its own group and
//! the newest first, and only while it meets chunks that none of them named. An index without a copy is no witness.
//!
//! Memory: at most [`MAX_NAMES`] names of 16 bytes. Chunks of further indexes are looked up.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures::lock::Mutex as AsyncMutex;

use crate::backend::ObjectInfo;
use crate::backend::cached::MetadataCache;
use crate::error::Result;
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{ArchiveKind, GroupName, Namespace};

/// Maximum number of names kept for one writer.
const MAX_NAMES: usize = 1 << 20;
/// Minimum bytes of an entry of an index.
const ENTRY_BYTES: u64 = 32;

/// The first half of a digest.
type Name = [u8; 16];

/// The witnesses of one writer, or of several that share them.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    /// Group whose indexes are read first.
    group: Option<GroupName>,
    /// `None` without local state, when there are no records.
    metadata_cache: Option<Arc<MetadataCache>>,
    state: AsyncMutex<State>,
}

#[derive(Debug, Default)]
struct State {
    names: HashSet<Name>,
    /// Indexes listed and not read yet, the next one last; `None` before the first listing.
    unread: Option<Vec<ObjectInfo>>,
}

impl Witnesses {
    /// Witnesses for a writer, of this group if it writes to one only.
    pub(crate) fn new(metadata_cache: Option<Arc<MetadataCache>>, group: Option<&GroupName>) -> Arc<Self> {
        Arc::new(Self { group: group.cloned(), metadata_cache, state: AsyncMutex::default() })
    }

    /// Called after the store was locked. Compares the metadata cache with a listing if the cache answers requests.
    pub(crate) async fn begin(&self) -> Result<()> {
        match &self.metadata_cache {
            Some(metadata_cache) if metadata_cache.has_generation() => {
                self.list(metadata_cache, &mut *self.state.lock().await).await
            }
            _ => Ok(()),
        }
    }

    /// Returns `true` if a finished snapshot names the chunk.
    ///
    /// # Errors
    /// Any failure to list.
    pub(crate) async fn name(&self, digest: &Digest) -> Result<bool> {
        let Some(metadata_cache) = &self.metadata_cache else { return Ok(false) };
        let wanted = name_of(digest);
        let mut state = self.state.lock().await;
        if state.unread.is_none() {
            self.list(metadata_cache, &mut state).await?;
        }
        while !state.names.contains(&wanted) {
            let Some(next) = state.unread.as_ref().and_then(|unread| unread.last()).cloned() else {
                return Ok(false);
            };
            let room = MAX_NAMES - state.names.len();
            if next.size / ENTRY_BYTES <= room as u64 {
                state.names.extend(names_in(metadata_cache, &next).await?);
            }
            state.unread.as_mut().map(Vec::pop);
        }
        Ok(true)
    }

    async fn list(&self, metadata_cache: &MetadataCache, state: &mut State) -> Result<()> {
        let mut listed = metadata_cache.look(Prefix::Namespace(Namespace::root())).await?;
        let finished: BTreeSet<_> = listed
            .iter()
            .filter_map(|info| match &info.key {
                Key::Manifest(snapshot) => Some(snapshot.clone()),
                _ => None,
            })
            .collect();
        listed.retain(|info| match &info.key {
            Key::Archive(snapshot, name) => {
                name.kind() != ArchiveKind::Blob
                    && (finished.contains(snapshot) || mutated!("put-unfinished-witness"))
            }
            _ => false,
        });
        listed.sort_by_cached_key(|info| match &info.key {
            Key::Archive(snapshot, _) => {
                (self.group.as_ref() == Some(snapshot.group()), Some(snapshot.time()))
            }
            _ => (false, None),
        });
        state.unread = Some(listed);
        Ok(())
    }
}

/// The names in an index, if there is a local copy.
async fn names_in(metadata_cache: &MetadataCache, info: &ObjectInfo) -> Result<Vec<Name>> {
    let Some(bytes) = metadata_cache.copy_of_version(info).await? else { return Ok(Vec::new()) };
    let Key::Archive(_, name) = &info.key else { return Ok(Vec::new()) };
    let kind = name.kind();
    let read = move || {
        // A damaged index names nothing.
        let index = IndexReader::parse(kind, bytes).ok();
        Ok(index.map(|index| index.digests().map(|digest| name_of(&digest)).collect()).unwrap_or_default())
    };
    metadata_cache.uncached_backend().runtime().run_blocking("read a copy", read).await
}

fn name_of(digest: &Digest) -> Name {
    std::array::from_fn(|at| digest.as_bytes()[at])
}

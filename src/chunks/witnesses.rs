//! Which chunks are named by snapshots that the store has now.
//!
//! A record of presence says that this process stored a chunk, or compared it. That it is still there is another question: a program
//! that takes no lease, such as a PBS that is still configured for the bucket, may have deleted snapshots and collected garbage
//! since. So a record counts only with a witness:
//!
//! | what else is known of the chunk | what is done |
//! |---|---|
//! | a writer of this process that is still at work confirmed it | believed |
//! | a finished snapshot that a listing of the backend shows names it | believed |
//! | nothing | looked for: one request; if it is gone, it is stored |
//!
//! An index that is there now is enough, whatever happened before: who collects garbage keeps what an index names, and who stores an
//! index stores its chunks first. The metadata are listed once for each writer, after it locked the store, when the first record is
//! met. Indexes are read from the copies on the local disk, of the version that was listed, those of the group of the writer and
//! the newest ones first, and only while chunks are met that none of them named so far. An index without a copy is no witness.
//!
//! Memory: at most [`MOST`] names of 16 bytes. What indexes beyond that name is looked for.

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

/// The most names that are kept for one writer.
const MOST: usize = 1 << 20;
/// The least bytes of an entry of an index.
const ENTRY_BYTES: u64 = 32;

/// The first half of a digest.
type Name = [u8; 16];

/// The witnesses of one writer, or of several that belong together.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    /// Whose indexes are read first.
    group: Option<GroupName>,
    /// None without local state: there are no records then.
    metadata_cache: Option<Arc<MetadataCache>>,
    state: AsyncMutex<State>,
}

#[derive(Debug, Default)]
struct State {
    names: HashSet<Name>,
    /// Indexes that were listed and not read yet, the next one last; none before the first listing.
    unread: Option<Vec<ObjectInfo>>,
}

impl Witnesses {
    /// Witnesses for a writer, of this group if it writes to one alone.
    pub(crate) fn new(metadata_cache: Option<Arc<MetadataCache>>, group: Option<&GroupName>) -> Arc<Self> {
        Arc::new(Self { group: group.cloned(), metadata_cache, state: AsyncMutex::default() })
    }

    /// To be called when the store was locked. Where copies of metadata answer instead of the backend, they are compared.
    pub(crate) async fn begin(&self) -> Result<()> {
        match &self.metadata_cache {
            Some(metadata_cache) if metadata_cache.has_generation() => {
                self.list(metadata_cache, &mut *self.state.lock().await).await
            }
            _ => Ok(()),
        }
    }

    /// Whether a finished snapshot names the chunk.
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
            let room = MOST - state.names.len();
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
            Key::Archive(snapshot, name) => name.kind() != ArchiveKind::Blob && finished.contains(snapshot),
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

/// The names in an index, if there is a copy of it.
async fn names_in(metadata_cache: &MetadataCache, info: &ObjectInfo) -> Result<Vec<Name>> {
    let Some(bytes) = metadata_cache.copy_of_version(info).await? else { return Ok(Vec::new()) };
    let Key::Archive(_, name) = &info.key else { return Ok(Vec::new()) };
    let kind = name.kind();
    let read = move || {
        // One that is damaged names nothing.
        let index = IndexReader::parse(kind, bytes).ok();
        Ok(index.map(|index| index.digests().map(|digest| name_of(&digest)).collect()).unwrap_or_default())
    };
    metadata_cache.uncached_backend().runtime().run_blocking("read a copy", read).await
}

fn name_of(digest: &Digest) -> Name {
    std::array::from_fn(|at| digest.as_bytes()[at])
}

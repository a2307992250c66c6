//! Packed stores: many chunks in one object.
//!
//! A [`PackedBackend`] is a backend above a backend. Its callers see each chunk as an object of its own; below, *packs* contain the chunks
//! and *segments* say where. Every rule about the life of a chunk (pins, digest locks, suspects, quarantine) therefore holds in a packed
//! store without a change (D52). Only the collector asks for packs, because it deletes and rewrites them as a whole ([`reclaim`]).
//!
//! # A copy of a chunk
//! | state | bytes | found by writers of this process | found by others | event | next state |
//! |---|---|---|---|---|---|
//! | pending | in memory: in the open pack or in one that is being stored | yes | no | the pack is stored | stored |
//! | | | | | storing it failed | pending: the next barrier stores the same bytes again, under the same name |
//! | stored | in a pack that no segment names | yes | no | a segment is stored | recorded |
//! | recorded | in a pack | yes | yes | | |
//! | retired | in a pack that the collector is about to drop | no | by readers only | the drop is recorded, and the pack deleted | gone |
//! | bad | in a pack, until the collector rewrites it | no, only as a quarantined copy | the same | | |
//!
//! A chunk may have several copies, in several packs or segments; each is right.
//!
//! # Classes
//! Chunks of metadata archives and catalogs go to packs of their own, so that browsing a tree reads dense packs by few requests. A writer has an
//! open pack of each class. The name of the archive decides; the chunk store passes the class on, and chunks that arrive by
//! [`Backend::put`] are data. A chunk that archives of both kinds use is stored once, in the class that stored it first. Rewritten, merged and
//! adopted packs keep their class.
//!
//! # Order of a barrier
//! ```text
//! open packs closed → all packs stored → barrier below → segment → barrier below
//! ```
//! A put of a chunk is complete when the chunk is in an open pack. So a barrier promises what the contract of [`Backend`] says, and a crash
//! before it leaves packs that no segment names, which a collection adopts, or nothing. A barrier that fails keeps the chunks in memory,
//! and each put and barrier fails until a barrier has stored them. Between barriers, a segment is stored
//! after sixteen packs or a 32nd of them, and after five minutes or a 32nd of the time, whichever is more: so an interrupted first backup finds
//! its chunks again, and a long one leaves few segments. A barrier without the lock of the store, as of a deletion, stores and records no pack:
//! another process may have taken them for orphans meanwhile. The next holder of the lock looks for them first. The lock stays held until the request for a
//! segment has ended, also if the barrier is dropped.
//!
//! # Views
//! Each handle has a view: the segments that it read, and its own packs. Segments only add facts: records of copies, names of packs that
//! were dropped, copies that are bad, names of segments that a merged one replaces. Pack names are never used twice, so facts have no order.
//!
//! | event | the view |
//! |---|---|
//! | the lock of the store is taken, and another process may have had it since the last time | is read again: one listing, and the new segments |
//! | a read finds no copy, or no pack | is read again once, unless this process alone may change the store |
//! | a collector of this process retires copies | shows them to no writer, in all handles at once ([`retirement`]) |
//!
//! Segments that a listing does not show any more are forgotten: a merged one replaced them, and may have dropped packs since. A forgotten
//! copy costs a request or a second copy, never a chunk.
//!
//! # Memory
//! A view has the facts of all segments in memory, and the records of small ones. Once records take more than the option `index_bytes`
//! allows, those of the largest segments are read by range, from a local copy if there is local
//! state: a look-up reads one slot of each ([`slots`]), a listing reads one run of slots after the other. Opening then reads only the heads
//! of large segments, and none that a merged one replaces.
//!
//! # Damage
//! | object | effect |
//! |---|---|
//! | a pack is missing, or cut before the end of a copy | its chunks count as missing, once a listing or a read shows it |
//! | a pack has other bytes | the readers of its chunks find that, as in a loose store |
//! | the directory of a pack is damaged | none, unless no segment names the pack: then a collection reads all of it to adopt it ([`salvage`]) |
//! | a segment is missing | its packs are orphans, which a collection adopts; until then their chunks count as missing |
//! | a segment is damaged | chunks that only it names count as missing, and no collection runs until the index is rebuilt; if it is read by range, once a read shows it |
//!
//! # Names
//! Namespaces, groups and snapshots have [enclosed](Key::Enclosed) keys below. A PBS that adopts the bucket finds an empty store.

mod backend;
mod compact;
mod coordination;
mod enclosed;
mod housekeeping;
mod known;
mod list;
mod local;
mod lookup;
mod options;
mod place;
mod put;
pub(crate) mod read;
pub(crate) mod rebuild;
pub(crate) mod reclaim;
mod refresh;
mod registry;
mod requests;
mod retirement;
mod salvage;
mod send;
mod slots;
pub(crate) mod survey;
mod usage;
mod view;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::lock::Mutex as AsyncMutex;

use crate::backend::{Backend, Capabilities};
use crate::buffers::Buffers;
use crate::error::Result;
use crate::format::larder::pack::name::SessionId;
use crate::local::segments::SegmentFiles;
use crate::rt::Runtime;
use crate::rt::semaphore::Semaphore;

pub use options::PackOptions;
pub use requests::PackRequests;
pub use usage::PackUsage;

use coordination::Tenure;
use known::IndexMemory;
use list::Listings;
use put::{SLACK_BYTES, Writer};
use read::ReadQueue;
use registry::Handles;
use requests::{Counted, Counts};
use view::View;

/// Number of chunks to transfer at the same time where coalesced reads need many waiting ones.
const IN_FLIGHT: usize = 2048;

/// Limits of a handle, and its files.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Bytes of records in memory, beyond which those of large segments are read by range.
    pub(crate) index_bytes: usize,
    /// Files for copies of large segments.
    pub(crate) local: Option<Arc<SegmentFiles>>,
    /// Bytes of packs in memory.
    pub(crate) memory_bytes: usize,
    /// Size at which a pack is closed.
    pub(crate) target_bytes: usize,
}

/// A [`Backend`] with packs above a backend without.
#[derive(Clone)]
pub(crate) struct PackedBackend {
    packs: Arc<Packs>,
}

/// The state of one handle.
struct Packs {
    buffers: Arc<Buffers>,
    capabilities: Capabilities,
    /// Held while a barrier closes and stores packs.
    flushing: AsyncMutex<()>,
    /// All handles of the store in this process.
    handles: Arc<Handles>,
    index: IndexMemory,
    inner: Arc<dyn Backend>,
    listings: Mutex<Listings>,
    /// Copies of large segments.
    local: Option<Arc<SegmentFiles>>,
    /// Bytes of packs in memory.
    memory: Arc<Semaphore>,
    /// Maximum bytes of packs in memory.
    memory_bytes: usize,
    reads: Mutex<ReadQueue>,
    /// Held while a segment is stored.
    recording: AsyncMutex<()>,
    /// The holding of the lock of the store in which unrecorded packs were looked for. Held meanwhile.
    checked: AsyncMutex<u64>,
    /// Held while the view is read again.
    refreshing: AsyncMutex<()>,
    requests: Arc<Counts>,
    session: SessionId,
    state: Mutex<State>,
    /// Size at which a pack is closed.
    target_bytes: usize,
    tenure: Mutex<Tenure>,
}

/// View and writer change together.
#[derive(Debug, Default)]
struct State {
    view: View,
    writer: Writer,
}

impl PackedBackend {
    /// The packs of the store with this identity.
    ///
    /// # Errors
    /// Any failure to read the segments.
    pub(crate) async fn open(inner: Arc<dyn Backend>, uuid: &str, limits: Limits) -> Result<Self> {
        let Limits { index_bytes, local, memory_bytes, target_bytes } = limits;
        let requests = Arc::default();
        let inner: Arc<dyn Backend> = Arc::new(Counted::new(inner, &requests));
        let below = inner.capabilities();
        let capabilities = Capabilities {
            certain_presence: false,
            cheap_presence: true,
            deep_listings: true,
            in_flight: if below.cheap_presence { below.in_flight } else { IN_FLIGHT },
            // `tracks_last_use` stays, although `touch` leaves the time of a pack, which is that of its put. A use needs no time: pins show that
            // of this process, and the lock of the store keeps other ones out from a plan to the end of its execution. No PBS uses packs.
            ..below.clone()
        };
        let mut session = [0; 16];
        inner.runtime().fill_random(&mut session);
        // One pack of each class is filled while another one is stored.
        let target_bytes = target_bytes.min(memory_bytes / 3);
        let handles = Handles::of(uuid);
        let writer = Writer::new(inner.runtime().monotonic());
        let state = State { view: View::new(handles.retirement()), writer };
        let packs = Arc::new(Packs {
            buffers: Buffers::new(memory_bytes),
            capabilities,
            flushing: AsyncMutex::default(),
            handles,
            index: IndexMemory { bytes: index_bytes },
            inner,
            listings: Mutex::default(),
            local,
            memory_bytes,
            memory: Semaphore::new(memory_bytes + 2 * SLACK_BYTES),
            reads: Mutex::default(),
            recording: AsyncMutex::default(),
            checked: AsyncMutex::default(),
            refreshing: AsyncMutex::default(),
            requests,
            session: SessionId::from_bytes(session),
            state: Mutex::new(state),
            target_bytes,
            tenure: Mutex::default(),
        });
        packs.handles.add(&packs);
        packs.refresh().await?;
        Ok(Self { packs })
    }
}

impl fmt::Debug for PackedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedBackend")
            .field("inner", &self.packs.inner)
            .field("session", &self.packs.session)
            .finish_non_exhaustive()
    }
}

impl Packs {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves at worst a copy that is not found.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;

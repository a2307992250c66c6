//! The facts about a backend that the store asks for.

use crate::backend::object::PutMode;

/// The capabilities of a backend, as the backend probed them. None is assumed.
///
/// The store handles each missing capability, at the price of requests or of a second collection. A capability that is claimed and does not
/// hold loses data.
///
/// Begin with [`minimal`](Capabilities::minimal) or [`local`](Capabilities::local), and set what differs:
/// ```
/// use larder::backend::Capabilities;
///
/// let mut capabilities = Capabilities::minimal();
/// capabilities.conditional_put = true;
/// capabilities.in_flight = 30;
/// ```
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A chunk that a lookup finds can be read. Where that is not so, as in a packed store without one of its packs, the store keeps a
    /// list of chunks that were found missing.
    pub certain_presence: bool,
    /// A lookup needs no request over a network, and [`Backend::touch`](crate::backend::Backend::touch) never answers
    /// [`Touched::Unknown`](crate::backend::Touched::Unknown). Where that is not so, the
    /// store keeps lists of chunks that a writer must not expect.
    pub cheap_presence: bool,
    /// [`Removal::version`](crate::backend::Removal::version) works.
    pub conditional_delete: bool,
    /// [`PutMode::Create`] and [`PutMode::IfMatch`] work.
    pub conditional_put: bool,
    /// A listing shows every object that was stored, and none that was deleted, before it began. Where that is not so, the store also
    /// looks for objects that it has reason to expect.
    pub consistent_listing: bool,
    /// A listing with all details costs one request for each page, as in a bucket, and not one lookup for each object. Where that is not
    /// so, the store lists names and looks up few of the objects.
    pub deep_listings: bool,
    /// Number of chunks to transfer at the same time, in addition to one for each processor. Larger where requests have a long
    /// round-trip time.
    pub in_flight: usize,
    /// The holders that a lock excludes.
    pub lock_reach: LockReach,
    /// A lock leaves nothing behind when it is released, not even the lock of a snapshot that does not exist. Where it leaves a file, the
    /// store looks for a snapshot before it locks it.
    pub traceless_locks: bool,
    /// [`Backend::touch`](crate::backend::Backend::touch) sets
    /// [`ObjectInfo::last_used`](crate::backend::ObjectInfo::last_used). Where it does not, a time says nothing about use: the collector records
    /// candidates and needs two sightings of a chunk.
    pub tracks_last_use: bool,
}

impl Capabilities {
    /// No capability at all: a place behind a network about which nothing is known, and which one process uses by the promise of its
    /// caller.
    #[must_use]
    pub fn minimal() -> Self {
        Self {
            certain_presence: false,
            cheap_presence: false,
            conditional_delete: false,
            conditional_put: false,
            consistent_listing: false,
            deep_listings: false,
            in_flight: 2,
            lock_reach: LockReach::Process,
            traceless_locks: false,
            tracks_last_use: false,
        }
    }

    /// All capabilities but [`deep_listings`](Self::deep_listings), for a store that only this process can reach, such as one in memory.
    #[must_use]
    pub fn local() -> Self {
        Self {
            certain_presence: true,
            cheap_presence: true,
            conditional_delete: true,
            conditional_put: true,
            consistent_listing: true,
            deep_listings: false,
            in_flight: 2,
            lock_reach: LockReach::Everybody,
            traceless_locks: true,
            tracks_last_use: true,
        }
    }

    /// Returns `true` if the store keeps a list of GC candidates, and deletes a chunk only after two sightings: these guard against a
    /// listing that lags and against a use that leaves no time, and the list names the deletes that a server may execute late.
    pub(crate) fn needs_gc_candidates(&self) -> bool {
        !(self.tracks_last_use && self.consistent_listing && self.cheap_presence)
    }

    /// The mode for storing a new object. Where conditional puts do not work, the locks alone exclude other writers (D4).
    pub(crate) fn create_mode(&self) -> PutMode {
        if self.conditional_put { PutMode::Create } else { PutMode::Replace }
    }
}

/// The holders that a lock excludes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockReach {
    /// Every process that can reach the store.
    Everybody,
    /// Every process of this host that uses the same lock files.
    Host,
    /// Only tasks of this process.
    Process,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missing_capability_requires_two_collections() {
        assert!(!Capabilities::local().needs_gc_candidates());
        for missing in 0..3 {
            let mut capabilities = Capabilities::local();
            let facts = [
                &mut capabilities.cheap_presence,
                &mut capabilities.consistent_listing,
                &mut capabilities.tracks_last_use,
            ];
            for (number, fact) in facts.into_iter().enumerate() {
                *fact = number != missing;
            }
            assert!(capabilities.needs_gc_candidates(), "{capabilities:?}");
        }
    }
}

//! The facts about a backend that the store asks for.

use crate::backend::object::PutMode;

/// What a backend can do. Found out by asking or trying, never assumed (I12).
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A lookup needs no request over a network, and [`Backend::touch`](crate::backend::Backend::touch) never answers
    /// [`Touched::Unknown`](crate::backend::Touched::Unknown). Where that is not so, the
    /// store keeps lists of chunks that a writer must not expect.
    pub cheap_presence: bool,
    /// [`Removal::version`](crate::backend::Removal::version) is obeyed.
    pub conditional_delete: bool,
    /// [`PutMode::Create`] and [`PutMode::IfMatch`] work.
    pub conditional_put: bool,
    /// A listing shows every object that was stored, and none that was deleted, before it began. Where that is not so, the store also
    /// looks for objects that it has reason to expect (H13).
    pub consistent_listing: bool,
    /// A listing of all that lies below a prefix costs by the page, as in a bucket, and not by the object. Where that is not so, the
    /// store lists names and looks at few of them.
    pub deep_listings: bool,
    /// How many chunks are worth transferring at the same time, beside one for each processor. More where each request has to wait for
    /// an answer from far away.
    pub in_flight: usize,
    /// Who is excluded by the locks.
    pub lock_reach: LockReach,
    /// [`Backend::touch`](crate::backend::Backend::touch) sets
    /// [`ObjectInfo::last_used`](crate::backend::ObjectInfo::last_used). Where it does not, a time says nothing about use: the collector records
    /// candidates and needs two sightings of a chunk (H11).
    pub tracks_last_use: bool,
}

impl Capabilities {
    /// Everything works, for a store that only this process can reach.
    #[must_use]
    pub fn local() -> Self {
        Self {
            cheap_presence: true,
            conditional_delete: true,
            conditional_put: true,
            consistent_listing: true,
            deep_listings: false,
            in_flight: 2,
            lock_reach: LockReach::Everybody,
            tracks_last_use: true,
        }
    }

    /// Returns `true` if the store keeps a list of GC candidates, and deletes a chunk only after two sightings: these guard against a
    /// listing that lags and against a use that leaves no time, and the list names the deletes that a server may execute late.
    pub(crate) fn needs_gc_candidates(&self) -> bool {
        !(self.tracks_last_use && self.consistent_listing && self.cheap_presence)
    }

    /// How to store what is not there yet. Where conditions do not work, the locks alone keep others away (D4).
    pub(crate) fn create_mode(&self) -> PutMode {
        if self.conditional_put { PutMode::Create } else { PutMode::Replace }
    }
}

/// Who is excluded by a lock.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockReach {
    /// Everybody who can reach the store at all.
    Everybody,
    /// Every process of this host that uses the same lock files.
    Host,
    /// Only tasks of this process.
    Process,
}

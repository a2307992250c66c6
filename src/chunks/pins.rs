//! Pins: chunks in use by writers.
//!
//! A writer pins a chunk before it looks for the chunk, and keeps the pin until its indexes are stored or it is
//! dropped (I2, H1, H2). The collector checks [`Pins::is_pinned`] under the digest lock, which it
//! takes without waiting (I3).
//!
//! A writer may end during a collection, after its indexes could be marked. So while a [`PinHold`] exists,
//! the pins of all writers stay, present and future, even when the writers end.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::chunks::CachePolicy;
use crate::chunks::witnesses::Witnesses;
use crate::crypt::EncryptionKey;
use crate::format::Digest;
use crate::format::larder::gc_candidates::{GcCandidates, Prefix, prefix};

/// The pins of all writers of a store.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    registry: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    collections: usize,
    /// Pins that stay during collections.
    kept: Vec<Arc<WriterPins>>,
    writers: Vec<Weak<WriterPins>>,
}

/// While it exists, no pin is released.
#[derive(Debug)]
pub(crate) struct PinHold {
    pins: Arc<Pins>,
}

/// The pins of one writer, released when it is dropped.
#[derive(Debug)]
pub(crate) struct WriterPins {
    pub(crate) cache_policy: CachePolicy,
    /// The key that encrypts the chunks of the writer; `None` if they are plain. A writer has one, so no snapshot mixes them (H179).
    pub(crate) key: Option<EncryptionKey>,
    state: Mutex<WriterState>,
    pub(crate) witnesses: Arc<Witnesses>,
}

#[derive(Debug, Default)]
struct WriterState {
    confirmed: HashSet<Digest>,
    /// Pinned, and not yet confirmed to be in the store.
    intended: HashSet<Digest>,
    /// Chunks to look up before anything is published.
    to_check: HashSet<Digest>,
}

impl Pins {
    /// Registers a writer.
    pub(crate) fn writer(
        &self,
        cache_policy: CachePolicy,
        key: Option<EncryptionKey>,
        witnesses: Arc<Witnesses>,
    ) -> Arc<WriterPins> {
        let pins = Arc::new(WriterPins { cache_policy, key, state: Mutex::default(), witnesses });
        let mut registry = self.registry();
        registry.writers.retain(|writer| writer.strong_count() > 0);
        registry.writers.push(Arc::downgrade(&pins));
        if registry.collections > 0 {
            registry.kept.push(Arc::clone(&pins));
        }
        pins
    }

    /// Returns `true` if a writer uses the chunk, or used it during the current collection.
    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        let registry = self.registry();
        registry.writers.iter().filter_map(Weak::upgrade).any(|writer| {
            let state = writer.state();
            state.confirmed.contains(digest) || state.intended.contains(digest)
        })
    }

    /// Returns `true` if a writer has confirmed the chunk.
    pub(crate) fn is_confirmed(&self, digest: &Digest) -> bool {
        let registry = self.registry();
        registry.writers.iter().filter_map(Weak::upgrade).any(|writer| writer.is_confirmed(digest))
    }

    /// Makes all writers that rely on the chunk check it again before they publish.
    pub(crate) fn unconfirm(&self, digest: Digest) {
        let writers: Vec<_> = self.registry().writers.iter().filter_map(Weak::upgrade).collect();
        for writer in writers {
            writer.unconfirm(digest);
        }
    }

    /// Keeps all pins from now on.
    pub(crate) fn collect(self: &Arc<Self>) -> PinHold {
        let mut registry = self.registry();
        registry.collections += 1;
        let writers: Vec<_> = registry.writers.iter().filter_map(Weak::upgrade).collect();
        if !mutated!("pins-end-with-their-writer") {
            registry.kept.extend(writers);
        }
        PinHold { pins: Arc::clone(self) }
    }

    /// Returns `true` if there is no writer and no collection.
    pub(super) fn is_idle(&self) -> bool {
        let registry = self.registry();
        registry.collections == 0 && registry.writers.iter().all(|writer| writer.strong_count() == 0)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PinHold {
    fn drop(&mut self) {
        let kept = {
            let mut registry = self.pins.registry();
            registry.collections -= 1;
            if registry.collections == 0 { std::mem::take(&mut registry.kept) } else { Vec::new() }
        };
        // Outside the lock: there may be millions.
        drop(kept);
    }
}

impl WriterPins {
    /// Pins a chunk; returns `true` if this writer has confirmed it already.
    pub(crate) fn pin(&self, digest: Digest) -> bool {
        let mut state = self.state();
        let confirmed = state.confirmed.contains(&digest);
        if !confirmed {
            state.intended.insert(digest);
        }
        confirmed
    }

    /// Confirms that the chunk is in the store.
    pub(crate) fn confirm(&self, digest: Digest) {
        let mut state = self.state();
        state.intended.remove(&digest);
        state.confirmed.insert(digest);
    }

    /// Records that the chunk has to be looked up before anything is published.
    pub(crate) fn require_check(&self, digest: Digest) {
        self.state().to_check.insert(digest);
    }

    /// The chunks to look up before anything is published.
    pub(crate) fn to_check(&self) -> Vec<Digest> {
        self.state().to_check.iter().copied().collect()
    }

    /// Records that the chunk was looked up and exists.
    pub(crate) fn note_checked(&self, digest: &Digest) {
        self.state().to_check.remove(digest);
    }

    /// Records that the chunk may be gone: it is stored again when needed, and looked up before anything is published.
    pub(crate) fn unconfirm(&self, digest: Digest) {
        let mut state = self.state();
        if state.confirmed.remove(&digest) {
            state.intended.insert(digest);
            state.to_check.insert(digest);
        }
    }

    /// The candidates among its chunks.
    pub(crate) fn among(&self, candidates: &GcCandidates) -> Vec<Prefix> {
        let state = self.state();
        let used = state.confirmed.iter().chain(&state.intended);
        used.filter(|digest| candidates.since(digest).is_some()).map(prefix).collect()
    }

    /// Number of confirmed chunks.
    pub(crate) fn confirmed(&self) -> usize {
        self.state().confirmed.len()
    }

    /// Returns `true` if the chunk is confirmed.
    pub(crate) fn is_confirmed(&self, digest: &Digest) -> bool {
        self.state().confirmed.contains(digest)
    }

    fn state(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_lives_as_long_as_its_writer() {
        let (pins, digest) = (Arc::new(Pins::default()), Digest::of(b"a"));
        let writer = pins.writer(CachePolicy::Populate, None, Arc::default());
        assert!(!writer.pin(digest));
        assert!(pins.is_pinned(&digest), "before it is confirmed");
        assert!(!writer.is_confirmed(&digest));
        writer.confirm(digest);
        assert!(writer.pin(digest));
        drop(writer);
        assert!(!pins.is_pinned(&digest));
    }

    /// Proves H1.
    #[test]
    fn pins_stay_while_garbage_is_collected() {
        let pins = Arc::new(Pins::default());
        let digests = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let before = pins.writer(CachePolicy::Populate, None, Arc::default());
        before.pin(digests[0]);
        let (one, other) = (pins.collect(), pins.collect());
        let during = pins.writer(CachePolicy::Populate, None, Arc::default());
        during.pin(digests[1]);
        before.pin(digests[2]);
        drop((before, during, one));
        assert!(digests.iter().all(|digest| pins.is_pinned(digest)));
        drop(other);
        assert!(!digests.iter().any(|digest| pins.is_pinned(digest)));
    }
}

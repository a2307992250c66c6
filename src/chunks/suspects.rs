//! The suspect list `.larder/suspects`, through which later processes learn of suspects. [`crate::format::larder::suspects`] has its bytes.
//!
//! A chunk that was found missing or corrupt is a suspect: neither a base nor its length vouches for it, and its next upload replaces the
//! stored object (H99).
//!
//! | place | contents |
//! |---|---|
//! | [`SharedState`](crate::chunks::shared::SharedState) | the suspects: every decision about a chunk asks this set alone |
//! | the stored list | suspects that another process must learn of |
//! | [`KnownSuspectList`] | a copy of the stored list, to see which chunks have to be added or may be removed |
//!
//! | a chunk | is added | is removed |
//! |---|---|---|
//! | is corrupt | before it is quarantined | when it was quarantined or stored again, durably |
//! | is missing or quarantined, where presence costs a request | when that is found | when it was stored again, durably |
//!
//! The list is read when a store is opened, and again at the begin of a backup if another process may have changed it. It is written
//! conditionally on the version that was read, under the lock of the store, and never deleted: an empty list has no digests.
//! A damaged list prevents quarantine, but not the opening of the store.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::{Backend, PutMode, Version};
use crate::chunks::ChunkStore;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::suspects;
use crate::format::layout::Key;

/// Maximum number of times the list is read again after a conflict.
const TRIES: usize = 10;

/// The stored list, as this handle read or wrote it last. It belongs to the handle, because a copy of a store has the same identity and a
/// list of its own.
#[derive(Debug, Default)]
pub(super) struct KnownSuspectList {
    /// Held while the list is changed.
    changing: AsyncMutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Chunks that are on the list, and quarantined where presence is visible without it.
    quarantined: HashSet<Digest>,
    is_damaged: bool,
    listed: HashSet<Digest>,
    /// The first epoch of the terms in which it was read.
    read_in: Option<u64>,
    /// Chunks that wait to be put on the list.
    waiting: BTreeSet<Digest>,
}

/// The list as it was read.
#[derive(Debug)]
pub(crate) enum SuspectList {
    Damaged(Error),
    Read(BTreeSet<Digest>, Option<Version>),
}

impl SuspectList {
    /// Reads it. One that is damaged is no failure yet.
    pub(crate) async fn read(backend: &dyn Backend) -> Result<Self> {
        let damaged = |error: Error| Ok(Self::Damaged(error));
        let object = match backend.get(&Key::Suspects, suspects::MAX_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self::Read(BTreeSet::new(), None));
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => return damaged(error),
            object => object?,
        };
        let (bytes, version): (Bytes, _) = (object.bytes, object.info.version);
        let decode = move || Ok(suspects::decode(&bytes));
        match backend.runtime().run_blocking("read suspects", decode).await? {
            Ok(digests) => Ok(Self::Read(digests, Some(version))),
            Err(error) => damaged(Error::new(ErrorKind::Corrupt, "read").on(Key::Suspects).because(error)),
        }
    }
}

impl KnownSuspectList {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChunkStore {
    /// Believes a list that was read in the terms that began with this epoch.
    pub(crate) fn set_suspect_list(&self, list: SuspectList, since: Option<u64>) {
        let mut state = self.suspect_list.state();
        state.read_in = since;
        match list {
            SuspectList::Damaged(_) => state.is_damaged = true,
            SuspectList::Read(digests, _) => {
                state.is_damaged = false;
                self.fetcher.suspects().extend(&digests);
                state.listed = digests.into_iter().collect();
            }
        }
    }

    /// Reads the list again, unless no other process can have changed it.
    pub(crate) async fn refresh_suspect_list(&self) -> Result<()> {
        let since = self.backend.lease_term().map(|lease_term| lease_term.since);
        if since.is_some() && self.suspect_list.state().read_in == since {
            return Ok(());
        }
        let _alone = self.suspect_list.changing.lock().await;
        let list = SuspectList::read(self.backend.as_ref()).await?;
        self.set_suspect_list(list, since);
        Ok(())
    }

    /// Returns `true` if the list exists and cannot be read.
    pub(crate) fn is_suspect_list_damaged(&self) -> bool {
        self.suspect_list.state().is_damaged
    }

    /// Makes missing or corrupt chunks suspects of every process, until they are stored again.
    ///
    /// # Errors
    /// Any failure to record it: the caller must not quarantine the chunks.
    pub(crate) async fn add_suspects(&self, digests: &[Digest]) -> Result<()> {
        for digest in digests {
            self.fetcher.mark_suspect_durably(*digest).await?;
        }
        mutated!("suspects-of-this-process-alone" => return Ok(()));
        self.suspect_list.state().waiting.extend(digests);
        let _alone = self.suspect_list.changing.lock().await;
        // An earlier holder of the lock may have written them, or failed to.
        let mut batch = std::mem::take(&mut self.suspect_list.state().waiting);
        {
            let state = self.suspect_list.state();
            batch.extend(digests);
            batch.retain(|digest| !state.listed.contains(digest));
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.change_suspects(|listed| listed.extend(&batch)).await
    }

    /// Makes missing chunks suspects: the next backup that contains them stores them again (H22).
    pub(crate) async fn mark_missing(&self, digests: &[Digest]) -> Result<()> {
        self.fetcher.suspects().extend(digests);
        self.fetcher.forget_records(digests).await
    }

    /// Records that a chunk on the list was quarantined.
    pub(super) fn note_quarantined(&self, digest: Digest) {
        if self.backend.capabilities().certain_presence {
            self.suspect_list.state().quarantined.insert(digest);
        }
    }

    /// Those on the list that need not be there any more once all that was done is durable.
    pub(crate) fn cleared_suspects(&self) -> Vec<Digest> {
        let state = self.suspect_list.state();
        let suspects = self.fetcher.suspects();
        let cleared = |digest: &&Digest| !suspects.contains(digest) || state.quarantined.contains(digest);
        state.listed.iter().filter(cleared).copied().collect()
    }

    /// Removes chunks from the list after their repair is durable.
    pub(crate) async fn unlist_suspects(&self, cleared: &[Digest]) -> Result<()> {
        if cleared.is_empty() {
            return Ok(());
        }
        let _alone = self.suspect_list.changing.lock().await;
        self.change_suspects(|listed| {
            for digest in cleared {
                listed.remove(digest);
            }
        })
        .await
    }

    async fn change_suspects(&self, change: impl Fn(&mut BTreeSet<Digest>)) -> Result<()> {
        let backend = self.backend.as_ref();
        let failed = |kind| Error::new(kind, "write").on(Key::Suspects);
        for _ in 0..TRIES {
            let (mut digests, version) = match SuspectList::read(backend).await? {
                SuspectList::Damaged(error) => {
                    self.suspect_list.state().is_damaged = true;
                    return Err(error);
                }
                SuspectList::Read(digests, version) => (digests, version),
            };
            let before = digests.clone();
            {
                // Suspects that another process added count here too.
                let state = self.suspect_list.state();
                let new = before.iter().filter(|digest| !state.listed.contains(digest));
                self.fetcher.suspects().extend(new);
            }
            change(&mut digests);
            if digests.len() > suspects::MAX_SUSPECTS {
                return Err(failed(ErrorKind::Full).because("more chunks are suspect than can be listed"));
            }
            if digests != before {
                let mode = match version {
                    _ if !backend.capabilities().conditional_put => PutMode::Replace,
                    Some(version) => PutMode::IfMatch(version),
                    None => PutMode::Create,
                };
                match backend.put(&Key::Suspects, suspects::encode(&digests), mode).await {
                    Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Conflict) => {
                        continue;
                    }
                    put => drop(put?),
                }
            }
            let mut state = self.suspect_list.state();
            state.listed = digests.into_iter().collect();
            let State { quarantined, listed, .. } = &mut *state;
            quarantined.retain(|digest| listed.contains(digest));
            return Ok(());
        }
        Err(failed(ErrorKind::Conflict).because("others keep changing it"))
    }
}

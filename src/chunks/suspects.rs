//! Which chunks are suspect, for every process: the list `.larder/suspects`, whose bytes are told in [`crate::format::larder::suspects`].
//!
//! A chunk that was found bad or gone is suspect: no base and no length makes it known, and its next upload stores it whatever is there
//! (H99). What this process found it keeps in memory; the list tells the next one.
//!
//! | a chunk | is put on the list | leaves it |
//! |---|---|---|
//! | is corrupt | before it is put aside | when it was put aside or stored again, and that is durable |
//! | is gone, or was put aside, and the backend cannot say what is there without a request | when it is found | when it was stored again, and that is durable |
//!
//! The list is read when a store is opened, and again when a backup begins that somebody else may have come before. It is written on the
//! condition that it is still the one that was read, under the lock of the store, and never deleted: one that nobody is on is a list
//! without digests. One that is damaged keeps nobody from opening the store, and nothing is put aside while it is there.

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

/// How often the list is read anew because somebody else changed it.
const TRIES: usize = 10;

/// What this process knows of the list.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Held while the list is changed.
    changing: AsyncMutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Chunks that are on the list, and were put aside where that can be seen without it.
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

impl Suspicion {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChunkStore {
    /// Believes a list that was read in the terms that began with this epoch.
    pub(crate) fn learn_suspects(&self, list: SuspectList, since: Option<u64>) {
        let mut state = self.suspicion.state();
        state.read_in = since;
        match list {
            SuspectList::Damaged(_) => state.is_damaged = true,
            SuspectList::Read(digests, _) => {
                state.is_damaged = false;
                self.reader.suspects().extend(&digests);
                state.listed = digests.into_iter().collect();
            }
        }
    }

    /// Reads the list once more, unless nobody else can have changed it since it was read.
    pub(crate) async fn refresh_suspects(&self) -> Result<()> {
        let since = self.backend.lease_term().map(|lease_term| lease_term.since);
        if since.is_some() && self.suspicion.state().read_in == since {
            return Ok(());
        }
        let _alone = self.suspicion.changing.lock().await;
        let list = SuspectList::read(self.backend.as_ref()).await?;
        self.learn_suspects(list, since);
        Ok(())
    }

    /// Whether the list is there and cannot be read.
    pub(crate) fn is_suspicion_damaged(&self) -> bool {
        self.suspicion.state().is_damaged
    }

    /// Chunks were found bad or gone: no process believes that they are there, from now on and until they were stored again.
    ///
    /// # Errors
    /// Whatever keeps others from learning it: nothing may then be put aside.
    pub(crate) async fn suspect(&self, digests: &[Digest]) -> Result<()> {
        for digest in digests {
            self.reader.forget_durably(*digest).await?;
        }
        self.suspicion.state().waiting.extend(digests);
        let _alone = self.suspicion.changing.lock().await;
        // Who had the lock before may have written them, or failed to.
        let mut batch = std::mem::take(&mut self.suspicion.state().waiting);
        {
            let state = self.suspicion.state();
            batch.extend(digests);
            batch.retain(|digest| !state.listed.contains(digest));
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.change_suspects(|listed| listed.extend(&batch)).await
    }

    /// A chunk that is on the list was put aside.
    pub(super) fn note_quarantined(&self, digest: Digest) {
        if self.backend.capabilities().cheap_presence {
            self.suspicion.state().quarantined.insert(digest);
        }
    }

    /// Those on the list that need not be there any more once all that was done is durable.
    pub(crate) fn cleared_suspects(&self) -> Vec<Digest> {
        let state = self.suspicion.state();
        let suspects = self.reader.suspects();
        let cleared = |digest: &&Digest| !suspects.contains(digest) || state.quarantined.contains(digest);
        state.listed.iter().filter(cleared).copied().collect()
    }

    /// Takes chunks from the list. What was done about them is durable.
    pub(crate) async fn unlist_suspects(&self, cleared: &[Digest]) -> Result<()> {
        if cleared.is_empty() {
            return Ok(());
        }
        let _alone = self.suspicion.changing.lock().await;
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
                    self.suspicion.state().is_damaged = true;
                    return Err(error);
                }
                SuspectList::Read(digests, version) => (digests, version),
            };
            let before = digests.clone();
            {
                // What somebody else put there is suspect here too.
                let state = self.suspicion.state();
                let new = before.iter().filter(|digest| !state.listed.contains(digest));
                self.reader.suspects().extend(new);
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
            let mut state = self.suspicion.state();
            state.listed = digests.into_iter().collect();
            let State { quarantined, listed, .. } = &mut *state;
            quarantined.retain(|digest| listed.contains(digest));
            return Ok(());
        }
        Err(failed(ErrorKind::Conflict).because("others keep changing it"))
    }
}

//! Maintenance of a packed store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{Backend as _, Cursor, Housekeeping, ObjectInfo, Orphan, PutMode, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::segment::ExclusionReason;
use crate::format::layout::{Key, Prefix};
use crate::packs::enclosed::{enclose, enclose_orphan, enclose_paths, expose_info, expose_orphan};
use crate::packs::lookup::Copy;
use crate::packs::put::version_of;
use crate::packs::{PackedBackend, Packs};

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for PackedBackend {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        match prefix {
            Prefix::Chunks => self.packs.begin_listing().await.map(Some),
            _ => Ok(None),
        }
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        match (Copy::of(from), Copy::of(to)) {
            (None, None) => self.packs.inner.copy(&enclose(from), &enclose(to), mode).await,
            (Some(from), Some(Copy { digest, quarantined: Some(number) }))
                if from.quarantined.is_none() && from.digest == digest =>
            {
                self.packs.quarantine(from, number, &mode).await
            }
            _ => {
                let object = self.get(from, u64::MAX).await?;
                self.put(to, object.bytes, mode).await
            }
        }
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        // Callers want certainty. A put of an earlier owner of a bucket may be executed late, and drop a pack.
        if !self.packs.inner.capabilities().consistent_listing
            && keys.iter().any(|key| Copy::of(key).is_some())
        {
            self.packs.refresh().await?;
        }
        let mut found = Vec::with_capacity(keys.len());
        let below: Vec<_> = keys.iter().filter(|key| Copy::of(key).is_none()).map(enclose).collect();
        let mut below =
            if below.is_empty() { Vec::new() } else { self.packs.inner.head_many(&below).await? }.into_iter();
        for key in keys {
            found.push(match Copy::of(key) {
                Some(copy) => self.packs.head_copy(copy).await,
                None => match below.next() {
                    Some(found) => found.map(expose_info),
                    None => Err(Error::new(ErrorKind::Internal, "look up").on(key)),
                },
            });
        }
        Ok(found)
    }

    async fn has_store(&self) -> Result<bool> {
        self.packs.inner.has_store().await
    }

    fn is_new(&self) -> bool {
        self.packs.inner.is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        let orphans = self.packs.inner.orphans(&enclose_paths(foreign)).await?;
        Ok(orphans.into_iter().map(expose_orphan).collect())
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.packs.inner.get_orphan(&enclose_orphan(orphan), limit).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.packs.inner.remove_leftovers(&enclose_paths(foreign), age).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.packs.inner.keep_reserve().await
    }
}

impl Packs {
    /// Makes the copies of a chunk quarantined ones: the first under this number.
    async fn quarantine(self: &Arc<Self>, chunk: Copy, number: u8, mode: &PutMode) -> Result<Version> {
        let mut state = self.state_of(&chunk.digest).await?;
        let places = state.view.places(&chunk.digest);
        let Some(first) = places.first().copied() else {
            return Err(Error::new(ErrorKind::NotFound, "copy").on(chunk.key()));
        };
        if *mode == PutMode::Create && state.view.bad(&chunk.digest).len() != usize::from(number) {
            return Err(Error::new(ErrorKind::AlreadyExists, "copy").on(chunk.key()));
        }
        for place in places {
            state.exclude(chunk.digest, place, ExclusionReason::Bad);
        }
        Ok(version_of(&state.view, &first))
    }
}

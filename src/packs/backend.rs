//! The objects of a packed store.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, ListPage, ListQuery, Object,
    ObjectInfo, PutMode, Removal, Touched, Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::pack::PackClass;
use crate::format::larder::segment::ExclusionReason;
use crate::format::layout::{Key, Prefix};
use crate::packs::coordination::may_record_packs;
use crate::packs::enclosed::{enclose, enclose_query, enclose_removal, expose_info, expose_page};
use crate::packs::lookup::Copy;
use crate::packs::put::version_of;
use crate::packs::send::Share;
use crate::packs::{PackedBackend, Packs};

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for PackedBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.packs.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        if let Some(copy) = Copy::of(key) {
            return self.packs.get_copy(copy, limit).await;
        }
        let object = self.packs.inner.get(&enclose(key), limit).await?;
        Ok(Object::new(object.bytes, expose_info(object.info)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        if let Some(copy) = Copy::of(key) {
            return self.packs.get_copy_range(copy, range).await;
        }
        let object = self.packs.inner.get_range(&enclose(key), range).await?;
        Ok(Object::new(object.bytes, expose_info(object.info)))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        match Copy::of(key) {
            Some(copy) => self.packs.head_copy(copy).await,
            None => Ok(expose_info(self.packs.inner.head(&enclose(key)).await?)),
        }
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        match Copy::of(key) {
            Some(Copy { digest, quarantined: None }) => {
                self.put_chunk(digest, PackClass::Data, &object, &mode).await
            }
            Some(_) => {
                let error = Error::new(ErrorKind::Unsupported, "store").on(key);
                Err(error.because("quarantined copies in packs are made by copying"))
            }
            None => self.packs.inner.put(&enclose(key), object, mode).await,
        }
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let below: Vec<_> =
            removals.iter().filter(|removal| Copy::of(&removal.key).is_none()).map(enclose_removal).collect();
        let mut deleted =
            if below.is_empty() { Vec::new() } else { self.packs.inner.delete(&below).await? }.into_iter();
        let missing = |removal: &Removal| Err(Error::new(ErrorKind::Internal, "delete").on(&removal.key));
        let mut results = Vec::with_capacity(removals.len());
        for removal in removals {
            results.push(match Copy::of(&removal.key) {
                Some(copy) => self.packs.delete(copy, removal).await,
                None => deleted.next().unwrap_or_else(|| missing(removal)),
            });
        }
        Ok(results)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        if query.prefix == Prefix::Chunks {
            return self.packs.list_chunks(query, cursor).await;
        }
        Ok(expose_page(self.packs.inner.list(&enclose_query(query), cursor).await?))
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let mut touched = Vec::with_capacity(keys.len());
        for key in keys {
            touched.push(match Copy::of(key) {
                Some(copy) => self.packs.touch_copy(copy).await?,
                None => match self.packs.inner.touch(&[enclose(key)]).await?.into_iter().next() {
                    Some(Touched::Present(info)) => Touched::Present(expose_info(info)),
                    touched => touched.unwrap_or(Touched::Unknown),
                },
            });
        }
        Ok(touched)
    }

    async fn barrier(&self) -> Result<()> {
        let held = self.packs.held();
        if may_record_packs(held.as_ref()) {
            return self.barrier_of_holder().await;
        }
        // A deletion, or a change of metadata: the packs that failed to be stored must not make it fail too.
        self.packs.settle().await;
        self.packs.record(Share::Exclusions).await?;
        self.packs.inner.barrier().await
    }
}

impl PackedBackend {
    /// A barrier of a holder of the lock of the store.
    pub(super) async fn barrier_of_holder(&self) -> Result<()> {
        self.packs.flush().await?;
        self.packs.inner.barrier().await
    }

    /// Stores a chunk as [`Backend::put`] does, in a pack of this class. An existing copy stays where it is, whatever its class.
    pub(crate) async fn put_chunk(
        &self,
        digest: Digest,
        class: PackClass,
        blob: &Bytes,
        mode: &PutMode,
    ) -> Result<Version> {
        self.packs.put_chunk((digest, class), blob, mode).await
    }
}

impl Packs {
    /// Excludes the copies of a chunk from now on. The next barrier makes that durable; the collector removes the bytes.
    async fn delete(self: &Arc<Self>, copy: Copy, removal: &Removal) -> Result<Deleted> {
        let mut state = self.state_of(&copy.digest).await?;
        if let Some(number) = copy.quarantined {
            let hidden = state.view.hide_bad(&copy.digest, number.into());
            return Ok(if hidden.is_some() { Deleted::Removed } else { Deleted::Absent });
        }
        let places = state.view.places(&copy.digest);
        let Some(first) = places.first() else { return Ok(Deleted::Absent) };
        if removal.version.as_ref().is_some_and(|wanted| *wanted != version_of(&state.view, first)) {
            return Err(Error::new(ErrorKind::Conflict, "delete").on(&removal.key));
        }
        for place in places {
            state.exclude(copy.digest, place, ExclusionReason::Deleted);
        }
        Ok(Deleted::Removed)
    }
}

//! Backends that cannot do everything, and backends that do something wrong.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use larder::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListEntry, ListPage,
    ListQuery, LockGuard, LockMode, LockScope, MemoryBackend, Object, ObjectInfo, Orphan, PendingMoves,
    PutMode, Removal, Touched, Version,
};
use larder::error::{Error, ErrorKind, Result};
use larder::format::layout::{Key, Prefix};
use larder::internal::listing::ShortPages as _;
use larder::rt::Runtime;

/// A promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    AbsentIsUnavailable,
    AbsentIsTouched,
    BarrierFails,
    ChildrenAreDeep,
    CopyIsEmpty,
    CreateReplaces,
    CursorIsForgotten,
    DeleteForgetsOne,
    DeleteIgnoresVersions,
    DeleteReversesResults,
    DeleteStopsAtFailure,
    GetIgnoresTheLimit,
    HeadHasAnotherSize,
    IfMatchIgnoresVersions,
    ListingIsUnordered,
    ListingLacksOne,
    ListingLacksQuarantined,
    ListingRepeatsOne,
    LocksOfOneKind,
    LocksTolerateAll,
    LocksStay,
    NamespaceGoesWithItsContents,
    PutAddsAByte,
    PutIsLost,
    RangeIsCut,
    ReadsAreTorn,
    SharedLocksExclude,
    StoreLockExcludes,
    StoreLockKnowsNobody,
    TouchChangesVersions,
    TouchIsUnordered,
    UntilIsExcluded,
    VersionsAreSizes,
}

macro_rules! flaws {
    ($($flaw:ident: $case:ident $says:literal),+ $(,)?) => {
        &[$((Flaw::$flaw, stringify!($case), $says)),+]
    };
}

impl Flaw {
    /// All of them, each with the case that has to notice and a part of its message.
    pub const ALL: &[(Self, &'static str, &'static str)] = flaws![
        AbsentIsTouched: absent_is_certain "absent is certain",
        AbsentIsUnavailable: absent_is_certain "empty store",
        BarrierFails: durable "durable",
        ChildrenAreDeep: children "children",
        CopyIsEmpty: copies "copy",
        CreateReplaces: create_never_replaces "create never replaces",
        CreateReplaces: one_creator_wins "so many won",
        CursorIsForgotten: complete "complete",
        CursorIsForgotten: ordered "ordered",
        DeleteForgetsOne: deletes "delete",
        DeleteIgnoresVersions: versions "versions: a deletion",
        DeleteReversesResults: deletes "in the order",
        DeleteStopsAtFailure: deletes "delete: several",
        GetIgnoresTheLimit: limited "limited",
        HeadHasAnotherSize: read_your_writes "size",
        IfMatchIgnoresVersions: conditions_see_every_change "was not seen",
        IfMatchIgnoresVersions: one_version_wins "so many won",
        IfMatchIgnoresVersions: versions "versions",
        ListingIsUnordered: ordered "in order",
        ListingLacksOne: complete "complete",
        ListingLacksOne: versions "a listing shows",
        ListingLacksQuarantined: ordered "ordered",
        ListingRepeatsOne: ordered "in order",
        LocksOfOneKind: locks_exclude "another object",
        LocksStay: locks_exclude "locks exclude",
        LocksTolerateAll: locks_exclude "locks exclude",
        NamespaceGoesWithItsContents: namespaces "not empty",
        PutAddsAByte: read_your_writes "length",
        PutIsLost: read_your_writes "read your writes",
        RangeIsCut: ranges "ranges",
        ReadsAreTorn: atomic "atomic",
        SharedLocksExclude: locks_exclude "locks exclude",
        StoreLockExcludes: locks_exclude "the store, within",
        StoreLockKnowsNobody: locks_exclude "the store, within",
        TouchChangesVersions: touches "touch: the version",
        TouchIsUnordered: touches "touch",
        UntilIsExcluded: complete "complete: the shards",
        VersionsAreSizes: versions "of another content",
    ];
}

/// A store in memory with one flaw.
#[derive(Debug)]
pub struct BrokenBackend {
    flaw: Flaw,
    inner: MemoryBackend,
    leaked: std::sync::Mutex<Vec<Box<dyn LockGuard>>>,
}

impl BrokenBackend {
    pub fn new(runtime: Arc<dyn Runtime>, flaw: Flaw) -> Self {
        let inner = MemoryBackend::new(runtime).page_entries(7);
        Self { flaw, inner, leaked: std::sync::Mutex::default() }
    }

    fn inner(&self) -> &dyn Backend {
        &self.inner
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn seen(&self, mut info: ObjectInfo) -> ObjectInfo {
        if self.has(Flaw::VersionsAreSizes) {
            info.version = Version::new(info.size.to_string());
        }
        info
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for BrokenBackend {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let limit = if self.has(Flaw::GetIgnoresTheLimit) { u64::MAX } else { limit };
        let mut object = self.inner.get(key, limit).await?;
        if self.has(Flaw::ReadsAreTorn) && object.bytes.len() > 1000 {
            object.bytes.truncate(1000);
        }
        Ok(Object::new(object.bytes, self.seen(object.info)))
    }

    async fn get_range(&self, key: &Key, mut range: Range<u64>) -> Result<Object> {
        if self.has(Flaw::RangeIsCut) {
            range.end = range.end.min(self.inner.head(key).await?.size);
        }
        let object = self.inner.get_range(key, range).await?;
        Ok(Object::new(object.bytes, self.seen(object.info)))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let mut info = self.inner.head(key).await.map_err(|error| {
            if self.has(Flaw::AbsentIsUnavailable) {
                Error::new(ErrorKind::Unavailable, "look up")
            } else {
                error
            }
        })?;
        info.size += u64::from(self.has(Flaw::HeadHasAnotherSize));
        Ok(self.seen(info))
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let mode = match mode {
            PutMode::Create if self.has(Flaw::CreateReplaces) => PutMode::Replace,
            PutMode::IfMatch(_) if self.has(Flaw::IfMatchIgnoresVersions) => PutMode::Replace,
            mode => mode,
        };
        let object = if self.has(Flaw::PutAddsAByte) { [&object[..], b"x"].concat().into() } else { object };
        if self.has(Flaw::PutIsLost) {
            return Ok(Version::new("lost"));
        }
        let size = object.len();
        let version = self.inner.put(key, object, mode).await?;
        Ok(if self.has(Flaw::VersionsAreSizes) { Version::new(size.to_string()) } else { version })
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let mut removals = removals.to_vec();
        if self.has(Flaw::DeleteIgnoresVersions) {
            for removal in &mut removals {
                removal.version = None;
            }
        }
        let forgotten =
            if self.has(Flaw::DeleteForgetsOne) && removals.len() > 2 { removals.pop() } else { None };
        let mut results = Vec::new();
        for removal in removals {
            if let Key::Namespace(namespace) = &removal.key
                && self.has(Flaw::NamespaceGoesWithItsContents)
            {
                let below = ListQuery::all(larder::format::layout::Prefix::Namespace(namespace.clone()));
                while let Some(ListEntry::Object(info)) = self.inner.list(&below, None).await?.entries.pop() {
                    self.inner.delete(&[Removal::any(info.key)]).await?;
                }
            }
            let result = self.inner.delete(&[removal]).await?.remove(0);
            if self.has(Flaw::DeleteStopsAtFailure) {
                result.clone()?;
            }
            results.push(result);
        }
        results.extend(forgotten.map(|_| Ok(Deleted::Removed)));
        if self.has(Flaw::DeleteReversesResults) {
            results.reverse();
        }
        Ok(results)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let mut query = query.clone();
        if self.has(Flaw::ChildrenAreDeep) {
            query.depth = larder::backend::Depth::All;
        }
        let mut page = self.inner.list(&query, cursor).await?;
        let entries = &mut page.entries;
        match self.flaw {
            Flaw::CursorIsForgotten => page.next = None,
            Flaw::ListingIsUnordered => entries.reverse(),
            Flaw::ListingLacksOne => drop(entries.pop()),
            Flaw::ListingLacksQuarantined => entries.retain(
                |entry| !matches!(entry, ListEntry::Object(info) if matches!(info.key, Key::Quarantined(..))),
            ),
            Flaw::ListingRepeatsOne => entries.extend(entries.last().cloned()),
            Flaw::UntilIsExcluded => entries.retain(
                |entry| !matches!(entry, ListEntry::Object(info) if Some(&info.key) == query.until.as_ref()),
            ),
            _ => {}
        }
        Ok(page)
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let mut touched = self.inner.touch(keys).await?;
        match self.flaw {
            Flaw::AbsentIsTouched => {
                for (touched, key) in touched.iter_mut().zip(keys) {
                    if *touched == Touched::Absent {
                        let info =
                            ObjectInfo::new(key.clone(), 0, self.inner().runtime().now(), Version::new("0"));
                        *touched = Touched::Present(info);
                    }
                }
            }
            Flaw::TouchChangesVersions => {
                for key in keys {
                    if let Ok(object) = self.inner.get(key, u64::MAX).await {
                        self.inner.put(key, object.bytes, PutMode::Replace).await?;
                    }
                }
            }
            Flaw::TouchIsUnordered => touched.reverse(),
            _ => {}
        }
        Ok(touched)
    }

    async fn barrier(&self) -> Result<()> {
        if self.has(Flaw::BarrierFails) { Err(Error::new(ErrorKind::Unavailable, "flush")) } else { Ok(()) }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for BrokenBackend {
    async fn clock(&self) -> Result<SystemTime> {
        self.inner.coordination().clock().await
    }

    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.coordination().runtime()
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let any = "vm/1/2025-01-01T00:00:00Z".parse().unwrap();
        match (self.flaw, scope) {
            (Flaw::LocksOfOneKind, LockScope::Snapshot(_) | LockScope::Manifest(_))
            | (Flaw::StoreLockExcludes, LockScope::Store) => {
                self.inner.coordination().lock(&LockScope::Snapshot(any), mode).await
            }
            (Flaw::LocksTolerateAll, _) => self.inner.coordination().lock(scope, LockMode::Shared).await,
            (Flaw::LocksStay, _) => {
                let guard = self.inner.coordination().lock(scope, mode).await?;
                self.leaked.lock().unwrap().push(guard);
                self.inner.coordination().lock(&LockScope::Store, LockMode::Shared).await
            }
            (Flaw::SharedLocksExclude, LockScope::Group(_)) => {
                self.inner.coordination().lock(scope, LockMode::Exclusive).await
            }
            (Flaw::StoreLockKnowsNobody, LockScope::Store) => {
                let inner = self.inner.coordination().lock(scope, mode).await?;
                Ok(Box::new(Ignorant { inner }))
            }
            _ => self.inner.coordination().lock(scope, mode).await,
        }
    }

    async fn check_owned(&self) -> Result<()> {
        Ok(())
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        None
    }

    async fn begin_term(&self) -> Result<()> {
        Ok(())
    }

    fn in_doubt(&self, _: &Key) -> Option<Duration> {
        None
    }

    async fn record_moves(&self, _: &[Key]) -> Result<()> {
        Ok(())
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        Ok(None)
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.inner.coordination().close().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for BrokenBackend {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner().begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let version = self.inner().copy(from, to, mode).await?;
        if self.has(Flaw::CopyIsEmpty) {
            return self.inner.put(to, Bytes::new(), PutMode::Replace).await;
        }
        Ok(version)
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        self.inner().head_many(keys).await
    }

    async fn has_store(&self) -> Result<bool> {
        self.inner().has_store().await
    }

    fn is_new(&self) -> bool {
        self.inner().is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.inner().orphans(foreign).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.inner().get_orphan(orphan, limit).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.inner().remove_leftovers(foreign, age).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Ignorant {
    inner: Box<dyn LockGuard>,
}

#[async_trait]
impl LockGuard for Ignorant {
    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }

    fn keeps_processes_out(&self) -> bool {
        false
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        None
    }

    async fn release_deleted(self: Box<Self>) {}
}

/// A store in memory that can neither put nor delete on conditions, and says so.
#[derive(Debug)]
pub struct LackingBackend {
    capabilities: Capabilities,
    inner: Arc<dyn Backend>,
    refused: AtomicUsize,
}

impl LackingBackend {
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        let mut capabilities = Capabilities::local();
        capabilities.conditional_delete = false;
        capabilities.conditional_put = false;
        Self { capabilities, inner, refused: AtomicUsize::new(0) }
    }

    /// How often it refused.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn refusal(&self) -> Error {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Error::new(ErrorKind::Unsupported, "do on a condition")
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for LackingBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self.inner.coordination()
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        self.inner.get(key, limit).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        if mode != PutMode::Replace {
            return Err(self.refusal());
        }
        self.inner.put(key, object, mode).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let mut results = Vec::new();
        for removal in removals {
            if removal.version.is_some() {
                results.push(Err(self.refusal()));
            } else {
                results.append(&mut self.inner.delete(std::slice::from_ref(removal)).await?);
            }
        }
        Ok(results)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        self.inner.list(query, cursor).await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        Ok(vec![Touched::Unknown; keys.len()])
    }

    async fn barrier(&self) -> Result<()> {
        self.inner.barrier().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for LackingBackend {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner.begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        if mode != PutMode::Replace {
            return Err(self.refusal());
        }
        self.inner.copy(from, to, mode).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        self.inner.head_many(keys).await
    }

    async fn has_store(&self) -> Result<bool> {
        self.inner.has_store().await
    }

    fn is_new(&self) -> bool {
        self.inner.is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.inner.orphans(foreign).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.inner.get_orphan(orphan, limit).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.inner.remove_leftovers(foreign, age).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.inner.keep_reserve().await
    }
}

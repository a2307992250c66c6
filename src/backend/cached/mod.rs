//! A backend wrapper with copies of the metadata on a local disk.
//!
//! # Sources of answers
//! | method | while this process alone may change the store, after a refresh | otherwise |
//! |---|---|---|
//! | list | the generation | the uncached backend |
//! | head | the generation, for objects that it has; the uncached backend for others, since a listing cannot prove absence (H13) | the uncached backend |
//! | get | the copy of the version in the generation; without a copy, the uncached backend | the uncached backend; for an index with a copy, a `head` first, and the copy if the version is the same |
//!
//! Chunks and the objects of the store as a whole always come from the uncached backend (D14).
//!
//! # Generations
//! A generation is the result of one listing of all metadata, and every later change by this process. It is in memory only: a copy on disk
//! is named by its version, so that a new generation replaces the old one in one step without a change on disk (H82). A refresh and
//! running operations do not wait for each other: changes during the listing are recorded, and applied to its result before it
//! counts (H81). A change that ends in doubt ends the generation: the uncached backend answers everything until the next refresh (I6). If a
//! refresh fails, the previous generation remains.
//!
//! A change goes to the uncached backend first. The generation changes only after the backend confirmed it (H40).
//!
//! Programs that take no lease may change the store too: [`foreign`] detects that.

mod foreign;
mod housekeeping;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::cached::foreign::{Lookers, objects_of};
use crate::backend::lock_wait::lock_store;
use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListEntry, ListPage,
    ListQuery, LockMode, Object, ObjectInfo, PutMode, Removal, Touched, Version, list_all, page_of,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::manifest::MANIFEST_BYTES;
use crate::format::name::Namespace;
use crate::local::LocalState;
use crate::local::mirror::CopyName;
use crate::wording::{Count, Size};

/// Number of entries on a page of a listing.
const PAGE_ENTRIES: usize = 10_000;
/// Number of objects that a refresh fetches at the same time.
const FETCHES_IN_FLIGHT: usize = 32;

#[derive(Debug)]
pub(crate) struct MetadataCache {
    inner: Arc<dyn Backend>,
    local: Arc<LocalState>,
    refreshing: AsyncMutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: Generation,
    /// During a refresh: the changes since it began.
    journal: Option<Journal>,
    lookers: Lookers,
}

#[derive(Debug, Default)]
struct Generation {
    /// The first epoch of the terms in which the generation is valid; `None` if it is not valid.
    since: Option<u64>,
    objects: BTreeMap<String, Kept>,
}

#[derive(Debug, Default)]
struct Journal {
    changes: Vec<(String, Option<Kept>)>,
    in_doubt: bool,
}

/// The description of an object.
#[derive(Clone, Debug)]
struct Kept {
    last_used: SystemTime,
    size: u64,
    version: Version,
}

/// The knowledge of the generation about an object.
enum Known {
    Absent,
    Nothing,
    Present(Kept),
}

/// The report of a refresh.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Refresh {
    /// Bytes of metadata that were fetched.
    pub bytes: u64,
    /// Objects that were fetched, since the local state had no copy of their version.
    pub fetched: u64,
    /// Metadata is read without requests from now on: this process alone may change the store.
    pub is_exclusive: bool,
    /// Objects in the store other than chunks.
    pub objects: u64,
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fetched {} of {}, {}", self.fetched, Count(self.objects, "object"), Size(self.bytes))
    }
}

impl Kept {
    fn of(info: &ObjectInfo) -> Self {
        Self { last_used: info.last_used, size: info.size, version: info.version.clone() }
    }

    fn info(&self, key: Key) -> ObjectInfo {
        ObjectInfo::new(key, self.size, self.last_used, self.version.clone())
    }
}

impl State {
    fn change(&mut self, path: String, kept: Option<Kept>) {
        if let Some(journal) = &mut self.journal {
            journal.changes.push((path.clone(), kept.clone()));
        }
        self.lookers.note(&path);
        apply(&mut self.generation.objects, path, kept);
    }

    fn doubt(&mut self) {
        self.generation.since = None;
        if let Some(journal) = &mut self.journal {
            journal.in_doubt = true;
        }
    }
}

fn apply(objects: &mut BTreeMap<String, Kept>, path: String, kept: Option<Kept>) {
    match kept {
        Some(kept) => objects.insert(path, kept),
        None => objects.remove(&path),
    };
}

/// A change that is under way. If it is dropped before its end, its outcome is in doubt.
struct Change<'a> {
    metadata_cache: &'a MetadataCache,
    is_open: bool,
}

impl Change<'_> {
    fn end(mut self) {
        self.is_open = false;
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.metadata_cache.state().doubt();
        }
    }
}

impl MetadataCache {
    pub(crate) fn new(inner: Arc<dyn Backend>, local: Arc<LocalState>) -> Self {
        Self { inner, local, refreshing: AsyncMutex::default(), state: Mutex::default() }
    }

    /// The uncached backend. Decisions that delete use it (H10).
    pub(crate) fn uncached_backend(&self) -> &Arc<dyn Backend> {
        &self.inner
    }

    /// Reads the copy of an object in the version that a listing of the uncached backend has just shown.
    pub(crate) async fn copy_of_version(&self, info: &ObjectInfo) -> Result<Option<Bytes>> {
        self.copy_of(&info.key, &Kept::of(info)).await
    }

    /// Brings the generation and the copies to the state of the store.
    pub(crate) async fn refresh(&self) -> Result<Refresh> {
        let _alone = self.refreshing.lock().await;
        // The lock makes the backend take the lease, and the backend keeps it. A process that cannot have it refreshes without.
        let lock = match lock_store(self.inner.as_ref(), LockMode::Shared).await {
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Denied) => None,
            lock => Some(lock?),
        };
        let lease_term = self.inner.lease_term();
        self.state().journal = Some(Journal::default());
        let listed = self.listed().await;
        let (report, live) = self.flip(listed, lease_term)?;
        drop(lock);
        let local = Arc::clone(&self.local);
        // Copies of versions that the store no longer has take up space only. A failure to remove them is no failure of the refresh.
        let sweep = move || Ok(local.mirror.retain(&live));
        let _ = self.inner.runtime().run_blocking("remove old copies", sweep).await?;
        Ok(report)
    }

    /// Replaces the generation by the listed objects and the changes since the refresh began, in one step.
    fn flip(
        &self,
        listed: Result<(BTreeMap<String, Kept>, Refresh)>,
        lease_term: Option<LeaseTerm>,
    ) -> Result<(Refresh, HashSet<CopyName>)> {
        let mut state = self.state();
        // The refresh is over, also if it failed: changes are no longer recorded.
        let journal = state.journal.take().unwrap_or_default();
        let (mut objects, mut report) = listed?;
        for (path, kept) in journal.changes {
            apply(&mut objects, path, kept);
        }
        report.objects = objects.len() as u64;
        let since = lease_term.map(|lease_term| lease_term.since);
        let goes_on = since.is_some() && self.inner.lease_term().map(|lease_term| lease_term.since) == since;
        report.is_exclusive = goes_on && !journal.in_doubt;
        let since = since.filter(|_| report.is_exclusive);
        let name = |(path, kept): (&String, &Kept)| CopyName::new(path, kept.version.as_str());
        let live = objects.iter().map(name).collect();
        state.generation = Generation { since, objects };
        Ok((report, live))
    }

    /// Lists all metadata, and fetches the small objects that have no copy.
    async fn listed(&self) -> Result<(BTreeMap<String, Kept>, Refresh)> {
        let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
        let infos = objects_of(self.inner.as_ref(), &all).await?;
        let mut report = Refresh::default();
        let mut gone = Vec::new();
        let mut objects: BTreeMap<_, _> =
            infos.iter().map(|info| (info.key.path(), Kept::of(info))).collect();
        let wanted = self.without_copies(infos).await?;
        let fetches = stream::iter(wanted).map(|info| self.fetched(info));
        let mut fetches = fetches.buffer_unordered(FETCHES_IN_FLIGHT);
        while let Some((key, found)) = fetches.try_next().await? {
            match found {
                None => gone.push(key),
                Some(info) => {
                    report.fetched += 1;
                    report.bytes += info.size;
                    objects.insert(key.path(), Kept::of(&info));
                }
            }
        }
        drop(fetches);
        for key in gone {
            self.check_gone(&key).await?;
            objects.remove(&key.path());
        }
        Ok((objects, report))
    }

    /// The small objects that have no copy of their version.
    async fn without_copies(&self, infos: Vec<ObjectInfo>) -> Result<Vec<ObjectInfo>> {
        let local = Arc::clone(&self.local);
        let lacking = move || {
            let lacks = |info: &ObjectInfo| {
                is_small(&info.key)
                    && !local.mirror.contains(&CopyName::new(&info.key.path(), info.version.as_str()))
            };
            Ok(infos.into_iter().filter(lacks).collect())
        };
        self.inner.runtime().run_blocking("look for copies", lacking).await
    }

    async fn fetched(&self, info: ObjectInfo) -> Result<(Key, Option<ObjectInfo>)> {
        match self.inner.get(&info.key, MANIFEST_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok((info.key, None)),
            Err(error) => Err(error),
            Ok(object) => {
                self.keep(&info.key, &object.info.version, object.bytes).await;
                Ok((info.key, Some(object.info)))
            }
        }
    }

    /// Checks that a second listing does not show an object that was listed and could not be found (H83).
    async fn check_gone(&self, key: &Key) -> Result<()> {
        let query = match key {
            Key::Manifest(snapshot) => Prefix::Snapshot(snapshot.clone()),
            Key::Owner(group) | Key::GroupNotes(group) => Prefix::Group(group.clone()),
            _ => Prefix::Namespace(Namespace::root()),
        };
        let listing = list_all(self.inner.as_ref(), &ListQuery::all(query)).await?;
        let is_listed = |entry: &ListEntry| matches!(entry, ListEntry::Object(info) if info.key == *key);
        if listing.entries().iter().any(is_listed) {
            let error = Error::new(ErrorKind::Unavailable, "refresh").on(key);
            return Err(error.because("the object is listed, but cannot be found"));
        }
        Ok(())
    }

    /// The knowledge of the generation about an object: nothing, if the generation is not valid now.
    fn known(&self, key: &Key) -> Known {
        let since = self.inner.lease_term().map(|lease_term| lease_term.since);
        let state = self.state();
        if !key.is_content() || since.is_none() || state.generation.since != since {
            return Known::Nothing;
        }
        state.generation.objects.get(&key.path()).cloned().map_or(Known::Absent, Known::Present)
    }

    async fn copy_of(&self, key: &Key, kept: &Kept) -> Result<Option<Bytes>> {
        let (local, name) = (Arc::clone(&self.local), CopyName::new(&key.path(), kept.version.as_str()));
        let found =
            self.inner.runtime().run_blocking("read a copy", move || Ok(local.mirror.get(&name))).await?;
        Ok(found.filter(|found| found.len() as u64 == kept.size))
    }

    /// Stores a copy. A failure is ignored: the store has the object.
    async fn keep(&self, key: &Key, version: &Version, body: Bytes) {
        if version.as_str().is_empty() || !key.is_content() {
            return;
        }
        let (local, name) = (Arc::clone(&self.local), CopyName::new(&key.path(), version.as_str()));
        let keep = move || Ok(local.keep_copy(&name, &body));
        let _ = self.inner.runtime().run_blocking("keep a copy", keep).await;
    }

    /// Reads from the uncached backend, and stores a copy.
    async fn fetch(&self, key: &Key, limit: u64) -> Result<Object> {
        let object = self.inner.get(key, limit).await?;
        self.keep(key, &object.info.version, object.bytes.clone()).await;
        Ok(object)
    }

    /// Reads an index that may have a copy: a `head` costs less than reading it.
    async fn get_index(&self, key: &Key, limit: u64) -> Result<Object> {
        let hint = self.state().generation.objects.get(&key.path()).cloned();
        if let Some(hint) = hint {
            let info = self.inner.head(key).await?;
            if info.version == hint.version
                && let Some(bytes) = self.copy_of(key, &hint).await?
            {
                return Ok(Object::new(bytes, info));
            }
        }
        self.fetch(key, limit).await
    }

    fn begin_change(&self) -> Change<'_> {
        Change { metadata_cache: self, is_open: true }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn absent(key: &Key, action: &'static str) -> Error {
    Error::new(ErrorKind::NotFound, action).on(key)
}

/// Returns `true` for the objects that a refresh fetches. Indexes and blobs are fetched when they are read (H84).
fn is_small(key: &Key) -> bool {
    matches!(key, Key::Manifest(_) | Key::Owner(_) | Key::GroupNotes(_))
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for MetadataCache {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn coordination(&self) -> &dyn Coordination {
        self.inner.coordination()
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        match self.known(key) {
            Known::Absent => Err(absent(key, "read")),
            Known::Present(kept) if kept.size <= limit => {
                if let Some(bytes) = self.copy_of(key, &kept).await? {
                    return Ok(Object::new(bytes, kept.info(key.clone())));
                }
                let fetched = self.fetch(key, limit).await;
                let is_other = match &fetched {
                    Ok(object) => object.info.version != kept.version,
                    Err(error) => error.kind() == ErrorKind::NotFound,
                };
                if is_other {
                    // A program that ignores the lease changed it, or the listing lagged.
                    self.state().doubt();
                }
                fetched
            }
            Known::Nothing if matches!(key, Key::Archive(..)) => self.get_index(key, limit).await,
            _ if key.is_content() => self.fetch(key, limit).await,
            _ => self.inner.get(key, limit).await,
        }
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        match self.known(key) {
            Known::Present(kept) => Ok(kept.info(key.clone())),
            Known::Nothing => self.inner.head(key).await,
            Known::Absent => {
                let found = self.inner.head(key).await;
                if found.is_ok() {
                    self.state().doubt();
                }
                found
            }
        }
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        if !key.is_content() {
            return self.inner.put(key, object, mode).await;
        }
        let change = self.begin_change();
        match self.inner.put(key, object.clone(), mode).await {
            Ok(version) => {
                let size = object.len() as u64;
                let kept = Kept { last_used: self.inner.runtime().now(), size, version: version.clone() };
                self.state().change(key.path(), Some(kept));
                change.end();
                self.keep(key, &version, object).await;
                Ok(version)
            }
            Err(error) => {
                // A failed condition proves that the store differs from the generation.
                let is_certain = !matches!(
                    error.kind(),
                    ErrorKind::AlreadyExists
                        | ErrorKind::Conflict
                        | ErrorKind::Internal
                        | ErrorKind::Unavailable
                );
                if is_certain {
                    change.end();
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let change = removals.iter().any(|removal| removal.key.is_content()).then(|| self.begin_change());
        let results = self.inner.delete(removals).await?;
        let mut state = self.state();
        for (removal, result) in removals.iter().zip(&results) {
            match result {
                Ok(_) if removal.key.is_content() => state.change(removal.key.path(), None),
                Err(error) if error.kind() != ErrorKind::Conflict => state.doubt(),
                _ => {}
            }
        }
        drop(state);
        if let Some(change) = change {
            change.end();
        }
        Ok(results)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        if query.prefix != Prefix::Chunks
            && let Some(lease_term) = self.inner.lease_term()
        {
            let state = self.state();
            if state.generation.since == Some(lease_term.since) {
                let info = |key, kept: &Kept| kept.info(key);
                return Ok(page_of(&state.generation.objects, query, cursor, PAGE_ENTRIES, info));
            }
        }
        self.inner.list(query, cursor).await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        self.inner.touch(keys).await
    }

    async fn barrier(&self) -> Result<()> {
        self.inner.barrier().await
    }
}

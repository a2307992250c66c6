//! A store in a bucket, in the layout of PBS.
//!
//! | object | key in the bucket, after the name of the store |
//! |---|---|
//! | a chunk | `.chunks/bb9f/bb9f8df6…` |
//! | groups, snapshots, markers of namespaces | `.cnt/` and the path |
//! | the identity of the store, the state of garbage collection | the path |
//!
//! A version is the tag of the object. Objects are durable when their put returns, so a barrier has nothing to do. A touch would cost a
//! request, and does nothing.
//!
//! **Locks** for changes need the lease of the store, so they exclude all other processes of this crate. Locks of readers exclude tasks of
//! their own process only: only the grace time of garbage collection protects the chunks that another process reads. The owner mark
//! `.in-use` excludes a PBS, if it reads the mark. Where the server has no conditional puts, the lease is weaker, and the capabilities say
//! that locks reach this process only.
//!
//! Source: PBS S3 layout, object keys.

mod guard;
mod housekeeping;
mod lease;
mod listed_segments;
mod mark;
mod markers;
mod place;
mod removal;
mod reserve;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::in_doubt::{MAX_REQUEST_TIME, is_certain, is_over};
use crate::backend::lock_table::LockTable;
use crate::backend::s3::guard::Guard;
use crate::backend::s3::lease::{Attempt, Care, Lease};
use crate::backend::s3::markers::Markers;
use crate::backend::s3::place::{Place, bare, is_marker};
use crate::backend::s3::reserve::Reserve;
use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Depth, Housekeeping, LeaseTerm, ListEntry,
    ListPage, ListQuery, LockGuard, LockMode, LockReach, LockScope, Object, ObjectInfo, PendingMoves,
    PutMode, Removal, Touched, Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{ENCLOSURE, Key, Prefix};
use crate::rt::Runtime;
use crate::s3::{
    BucketClient, Condition, Head, ListRequest, ListedPage, Risk, S3Capabilities, S3Client, Support,
};

pub use mark::Ownership;

/// Number of chunks to transfer at the same time: with a round trip of 30 ms, even small chunks fill a fast link.
const IN_FLIGHT: usize = 30;
/// Number of lookups that prove absence, on servers that may deny an object while it is replaced.
const LOOKS: usize = 3;

/// A [`Backend`] that keeps a store in a bucket.
#[derive(Debug)]
pub struct S3Backend {
    capabilities: Capabilities,
    client: BucketClient,
    handle: S3Client,
    lease: Arc<Lease>,
    locks: LockTable,
    markers: Markers,
    place: Place,
    reserve: Arc<Reserve>,
    runtime: Arc<dyn Runtime>,
    server: S3Capabilities,
    /// The name of the store and a `/`, or empty.
    store: String,
}

impl S3Backend {
    /// Opens the store with this name in the bucket of the client, which may be empty. With an empty name, the store is the whole bucket.
    /// `server` is a result of [`S3Client::probe`], possibly an earlier one. `accepted` are those of its [risks](S3Capabilities::risks) that
    /// the caller accepts.
    ///
    /// # Errors
    /// `Unsupported` if the server has a risk that was not accepted, or if its listings are unreliable. `InvalidInput` if a key of the store
    /// could be longer than the 1024 bytes that S3 allows, if the name has a `/`, or if the [deadline](crate::s3::RetryOptions::deadline) of the
    /// client is 30 minutes or more.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        client: S3Client,
        store: &str,
        server: S3Capabilities,
        accepted: &[Risk],
    ) -> Result<Self> {
        let refused = || Error::new(ErrorKind::InvalidInput, "open the store").on(store);
        if store.contains('/') {
            return Err(refused().because("the name has a slash: a store within a store is not safe"));
        }
        if store.len() > MAX_STORE_BYTES {
            return Err(refused().because("the name is too long for the keys below it"));
        }
        if client.requests().request_deadline() >= MAX_REQUEST_TIME {
            return Err(refused().because("the deadline of the client is 30 minutes or more"));
        }
        if let Some(risk) = server.risks().into_iter().find(|risk| !accepted.contains(risk)) {
            let refused = Error::new(ErrorKind::Unsupported, "open the store").on(store);
            return Err(refused.because(risk.to_string()));
        }
        if matches!(server.listing, Support::Ignored | Support::Refused) {
            // Garbage collection by such a listing would delete chunks in use.
            let refused = Error::new(ErrorKind::Unsupported, "open the store").on(store);
            return Err(refused.because("the server does not list all objects page by page and in order"));
        }
        let yes = |support| support == Support::Yes;
        let conditional = yes(server.create_only_put) && yes(server.conditional_put);
        let capabilities = Capabilities {
            conditional_delete: yes(server.conditional_delete),
            conditional_put: conditional,
            deep_listings: true,
            in_flight: IN_FLIGHT,
            lock_reach: if conditional { LockReach::Everybody } else { LockReach::Process },
            traceless_locks: true,
            ..Capabilities::minimal()
        };
        let handle = client;
        let client = handle.requests().clone();
        client.send_md5(!yes(server.checks_bodies));
        let store = if store.is_empty() { String::new() } else { format!("{store}/") };
        let place = Place {
            conditional,
            data: [
                format!("{store}{CONTENT}"),
                format!("{store}{}", Prefix::Chunks),
                format!("{store}{ENCLOSURE}"),
            ],
            in_use: format!("{store}{}", Key::InUse),
            lease: format!("{store}{}", Key::Lease),
            quoted_tags: server.quoted_tags,
        };
        let reserve = Arc::new(Reserve::new(&store));
        let (of, room) = (Ownership::default(), Arc::clone(&reserve));
        let lease = Lease::new(Arc::clone(&runtime), client.clone(), place.clone(), of, room);
        Ok(Self {
            capabilities,
            client,
            handle,
            lease,
            locks: LockTable::default(),
            markers: Markers::default(),
            place,
            reserve,
            runtime,
            server,
            store,
        })
    }

    /// Sets the owner that other hosts and processes see. Call it before the backend is used.
    #[must_use]
    pub fn ownership(mut self, ownership: Ownership) -> Self {
        let (runtime, client) = (Arc::clone(&self.runtime), self.client.clone());
        self.lease = Lease::new(runtime, client, self.place.clone(), ownership, Arc::clone(&self.reserve));
        self
    }

    /// Aborts the multipart uploads of this store that began at least `age` ago, and returns their number. Dead processes leave such
    /// uploads, which are invisible and cost money. A day is a good age: no upload that is alive is as old.
    ///
    /// # Errors
    /// As for any request to the server; `Conflict` if the lease was lost.
    pub async fn abort_stale_uploads(&self, age: Duration) -> Result<usize> {
        let mut aborted = 0;
        let of_larder = format!("{}.larder/", self.store);
        for prefix in [format!("{}{CONTENT}", self.store), self.render_prefix(&Prefix::Chunks), of_larder] {
            let attempt = self.lease.attempt(Care::Confirmed);
            let found = attempt.client().abort_stale_uploads(&prefix, age).await;
            // An upload is no object, so a late abort does no harm.
            attempt.finish(Ok(()))?;
            aborted += found?;
        }
        Ok(aborted)
    }

    /// The client, for its counters and limits.
    pub fn client(&self) -> &S3Client {
        &self.handle
    }

    /// The capabilities of the server.
    pub fn server(&self) -> &S3Capabilities {
        &self.server
    }

    fn render(&self, key: &Key) -> String {
        let place = if key.is_content() { CONTENT } else { "" };
        format!("{}{place}{}", self.store, key.path())
    }

    fn render_prefix(&self, prefix: &Prefix) -> String {
        let place = if prefix.is_of_content() { CONTENT } else { "" };
        format!("{}{place}{}", self.store, prefix.path())
    }

    /// The path of a key in the bucket, relative to the store.
    fn path<'a>(&self, key: &'a str) -> &'a str {
        let path = key.strip_prefix(&self.store).unwrap_or(key);
        path.strip_prefix(CONTENT).unwrap_or(path)
    }

    fn info(&self, key: Key, head: &Head) -> ObjectInfo {
        let last_used = head.last_modified.unwrap_or_else(|| self.runtime.now());
        ObjectInfo::new(key, head.size, last_used, version(&head.etag))
    }

    fn condition(&self, key: &Key, mode: &PutMode) -> Result<Condition> {
        if *mode != PutMode::Replace && !self.capabilities.conditional_put {
            return Err(Error::new(ErrorKind::Unsupported, "store on a condition").on(key));
        }
        Ok(match mode {
            PutMode::Create => Condition::Absent,
            PutMode::IfMatch(version) => Condition::Tag(self.tag(version)),
            PutMode::Replace => Condition::Always,
        })
    }

    /// A version in the form that the server expects.
    fn tag(&self, version: &Version) -> String {
        if self.server.quoted_tags {
            format!("\"{}\"", version.as_str())
        } else {
            version.as_str().to_owned()
        }
    }

    /// Repeats a lookup that found nothing, if the server may deny an object while it is replaced. Swift does, and Swift refuses
    /// conditions too, so their absence is the sign.
    async fn certainly<T, F: Future<Output = Result<T>>>(&self, look: impl Fn() -> F) -> Result<T> {
        for _ in 1..if self.capabilities.conditional_put { 1 } else { LOOKS } {
            match look().await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                found => return found,
            }
        }
        look().await
    }

    /// The version of an object that was just stored, on a server whose answer lacked it.
    async fn version_of(&self, rendered: &str, stored: &Bytes) -> Result<Version> {
        match self.client.get(rendered, stored.len() as u64).await {
            Ok((found, head)) if found == *stored => Ok(version(&head.etag)),
            Ok(_) => Ok(self.past_version()),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                Ok(self.past_version())
            }
            Err(error) => Err(error),
        }
    }

    /// A version that no object has: another process changed the object between the put and the lookup.
    fn past_version(&self) -> Version {
        let mut random = [0; 8];
        self.runtime.fill_random(&mut random);
        Version::new(format!("past-{:016x}", u64::from_le_bytes(random)))
    }

    /// Begins a request that changes something. Each of its attempts needs the lease.
    async fn begin_change(&self, care: Care) -> Result<Attempt> {
        self.lease.before_change().await?;
        Ok(self.lease.attempt(care))
    }

    /// Returns `true` if the key in the bucket is the place of the object with this path.
    fn is_at(&self, rendered: &str, key: &Key, path: &str) -> bool {
        let place = if key.is_content() { CONTENT } else { "" };
        let rest = rendered.strip_prefix(self.store.as_str()).and_then(|rest| rest.strip_prefix(place));
        rest == Some(path)
    }

    fn entries(&self, query: &ListQuery, page: ListedPage) -> (Vec<ListEntry>, bool) {
        let foreign = |path: &str| ListEntry::Foreign(path.to_owned());
        let after = query.after.as_ref().map(Key::path);
        let until = query.until.as_ref().map(Key::path);
        let is_past = |path: &str| until.as_deref().is_some_and(|until| path > until);
        let covers = |path: &str| after.as_deref().is_none_or(|after| path > after) && !is_past(path);
        let mut past = false;
        let mut entries = Vec::with_capacity(page.listing.objects.len());
        for object in page.listing.objects {
            let path = self.path(&object.key);
            past |= is_past(path);
            if is_marker(&object.key, object.size) {
                self.markers.note(&object.key);
                continue;
            }
            if !covers(path) {
                continue;
            }
            // A key below `.cnt/` with the path of a chunk is not that chunk.
            entries.push(match Key::parse(path).filter(|key| self.is_at(&object.key, key, path)) {
                None => foreign(path),
                Some(key) => {
                    let etag = object.etag.unwrap_or_default();
                    let head = Head::new(etag, object.size, object.last_modified);
                    ListEntry::Object(self.info(key, &head))
                }
            });
        }
        for prefix in &page.listing.common_prefixes {
            let path = self.path(prefix);
            past |= is_past(path);
            if covers(path) {
                let parsed = Prefix::parse(path).filter(|parsed| self.render_prefix(parsed) == *prefix);
                entries.push(parsed.map_or_else(|| foreign(path), ListEntry::Prefix));
            }
        }
        if !page.listing.common_prefixes.is_empty() || query.prefix != Prefix::Chunks {
            entries.sort_by_cached_key(ListEntry::path);
        }
        (entries, past)
    }
}

#[async_trait]
impl Backend for S3Backend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let rendered = self.render(key);
        let (bytes, head) = self.certainly(|| self.client.get(&rendered, limit)).await?;
        Ok(Object::new(bytes, self.info(key.clone(), &head)))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let rendered = self.render(key);
        if range.is_empty() {
            // An absent object is `NotFound`, whatever the range.
            self.certainly(|| self.client.head(&rendered)).await?;
        }
        let (bytes, head) = self.certainly(|| self.client.get_range(&rendered, range.clone())).await?;
        Ok(Object::new(bytes, self.info(key.clone(), &head)))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let rendered = self.render(key);
        let head = self.certainly(|| self.client.head(&rendered)).await?;
        Ok(self.info(key.clone(), &head))
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let (condition, rendered) = (self.condition(key, &mode)?, self.render(key));
        if matches!(key.exposed(), Key::Namespace(_)) {
            // A namespace is the only object that is stored without a lock.
            self.lease.hold().await?;
            self.lease.check_name(key)?;
        }
        let attempt = self.begin_change(Care::to_store(key)).await?;
        // A put that compares a version does nothing after a deletion.
        let compares = matches!(mode, PutMode::IfMatch(_));
        let storing = if compares { None } else { self.lease.storing(key) };
        let what = (rendered.as_str(), object.clone(), &condition);
        let stored = self.reserve.store(attempt.client(), (key, &mode), what).await;
        let stored = attempt.finish_put(key, stored);
        let is_over = stored.as_ref().map_or_else(is_certain, |stored| stored.is_over);
        if let Some(storing) = storing {
            storing.end(is_over).await;
        }
        if stored.is_ok() || !is_over {
            self.lease.note_stored(key);
        }
        let etag = stored?.etag;
        if etag.is_empty() { self.version_of(&rendered, &object).await } else { Ok(version(&etag)) }
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        self.lease.before_change().await?;
        // Under way from here on. If this future is dropped, so is `removing`, which marks all of them as in doubt.
        let removing = self.lease.removing(removals).await?;
        let deleted = self.delete_settled(removals).await;
        // Marks those without a certain outcome as in doubt.
        removing.finish(&deleted);
        let deleted = deleted?;
        for (removal, _) in removals.iter().zip(&deleted).filter(|(_, deleted)| is_over(deleted)) {
            self.lease.note_deleted(&removal.key);
        }
        self.remove_markers(removals).await;
        Ok(deleted)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let mut request = ListRequest::new(self.render_prefix(&query.prefix));
        request.fold = query.depth == Depth::Children && query.prefix != Prefix::Chunks;
        request.start_after = query.after.as_ref().map(|key| self.render(key));
        let page = self.client.list(&request, cursor.map(Cursor::as_str)).await?;
        let next = page.next.clone();
        let (mut entries, past) = self.entries(query, page);
        if request.fold {
            entries = self.without_ghosts(entries).await?;
        }
        if query.prefix == Prefix::Segments && next.is_none() {
            self.add_recent_segments(query, cursor.is_none(), &mut entries).await?;
        }
        Ok(ListPage::new(entries, next.filter(|_| !past).map(Cursor::new)))
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        Ok(vec![Touched::Unknown; keys.len()])
    }

    async fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Coordination for S3Backend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.lease.clock().await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let held = self.locks.lock(scope, mode, self.runtime.now())?;
        let is_of_the_store = *scope == LockScope::Store;
        let changes = is_of_the_store || mode.is_alone();
        if changes {
            self.lease.hold().await?;
        }
        if is_of_the_store && mode.is_alone() {
            self.lease.check_nothing_in_doubt()?;
            self.lease.check_no_late_segment()?;
        }
        let lease = changes.then(|| Arc::clone(&self.lease));
        let since = self.lease.lease_term().map(|lease_term| lease_term.since);
        Ok(Box::new(Guard { held, is_of_the_store, lease, since }))
    }

    async fn check_owned(&self) -> Result<()> {
        self.lock(&LockScope::Store, LockMode::Shared).await?.check().await
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        self.lease.lease_term()
    }

    async fn begin_term(&self) -> Result<()> {
        self.lease.begin_term().await
    }

    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.lease.in_doubt(key)
    }

    async fn record_moves(&self, _: &[Key]) -> Result<()> {
        Ok(())
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        Ok(None)
    }

    async fn release(&self) -> Result<()> {
        self.lease.remove_mark().await?;
        self.close().await
    }

    async fn close(&self) -> Result<()> {
        let was_held = self.lease.lease_term().is_some();
        self.lease.release().await?;
        if was_held {
            self.reserve.end(&self.client).await;
        }
        Ok(())
    }
}

fn version(etag: &str) -> Version {
    Version::new(bare(etag))
}

const CONTENT: &str = ".cnt/";
/// Maximum length of the name in bytes: less than the longest key of a store leaves of the 1024 bytes that S3 allows (H119).
const MAX_STORE_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves H119.
    #[test]
    fn the_longest_names_fit_into_a_key() {
        // Seven levels, 256 bytes as they are joined.
        let levels = [36, 36, 36, 36, 36, 36, 34].map(|length| format!("ns/{}/", "n".repeat(length)));
        let namespace = levels.concat();
        let (id, archive) = ("i".repeat(255), format!("{}.didx", "a".repeat(250)));
        let path = format!("{namespace}host/{id}/2025-07-14T14:20:02Z/{archive}");
        let key = Key::parse(&path).unwrap();
        assert_eq!(key.path(), path);
        assert!(MAX_STORE_BYTES + 1 + CONTENT.len() + path.len() <= 1024);
    }
}

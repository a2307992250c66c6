//! A store in any place that the crate `object_store` reaches.
//!
//! # Objects
//! The layout is that of a store in a bucket, below the root of the client:
//!
//! | object | location |
//! |---|---|
//! | a chunk | `.chunks/bb9f/bb9f8df6…` |
//! | groups, snapshots, markers of namespaces | `.cnt/` and the path |
//! | the identity of the store, the state of garbage collection | the path |
//! | the trial of the place, and readings of its clock | `.larder/trial-…`, for a moment |
//!
//! A version is the entity tag of the object, without quotes. A condition on a version costs a lookup before the put: some clients need more
//! than the tag, such as a generation, and their listings do not show it.
//!
//! # Requests that are sent more than once
//! The clients repeat requests by themselves and do not say so. So an answer proves nothing about an earlier request for the same call, which
//! may still arrive (H17, H114):
//!
//! | call | answer | means |
//! |---|---|---|
//! | put with a condition | the condition failed | `AlreadyExists` or `Conflict`. The object may be that of an earlier request; the store reads it back where that matters |
//! | put | no answer | `Unavailable`: it may appear later |
//! | delete | success or absent, sooner than [`SHORTEST_REPETITION`] | one request was sent: [`Deleted::Unknown`] or [`Deleted::Absent`] |
//! | delete | success or absent, later than that | a request before it may still be executed: [`Deleted::InDoubt`] |
//! | delete | no answer | `Unavailable`, in doubt |
//!
//! A client waits before it repeats a request, and for 100 ms at least unless its caller configures less. So a shorter call sent one request.
//!
//! # Coordination
//! The place has no lock and no lease: a client that repeats requests cannot ask for a lease before each of them, so a process that was
//! suspended could still delete after another one took the store. The locks therefore reach the tasks of this process only, which the
//! capabilities say, and one process at a time is a promise of the caller (H33, H89). The clock is that of the place: the time of an object
//! that was stored to read it (H14).

mod errors;
mod listing;
mod maintenance;
mod trial;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode as Mode, PutOptions,
    UpdateVersion,
};

use crate::backend::object_store::errors::{failed, failed_put};
use crate::backend::object_store::listing::Parked;
use crate::backend::object_store::maintenance::PlaceClock;
use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Depth, Housekeeping, ListPage, ListQuery, Object,
    ObjectInfo, PutMode, Removal, SingleProcess, Touched, Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::rt::Runtime;

/// Shortest time after which a client repeats a request: the first pause in its default configuration.
const SHORTEST_REPETITION: Duration = Duration::from_millis(100);
/// Number of chunks to transfer at the same time, and of requests for one call.
const IN_FLIGHT: usize = 30;
/// The place of groups, snapshots and namespaces.
const CONTENT: &str = ".cnt/";

/// The order in which a client of `object_store` lists objects.
///
/// The crate promises none. A store must see every object below a prefix before it decides that one is absent, so a wrong claim loses data.
#[expect(clippy::exhaustive_enums, reason = "a client lists in order or does not")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListingOrder {
    /// Any order. Each listing is read to its end, sorted in memory (about 200 bytes an object) and then returned page by page.
    Any,
    /// The byte order of paths, as the clients for S3, Google Cloud Storage, Azure and memory list. A listing is read page by page, and fails
    /// at the first object that is out of order.
    ByPath,
}

/// A [`Backend`] on any client of the crate `object_store`, version 0.14: Azure, Google Cloud Storage, S3, memory, or your own.
///
/// The store lies below the root of the client, in the layout of a store in a bucket. `object_store::prefix::PrefixStore` puts it below a
/// prefix; a store below another store is not safe.
///
/// ```
/// use std::sync::Arc;
///
/// use larder::backend::{ListingOrder, ObjectStoreBackend};
/// use larder::{Datastore, Options, ThreadRuntime};
/// use object_store::memory::InMemory;
///
/// # futures::executor::block_on(async {
/// let (runtime, client) = (Arc::new(ThreadRuntime::new()), Arc::new(InMemory::new()));
/// let backend = ObjectStoreBackend::open(runtime, client, ListingOrder::ByPath).await?;
/// let store = Datastore::create(Arc::new(backend), Options::default()).await?;
/// # Ok::<(), larder::Error>(()) }).unwrap();
/// ```
///
/// # One process
/// **At most one process may change the store at a time**, and it is the program that must see to that: nothing here excludes a second one,
/// on this or another host. [`Capabilities::lock_reach`] is [`LockReach::Process`](crate::backend::LockReach::Process), so that
///
/// * garbage collection is refused until you assert `GcOptions::only_process`;
/// * unfinished snapshots stay, since their writer may be another process;
/// * presence records of local state are not used: each chunk of a backup costs a request, and an existing one is not uploaded again.
///
/// Readers may run beside it. A reader holds no lock that the other process sees: the grace time of garbage collection protects the chunks.
///
/// # Lost answers
/// The clients repeat requests and do not report it. A delete that took longer than 100 ms may have been sent twice, and the first request
/// may arrive late. The store then waits up to 30 minutes before it relies on a new object of that name; an operation that needs the name
/// earlier is `Busy`. Two conditions remain for the program:
///
/// * `BackoffConfig::init_backoff` of the client must be 100 ms or more. That is the default.
/// * **After a crash, or when a process was killed, wait 30 minutes before another process changes the store.** Nothing in the store lists
///   the deletes that the dead process sent. If one of them arrives after the next backup stored the same chunk, that chunk is lost, and the
///   next verification finds it missing.
///
/// # Differences between clients
/// [`open`](Self::open) tries the place. Without conditional puts (`LocalFileSystem`, some S3 servers), puts replace, and the locks of
/// this process alone keep its tasks from overwriting each other. A client whose objects have no entity tag is refused.
///
/// | client | order of listings | remarks |
/// |---|---|---|
/// | Azure, Google Cloud Storage, S3 | [`ByPath`](ListingOrder::ByPath) | For S3, [`S3Backend`](crate::backend) has a lease, and so excludes other processes |
/// | Swift, by its S3 interface | [`ByPath`](ListingOrder::ByPath) | use [`S3Backend`](crate::backend): here an object may seem absent while it is replaced, and one of two racing puts of an object is `Unavailable` |
/// | `InMemory` | [`ByPath`](ListingOrder::ByPath) | |
/// | `HttpStore` | [`Any`](ListingOrder::Any) | only for servers that replace files atomically |
/// | `LocalFileSystem` | [`Any`](ListingOrder::Any) | use [`FsBackend`](crate::backend::FsBackend): here links are followed, and a delete is not flushed, so a deleted snapshot may reappear after a power cut and lack chunks. Puts are flushed only `with_fsync`, and empty directories stay unless `with_automatic_cleanup` |
///
/// * A client reports any 404 as an absent object, also that of a proxy or a deleted bucket.
/// * An object whose name the crate cannot parse, such as one with `//`, makes each listing of its prefix fail, and so garbage collection.
/// * Empty objects that no key names are not reported: consoles make them for folders.
/// * An index is one put, 40 bytes for each chunk. Raise the timeout of the client (30 s by default) for large images on a slow link.
/// * No probe finds lifecycle rules, versioning or retention of the bucket: a rule that deletes objects by age deletes chunks in use.
///
/// # Runtime
/// The HTTP clients need Tokio's I/O and timers in the task that polls the store. Use [`TokioRuntime`](crate::rt), and call the store from
/// Tokio. `InMemory` and `LocalFileSystem` work on any runtime.
pub struct ObjectStoreBackend {
    capabilities: Capabilities,
    client: Arc<dyn ObjectStore>,
    coordination: SingleProcess,
    order: ListingOrder,
    parked: Parked,
    runtime: Arc<dyn Runtime>,
}

impl fmt::Debug for ObjectStoreBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The `Display` of a client names its bucket; `Debug` may show its configuration.
        f.debug_struct("ObjectStoreBackend")
            .field("capabilities", &self.capabilities)
            .field("client", &format_args!("{}", self.client))
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl ObjectStoreBackend {
    /// Opens the place, which may be empty. Tries conditional puts with an object `.larder/trial-…` that it deletes again; with credentials
    /// that may only read, it assumes that there are none.
    ///
    /// Some S3 servers, such as Swift, answer 501 `NotImplemented` to a conditional put. The client repeats such a request for minutes, and `open`
    /// then fails as `Unavailable`. Build the client for such a server with `S3ConditionalPut::Disabled`. Swift itself is better used by `S3Backend`: see
    /// [above](Self#differences-between-clients).
    ///
    /// # Errors
    /// `Unsupported` if objects have no entity tag; `Denied` if the place may not be read; any failure to reach it.
    pub async fn open(
        runtime: Arc<dyn Runtime>,
        client: Arc<dyn ObjectStore>,
        order: ListingOrder,
    ) -> Result<Self> {
        let conditional_put = trial::has_conditional_puts(client.as_ref(), runtime.as_ref()).await?;
        let capabilities = Capabilities {
            conditional_put,
            deep_listings: true,
            in_flight: IN_FLIGHT,
            traceless_locks: true,
            ..Capabilities::minimal()
        };
        let clock = PlaceClock { client: Arc::clone(&client), runtime: Arc::clone(&runtime) };
        let coordination = SingleProcess::with_clock(Arc::clone(&runtime), Box::new(clock));
        Ok(Self { capabilities, client, coordination, order, parked: Parked::default(), runtime })
    }

    fn location(key: &Key) -> Result<Path> {
        let place = if key.is_content() { CONTENT } else { "" };
        location(&format!("{place}{}", key.path()))
    }

    async fn get_object(
        &self,
        location: &Path,
        key: &(dyn fmt::Display + Sync),
        limit: u64,
    ) -> Result<(Bytes, ObjectMeta)> {
        let action = "read";
        let found = self.client.get_opts(location, GetOptions::new()).await;
        let found = found.map_err(|error| failed(error, action, key))?;
        let meta = found.meta.clone();
        if meta.size > limit {
            let error = Error::new(ErrorKind::Corrupt, action).on(key);
            return Err(error.because("the object is larger than the limit"));
        }
        let bytes = found.bytes().await.map_err(|error| failed(error, action, key))?;
        whole(bytes, meta.size, key).map(|bytes| (bytes, meta))
    }

    async fn meta(&self, key: &Key) -> Result<ObjectMeta> {
        self.client.head(&Self::location(key)?).await.map_err(|error| failed(error, "look up", key))
    }

    /// The mode of a put, with all that the client needs to know about the version.
    async fn mode(&self, key: &Key, mode: &PutMode) -> Result<Mode> {
        if *mode != PutMode::Replace && !self.capabilities.conditional_put {
            return Err(Error::new(ErrorKind::Unsupported, "store on a condition").on(key));
        }
        match mode {
            PutMode::Create => Ok(Mode::Create),
            PutMode::Replace => Ok(Mode::Overwrite),
            PutMode::IfMatch(wanted) => match self.meta(key).await {
                Ok(meta) if version(&meta)? == *wanted => {
                    Ok(Mode::Update(UpdateVersion { e_tag: meta.e_tag, version: meta.version }))
                }
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Err(Error::new(ErrorKind::Conflict, "store").on(key)),
            },
        }
    }

    async fn delete_one(&self, removal: &Removal) -> Result<Deleted> {
        let key = &removal.key;
        if removal.version.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "delete on a condition").on(key));
        }
        if let Some(namespace) = key.marked_namespace() {
            self.check_empty(key, &namespace).await?;
        }
        let begun = self.runtime.monotonic();
        let deleted = self.client.delete(&Self::location(key)?).await;
        let is_one_request = self.runtime.monotonic().saturating_sub(begun) < SHORTEST_REPETITION;
        match deleted {
            // Another request of this call may be on its way, whatever the last one found.
            Ok(()) | Err(object_store::Error::NotFound { .. }) if !is_one_request => Ok(Deleted::InDoubt),
            Ok(()) => Ok(Deleted::Unknown),
            Err(object_store::Error::NotFound { .. }) => Ok(Deleted::Absent),
            Err(error) => Err(failed(error, "delete", key)),
        }
    }
}

#[async_trait]
impl Backend for ObjectStoreBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        &self.coordination
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let (bytes, meta) = self.get_object(&Self::location(key)?, key, limit).await?;
        Ok(Object::new(bytes, info(key.clone(), &meta)?))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let outside = || Error::new(ErrorKind::InvalidInput, "read a range of").on(key);
        if range.is_empty() {
            // An absent object is `NotFound`, whatever the range.
            self.meta(key).await?;
            return Err(outside());
        }
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(range.clone())));
        let found = match self.client.get_opts(&Self::location(key)?, options).await {
            Ok(found) if found.range == range => found,
            // The object ends within the range.
            Ok(_) => return Err(outside()),
            Err(error) => {
                let error = failed(error, "read a range of", key);
                // Clients have no error of its own for a range beyond the end.
                let is_outside = error.kind() != ErrorKind::NotFound
                    && self.meta(key).await.is_ok_and(|meta| range.end > meta.size);
                return Err(if is_outside { outside() } else { error });
            }
        };
        let info = info(key.clone(), &found.meta)?;
        let bytes = found.bytes().await.map_err(|error| failed(error, "read a range of", key))?;
        Ok(Object::new(whole(bytes, range.end - range.start, key)?, info))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        info(key.clone(), &self.meta(key).await?)
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let options = PutOptions::from(self.mode(key, &mode).await?);
        let stored = self.client.put_opts(&Self::location(key)?, object.into(), options).await;
        match stored.map_err(|error| failed_put(error, &mode, key))?.e_tag {
            Some(tag) => Ok(Version::new(bare(&tag))),
            None => version(&self.meta(key).await?),
        }
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let deletions = stream::iter(removals.to_vec())
            .map(|removal| async move { self.delete_one(&removal).await })
            .buffered(IN_FLIGHT);
        Ok(deletions.collect().await)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        match query.depth {
            Depth::Children if query.prefix != Prefix::Chunks => self.list_children(query, cursor).await,
            _ => self.list_all_levels(query, cursor).await,
        }
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        Ok(vec![Touched::Unknown; keys.len()])
    }

    async fn barrier(&self) -> Result<()> {
        // An object is durable when its put returns.
        Ok(())
    }
}

/// A location in the notation of the crate. Paths of keys are all valid.
fn location(path: &str) -> Result<Path> {
    Path::parse(path).map_err(|error| Error::new(ErrorKind::Internal, "name").on(path).because(error))
}

fn info(key: Key, meta: &ObjectMeta) -> Result<ObjectInfo> {
    Ok(ObjectInfo::new(key, meta.size, meta.last_modified.into(), version(meta)?))
}

/// The version of an object: its entity tag.
fn version(meta: &ObjectMeta) -> Result<Version> {
    meta.e_tag.as_deref().map(|tag| Version::new(bare(tag))).ok_or_else(|| {
        let error = Error::new(ErrorKind::Unsupported, "look up").on(&meta.location);
        error.because("the object has no entity tag")
    })
}

/// The tag without quotes: listings of some services lack them (H106).
fn bare(tag: &str) -> &str {
    tag.trim().trim_start_matches("W/").trim_matches('"')
}

/// The bytes, if they are complete (H97).
fn whole(bytes: Bytes, size: u64, key: &(dyn fmt::Display + Sync)) -> Result<Bytes> {
    if bytes.len() as u64 == size {
        return Ok(bytes);
    }
    let error = Error::new(ErrorKind::Unavailable, "read").on(key);
    Err(error.because(format!("the client returned {} of {size} bytes", bytes.len())))
}

//! One object at a time: the trait between the store and where its bytes are kept.
//!
//! The store never asks which backend it has. What differs by nature is a method here: how the last use of an object is
//! [refreshed](Backend::touch), what [makes objects durable](Backend::barrier) and what [excludes others](Backend::lock).
//! What one backend can and another cannot is in its [`Capabilities`].

pub(crate) mod cached;
#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
pub mod fault;
pub mod fs;
pub(crate) mod in_doubt;
mod list;
mod lock_table;
pub(crate) mod lock_wait;
mod memory;
#[cfg(feature = "testing")]
pub mod record;
#[cfg(feature = "s3")]
mod s3;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::rt::Runtime;

pub use fs::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
pub(crate) use list::has_objects;
pub(crate) use list::page_of;
pub use list::{Listing, Pager, Unreadable, list_all};
pub use memory::MemoryBackend;
#[cfg(feature = "s3")]
pub use s3::{Ownership, S3Backend};

/// Where the objects of one store are kept.
///
/// All methods may be called at the same time from any number of tasks. Keys are typed; a backend renders them by
/// [`Key::path`] or in a way of its own that keeps their byte order.
///
/// # Contract
/// * **Atomic**: a reader sees the whole object or none of it, before, during and after any `put`, also one that failed.
/// * **Read your writes**: what a completed `put` stored, a later `get` or `head` returns.
/// * **Create never replaces**: under [`PutMode::Create`] and [`PutMode::IfMatch`] nothing is overwritten that the mode does
///   not allow; a backend that cannot promise this answers `Unsupported` and writes nothing.
/// * **Durable**: when `barrier` returns, every object whose `put` or `copy` had completed before it began, and every
///   completed `delete`, survives a crash of this process and of its host, at the level of durability that the backend was
///   opened with.
/// * **Ordered**: listings are in byte order of [`Key::path`], each key once.
/// * **Complete**: a page without a cursor is the end. A listing may miss or show what was stored or deleted while it ran.
/// * **Foreign is reported**: what is not an object of this store appears as [`ListEntry::Foreign`] and is otherwise left
///   alone. Of a link, pipe or device in the place of an object or a prefix, a listing outside of the chunks says
///   [`ListEntry::Unreadable`].
/// * **Absent is certain**: `NotFound` and [`Touched::Absent`] mean that the object is not there. Whatever else went wrong
///   has another kind.
/// * **Limited**: an object that is larger than the limit given to `get` is refused as `Corrupt` before its bytes are held
///   in memory.
/// * **Locks exclude**: see [`Backend::lock`].
///
/// The conformance suite, `backend::conformance` under the feature `testing`, has a test for each of these.
///
/// # Cancel safety
/// Any future may be dropped. What it had begun then happens entirely or not at all, possibly later: a put whose future was
/// dropped may still take effect after the drop.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The runtime that the backend was made with. The store uses it too.
    fn runtime(&self) -> &Arc<dyn Runtime>;

    /// What this backend can do.
    fn capabilities(&self) -> &Capabilities;

    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if the object is larger than `limit`.
    async fn get(&self, key: &Key, limit: u64) -> Result<Object>;

    /// Reads the bytes `range` of an object. [`Object::info`] describes the whole object, so that a caller who reads it in
    /// several pieces can see by the version that all are of one.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if the range is empty or reaches beyond the end of the object.
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object>;

    /// Describes an object without reading it.
    ///
    /// # Errors
    /// `NotFound`.
    async fn head(&self, key: &Key) -> Result<ObjectInfo>;

    /// Stores a whole object and returns its version. It is durable only after a later [`barrier`](Backend::barrier).
    ///
    /// # Errors
    /// `AlreadyExists` under [`PutMode::Create`] if the key is taken; `Conflict` under [`PutMode::IfMatch`] if the object is
    /// absent or of another version; `Unsupported` if the backend lacks the mode; `Full`. Nothing was written then. `Unavailable`
    /// leaves open whether it was: what is there tells. Writers that race with equal contents may both be told that they won.
    ///
    /// Puts on a condition exclude one another. On some servers, what is done at the same time without one has no effect, though it
    /// is reported as done: change an object always on a condition, or never.
    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version>;

    /// Stores the bytes of one object under another key as well, with the rules of [`put`](Backend::put).
    ///
    /// # Errors
    /// `NotFound` if there is nothing at `from`; those of `put`.
    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version>;

    /// Deletes objects, any number of them, with a result for each in the order given. Deleting what is not there succeeds.
    /// A backend that has directories removes those that become empty.
    ///
    /// # Errors
    /// Inside: `Conflict` for an object whose version is no longer the one named, or a namespace that is not empty;
    /// `Unsupported` where a version was named and the backend lacks `conditional_delete`. Outside: the whole call failed,
    /// and any number of the objects may be gone.
    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>>;

    /// One page of a listing. Without a cursor, the first; with the one that the page before returned, the next.
    ///
    /// # Errors
    /// Any failure to read the whole page. A page is never silently incomplete.
    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage>;

    /// Refreshes when the objects were last used, if the backend keeps such a thing, and says what it knows of them without
    /// a request over a network. Results are in the order given.
    ///
    /// # Errors
    /// Any failure other than absence, for all of them together.
    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>>;

    /// Completes when everything stored before is durable; see **Durable**.
    ///
    /// # Errors
    /// Whatever kept it from being durable. Nothing may then be published that relies on it.
    async fn barrier(&self) -> Result<()>;

    /// Takes a lock, without waiting. It is held until the guard is dropped.
    ///
    /// * [`LockScope::Group`], [`LockScope::Manifest`], [`LockScope::Snapshot`]: any number of shared holders or one exclusive
    ///   holder, everywhere: within this process and, if [`Capabilities::lock_reach`] says so, among processes.
    /// * [`LockScope::Store`] excludes other *processes* only: within one process shared and exclusive holders stand side by
    ///   side, and the store keeps them apart by finer means.
    ///
    /// # Errors
    /// `Busy` if somebody holds it in a mode that excludes this one.
    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>>;

    /// Describes several objects, with a result for each in the order given, as [`head`](Backend::head) would. Default: one after the
    /// other.
    ///
    /// # Errors
    /// Inside, those of `head`. Outside, whatever kept all of them from being looked up.
    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(self.head(key).await);
        }
        Ok(found)
    }

    /// The time by the clock by which [`ObjectInfo::last_used`] is told (H14), for whoever may change the store. Default: that of
    /// the runtime.
    ///
    /// # Errors
    /// `Busy` if another process may change the store; `Unavailable` if it cannot be asked for.
    async fn clock(&self) -> Result<SystemTime> {
        Ok(self.runtime().now())
    }

    /// Begins a new [term](Backend::lease_term), with nobody else in between: what was noted elsewhere under the old one counts no
    /// longer, except by those who are told of the new one. To be called by whoever is about to remove chunks.
    ///
    /// Default: nothing, for backends without terms.
    ///
    /// # Errors
    /// `Busy` if the store is somebody else's by now.
    async fn begin_term(&self) -> Result<()> {
        Ok(())
    }

    /// Makes sure that no other process has taken the store over from this one, where that is possible and takes a request to find
    /// out. To be called before something is removed without the lock of the store: locks that this process holds are then known to
    /// exclude others. It never fails because another process of the same host collects garbage.
    ///
    /// Default: nothing, for backends whose locks need no such look.
    ///
    /// # Errors
    /// `Busy` if the store is somebody else's by now; `Unavailable` if that could not be found out.
    async fn check_owned(&self) -> Result<()> {
        Ok(())
    }

    /// Says that indexes are about to appear under these keys and then to vanish under others, so that a mark which goes on in another
    /// process, and may miss them at both places, [hears](Backend::pending_moves) of them (H8).
    ///
    /// Default: nothing, for backends that only one process at a time may change.
    ///
    /// # Errors
    /// Whatever keeps it from being announced. Nothing may then be moved.
    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        let _ = keys;
        Ok(())
    }

    /// What was announced and not taken back, if others can announce anything. Nobody announces more while the answer is held.
    ///
    /// # Errors
    /// `Busy` if others keep announcing; whatever keeps it from being read.
    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        Ok(None)
    }

    /// The index files among what a listing showed as [foreign](ListEntry::Foreign), and in the directories among it: somebody may still
    /// want what they refer to. Only those who collect garbage ask.
    ///
    /// Default: none.
    ///
    /// # Errors
    /// Any failure to look everywhere.
    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        let _ = foreign;
        Ok(Vec::new())
    }

    /// Reads what [`orphans`](Backend::orphans) found.
    ///
    /// # Errors
    /// Those of [`get`](Backend::get).
    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        let _ = limit;
        Err(Error::new(ErrorKind::NotFound, "read").on(&orphan.path))
    }

    /// Removes what puts left behind that were begun at least `age` ago and never ended, and returns how much it was. `foreign` are
    /// paths that a listing showed as [foreign](ListEntry::Foreign): temporary files are removed from among them only. The store must
    /// be locked alone.
    ///
    /// Default: nothing.
    ///
    /// # Errors
    /// Whatever kept it from removing them.
    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        let _ = (foreign, age);
        Ok(0)
    }

    /// For how long a request that got no answer, of this process or of one that had the store before, may still remove what is stored
    /// under this key: nothing that is to stay is stored there until then (H17). No request is made.
    ///
    /// Default: nothing is in doubt.
    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        let _ = key;
        None
    }

    /// The term in which this process alone may change the store, if there is one and it certainly goes on for the moment. What
    /// was read within a term stays true until it ends, but for what this process changes. No request is made.
    ///
    /// Backends without such terms have none, which is the default.
    fn lease_term(&self) -> Option<LeaseTerm> {
        None
    }

    /// As [`close`](Backend::close), and also takes away what marks the store as that of this host, where there is such a thing.
    ///
    /// # Errors
    /// `Busy` if the store is somebody else's by now; whatever else went wrong.
    async fn release(&self) -> Result<()> {
        self.close().await
    }

    /// Returns `true` if there is a store at this place, whichever program made it, and even if it is empty. It is asked when a store is
    /// opened that has no [identity](Key::Store).
    ///
    /// Default: the mark of PBS ([`Key::InUse`]), or any object among snapshots and chunks, proves that there is a store.
    ///
    /// # Errors
    /// Whatever keeps the backend from looking.
    async fn has_store(&self) -> Result<bool> {
        match self.head(&Key::InUse).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return found.map(|_| true),
        }
        for prefix in [Prefix::Namespace(Namespace::root()), Prefix::Chunks] {
            if has_objects(self, prefix).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives back what the backend holds for the store as a whole. Call it last; a backend that is dropped instead gives it
    /// back when it expires.
    ///
    /// # Errors
    /// Whatever went wrong; the backend is closed all the same.
    async fn close(&self) -> Result<()>;
}

impl dyn Backend {
    /// Whether there certainly is, or is not, such an object.
    ///
    /// # Errors
    /// Those of [`head`](Backend::head), but for `NotFound`.
    pub(crate) async fn has(&self, key: &Key) -> Result<bool> {
        match self.head(key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }
}

/// A time in which one process alone may change a store.
#[expect(clippy::exhaustive_structs, reason = "made by those who implement the trait")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerm {
    /// The number of the term right before, if that was one of the same instance and it took the store again: then nobody else
    /// changed it between. None after [`Backend::begin_term`].
    pub continues: Option<u64>,
    /// Its number. It grows from term to term.
    pub epoch: u64,
    /// The number of the first of the terms that follow one another without a gap up to this one, all of this process.
    pub since: u64,
    /// Whether requests of an earlier holder may still be executed.
    pub unsettled: bool,
}

/// What others [announced](Backend::record_moves).
#[async_trait]
pub trait PendingMoves: fmt::Debug + Send + Sync {
    /// Keys of indexes that may have been moved there, or may be soon, in the order in which they were announced. They are to be looked
    /// at in this order: of what is moved on meanwhile, the next place comes later.
    fn keys(&self) -> &[Key];

    /// Paths of index files among them that no key names.
    fn orphans(&self) -> &[Orphan];

    /// All of it was seen to, and is forgotten. Dropped instead, it stays.
    ///
    /// # Errors
    /// Whatever kept it from being forgotten; it is then seen again.
    async fn clear(self: Box<Self>) -> Result<()>;
}

/// An index file at a place that no key names.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Where it is, relative to the root of the store.
    pub path: String,
}

impl Orphan {
    /// The index file at a path.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into() }
    }
}

/// What a backend can do. Found out by asking or trying, never assumed (I12).
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Removal::version`] is obeyed.
    pub conditional_delete: bool,
    /// [`PutMode::Create`] and [`PutMode::IfMatch`] work.
    pub conditional_put: bool,
    /// A listing of all that lies below a prefix costs by the page, as in a bucket, and not by the object. Where that is not so, the
    /// store lists names and looks at few of them.
    pub deep_listings: bool,
    /// How many chunks are worth transferring at the same time, beside one for each processor. More where each request has to wait for
    /// an answer from far away.
    pub in_flight: usize,
    /// Who is excluded by the locks.
    pub lock_reach: LockReach,
    /// [`PutMode::IfMatch`] excludes other processes too, and not only tasks of this one.
    pub shared_versions: bool,
    /// [`Backend::touch`] keeps times of use, and listings show at once what was stored or deleted. Where that is not so, garbage
    /// has to be seen twice before it is removed (H11, H13).
    pub touches: bool,
}

impl Capabilities {
    /// Everything works, for a store that only this process can reach.
    #[must_use]
    pub fn local() -> Self {
        Self {
            conditional_delete: true,
            conditional_put: true,
            deep_listings: false,
            in_flight: 2,
            lock_reach: LockReach::Everybody,
            shared_versions: false,
            touches: true,
        }
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

/// When a put may take place.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Only if nothing is there yet.
    Create,
    /// Only if what is there is of this version.
    IfMatch(Version),
    /// Always.
    Replace,
}

/// An opaque mark that differs between any two contents that an object has had. Only equality means something.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// A version from the text that a backend gives it.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text that the backend gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({})", self.0)
    }
}

/// Bytes of an object and what is known of it.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Object {
    /// The bytes that were asked for.
    pub bytes: Bytes,
    /// The object as a whole.
    pub info: ObjectInfo,
}

impl Object {
    /// Bytes that were read, of the object that `info` describes.
    pub fn new(bytes: Bytes, info: ObjectInfo) -> Self {
        Self { bytes, info }
    }
}

/// What is known of an object without reading it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub key: Key,
    /// When it was last stored, touched or, on some backends, read, by the clock of the backend.
    pub last_used: SystemTime,
    /// Its length in bytes.
    pub size: u64,
    /// Its version.
    pub version: Version,
}

impl ObjectInfo {
    /// A description of an object of `size` bytes.
    pub fn new(key: Key, size: u64, last_used: SystemTime, version: Version) -> Self {
        Self { key, last_used, size, version }
    }
}

/// What [`Backend::touch`] found.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// It is certainly not there.
    Absent,
    /// It is there and was touched.
    Present(ObjectInfo),
    /// Finding out would cost a request, and nothing was done.
    Unknown,
}

/// An object to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its name.
    pub key: Key,
    /// If given, only this version is deleted.
    pub version: Option<Version>,
}

impl Removal {
    /// Deletes the object whatever its version.
    #[must_use]
    pub fn any(key: Key) -> Self {
        Self { key, version: None }
    }
}

/// What became of an object that was to be deleted.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It was not there.
    Absent,
    /// It was there and is gone.
    Removed,
    /// It is not there; whether it was, the backend did not find out.
    Unknown,
    /// It is not there, but a request without an answer may delete it once more: what is stored there soon may vanish (H17).
    Unsettled,
}

/// What to list.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// List only what comes after this key.
    pub after: Option<Key>,
    /// How deep.
    pub depth: Depth,
    /// How much is said of each object.
    pub details: Details,
    /// List only what lies below this.
    pub prefix: Prefix,
    /// List only up to this key, with it.
    pub until: Option<Key>,
}

impl ListQuery {
    /// Everything below `prefix`.
    #[must_use]
    pub fn all(prefix: Prefix) -> Self {
        Self { after: None, depth: Depth::All, details: Details::All, prefix, until: None }
    }

    /// What lies directly below `prefix`: its objects, and the prefixes one level deeper. For chunks, all of them.
    #[must_use]
    pub fn children(prefix: Prefix) -> Self {
        Self { after: None, depth: Depth::Children, details: Details::All, prefix, until: None }
    }

    /// Restricts the listing to the paths after that of `after`, up to and with that of `until`. Shards of the digest space are
    /// made so. A prefix that is listed as a child is within the bounds if its own path is, whatever lies below it.
    #[must_use]
    pub fn between(mut self, after: Option<Key>, until: Option<Key>) -> Self {
        self.after = after;
        self.until = until;
        self
    }

    /// A backend to which more costs more lists names only, as [`ListEntry::Name`].
    #[must_use]
    pub fn names(mut self) -> Self {
        self.details = Details::Names;
        self
    }

    /// Whether the key at `path` lies within the bounds `after` and `until`.
    pub fn covers(&self, path: &str) -> bool {
        self.after.as_ref().is_none_or(|after| path > after.path().as_str())
            && self.until.as_ref().is_none_or(|until| path <= until.path().as_str())
    }
}

/// How deep a listing goes.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All objects, however deep.
    All,
    /// One level: objects, and prefixes for what is deeper.
    Children,
}

/// How much a listing says of each object.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Details {
    /// All that is known.
    All,
    /// Names, and more where it costs nothing.
    Names,
}

/// One page of a listing, at most some thousand entries.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// What was found, in byte order.
    pub entries: Vec<ListEntry>,
    /// Where the next page begins; `None` only if this page is certainly the last (H12).
    pub next: Option<Cursor>,
}

impl ListPage {
    /// A page with what follows it, if anything does.
    pub fn new(entries: Vec<ListEntry>, next: Option<Cursor>) -> Self {
        Self { entries, next }
    }
}

/// One line of a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    /// Something that is no object of a store, by its path. Reported and left alone.
    Foreign(String),
    /// An object of which nothing more was looked up, since only [names](ListQuery::names) were asked for.
    Name(Key),
    /// An object.
    Object(ObjectInfo),
    /// Objects one level deeper. A backend that has directories may show one with nothing in it.
    Prefix(Prefix),
    /// Something in the place of an object or a prefix that is neither. Objects that others can see may lie behind it.
    Unreadable(Unreadable),
}

impl ListEntry {
    /// Its path: what listings are ordered by.
    pub fn path(&self) -> String {
        match self {
            Self::Foreign(path) => path.clone(),
            Self::Name(key) => key.path(),
            Self::Object(info) => info.key.path(),
            Self::Prefix(prefix) => prefix.path(),
            Self::Unreadable(unreadable) => unreadable.path.clone(),
        }
    }
}

/// Where a page of a listing begins, in a form that only the backend understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// A cursor from the text that the backend wants to see again.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text that the backend gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a lock is on.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LockScope {
    /// A group.
    Group(GroupName),
    /// The manifest of a snapshot, while it is read, changed and written back.
    Manifest(SnapshotName),
    /// A snapshot.
    Snapshot(SnapshotName),
    /// The whole store against other processes: shared by writers, exclusive for garbage collection.
    Store,
}

impl fmt::Display for LockScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group {group}"),
            Self::Manifest(snapshot) => write!(f, "manifest of {snapshot}"),
            Self::Snapshot(snapshot) => write!(f, "snapshot {snapshot}"),
            Self::Store => f.write_str("the store"),
        }
    }
}

/// Whom a lock tolerates.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// Nobody else, and only for the moment that some deletions take. The store waits for the holder to finish, where it would
    /// give up at once on one that holds the lock for long.
    Brief,
    /// Nobody else.
    Exclusive,
    /// Other shared holders.
    Shared,
}

impl LockMode {
    /// Returns `true` if no other holder is tolerated.
    pub fn is_alone(self) -> bool {
        self != Self::Shared
    }
}

/// The source of a `Busy` whose holder has the lock [for a moment](LockMode::Brief) only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldBriefly;

impl HeldBriefly {
    /// Returns `true` if the lock is worth waiting for.
    pub(crate) fn caused(error: &Error) -> bool {
        error.kind() == ErrorKind::Busy
            && std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<Self>)
    }
}

impl fmt::Display for HeldBriefly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another backup removes what dead writers left")
    }
}

impl std::error::Error for HeldBriefly {}

/// A lock that is held. Dropping it gives it back at once.
#[async_trait]
pub trait LockGuard: fmt::Debug + Send + Sync {
    /// Whether the lock still holds. To be asked before every step that cannot be undone.
    ///
    /// # Errors
    /// `Busy` if it was lost to somebody else, `Unavailable` if that could not be found out.
    async fn check(&self) -> Result<()>;

    /// Returns `true` if the lock excludes other processes that can reach the store. It is `false` where only tasks of this process
    /// are excluded: in memory; for readers of a bucket; and in a directory where no lock file is there and none can be made, since
    /// the reader may not write or the disk is full.
    fn keeps_processes_out(&self) -> bool;

    /// For [`LockScope::Store`]: when the oldest shared holder in this process took it. Chunks used since then are in use.
    fn oldest_shared(&self) -> Option<SystemTime>;

    /// Gives back the lock of an object that was deleted while it was held, and removes what the lock itself left behind
    /// where the backend does such a thing.
    async fn release_deleted(self: Box<Self>);
}

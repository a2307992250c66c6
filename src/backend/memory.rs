//! A store in memory, for tests and for programs that need no store that outlives them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, ListPage, ListQuery, Object,
    ObjectInfo, PutMode, Removal, SingleProcess, Touched, Version, page_of,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

/// A [`Backend`] that keeps all objects in memory. They are lost when the last handle is dropped.
#[derive(Debug)]
pub struct MemoryBackend {
    capabilities: Capabilities,
    coordination: SingleProcess,
    objects: Mutex<Objects>,
    page_entries: usize,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug, Default)]
struct Objects {
    by_path: BTreeMap<String, Stored>,
    versions: u64,
}

/// An object, and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    bytes: Bytes,
    last_used: SystemTime,
    version: Version,
}

impl MemoryBackend {
    /// An empty store.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self {
            capabilities: Capabilities::local(),
            coordination: SingleProcess::new(Arc::clone(&runtime)),
            objects: Mutex::default(),
            page_entries: 1000,
            runtime,
        }
    }

    /// Maximum number of entries on a page of a listing, at least 1; default: 1000.
    #[must_use]
    pub(crate) fn pages_of(mut self, page_entries: usize) -> Self {
        self.page_entries = page_entries.max(1);
        self
    }

    /// The state of a path: the object under it, if there is one.
    #[cfg(feature = "testing")]
    pub(crate) fn state_of(&self, path: &str) -> Option<Stored> {
        self.objects().by_path.get(path).cloned()
    }

    /// Gives a path an earlier state.
    #[cfg(feature = "testing")]
    pub(crate) fn restore_state(&self, path: &str, state: Option<Stored>) {
        let mut objects = self.objects();
        match state {
            Some(stored) => drop(objects.by_path.insert(path.to_owned(), stored)),
            None => drop(objects.by_path.remove(path)),
        }
    }

    /// Cuts the object under a path after this many bytes.
    #[cfg(feature = "testing")]
    pub(crate) fn cut(&self, path: &str, length: usize) {
        if let Some(stored) = self.objects().by_path.get_mut(path) {
            stored.bytes.truncate(length);
        }
    }

    /// A page of a listing that shows these states instead of the current ones.
    #[cfg(feature = "testing")]
    pub(crate) fn list_outdated<'a>(
        &self,
        outdated: impl Iterator<Item = (&'a String, &'a Option<Stored>)>,
        query: &ListQuery,
        cursor: Option<&Cursor>,
    ) -> ListPage {
        let mut shown = self.objects().by_path.clone();
        for (path, state) in outdated {
            match state {
                Some(stored) => drop(shown.insert(path.clone(), stored.clone())),
                None => drop(shown.remove(path)),
            }
        }
        page_of(&shown, query, cursor, self.page_entries, |key, stored: &Stored| stored.info(key))
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        // Every change is a single insertion or removal, so a panic elsewhere leaves the map whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self, key: &Key, action: &'static str) -> Result<Stored> {
        let objects = self.objects();
        objects
            .by_path
            .get(&key.path())
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, action).on(key))
    }

    fn store(&self, key: &Key, bytes: Bytes, mode: &PutMode) -> Result<Version> {
        let mut objects = self.objects();
        let present = objects.by_path.get(&key.path());
        match (mode, present) {
            (PutMode::Create, Some(_)) => return Err(Error::new(ErrorKind::AlreadyExists, "create").on(key)),
            (PutMode::IfMatch(wanted), present) if present.is_none_or(|stored| stored.version != *wanted) => {
                return Err(Error::new(ErrorKind::Conflict, "replace").on(key));
            }
            _ => {}
        }
        objects.versions += 1;
        let version = Version::new(objects.versions.to_string());
        let stored = Stored { bytes, last_used: self.runtime.now(), version: version.clone() };
        objects.by_path.insert(key.path(), stored);
        Ok(version)
    }

    fn remove(&self, removal: &Removal) -> Result<Deleted> {
        let path = removal.key.path();
        let mut objects = self.objects();
        let Some(stored) = objects.by_path.get(&path) else { return Ok(Deleted::Absent) };
        if removal.version.as_ref().is_some_and(|version| *version != stored.version) {
            return Err(Error::new(ErrorKind::Conflict, "delete").on(&removal.key));
        }
        if let Some(namespace) = removal.key.marked_namespace() {
            let below = namespace.path();
            let mut within =
                objects.by_path.range(below.clone()..).take_while(|(at, _)| at.starts_with(&below));
            if within.any(|(at, _)| *at != path) {
                return Err(Error::new(ErrorKind::Conflict, "delete").on(&removal.key));
            }
        }
        objects.by_path.remove(&path);
        Ok(Deleted::Removed)
    }
}

impl Stored {
    /// Number of its bytes.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn info(&self, key: Key) -> ObjectInfo {
        ObjectInfo::new(key, self.bytes.len() as u64, self.last_used, self.version.clone())
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        &self.coordination
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        None
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let stored = self.stored(key, "read")?;
        if stored.bytes.len() as u64 > limit {
            return Err(Error::new(ErrorKind::Corrupt, "read")
                .on(key)
                .because("the object is larger than the limit"));
        }
        Ok(Object::new(stored.bytes.clone(), stored.info(key.clone())))
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let stored = self.stored(key, "read a range of")?;
        let outside = || Error::new(ErrorKind::InvalidInput, "read a range of").on(key);
        let start = usize::try_from(range.start).map_err(|_| outside())?;
        let end = usize::try_from(range.end).map_err(|_| outside())?;
        if start >= end || end > stored.bytes.len() {
            return Err(outside());
        }
        Ok(Object::new(stored.bytes.slice(start..end), stored.info(key.clone())))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        Ok(self.stored(key, "look up")?.info(key.clone()))
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        self.store(key, object, &mode)
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        Ok(removals.iter().map(|removal| self.remove(removal)).collect())
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let objects = self.objects();
        let info = |key, stored: &Stored| stored.info(key);
        Ok(page_of(&objects.by_path, query, cursor, self.page_entries, info))
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let now = self.runtime.now();
        let mut objects = self.objects();
        let touch = |key: &Key| match objects.by_path.get_mut(&key.path()) {
            None => Touched::Absent,
            Some(stored) => {
                stored.last_used = now;
                Touched::Present(stored.info(key.clone()))
            }
        };
        Ok(keys.iter().map(touch).collect())
    }

    async fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

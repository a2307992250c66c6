//! A backend of your own: a sorted map behind a mutex. The conformance suite tests it, then it holds a backup and a restore.
//! Run with: `cargo run --example custom_backend --features testing`

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, Cursor as Reader};
use larder::backend::conformance::Suite;
use larder::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, ListPage, ListQuery, Object,
    ObjectInfo, PutMode, Removal, SingleProcess, Touched, Version, page_of,
};
use larder::format::layout::{Key, Prefix};
use larder::{Datastore, Error, ErrorKind, Options, Result, ThreadRuntime};

#[derive(Debug)]
struct MapBackend {
    capabilities: Capabilities,
    coordination: SingleProcess,
    objects: Mutex<BTreeMap<String, Object>>,
}

impl MapBackend {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, removal: &Removal) -> Result<Deleted> {
        let path = removal.key.to_string();
        let mut objects = self.objects();
        let Some(object) = objects.get(&path) else { return Ok(Deleted::Absent) };
        let mut is_refused = removal.version.as_ref().is_some_and(|version| *version != object.info.version);
        if let Key::Namespace(namespace) = &removal.key {
            // A namespace that is not empty stays.
            let below = Prefix::Namespace(namespace.clone()).to_string();
            is_refused |= objects.keys().any(|at| at.starts_with(&below) && *at != path);
        }
        if is_refused {
            return Err(Error::new(ErrorKind::Conflict, "delete").on(&removal.key));
        }
        objects.remove(&path);
        Ok(Deleted::Removed)
    }
}

#[async_trait]
impl Backend for MapBackend {
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
        let found = self.objects().get(&key.to_string()).cloned();
        let object = found.ok_or_else(|| Error::new(ErrorKind::NotFound, "read").on(key))?;
        if object.info.size > limit {
            return Err(Error::new(ErrorKind::Corrupt, "read").on(key).because("the object is too large"));
        }
        Ok(object)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let Object { bytes, info, .. } = self.get(key, u64::MAX).await?;
        if range.is_empty() || range.end > info.size {
            return Err(Error::new(ErrorKind::InvalidInput, "read a range of").on(key));
        }
        let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
        Ok(Object::new(bytes.slice(index(range.start)..index(range.end)), info))
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        Ok(self.get(key, u64::MAX).await?.info)
    }

    async fn put(&self, key: &Key, bytes: Bytes, mode: PutMode) -> Result<Version> {
        let mut random = [0; 16];
        self.coordination.runtime().fill_random(&mut random);
        let version = Version::new(u128::from_le_bytes(random).to_string());
        let now = self.coordination.runtime().now();
        let info = ObjectInfo::new(key.clone(), bytes.len() as u64, now, version.clone());
        let mut objects = self.objects();
        let present = objects.get(&key.to_string()).map(|object| &object.info.version);
        let kind = match mode {
            PutMode::Create if present.is_some() => ErrorKind::AlreadyExists,
            PutMode::IfMatch(wanted) if present != Some(&wanted) => ErrorKind::Conflict,
            _ => {
                objects.insert(key.to_string(), Object::new(bytes, info));
                return Ok(version);
            }
        };
        Err(Error::new(kind, "store").on(key))
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        Ok(removals.iter().map(|removal| self.remove(removal)).collect())
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        Ok(page_of(&self.objects(), query, cursor, 1000, |_, object| object.info.clone()))
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let now = self.coordination.runtime().now();
        let mut objects = self.objects();
        let touch = |key: &Key| {
            let Some(object) = objects.get_mut(&key.to_string()) else { return Touched::Absent };
            object.info.last_used = now;
            Touched::Present(object.info.clone())
        };
        Ok(keys.iter().map(touch).collect())
    }

    async fn barrier(&self) -> Result<()> {
        Ok(()) // A backend on a disk flushes here.
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend: Arc<dyn Backend> = Arc::new(MapBackend {
        capabilities: Capabilities::local(), // for a place that other processes can reach, begin with `minimal()`
        coordination: SingleProcess::new(Arc::new(ThreadRuntime::new())),
        objects: Mutex::default(),
    });
    block_on(async {
        let passed = Suite::default().paging(1001).run(&backend).await;
        println!("{} cases of the conformance suite passed", passed.len());
        let store = Datastore::create(backend, Options::default()).await?;
        let backup = store.backup(&"host/custom".parse()?).begin().await?;
        backup.stream("hello.txt", Reader::new("Hello, larder!")).await?;
        let snapshot = backup.finish().await?.snapshot;
        let mut restored = String::new();
        snapshot.archive("hello.txt.didx").await?.read_to_string(&mut restored).await?;
        assert_eq!(restored, "Hello, larder!");
        println!("restored: {restored}");
        Ok(())
    })
}

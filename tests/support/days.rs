//! Names, times and places of tests that need snapshots of several days.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder::backend::{
    Backend, FsOptions, ListEntry, ListQuery, MemoryBackend, PrefixDirectories, SyncLevel,
};
use larder::format::layout::Prefix;
use larder::format::name::{GroupName, Namespace, SnapshotName};
use larder::internal::listing::{ShortPages as _, list_all};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::Datastore;

/// In seconds.
pub const DAY: u64 = 24 * 3600;

pub fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

pub fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

pub fn space(name: &str) -> Namespace {
    name.parse().unwrap()
}

pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

pub fn memory(page: usize) -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new(runtime()).page_entries(page))
}

/// A directory with prefix directories on demand, and without flushing.
pub fn on_demand() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

pub async fn names(store: &Datastore, group: &GroupName) -> Vec<SnapshotName> {
    store.snapshots(group).await.unwrap().into_iter().map(|info| info.name).collect()
}

/// The paths of all that is outside of the chunks.
pub async fn paths(backend: &dyn Backend) -> Vec<String> {
    let listing = list_all(backend, &ListQuery::all(Prefix::Namespace(Namespace::root()))).await.unwrap();
    listing.into_entries().iter().map(ListEntry::path).collect()
}

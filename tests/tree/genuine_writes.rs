//! Archives of the clients of PBS, written again from the trees in them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::internal::tree::StockReuse as _;
use larder::store::{Datastore, Options, SnapshotReader};
use larder_testing::fixture;
use larder_testing::tree::MemoryTree;

use crate::archives::{as_source, decoded, read};

const EXCLUDES: [&str; 3] = ["*.tmp", "/cli-only", "cache/"];

async fn open(directory: &Path) -> Datastore {
    fixture::unpack_trees(directory);
    let options =
        FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
    let backend = FsBackend::open(Arc::new(ThreadRuntime::new()), directory.join("store"), options).await;
    Datastore::open(Arc::new(backend.unwrap()), Options::default()).await.unwrap()
}

async fn snapshot(store: &Datastore, name: &str) -> SnapshotReader {
    store.snapshot(&name.parse().unwrap()).await.unwrap()
}

/// Fails with the position of the first difference.
fn same(found: &Bytes, genuine: &Bytes, what: &str) {
    if found != genuine {
        let at = found.iter().zip(genuine).position(|(found, genuine)| found != genuine);
        panic!("{what}: {} and {} bytes, differ at {at:?}", found.len(), genuine.len());
    }
}

/// The tree of a snapshot in split form, with its streams.
async fn split(snapshot: &SnapshotReader, name: &str, excludes: Vec<Bytes>) -> (MemoryTree, Bytes, Bytes) {
    let entries = read(snapshot, &format!("{name}.mpxar.didx")).await;
    let payload = read(snapshot, &format!("{name}.ppxar.didx")).await;
    (as_source(&decoded(&entries, Some(&payload)), excludes), entries, payload)
}

fn excludes(name: &str) -> Vec<Bytes> {
    if name == "excl" { EXCLUDES.map(Bytes::from).to_vec() } else { Vec::new() }
}

#[test]
fn trees_are_written_byte_for_byte_as_by_the_clients_of_pbs() {
    let directory = larder_testing::scratch();
    block_on(async {
        let store = open(directory.path()).await;
        for (name, unified, in_two) in [
            ("rich", "host/rich/2024-01-01T10:00:00Z", "host/rich/2024-01-02T10:00:00Z"),
            ("excl", "host/rich-excl/2024-01-01T10:01:40Z", "host/rich-excl/2024-01-01T10:03:20Z"),
            ("none", "host/rich-empty/2024-01-01T10:05:00Z", "host/rich-empty/2024-01-01T10:06:40Z"),
        ] {
            let genuine = snapshot(&store, unified).await;
            let entries = read(&genuine, &format!("{name}.pxar.didx")).await;
            let tree = as_source(&decoded(&entries, None), excludes(name));
            let backup = store.backup(&"host/again".parse().unwrap()).begin().await.unwrap();
            let summary = backup.tree(name, &tree).unified().await.unwrap();
            assert!(summary.report.findings.is_empty(), "{}", summary.report);
            let again = backup.finish().await.unwrap().snapshot;
            same(&read(&again, &format!("{name}.pxar.didx")).await, &entries, unified);
            same(
                &read(&again, "catalog.pcat1.didx").await,
                &read(&genuine, "catalog.pcat1.didx").await,
                "catalog",
            );

            let (tree, entries, payload) = split(&snapshot(&store, in_two).await, name, excludes(name)).await;
            let backup = store.backup(&"host/again".parse().unwrap()).begin().await.unwrap();
            backup.tree(name, &tree).await.unwrap();
            let again = backup.finish().await.unwrap().snapshot;
            same(&read(&again, &format!("{name}.mpxar.didx")).await, &entries, in_two);
            same(&read(&again, &format!("{name}.ppxar.didx")).await, &payload, in_two);
        }
    });
}

#[test]
fn changes_are_detected_as_by_the_clients_of_pbs() {
    let directory = larder_testing::scratch();
    block_on(async {
        let store = open(directory.path()).await;
        for day in [3, 4] {
            let name = |day: u32| format!("host/rich/2024-01-0{day}T10:00:00Z");
            let base = snapshot(&store, &name(day - 1)).await;
            let (tree, entries, payload) =
                split(&snapshot(&store, &name(day)).await, "rich", Vec::new()).await;
            let backup = store.backup(&"host/rich".parse().unwrap()).begin().await.unwrap();
            let summary = backup.tree("rich", &tree).base(&base).reuse_as_stock_clients().await.unwrap();
            let again = backup.finish().await.unwrap().snapshot;
            same(&read(&again, "rich.mpxar.didx").await, &entries, "entries");
            same(&read(&again, "rich.ppxar.didx").await, &payload, "contents");
            assert!(summary.counts.files_reused > 200, "{:?}", summary.counts);
            assert!(tree.opened().len() as u64 <= summary.counts.files - summary.counts.files_reused);
        }
    });
}

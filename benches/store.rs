//! Whole backups and restores against a store in a directory.

use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::executor::block_on;
use futures::io::{Cursor, sink};
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, SnapshotReader, WriterTarget};

const BYTES: usize = 64 << 20;

fn data() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state & 0x0707_0707_0707_0707 | 0x6060_6060_6060_6060).to_le_bytes()
    });
    words.collect()
}

fn store(runtime: &Arc<dyn Runtime>) -> (tempfile::TempDir, Datastore) {
    let directory = tempfile::tempdir().unwrap();
    let options =
        FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
    let store = block_on(async {
        let backend = FsBackend::create(Arc::clone(runtime), directory.path(), options).await.unwrap();
        Datastore::create(Arc::new(backend), Options::default()).await.unwrap()
    });
    (directory, store)
}

async fn back_up(store: &Datastore, data: &[u8], base: Option<&SnapshotReader>) -> SnapshotReader {
    let backup = store.backup(&"host/bench".parse().unwrap()).begin().await.unwrap();
    let stream = backup.stream("data.bin", Cursor::new(data));
    match base {
        Some(base) => stream.base(base).await.unwrap(),
        None => stream.await.unwrap(),
    };
    backup.finish().await.unwrap().snapshot
}

fn whole(c: &mut Criterion) {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let data = data();
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
    group.bench_function("backup_new", |bencher| {
        bencher.iter_batched(
            || store(&runtime),
            |(directory, store)| (block_on(back_up(&store, &data, None)), directory),
            BatchSize::PerIteration,
        );
    });
    let (_directory, store) = store(&runtime);
    let base = block_on(back_up(&store, &data, None));
    group.bench_function("backup_unchanged", |bencher| {
        bencher.iter(|| {
            block_on(async {
                let backup = store.backup(&"host/again".parse().unwrap()).begin().await.unwrap();
                backup.stream("data.bin", Cursor::new(&data)).base(&base).await.unwrap();
                backup.abort().await.unwrap();
            });
        });
    });
    group.bench_function("restore", |bencher| {
        bencher.iter(|| {
            block_on(async {
                let archive = base.archive("data.bin.didx").await.unwrap();
                archive.copy_to(&mut WriterTarget::new(sink())).await.unwrap()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, whole);
criterion_main!(benches);

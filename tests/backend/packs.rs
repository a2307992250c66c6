//! The conformance suite on the objects of packed stores.
//!
//! Left out are `foreign_is_reported`, since the paths at which it leaves files of chunks are none of a packed store, and `paging`, since
//! chunks that no segment names yet are on one page.

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::conformance::Suite;
use larder::backend::{
    Backend, FsBackend, FsOptions, ListEntry, ListQuery, LockMode, LockScope, MemoryBackend,
    PrefixDirectories, PutMode, SyncLevel,
};
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::internal::fault::FaultBackend;
use larder::internal::listing::ShortPages as _;
use larder::internal::packs::packed;
use larder::internal::record::RecordingBackend;
use larder::rt::ThreadRuntime;
use larder_testing::on_every_runtime;

async fn conforms(below: Arc<dyn Backend>) {
    let backend = packed(below).await;
    assert!(Suite::default().run(&backend).await.len() > 20);
    Suite::default().only(&["conditions_see_every_change"]).run(&backend).await;
}

#[test]
fn packs_in_memory_conform_with_pages_of_any_length() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            for page in [1, 3, 1000] {
                conforms(Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(page))).await;
            }
        })
    });
}

#[test]
fn packs_in_directories_conform() {
    let root = larder_testing::scratch();
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let options = options.sync_level(SyncLevel::None);
    block_on(async {
        let runtime = Arc::new(ThreadRuntime::new());
        conforms(Arc::new(FsBackend::create(runtime, root.path(), options).await.unwrap())).await;
    });
}

#[test]
fn packs_conform_through_wrappers() {
    block_on(async {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
        let faulty: Arc<dyn Backend> = Arc::new(FaultBackend::new(packed(memory).await));
        let recorded: Arc<dyn Backend> = Arc::new(RecordingBackend::new(faulty));
        assert!(Suite::default().run(&recorded).await.len() > 20);
    });
}

#[test]
fn packs_list_page_by_page() {
    block_on(async {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
        let writer = packed(Arc::clone(&memory)).await;
        let mut keys: Vec<_> =
            (0..10_001_u32).map(|number| Key::Chunk(Digest::of(&number.to_le_bytes()))).collect();
        // A barrier without it records no pack.
        let _held = writer.lock(&LockScope::Store, LockMode::Shared).await.unwrap();
        for key in &keys {
            writer.put(key, Bytes::from_static(&[0; 12]), PutMode::Create).await.unwrap();
        }
        writer.barrier().await.unwrap();
        let (reader, query) = (packed(memory).await, ListQuery::all(Prefix::Chunks));
        let (mut found, mut pages, mut cursor) = (Vec::new(), 0, None);
        loop {
            let page = reader.list(&query, cursor.as_ref()).await.unwrap();
            found.extend(page.entries.iter().map(ListEntry::path));
            (pages, cursor) = (pages + 1, page.next);
            if cursor.is_none() {
                break;
            }
        }
        keys.sort();
        assert_eq!(pages, 2);
        assert!(found.into_iter().eq(keys.iter().map(Key::to_string)), "not all, or out of order");
    });
}

#[cfg(feature = "s3")]
#[test]
fn packs_in_buckets_conform() {
    use larder_testing::bucket::Bucket;
    block_on(async {
        let bucket = Bucket::in_process(Arc::new(ThreadRuntime::new()));
        let found = bucket.probe().await;
        let ownership = larder::backend::Ownership::default().reuse();
        conforms(bucket.backend(&bucket.new_name(), &found, ownership)).await;
    });
}

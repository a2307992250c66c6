//! How an incremental backup reads its base.

use std::sync::Arc;
use std::time::Duration;

use larder::backend::MemoryBackend;
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::Method;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options};
use larder_testing::tree::MemoryTree;

use crate::write::back_up;

/// Time of each read of a chunk.
const DELAY: Duration = Duration::from_millis(30);

#[test]
fn the_base_is_read_ahead() {
    let tree = MemoryTree::default();
    for directory in 0..10 {
        tree.directory(&format!("d{directory}"));
        for file in 0..300 {
            tree.file(&format!("d{directory}/{file:0200}"), "", 5);
        }
    }
    let sim = SimRuntime::new(1);
    let runtime = sim.clone();
    sim.block_on(async {
        let backend = FaultBackend::new(Arc::new(MemoryBackend::new(Arc::new(runtime.clone()))));
        let backend = Arc::new(backend);
        let store = Datastore::create(backend.clone(), Options::default()).await.unwrap();
        let (base, _) = back_up(&store, &tree, None).await;
        let archive = base.archive("root.mpxar").await.unwrap();
        let chunks = archive.size() / (64 << 10);
        let delay = Rule::on(Method::Get, Action::Delay(DELAY));
        backend.add(delay.keys(|key| key.to_string().contains("chunks/")));
        let started = runtime.monotonic();
        let (_, summary) = back_up(&store, &tree, Some(&base)).await;
        let took = runtime.monotonic().saturating_sub(started);
        assert_eq!((summary.counts.files, summary.counts.files_reused), (3000, 3000));
        assert!(chunks > 12 && took < DELAY * 8, "{chunks} chunks take {took:?}");
    });
}

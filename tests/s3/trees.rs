//! File trees in a bucket: the number of requests.

use futures::executor::block_on;
use larder::error::ErrorKind;
use larder_testing::fault_server::{FaultServer, Options};
use larder_testing::noise;
use larder_testing::s3_store::{fresh, group};
use larder_testing::tree::MemoryTree;

/// As many requests as a file of a quarter of the average chunk may cost: the manifest, two indexes, the entries, two chunks of contents.
const REQUESTS: usize = 6;

#[test]
fn one_file_of_a_tree_costs_six_requests() {
    let (server, tree) = (FaultServer::start(Options::default()), MemoryTree::default());
    tree.directory("a");
    tree.directory("a/b");
    let name = |number: u64| format!("a/b/{number:02}");
    for number in 0..40 {
        tree.file(&name(number), noise(number, 16 << 10), 1);
    }
    block_on(async {
        let process = fresh(&server).await;
        let backup = process.store.backup(&group()).begin().await.unwrap();
        backup.tree("root", &tree).chunk_bytes(64 << 10).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot.name().clone();
        for number in [0, 7, 13, 26, 39] {
            let before = server.log().len();
            let tree = process.store.snapshot(&snapshot).await.unwrap().tree("root").await.unwrap();
            let bytes = tree.open(name(number)).await.unwrap().read_all().await.unwrap();
            assert!(bytes == noise(number, 16 << 10));
            let log = server.log();
            let sent: Vec<_> = log[before..].iter().map(|request| &request.path).collect();
            assert!(sent.len() <= REQUESTS, "{sent:#?}");
        }
        process.close().await;
    });
    assert_eq!(server.violations(), [] as [String; 0]);
}

#[test]
fn an_unfinished_snapshot_in_a_bucket_is_missing_and_not_busy() {
    let server = FaultServer::start(Options::default());
    block_on(async {
        let process = fresh(&server).await;
        let backup = process.store.backup(&group()).begin().await.unwrap();
        let name = backup.name().clone();
        assert_eq!(process.store.snapshot(&name).await.unwrap_err().kind(), ErrorKind::NotFound);
        backup.blob("app.conf", "text").await.unwrap();
        backup.finish().await.unwrap();
        process.store.snapshot(&name).await.unwrap();
        process.close().await;
    });
}

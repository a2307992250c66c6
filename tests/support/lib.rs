//! The code that several integration tests of larder share: servers, scenes, and backends that fail on request.

#[cfg(feature = "testing")]
pub mod broken;
#[cfg(feature = "s3")]
pub mod bucket;
#[cfg(feature = "testing")]
pub mod days;
pub mod fault_server;
pub mod fixture;
pub mod gc_scene;
pub mod keys;
#[cfg(all(feature = "s3", feature = "testing"))]
pub mod life;
mod noise;
pub mod places;
pub mod s3_server;
#[cfg(all(feature = "s3", feature = "testing"))]
pub mod s3_store;
pub mod side;
pub mod tree;
#[cfg(feature = "testing")]
pub mod watched;

use std::io;
use std::sync::Arc;
use std::thread;

use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncReadExt as _};
use larder::rt::{Runtime, ThreadRuntime};

pub use noise::{counting, noise};

/// Reads to the end, like the method of `AsyncReadExt`, which fills its buffer byte by byte first: without optimisation that takes
/// longer than everything else about a large archive.
pub async fn read_to_end(reader: &mut (dyn AsyncRead + Send + Unpin)) -> io::Result<Vec<u8>> {
    let (mut bytes, mut block) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        match reader.read(&mut block).await? {
            0 => return Ok(bytes),
            length => bytes.extend_from_slice(&block[..length]),
        }
    }
}

/// Runs a test on every runtime that was compiled in: threads under `futures::executor`, Tokio, smol, and simulated.
pub fn on_every_runtime(body: impl Fn(Arc<dyn Runtime>) -> BoxFuture<'static, ()> + Sync) {
    on_every_network(&body);
    #[cfg(feature = "testing")]
    for seed in 0..4 {
        let sim = larder::rt::SimRuntime::new(seed);
        sim.block_on(body(Arc::new(sim.clone())));
    }
}

/// The same without the simulated one, which reaches no server. The runtimes run at the same time, each on a thread of its own: some
/// tests wait for real time.
pub fn on_every_network(body: impl Fn(Arc<dyn Runtime>) -> BoxFuture<'static, ()> + Sync) {
    let body = &body;
    thread::scope(|scope| {
        scope.spawn(|| futures::executor::block_on(body(Arc::new(ThreadRuntime::new()))));
        #[cfg(feature = "tokio")]
        for mut tokio in [
            tokio::runtime::Builder::new_multi_thread(),
            // On a single thread too, where anything that blocks stops everything (H155).
            tokio::runtime::Builder::new_current_thread(),
        ] {
            scope.spawn(move || {
                let tokio = tokio.worker_threads(2).enable_all().build().unwrap();
                let runtime = larder::rt::TokioRuntime::new(tokio.handle().clone());
                tokio.block_on(body(Arc::new(runtime)));
            });
        }
        #[cfg(feature = "smol")]
        scope.spawn(|| smol::block_on(body(Arc::new(larder::rt::SmolRuntime::new()))));
    });
}

/// Options of a client for the servers of the tests that have no TLS. A pinned certificate saves each client from reading the root
/// certificates of the platform.
#[cfg(feature = "s3")]
pub fn plaintext() -> larder::http::HttpOptions {
    let options = larder::http::HttpOptions::default();
    #[cfg(feature = "tls")]
    let options =
        options.tls(larder::http::TlsOptions::default().fingerprint("00".repeat(32).parse().unwrap()));
    options
}

/// An empty directory, in memory where there is such a filesystem: disks are slow with many directories and flushes.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

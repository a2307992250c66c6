//! A restore from the local disk, against one from a store in a directory beside it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::store::{Datastore, Options};

use crate::data::{CHUNK, back_up, copy_out, newest, opened, timed};
use crate::far::{Server, runtime};
use crate::random::random;
use crate::report::{Report, Target};
use crate::{Outcome, Plan};

/// How much longer it may take than from a store in a directory.
const SHARE: f64 = 1.1;
/// How many restores of each kind make up a round: they are short.
const TURNS: u32 = 4;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let data = random(3 << 20, plan.size);
    let scratch = tempfile::tempdir()?;
    let local = scratch.path().join("local");
    let mut server = block_on(Server::start())?;
    let near = block_on(in_directory(&scratch.path().join("store"), &data))?;
    block_on(keep_all(&server, &local, &data))?;
    server.go_away()?;
    block_on(async {
        let process = server.process(Some(&local)).await?;
        let (refreshed, _) = timed(async { Ok(process.store.refresh().await?) }).await?;
        report.add("warm restore: refresh before it", refreshed.as_secs_f64(), "s", Target::Open);
        for _ in 0..plan.rounds {
            let (mut far_time, mut near_time) = (Duration::ZERO, Duration::ZERO);
            server.requests()?;
            for _ in 0..TURNS {
                far_time += restore(&process.store).await?;
                near_time += restore(&near).await?;
            }
            let seconds = |time: Duration| time.as_secs_f64() / f64::from(TURNS);
            report.add("warm restore", seconds(far_time), "s", Target::Open);
            report.add("warm restore: store in a directory", seconds(near_time), "s", Target::Open);
            let ratio = far_time.as_secs_f64() / near_time.as_secs_f64();
            report.add("warm restore / store in a directory, time", ratio, "", Target::AtMost(SHARE));
            let requests = server.requests()?;
            *report.count("warm restore: requests", requests.total(), Some(0)) = requests.text();
        }
        process.end().await
    })
}

async fn restore(store: &Datastore) -> Outcome<Duration> {
    let restored = timed(async {
        let archive = opened(&newest(store).await?).await?.keep_local();
        copy_out(&archive).await
    });
    Ok(restored.await?.0)
}

/// A store in a directory with a snapshot of the data.
async fn in_directory(path: &Path, data: &[u8]) -> Outcome<Datastore> {
    let options =
        FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
    let backend: Arc<dyn Backend> = Arc::new(FsBackend::create(runtime(), path, options).await?);
    let store = Datastore::create(backend, Options::default()).await?;
    back_up(&store, data, CHUNK, None).await?;
    Ok(store)
}

/// Stores the data without local state, and restores it with, which keeps all chunks.
async fn keep_all(server: &Server, local: &Path, data: &[u8]) -> Outcome<()> {
    let first = server.process(None).await?;
    back_up(&first.store, data, CHUNK, None).await?;
    first.end().await?;
    let second = server.process(Some(local)).await?;
    restore(&second.store).await?;
    second.end().await
}

//! The metadata of many snapshots.

use std::sync::Arc;

use futures::executor::block_on;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use larder::backend::{Backend, PutMode};
use larder::format::layout::Key;
use larder::format::name::{BackupTime, GroupName, Namespace};
use larder::internal::blob::BlobEncoder;
use larder::internal::manifest;
use larder::store::{Datastore, SnapshotReader};

use crate::data::{IN_FLIGHT, back_up, timed};
use crate::far::{STORE, Server};
use crate::random::random;
use crate::report::{Report, Target};
use crate::{Outcome, Plan};

const GROUPS: i64 = 100;
const SNAPSHOTS: i64 = 100;
/// How long the first refresh may take.
const LIMIT_SECONDS: f64 = 60.0;

pub(crate) fn run(_: &Plan, report: &mut Report) -> Outcome<()> {
    let mut server = block_on(Server::start())?;
    block_on(make_snapshots(&server))?;
    server.go_away()?;
    let directory = tempfile::tempdir()?;
    let most = usize::try_from(GROUPS * SNAPSHOTS)?;
    block_on(async {
        let process = server.process(Some(directory.path())).await?;
        server.requests()?;
        let (time, first) = timed(async { Ok(process.store.refresh().await?) }).await?;
        let requests = server.requests()?;
        let name = "refresh of 10,000 snapshots";
        *report.add(name, time.as_secs_f64(), "s", Target::Below(LIMIT_SECONDS)) =
            format!("{} fetched; {}", first.fetched, requests.text());
        let (time, second) = timed(async { Ok(process.store.refresh().await?) }).await?;
        let requests = server.requests()?;
        report.add("second refresh", time.as_secs_f64(), "s", Target::Open);
        let others = requests.total() - requests.of("LIST");
        *report.count("second refresh: requests but listings", others, Some(0)) = requests.text();
        if !first.is_exclusive || !second.is_exclusive || second.fetched > 0 {
            return Err(format!("it did not refresh: {first:?}, {second:?}").into());
        }
        let (time, found) = timed(list_all(&process.store)).await?;
        let requests = server.requests()?;
        report.add("listing after it", time.as_secs_f64(), "s", Target::Open);
        *report.count("listing after it: requests", requests.total(), Some(0)) =
            format!("{found} snapshots; {}", requests.text());
        if found <= most {
            return Err(format!("only {found} snapshots are listed").into());
        }
        process.end().await
    })
}

/// All snapshots, each with its manifest.
async fn list_all(store: &Datastore) -> Outcome<usize> {
    let mut found = 0;
    for group in store.groups(&Namespace::root()).await? {
        store.owner(&group).await?;
        for info in store.snapshots(&group).await? {
            found += 1;
            store.snapshot(&info.name).await?;
        }
    }
    Ok(found)
}

/// Backs up once, and makes many snapshots like that one.
async fn make_snapshots(server: &Server) -> Outcome<()> {
    let process = server.process(None).await?;
    let template = back_up(&process.store, &random(4 << 20, 1 << 20), 1 << 20, None).await?;
    process.end().await?;
    let backend = server.backend(STORE)?;
    let archive = template.manifest().files()[0].name.clone();
    let index = backend.get(&Key::Archive(template.name().clone(), archive.clone()), 1 << 20).await?.bytes;
    let owner = backend.get(&Key::Owner(template.name().group().clone()), 1 << 10).await?.bytes;
    let mut objects = Vec::new();
    for group in 0..GROUPS {
        let group: GroupName = format!("host/{group}").parse()?;
        objects.push((Key::Owner(group.clone()), owner.clone()));
        for number in 0..SNAPSHOTS {
            let name = group.snapshot(BackupTime::try_from(1_700_000_000 + number * 3600)?);
            objects.push((Key::Archive(name.clone(), archive.clone()), index.clone()));
            objects.push((Key::Manifest(name.clone()), manifest(&template, &group, name.time())?.into()));
        }
    }
    let backend: &Arc<dyn Backend> = &backend;
    let puts = stream::iter(objects)
        .map(|(key, body)| async move { backend.put(&key, body, PutMode::Replace).await.map(drop) });
    Ok(puts.buffer_unordered(IN_FLIGHT).try_collect().await?)
}

/// The manifest of another snapshot, with the same files.
fn manifest(template: &SnapshotReader, group: &GroupName, time: BackupTime) -> Outcome<Vec<u8>> {
    let mut manifest = manifest::of_snapshot(&group.snapshot(time));
    for file in template.manifest().files() {
        manifest::add_file(&mut manifest, file.clone())?;
    }
    let mut blob = Vec::new();
    BlobEncoder::new(1)?.encode(&manifest.to_json(), &mut blob)?;
    Ok(blob)
}

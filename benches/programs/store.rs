//! What larder takes for operations that the size of a store could slow down: a new store with all directories, beside as many bare `mkdir`, a new
//! one without, and a backup in a group of many snapshots.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories};
use larder::format::name::{BackupTime, GroupName};
use larder::internal::blob::BlobEncoder;
use larder::internal::manifest;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options};

use crate::Outcome;

const SNAPSHOTS: i64 = 10_000;
const BACKUPS: usize = 10;
/// How much longer a new store may take than its bare directories.
const MOST_CREATION: f64 = 1.05;
const MOST_ON_DEMAND: Duration = Duration::from_millis(10);
const MOST_BACKUP: Duration = Duration::from_millis(20);

/// Returns `true` if all goals are met.
pub(crate) fn measure(rounds: usize, scratch: &Path) -> Outcome<bool> {
    let place = tempfile::tempdir_in(scratch)?;
    let (mut bare, mut all, mut on_demand) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for round in 0..rounds {
        let path = place.path().join(format!("bare-{round}"));
        fs::create_dir(&path)?;
        flush(&path)?;
        bare = bare.min(timed(|| bare_directories(&path))?);
        for (best, directories, name) in [
            (&mut all, PrefixDirectories::AtOnce, "all"),
            (&mut on_demand, PrefixDirectories::OnDemand, "on-demand"),
        ] {
            flush(place.path())?;
            let path = place.path().join(format!("{name}-{round}"));
            *best = (*best).min(timed(|| create(&path, directories).map(drop))?);
        }
    }
    let ratio = all.as_secs_f64() / bare.as_secs_f64();
    println!("\n65,536 bare directories, flushed: {:.3} s", bare.as_secs_f64());
    println!(
        "new store with all directories: {:.3} s, ratio {ratio:.2} (goal: {MOST_CREATION})",
        all.as_secs_f64()
    );
    println!("new store, directories on demand: {on_demand:.1?} (goal: {MOST_ON_DEMAND:?})");
    let backup = group_of_many(&place.path().join("group"))?;
    println!("begin and finish in a group of {SNAPSHOTS} snapshots: {backup:.1?} (goal: {MOST_BACKUP:?})");
    Ok(ratio <= MOST_CREATION && on_demand <= MOST_ON_DEMAND && backup <= MOST_BACKUP)
}

fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn bare_directories(path: &Path) -> Outcome<()> {
    for prefix in 0..=0xffff {
        fs::create_dir(path.join(format!("{prefix:04x}")))?;
    }
    flush(path)
}

fn flush(path: &Path) -> Outcome<()> {
    Ok(rustix::fs::syncfs(fs::File::open(path)?)?)
}

fn create(path: &Path, directories: PrefixDirectories) -> Outcome<Datastore> {
    block_on(async {
        let options = FsOptions::default().prefix_directories(directories);
        let backend = FsBackend::create(Arc::new(ThreadRuntime::new()), path, options).await?;
        let backend: Arc<dyn Backend> = Arc::new(backend);
        Ok(Datastore::create(backend, Options::default()).await?)
    })
}

/// The median of backups of one small blob.
fn group_of_many(path: &Path) -> Outcome<Duration> {
    drop(create(path, PrefixDirectories::OnDemand)?);
    let group: GroupName = "host/many".parse()?;
    let mut encoder = BlobEncoder::new(1)?;
    fs::create_dir_all(path.join(group.to_string()))?;
    fs::write(path.join(group.to_string()).join("owner"), "root@pam\n")?;
    for number in 0..SNAPSHOTS {
        let name = group.snapshot(BackupTime::try_from(1_500_000_000 + number * 3600)?);
        let mut blob = Vec::new();
        encoder.encode(&manifest::of_snapshot(&name).to_json(), &mut blob)?;
        fs::create_dir(path.join(name.to_string()))?;
        fs::write(path.join(name.to_string()).join("index.json.blob"), blob)?;
    }
    flush(path)?;
    block_on(async {
        let backend = FsBackend::open(Arc::new(ThreadRuntime::new()), path, FsOptions::default()).await?;
        let store = Datastore::open(Arc::new(backend), Options::default()).await?;
        let mut times = Vec::new();
        for number in 0..BACKUPS {
            let start = Instant::now();
            let time = BackupTime::try_from(1_600_000_000 + i64::try_from(number)?)?;
            let backup = store.backup(&group).time(time.into()).begin().await?;
            backup.blob("a.conf", "a").await?;
            backup.finish().await?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(times[BACKUPS / 2])
    })
}

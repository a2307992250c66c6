//! A machine stops after each change that an operation makes to a disk, and what was not flushed is lost.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::internal::replay::{DiskRecord, DiskUnderTest as _, Loss};
use larder::rt::{Runtime, SimRuntime};
use larder_testing::gc_scene::OnFailure;

use crate::operations::{OPERATIONS, Operation};
use crate::scene::{World, copy_directory, files, new_sim};
use crate::steps::{Course, Steps, goes_on};

pub(crate) fn options(level: SyncLevel) -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(level)
}

/// The store in a directory, as a new process has it. Its changes are recorded if there is a record.
pub(crate) async fn world(
    sim: &SimRuntime,
    root: &Path,
    level: SyncLevel,
    record: Option<&Arc<DiskRecord>>,
    operation: Option<&Operation>,
) -> Option<World> {
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    let options = match record {
        Some(record) => options(level).record(Arc::clone(record)),
        None => options(level),
    };
    let store = root.join("store");
    let backend = if operation.is_some() {
        FsBackend::open(Arc::clone(&runtime), &store, options).await
    } else {
        FsBackend::create(Arc::clone(&runtime), &store, options).await
    };
    let backend: Arc<dyn Backend> = match backend {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        backend => Arc::new(backend.unwrap()),
    };
    let has_local_state = operation.is_some_and(|operation| operation.has_local_state);
    Some(World {
        backend,
        directory: root.to_owned(),
        has_local_state,
        is_other_host: false,
        is_packed: false,
        runtime,
    })
}

/// The record of a scene.
async fn record_scene(sim: &SimRuntime, level: SyncLevel, is_packed: bool) -> Arc<DiskRecord> {
    let scratch = larder_testing::scratch();
    let record = Arc::new(DiskRecord::default());
    let world = world(sim, scratch.path(), level, Some(&record), None).await.unwrap();
    World { is_packed, ..world }.make().await;
    record
}

/// A number for everything in a directory.
fn fingerprint(root: &Path) -> Digest {
    let mut all = Vec::new();
    let mut files = files(root);
    files.sort();
    for path in files {
        all.extend(path.strip_prefix(root).unwrap().to_str().unwrap().bytes());
        all.extend(Digest::of(&fs::read(&path).unwrap()).as_bytes());
    }
    Digest::of(&all)
}

/// Records an operation, and returns what was there before it.
struct Recorded {
    course: Course,
    from: usize,
    /// What was beside the store before.
    outside: tempfile::TempDir,
    record: Arc<DiskRecord>,
}

async fn record(
    sim: &SimRuntime,
    scene: &DiskRecord,
    operation: &Operation,
    level: SyncLevel,
    is_packed: bool,
) -> Recorded {
    let scratch = larder_testing::scratch();
    let store = scratch.path().join("store");
    fs::create_dir(&store).unwrap();
    scene.replay(scene.len(), Loss::Nothing, &store).unwrap();
    let record = Arc::new(scene.copy());
    let world = world(sim, scratch.path(), level, Some(&record), Some(operation)).await.unwrap();
    let world = World { is_packed, ..world };
    if let Some(prepare) = operation.prepare {
        prepare(&world).await.unwrap();
        world.backend.barrier().await.unwrap();
    }
    let outside = larder_testing::scratch();
    copy_directory(scratch.path(), outside.path());
    fs::remove_dir_all(outside.path().join("store")).unwrap();
    let before = world.state().await;
    let from = record.len();
    (operation.run)(&world).await.unwrap();
    let until = record.len();
    (operation.outside)(&world.directory, true);
    let course = Course::new(before, &world, operation).await;
    Recorded { course, from, outside, record: Arc::new(record.first(until)) }
}

fn every_step(place: u64, level: SyncLevel, is_packed: bool, losses: &[Loss]) {
    let sim = new_sim();
    let scene = sim.block_on(record_scene(&sim, level, is_packed));
    let mut steps = Steps::new(place);
    for (number, operation) in OPERATIONS.iter().enumerate() {
        if !operation.fits(false, is_packed) || !steps.has(number) {
            continue;
        }
        let _on_failure = OnFailure(format!("{} at {level:?}, packed: {is_packed}", operation.name));
        let sim = new_sim();
        let recorded = sim.block_on(record(&sim, &scene, operation, level, is_packed));
        drop(sim);
        let mut seen = BTreeSet::new();
        for step in recorded.from..=recorded.record.len() {
            if !steps.is_chosen() {
                continue;
            }
            for loss in losses {
                let scratch = larder_testing::scratch();
                copy_directory(recorded.outside.path(), scratch.path());
                let store = scratch.path().join("store");
                fs::create_dir(&store).unwrap();
                recorded.record.replay(step, *loss, &store).unwrap();
                if !seen.insert(fingerprint(&store)) {
                    continue;
                }
                let all = recorded.record.len();
                let _on_failure = OnFailure(format!("step {step} of {}..{all}, {loss:?}", recorded.from));
                let sim = new_sim();
                sim.block_on(async {
                    let world = world(&sim, scratch.path(), level, None, Some(operation)).await;
                    let is_over = step == recorded.record.len() && *loss == Loss::Nothing;
                    let world = world.map(|world| World { is_packed, ..world });
                    goes_on(world, operation, &recorded.course, is_over).await;
                });
                steps.tried += 1;
            }
        }
    }
    eprintln!("{level:?}, packed: {is_packed}: {} crashes", steps.tried);
    assert!(steps.tried > 0, "nothing was tried");
}

/// Proves H37, H75.
#[test]
fn after_a_crash_at_any_change_of_any_operation_on_a_disk_the_operation_goes_on() {
    every_step(0, SyncLevel::Filesystem, false, &[Loss::Everything, Loss::Nothing]);
}

/// Proves H37, H75.
#[test]
fn after_a_crash_at_any_change_of_any_operation_on_packs_on_a_disk_the_operation_goes_on() {
    every_step(1, SyncLevel::Filesystem, true, &[Loss::Everything, Loss::Nothing]);
}

/// Proves H37, H75.
#[test]
fn after_a_crash_where_each_file_is_flushed_by_itself_the_operation_goes_on() {
    every_step(2, SyncLevel::File, false, &[Loss::Everything, Loss::Some(1), Loss::Some(2)]);
    every_step(3, SyncLevel::File, true, &[Loss::Everything, Loss::Some(1), Loss::Some(2)]);
}

//! Every system call of every operation on a directory fails once, with every error that a system has for it: a full disk or quota, a bad
//! sector, too many open files, a signal.
//!
//! `LARDER_FAULT_EACH=n` lets every n-th call fail, from the one with the number `LARDER_FAULT_FIRST` on, in operations whose names contain
//! `LARDER_FAULT_IN`; by default two calls of some operations fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder::backend::{Backend, FsBackend, SyncLevel};
use larder::error::{ErrorKind, Result};
use larder::internal::sim::Simulation as _;
use larder::rt::{Runtime, SimRuntime};
use larder_testing::gc_scene::OnFailure;
use nix::errno::Errno;

use crate::disk::{self, options};
use crate::injection::{self, Fault, Told};
use crate::operations::{OPERATIONS, Operation};
use crate::scene::{State, World, assert_between, assert_same, copy_directory, files, new_sim};
use crate::steps::{Course, is_as_without_a_failure};

const NAME: &str = "errors::whichever_system_call_fails_nothing_is_lost_and_the_next_attempt_succeeds";

/// How many faults were tried, and what became of the operation.
#[derive(Default)]
struct Counts {
    by_outcome: BTreeMap<String, u64>,
    tried: u64,
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// An operation on a store that lies in a directory.
struct Scene<'a> {
    course: Course,
    is_packed: bool,
    operation: &'a Operation,
    /// As it is before the operation.
    template: tempfile::TempDir,
}

async fn opened(sim: &SimRuntime, root: &Path, operation: &Operation, is_packed: bool) -> Result<World> {
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    let backend = FsBackend::open(Arc::clone(&runtime), root.join("store"), options(SyncLevel::Filesystem));
    let backend: Arc<dyn Backend> = Arc::new(backend.await?);
    let has_local_state = operation.has_local_state;
    Ok(World {
        backend,
        directory: root.to_owned(),
        has_local_state,
        is_other_host: false,
        is_packed,
        runtime,
    })
}

fn scene<'a>(made: &Path, operation: &'a Operation, is_packed: bool) -> Scene<'a> {
    let (template, scratch) = (larder_testing::scratch(), larder_testing::scratch());
    copy_directory(made, template.path());
    let sim = new_sim();
    let course = sim.block_on(async {
        let world = opened(&sim, template.path(), operation, is_packed).await.unwrap();
        if let Some(prepare) = operation.prepare {
            prepare(&world).await.unwrap();
        }
        drop(world);
        copy_directory(template.path(), scratch.path());
        let world = opened(&sim, scratch.path(), operation, is_packed).await.unwrap();
        let before = world.state().await;
        (operation.run)(&world).await.unwrap();
        (operation.outside)(&world.directory, true);
        Course::new(before, &world, operation).await
    });
    Scene { course, is_packed, operation, template }
}

/// What the descriptors of this process lead to.
fn open_files() -> Vec<String> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    // The one of this listing leads nowhere when it is looked at.
    let paths = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    paths.map(|path| path.display().to_string()).filter(|path| !path.starts_with("/proc/")).collect()
}

/// Files that a put or a restore writes before they have their names.
fn temporary(root: &Path) -> Vec<String> {
    let paths = files(root).into_iter().map(|path| path.to_str().unwrap().to_owned());
    paths.filter(|path| path.contains(".tmp_") || path.contains(".restoring-")).collect()
}

/// The kinds of errors that may come of this one: `Stream` is about a file that is restored, or backed up.
fn is_documented(error: Errno, kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Full => matches!(error, Errno::ENOSPC | Errno::EDQUOT),
        kind => matches!(kind, ErrorKind::Stream | ErrorKind::Unavailable),
    }
}

impl Scene<'_> {
    /// Lets a call of the operation fail. Returns `false` if there are not so many.
    fn fails(&self, fault: Fault, counts: &mut Counts) -> bool {
        let Self { operation, is_packed, .. } = *self;
        let scratch = larder_testing::scratch();
        copy_directory(self.template.path(), scratch.path());
        let sim = new_sim();
        let before = open_files();
        let mut world = None;
        let (done, told) = injection::with(fault, || {
            let done: Result<()> = sim.block_on(async {
                let opened = world.insert(opened(&sim, scratch.path(), operation, is_packed).await?);
                (operation.run)(opened).await
            });
            sim.run_until_idle();
            done
        });
        let Told { call: Some(call) } = told else { return false };
        counts.tried += 1;
        let _on_failure = OnFailure(format!("{fault:?}: call {call}, {:?}", done.as_ref().err()));
        let outcome = match &done {
            Ok(()) => "success".to_owned(),
            Err(error) => error.kind().to_string(),
        };
        *counts.by_outcome.entry(format!("{:?}: {outcome}", fault.error)).or_default() += 1;
        if let Err(error) = &done {
            assert!(is_documented(fault.error, error.kind()), "{error:?}");
        }
        (operation.outside)(scratch.path(), done.is_ok());
        let left = temporary(scratch.path());
        assert!(left.len() <= 1, "{left:?}");
        if !left.is_empty() {
            *counts
                .by_outcome
                .entry(format!("a temporary file stays after a failing call {call}"))
                .or_default() += 1;
        }
        sim.block_on(async {
            let mut found = self.opened(&sim, scratch.path()).await.state().await;
            if let Some(found) = found.as_mut().filter(|_| done.is_err()) {
                if operation.closes {
                    found.remove("identity");
                }
                // A verification that could not reinstate a chunk says that it is missing.
                for value in found.values_mut() {
                    *value = value.replace("verified Some(Failed)", "verified None");
                }
            }
            self.check(&found, done.is_ok());
            if done.is_err() {
                self.goes_on(&sim, scratch.path(), world.take(), fault, call).await;
            }
            drop(world.take());
            is_as_without_a_failure(&self.opened(&sim, scratch.path()).await, &self.course).await;
        });
        // What runs in the background ends.
        sim.block_on(sim.sleep(Duration::from_hours(1)));
        drop(sim);
        assert_eq!(open_files(), before, "open files");
        true
    }

    async fn opened(&self, sim: &SimRuntime, root: &Path) -> World {
        let world = opened(sim, root, self.operation, self.is_packed).await;
        World { has_local_state: false, ..world.unwrap() }
    }

    fn check(&self, found: &State, is_done: bool) {
        if !self.operation.closes || found.is_some() {
            assert_between(found, &self.course.before, &self.course.after);
        }
        if is_done {
            assert_same(found, &self.course.after, "it succeeded");
        }
    }

    /// The same process tries again, and if a flush failed, it opens the store again first.
    async fn goes_on(&self, sim: &SimRuntime, root: &Path, world: Option<World>, fault: Fault, call: i64) {
        let run = self.operation.run;
        if let Some(world) = world {
            match run(&world).await {
                Ok(()) => return (self.operation.outside)(root, true),
                Err(error) if injection::is_flush(call) || fault.forever => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                }
                Err(error) => panic!("the second attempt: {error:?}"),
            }
        }
        let world = opened(sim, root, self.operation, self.is_packed).await.unwrap();
        run(&world).await.unwrap_or_else(|error| panic!("after it was opened again: {error:?}"));
        (self.operation.outside)(root, true);
    }
}

/// The errors, and whether all later calls fail too.
const FAULTS: [(Errno, bool); 6] = [
    (Errno::EIO, false),
    (Errno::ENOSPC, false),
    (Errno::ENOSPC, true),
    (Errno::EDQUOT, false),
    (Errno::EMFILE, false),
    (Errno::EINTR, false),
];

/// Lets every n-th call of an operation fail.
fn every_call(scene: &Scene<'_>, each: u64, counts: &mut Counts) {
    for (error, forever) in FAULTS {
        let mut nth = 1 + number("LARDER_FAULT_FIRST", 0) % each;
        while scene.fails(Fault { error, forever, nth }, counts) {
            nth += each;
        }
    }
}

/// Lets a few calls of an operation fail.
fn some_calls(scene: &Scene<'_>, number: usize, counts: &mut Counts) {
    let number = number as u64;
    for (at, reach) in [(0, 400), (1 + number % 5, 60)] {
        let (error, forever) = FAULTS[usize::try_from(at).unwrap()];
        let mut nth = 1 + number * 97 % reach;
        // There may be fewer.
        while !scene.fails(Fault { error, forever, nth }, counts) && nth > 1 {
            nth /= 2;
        }
    }
}

fn of_operations(is_packed: bool, counts: &mut Counts) {
    let each = std::env::var("LARDER_FAULT_EACH").ok().map(|text| text.parse().unwrap());
    let only = std::env::var("LARDER_FAULT_IN").unwrap_or_default();
    let made = larder_testing::scratch();
    let sim = new_sim();
    sim.block_on(async {
        let world = disk::world(&sim, made.path(), SyncLevel::Filesystem, None, None).await.unwrap();
        World { is_packed, ..world }.make().await;
    });
    for (number, operation) in OPERATIONS.iter().enumerate() {
        let has_turn = each.is_some() || number % 6 == 3 * usize::from(is_packed);
        if !operation.fits(false, is_packed) || !has_turn || !operation.name.contains(&only) {
            continue;
        }
        let _on_failure = OnFailure(format!("{}, packed: {is_packed}", operation.name));
        let scene = scene(made.path(), operation, is_packed);
        match each {
            Some(each) => every_call(&scene, each, counts),
            None => some_calls(&scene, number, counts),
        }
    }
}

/// Proves H37.
#[test]
fn whichever_system_call_fails_nothing_is_lost_and_the_next_attempt_succeeds() {
    if !injection::is_traced() {
        injection::trace(NAME);
        return;
    }
    for is_packed in [false, true] {
        let mut counts = Counts::default();
        of_operations(is_packed, &mut counts);
        eprintln!("packed: {is_packed}, {} faults: {:#?}", counts.tried, counts.by_outcome);
        assert!(counts.tried > 0 || std::env::var_os("LARDER_FAULT_IN").is_some(), "nothing was tried");
    }
}

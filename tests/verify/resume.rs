//! Resumption of a plan after an abort, a dropped future, an outage.

use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};
use larder::backend::{LockMode, LockScope, PutMode};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::manifest::VerifyResult;
use larder::format::name::SnapshotName;
use larder::internal::fault::{Action, Rule};
use larder::internal::record::Method;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::Scope;
use larder::verify::{
    self, Incomplete, Recording, Repair, Sample, VerifyEvent, VerifyMode, VerifyOptions, VerifyPlan,
    VerifyReport,
};

use crate::basic::{Around, back_up, digest, flipped, state};

/// A store with good and bad snapshots that share chunks, one of them verified a moment ago.
struct Scene {
    around: Around,
    names: Vec<SnapshotName>,
    objects: Vec<(String, Bytes)>,
}

impl Scene {
    async fn new(sim: &SimRuntime) -> Self {
        let around = Around::on(Arc::new(sim.clone())).await;
        let mut names = vec![back_up(&around.store, "ct/1", &[1, 2, 9]).await.name().clone()];
        let mut plan = verify::plan(&around.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        assert!(plan.execute().await.unwrap().is_clean());
        for seeds in [&[1, 2, 3, 4][..], &[2, 3, 5, 6], &[7, 8]] {
            names.push(back_up(&around.store, "vm/1", seeds).await.name().clone());
        }
        around.spoil(&Key::Chunk(digest(2)), flipped).await;
        around.remove(Key::Chunk(digest(3))).await;
        let blob = "app.conf.blob".parse().unwrap();
        around.spoil(&Key::Archive(names[1].clone(), blob), flipped).await;
        let objects = around.objects().await;
        Self { around, names, objects }
    }

    /// Puts everything back as it was before the verification.
    async fn restore(&self) {
        for (path, _) in self.around.objects().await {
            self.around.remove(Key::from_str(&path).unwrap()).await;
        }
        for (path, bytes) in &self.objects {
            let key = Key::from_str(path).unwrap();
            self.around.memory.put(&key, bytes.clone(), PutMode::Replace).await.unwrap();
        }
    }

    async fn plan(&self, options: VerifyOptions) -> VerifyPlan {
        verify::plan(&self.around.store, &Scope::Store, options).await.unwrap()
    }

    async fn states(&self) -> Vec<Option<VerifyResult>> {
        let mut states = Vec::new();
        for name in &self.names {
            states.push(state(&self.around.store, name).await);
        }
        states
    }

    /// No lock of a snapshot is held.
    async fn is_unlocked(&self) -> bool {
        for name in &self.names {
            let scope = LockScope::Snapshot(name.clone());
            if self.around.memory.lock(&scope, LockMode::Exclusive).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// The modes, with and without changes of the store.
fn all_options() -> Vec<VerifyOptions> {
    let modes = [
        VerifyOptions::default(),
        VerifyOptions::default().skip_verified_within(Duration::from_hours(1)),
        VerifyOptions::default().mode(VerifyMode::Presence),
        VerifyOptions::default().mode(VerifyMode::Sample(Sample::default().requests(1000).rotation(1 << 63))),
    ];
    let read_only =
        |options: &VerifyOptions| options.clone().repair(Repair::Report).recording(Recording::Off);
    let read_only: Vec<_> = modes.iter().map(read_only).collect();
    modes.into_iter().chain(read_only).collect()
}

/// A report without its costs: a snapshot that was open is read again.
fn results(report: &VerifyReport) -> String {
    let mut report = report.clone();
    (report.bytes, report.requests) = (0, 0);
    format!("{report:#?}")
}

/// An abort flag, and an observer that sets it after this number of chunks.
fn abort_after(options: VerifyOptions, chunks: usize) -> (VerifyOptions, Arc<AtomicBool>) {
    let (flag, seen) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let set = Arc::clone(&flag);
    let observer = move |event: &VerifyEvent| {
        if matches!(event, VerifyEvent::ChunkChecked { .. })
            && (seen.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(chunks)
        {
            set.store(true, Ordering::SeqCst);
        }
    };
    (options.observer(Arc::new(observer)).abort(Arc::clone(&flag)).concurrency(1), flag)
}

#[test]
fn an_aborted_run_that_resumes_reports_as_an_uninterrupted_one() {
    let sim = SimRuntime::new(14 << 20);
    sim.block_on(async {
        let scene = Scene::new(&sim).await;
        for options in all_options() {
            scene.restore().await;
            scene.around.record.reset();
            let wanted = scene.plan(options.clone().concurrency(1)).await.execute().await.unwrap();
            let mut reads = scene.around.chunks_read();
            let states = scene.states().await;
            assert!(!wanted.is_clean() && wanted.incomplete.is_none(), "{wanted:?}");
            for chunks in 1..=16 {
                scene.restore().await;
                let (options, flag) = abort_after(options.clone(), chunks);
                let mut plan = scene.plan(options).await;
                scene.around.record.reset();
                let (mut executions, mut checked) = (0, 0);
                let report = loop {
                    let report = plan.execute().await.unwrap();
                    executions += 1;
                    if !flag.swap(false, Ordering::SeqCst) {
                        break report;
                    }
                    let counts = report.chunks;
                    let now = counts.digest + counts.presence + counts.corrupt + counts.missing;
                    assert!(now > checked, "each execution gets on: {report:?}");
                    checked = now;
                    assert!(executions < 100);
                };
                assert!(chunks > 10 || executions > 1);
                assert_eq!(
                    results(&report),
                    results(&wanted),
                    "after {chunks} chunks, {executions} executions"
                );
                let mut again = scene.around.chunks_read();
                reads.sort_unstable();
                again.sort_unstable();
                assert_eq!(again, reads, "no chunk is read again");
                assert_eq!(scene.states().await, states);
                let finished = plan.execute().await.unwrap();
                assert_eq!(results(&finished), results(&wanted), "a finished plan has nothing to do");
                assert_eq!(finished.requests, report.requests);
            }
        }
    });
}

#[test]
fn a_dropped_run_that_resumes_reports_as_an_uninterrupted_one() {
    let sim = SimRuntime::new(15 << 20);
    sim.block_on(async {
        let scene = Scene::new(&sim).await;
        let slow = Action::Delay(Duration::from_millis(10));
        for options in all_options() {
            scene.around.faults.clear();
            scene.restore().await;
            let wanted = scene.plan(options.clone()).await.execute().await.unwrap();
            let states = scene.states().await;
            for pause in (400..2000).step_by(170).map(Duration::from_millis) {
                scene.restore().await;
                let mut plan = scene.plan(options.clone()).await;
                scene.around.faults.clear();
                scene.around.faults.add(Rule::on_any(slow));
                let mut dropped = 0;
                let report = loop {
                    let execution = Box::pin(plan.execute());
                    match future::select(execution, sim.sleep(pause)).await {
                        Either::Left((report, _)) => break report.unwrap(),
                        Either::Right(((), execution)) => drop(execution),
                    }
                    assert!(scene.is_unlocked().await);
                    dropped += 1;
                    assert!(dropped < 100, "{pause:?}");
                };
                scene.around.faults.clear();
                assert_eq!(results(&report), results(&wanted), "{dropped} of {pause:?}");
                assert_eq!(scene.states().await, states);
                drop(plan);
            }
        }
    });
}

/// Proves H94.
#[test]
fn the_next_execution_checks_what_was_unreachable() {
    let sim = SimRuntime::new(16 << 20);
    sim.block_on(async {
        let scene = Scene::new(&sim).await;
        for (repairs, options) in all_options().into_iter().enumerate().map(|(at, it)| (at < 4, it)) {
            scene.restore().await;
            let wanted = scene.plan(options.clone()).await.execute().await.unwrap();
            let states = scene.states().await;
            let failing = Action::FailBefore(ErrorKind::Unavailable);
            let rules = || {
                [
                    Rule::on(Method::Get, failing).keys(|key| matches!(key, Key::Chunk(_))),
                    Rule::on(Method::Get, failing).keys(|key| matches!(key, Key::Chunk(_))).nth(2),
                    Rule::on(Method::Head, failing),
                    Rule::on(Method::Get, failing).keys(|key| matches!(key, Key::Manifest(_))).nth(2),
                    Rule::on(Method::Get, failing).keys(|key| matches!(key, Key::Archive(..))),
                    Rule::on(Method::Put, failing).keys(|key| matches!(key, Key::Manifest(_))),
                    Rule::on(Method::List, failing).nth(2),
                    Rule::on_any(failing),
                ]
            };
            // A repair that fails is reported, and not repeated.
            let fits = |number: usize| !repairs || [0, 3, 4].contains(&number);
            for (number, rule) in rules().into_iter().enumerate().filter(|(number, _)| fits(*number)) {
                for limit in [3, 100] {
                    scene.restore().await;
                    let mut plan = scene.plan(options.clone().missing_limit(limit)).await;
                    let fired = scene.around.faults.fired();
                    scene.around.faults.add(rules().into_iter().nth(number).unwrap());
                    let first = plan.execute().await;
                    let has_failed = scene.around.faults.fired() > fired;
                    scene.around.faults.clear();
                    if let Ok(first) = &first
                        && has_failed
                        && number < 2
                    {
                        assert!(first.incomplete == Some(Incomplete::Unreachable), "{rule:?} {first:?}");
                    }
                    let report = plan.execute().await.unwrap();
                    assert_eq!(results(&report), results(&wanted), "{rule:?}, {limit}: {first:?}");
                    assert_eq!(scene.states().await, states, "{rule:?}, {limit}");
                }
            }
        }
    });
}

/// Proves H95.
#[test]
fn the_next_execution_checks_chunks_that_were_missing_in_an_outage() {
    let sim = SimRuntime::new(17 << 20);
    sim.block_on(async {
        let around = Around::on(Arc::new(sim.clone())).await;
        for first in 0..10 {
            back_up(&around.store, "vm/1", &[10 * first, 10 * first + 1]).await;
        }
        let objects = around.objects().await;
        for mode in [VerifyMode::Full, VerifyMode::Presence] {
            // The first chunks are good, so that some snapshots are recorded before the outage.
            for good in [0, 2, 9, 20] {
                let chunks = objects.iter().filter(|(path, _)| path.contains(".chunks/"));
                let mut gone: Vec<_> = chunks.map(|(path, _)| Key::from_str(path).unwrap()).collect();
                gone.truncate(gone.len() - good);
                let options = VerifyOptions::default().mode(mode).missing_limit(6).concurrency(1);
                let mut plan = verify::plan(&around.store, &Scope::Store, options).await.unwrap();
                for key in gone {
                    around.remove(key).await;
                }
                let first = plan.execute().await;
                for (path, bytes) in &objects {
                    around
                        .memory
                        .put(&Key::from_str(path).unwrap(), bytes.clone(), PutMode::Replace)
                        .await
                        .unwrap();
                }
                if good == 0 {
                    assert_eq!(first.as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
                }
                let recorded = first.is_ok();
                let report = plan.execute().await.unwrap();
                if !recorded && good == 0 {
                    assert!(report.is_clean(), "{mode:?}: {report:?}");
                    assert_eq!((report.chunks.missing, report.sound), (0, 10));
                }
                let counts = report.chunks;
                assert_eq!(
                    counts.missing + counts.digest + counts.presence,
                    30,
                    "{mode:?}, {good}: {report:?}"
                );
            }
        }
    });
}

#[test]
fn an_abort_costs_no_second_listing() {
    let sim = SimRuntime::new(18 << 20);
    sim.block_on(async {
        let scene = Scene::new(&sim).await;
        let options = VerifyOptions::default().mode(VerifyMode::Presence).repair(Repair::Report);
        scene.around.record.reset();
        let mut plan = scene.plan(options.clone()).await;
        plan.execute().await.unwrap();
        let listings = scene.around.record.count(Method::List);
        assert!(listings > 0);
        scene.around.record.reset();
        let (options, flag) = abort_after(options, 3);
        let mut plan = scene.plan(options).await;
        let mut executions = 1;
        while plan.execute().await.unwrap().incomplete == Some(Incomplete::Aborted) {
            flag.store(false, Ordering::SeqCst);
            executions += 1;
        }
        assert!(executions > 2);
        assert_eq!(scene.around.record.count(Method::List), listings);
    });
}

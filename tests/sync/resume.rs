//! Resumption of a plan after an abort, a dropped future, a failing target.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{self, Either};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::Method;
use larder::rt::{Runtime, SimRuntime};
use larder::sync::{
    self, SyncCandidates, SyncEvent, SyncOptions, SyncOrder, SyncOutcome, SyncPlan, SyncReport,
};

use crate::basic::{Pair, back_up, content, data, memory};

/// A source with groups and namespaces whose snapshots share chunks, and a target behind faults.
struct Scene {
    faults: Arc<FaultBackend>,
    pair: Pair,
}

impl Scene {
    async fn new(sim: &SimRuntime) -> Self {
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let faults = Arc::new(FaultBackend::new(memory(&runtime)));
        let pair = Pair::on(memory(&runtime), Arc::<FaultBackend>::clone(&faults)).await;
        pair.source.create_namespace(&"a".parse().unwrap()).await.unwrap();
        for time in 1..5 {
            let shared = [data(time, 2), data(time + 1, 2), data(100, 1)].concat();
            back_up(&pair.source, "vm/1", time * 1000, &shared).await;
        }
        back_up(&pair.source, "ns/a/ct/2", 1500, &data(3, 3)).await;
        Self { faults, pair }
    }

    async fn plan(&self, options: SyncOptions) -> SyncPlan {
        sync::plan(&self.pair.source, &self.pair.target, options).await.unwrap()
    }

    async fn is_equal(&self) -> bool {
        content(self.pair.to.as_ref()).await == content(self.pair.from.as_ref()).await
    }
}

fn all_options() -> Vec<SyncOptions> {
    let mut all = Vec::new();
    for candidates in [SyncCandidates::Newer, SyncCandidates::AllMissing] {
        for order in [SyncOrder::OldestFirst, SyncOrder::NewestFirst] {
            all.push(SyncOptions::default().candidates(candidates).order(order));
        }
    }
    all
}

/// Collects the chunks that are sent, and sets the abort flag after every so many.
#[derive(Debug, Default)]
struct Sent {
    digests: Mutex<Vec<Digest>>,
    flag: Arc<AtomicBool>,
    seen: AtomicUsize,
}

impl Sent {
    fn observe(self: &Arc<Self>, options: SyncOptions, abort_after: usize) -> SyncOptions {
        let sent = Arc::clone(self);
        let observer = move |event: &SyncEvent| {
            let SyncEvent::ChunkSent { digest, .. } = event else { return };
            sent.digests.lock().unwrap().push(*digest);
            if (sent.seen.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(abort_after) {
                sent.flag.store(true, Ordering::SeqCst);
            }
        };
        options.observer(Arc::new(observer)).abort(Arc::clone(&self.flag))
    }

    /// The chunks that were sent, each once.
    fn distinct(&self) -> BTreeSet<Digest> {
        let digests = self.digests.lock().unwrap();
        let distinct: BTreeSet<_> = digests.iter().copied().collect();
        assert_eq!(distinct.len(), digests.len(), "no chunk is transferred twice");
        distinct
    }
}

fn results(report: &SyncReport) -> String {
    format!("{report:#?}")
}

#[test]
fn an_aborted_sync_that_resumes_reports_as_an_uninterrupted_one() {
    let sim = SimRuntime::new(19 << 20);
    sim.block_on(async {
        for options in all_options() {
            let scene = Scene::new(&sim).await;
            let whole = Arc::new(Sent::default());
            let mut plan = scene.plan(whole.observe(options.clone(), usize::MAX)).await;
            let wanted = plan.execute().await.unwrap();
            assert!(wanted.is_complete() && scene.is_equal().await, "{wanted:?}");
            for abort_after in 1..=whole.distinct().len() {
                let scene = Scene::new(&sim).await;
                let sent = Arc::new(Sent::default());
                let mut plan = scene.plan(sent.observe(options.clone(), abort_after)).await;
                let mut executions = 0;
                let report = loop {
                    let report = plan.execute().await.unwrap();
                    executions += 1;
                    let was_aborted = sent.flag.swap(false, Ordering::SeqCst);
                    assert!(was_aborted || !report.is_aborted);
                    if !report.is_aborted {
                        break report;
                    }
                    assert!(!report.is_complete() && executions < 100, "{report:?}");
                };
                assert!(executions > 1, "{abort_after}");
                assert_eq!(
                    results(&report),
                    results(&wanted),
                    "after {abort_after}, {executions} executions"
                );
                assert_eq!(sent.distinct(), whole.distinct());
                assert!(scene.is_equal().await);
                let finished = plan.execute().await.unwrap();
                assert_eq!(results(&finished), results(&wanted), "a finished plan has nothing to do");
                assert_eq!(sent.distinct(), whole.distinct());
            }
        }
    });
}

#[test]
fn a_dropped_sync_resumes_and_counts_what_was_published_in_the_background() {
    let sim = SimRuntime::new(20 << 20);
    sim.block_on(async {
        for options in all_options() {
            for pause in (60..1500).step_by(130).map(Duration::from_millis) {
                let scene = Scene::new(&sim).await;
                scene.faults.add(Rule::on_any(Action::Delay(Duration::from_millis(10))));
                let mut plan = scene.plan(options.clone()).await;
                let mut dropped = 0_u32;
                let report = loop {
                    // A later execution needs more time than the one before.
                    let pause = pause + Duration::from_millis(50) * dropped;
                    match future::select(Box::pin(plan.execute()), sim.sleep(pause)).await {
                        Either::Left((report, _)) => break report.unwrap(),
                        Either::Right(((), execution)) => drop(execution),
                    }
                    dropped += 1;
                    assert!(dropped < 100, "{pause:?}");
                };
                assert!(report.is_complete(), "{report:?}");
                let is_done = |outcome: &SyncOutcome| matches!(outcome, SyncOutcome::Done(_));
                assert!(report.snapshots().all(|snapshot| is_done(&snapshot.outcome)), "{report:?}");
                assert_eq!(report.snapshots().count(), 5);
                assert_eq!(report.new_namespaces.len(), 1);
                scene.faults.clear();
                assert!(scene.is_equal().await, "{dropped} of {pause:?}");
            }
        }
    });
}

#[test]
fn a_sync_into_a_failing_target_resumes() {
    let sim = SimRuntime::new(21 << 20);
    sim.block_on(async {
        let failing = Action::FailBefore(ErrorKind::Unavailable);
        for options in all_options() {
            for nth in [1, 4, 7] {
                let rules = [
                    Rule::on(Method::Put, failing).keys(|key| matches!(key, Key::Chunk(_))).nth(nth),
                    Rule::on(Method::Put, failing).keys(|key| matches!(key, Key::Archive(..))).nth(nth),
                    Rule::on(Method::Put, failing).keys(|key| matches!(key, Key::Manifest(_))).nth(nth),
                    Rule::on(Method::Lock, failing).nth(nth),
                    Rule::on(Method::Barrier, failing).nth(nth),
                    Rule::on(Method::Put, failing),
                ];
                for rule in rules {
                    let what = format!("{rule:?}");
                    let scene = Scene::new(&sim).await;
                    let sent = Arc::new(Sent::default());
                    let mut plan = scene.plan(sent.observe(options.clone(), usize::MAX).concurrency(1)).await;
                    scene.faults.add(rule);
                    let first = plan.execute().await;
                    scene.faults.clear();
                    // A put without an answer may still arrive for half an hour.
                    sim.sleep(Duration::from_hours(1)).await;
                    let report = plan.execute().await.unwrap();
                    assert!(report.is_complete() && scene.is_equal().await, "{what}: {first:?} {report:?}");
                    let mut digests = sent.digests.lock().unwrap().clone();
                    let all = digests.len();
                    digests.sort_unstable();
                    digests.dedup();
                    // The chunk whose put failed is sent again, one for each snapshot that failed.
                    assert!(all - digests.len() <= 5, "{what}: {all} sent of {}", digests.len());
                    if what.contains("Barrier") || nth == 1 && what.contains("Lock") {
                        assert_eq!(all, digests.len(), "{what}");
                    }
                    let done = report.snapshots().filter(|one| matches!(one.outcome, SyncOutcome::Done(_)));
                    assert_eq!(done.count(), 5, "{what}: {report:?}");
                }
            }
        }
    });
}

#[test]
fn a_removal_that_failed_is_tried_again() {
    let sim = SimRuntime::new(22 << 20);
    sim.block_on(async {
        for action in [Action::FailBefore(ErrorKind::Unavailable), Action::FailAfter(ErrorKind::Unavailable)]
        {
            for nth in 1..6 {
                let scene = Scene::new(&sim).await;
                assert!(scene.plan(SyncOptions::default()).await.execute().await.unwrap().is_complete());
                let infos = scene.pair.source.snapshots(&"vm/1".parse().unwrap()).await.unwrap();
                for info in &infos[..2] {
                    scene.pair.source.delete_snapshot(&info.name).await.unwrap();
                }
                let mut plan = scene.plan(SyncOptions::default().remove_vanished()).await;
                assert_eq!(plan.vanished().snapshots.len(), 2);
                scene.faults.add(Rule::on(Method::Delete, action).nth(nth));
                let first = plan.execute().await.unwrap();
                scene.faults.clear();
                // Where a deletion may still come, the name is not settled for half an hour.
                sim.sleep(Duration::from_hours(1)).await;
                let report = plan.execute().await.unwrap();
                assert!(report.is_complete(), "{nth}: {first:?} {report:?}");
                assert_eq!((report.removed.len(), report.unremoved.len()), (2, 0), "{nth}: {report:?}");
            }
        }
    });
}

#[test]
fn a_concurrency_of_zero_is_refused() {
    let sim = SimRuntime::new(23 << 20);
    sim.block_on(async {
        let scene = Scene::new(&sim).await;
        let options = SyncOptions::default().concurrency(0);
        let refused = sync::plan(&scene.pair.source, &scene.pair.target, options).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    });
}

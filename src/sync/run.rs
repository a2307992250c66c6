//! Execution of a sync.
//!
//! # States
//! A plan keeps its progress. An execution ends by completion, a failure, an abort or a dropped future; the next one continues from
//! these states:
//!
//! | subject | state at the end of an execution | next execution |
//! |---|---|---|
//! | snapshot | transferred, skipped, in conflict, or gone at the source | left out |
//! | snapshot | failed, or not reached | synced; chunks that the plan transferred are not sent again, and the statistics cover all attempts |
//! | snapshot | published in the background after its future was dropped | found equal at the target, and counted as transferred |
//! | group | the newest snapshots were transferred first | the snapshots of this plan do not make older ones count as `SyncSkip::Older` |
//! | store lock and pins | kept while something is left to do: they keep transferred chunks of invisible snapshots | used again if the lock is still held; else both are taken anew, and such chunks are sent again |
//! | removal | done | left out |
//! | removal | failed, or its future was dropped | tried again; an object that is gone by then counts as removed |

use std::sync::Mutex;

use futures::future::BoxFuture;

use crate::error::{ErrorKind, Result};
use crate::rt::Rate;
use crate::sync::context::{Run, Slots};
use crate::sync::group;
use crate::sync::planned::SyncPlan;
use crate::sync::report::SyncReport;
use crate::sync::vanished::{self, Inputs};
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

impl SyncPlan {
    /// Executes the plan. Changes since the plan are noticed: each snapshot is checked again under its locks.
    ///
    /// Failures of groups and snapshots are in the report. A plan that did not complete can be executed again: it continues, and tries
    /// again what failed. The report covers all executions. Until the plan is complete or dropped, it keeps other processes from
    /// collecting garbage at the target.
    ///
    /// # Errors
    /// `Busy` if another process collects garbage at the target, `Unsupported` if this version cannot change the target, or any failure
    /// to create a namespace. No snapshot was transferred by this execution then.
    ///
    /// # Cancel safety
    /// A dropped future gives up the snapshot in progress, or completes its publication in the background. Earlier
    /// snapshots are complete. The next execution continues. Transferred chunks stay until garbage collection.
    pub async fn execute(&mut self) -> Result<SyncReport> {
        let watch = self.target.inner().watch(Operation::Sync, Subject::Store);
        let facts = |report: &SyncReport| Facts::of(report).bytes(report.stats().bytes_sent);
        // Boxed here, where the compiler can prove that it is `Send`.
        let execution: BoxFuture<'_, _> = Box::pin(execute(self));
        trace::watch(watch, execution, facts).await
    }

    fn report(&self) -> SyncReport {
        let is_aborted = self.options.control.is_aborted();
        self.progress.report(&self.groups, &self.vanished, is_aborted && !self.progress.is_over)
    }
}

async fn execute(plan: &mut SyncPlan) -> Result<SyncReport> {
    if plan.progress.is_over {
        return Ok(plan.report());
    }
    plan.target.inner().check_writable("sync").await?;
    let run = match plan.run.take() {
        // A lost lock lets another process collect the chunks, so the pins are worth nothing then.
        Some(run) if run.guard.check().await.is_ok() => run,
        _ => start(plan).await?,
    };
    let run = plan.run.insert(run);
    let progress = &mut plan.progress;
    while let Some(namespace) = plan.new_namespaces.get(progress.created_namespaces) {
        let was_started = std::mem::replace(&mut progress.is_creating, true);
        let is_new = match plan.target.create_namespace(namespace).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => was_started,
            created => {
                created?;
                true
            }
        };
        if is_new {
            progress.new_namespaces.push(namespace.clone());
        }
        progress.created_namespaces += 1;
        progress.is_creating = false;
    }
    for (group, progress) in plan.groups.iter().zip(&mut progress.groups) {
        group::sync(run, group, progress).await;
    }
    let control = &plan.options.control;
    if !control.is_aborted() {
        let (options, source, target) = (&plan.options, &plan.source, &plan.target);
        vanished::remove(Inputs { options, source, target, vanished: &plan.vanished }, progress).await;
        progress.is_over =
            !control.is_aborted() && progress.are_groups_over() && progress.unremoved.is_empty();
    }
    if progress.is_over {
        plan.run = None;
    }
    Ok(plan.report())
}

/// Locks the target, and prepares the transfers.
async fn start(plan: &SyncPlan) -> Result<Run> {
    Ok(Run {
        guard: plan.target.inner().locks().store_to_write().await?,
        options: plan.options.clone(),
        pins: Mutex::new(plan.target.inner().pins()),
        rate: plan.options.bytes_per_second.map(Rate::new),
        reads: Slots::new(&plan.source, &plan.options),
        same: plan.same,
        source: plan.source.clone(),
        target: plan.target.clone(),
        writes: Slots::new(&plan.target, &plan.options),
    })
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt as _;

    use crate::backend::fault::{Action, FaultBackend, Rule};
    use crate::backend::{Backend, ListEntry, ListQuery, MemoryBackend, list_all};
    use crate::format::layout::{Key, Prefix};
    use crate::rt::{Runtime, SimRuntime};
    use crate::store::Options;
    use crate::sync::plan;

    use std::sync::Arc;
    use std::time::Duration;

    use crate::store::Datastore;
    use crate::sync::options::SyncOptions;

    /// The chunks that are there, and whether the manifests of these snapshots are.
    fn look(backend: &dyn Backend) -> (Vec<crate::format::Digest>, usize) {
        let list = |prefix| list_all(backend, &ListQuery::all(prefix)).now_or_never();
        let (mut chunks, mut manifests) = (Vec::new(), 0);
        let root = crate::format::name::Namespace::root();
        for prefix in [Prefix::Chunks, Prefix::Namespace(root)] {
            for entry in list(prefix).unwrap().unwrap().into_entries() {
                match entry {
                    ListEntry::Object(info) => match info.key {
                        Key::Chunk(digest) => chunks.push(digest),
                        Key::Manifest(_) => manifests += 1,
                        _ => {}
                    },
                    other => panic!("{other:?}"),
                }
            }
        }
        (chunks, manifests)
    }

    /// Proves H1, H2.
    #[test]
    fn no_chunk_can_be_collected_before_its_snapshot_is_visible() {
        let sim = SimRuntime::new(3 << 20);
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        sim.block_on(async {
            let memory = || -> Arc<dyn Backend> { Arc::new(MemoryBackend::new(Arc::clone(&runtime))) };
            let (from, to) = (memory(), memory());
            let source = Datastore::create(from, Options::default()).await.unwrap();
            let slow = FaultBackend::new(Arc::clone(&to));
            slow.add(Rule::on_any(Action::Delay(Duration::from_millis(10))));
            let target = Datastore::create(Arc::new(slow), Options::default()).await.unwrap();
            let group = "vm/1".parse().unwrap();
            let mut seen = 0;
            for round in 1..3_u64 {
                // The second time, some chunks are only touched.
                let backup = source.backup(&group).begin().await.unwrap();
                let image: Vec<u8> =
                    (0..20_u64).flat_map(|at| [u8::try_from(at * round).unwrap(); 4096]).collect();
                let length = image.len() as u64;
                let image = futures::io::Cursor::new(image);
                backup.image("disk.img", image, length).chunk_bytes(4096).await.unwrap();
                backup.finish().await.unwrap();
                let (before, _) = look(to.as_ref());
                let mut plan = plan(&source, &target, SyncOptions::default()).await.unwrap();
                let mut execution = Box::pin(plan.execute());
                let report = poll_fn(|context| {
                    let polled = execution.as_mut().poll(context);
                    let (chunks, manifests) = look(to.as_ref());
                    if manifests < usize::try_from(round).unwrap() {
                        for digest in chunks.iter().filter(|digest| !before.contains(digest)) {
                            assert!(target.inner().chunks().is_pinned(digest));
                            seen += 1;
                        }
                    }
                    polled
                });
                let report = report.await.unwrap();
                assert!(report.is_complete(), "{report:?}");
                assert_eq!(report.stats().chunks_reused > 0, round == 2);
                let (chunks, _) = look(to.as_ref());
                assert!(
                    !chunks.iter().any(|digest| target.inner().chunks().is_pinned(digest)),
                    "pins go with the run"
                );
            }
            assert!(seen > 100, "{seen}");
        });
    }
}

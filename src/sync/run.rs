//! Execution of a sync.

use std::sync::Mutex;

use futures::future::BoxFuture;

use crate::error::{ErrorKind, Result};
use crate::rt::Rate;
use crate::sync::context::{Run, Slots};
use crate::sync::planned::SyncPlan;
use crate::sync::report::SyncReport;
use crate::sync::{group, vanished};

impl SyncPlan {
    /// Executes the plan. Changes since the plan are noticed: each snapshot is checked again under its locks.
    ///
    /// Failures of groups and snapshots are in the report.
    ///
    /// # Errors
    /// If nothing could be done: `Busy` if another process collects garbage at the target, `Unsupported` if this version cannot
    /// change the target, or any failure to create a namespace.
    ///
    /// # Cancel safety
    /// A dropped future gives up the snapshot in progress, or completes its publication in the background. Earlier
    /// snapshots are complete. Transferred chunks stay until garbage collection.
    pub async fn execute(self) -> Result<SyncReport> {
        // Boxed here, where the compiler can prove that it is `Send`.
        let execution: BoxFuture<'static, _> = Box::pin(execute(self));
        execution.await
    }
}

async fn execute(plan: SyncPlan) -> Result<SyncReport> {
    let mut report = SyncReport::default();
    plan.target.inner().check_writable("sync").await?;
    // Until the end, so that no other process collects transferred chunks of snapshots that are not visible yet (H4, H5).
    let _held = plan.target.inner().locks().store_to_write().await?;
    for namespace in &plan.new_namespaces {
        match plan.target.create_namespace(namespace).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => {
                created?;
                report.new_namespaces.push(namespace.clone());
            }
        }
    }
    let run = Run {
        options: plan.options.clone(),
        pins: Mutex::new(plan.target.inner().pins()),
        rate: plan.options.bytes_per_second.map(Rate::new),
        reads: Slots::new(&plan.source, &plan.options),
        same: plan.same,
        source: plan.source.clone(),
        target: plan.target.clone(),
        writes: Slots::new(&plan.target, &plan.options),
    };
    for group in &plan.groups {
        let done = group::sync(&run, group).await;
        report.groups.push(done);
    }
    report.is_aborted = plan.options.is_aborted();
    if !report.is_aborted {
        vanished::remove(&plan, &mut report).await?;
    }
    Ok(report)
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
                let plan = plan(&source, &target, SyncOptions::default()).await.unwrap();
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

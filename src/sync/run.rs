//! A sync that is under way.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{self, Either};

use crate::chunks::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::rt::Rate;
use crate::rt::semaphore::Budget;
use crate::store::Datastore;
use crate::sync::events::SyncEvent;
use crate::sync::options::SyncOptions;
use crate::sync::plan::{Same, SyncPlan};
use crate::sync::report::SyncReport;
use crate::sync::{group, vanished};

/// How often the flag is looked at while bandwidth is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// What all groups of a sync have in common.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) options: SyncOptions,
    /// What was transferred, and is not transferred again; pinned meanwhile.
    pins: Mutex<Arc<WriterPins>>,
    pub(super) rate: Option<Rate>,
    /// One for each chunk that may be read.
    pub(super) reads: Slots,
    pub(super) same: Same,
    pub(super) source: Datastore,
    pub(super) target: Datastore,
    /// One for each chunk that may be stored.
    pub(super) writes: Slots,
}

/// How much is done at the same time.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) budget: Arc<Budget>,
    pub(super) count: usize,
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The flag was set.
    Aborted,
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Slots {
    fn new(store: &Datastore, options: &SyncOptions) -> Self {
        let most = options.in_flight.map_or(usize::MAX, std::num::NonZeroUsize::get);
        let count = store.in_flight().min(most);
        Self { budget: Budget::new(count), count }
    }
}

impl Run {
    pub(super) fn event(&self, event: &SyncEvent<'_>) {
        self.options.observer.on_event(event);
    }

    pub(super) fn go_on(&self) -> Result<(), Failure> {
        if self.options.is_aborted() { Err(Failure::Aborted) } else { Ok(()) }
    }

    pub(super) fn pins(&self) -> Arc<WriterPins> {
        Arc::clone(&self.pins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what was transferred, if it is too much to be remembered. What it belongs to is visible, or was given up.
    pub(super) fn forget(&self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.confirmed() > self.options.remember_chunks {
            *pins = self.target.pins_beside(&pins);
        }
    }

    /// Waits until so many bytes may be passed on, or the flag is set.
    pub(super) async fn pass(&self, bytes: u64) -> Result<(), Failure> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let runtime = self.target.runtime().as_ref();
        let mut taken = pin!(rate.take(bytes, runtime));
        loop {
            match future::select(taken.as_mut(), runtime.sleep(LOOK)).await {
                Either::Left(_) => return Ok(()),
                Either::Right(_) => self.go_on()?,
            }
        }
    }
}

pub(super) async fn execute(plan: SyncPlan) -> Result<SyncReport> {
    let mut report = SyncReport::default();
    plan.target.check_writable("sync").await?;
    // Until the end, so that no other process collects what was transferred and is not visible yet (H4, H5).
    let _held = plan.target.lock_store_shared().await?;
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
        pins: Mutex::new(plan.target.pins()),
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

    use super::*;

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
                // The second time, some chunks are touched only.
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
                            assert!(target.chunks().is_pinned(digest));
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
                    !chunks.iter().any(|digest| target.chunks().is_pinned(digest)),
                    "pins go with the run"
                );
            }
            assert!(seen > 100, "{seen}");
        });
    }
}

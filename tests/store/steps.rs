//! The order of steps in which snapshots are published, copied, moved and deleted, and chunks are deleted and quarantined: barriers and
//! checks of locks stand where a crash or a lost lock would otherwise cost data.

use std::sync::Arc;
use std::time::Duration;

use larder::backend::{Backend, LockScope, MemoryBackend, PutMode};
use larder::format::layout::Key;
use larder::format::name::{ArchiveKind, Namespace};
use larder::internal::record::{Call, Method, RecordingBackend};
use larder::prune::{self, PruneOptions};
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options, PackOptions, Scope};
use larder::sync::{self, SyncOptions};
use larder::verify::{self, VerifyOptions};
use larder_testing::gc_scene::{at_once, back_up, collect, created, digest, group, leave};
use larder_testing::watched::Watched;

/// A store whose calls are recorded.
async fn recorded(runtime: &SimRuntime) -> (Arc<RecordingBackend>, Datastore) {
    let memory = Arc::new(MemoryBackend::new(Arc::new(runtime.clone())));
    let record = Arc::new(RecordingBackend::new(memory));
    let backend: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&record);
    let store = created(&backend).await;
    (record, store)
}

fn object(key: &Key) -> &'static str {
    match key {
        Key::Archive(_, name) if name.kind() == ArchiveKind::Blob => "blob",
        Key::Archive(..) => "index",
        Key::Chunk(_) => "chunk",
        Key::ClientLog(_) => "log",
        Key::GcStatus => "status",
        Key::Manifest(_) => "manifest",
        Key::Owner(_) => "owner",
        Key::GroupNotes(_) => "group notes",
        Key::Protected(_) => "protection",
        Key::Quarantined(..) => "quarantined",
        Key::GcCandidates => "candidates",
        Key::Suspects => "suspects",
        Key::Pack(_) => "pack",
        Key::Segment(_) => "segment",
        Key::Enclosed(key) => object(key),
        _ => "other",
    }
}

/// The change, flush or check that a call makes; `None` for one that only reads.
fn step(call: &Call) -> Option<String> {
    let objects = |keys: &[Key]| {
        let mut objects: Vec<_> = keys.iter().map(object).collect();
        objects.dedup();
        objects.join(" and ")
    };
    Some(match call.method {
        Method::RecordMoves => "announce".to_owned(),
        Method::Barrier => "barrier".to_owned(),
        Method::BeginTerm => "begin term".to_owned(),
        Method::Check => match call.lock.as_ref()?.0 {
            LockScope::Group(_) => "check group lock".to_owned(),
            LockScope::Snapshot(_) => "check snapshot lock".to_owned(),
            LockScope::Store => "check store lock".to_owned(),
            LockScope::Manifest(_) => "check manifest lock".to_owned(),
        },
        Method::CheckOwned => "check ownership".to_owned(),
        Method::Copy => format!("copy {}", objects(&call.keys[1..])),
        Method::Delete => format!("delete {}", objects(&call.keys)),
        Method::Put => format!("put {}", objects(&call.keys)),
        _ => return None,
    })
}

/// The steps since the last reset, a line each. Several changes of one kind in a row count as one.
fn steps(record: &RecordingBackend) -> String {
    let mut steps: Vec<_> = record.calls().iter().filter_map(step).collect();
    steps.dedup_by(|one, other| one == other && !one.starts_with("check"));
    record.reset();
    steps.join("\n")
}

/// Compares steps with those expected, `, ` or a line between them.
fn assert_steps(record: &RecordingBackend, expected: &str) {
    let expected: Vec<_> =
        expected.split([',', '\n']).map(str::trim).filter(|step| !step.is_empty()).collect();
    assert_eq!(steps(record), expected.join("\n"));
}

/// Each barrier makes everything before it durable (H37, H75), and the locks are looked at after the last thing that takes long (H90).
#[test]
fn a_backup_publishes_in_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (record, store) = recorded(&sim).await;
        record.reset();
        back_up(&store, "host/a", &[1, 2]).await.unwrap();
        assert_steps(
            &record,
            "put owner, put chunk, barrier, put index, barrier
             check store lock, check snapshot lock
             put manifest, barrier",
        );
        // A base is checked again before the manifest is stored, which reads; its chunks are touched.
        back_up(&store, "host/a", &[1, 3]).await.unwrap();
        assert_steps(
            &record,
            "put chunk, barrier, put index, barrier
             check store lock, check snapshot lock
             put manifest, barrier",
        );
    });
}

/// Packs are durable before a segment names them, and the segment before an index does (H37).
#[test]
fn a_backup_to_a_packed_store_has_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let record = Arc::new(RecordingBackend::new(memory));
        let backend: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&record);
        let options = Options::default().packed(PackOptions::default());
        let store = Datastore::create(backend, options).await.unwrap();
        for numbers in [[1, 2], [1, 3]] {
            record.reset();
            back_up(&store, "host/a", &numbers).await.unwrap();
            let steps = steps(&record);
            assert_eq!(
                steps.trim_start_matches("put owner\n").replace('\n', ", "),
                "put pack, barrier, put segment, barrier, put index, barrier, \
                 check store lock, check snapshot lock, put manifest, barrier"
            );
        }
    });
}

/// The manifest goes first and the owner last, each durable before the next (H42, H44).
#[test]
fn a_deletion_of_a_snapshot_has_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (record, store) = recorded(&sim).await;
        let name = back_up(&store, "host/a", &[1, 2]).await.unwrap().name().clone();
        record.reset();
        store.delete_snapshot(&name).await.unwrap();
        assert_steps(
            &record,
            "check ownership, check snapshot lock
             delete manifest, barrier, delete index, barrier
             check group lock, delete group notes, delete owner, barrier",
        );
    });
}

/// A collection in another process hears of the move before an index appears (H8); the copy is durable before the source goes (H58).
#[test]
fn a_copy_and_a_move_have_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (record, store) = recorded(&sim).await;
        back_up(&store, "host/a", &[1, 2]).await.unwrap();
        let spaces: [Namespace; 2] = ["n".parse().unwrap(), "m".parse().unwrap()];
        for space in &spaces {
            store.create_namespace(space).await.unwrap();
        }
        let copied = "check group lock, put owner
            announce, copy index, barrier
            check snapshot lock, check snapshot lock, check ownership
            put manifest, barrier";
        record.reset();
        assert!(store.copy_group(&group("host/a"), &spaces[0]).await.unwrap().is_complete());
        assert_steps(&record, copied);
        assert!(store.move_group(&group("host/a"), &spaces[1]).await.unwrap().is_complete());
        assert_steps(
            &record,
            &format!(
                "{copied}
                 check snapshot lock, check snapshot lock, check ownership
                 delete manifest, barrier, delete index and protection, barrier
                 check group lock, delete group notes, delete owner, barrier"
            ),
        );
    });
}

/// Deletions of snapshots are durable before a chunk goes: after a crash none comes back without its chunks (H37).
#[test]
fn a_sweep_has_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (record, store) = recorded(&sim).await;
        back_up(&store, "host/a", &[1, 2]).await.unwrap();
        leave(&store, &[8, 9]).await;
        // Until the writer that was dropped has cleaned up.
        sim.sleep(Duration::from_mins(1)).await;
        record.reset();
        collect(&store, at_once()).await.unwrap();
        assert_steps(
            &record,
            "check store lock, barrier
             check store lock, delete chunk
             put status, barrier",
        );
    });
}

/// In a bucket the candidates are written down, in a new term, before the first chunk goes (H16, H17).
#[test]
fn a_sweep_of_a_bucket_has_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let record = Arc::new(RecordingBackend::new(Watched::bucket(memory)));
        let backend: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&record);
        let store = created(&backend).await;
        back_up(&store, "host/a", &[1, 2]).await.unwrap();
        leave(&store, &[8, 9]).await;
        sim.sleep(Duration::from_mins(1)).await;
        record.reset();
        collect(&store, at_once()).await.unwrap();
        assert_steps(
            &record,
            "check store lock, barrier
             begin term, put candidates
             check store lock, delete chunk
             put candidates, put status, barrier",
        );
    });
}

/// A chunk is suspect before it is copied, and its copy is durable before it goes (H98, H99).
#[test]
fn a_quarantine_has_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (record, store) = recorded(&sim).await;
        back_up(&store, "host/a", &[1, 2]).await.unwrap();
        let key = Key::Chunk(digest(1));
        let mut bad = record.get(&key, 1 << 20).await.unwrap().bytes.to_vec();
        bad[20] ^= 1;
        record.put(&key, bad.into(), PutMode::Replace).await.unwrap();
        record.reset();
        let mut plan = verify::plan(&store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        assert_eq!(plan.execute().await.unwrap().quarantined, 1);
        assert_steps(
            &record,
            "put suspects
             check store lock, copy quarantined, barrier
             check store lock, delete chunk
             put manifest, barrier, put suspects",
        );
    });
}

#[test]
fn a_sync_publishes_in_this_order_of_steps() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (_, source) = recorded(&sim).await;
        back_up(&source, "host/a", &[1, 2]).await.unwrap();
        let (record, target) = recorded(&sim).await;
        record.reset();
        let mut plan = sync::plan(&source, &target, SyncOptions::default()).await.unwrap();
        plan.execute().await.unwrap();
        assert_steps(
            &record,
            "put owner, put chunk, barrier, put index, barrier
             check store lock, check snapshot lock
             put manifest, barrier",
        );
    });
}

/// The report of a pruning says what stays so after a crash (H42).
#[test]
fn the_deletion_of_a_namespace_is_durable_before_it_is_reported() {
    let sim = SimRuntime::new(5 << 20);
    sim.block_on(async {
        let (record, store) = recorded(&sim).await;
        let space: Namespace = "n".parse().unwrap();
        store.create_namespace(&space).await.unwrap();
        record.reset();
        let mut plan =
            prune::plan_deletion(&store, &Scope::Namespace(space), PruneOptions::default()).await.unwrap();
        plan.execute().await.unwrap();
        assert_steps(&record, "check ownership, delete other, barrier");
    });
}

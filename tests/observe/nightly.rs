//! Logs and metrics of a night: backups, a restore, a prune, a collection, a verification and a sync, in memory.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::io::Cursor;
use larder::backend::{Backend, MemoryBackend, PutMode};
use larder::format::layout::Key;
use larder::format::name::Namespace;
use larder::gc::{self, GcOptions, GcReport};
use larder::prune::{self, PruneOptions};
use larder::retention::RetentionRules;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{BackupStats, Datastore, Options, Scope, WriterTarget};
use larder::sync::{self, SyncOptions, SyncReport};
use larder::verify::{self, VerifyOptions};
use larder_testing::noise;
use tracing::Level;

use crate::collect::{Collector, Metrics};

const CHUNK: u64 = 65_536;

/// What the reports of a night say.
struct Night {
    gc: GcReport,
    restored: u64,
    stats: Vec<BackupStats>,
    sync: SyncReport,
}

async fn store(sim: &SimRuntime) -> Datastore {
    let backend = MemoryBackend::new(Arc::new(sim.clone()));
    Datastore::create(Arc::new(backend), Options::default()).await.unwrap()
}

async fn night(store: &Datastore, copy: &Datastore) -> Night {
    let (mut stats, mut restored) = (Vec::new(), 0);
    for day in 0..3 {
        for group in ["vm/100", "vm/101", "host/a"] {
            let backup = store.backup(&group.parse().unwrap()).begin().await.unwrap();
            for disk in 0..2 {
                let bytes = [noise(disk + 1, 65_536), noise(100 + day * 10 + disk, 65_536)].concat();
                let (name, size) = (format!("drive{disk}.img"), bytes.len() as u64);
                backup.image(&name, Cursor::new(&bytes), size).chunk_bytes(CHUNK).await.unwrap();
            }
            backup.blob("a.conf", "cores: 4").await.unwrap();
            stats.push(backup.stats());
            let snapshot = backup.finish().await.unwrap().snapshot;
            if day == 2 {
                let archive = snapshot.archive("drive0.img").await.unwrap();
                let mut target = WriterTarget::new(Cursor::new(Vec::new()));
                restored += archive.copy_to(&mut target).await.unwrap();
            }
        }
    }
    let mut plan = sync::plan(store, copy, SyncOptions::default()).await.unwrap();
    let sync = plan.execute().await.unwrap();
    let options = PruneOptions::default().rules(RetentionRules::default().keep_last(1));
    let mut plan = prune::plan(store, &Scope::Tree(Namespace::root()), options).await.unwrap();
    assert_eq!(plan.execute().await.unwrap().removed(), 6);
    let options = GcOptions::default().grace(Duration::ZERO).max_garbage(100);
    let gc = gc::plan(store, options).await.unwrap().execute().await.unwrap();
    let mut plan = verify::plan(store, &Scope::Store, VerifyOptions::default()).await.unwrap();
    assert!(plan.execute().await.unwrap().is_clean());
    Night { gc, restored, stats, sync }
}

/// Proves H185.
#[test]
fn a_nightly_run_is_a_page_at_the_level_of_info() {
    let collector = Collector::new(Level::INFO);
    tracing::subscriber::with_default(collector.clone(), || {
        let sim = SimRuntime::new(21);
        sim.clone().block_on(async {
            let (store, copy) = (store(&sim).await, store(&sim).await);
            night(&store, &copy).await;
            let events = collector.events();
            assert!((30..=60).contains(&events.len()), "{}: {events:#?}", events.len());
            assert!(events.iter().all(|event| event.level == Level::INFO), "{events:#?}");
            let ended: Vec<_> = events.iter().filter(|event| event.name.starts_with("ended")).collect();
            assert_eq!(ended.len() * 2, events.len(), "each operation has a start and an end");
            for event in ended {
                assert_eq!(event.fields["outcome"], "ok");
                assert!(event.fields.contains_key("seconds") && event.fields.contains_key("operation"));
            }
            let backups = collector.spans("backup");
            assert_eq!(backups.len(), 9);
            for span in &backups {
                assert_eq!(span["store"], store.uuid().unwrap());
                assert!(span["snapshot"].contains("/20") && span["outcome"] == "ok", "{span:?}");
                assert_eq!(span["bytes"], (4 * CHUNK + 8).to_string());
            }
            let restore = &collector.spans("restore")[0];
            assert_eq!(restore["archive"], "drive0.img.fidx");
            for name in ["gc", "gc_plan", "prune", "prune_plan", "sync", "sync_plan", "verify", "verify_plan"]
            {
                assert_eq!(collector.spans(name).len(), 1, "{name}");
            }
        });
    });
}

#[test]
fn archives_and_snapshots_have_lines_at_the_level_of_debug() {
    let collector = Collector::new(Level::DEBUG);
    tracing::subscriber::with_default(collector.clone(), || {
        let sim = SimRuntime::new(22);
        sim.clone().block_on(async {
            let (store, copy) = (store(&sim).await, store(&sim).await);
            night(&store, &copy).await;
        });
    });
    assert_eq!(collector.spans("archive").len(), 27);
    let has = |text: &str| collector.events().iter().any(|event| event.name.contains(text));
    assert!(has("drive1.img.fidx: finished, 128.0 KiB"));
    assert!(has(": removed") && has(": done: sent"), "{}", collector.text());
}

#[test]
fn an_image_writer_has_the_span_of_an_archive() {
    let collector = Collector::new(Level::DEBUG);
    tracing::subscriber::with_default(collector.clone(), || {
        let sim = SimRuntime::new(25);
        sim.clone().block_on(async {
            let store = store(&sim).await;
            let backup = store.backup(&"vm/1".parse().unwrap()).begin().await.unwrap();
            let mut image = backup.image_writer("d.img", 2 * CHUNK).chunk_bytes(CHUNK).begin().await.unwrap();
            image.write_zeros(CHUNK, CHUNK).await.unwrap();
            image.write_at(0, noise(1, 65_536).into()).await.unwrap();
            image.finish().await.unwrap();
            backup.finish().await.unwrap();
        });
    });
    let spans = collector.spans("archive");
    assert_eq!(spans.len(), 1);
    assert_eq!(spans[0]["archive"], "d.img");
}

/// Publication goes on when the future of `finish` is dropped, so the outcome is that of the publication.
#[test]
fn a_dropped_finish_has_the_outcome_of_its_publication() {
    let collector = Collector::new(Level::INFO);
    tracing::subscriber::with_default(collector.clone(), || {
        let sim = SimRuntime::new(26);
        sim.clone().block_on(async {
            let store = store(&sim).await;
            let group = "vm/1".parse().unwrap();
            let backup = store.backup(&group).begin().await.unwrap();
            backup.blob("a.conf", "cores: 4").await.unwrap();
            assert!(futures::poll!(pin!(backup.finish())).is_pending());
            sim.sleep(Duration::from_mins(1)).await;
            assert_eq!(store.snapshots(&group).await.unwrap().len(), 1);
            let backup = store.backup(&group).begin().await.unwrap();
            backup.blob("a.conf", "cores: 5").await.unwrap();
            drop(backup.finish());
            store.backup(&group).begin().await.unwrap().abort().await.unwrap();
        });
    });
    let outcomes: Vec<_> = collector.spans("backup").iter().map(|span| span["outcome"].clone()).collect();
    assert_eq!(outcomes, ["ok", "dropped", "dropped"]);
}

/// Failures, damage and operations that were given up have levels of their own.
#[test]
fn failures_warn_and_damage_is_an_error() {
    let collector = Collector::new(Level::INFO);
    tracing::subscriber::with_default(collector.clone(), || {
        let sim = SimRuntime::new(23);
        sim.clone().block_on(async {
            let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            let missing = "a/b".parse::<Namespace>().unwrap();
            let group: larder::format::name::GroupName = "vm/1".parse().unwrap();
            store.backup(&group.clone().in_namespace(missing)).begin().await.unwrap_err();
            drop(store.backup(&group).begin().await.unwrap());
            let backup = store.backup(&group).begin().await.unwrap();
            let bytes = noise(1, 65_536);
            let image = backup.image("d.img", Cursor::new(&bytes), CHUNK).chunk_bytes(CHUNK);
            image.await.unwrap();
            backup.finish().await.unwrap();
            let key = Key::Chunk(larder::format::Digest::of(&bytes));
            backend.put(&key, vec![0; 100].into(), PutMode::Replace).await.unwrap();
            let mut plan = verify::plan(&store, &Scope::Store, VerifyOptions::default()).await.unwrap();
            assert!(!plan.execute().await.unwrap().is_clean());
            backend.close().await.unwrap();
        });
    });
    let of = |level: Level| {
        let events = collector.events();
        events.into_iter().filter(|event| event.level == level).collect::<Vec<_>>()
    };
    let (warnings, errors) = (of(Level::WARN), of(Level::ERROR));
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert_eq!(warnings[0].fields["outcome"], "not_found");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].name.contains("d.img.fidx: 1 corrupt chunk"), "{errors:#?}");
    assert!(
        collector.spans("backup").iter().any(|span| span.get("outcome").is_some_and(|it| it == "dropped"))
    );
}

#[test]
fn metrics_are_the_numbers_of_the_reports() {
    let metrics = Metrics::default();
    let night = metrics::with_local_recorder(&metrics, || {
        let sim = SimRuntime::new(24);
        sim.clone().block_on(async { night(&store(&sim).await, &store(&sim).await).await })
    });
    let sum = |number: fn(&BackupStats) -> u64| night.stats.iter().map(number).sum::<u64>();
    let of = |name: &str| metrics.counter(name);
    assert_eq!(of("larder_backup_bytes_read"), sum(|stats| stats.bytes_read));
    assert_eq!(of("larder_backup_bytes_written"), sum(|stats| stats.bytes_written));
    assert_eq!(of("larder_backup_chunks{result=new}"), sum(|stats| stats.chunks_new));
    assert_eq!(of("larder_backup_chunks{result=known}"), sum(|stats| stats.chunks_known));
    assert_eq!(of("larder_backup_chunks{result=reused}"), sum(|stats| stats.chunks_reused));
    assert_eq!(of("larder_restore_bytes"), night.restored);
    assert_eq!(of("larder_gc_chunks_removed"), night.gc.removed.chunks);
    assert_eq!(of("larder_gc_bytes_removed"), night.gc.removed.bytes);
    assert_eq!(of("larder_sync_chunks{result=sent}"), night.sync.stats().chunks_sent);
    assert_eq!(of("larder_sync_bytes_sent"), night.sync.stats().bytes_sent);
    assert_eq!(of("larder_operations{operation=backup,outcome=ok}"), 9);
    assert_eq!(metrics.samples("larder_operation_seconds"), metrics.sum("larder_operations"));
    assert!(night.gc.removed.chunks > 0 && sum(|stats| stats.chunks_known) > 0);
    manual_names(&metrics);
}

/// The manual lists every metric.
pub(crate) fn manual_names(metrics: &Metrics) {
    let manual = include_str!("../../src/manual/observability.md");
    for name in metrics.names() {
        assert!(manual.contains(&format!("`{name}`")), "the manual does not list {name}");
    }
}

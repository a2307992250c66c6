//! An index that cannot be read, whatever is wrong with it, stops a garbage collection before anything goes (H9).

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::{Backend, MemoryBackend, PutMode, Removal};
use larder::error::{Error, ErrorKind};
use larder::format::layout::Key;
use larder::gc;
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::Method;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, WriterTarget};
use larder_testing::gc_scene::{
    at_once, back_up, check_all, chunks, collect, collected, created, data, digests, group, leave, reason,
};
use larder_testing::watched::Watched;

/// A store with garbage and two snapshots, of which the older one has the index.
struct Scene {
    faults: Arc<FaultBackend>,
    index: Key,
    memory: Arc<MemoryBackend>,
    store: Datastore,
}

async fn scene(is_bucket: bool) -> Scene {
    let memory = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
    let faults = Arc::new(FaultBackend::new(Arc::<MemoryBackend>::clone(&memory)));
    let inner: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
    let backend: Arc<dyn Backend> = Watched::of_kind(inner, is_bucket);
    let store = created(&backend).await;
    leave(&store, &[8, 9]).await;
    let snapshot = back_up(&store, "host/a", &[1, 2, 3]).await.unwrap().name().clone();
    drop(back_up(&store, "host/a", &[3, 4]).await.unwrap());
    let index = Key::Archive(snapshot, "d.img.fidx".parse().unwrap());
    Scene { faults, index, memory, store }
}

/// Makes sure that a collection is refused, that the error names the index, and that every chunk exists.
async fn refused(scene: &Scene, what: &str) -> Error {
    let error = reason(collect(&scene.store, at_once()).await).unwrap_or_else(|| panic!("{what}"));
    assert!(error.to_string().contains(&scene.index.to_string()), "{what}: {error}");
    assert_eq!(chunks(scene.memory.as_ref()).await, digests([1, 2, 3, 4, 8, 9]), "{what}");
    error
}

async fn replace(scene: &Scene, key: &Key, bytes: impl Into<Bytes>) {
    scene.memory.put(key, bytes.into(), PutMode::Replace).await.unwrap();
}

/// Proves H9.
#[test]
fn a_damaged_index_stops_the_collection() {
    for is_bucket in [false, true] {
        block_on(async {
            let scene = scene(is_bucket).await;
            let good = scene.memory.get(&scene.index, 1 << 20).await.unwrap().bytes;
            let length = good.len();
            let dynamic = {
                let backup = scene.store.backup(&group("host/s")).begin().await.unwrap();
                backup.stream("s.bin", futures::io::Cursor::new(data(&[3]))).await.unwrap();
                let name = backup.finish().await.unwrap().snapshot.name().clone();
                let key = Key::Archive(name.clone(), "s.bin.didx".parse().unwrap());
                let bytes = scene.memory.get(&key, 1 << 20).await.unwrap().bytes;
                scene.store.delete_snapshot(&name).await.unwrap();
                bytes
            };
            collect_litter(&scene).await;
            let flipped = |at: usize| {
                let mut bytes = good.to_vec();
                bytes[at] ^= 1;
                bytes
            };
            let table: Vec<(&str, Vec<u8>)> = vec![
                ("magic", flipped(0)),
                ("end of the magic", flipped(7)),
                ("first digest", flipped(4096)),
                ("last digest", flipped(length - 1)),
                ("nothing", Vec::new()),
                ("half a header", good[..2000].to_vec()),
                ("header alone", good[..4096].to_vec()),
                ("a digest less", good[..length - 32].to_vec()),
                ("a byte less", good[..length - 1].to_vec()),
                ("a byte more", [&good[..], &[0]].concat()),
                ("zeros", vec![0; length]),
                ("an index of the other kind", dynamic.to_vec()),
                ("text", b"<html>busy</html>".to_vec()),
            ];
            for (what, bytes) in table {
                replace(&scene, &scene.index, bytes).await;
                assert_eq!(refused(&scene, what).await.kind(), ErrorKind::Corrupt, "{what}");
            }
            replace(&scene, &scene.index, good).await;
            assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 2);
            assert_eq!(check_all(&scene.store).await, 2);
        });
    }
}

/// Removes what the stream left, so that what is there is known.
async fn collect_litter(scene: &Scene) {
    let known = digests([1, 2, 3, 4, 8, 9]);
    for chunk in chunks(scene.memory.as_ref()).await.difference(&known) {
        scene.memory.delete(&[Removal::any(Key::Chunk(*chunk))]).await.unwrap().remove(0).unwrap();
    }
}

/// Proves H9.
///
/// Whatever bit of an index is wrong: either it is refused, or what it names stays.
#[test]
fn a_flipped_bit_in_an_index_removes_none_of_its_chunks() {
    for step in [97, 4096] {
        block_on(async {
            let (mut at, mut refused, mut passed) = (step % 13, 0, 0);
            let length = 4096 + 3 * 32;
            while at < length {
                let scene = scene(false).await;
                let mut bytes = scene.memory.get(&scene.index, 1 << 20).await.unwrap().bytes.to_vec();
                assert_eq!(bytes.len(), length);
                bytes[at] ^= 0x80;
                replace(&scene, &scene.index, bytes).await;
                let done = reason(collect(&scene.store, at_once()).await);
                refused += u64::from(done.is_some());
                passed += u64::from(done.is_none());
                let left = chunks(scene.memory.as_ref()).await;
                assert!(left.is_superset(&digests([1, 2, 3, 4])), "byte {at}");
                at += if at < 80 { 1 } else { step };
            }
            assert!(refused > 10 && passed > 0, "{refused} {passed}");
        });
    }
}

/// Proves H9.
#[test]
fn an_unreachable_index_stops_the_collection() {
    for is_bucket in [false, true] {
        for failure in [ErrorKind::Denied, ErrorKind::Unavailable, ErrorKind::Internal] {
            block_on(async {
                let scene = scene(is_bucket).await;
                let index = scene.index.clone();
                scene
                    .faults
                    .add(Rule::on(Method::Get, Action::FailBefore(failure)).keys(move |key| *key == index));
                let error = reason(collect(&scene.store, at_once()).await).unwrap();
                assert_eq!(error.kind(), failure);
                assert_eq!(chunks(scene.memory.as_ref()).await, digests([1, 2, 3, 4, 8, 9]));
            });
        }
    }
}

/// Proves H9.
///
/// It is listed and then absent: if its snapshot is absent too, it was deleted; otherwise something is wrong.
#[test]
fn an_index_that_vanished_without_its_snapshot_stops_the_collection() {
    for finished in [true, false] {
        block_on(async {
            let scene = scene(true).await;
            let index = scene.index.clone();
            scene.faults.add(
                Rule::on(Method::Get, Action::FailBefore(ErrorKind::NotFound)).keys(move |key| *key == index),
            );
            if !finished {
                let Key::Archive(snapshot, _) = &scene.index else { unreachable!() };
                let manifest = Key::Manifest(snapshot.clone());
                scene.memory.delete(&[Removal::any(manifest)]).await.unwrap().remove(0).unwrap();
            }
            assert_eq!(refused(&scene, "vanished").await.kind(), ErrorKind::Corrupt);
            let Key::Archive(snapshot, _) = &scene.index else { unreachable!() };
            let gone = [Key::Manifest(snapshot.clone()), scene.index.clone()].map(Removal::any);
            scene.memory.delete(&gone).await.unwrap();
            scene.faults.clear();
            assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 4);
            assert_eq!(check_all(&scene.store).await, 1);
        });
    }
}

/// A snapshot that was deleted and made again meanwhile, with the same name.
#[test]
fn an_index_that_is_there_again_keeps_its_chunks() {
    for is_bucket in [false, true] {
        block_on(async {
            let scene = scene(is_bucket).await;
            let index = scene.index.clone();
            let absent = Rule::on(Method::Get, Action::FailBefore(ErrorKind::NotFound));
            scene.faults.add(absent.keys(move |key| *key == index).first(1));
            assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 2);
            assert_eq!(chunks(scene.memory.as_ref()).await, digests([1, 2, 3, 4]));
        });
    }
}

/// Proves H9.
///
/// The chunks of an unfinished snapshot are needed as long as it exists.
#[test]
fn an_unfinished_snapshot_keeps_its_chunks_and_must_be_readable() {
    block_on(async {
        let scene = scene(false).await;
        let Key::Archive(snapshot, _) = &scene.index else { unreachable!() };
        let manifest = Removal::any(Key::Manifest(snapshot.clone()));
        scene.memory.delete(&[manifest]).await.unwrap().remove(0).unwrap();
        let good = scene.memory.get(&scene.index, 1 << 20).await.unwrap().bytes;
        let mut bad = good.to_vec();
        *bad.last_mut().unwrap() ^= 1;
        replace(&scene, &scene.index, bad).await;
        // There is no manifest that could vouch for it.
        refused(&scene, "unfinished").await;
        replace(&scene, &scene.index, good).await;
        assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 2);
        assert_eq!(chunks(scene.memory.as_ref()).await, digests([1, 2, 3, 4]));
    });
}

/// Proves H22.
///
/// A backup that finds its base damaged changes nothing about what a collection does.
#[test]
fn a_missing_chunk_does_not_stop_a_collection() {
    block_on(async {
        let scene = scene(false).await;
        let lost = *digests([1]).first().unwrap();
        scene.memory.delete(&[Removal::any(Key::Chunk(lost))]).await.unwrap().remove(0).unwrap();
        let plan = gc::plan(&scene.store, at_once()).await.unwrap();
        let Key::Archive(snapshot, _) = &scene.index else { unreachable!() };
        let (damaged, count) = (&plan.summary().damaged, plan.summary().damaged_count);
        assert_eq!((plan.summary().missing, count, &damaged[0].name), (1, 1, snapshot));
        drop(plan);
        assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 2);
        let reader = scene.store.snapshot(snapshot).await.unwrap();
        let mut target = WriterTarget::new(futures::io::Cursor::new(Vec::new()));
        let restored = reader.archive("d.img.fidx").await.unwrap().copy_to(&mut target).await;
        assert!(restored.is_err());
        drop(back_up(&scene.store, "host/b", &[1]).await.unwrap());
        assert_eq!(check_all(&scene.store).await, 3);
    });
}

/// Proves H22.
///
/// Rounds of one chunk and of two find what one round of all finds.
#[test]
fn missing_chunks_are_found_in_rounds_that_fit_in_memory() {
    block_on(async {
        let scene = scene(false).await;
        for digest in digests([1, 2, 3]) {
            scene.memory.delete(&[Removal::any(Key::Chunk(digest))]).await.unwrap().remove(0).unwrap();
        }
        let mut all = Vec::new();
        for bytes in [64, 128, 1 << 20] {
            let plan = gc::plan(&scene.store, at_once().memory_bytes(bytes)).await.unwrap();
            let summary = plan.summary();
            let damaged: Vec<_> =
                summary.damaged.iter().map(|snapshot| (snapshot.name.clone(), snapshot.missing)).collect();
            all.push((summary.missing, summary.damaged_count, damaged));
        }
        assert_eq!((all[0].0, all[0].1), (3, 2));
        assert_eq!(all[0], all[2]);
        assert_eq!(all[1], all[2]);
        collected(&scene.store, at_once().memory_bytes(64)).await;
        drop(back_up(&scene.store, "host/b", &[1, 2, 3]).await.unwrap());
        assert_eq!(check_all(&scene.store).await, 3);
    });
}

/// Quarantined copies of a chunk in use stay, however many there are.
#[test]
fn all_quarantined_copies_of_a_needed_chunk_are_kept() {
    block_on(async {
        let scene = scene(false).await;
        // All are missing except for their quarantined copies.
        for digest in digests([1, 2, 3]) {
            scene.memory.delete(&[Removal::any(Key::Chunk(digest))]).await.unwrap().remove(0).unwrap();
            replace(&scene, &Key::Quarantined(digest, 0), &b"bad"[..]).await;
            replace(&scene, &Key::Quarantined(digest, 1), &b"worse"[..]).await;
        }
        let plan = gc::plan(&scene.store, at_once()).await.unwrap();
        assert_eq!((plan.summary().missing, plan.summary().damaged_count), (3, 2));
        drop(plan);
        collected(&scene.store, at_once()).await;
        for digest in digests([1, 2, 3]) {
            for number in 0..2 {
                scene.memory.head(&Key::Quarantined(digest, number)).await.unwrap();
            }
        }
        drop(back_up(&scene.store, "host/b", &[1, 2, 3]).await.unwrap());
        let report = collected(&scene.store, at_once()).await;
        assert_eq!(report.removed_quarantined.chunks, 6);
        assert_eq!(check_all(&scene.store).await, 3);
    });
}

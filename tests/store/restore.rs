//! Restores: what damage costs, and targets that hold the whole archive or do not look like it.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, AsyncSeekExt as _, Cursor};
use larder::backend::{Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, PutMode, Removal};
use larder::error::{Error, ErrorKind};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::{Call, Method, Outcome, RecordingBackend};
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::store::{
    ArchiveReader, Datastore, FileTarget, Options, RestoreTarget, SnapshotReader, WriterTarget,
};
use larder::sync::{self, SyncOptions};
use larder_testing::{noise, scratch};

const CHUNK: usize = 64 << 10;

struct Scene {
    backend: Arc<dyn Backend>,
    data: Vec<u8>,
    runtime: Arc<dyn Runtime>,
    snapshot: SnapshotReader,
    store: Datastore,
}

/// An image of ten chunks, the fourth of which is zeros.
async fn scene() -> Scene {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&runtime)));
    let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
    let mut data = noise(1, 10 * CHUNK);
    data[3 * CHUNK..4 * CHUNK].fill(0);
    let backup = store.backup(&"vm/1".parse().unwrap()).begin().await.unwrap();
    let image = backup.image("disk.img", Cursor::new(data.clone()), data.len() as u64);
    image.chunk_bytes(CHUNK as u64).await.unwrap();
    backup.blob("vm.conf", "text").await.unwrap();
    let snapshot = backup.finish().await.unwrap().snapshot;
    Scene { backend, data, runtime, snapshot, store }
}

impl Scene {
    async fn archive(&self) -> ArchiveReader {
        self.snapshot.archive("disk.img.fidx").await.unwrap()
    }

    fn chunk(&self, number: usize) -> Key {
        Key::Chunk(Digest::of(&self.data[number * CHUNK..][..CHUNK]))
    }

    async fn take(&self, key: &Key) -> Bytes {
        let kept = self.backend.get(key, 1 << 20).await.unwrap().bytes;
        self.backend.delete(&[Removal::any(key.clone())]).await.unwrap();
        kept
    }

    async fn put(&self, key: &Key, bytes: Bytes) {
        self.backend.put(key, bytes, PutMode::Replace).await.unwrap();
    }

    async fn create(&self, path: &Path) -> FileTarget {
        FileTarget::create(Arc::clone(&self.runtime), path).await.unwrap()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Proves H163.
///
/// Files of the store are read and never mapped: one that is cut by another process while it is in use is an error or nothing.
#[test]
fn truncating_an_open_store_file_is_an_error_and_not_a_crash() {
    let scratch = scratch();
    block_on(async {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let path = scratch.path().join("store");
        let backend = FsBackend::create(Arc::clone(&runtime), &path, options).await.unwrap();
        let store = Datastore::create(Arc::new(backend), Options::default()).await.unwrap();
        let data = noise(1, 4 * CHUNK);
        let backup = store.backup(&"vm/1".parse().unwrap()).begin().await.unwrap();
        let image = backup.image("disk.img", Cursor::new(data.clone()), data.len() as u64);
        image.chunk_bytes(CHUNK as u64).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let archive = snapshot.archive("disk.img.fidx").await.unwrap();
        let cut = |path: &Path, length| {
            fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        };
        cut(&path.join(snapshot.name().to_string()).join("disk.img.fidx"), 100);
        let second = archive.read_at(CHUNK as u64, CHUNK).await.unwrap();
        assert!(second == data[CHUNK..2 * CHUNK], "the index was read when the archive was opened");
        let digest = Digest::of(&data[..CHUNK]).to_string();
        cut(&path.join(".chunks").join(&digest[..4]).join(&digest), 100);
        let error = archive.read_at(0, CHUNK).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        let error = snapshot.archive("disk.img.fidx").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    });
}

#[test]
fn every_read_error_names_the_chunk_the_archive_and_the_snapshot() {
    block_on(async {
        let scene = scene().await;
        let key = scene.chunk(5);
        let Key::Chunk(digest) = key else { unreachable!() };
        let kept = scene.take(&key).await;
        for damaged in [None, Some(Bytes::from_static(b"short")), Some(kept.slice(..kept.len() - 1))] {
            if let Some(damaged) = damaged {
                scene.put(&key, damaged).await;
            }
            let mut archive = scene.archive().await;
            let mut errors = vec![
                archive.read_at(5 * CHUNK as u64 + 7, 10).await.unwrap_err(),
                archive.copy_to(&mut WriterTarget::new(Cursor::new(Vec::new()))).await.unwrap_err(),
            ];
            let streamed = archive.read_to_end(&mut Vec::new()).await.unwrap_err();
            errors.push(streamed.get_ref().unwrap().downcast_ref::<Error>().unwrap().clone());
            let to: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&scene.runtime)));
            let target = Datastore::create(to, Options::default()).await.unwrap();
            let mut plan = sync::plan(&scene.store, &target, SyncOptions::default()).await.unwrap();
            let report = plan.execute().await.unwrap();
            match &report.groups[0].snapshots[0].outcome {
                sync::SyncOutcome::Failed(error) => errors.push(error.clone()),
                other => panic!("{other:?}"),
            }
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
                let text = message(&error);
                let snapshot = scene.snapshot.name().to_string();
                for name in [&*digest.to_string(), "disk.img.fidx", &*snapshot] {
                    assert!(text.contains(name), "{text}");
                }
            }
        }
    });
}

#[test]
fn a_missing_file_of_the_manifest_is_corrupt_and_an_unknown_name_is_not_found() {
    block_on(async {
        let scene = scene().await;
        let snapshot = &scene.snapshot;
        for name in ["disk.img.fidx", "vm.conf.blob"] {
            scene.take(&Key::Archive(snapshot.name().clone(), name.parse().unwrap())).await;
        }
        let errors = [
            snapshot.archive("disk.img.fidx").await.unwrap_err(),
            snapshot.blob("vm.conf.blob").await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(message(&error).contains(&snapshot.name().to_string()), "{error:?}");
        }
        for name in ["disk.fidx", "disc.img", ""] {
            assert_eq!(snapshot.archive(name).await.unwrap_err().kind(), ErrorKind::NotFound, "{name}");
        }
        assert_eq!(snapshot.blob("other.blob").await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_stream_can_continue_after_a_corrupt_chunk() {
    block_on(async {
        let scene = scene().await;
        scene.take(&scene.chunk(2)).await;
        scene.take(&scene.chunk(9)).await;
        let mut archive = scene.archive().await;
        let (mut read, mut lost, mut position) = (Vec::new(), Vec::new(), 0);
        let mut buffer = vec![0; 10_000];
        loop {
            match archive.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => {
                    read.extend_from_slice(&buffer[..length]);
                    position += length as u64;
                }
                Err(_) => {
                    let range = archive.chunk_range(position).unwrap();
                    read.resize(usize::try_from(range.end).unwrap(), 0);
                    position = archive.seek(std::io::SeekFrom::Start(range.end)).await.unwrap();
                    lost.push(range);
                }
            }
        }
        let range = |number: usize| (number * CHUNK) as u64..((number + 1) * CHUNK) as u64;
        assert_eq!(lost, [range(2), range(9)]);
        let mut wanted = scene.data.clone();
        wanted[2 * CHUNK..3 * CHUNK].fill(0);
        wanted[9 * CHUNK..].fill(0);
        assert!(read == wanted);
        assert_eq!(archive.chunk_range(10 * CHUNK as u64), None);
    });
}

#[test]
fn a_restore_writes_all_chunks_before_a_damaged_one() {
    block_on(async {
        let scene = scene().await;
        for damaged in [9, 1, 0] {
            scene.take(&scene.chunk(damaged)).await;
            let mut target = WriterTarget::new(Cursor::new(Vec::new()));
            let error = scene.archive().await.copy_to(&mut target).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(target.into_inner().into_inner() == scene.data[..damaged * CHUNK], "{damaged}");
        }
    });
}

/// Proves H35.
///
/// Chunks are fetched ahead by tasks that end after their reader: they keep no lock.
#[test]
fn a_snapshot_can_be_deleted_as_soon_as_its_readers_are_dropped() {
    for (seed, passed) in (0..40).flat_map(|seed| [1, 3, 10].map(|passed| (seed, passed))) {
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let backend = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
            let store = Datastore::create(backend, Options::default()).await.unwrap();
            let data = noise(1, 10 * CHUNK);
            let backup = store.backup(&"vm/1".parse().unwrap()).begin().await.unwrap();
            let image = backup.image("disk.img", Cursor::new(data.clone()), data.len() as u64);
            image.chunk_bytes(CHUNK as u64).await.unwrap();
            let name = backup.finish().await.unwrap().snapshot.name().clone();
            let snapshot = store.snapshot(&name).await.unwrap();
            let mut archive = snapshot.archive("disk.img.fidx").await.unwrap();
            let mut read = vec![0; passed * CHUNK];
            archive.read_exact(&mut read).await.unwrap();
            assert!(read == data[..passed * CHUNK]);
            assert_eq!(store.delete_snapshot(&name).await.unwrap_err().kind(), ErrorKind::Busy);
            drop(snapshot);
            assert_eq!(store.delete_snapshot(&name).await.unwrap_err().kind(), ErrorKind::Busy);
            drop(archive);
            store.delete_snapshot(&name).await.unwrap();
        });
    }
}

/// Chunks that have arrived wait for the stream and leave their slot to the next one, up to four times as many.
#[test]
fn a_stream_fetches_ahead_with_as_many_requests_as_the_backend_asks_for() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let inner = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let limit = sim.parallelism().get() + inner.capabilities().in_flight;
        let slow = Arc::new(FaultBackend::new(inner));
        let backend = Arc::new(RecordingBackend::new(Arc::<FaultBackend>::clone(&slow)));
        let store = Datastore::create(Arc::<RecordingBackend>::clone(&backend), Options::default());
        let store = store.await.unwrap();
        let data = noise(1, 80 * CHUNK);
        let backup = store.backup(&"vm/1".parse().unwrap()).begin().await.unwrap();
        let image = backup.image("disk.img", Cursor::new(data.clone()), data.len() as u64);
        image.chunk_bytes(CHUNK as u64).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let mut archive = snapshot.archive("disk.img.fidx").await.unwrap();
        slow.add(Rule::on(Method::Get, Action::Delay(Duration::from_secs(1))));
        backend.reset();
        let gets = |open: bool| {
            let is_counted =
                |call: &Call| call.method == Method::Get && (!open || call.outcome == Outcome::Open);
            backend.calls().iter().filter(|call| is_counted(call)).count()
        };
        let mut read = vec![0; CHUNK];
        let mut most = 0;
        for passed in 0..80 {
            archive.read_exact(&mut read).await.unwrap();
            assert!(read == data[passed * CHUNK..][..CHUNK]);
            let ahead = (passed + 4 * limit).min(80);
            for _ in 0..100 {
                most = most.max(gets(true));
                sim.sleep(Duration::from_millis(250)).await;
            }
            assert!(passed < 10 || gets(false) == ahead, "{passed}: {} of {ahead}", gets(false));
        }
        assert_eq!(most, limit);
    });
}

/// A chunk of several MiB lies in several buffers.
#[test]
fn reads_within_a_long_chunk_are_not_cut_at_its_buffers() {
    block_on(async {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime));
        let store = Datastore::create(backend, Options::default()).await.unwrap();
        let length = 4 << 20;
        let mut data = [noise(1, length), vec![0; length], noise(2, 1_500_000)].concat();
        data[2 << 20..4 << 20].fill(0);
        let backup = store.backup(&"vm/1".parse().unwrap()).begin().await.unwrap();
        let image = backup.image("disk.img", Cursor::new(data.clone()), data.len() as u64);
        image.await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let mut archive = snapshot.archive("disk.img.fidx").await.unwrap();
        for (offset, wanted) in [(0, length), (1_000_000, 100_000), (3 << 20, length), (2 * length, length)] {
            let end = (offset + wanted).min((offset / length + 1) * length).min(data.len());
            let read = archive.read_at(offset as u64, wanted).await.unwrap();
            assert!(read == data[offset..end], "{wanted} bytes at {offset}");
            let exact = archive.read_exact_at(offset as u64, end - offset).await.unwrap();
            assert!(exact == data[offset..end], "exactly");
        }
        let mut streamed = Vec::new();
        archive.read_to_end(&mut streamed).await.unwrap();
        assert!(streamed == data);
        let mut writer = WriterTarget::new(Cursor::new(Vec::new()));
        archive.copy_to(&mut writer).await.unwrap();
        assert!(writer.into_inner().into_inner() == data);
        let directory = scratch();
        let path = directory.path().join("image");
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let mut file = FileTarget::create(runtime, &path).await.unwrap();
        archive.copy_to(&mut file).await.unwrap();
        assert!(fs::read(&path).unwrap() == data);
    });
}

#[test]
fn a_failed_restore_leaves_no_file_and_can_be_repeated() {
    let directory = larder_testing::scratch();
    let path = directory.path().join("image");
    block_on(async {
        let scene = scene().await;
        let kept = scene.take(&scene.chunk(8)).await;
        let archive = scene.archive().await;
        let mut target = scene.create(&path).await;
        assert_eq!(archive.copy_to(&mut target).await.unwrap_err().kind(), ErrorKind::Corrupt);
        let left = names(directory.path());
        assert!(left.len() == 1 && left[0].starts_with("image.restoring-"), "{left:?}");
        scene.put(&scene.chunk(8), kept).await;
        // The same target again, and then another.
        archive.copy_to(&mut target).await.unwrap();
        assert!(fs::read(&path).unwrap() == scene.data);
        drop(target);
        assert_eq!(names(directory.path()), ["image"]);
        fs::remove_file(&path).unwrap();
        let mut target = scene.create(&path).await;
        target.begin(10).await.unwrap();
        target.write_at(0, Bytes::from_static(b"0123456789")).await.unwrap();
        drop(target);
        assert_eq!(names(directory.path()), [""; 0]);
    });
}

/// Proves H168.
#[test]
fn a_restore_dropped_at_any_step_leaves_no_file_or_the_whole_file() {
    let directory = larder_testing::scratch();
    let path = directory.path().join("image");
    block_on(async {
        let scene = scene().await;
        let archive = scene.archive().await;
        let mut polls = 0;
        while polls < 1 << 20 {
            let mut target = scene.create(&path).await;
            let mut is_done = false;
            {
                let mut copy = archive.copy_to(&mut target);
                for _ in 0..polls {
                    is_done = (&mut copy).now_or_never().is_some();
                    if is_done {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            drop(target);
            polls += polls / 4 + 1;
            if is_done {
                assert!(fs::read(&path).unwrap() == scene.data);
                assert_eq!(names(directory.path()), ["image"]);
                return;
            }
            // A job that was under way ends first.
            let mut waits = 0;
            while !names(directory.path()).is_empty() {
                waits += 1;
                assert!(waits < 1_000_000, "it stays: {:?}", names(directory.path()));
                if path.exists() {
                    assert!(fs::read(&path).unwrap() == scene.data);
                    fs::remove_file(&path).unwrap();
                }
                std::thread::yield_now();
            }
        }
        panic!("it never ends");
    });
}

#[test]
fn a_file_that_appears_during_a_restore_is_not_replaced() {
    let directory = larder_testing::scratch();
    let path = directory.path().join("image");
    block_on(async {
        let scene = scene().await;
        let mut target = scene.create(&path).await;
        fs::write(&path, "mine").unwrap();
        let error = scene.archive().await.copy_to(&mut target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stream);
        drop(target);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(directory.path()), ["image"]);
        // Nor is a link that leads nowhere.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let refused = FileTarget::create(Arc::clone(&scene.runtime), &link).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    });
}

#[test]
fn temporary_files_of_a_killed_restore_do_not_block_the_next_one() {
    let directory = larder_testing::scratch();
    let path = directory.path().join("image");
    block_on(async {
        let scene = scene().await;
        std::mem::forget(scene.create(&path).await);
        assert_eq!(names(directory.path()).len(), 1);
        scene.archive().await.copy_to(&mut scene.create(&path).await).await.unwrap();
        assert!(fs::read(&path).unwrap() == scene.data);
    });
}

#[test]
fn overwriting_a_file_writes_holes_and_truncates_only_on_request() {
    let directory = larder_testing::scratch();
    let path = directory.path().join("image");
    block_on(async {
        let scene = scene().await;
        let archive = scene.archive().await;
        let length = scene.data.len();
        for (before, is_cut, wanted) in [
            (0, false, length),
            (length / 2, false, length),
            (length + 9, false, length + 9),
            (length + 9, true, length),
        ] {
            fs::write(&path, noise(2, before)).unwrap();
            let target = FileTarget::open(Arc::clone(&scene.runtime), &path).await.unwrap();
            let mut target = if is_cut { target.truncate() } else { target };
            archive.copy_to(&mut target).await.unwrap();
            let restored = fs::read(&path).unwrap();
            assert!(restored.len() == wanted && restored[..length] == scene.data, "{before} {is_cut}");
        }
        let refused = FileTarget::open(Arc::clone(&scene.runtime), "/dev/null").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    });
}

/// Runs a program; `None` with a line if it cannot do that here.
fn tool(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => {
            eprintln!("skipped: {program}: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("skipped: {program}: {error}");
            None
        }
    }
}

/// Undoes something with a program.
struct Undo(&'static str, Vec<String>);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = Command::new(self.0).args(&self.1).status();
    }
}

#[test]
fn a_restore_onto_a_full_disk_leaves_no_complete_looking_file() {
    let directory = larder_testing::scratch();
    let mount = directory.path().to_str().unwrap();
    if tool("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", mount]).is_none() {
        return;
    }
    let _mounted = Undo("umount", vec![mount.to_owned()]);
    let path = directory.path().join("image");
    block_on(async {
        let scene = scene().await;
        let mut target = scene.create(&path).await;
        let error = scene.archive().await.copy_to(&mut target).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Stream && message(&error).contains("space"), "{error:?}");
        drop(target);
        assert_eq!(names(directory.path()), [""; 0]);
    });
}

#[test]
fn a_device_smaller_than_the_archive_is_not_written() {
    let directory = larder_testing::scratch();
    let file = directory.path().join("disk");
    block_on(async {
        let scene = scene().await;
        let (archive, length) = (scene.archive().await, scene.data.len());
        for (size, fits) in [(length - 512, false), (length, true), (length + 4096, true)] {
            let before = noise(3, size);
            fs::write(&file, &before).unwrap();
            let Some(device) = tool("losetup", &["-f", "--show", file.to_str().unwrap()]) else { return };
            let device = device.trim().to_owned();
            let attached = Undo("losetup", vec!["-d".to_owned(), device.clone()]);
            let mut target = FileTarget::open(Arc::clone(&scene.runtime), &device).await.unwrap();
            let copied = archive.copy_to(&mut target).await;
            assert_eq!(copied.is_ok(), fits, "{copied:?}");
            drop((target, attached));
            let after = fs::read(&file).unwrap();
            if fits {
                assert!(after[..length] == scene.data && after[length..] == before[length..]);
            } else {
                assert!(after == before);
            }
        }
    });
}

#[test]
fn an_archive_opens_by_its_name_with_and_without_suffix() {
    block_on(async {
        let Scene { store, .. } = scene().await;
        let backup = store.backup(&"vm/2".parse().unwrap()).begin().await.unwrap();
        backup.image("disk.img", Cursor::new(vec![1; CHUNK]), CHUNK as u64).await.unwrap();
        backup.stream("root.tar", Cursor::new(vec![2; 10])).await.unwrap();
        backup.blob("vm.conf", "text").await.unwrap();
        backup.stream("both", Cursor::new(vec![3; 10])).await.unwrap();
        backup.image("both", Cursor::new(vec![4; CHUNK]), CHUNK as u64).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        for (given, full) in [
            ("disk.img", "disk.img.fidx"),
            ("disk.img.fidx", "disk.img.fidx"),
            ("root.tar", "root.tar.didx"),
            ("root.tar.didx", "root.tar.didx"),
            ("both.didx", "both.didx"),
        ] {
            let archive = snapshot.archive(given).await.unwrap();
            assert_eq!(archive.name().as_str(), full);
        }
        for given in ["vm.conf", "vm.conf.blob"] {
            assert_eq!(snapshot.blob(given).await.unwrap(), "text");
        }
        let error = snapshot.archive("both").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.source().unwrap().to_string().contains("both.didx"));
        for (given, kind) in [
            ("disk", ErrorKind::NotFound),
            ("vm.conf", ErrorKind::NotFound),
            ("vm.conf.blob", ErrorKind::InvalidInput),
            ("../disk.img", ErrorKind::NotFound),
        ] {
            assert_eq!(snapshot.archive(given).await.unwrap_err().kind(), kind, "{given}");
        }
        let error = snapshot.blob("disk.img").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let there = error.source().unwrap().to_string();
        assert!(there.contains("disk.img.fidx, ") && there.contains("vm.conf.blob"), "{there}");
    });
}

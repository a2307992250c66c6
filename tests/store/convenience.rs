//! Conveniences that programs would otherwise write by hand.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, AsyncSeekExt as _, Cursor};
use larder::backend::MemoryBackend;
use larder::chunker::RollingChunker;
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::name::GroupName;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{BaseUse, Datastore, DirtyMap, FileSource, Options, Scope, SnapshotReader};
use larder::verify;
use larder_testing::places::everywhere;
use larder_testing::{noise, read_to_end, scratch};

const CHUNK: u64 = 64 << 10;

fn group() -> GroupName {
    "vm/1".parse().unwrap()
}

async fn memory(runtime: &Arc<dyn Runtime>) -> Datastore {
    let backend = Arc::new(MemoryBackend::new(Arc::clone(runtime)));
    Datastore::create(backend, Options::default()).await.unwrap()
}

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

/// A snapshot with an image of small chunks and a stream.
async fn back_up(store: &Datastore, data: &[u8]) -> SnapshotReader {
    let backup = store.backup(&group()).begin().await.unwrap();
    backup.image("d.img", Cursor::new(data), data.len() as u64).chunk_bytes(CHUNK).await.unwrap();
    backup.stream("s.tar", Cursor::new(data)).await.unwrap();
    backup.finish().await.unwrap().snapshot
}

async fn contents(snapshot: &SnapshotReader, archive: &str) -> Vec<u8> {
    read_to_end(&mut snapshot.archive(archive).await.unwrap()).await.unwrap()
}

#[test]
fn a_backup_builds_on_a_base_if_it_is_usable() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(1, 8 * usize::try_from(CHUNK).unwrap());
            // The first backup has no base, and its dirty map says nothing.
            let none = store.latest_snapshot(&group()).await.unwrap();
            assert!(none.is_none());
            let backup = store.backup(&group()).begin().await.unwrap();
            let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(CHUNK);
            let summary = image.base_if_usable(none.as_ref()).dirty(DirtyMap::new()).await.unwrap();
            assert_eq!((summary.base, summary.chunks), (BaseUse::None, 8));
            let first = backup.finish().await.unwrap();
            assert_eq!(first.summary.archives, [summary]);
            assert_eq!(first.summary.stats.bytes_read, data.len() as u64);
            assert_eq!(&first.summary.name, first.snapshot.name());

            let base = store.latest_snapshot(&group()).await.unwrap();
            assert_eq!(base.as_ref().unwrap().name(), first.snapshot.name());
            let backup = store.backup(&group()).begin().await.unwrap();
            let image = |name: &str, chunk| {
                let image = backup.image(name, Cursor::new(&data), data.len() as u64).chunk_bytes(chunk);
                image.base_if_usable(base.as_ref()).dirty(DirtyMap::new())
            };
            assert_eq!(image("d.img", CHUNK).await.unwrap().base, BaseUse::Used);
            assert_eq!(backup.stats().chunks_reused, 8, "nothing was read");
            // A disk that is new in the machine.
            assert_eq!(image("new.img", CHUNK).await.unwrap().base, BaseUse::Missing);
            let stream =
                backup.stream("s.tar", Cursor::new(&data)).chunker(Box::new(RollingChunker::default()));
            assert_eq!(stream.base_if_usable(base.as_ref()).await.unwrap().base, BaseUse::Missing);
            let second = backup.finish().await.unwrap().snapshot;
            for archive in ["d.img", "new.img", "s.tar"] {
                assert!(contents(&second, archive).await == data, "{archive}");
            }

            // Chunks of another size: the dirty map says nothing about the whole image.
            let backup = store.backup(&group()).begin().await.unwrap();
            let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(CHUNK / 2);
            let image = image.base_if_usable(Some(&second)).dirty(DirtyMap::new());
            assert_eq!(image.await.unwrap().base, BaseUse::OtherChunkSize);
            let third = backup.finish().await.unwrap().snapshot;
            assert!(contents(&third, "d.img").await == data);
        })
    });
}

/// The manifest of a snapshot whose archive is encrypted, or which failed verification, is written past the rules of the store.
#[test]
fn a_base_that_failed_verification_or_is_damaged_means_a_full_backup() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(2, 4 * usize::try_from(CHUNK).unwrap());
            let failed = back_up(&store, &data).await;
            let chunk = Digest::of(&data[..usize::try_from(CHUNK).unwrap()]).to_string();
            let path = format!(".chunks/{}/{chunk}", &chunk[..4]);
            let mut bytes = place.read(&path).await.unwrap().to_vec();
            bytes[50] ^= 1;
            place.write(&path, bytes).await;
            let mut plan =
                verify::plan(&store, &Scope::Store, verify::VerifyOptions::default()).await.unwrap();
            assert!(!plan.execute().await.unwrap().is_clean());
            let backup = store.backup(&group()).begin().await.unwrap();
            let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(CHUNK);
            let summary = image.base_if_usable(Some(&failed)).dirty(DirtyMap::new()).await.unwrap();
            assert_eq!(summary.base, BaseUse::FailedVerification);
            let healed = backup.finish().await.unwrap().snapshot;
            assert!(contents(&healed, "d.img").await == data);

            let base = back_up(&store, &data).await;
            let path = base.name().to_string();
            let index = place.read(&format!("{path}/d.img.fidx")).await.unwrap();
            place.write(&format!("{path}/d.img.fidx"), index.slice(..index.len() - 1)).await;
            let backup = store.backup(&group()).begin().await.unwrap();
            let image =
                |name: &str| backup.image(name, Cursor::new(&data), data.len() as u64).chunk_bytes(CHUNK);
            let required = image("d.img").base(&base).await.unwrap_err();
            assert_eq!(required.kind(), ErrorKind::Corrupt);
            let summary = image("d.img").base_if_usable(Some(&base)).dirty(DirtyMap::new()).await.unwrap();
            assert_eq!(summary.base, BaseUse::Damaged);
            let finished = backup.finish().await.unwrap();
            assert_eq!(finished.summary.archives[0].base.to_string(), "the index in the base is damaged");
            assert!(contents(&finished.snapshot, "d.img").await == data);
        })
    });
}

#[test]
fn a_base_of_another_store_is_always_an_error() {
    let runtime = runtime();
    block_on(async {
        let (one, other) = (memory(&runtime).await, memory(&runtime).await);
        let base = back_up(&one, &noise(3, 1000)).await;
        let backup = other.backup(&group()).begin().await.unwrap();
        let refused = backup.stream("s.tar", Cursor::new([1])).base_if_usable(Some(&base)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn snapshots_are_found_by_their_time() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            for seconds in [1000, 2000, 3000] {
                let backup = store.backup(&group()).time(at(seconds)).begin().await.unwrap();
                backup.blob("a.conf", "text").await.unwrap();
                backup.finish().await.unwrap();
            }
            for (until, found) in [(999, None), (1000, Some(1000)), (2999, Some(2000)), (9999, Some(3000))] {
                let snapshot = store.snapshot_at(&group(), at(until)).await.unwrap();
                let time = snapshot.map(|snapshot| SystemTime::from(snapshot.name().time()));
                assert_eq!(time, found.map(at), "{until}");
            }
            let latest = store.latest_snapshot(&group()).await.unwrap().unwrap();
            assert_eq!(SystemTime::from(latest.name().time()), at(3000));
        })
    });
}

/// Proves H53.
///
/// A clock that was in the future once ends all later backups, and the error says so. They are possible on request, and never
/// replace a snapshot.
#[test]
fn a_time_before_the_newest_snapshot_has_to_be_allowed() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let future = SystemTime::UNIX_EPOCH + Duration::from_secs(32_000_000_000);
            let backup = store.backup(&group()).time(future).begin().await.unwrap();
            backup.blob("a.conf", "future").await.unwrap();
            backup.finish().await.unwrap();
            let refused = store.backup(&group()).begin().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict);
            let text = format!("{:?}", std::error::Error::source(&refused).map(ToString::to_string));
            assert!(text.contains("the clock of this host says") && text.contains("2984"), "{text}");
            let earlier = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            let refused = store.backup(&group()).time(earlier).begin().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);

            for time in [None, Some(earlier)] {
                let builder = store.backup(&group()).allow_earlier();
                let builder = if let Some(time) = time { builder.time(time) } else { builder };
                let backup = builder.begin().await.unwrap();
                backup.blob("a.conf", "now").await.unwrap();
                let made = backup.finish().await.unwrap().snapshot;
                let again = store.backup(&group()).allow_earlier().time(made.name().time().into());
                assert_eq!(again.begin().await.unwrap_err().kind(), ErrorKind::AlreadyExists);
            }
            assert_eq!(store.snapshots(&group()).await.unwrap().len(), 3);
            let latest = store.latest_snapshot(&group()).await.unwrap().unwrap();
            assert_eq!(latest.blob("a.conf").await.unwrap(), "future");
        })
    });
}

#[test]
fn a_range_is_read_across_chunks() {
    let runtime = runtime();
    block_on(async {
        let store = memory(&runtime).await;
        let data = noise(4, 5 * usize::try_from(CHUNK).unwrap() + 17);
        let snapshot = back_up(&store, &data).await;
        let archive = snapshot.archive("d.img").await.unwrap();
        let chunk = usize::try_from(CHUNK).unwrap();
        for (offset, length) in [
            (0, 0),
            (0, 1),
            (chunk - 1, 2),
            (10, 3 * chunk),
            (0, data.len()),
            (data.len() - 1, 1),
            (data.len(), 0),
        ] {
            let read = archive.read_exact_at(offset as u64, length).await.unwrap();
            assert!(read == data[offset..offset + length], "{offset} {length}");
        }
        for (offset, length) in [(data.len() as u64, 1), (0, data.len() + 1), (u64::MAX, 1), (1 << 40, 0)] {
            let beyond = archive.read_exact_at(offset, length).await.unwrap_err();
            assert_eq!(beyond.kind(), ErrorKind::InvalidInput, "{offset} {length}");
        }
    });
}

#[test]
fn an_empty_archive_is_refused_by_its_name() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group()).begin().await.unwrap();
            let none = || Cursor::new(Vec::new());
            let refused = [
                backup.stream("dump.bin", none()).await.unwrap_err(),
                backup.image("dump.img", none(), None).await.unwrap_err(),
                // Before anything is read, which would be an error here too.
                backup.image("dump.img", Cursor::new([1]), 0).await.unwrap_err(),
                backup.image_writer("dump.img", 0).begin().await.map(drop).unwrap_err(),
            ];
            for error in refused {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains("dump."), "{error}");
            }
            // The name is free again.
            backup.blob("dump.bin.blob", Bytes::new()).await.unwrap();
            backup.image("dump.img", Cursor::new([1]), 1).await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(snapshot.blob("dump.bin").await.unwrap(), "");
        })
    });
}

/// Returns `true` if holes of a file are known: on ext4, XFS, Btrfs and tmpfs.
fn tells_holes(path: &Path) -> bool {
    let found = rustix::fs::statfs(path).unwrap().f_type;
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994].contains(&found)
}

#[test]
fn holes_of_a_file_are_not_read() {
    let (runtime, scratch) = (runtime(), scratch());
    let path = scratch.path().join("sparse.img");
    let (chunk, chunks) = (usize::try_from(CHUNK).unwrap(), 1000);
    let file = File::create(&path).unwrap();
    let parts =
        [(3 * CHUNK + 5, noise(5, 3 * chunk)), (500 * CHUNK, noise(6, 10)), (700 * CHUNK - 1, vec![9; 2])];
    for (offset, bytes) in &parts {
        file.write_all_at(bytes, *offset).unwrap();
    }
    // The last chunk is a short one, in a hole.
    file.set_len(chunks * CHUNK + 3).unwrap();
    let expected = fs::read(&path).unwrap();
    block_on(async {
        let store = memory(&runtime).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        let source = FileSource::open(Arc::clone(&runtime), &path).await.unwrap();
        assert_eq!(source.size(), expected.len() as u64);
        let image = backup.image_file("sparse.img", source).chunk_bytes(CHUNK).await.unwrap();
        assert_eq!((image.size, image.chunks), (expected.len() as u64, chunks + 1));
        let stats = backup.stats();
        // Four chunks with the first part, one with the second, two with the third, and the short one.
        if tells_holes(&path) {
            assert!(stats.bytes_read <= 8 * CHUNK + 3, "{stats:?}");
        }
        assert_eq!(stats.chunks_new + stats.chunks_known, chunks + 1);
        let base = backup.finish().await.unwrap().snapshot;
        assert!(contents(&base, "sparse.img").await == expected);

        // With a base and dirty extents, and as a stream.
        file.write_all_at(&[7], 900 * CHUNK).unwrap();
        let expected = fs::read(&path).unwrap();
        let backup = store.backup(&group()).begin().await.unwrap();
        let source = FileSource::open(Arc::clone(&runtime), &path).await.unwrap();
        let changed = std::iter::once(900 * CHUNK..900 * CHUNK + 1).collect();
        let image = backup.image_file("sparse.img", source).chunk_bytes(CHUNK).base(&base).dirty(changed);
        image.await.unwrap();
        assert_eq!(backup.stats().bytes_read, CHUNK);
        let source = FileSource::open(Arc::clone(&runtime), &path).await.unwrap();
        backup.stream("sparse.bin", source).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        for archive in ["sparse.img", "sparse.bin"] {
            assert!(contents(&snapshot, archive).await == expected, "{archive}");
        }
    });
}

#[test]
fn a_file_is_read_from_any_position() {
    let (runtime, scratch) = (runtime(), scratch());
    let path = scratch.path().join("file");
    let data = noise(7, (5 << 20) + 123);
    fs::write(&path, &data).unwrap();
    block_on(async {
        let mut source = FileSource::open(Arc::clone(&runtime), &path).await.unwrap();
        assert!(read_to_end(&mut source).await.unwrap() == data);
        for offset in [0, 1, (2 << 20) - 1, 2 << 20, 5 << 20, data.len() - 1, data.len(), 1 << 30] {
            source.seek(std::io::SeekFrom::Start(offset as u64)).await.unwrap();
            let mut part = vec![0; 100];
            let length = source.read(&mut part).await.unwrap();
            let expected = data.get(offset..).unwrap_or_default();
            assert!(length > 0 || expected.is_empty(), "{offset}");
            assert!(part[..length] == expected[..length], "{offset}");
        }
        // A file that becomes shorter is an error, and one that grows ends where it ended.
        let mut source = FileSource::open(Arc::clone(&runtime), &path).await.unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4 << 20).unwrap();
        let shorter = read_to_end(&mut source).await.unwrap_err();
        assert_eq!(shorter.kind(), std::io::ErrorKind::UnexpectedEof);
        let mut source = FileSource::open(Arc::clone(&runtime), &path).await.unwrap();
        File::options().write(true).open(&path).unwrap().set_len(6 << 20).unwrap();
        assert_eq!(read_to_end(&mut source).await.unwrap().len(), 4 << 20);
        let directory = FileSource::open(runtime, scratch.path()).await.unwrap_err();
        assert_eq!(directory.kind(), ErrorKind::InvalidInput);
    });
}

#[cfg(feature = "tokio")]
#[test]
fn readers_and_writers_of_tokio_need_no_adapter() {
    use std::io::SeekFrom;

    use larder::rt::TokioRuntime;
    use larder::store::WriterTarget;
    use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let data = noise(8, 6 * usize::try_from(CHUNK).unwrap());
    tokio.block_on(async {
        let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::current().unwrap());
        let store = memory(&runtime).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        let cursor = || std::io::Cursor::new(data.clone());
        backup.stream_tokio("s.tar", cursor()).await.unwrap();
        let size = data.len() as u64;
        backup.image_tokio("d.img", cursor(), size).chunk_bytes(CHUNK).await.unwrap();
        let base = backup.finish().await.unwrap().snapshot;
        let backup = store.backup(&group()).begin().await.unwrap();
        let changed = std::iter::once(CHUNK..2 * CHUNK).collect();
        let image = backup.image_tokio("d.img", cursor(), size).chunk_bytes(CHUNK).base(&base).dirty(changed);
        image.await.unwrap();
        assert_eq!(backup.stats().bytes_read, CHUNK, "it moves to the changed part");
        let snapshot = backup.finish().await.unwrap().snapshot;
        let mut archive = snapshot.archive("d.img").await.unwrap();
        let mut target = WriterTarget::tokio(Vec::new());
        archive.copy_to(&mut target).await.unwrap();
        assert!(target.into_inner().into_inner() == data);

        let mut part = [0; 10];
        let mut buffer = ReadBuf::new(&mut part);
        std::pin::Pin::new(&mut archive).start_seek(SeekFrom::Start(CHUNK - 5)).unwrap();
        let moved = std::future::poll_fn(|context| std::pin::Pin::new(&mut archive).poll_complete(context));
        assert_eq!(moved.await.unwrap(), CHUNK - 5);
        while buffer.remaining() > 0 {
            let read = |context: &mut std::task::Context<'_>| {
                AsyncRead::poll_read(std::pin::Pin::new(&mut archive), context, &mut buffer)
            };
            std::future::poll_fn(read).await.unwrap();
        }
        let start = usize::try_from(CHUNK).unwrap() - 5;
        assert_eq!(part, data[start..start + 10]);
    });
}

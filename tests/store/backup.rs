//! Backing up and restoring, on every runtime and backend; in the bucket of a server that is named (see `tests/support/bucket.rs`), if one is.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::io::{AsyncReadExt as _, AsyncSeekExt as _, Cursor};
use larder::Observer;
use larder::backend::LockReach;
use larder::chunker::{Chunker, FixedChunker, RollingChunker};
use larder::error::ErrorKind;
use larder::format::name::{AuthId, GroupName, SnapshotName};
use larder::internal::manifest::counted_chunks;
use larder::store::{
    ArchiveEvent, Datastore, DirtyMap, FileTarget, Protection, SnapshotReader, SnapshotState, WriterTarget,
};
use larder_testing::places::{everywhere, everywhere_loose};
use larder_testing::{noise, read_to_end};

const CHUNK: u64 = 64 << 10;

/// Where a store has a chunk.
fn chunk_path(digest: &str) -> String {
    format!(".chunks/{}/{digest}", &digest[..4])
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn small_chunks() -> Box<dyn Chunker> {
    Box::new(RollingChunker::new(64 << 10).unwrap())
}

async fn restore(snapshot: &SnapshotReader, archive: &str) -> Vec<u8> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive(archive).await.unwrap().copy_to(&mut target).await.unwrap();
    target.into_inner().into_inner()
}

/// Data with noise, repetition and holes.
fn mixed(seed: u64, length: usize) -> Vec<u8> {
    let mut data = noise(seed, length);
    let third = length / 3;
    data[third..third + third / 2].fill(0);
    data.copy_within(..third / 2, 2 * third);
    data
}

async fn round_trip(store: &Datastore) {
    let group = group("host/a");
    let data = mixed(1, 1_000_003);
    let backup = store.backup(&group).begin().await.unwrap();
    assert_eq!(store.snapshots(&group).await.unwrap(), [], "nothing is visible before finish");
    let (stream, image, blob) = futures::join!(
        async { backup.stream("a.bin", Cursor::new(&data)).chunker(small_chunks()).await.unwrap() },
        async {
            backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(CHUNK).await.unwrap()
        },
        async { backup.blob("c.conf", &b"text"[..]).await.unwrap() },
    );
    assert_eq!((stream.size, image.size, blob.size), (1_000_003, 1_000_003, 4));
    backup.client_log("log").await.unwrap();
    backup.set_notes("note\nmore");
    let stats = backup.stats();
    assert_eq!(stats.bytes_read, 2 * 1_000_003 + 4 + 3);
    assert_eq!(stats.chunks_new + stats.chunks_known, stream.chunks + image.chunks);
    let snapshot = backup.finish().await.unwrap().snapshot;
    let found = store.snapshots(&group).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].state, found[0].has_client_log, found[0].files.len()),
        (SnapshotState::Finished, true, 3)
    );
    for snapshot in [snapshot, store.snapshot(&found[0].name).await.unwrap()] {
        assert!(restore(&snapshot, "a.bin.didx").await == data);
        assert!(restore(&snapshot, "d.img.fidx").await == data);
        assert_eq!(snapshot.blob("c.conf.blob").await.unwrap(), "text");
        assert_eq!(snapshot.client_log().await.unwrap().unwrap(), "log");
        assert_eq!(snapshot.manifest().notes(), Some("note\nmore"));
        read_in_pieces(&snapshot, &data).await;
    }
}

async fn read_in_pieces(snapshot: &SnapshotReader, data: &[u8]) {
    let mut reader = snapshot.archive("d.img.fidx").await.unwrap();
    assert!(read_to_end(&mut reader).await.unwrap() == data);
    for start in [0, 65_535, 65_536, 700_000, 1_000_002] {
        reader.seek(std::io::SeekFrom::Start(start as u64)).await.unwrap();
        let mut part = vec![0; (data.len() - start).min(100_000)];
        reader.read_exact(&mut part).await.unwrap();
        assert!(part == data[start..start + part.len()], "{start}");
        let piece = reader.read_at(start as u64, 1000).await.unwrap();
        assert!(!piece.is_empty() && piece == data[start..start + piece.len()]);
    }
    assert_eq!(reader.read_at(1_000_003, 10).await.unwrap(), "");
    assert_eq!(reader.seek(std::io::SeekFrom::End(5)).await.unwrap(), 1_000_008);
    assert_eq!(reader.read(&mut [0; 10]).await.unwrap(), 0);
    assert!(reader.seek(std::io::SeekFrom::Current(-2_000_000)).await.is_err());
}

#[test]
fn a_restore_returns_the_bytes_that_were_backed_up() {
    everywhere(|place| Box::pin(async move { round_trip(&place.store().await).await }));
}

#[test]
fn a_backup_with_a_base_stores_no_known_chunk_and_reads_no_clean_extent() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("vm/100");
            let mut data = noise(2, 40 * CHUNK as usize + 17);
            let size = data.len() as u64;
            let backup = store.backup(&group).begin().await.unwrap();
            backup.image("d.img", Cursor::new(&data), size).chunk_bytes(CHUNK).await.unwrap();
            backup.stream("s.bin", Cursor::new(&data)).chunker(small_chunks()).await.unwrap();
            let base = backup.finish().await.unwrap().snapshot;

            data[200_000..200_010].fill(1);
            let backup = store.backup(&group).begin().await.unwrap();
            let map: DirtyMap = std::iter::once(200_000..200_010).collect();
            let image = backup.image("d.img", Cursor::new(&data), size).chunk_bytes(CHUNK);
            image.base(&base).dirty(map).await.unwrap();
            let stats = backup.stats();
            assert_eq!((stats.bytes_read, stats.chunks_new, stats.chunks_reused), (CHUNK, 1, 40));
            backup.stream("s.bin", Cursor::new(&data)).base(&base).chunker(small_chunks()).await.unwrap();
            let stats = backup.stats();
            assert!(stats.chunks_new <= 4, "{stats:?}");
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert!(restore(&snapshot, "d.img.fidx").await == data);
            assert!(restore(&snapshot, "s.bin.didx").await == data);
            assert_eq!(counted_chunks(snapshot.manifest()), Some(stats.chunks_new));
        })
    });
}

#[test]
fn an_image_is_written_in_any_order_and_completed_from_its_base() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("vm/100");
            let mut data = mixed(3, 10 * CHUNK as usize + 100);
            let size = data.len() as u64;
            let backup = store.backup(&group).begin().await.unwrap();
            let mut image = backup.image_writer("d.img", size).chunk_bytes(CHUNK).begin().await.unwrap();
            let mut parts: Vec<_> = (0..data.len()).step_by(50_000).collect();
            parts.reverse();
            parts.swap(1, 7);
            for start in parts {
                let end = data.len().min(start + 50_000);
                image.write_at(start as u64, Bytes::copy_from_slice(&data[start..end])).await.unwrap();
            }
            image.finish().await.unwrap();
            let base = backup.finish().await.unwrap().snapshot;
            assert!(restore(&base, "d.img.fidx").await == data);

            let backup = store.backup(&group).begin().await.unwrap();
            let mut image =
                backup.image_writer("d.img", size).chunk_bytes(CHUNK).base(&base).begin().await.unwrap();
            data[100_000..100_500].fill(9);
            image.write_at(100_000, Bytes::from(vec![9; 500])).await.unwrap();
            data[4 * CHUNK as usize..6 * CHUNK as usize].fill(0);
            image.write_zeros(4 * CHUNK, 2 * CHUNK).await.unwrap();
            image.finish().await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert!(restore(&snapshot, "d.img.fidx").await == data);
        })
    });
}

/// The base would supply the rest of the zeros.
#[test]
fn an_image_with_a_dropped_write_cannot_be_finished() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("vm/1");
            // Zeros yield after 1,024 chunks.
            let (small, size) = (4096, 1100 * 4096);
            let backup = store.backup(&group).begin().await.unwrap();
            backup.image("d.img", Cursor::new(noise(1, 1100 * 4096)), size).chunk_bytes(small).await.unwrap();
            let base = backup.finish().await.unwrap().snapshot;
            let backup = store.backup(&group).begin().await.unwrap();
            // The backup has a chunk of zeros then, and enters others without storing them.
            backup.image("zeros.img", Cursor::new([0; 4096]), small).chunk_bytes(small).await.unwrap();
            let image = backup.image_writer("d.img", size).chunk_bytes(small).base(&base);
            let mut image = image.begin().await.unwrap();
            let mut zeros = Box::pin(image.write_zeros(0, size));
            assert!(futures::poll!(&mut zeros).is_pending());
            drop(zeros);
            let again = image.write_at(size - small, Bytes::from_static(&[1; 4096])).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::InvalidInput);
            assert_eq!(image.finish().await.unwrap_err().kind(), ErrorKind::InvalidInput);
            backup.abort().await.unwrap();
        })
    });
}

/// Proves H172.
#[test]
fn an_image_with_a_missing_range_is_refused() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group("vm/1")).begin().await.unwrap();
            let mut image = backup.image_writer("d.img", 3 * CHUNK).chunk_bytes(CHUNK).begin().await.unwrap();
            image.write_at(0, Bytes::from(vec![1; CHUNK as usize])).await.unwrap();
            image.write_at(2 * CHUNK, Bytes::from(vec![1; 10])).await.unwrap();
            let again = image.write_at(10, Bytes::from_static(b"x")).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::InvalidInput, "a complete chunk does not change");
            let beyond = image.write_at(3 * CHUNK - 1, Bytes::from_static(b"xy")).await.unwrap_err();
            assert_eq!(beyond.kind(), ErrorKind::InvalidInput);
            assert_eq!(image.finish().await.unwrap_err().kind(), ErrorKind::InvalidInput);
            backup.abort().await.unwrap();
            assert_eq!(store.groups(&larder::format::name::Namespace::root()).await.unwrap(), []);
        })
    });
}

/// Bytes of memory that was used before must not get into a backup.
#[test]
fn a_reader_that_claims_more_than_it_was_asked_for_is_refused() {
    struct Lies;
    impl futures::io::AsyncRead for Lies {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut [u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Ok(buffer.len() + 1))
        }
    }
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group("vm/1")).begin().await.unwrap();
            let stream = backup.stream("a.bin", Lies).await.unwrap_err();
            let image = backup.image("a.img", Lies, CHUNK).chunk_bytes(CHUNK).await.unwrap_err();
            for error in [stream, image] {
                assert_eq!(error.kind(), ErrorKind::Stream);
            }
        })
    });
}

#[test]
fn an_image_of_another_size_than_declared_is_refused() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(4, 3 * CHUNK as usize);
            let backup = store.backup(&group("vm/1")).begin().await.unwrap();
            for size in [3 * CHUNK - 1, 3 * CHUNK + 1, 2 * CHUNK, 4 * CHUNK] {
                let error =
                    backup.image("d.img", Cursor::new(&data), size).chunk_bytes(CHUNK).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Stream, "{size}");
            }
            for length in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
                let name = format!("d{length}.img");
                let image =
                    backup.image(name, Cursor::new(&data[..length as usize]), None).chunk_bytes(CHUNK);
                assert_eq!(image.await.unwrap().size, length);
            }
            let nothing = backup.image("e.img", Cursor::new(b""), None).await.unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::InvalidInput);
            assert!(backup.stream("e.bin", Cursor::new(b"")).await.is_err());
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(snapshot.manifest().files().len(), 5, "what failed is not listed");
            assert!(restore(&snapshot, "d65537.img.fidx").await == data[..65_537]);
        })
    });
}

/// Proves H39.
#[test]
fn archive_names_must_be_valid_and_unique() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group("host/a")).begin().await.unwrap();
            let long = "x".repeat(220);
            for name in
                ["", "..", "../x", "/x", "a/b", "x.fidx", "index.json", "client.log", ".x", "ä", &long]
            {
                let error = backup.blob(name, "x").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
            }
            backup.blob("a.conf", "x").await.unwrap();
            assert_eq!(backup.blob("a.conf.blob", "y").await.unwrap_err().kind(), ErrorKind::InvalidInput);
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(snapshot.manifest().files().len(), 1);
        })
    });
}

/// Proves H37.
#[test]
fn an_archive_whose_source_fails_is_not_in_the_snapshot() {
    struct Failing(u64);
    impl futures::io::AsyncRead for Failing {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut [u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            self.0 = self.0.saturating_sub(buffer.len() as u64);
            std::task::Poll::Ready(if self.0 == 0 {
                Err(std::io::ErrorKind::ConnectionReset.into())
            } else {
                Ok(buffer.len())
            })
        }
    }
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group("host/a")).begin().await.unwrap();
            let error = backup.stream("a.bin", Failing(3_000_000)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Stream);
            assert_eq!(error.subject(), Some("a.bin.didx"));
            assert!(std::error::Error::source(&error).is_some());
            backup.stream("a.bin", Cursor::new(b"second try")).await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(restore(&snapshot, "a.bin.didx").await, b"second try");
        })
    });
}

/// Proves H50, H168.
#[test]
fn an_aborted_or_dropped_backup_leaves_no_files() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("host/a");
            for blobs in 0..3 {
                let backup = store.backup(&group).begin().await.unwrap();
                for blob in 0..blobs {
                    backup.blob(&format!("{blob}.conf"), "x").await.unwrap();
                }
                if blobs == 2 {
                    backup.stream("a.bin", Cursor::new(b"x")).await.unwrap();
                }
                backup.abort().await.unwrap();
                assert_eq!(store.groups(group.namespace()).await.unwrap(), []);
                assert_eq!(store.snapshots(&group).await.unwrap(), []);
            }
            let backup = store.backup(&group).begin().await.unwrap();
            backup.blob("a.conf", "x").await.unwrap();
            drop(backup);
            // Dropping gives the locks back at once; what it left is removed by the next writer at the latest.
            let backup = store.backup(&group).begin().await.unwrap();
            backup.blob("b.conf", "x").await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            let mut found = store.snapshots(&group).await.unwrap();
            if place.capabilities().lock_reach == LockReach::Process {
                // The dropped request may have been one of another writer.
                found.retain(|info| info.state == SnapshotState::Finished);
            }
            assert_eq!(found.iter().map(|info| &info.name).collect::<Vec<_>>(), [snapshot.name()]);
            assert_eq!(store.owner(&group).await.unwrap(), Some("root@pam".parse().unwrap()));
        })
    });
}

/// Proves H38.
#[test]
fn leftovers_of_a_dead_writer_are_invisible_and_the_next_backup_removes_them() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("host/a");
            place.write("host/a/owner", "root@pam\n").await;
            place.write("host/a/2020-01-01T00:00:00Z/a.conf.blob", "torn").await;
            let left = place.content().map(|path| path.join("host/a/2020-01-01T00:00:00Z"));
            // Where locks do not reach other processes, its writer may be alive.
            let is_dead = place.capabilities().lock_reach != LockReach::Process;
            if let Some(left) = &left {
                std::fs::write(left.join("b.img.fidx.tmp_AbCdEf"), "torn").unwrap();
            }
            let name: SnapshotName = "host/a/2020-01-01T00:00:00Z".parse().unwrap();
            assert_eq!(store.latest(&group).await.unwrap(), None);
            assert_eq!(store.snapshot(&name).await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(store.snapshots(&group).await.unwrap()[0].state, SnapshotState::Unfinished);
            let backup = store.backup(&group).begin().await.unwrap();
            let is_there = place.read("host/a/2020-01-01T00:00:00Z/a.conf.blob").await.is_some();
            assert_eq!(is_there, !is_dead);
            assert!(left.is_none_or(|left| !left.exists()));
            backup.blob("a.conf", "x").await.unwrap();
            backup.finish().await.unwrap();
            let found = store.snapshots(&group).await.unwrap();
            assert_eq!(found.len(), if is_dead { 1 } else { 2 });
            assert!(found.last().unwrap().state == SnapshotState::Finished);
        })
    });
}

/// Proves H49, H53.
#[test]
fn successive_backups_never_share_a_time() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("host/a");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            for _ in 0..20 {
                let backup = store.backup(&group).begin().await.unwrap();
                backup.blob("a.conf", "x").await.unwrap();
                backup.finish().await.unwrap();
            }
            assert_eq!(store.snapshots(&group).await.unwrap().len(), 20);
            let error = store.backup(&group).time(time).begin().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "older than the newest");
            let other = "host/b".parse().unwrap();
            let backup = store.backup(&other).time(time).begin().await.unwrap();
            assert_eq!(backup.name().to_string(), "host/b/2001-09-09T01:46:40Z");
            let busy = store.backup(&other).begin().await.unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::Busy);
            backup.finish().await.unwrap();
        })
    });
}

/// Proves H54.
#[test]
fn a_deleted_or_corrupt_base_fails_the_backup() {
    everywhere_loose(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("host/a");
            let data = noise(5, 200_000);
            let backup = store.backup(&group).begin().await.unwrap();
            backup.image("d.img", Cursor::new(&data), 200_000).chunk_bytes(CHUNK).await.unwrap();
            let base = backup.finish().await.unwrap().snapshot;
            let manifest = format!("{}/index.json.blob", base.name());
            let kept = place.read(&manifest).await.unwrap();

            let backup = store.backup(&group).begin().await.unwrap();
            let image = backup.image("d.img", Cursor::new(&data), 200_000).chunk_bytes(CHUNK);
            image.base(&base).dirty(DirtyMap::new()).await.unwrap();
            place.remove(&manifest).await;
            assert_eq!(backup.finish().await.unwrap_err().kind(), ErrorKind::Conflict);
            place.write(&manifest, kept).await;
            assert_eq!(store.snapshots(&group).await.unwrap().len(), 1);

            if !place.looks_at_chunks() {
                return;
            }
            // A chunk that the base names is missing: data at hand heals it, a clean extent cannot.
            let digest = store.snapshot(base.name()).await.unwrap().archive("d.img.fidx").await.unwrap();
            let digest = larder::internal::index::of_archive(&digest).digest(1).unwrap().to_string();
            place.write(&chunk_path(&digest), "").await;
            let backup = store.backup(&group).begin().await.unwrap();
            let image = backup.image("d.img", Cursor::new(&data), 200_000).chunk_bytes(CHUNK);
            let error = image.base(&base).dirty(DirtyMap::new()).await.unwrap_err();
            assert_eq!((error.kind(), error.subject()), (ErrorKind::Corrupt, Some(digest.as_str())));
            backup.image("d.img", Cursor::new(&data), 200_000).chunk_bytes(CHUNK).base(&base).await.unwrap();
            let healed = backup.finish().await.unwrap().snapshot;
            assert!(restore(&healed, "d.img.fidx").await == data);
        })
    });
}

/// Proves H24, H77, H173.
#[test]
fn an_existing_chunk_is_compared_with_the_offered_one() {
    everywhere_loose(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(6, 100_000);
            let path = chunk_path(&larder::format::Digest::of(&data).to_string());
            let mut good = Vec::new();
            larder::internal::blob::encode_plain(&data, &mut good).unwrap();
            let mut other_length = good.clone();
            other_length.truncate(50_000);
            let mut frame = zstd::bulk::compress(&data, 19).unwrap();
            frame.splice(0..0, crc32fast::hash(&frame).to_le_bytes());
            frame.splice(0..0, larder::internal::blob::BlobKind::Zstd.magic());
            let encrypted = [&larder::internal::blob::BlobKind::Encrypted.magic()[..], &[0; 60]].concat();
            for (number, (present, kept)) in [
                (&b""[..], false),
                (b"short", false),
                (&other_length, false),
                (&encrypted, false),
                (&frame, true),
                (&good, true),
            ]
            .into_iter()
            .enumerate()
            {
                place.write(&path, present.to_vec()).await;
                // Where no answer says that it exists, it is stored again.
                let kept = kept && place.capabilities().conditional_put;
                let group = group(&format!("host/{number}"));
                let backup = store.backup(&group).begin().await.unwrap();
                backup.stream("a.bin", Cursor::new(&data)).await.unwrap();
                assert_eq!(backup.stats().chunks_known == 1, kept, "{number}");
                let snapshot = backup.finish().await.unwrap().snapshot;
                let is_same = place.read(&path).await.unwrap() == present;
                assert_eq!(is_same, kept || present == good, "{number}");
                assert!(restore(&snapshot, "a.bin.didx").await == data);
            }
        })
    });
}

#[test]
fn a_restore_names_corrupt_chunks_and_never_returns_their_bytes() {
    everywhere_loose(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(7, 300_000);
            let backup = store.backup(&group("host/a")).begin().await.unwrap();
            backup.image("d.img", Cursor::new(&data), 300_000).chunk_bytes(CHUNK).await.unwrap();
            backup.blob("c.conf", "text").await.unwrap();
            let name = backup.finish().await.unwrap().snapshot.name().clone();
            let snapshot = store.snapshot(&name).await.unwrap();
            let archive = snapshot.archive("d.img.fidx").await.unwrap();
            let digest = larder::internal::index::of_archive(&archive).digest(2).unwrap().to_string();
            let copy = || async {
                let snapshot = store.snapshot(&name).await?;
                let archive = snapshot.archive("d.img.fidx").await?;
                archive.copy_to(&mut WriterTarget::new(Cursor::new(Vec::new()))).await
            };
            for path in [chunk_path(&digest), format!("{name}/d.img.fidx"), format!("{name}/index.json.blob")]
            {
                let kept = place.read(&path).await.unwrap();
                for damage in 0..3 {
                    let mut bytes = kept.to_vec();
                    let middle = bytes.len() - 20;
                    match damage {
                        0 => bytes[middle] ^= 1,
                        1 => bytes.truncate(middle),
                        _ => bytes.clear(),
                    }
                    place.write(&path, bytes).await;
                    assert_eq!(copy().await.unwrap_err().kind(), ErrorKind::Corrupt, "{path} {damage}");
                }
                place.remove(&path).await;
                // Without its manifest, it is no snapshot.
                let is_manifest = path.ends_with("index.json.blob");
                let wanted = if is_manifest { ErrorKind::NotFound } else { ErrorKind::Corrupt };
                assert_eq!(copy().await.unwrap_err().kind(), wanted, "{path}");
                place.write(&path, kept).await;
                assert_eq!(copy().await.unwrap(), 300_000);
            }
            place.write(&format!("{name}/c.conf.blob"), "other").await;
            assert_eq!(snapshot.blob("c.conf.blob").await.unwrap_err().kind(), ErrorKind::Corrupt);
        })
    });
}

#[test]
fn owner_notes_protection_and_namespaces_are_stored() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let root = larder::format::name::Namespace::root();
            let (outer, inner) = ("a".parse().unwrap(), "a/b".parse().unwrap());
            assert_eq!(store.create_namespace(&inner).await.unwrap_err().kind(), ErrorKind::NotFound);
            store.create_namespace(&outer).await.unwrap();
            store.create_namespace(&inner).await.unwrap();
            assert_eq!(store.create_namespace(&inner).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(store.namespaces(&root).await.unwrap(), [root.clone(), outer, inner.clone()]);
            let group = group("vm/100").in_namespace(inner.clone());
            let nowhere = "vm/1".parse::<GroupName>().unwrap().in_namespace("x".parse().unwrap());
            assert_eq!(store.backup(&nowhere).begin().await.unwrap_err().kind(), ErrorKind::NotFound);
            let owner: AuthId = "user@pbs!token".parse().unwrap();
            let backup = store.backup(&group).owner(owner.clone()).begin().await.unwrap();
            backup.blob("a.conf", "x").await.unwrap();
            let name = backup.finish().await.unwrap().snapshot.name().clone();
            let stranger = store.backup(&group).owner("other@pbs".parse().unwrap()).begin().await;
            assert_eq!(stranger.unwrap_err().kind(), ErrorKind::Denied);
            assert_eq!(store.owner(&group).await.unwrap(), Some(owner));
            store.set_owner(&group, &"root@pam".parse().unwrap()).await.unwrap();
            assert_eq!(store.owner(&group).await.unwrap(), Some("root@pam".parse().unwrap()));
            store.set_group_notes(&group, "ünï").await.unwrap();
            assert_eq!(store.group_notes(&group).await.unwrap().as_deref(), Some("ünï"));
            store.set_group_notes(&group, "").await.unwrap();
            assert_eq!(store.group_notes(&group).await.unwrap(), None);
            store.set_notes(&name, "kept").await.unwrap();
            store.set_protection(&name, Protection::On).await.unwrap();
            assert!(store.snapshot_info(&name).await.unwrap().protected);
            let reader = store.snapshot(&name).await.unwrap();
            assert_eq!(reader.manifest().notes(), Some("kept"));
            let busy = store.set_protection(&name, Protection::Off).await.unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::Busy);
            drop(reader);
            store.set_protection(&name, Protection::Off).await.unwrap();
            assert!(!store.snapshot_info(&name).await.unwrap().protected);
            assert_eq!(store.groups(&inner).await.unwrap(), [group]);
            assert_eq!(store.groups(&root).await.unwrap(), []);
        })
    });
}

/// Proves H46.
#[test]
fn concurrent_changes_of_one_manifest_are_all_kept() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group("host/a")).begin().await.unwrap();
            backup.blob("a.conf", "x").await.unwrap();
            let name = backup.finish().await.unwrap().snapshot.name().clone();
            let changes =
                (0..10).map(|number| store.set_notes(&name, if number % 2 == 0 { "even" } else { "odd" }));
            futures::future::try_join_all(changes).await.unwrap();
            let manifest = store.snapshot(&name).await.unwrap();
            assert!(matches!(manifest.manifest().notes(), Some("even" | "odd")));
            assert_eq!(manifest.manifest().files().len(), 1);
            assert!(counted_chunks(manifest.manifest()).is_some());
        })
    });
}

/// Proves H92.
#[test]
fn a_store_with_an_unknown_feature_can_only_be_read() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            round_trip(&store).await;
            drop(store);
            let kept = place.read(".larder/store.json").await.unwrap();
            place.add_feature().await;
            let store = place.opened().await;
            let latest = store.latest(&group("host/a")).await.unwrap().unwrap();
            assert_eq!(restore(&store.snapshot(&latest).await.unwrap(), "a.bin.didx").await.len(), 1_000_003);
            let refused = [
                store.backup(&group("host/a")).begin().await.map(drop),
                store.set_notes(&latest, "x").await,
                store.set_protection(&latest, Protection::On).await,
                store.create_namespace(&"a".parse().unwrap()).await,
            ];
            for refused in refused {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
            }
            // Nobody else can tidy up after this.
            place.write(".larder/store.json", kept).await;
        })
    });
}

/// Proves H168.
#[test]
fn dropping_the_future_of_finish_publishes_all_or_nothing() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let group = group("host/a");
            let backup = store.backup(&group).begin().await.unwrap();
            backup.stream("a.bin", Cursor::new(noise(8, 100_000))).await.unwrap();
            let mut finish = Box::pin(backup.finish());
            // Begun; where threads are quick it may even be done.
            drop(futures::poll!(&mut finish));
            drop(finish);
            // The next writer waits until the commit has given the group back.
            let next = loop {
                match store.backup(&group).begin().await {
                    Err(error) if error.kind() == ErrorKind::Busy => {
                        place.runtime.sleep(Duration::from_millis(1)).await;
                    }
                    next => break next.unwrap(),
                }
            };
            next.abort().await.unwrap();
            let latest = store.latest(&group).await.unwrap().unwrap();
            let snapshot = store.snapshot(&latest).await.unwrap();
            assert_eq!(restore(&snapshot, "a.bin.didx").await.len(), 100_000);
        })
    });
}

#[test]
fn a_backup_uses_the_chunker_of_its_caller() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let backup = store.backup(&group("host/a")).begin().await.unwrap();
            let data = noise(9, 100_000);
            let fixed = Box::new(FixedChunker::new(4096).unwrap());
            let summary = backup.stream("a.bin", Cursor::new(&data)).chunker(fixed).await.unwrap();
            assert_eq!(summary.chunks, 25);
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert!(restore(&snapshot, "a.bin.didx").await == data);
        })
    });
}

#[test]
fn concurrent_backups_of_different_groups_share_chunks() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(10, 20 * CHUNK as usize);
            let size = data.len() as u64;
            let (one, other) =
                futures::join!(async { store.backup(&group("vm/1")).begin().await.unwrap() }, async {
                    store.backup(&group("vm/2")).begin().await.unwrap()
                });
            let write = |backup| image_of(backup, &data, size);
            futures::join!(write(&one), write(&other));
            // Each chunk was stored once, by the first writer; the other one found it, where the backend reports that. A packed store always
            // does: its writers share one list of chunks.
            let reports = place.capabilities().conditional_put || place.is_packed();
            let times = if reports { 1 } else { 2 };
            assert_eq!(one.stats().chunks_new + other.stats().chunks_new, times * 20);
            let (one, other) = futures::join!(one.finish(), other.finish());
            for snapshot in [one.unwrap(), other.unwrap()] {
                assert!(restore(&snapshot.snapshot, "d.img.fidx").await == data);
            }
        })
    });
}

async fn image_of(backup: &larder::store::SnapshotWriter, data: &[u8], size: u64) {
    backup.image("d.img", Cursor::new(data), size).chunk_bytes(CHUNK).await.unwrap();
}

#[test]
fn a_restore_runs_beside_a_backup_based_on_the_same_snapshot() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let data = noise(11, 20 * CHUNK as usize);
            let size = data.len() as u64;
            let backup = store.backup(&group("vm/1")).begin().await.unwrap();
            image_of(&backup, &data, size).await;
            let base = backup.finish().await.unwrap().snapshot;
            let backup = store.backup(&group("vm/1")).begin().await.unwrap();
            let next = backup.image("d.img", Cursor::new(&data), size).chunk_bytes(CHUNK).base(&base);
            let (written, restored) = futures::join!(next.into_future(), restore(&base, "d.img.fidx"));
            written.unwrap();
            assert!(restored == data);
            let next = backup.finish().await.unwrap().snapshot;
            assert!(restore(&next, "d.img.fidx").await == data);
        })
    });
}

#[test]
fn a_restore_creates_files_with_holes_or_overwrites_existing_ones() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let directory = larder_testing::scratch();
            let mut data = noise(12, 64 * CHUNK as usize);
            data[CHUNK as usize..63 * CHUNK as usize].fill(0);
            let backup = store.backup(&group("vm/1")).begin().await.unwrap();
            image_of(&backup, &data, data.len() as u64).await;
            let snapshot = backup.finish().await.unwrap().snapshot;
            let archive = snapshot.archive("d.img.fidx").await.unwrap();
            let (new, old) = (directory.path().join("new"), directory.path().join("old"));
            archive
                .copy_to(&mut FileTarget::create(Arc::clone(&place.runtime), &new).await.unwrap())
                .await
                .unwrap();
            assert!(std::fs::read(&new).unwrap() == data);
            let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&new).unwrap());
            assert!(blocks * 512 <= 4 * CHUNK, "{blocks} blocks are no hole");
            let again = FileTarget::create(Arc::clone(&place.runtime), &new).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::AlreadyExists);
            let missing = FileTarget::open(Arc::clone(&place.runtime), &old).await.unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
            std::fs::write(&old, noise(13, data.len() + 10)).unwrap();
            archive
                .copy_to(&mut FileTarget::open(Arc::clone(&place.runtime), &old).await.unwrap())
                .await
                .unwrap();
            let overwritten = std::fs::read(&old).unwrap();
            assert!(overwritten[..data.len()] == data && overwritten.len() == data.len() + 10);
        })
    });
}

/// Counts the bytes of events.
#[derive(Debug, Default)]
struct Tally {
    bytes: std::sync::atomic::AtomicU64,
    finished: std::sync::atomic::AtomicU64,
    started: std::sync::atomic::AtomicU64,
}

impl Observer<ArchiveEvent> for Tally {
    fn on_event(&self, event: &ArchiveEvent) {
        use std::sync::atomic::Ordering::SeqCst;
        match event {
            ArchiveEvent::ArchiveStarted { size, .. } => {
                _ = self.started.fetch_add(size.unwrap_or(0), SeqCst);
            }
            ArchiveEvent::ArchiveFinished { size, .. } => _ = self.finished.fetch_add(*size, SeqCst),
            ArchiveEvent::ChunkRestored { size, .. } => _ = self.bytes.fetch_add(*size, SeqCst),
            _ => panic!("a restore reports {event:?}"),
        }
    }
}

/// Proves H187.
#[test]
fn a_restore_reports_its_progress() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let (data, group) = (mixed(5, 400_000), group("host/a"));
            let backup = store.backup(&group).begin().await.unwrap();
            image_of(&backup, &data, data.len() as u64).await;
            let snapshot = backup.finish().await.unwrap().snapshot;
            for as_stream in [false, true] {
                let tally = Arc::new(Tally::default());
                let reader = snapshot.archive("d.img.fidx").await.unwrap().observer(tally.clone());
                let restored = if as_stream {
                    let mut reader = reader;
                    read_to_end(&mut reader).await.unwrap()
                } else {
                    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
                    reader.copy_to(&mut target).await.unwrap();
                    target.into_inner().into_inner()
                };
                assert!(restored == data);
                let [bytes, started, finished] = [&tally.bytes, &tally.started, &tally.finished]
                    .map(|count| count.load(std::sync::atomic::Ordering::SeqCst));
                assert_eq!((bytes, started), (400_000, 400_000), "as a stream: {as_stream}");
                assert_eq!(finished, if as_stream { 0 } else { 400_000 });
            }
        })
    });
}

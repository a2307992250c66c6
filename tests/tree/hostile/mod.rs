//! Hostile archives: each reader of a tree ends with an error or with entries that lead nowhere, in bounded memory and time.

mod archives;

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::{AsyncWrite, Cursor};
use larder::ThreadRuntime;
use larder::backend::MemoryBackend;
use larder::error::ErrorKind;
use larder::pxar::{ArchivePart, Decoder, FileKind, TreeDecodeError};
use larder::store::{Datastore, Options, SnapshotReader};
use larder::tree::{DirectoryTarget, Tree, TreeStep};

use archives::{Hostile, Verdict};

/// More entries than any of the archives has.
const MAX_ENTRIES: usize = 10_000;

fn check_path(archive: &Hostile, path: &[u8]) {
    let is_plain =
        |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0) && part.len() <= 4096;
    assert!(path.is_empty() || path.split(|byte| *byte == b'/').all(is_plain), "{}: {path:?}", archive.name);
}

/// Decodes entries to their end. Returns their number; `None` if bytes are missing, or left.
fn decode(archive: &Hostile) -> Result<Option<usize>, TreeDecodeError> {
    let mut decoder = Decoder::new();
    decoder.feed(Bytes::copy_from_slice(&archive.entries));
    let mut count = 0;
    loop {
        match decoder.next_part()? {
            ArchivePart::Entry(entry) => {
                check_path(archive, &entry.path);
                count += 1;
            }
            ArchivePart::End => {
                return Ok((decoder.position() == archive.entries.len() as u64).then_some(count));
            }
            ArchivePart::NeedsBytes => return Ok(None),
            _ => {}
        }
    }
}

#[test]
fn a_decoder_refuses_hostile_archives() {
    let is_accepted = |archive: &Hostile| {
        archive.in_order == Verdict::Refused && decode(archive).is_ok_and(|count| count.is_some())
    };
    let accepted: Vec<_> = archives::all("/nowhere/outside").into_iter().filter(is_accepted).collect();
    assert!(accepted.is_empty(), "{:#?}", accepted.iter().map(|archive| &archive.name).collect::<Vec<_>>());
}

/// One snapshot with all archives.
async fn stored(archives: &[Hostile]) -> SnapshotReader {
    let backend = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
    let store = Datastore::create(Arc::new(backend), Options::default()).await.unwrap();
    let backup = store.backup(&"host/hostile".parse().unwrap()).begin().await.unwrap();
    for (number, archive) in archives.iter().enumerate() {
        let entries = Cursor::new(&archive.entries);
        match &archive.payload {
            None => backup.stream(format!("{number}.pxar"), entries).await.unwrap(),
            Some(payload) => {
                backup.stream(format!("{number}.ppxar"), Cursor::new(payload)).await.unwrap();
                backup.stream(format!("{number}.mpxar"), entries).await.unwrap()
            }
        };
    }
    backup.finish().await.unwrap().snapshot
}

/// Walks to the end. Returns `false` if something was wrong.
async fn walk(archive: &Hostile, tree: &Tree) -> bool {
    let (mut walk, mut is_right, mut count) = (tree.walk(), true, 0);
    loop {
        count += 1;
        assert!(count < 2 * MAX_ENTRIES, "{}: it has no end", archive.name);
        match walk.next().await {
            Ok(None) => return is_right,
            Ok(Some(TreeStep::Entry(entry))) => check_path(archive, &entry.path),
            Ok(Some(TreeStep::Lost(_))) => is_right = false,
            Ok(Some(_)) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{}: {error:?}", archive.name);
                return false;
            }
        }
    }
}

/// Lists every directory, and reads every file. Returns `false` if something was wrong.
async fn look_up(archive: &Hostile, tree: &Tree) -> bool {
    let (mut directories, mut is_right, mut count) = (vec![Bytes::new()], true, 0);
    let wrong = |error: larder::Error| {
        // A path that two entries have leads to either.
        let is_expected = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidInput);
        assert!(is_expected, "{}: {error:?}", archive.name);
        false
    };
    while let Some(directory) = directories.pop() {
        let mut entries = match tree.read_dir(&directory).await {
            Ok(entries) => entries,
            Err(error) => {
                is_right = wrong(error);
                continue;
            }
        };
        while let Some(entry) = entries.next().await {
            count += 1;
            assert!(count < MAX_ENTRIES, "{}: it has no end", archive.name);
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    is_right = wrong(error);
                    continue;
                }
            };
            check_path(archive, &entry.path);
            match entry.kind {
                // Each lookup begins at the root.
                FileKind::Directory if entry.path.split(|byte| *byte == b'/').count() < 50 => {
                    directories.push(entry.path);
                }
                FileKind::File { .. } | FileKind::HardLink { .. } if archive.entries.len() < 1 << 20 => {
                    match tree.open_entry(&entry).await {
                        Ok(file) => is_right &= file.read_all().await.map_or_else(wrong, |_| true),
                        Err(error) => is_right = wrong(error),
                    }
                }
                _ => {}
            }
        }
    }
    is_right
}

#[test]
fn every_way_to_read_a_hostile_archive_ends_and_mistakes_are_errors() {
    let archives = archives::all("/nowhere/outside");
    block_on(async {
        let snapshot = stored(&archives).await;
        let mut accepted = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let Ok(tree) = snapshot.tree(&format!("{number}.pxar")).await else { continue };
            if walk(archive, &tree).await && archive.in_order == Verdict::Refused {
                accepted.push(format!("in order: {}", archive.name));
            }
            if look_up(archive, &tree).await && archive.by_tables == Verdict::Refused {
                accepted.push(format!("by tables: {}", archive.name));
            }
        }
        assert!(accepted.is_empty(), "{accepted:#?}");
    });
}

/// A writer that counts, and fails once it has too much.
struct Counting {
    bytes: usize,
    most: usize,
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.bytes += bytes.len();
        let is_in_bounds = self.bytes <= self.most;
        Poll::Ready(is_in_bounds.then_some(bytes.len()).ok_or_else(|| io::Error::other("too much")))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A file may claim any size. Zeros stand only for contents that the archive has room for.
#[test]
fn a_tar_archive_of_a_hostile_archive_is_in_proportion_to_it() {
    let archives = archives::all("/nowhere/outside");
    block_on(async {
        let snapshot = stored(&archives).await;
        let (mut accepted, mut largest) = (Vec::new(), 0);
        for (number, archive) in archives.iter().enumerate() {
            let Ok(tree) = snapshot.tree(&format!("{number}.pxar")).await else { continue };
            // An entry takes 56 bytes at least; in a tar archive, a header of 512, and with records one and a half kilobytes more.
            let mut tar = Counting { bytes: 0, most: 64 * archive.entries.len() + 10_240 };
            let is_right = match tree.to_tar("", &mut tar).await {
                Ok(report) => report.is_complete(),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}: {error:?}", archive.name);
                    false
                }
            };
            largest = largest.max(tar.bytes);
            if is_right && archive.in_order == Verdict::Refused {
                accepted.push(&archive.name);
            }
        }
        assert!(largest > 10_240 && accepted.is_empty(), "{largest}: {accepted:#?}");
    });
}

/// Everything in a directory but the target: paths, kinds, modes, link counts and contents.
fn outside_of_target(place: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Vec::new();
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "target" {
            let metadata = path.symlink_metadata().unwrap();
            let contents =
                if metadata.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
            let facts = (metadata.mode(), metadata.nlink(), metadata.uid(), metadata.mtime_nsec());
            found.push(format!("{} {facts:?} {contents}", path.display()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_restore_of_a_hostile_archive_leads_nowhere_outside_of_its_target() {
    let place = larder_testing::scratch();
    let outside = place.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    let archives = archives::all(outside.to_str().unwrap());
    let before = outside_of_target(place.path());
    block_on(async {
        let snapshot = stored(&archives).await;
        let mut accepted = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let Ok(tree) = snapshot.tree(&format!("{number}.pxar")).await else { continue };
            let path = place.path().join("target");
            let target = DirectoryTarget::create(Arc::new(ThreadRuntime::new()), &path).await.unwrap();
            let restored = tree.restore(&target).await;
            assert_eq!(outside_of_target(place.path()), before, "{}", archive.name);
            let is_right = restored.is_ok_and(|summary| summary.report.is_complete());
            if is_right && archive.in_order == Verdict::Refused {
                accepted.push(&archive.name);
            }
            fs::remove_dir_all(path).unwrap();
        }
        assert!(accepted.is_empty(), "{accepted:#?}");
    });
}

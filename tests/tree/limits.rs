//! Trees within little memory, and in tiny chunks.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::executor::block_on;
use larder::chunker::Chunker;
use larder::internal::index;
use larder::internal::tree::open_within;
use larder::pxar::FileKind;
use larder::tree::{Problem, Tree, TreeStep};

use crate::genuine::walked;
use crate::reading::{Archive, assert_nested, memory, stored, stored_by};
use crate::restore_genuine::of_tree;

/// Type of an ENTRY item.
const ENTRY: [u8; 8] = 0xd595_6474_e588_acef_u64.to_le_bytes();

/// A file in the root, two levels of directories with files, and a file in the root again. Some files of the inner directory are malformed.
fn malformed(files: usize, is_malformed: impl Fn(usize) -> bool) -> Vec<Bytes> {
    let mut archive = Archive::new(true);
    for file in 0..files {
        archive.file(&format!("a{file:04}"), b"");
    }
    archive.enter("b");
    archive.file("before", b"");
    archive.enter("inner");
    let mut starts = Vec::new();
    for file in 0..files {
        starts.push(archive.file(&format!("f{file:04}"), b""));
    }
    archive.leave();
    archive.file("later", b"");
    archive.leave();
    archive.file("c", b"");
    let mut streams = archive.finish();
    let mut bytes = streams[0].to_vec();
    for (_, start) in starts.iter().enumerate().filter(|(file, _)| is_malformed(*file)) {
        let start = usize::try_from(*start).unwrap();
        let at = start + bytes[start..].windows(8).position(|bytes| bytes == ENTRY).unwrap();
        bytes[at] ^= 1;
    }
    streams[0] = bytes.into();
    streams
}

/// The paths of the entries, and the number of findings.
async fn found(tree: &Tree) -> (BTreeSet<String>, usize) {
    let steps = walked(tree).await;
    assert_nested(&steps);
    let mut paths = BTreeSet::new();
    let mut lost = 0;
    for step in steps {
        match step {
            TreeStep::Entry(entry) => {
                assert!(paths.insert(String::from_utf8_lossy(&entry.path).into_owned()));
            }
            TreeStep::Lost(finding) => {
                assert_eq!(finding.problem, Problem::EntriesLost);
                lost += 1;
            }
            _ => {}
        }
    }
    (paths, lost)
}

/// Proves H194.
#[test]
fn malformed_entries_below_large_tables_cost_no_further_reads() {
    block_on(async {
        let (backend, store) = memory().await;
        let snapshot = stored(&store, &malformed(400, |file| file % 2 == 1), 4096, None).await;
        let chunks = index::of_archive(&snapshot.archive("root.mpxar").await.unwrap()).len() as u64;
        let tree = open_within(&snapshot, "root", 64 << 20).await.unwrap();
        backend.reset();
        let (paths, lost) = found(&tree).await;
        assert_eq!((paths.len(), lost), (1 + 400 + 1 + 2 + 200 + 1 + 1, 200));
        let gets = backend.counts().gets;
        assert!(gets < 2 * chunks, "{gets} reads of {chunks} chunks");
    });
}

/// Proves H194.
#[test]
fn tables_beyond_the_memory_of_a_walk_cost_entries_and_not_the_walk() {
    block_on(async {
        let (_, store) = memory().await;
        let snapshot = stored(&store, &malformed(40, |file| file == 7), 4096, None).await;
        // The tables of all, of two, and of one of the three directories that are open.
        for (held, kept) in [(64 << 20, 39), (1300, 7), (1, 7)] {
            let tree = open_within(&snapshot, "root", held).await.unwrap();
            let (paths, lost) = found(&tree).await;
            let inner = paths.iter().filter(|path| path.starts_with("b/inner/")).count();
            assert_eq!((inner, lost), (kept, 1), "{held}");
            assert!(paths.contains("c") && paths.contains("b/before"), "{held}");
            assert_eq!(paths.contains("b/later"), held > 1, "{held}");
        }
    });
}

/// Cuts chunks of a few bytes.
#[derive(Debug)]
struct Tiny {
    bytes: usize,
    rest: usize,
}

impl Tiny {
    fn of(bytes: usize) -> Self {
        Self { bytes, rest: bytes }
    }
}

impl Chunker for Tiny {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        if data.len() < self.rest {
            self.rest -= data.len();
            return None;
        }
        Some(std::mem::replace(&mut self.rest, self.bytes))
    }

    fn max_bytes(&self) -> usize {
        self.bytes
    }
}

#[test]
fn trees_in_tiny_chunks_are_read_in_every_way() {
    block_on(async {
        for split in [true, false] {
            let (_, store) = memory().await;
            let mut archive = Archive::new(split);
            archive.file("a", b"contents");
            archive.enter("dir");
            archive.enter("below");
            archive.leave();
            archive.file("empty", b"");
            archive.file("file", &[7; 100]);
            archive.leave();
            let streams = archive.finish();
            let whole = stored(&store, &streams, 1 << 16, None).await;
            let expected = of_tree(&whole.tree("root").await.unwrap()).await;
            assert_eq!(expected.len(), 6);
            for bytes in [1, 3, 17] {
                let snapshot = stored_by(&store, &streams, &|| Box::new(Tiny::of(bytes)), None).await;
                let tree = snapshot.tree("root").await.unwrap();
                assert!(of_tree(&tree).await == expected, "{split} {bytes}");
                for (path, (kind, metadata, contents)) in &expected {
                    let entry = tree.entry(path).await.unwrap();
                    assert!(entry.kind == *kind && entry.metadata == *metadata);
                    if matches!(kind, FileKind::File { .. }) {
                        assert_eq!(tree.open(path).await.unwrap().read_all().await.unwrap(), contents);
                    }
                }
                assert_eq!(tree.read_dir("dir").await.unwrap().len(), 3);
                let (mut tar, mut tar_of_whole) = (Vec::new(), Vec::new());
                let report = tree.to_tar("", &mut tar).await.unwrap();
                whole.tree("root").await.unwrap().to_tar("", &mut tar_of_whole).await.unwrap();
                assert!(report.findings.is_empty() && tar == tar_of_whole, "{split} {bytes}");
            }
        }
    });
}

//! Trees that are read by lookup and in order: what it costs, and what damage costs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::ThreadRuntime;
use larder::backend::{Backend, MemoryBackend, PutMode, Removal};
use larder::chunker::{Chunker, FixedChunker};
use larder::crypt::EncryptionKey;
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::internal::index;
use larder::internal::record::RecordingBackend;
use larder::pxar::{
    Encoder, FileKind, Metadata, PAYLOAD_END, PAYLOAD_START, PayloadOrigin, PayloadReference, Stat,
    payload_header,
};
use larder::store::{Datastore, Options, SnapshotReader};
use larder::tree::{Problem, Tree, TreeEntry, TreeStep};

use crate::genuine::walked;

fn of_mode(mode: u32) -> Metadata {
    Metadata::new(Stat { mode, ..Stat::default() })
}

/// An archive in either form that is being written.
pub(crate) struct Archive {
    encoder: Encoder,
    payload: Option<Vec<u8>>,
}

impl Archive {
    pub(crate) fn new(split: bool) -> Self {
        let root = of_mode(0o040_755);
        let encoder = if split { Encoder::split(&root, b"") } else { Encoder::unified(&root) };
        Self { encoder: encoder.unwrap(), payload: split.then(|| PAYLOAD_START.to_vec()) }
    }

    pub(crate) fn file(&mut self, name: &str, contents: &[u8]) -> u64 {
        let (metadata, size) = (of_mode(0o100_644), contents.len() as u64);
        let Some(payload) = &mut self.payload else {
            let position = self.encoder.file(name.as_bytes(), &metadata, size).unwrap();
            self.encoder.contents(contents).unwrap();
            return position;
        };
        let reference =
            PayloadReference { offset: payload.len() as u64, origin: PayloadOrigin::Written, size };
        payload.extend_from_slice(&payload_header(size).unwrap());
        payload.extend_from_slice(contents);
        self.encoder.file_reference(name.as_bytes(), &metadata, reference).unwrap()
    }

    pub(crate) fn hard_link(&mut self, name: &str, target: &str, position: u64) {
        self.encoder.hard_link(name.as_bytes(), target.as_bytes(), position).unwrap();
    }

    pub(crate) fn enter(&mut self, name: &str) {
        self.encoder.enter(name.as_bytes(), &of_mode(0o040_750)).unwrap();
    }

    pub(crate) fn leave(&mut self) {
        self.encoder.leave().unwrap();
    }

    pub(crate) fn finish(self) -> Vec<Bytes> {
        let mut streams = vec![self.encoder.finish().unwrap()];
        streams.extend(self.payload.map(|payload| Bytes::from([&payload[..], &PAYLOAD_END].concat())));
        streams
    }
}

/// Backs the streams of an archive up, cut into chunks of this size.
pub(crate) async fn stored(
    store: &Datastore,
    streams: &[Bytes],
    chunk_bytes: usize,
    key: Option<&EncryptionKey>,
) -> SnapshotReader {
    let chunker = || -> Box<dyn Chunker> { Box::new(FixedChunker::new(chunk_bytes).unwrap()) };
    stored_by(store, streams, &chunker, key).await
}

/// Backs the streams of an archive up, cut by these chunkers.
pub(crate) async fn stored_by(
    store: &Datastore,
    streams: &[Bytes],
    chunker: &dyn Fn() -> Box<dyn Chunker>,
    key: Option<&EncryptionKey>,
) -> SnapshotReader {
    let builder = store.backup(&"host/x".parse().unwrap());
    let backup = if let Some(key) = key { builder.encrypt(key) } else { builder }.begin().await.unwrap();
    let names: &[&str] = if streams.len() == 1 { &["root.pxar"] } else { &["root.mpxar", "root.ppxar"] };
    for (name, stream) in names.iter().zip(streams) {
        backup.stream(*name, Cursor::new(stream)).chunker(chunker()).await.unwrap();
    }
    backup.finish().await.unwrap().snapshot
}

pub(crate) async fn memory() -> (Arc<RecordingBackend>, Datastore) {
    let backend =
        Arc::new(RecordingBackend::new(Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())))));
    let store = Datastore::create(backend.clone(), Options::default()).await.unwrap();
    (backend, store)
}

/// Three levels of directories with small files.
pub(crate) fn wide(split: bool, width: usize, files: usize) -> Archive {
    let mut archive = Archive::new(split);
    for a in 0..width {
        archive.enter(&format!("a{a:02}"));
        for b in 0..width {
            archive.enter(&format!("b{b:02}"));
            for file in 0..files {
                archive.file(&format!("f{file:03}"), format!("{a}/{b}/{file}").as_bytes());
            }
            archive.leave();
        }
        archive.leave();
    }
    archive
}

fn entries(steps: Vec<TreeStep>) -> Vec<TreeEntry> {
    let entries = steps.into_iter().filter_map(|step| match step {
        TreeStep::Entry(entry) => Some(*entry),
        _ => None,
    });
    entries.collect()
}

#[test]
fn a_lookup_reads_at_most_two_chunks_a_level() {
    block_on(async {
        let (backend, store) = memory().await;
        let snapshot = stored(&store, &wide(true, 12, 80).finish(), 1 << 16, None).await;
        let chunks = index::of_archive(&snapshot.archive("root.mpxar").await.unwrap()).len();
        assert!(chunks > 20, "{chunks}");
        let mut most = 0;
        for number in 0..60 {
            let tree = snapshot.tree("root").await.unwrap();
            backend.reset();
            let path = format!("a{:02}/b{:02}/f{number:03}", number % 12, number / 5);
            let entry = tree.entry(&path).await.unwrap();
            assert_eq!(entry.path, path);
            let gets = backend.counts().gets;
            assert!(gets <= 6, "{path}: {gets}");
            most = most.max(gets);
            // All of it is cached.
            tree.entry(&path).await.unwrap();
            assert_eq!(backend.counts().gets, gets);
        }
        assert!(most > 1, "the test measures nothing");
        // A listing of one directory is no scan.
        let tree = snapshot.tree("root").await.unwrap();
        backend.reset();
        let mut listing = tree.read_dir("a05/b05").await.unwrap();
        while let Some(entry) = listing.next().await {
            entry.unwrap();
        }
        assert!(backend.counts().gets <= 6, "{:?}", backend.counts());
    });
}

#[test]
fn one_file_of_a_large_archive_takes_few_requests() {
    block_on(async {
        let (backend, store) = memory().await;
        let mut archive = Archive::new(true);
        for directory in 0..4 {
            archive.enter(&format!("d{directory}"));
            for file in 0..50_u8 {
                archive.file(&format!("f{file:02}"), &vec![file; 16 << 10]);
            }
            archive.leave();
        }
        let name = stored(&store, &archive.finish(), 1 << 16, None).await.name().clone();
        backend.reset();
        let snapshot = store.snapshot(&name).await.unwrap();
        let of_snapshot = backend.counts().gets;
        let tree = snapshot.tree("root").await.unwrap();
        let file = tree.open("d2/f17").await.unwrap();
        assert_eq!(file.read_all().await.unwrap(), vec![17; 16 << 10]);
        // Two indexes, one chunk with tables and entries, one or two with contents.
        assert!(backend.counts().gets - of_snapshot <= 5, "{:?}", backend.counts());
        assert_eq!(backend.counts().lists + backend.counts().heads, 0);
    });
}

#[test]
fn a_walk_reads_each_chunk_once_and_past_contents() {
    block_on(async {
        let (backend, store) = memory().await;
        let mut archive = Archive::new(false);
        for file in 0..5 {
            archive.file(&format!("large{file}"), &vec![file; 100_000]);
        }
        let snapshot = stored(&store, &archive.finish(), 4096, None).await;
        let tree = snapshot.tree("root").await.unwrap();
        backend.reset();
        assert_eq!(entries(walked(&tree).await).len(), 6);
        let gets = backend.counts().gets;
        assert!((5..60).contains(&gets), "{gets} of 123 chunks");

        let snapshot = stored(&store, &wide(true, 6, 60).finish(), 4096, None).await;
        let chunks = index::of_archive(&snapshot.archive("root.mpxar").await.unwrap()).len();
        let tree = snapshot.tree("root").await.unwrap();
        backend.reset();
        assert_eq!(entries(walked(&tree).await).len(), 1 + 6 + 36 + 36 * 60);
        assert_eq!(backend.counts().gets, chunks as u64);
    });
}

#[test]
fn encrypted_trees_are_read_with_their_key() {
    block_on(async {
        let (_, store) = memory().await;
        let key = EncryptionKey::from_bytes(&[7; 32]);
        for split in [true, false] {
            let mut snapshot = stored(&store, &wide(split, 2, 3).finish(), 4096, Some(&key)).await;
            let locked = store.snapshot(snapshot.name()).await.unwrap();
            assert_eq!(locked.tree("root").await.unwrap_err().kind(), ErrorKind::KeyRequired);
            snapshot.unlock(&key).unwrap();
            let tree = snapshot.tree("root").await.unwrap();
            assert_eq!(tree.open("a01/b00/f002").await.unwrap().read_all().await.unwrap(), "1/0/2");
            assert_eq!(entries(walked(&tree).await).len(), 1 + 2 + 4 + 12);
        }
    });
}

/// The chunks of an archive with their ranges.
pub(crate) async fn chunks_of(snapshot: &SnapshotReader, name: &str) -> Vec<(Key, Range<u64>)> {
    let archive = snapshot.archive(name).await.unwrap();
    let index = index::of_archive(&archive);
    index.iter().map(|chunk| (Key::Chunk(chunk.digest), chunk.offset..chunk.offset + chunk.len)).collect()
}

/// Proves H195.
#[test]
fn a_damaged_chunk_costs_a_walk_the_names_in_it_alone() {
    for split in [true, false] {
        block_on(async {
            let (backend, store) = memory().await;
            let snapshot = stored(&store, &wide(split, 4, 40).finish(), 4096, None).await;
            let name = if split { "root.mpxar" } else { "root.pxar" };
            let intact = entries(walked(&snapshot.tree("root").await.unwrap()).await);
            let heads: Vec<_> = intact.iter().zip(intact.iter().skip(1)).collect();
            for (chunk, range) in chunks_of(&snapshot, name).await {
                let kept = backend.get(&chunk, 1 << 20).await.unwrap().bytes;
                backend.delete(&[Removal::any(chunk.clone())]).await.unwrap();
                let steps = walked(&snapshot.tree("root").await.unwrap()).await;
                backend.put(&chunk, kept, PutMode::Create).await.unwrap();

                assert!(steps.iter().any(
                    |step| matches!(step, TreeStep::Lost(lost) if lost.problem == Problem::EntriesLost)
                ));
                assert_nested(&steps);
                let found: BTreeMap<_, _> =
                    entries(steps).into_iter().map(|entry| (entry.position, entry)).collect();
                let hit = |start: u64, end: u64| start < range.end && range.start < end;
                // Directories whose heads are damaged: their entries have other paths, or are lost in unified archives.
                let mut lost: BTreeSet<Bytes> = BTreeSet::new();
                for (entry, next) in &heads {
                    let below_lost = lost
                        .iter()
                        .any(|lost| entry.path.starts_with(&[&lost[..], b"/"].concat()) || lost.is_empty());
                    if hit(entry.position, next.position) {
                        if entry.kind == FileKind::Directory {
                            lost.insert(entry.path.clone());
                        }
                        continue;
                    }
                    match found.get(&entry.position) {
                        Some(same) if !below_lost => assert_eq!(same, *entry),
                        Some(moved) => assert_eq!(
                            (moved.file_name(), &moved.metadata),
                            (entry.file_name(), &entry.metadata)
                        ),
                        None => assert!(below_lost && !split, "{entry} {range:?}"),
                    }
                }
                assert!(found.len() <= intact.len());
            }
        });
    }
}

/// Proves H196.
#[test]
fn contents_of_a_file_never_pass_for_a_directory() {
    block_on(async {
        let (backend, store) = memory().await;
        let mut forged = Archive::new(false);
        forged.file("forged", b"");
        let contents = [vec![0; 8000], forged.finish()[0].to_vec()].concat();
        let mut archive = Archive::new(false);
        archive.file("a", &[0; 5000]);
        let position = archive.file("b", &contents);
        archive.file("c", b"kept");
        let snapshot = stored(&store, &archive.finish(), 4096, None).await;
        let chunks = chunks_of(&snapshot, "root.pxar").await;
        let (chunk, _) = chunks.iter().find(|(_, range)| range.contains(&position)).unwrap();
        backend.delete(&[Removal::any(chunk.clone())]).await.unwrap();
        let found = entries(walked(&snapshot.tree("root").await.unwrap()).await);
        let names: Vec<_> = found.iter().map(|entry| entry.path.clone()).collect();
        assert_eq!(names, ["", "a", "c"]);
    });
}

#[test]
fn futures_of_trees_can_be_spawned() {
    fn check<T: Send>(_: &T) {}
    block_on(async {
        let (_, store) = memory().await;
        let snapshot = stored(&store, &wide(true, 1, 1).finish(), 4096, None).await;
        check(&snapshot.tree("root"));
        let tree = snapshot.tree("root").await.unwrap();
        let (mut walk, mut found) = (tree.walk(), tree.find("*").unwrap());
        check(&walk.next());
        check(&found.next());
        check(&tree.walk_from("a00"));
        check(&tree.metadata("a00"));
        check(&tree.read_dir("a00").await.unwrap());
        let mut file = tree.open("a00/b00/f000").await.unwrap();
        check(&file.next_chunk());
        check(&file.read_all());
        check(&tree.open("a00"));
        check(&tree.recorded_excludes());
        check(&file);
    });
}

/// Directories are entered and left in order, and entries lie in the directory that is open.
pub(crate) fn assert_nested(steps: &[TreeStep]) {
    let mut open: Vec<Bytes> = Vec::new();
    for step in steps {
        match step {
            TreeStep::Entry(entry) => {
                let parent = entry
                    .path
                    .iter()
                    .rposition(|byte| *byte == b'/')
                    .map_or(&b""[..], |at| &entry.path[..at]);
                assert!(
                    open.last().map_or(entry.path.is_empty(), |open| open == parent),
                    "{entry} in {open:?}"
                );
                if entry.kind == FileKind::Directory {
                    open.push(entry.path.clone());
                }
            }
            TreeStep::DirectoryEnd(path) => assert_eq!(open.pop().as_ref(), Some(path)),
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// Proves H195.
#[test]
fn damage_fails_what_it_hits_and_nothing_else() {
    block_on(async {
        let (backend, store) = memory().await;
        let mut archive = Archive::new(true);
        let contents: Vec<Vec<u8>> = (0..10_u8).map(|file| vec![file; 10_000]).collect();
        for (file, contents) in contents.iter().enumerate() {
            archive.file(&format!("f{file}"), contents);
        }
        let snapshot = stored(&store, &archive.finish(), 4096, None).await;
        let chunks = chunks_of(&snapshot, "root.ppxar").await;
        let (chunk, range) = &chunks[12];
        backend.delete(&[Removal::any(chunk.clone())]).await.unwrap();
        let tree = snapshot.tree("root").await.unwrap();
        for (file, contents) in contents.iter().enumerate() {
            let start = 16 + (16 + 10_000) * file as u64;
            let is_hit = start < range.end && range.start < start + 16 + 10_000;
            let read = match tree.open(format!("f{file}")).await {
                Ok(file) => file.read_all().await,
                Err(error) => Err(error),
            };
            match read {
                Ok(read) => assert!(!is_hit && read == contents),
                Err(error) => assert!(is_hit && error.kind() == ErrorKind::Corrupt),
            }
        }
    });
}

/// Reads everything there is in a tree, in each way.
async fn read_everything(tree: &Tree, most: usize) {
    let mut steps = 0;
    let mut walk = tree.walk();
    while let Some(step) = walk.next().await.unwrap() {
        steps += 1;
        assert!(steps <= most, "an endless walk");
        if let TreeStep::Entry(entry) = step
            && let Ok(file) = tree.open_entry(&entry).await
        {
            assert!(file.read_at(0, 1 << 20).await.unwrap().len() as u64 <= file.size());
        }
    }
    let (mut open, mut seen) = (vec![Bytes::new()], 0);
    while let Some(path) = open.pop() {
        let Ok(mut listing) = tree.read_dir(&path).await else { continue };
        while let Some(entry) = listing.next().await {
            seen += 1;
            assert!(seen <= most, "an endless tree");
            let Ok(entry) = entry else { continue };
            if entry.kind == FileKind::Directory {
                open.push(entry.path.clone());
            }
            let _ = tree.open(&entry.path).await;
        }
    }
}

/// Proves H194.
#[test]
fn hostile_archives_end_and_fail_cleanly() {
    block_on(async {
        let (_, store) = memory().await;
        let mut random = 1_u64;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % below
        };
        for round in 0..60 {
            let split = round % 2 == 0;
            let mut streams = wide(split, 2, 3).finish();
            let stream = draw(streams.len());
            let mut bytes = streams[stream].to_vec();
            for _ in 0..=draw(4) {
                let at = draw(bytes.len());
                match draw(3) {
                    0 => bytes[at] ^= 1 << draw(8),
                    1 => bytes[at] = u8::try_from(draw(256)).unwrap(),
                    _ => {
                        let end = bytes.len().min(at + 24);
                        let from = draw(bytes.len() - (end - at) + 1);
                        bytes.copy_within(at..end, from);
                    }
                }
            }
            streams[stream] = bytes.into();
            let snapshot = stored(&store, &streams, 4096, None).await;
            let tree = snapshot.tree("root").await.unwrap();
            read_everything(&tree, streams[0].len()).await;
        }
    });
}

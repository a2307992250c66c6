//! Backups of trees.

#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "small numbers")]

use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use larder::backend::MemoryBackend;
use larder::crypt::EncryptionKey;
use larder::error::ErrorKind;
use larder::format::name::GroupName;
use larder::pxar::{FileKind, Xattr};
use larder::rt::{Runtime as _, ThreadRuntime};
use larder::store::{BaseUse, Datastore, FinishedBackup, Options, SnapshotReader, SnapshotState};
use larder::tree::{LinkId, Problem, SourceEntry, TreeEvent, TreeSource, TreeSummary};
use larder_testing::noise;
use larder_testing::places::everywhere;
use larder_testing::tree::{Contents, MemoryTree, metadata};

use crate::archives::{contents_of, restored, same_tree};

pub(crate) fn group() -> GroupName {
    "host/a".parse().unwrap()
}

pub(crate) async fn store() -> Datastore {
    let backend = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
    Datastore::create(Arc::new(backend), Options::default()).await.unwrap()
}

/// A tree of all kinds, with small and large files.
pub(crate) fn mixed_tree() -> MemoryTree {
    let tree = MemoryTree::default();
    tree.directory("a");
    tree.directory("a/b");
    tree.directory("a/b/c");
    tree.directory("empty");
    for number in 0..40_u64 {
        tree.file(&format!("a/b/small{number:03}"), noise(number, 500 + 37 * number as usize), 1_600_000_000);
        tree.file(&format!("a/b/c/medium{number:03}"), noise(100 + number, 20_000), 1_600_000_000);
    }
    tree.file("a/large", noise(1, 3_000_000), 1_600_000_001);
    tree.file("a.txt", &b""[..], -5);
    tree.odd_file("stream", 300_000, 7, Contents::Stream(noise(2, 300_000).into(), None));
    let link = FileKind::Symlink { target: "a/large".into() };
    let entry = SourceEntry::new("link", link.clone(), metadata(&link, 3));
    tree.add(b"", entry, Contents::Whole("".into()));
    let file = FileKind::File { size: 5 };
    for name in ["one", "two"] {
        let mut metadata = metadata(&file, 9);
        metadata.xattrs.push(Xattr { name: "user.a".into(), value: "b".into() });
        let entry = SourceEntry::new(name, file.clone(), metadata).link(LinkId { device: 1, inode: 2 });
        tree.add(b"a/b", entry, Contents::Whole("hello".into()));
    }
    tree
}

pub(crate) async fn back_up(
    store: &Datastore,
    tree: &dyn TreeSource,
    base: Option<&SnapshotReader>,
) -> (SnapshotReader, TreeSummary) {
    let backup = store.backup(&group()).begin().await.unwrap();
    let summary = backup.tree("root", tree).base_if_usable(base).chunk_bytes(64 << 10).await.unwrap();
    (backup.finish().await.unwrap().snapshot, summary)
}

#[test]
fn a_tree_comes_back_in_both_forms() {
    block_on(async {
        let (store, tree) = (store().await, mixed_tree());
        let backup = store.backup(&group()).begin().await.unwrap();
        let split = backup.tree("root", &tree).await.unwrap();
        let unified = backup.tree("other.pxar", &tree).unified().await.unwrap();
        let FinishedBackup { snapshot, .. } = backup.finish().await.unwrap();
        let names: Vec<_> = snapshot.manifest().files().iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["root.ppxar.didx", "root.mpxar.didx", "other.pxar.didx", "catalog.pcat1.didx"]);
        assert_eq!(split.counts, unified.counts);
        assert_eq!((split.counts.files, split.counts.hard_links, split.counts.others), (84, 1, 1));
        assert!(split.report.findings.is_empty(), "{}", split.report);
        let expected = contents_of(&tree).await;
        same_tree(&restored(&snapshot, "root").await, &expected);
        same_tree(&restored(&snapshot, "other").await, &expected);
    });
}

#[test]
fn an_unchanged_tree_is_not_opened() {
    block_on(async {
        let (store, tree) = (store().await, mixed_tree());
        let (first, _) = back_up(&store, &tree, None).await;
        assert_eq!(tree.opened().len(), 83, "all but the empty one");
        let (second, summary) = back_up(&store, &tree, Some(&first)).await;
        assert_eq!(tree.opened(), [""; 0]);
        assert_eq!((summary.base, summary.counts.files_reused), (BaseUse::Used, 84));
        let expected = contents_of(&tree).await;
        same_tree(&restored(&second, "root").await, &expected);
        let (third, summary) = back_up(&store, &tree, Some(&second)).await;
        assert_eq!(summary.counts.files_reused, 84);
        same_tree(&restored(&third, "root").await, &expected);
        let backup = store.backup(&group()).begin().await.unwrap();
        let summary =
            backup.tree("root", &tree).base(&third).reread_all().chunk_bytes(64 << 10).await.unwrap();
        assert_eq!((summary.counts.files_reused, tree.opened().len()), (0, 83));
        assert_eq!(backup.stats().chunks_new, 0);
    });
}

/// Proves H193.
#[test]
fn only_what_changed_is_read() {
    block_on(async {
        let (store, tree) = (store().await, mixed_tree());
        let (first, _) = back_up(&store, &tree, None).await;
        tree.opened();
        tree.file("a/b/new", noise(77, 1000), 5);
        tree.file("a/b/c/medium010", noise(78, 20_000), 1_600_000_002);
        tree.file("a/b/c/medium020", noise(79, 20_001), 1_600_000_000);
        tree.remove("a/b/c/medium030");
        tree.remove("empty");
        tree.file("empty", noise(80, 10), 5);
        tree.directory("added");
        tree.file("added/file", noise(81, 10), 5);
        let (second, summary) = back_up(&store, &tree, Some(&first)).await;
        let opened = tree.opened();
        for path in ["a/b/new", "a/b/c/medium010", "a/b/c/medium020", "empty", "added/file"] {
            assert!(opened.contains(&path.to_owned()), "{path}");
        }
        assert!(opened.len() as u64 <= summary.counts.files - summary.counts.files_reused);
        assert!(summary.counts.bytes_reused > 2_000_000, "{:?}", summary.counts);
        same_tree(&restored(&second, "root").await, &contents_of(&tree).await);
    });
}

/// Proves H193.
#[test]
fn a_file_that_was_modified_when_its_base_was_written_is_read_again() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let begun = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(400_000);
        let backup = store.backup(&group()).time(begun).begin().await.unwrap();
        for (name, seconds) in [
            ("after", 1_440_000_001),
            ("before", 1_439_999_900),
            ("just before", 1_439_999_999),
            ("mapped", 1_439_999_970),
        ] {
            tree.file(name, noise(1, 100_000), seconds);
        }
        backup.tree("root", &tree).await.unwrap();
        let base = backup.finish().await.unwrap().snapshot;
        tree.opened();
        tree.file("after", noise(2, 100_000), 1_440_000_001);
        // A page that was dirty got another store.
        tree.file("mapped", noise(3, 100_000), 1_439_999_970);
        let later = begun + std::time::Duration::from_mins(1);
        let backup = store.backup(&group()).time(later).begin().await.unwrap();
        let summary = backup.tree("root", &tree).base(&base).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let opened = tree.opened();
        assert!(
            ["after", "just before", "mapped"].iter().all(|name| opened.contains(&(*name).to_owned())),
            "{summary}"
        );
        same_tree(&restored(&snapshot, "root").await, &contents_of(&tree).await);
    });
}

/// Proves H193.
#[test]
fn a_base_whose_name_is_ahead_of_the_clock_is_not_trusted_longer() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let now = ThreadRuntime::new().now();
        let seconds = now.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let ahead = now + std::time::Duration::from_hours(1);
        tree.file("now", noise(1, 100_000), i64::try_from(seconds).unwrap());
        let backup = store.backup(&group()).time(ahead).begin().await.unwrap();
        backup.tree("root", &tree).await.unwrap();
        let base = backup.finish().await.unwrap().snapshot;
        tree.opened();
        let later = ahead + std::time::Duration::from_mins(1);
        let backup = store.backup(&group()).time(later).begin().await.unwrap();
        backup.tree("root", &tree).base(&base).await.unwrap();
        assert_eq!(tree.opened(), ["now"]);
    });
}

/// Proves H193.
#[test]
fn a_file_that_could_not_be_read_as_listed_is_read_again() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let bytes = noise(1, 200_000);
        let torn = Contents::FailsAfter(bytes[..100_000].to_vec().into());
        let kind = FileKind::File { size: 200_000 };
        for name in ["a", "c"] {
            let entry = SourceEntry::new(name, kind.clone(), metadata(&kind, 1));
            tree.add(b"", entry.link(LinkId { device: 1, inode: 2 }), torn.clone());
        }
        tree.file("b", noise(2, 200_000), 1);
        let (first, summary) = back_up(&store, &tree, None).await;
        assert_eq!(summary.report.findings.len(), 1, "{}", summary.report);
        assert_eq!(restored(&first, "root").await.len(), 4);
        for name in ["a", "c"] {
            let entry = SourceEntry::new(name, kind.clone(), metadata(&kind, 1));
            tree.add(b"", entry.link(LinkId { device: 1, inode: 2 }), Contents::Whole(bytes.clone().into()));
        }
        tree.opened();
        let (second, summary) = back_up(&store, &tree, Some(&first)).await;
        assert_eq!((summary.report.findings.len(), summary.counts.hard_links), (0, 1));
        assert!(tree.opened().contains(&"a".to_owned()));
        let expected = contents_of(&tree).await;
        same_tree(&restored(&second, "root").await, &expected);
        tree.opened();
        let (third, summary) = back_up(&store, &tree, Some(&second)).await;
        assert_eq!((tree.opened().len(), summary.counts.files_reused), (0, 2));
        same_tree(&restored(&third, "root").await, &expected);
    });
}

#[test]
fn files_that_change_while_they_are_read_are_stored_and_reported() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        tree.directory("d");
        let bytes = noise(1, 100_000);
        tree.odd_file(
            "d/changed",
            100_000,
            1,
            Contents::Stream(bytes.clone().into(), Some(Problem::Changed)),
        );
        tree.odd_file("d/denied", 9, 1, Contents::Fails(std::io::ErrorKind::PermissionDenied));
        tree.odd_file("d/gone", 9, 1, Contents::Fails(std::io::ErrorKind::NotFound));
        tree.odd_file("d/grown", 90_000, 1, Contents::Whole(bytes.clone().into()));
        tree.odd_file("d/shrunk", 100_001, 1, Contents::Whole(bytes.clone().into()));
        tree.odd_file("d/shrunk stream", 100_002, 1, Contents::Stream(bytes.clone().into(), None));
        tree.odd_file("d/torn", 200_000, 1, Contents::FailsAfter(bytes.clone().into()));
        tree.file("e", bytes.clone(), 1);
        for is_unified in [false, true] {
            let backup = store.backup(&group()).begin().await.unwrap();
            let builder = backup.tree("root", &tree);
            let summary = if is_unified { builder.unified().await } else { builder.await }.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            let found = |path: &str| {
                let found = summary.report.findings.iter().find(|found| found.path == path.as_bytes());
                found.unwrap_or_else(|| panic!("{path}: {}", summary.report)).problem
            };
            assert_eq!(summary.report.findings.len(), 7, "{}", summary.report);
            assert_eq!(found("d/changed"), Problem::Changed);
            assert_eq!(found("d/denied"), Problem::Unreadable);
            assert_eq!(found("d/gone"), Problem::Vanished);
            assert_eq!(found("d/grown"), Problem::Grown);
            assert_eq!(found("d/shrunk"), Problem::Shrunk(100_000));
            assert_eq!(found("d/shrunk stream"), Problem::Shrunk(100_000));
            assert_eq!(found("d/torn"), Problem::UnreadableFrom(100_000));
            let stored = restored(&snapshot, "root").await;
            assert_eq!(stored.len(), 8);
            let contents = |path: &str| stored[path.as_bytes()].2.clone();
            assert_eq!(contents("d/grown"), bytes[..90_000]);
            assert_eq!(contents("d/shrunk"), [&bytes[..], &[0]].concat());
            assert_eq!(contents("d/shrunk stream"), [&bytes[..], &[0, 0]].concat());
            assert_eq!(contents("d/torn"), [bytes.clone(), vec![0; 100_000]].concat());
            assert_eq!(contents("e"), bytes);
        }
    });
}

#[test]
fn directories_that_cannot_be_read_are_reported() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let kind = FileKind::Directory;
        for (name, error) in
            [("denied", std::io::ErrorKind::PermissionDenied), ("gone", std::io::ErrorKind::NotFound)]
        {
            let entry = SourceEntry::new(name, kind.clone(), metadata(&kind, 1));
            tree.add(b"", entry, Contents::Fails(error));
            tree.file(&format!("{name}/below"), "x", 1);
        }
        let (snapshot, summary) = back_up(&store, &tree, None).await;
        let found: Vec<_> =
            summary.report.findings.iter().map(|found| (&found.path[..], found.problem)).collect();
        assert_eq!(found, [(&b"denied"[..], Problem::UnreadableContents), (b"gone", Problem::Vanished)]);
        let stored = restored(&snapshot, "root").await;
        assert_eq!(stored.keys().map(Vec::len).collect::<Vec<_>>(), [0, 6]);
    });
}

#[test]
fn a_further_name_of_a_file_that_vanished_has_the_contents() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let kind = FileKind::File { size: 5 };
        let link = LinkId { device: 1, inode: 2 };
        for (name, contents) in [
            ("a", Contents::Fails(std::io::ErrorKind::NotFound)),
            ("b", Contents::Whole("hello".into())),
            ("c", Contents::Whole("hello".into())),
        ] {
            tree.add(b"", SourceEntry::new(name, kind.clone(), metadata(&kind, 1)).link(link), contents);
        }
        let (snapshot, summary) = back_up(&store, &tree, None).await;
        assert_eq!((summary.counts.files, summary.counts.hard_links), (1, 1));
        let stored = restored(&snapshot, "root").await;
        assert_eq!((&stored[&b"b"[..]].2[..], &stored[&b"c"[..]].2[..]), (&b"hello"[..], &b"hello"[..]));
    });
}

#[test]
fn a_file_with_the_number_of_a_removed_one_is_no_further_name_of_it() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let link = LinkId { device: 1, inode: 2 };
        let add = |name: &'static str, bytes: &'static str, seconds| {
            let kind = FileKind::File { size: bytes.len() as u64 };
            let entry = SourceEntry::new(name, kind.clone(), metadata(&kind, seconds)).link(link);
            tree.add(b"", entry, Contents::Whole(bytes.into()));
        };
        add("a", "old", 1);
        add("b", "new", 2);
        add("c", "newer", 2);
        add("d", "new", 2);
        let expected = contents_of(&tree).await;
        let mut base = None;
        for _ in 0..2 {
            let (snapshot, summary) = back_up(&store, &tree, base.as_ref()).await;
            assert_eq!((summary.counts.files, summary.counts.hard_links), (3, 1));
            let stored = restored(&snapshot, "root").await;
            for (name, bytes) in [("a", "old"), ("b", "new"), ("c", "newer"), ("d", "new")] {
                assert_eq!(stored[name.as_bytes()].2, bytes.as_bytes(), "{name}");
            }
            assert_eq!(stored.len(), expected.len());
            base = Some(snapshot);
        }
    });
}

#[test]
fn a_root_that_cannot_be_listed_is_an_error() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        tree.remove_root();
        let backup = store.backup(&group()).begin().await.unwrap();
        let error = backup.tree("root", &tree).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stream, "{error}");
    });
}

#[test]
fn a_file_with_the_name_of_the_exclude_patterns_is_left_out_of_the_root_with_a_notice() {
    block_on(async {
        let tree = MemoryTree::default();
        tree.directory("a");
        for path in [".pxarexclude-cli", "a/.pxarexclude-cli"] {
            tree.file(path, noise(1, 1000), 1);
        }
        let (snapshot, summary) = back_up(&store().await, &tree, None).await;
        let [finding] = &summary.report.findings[..] else { panic!("{}", summary.report) };
        assert_eq!((&finding.path[..], finding.problem), (&b".pxarexclude-cli"[..], Problem::Reserved));
        assert!(summary.report.is_complete());
        let stored = restored(&snapshot, "root").await;
        assert!(stored.contains_key(&b"a/.pxarexclude-cli"[..]) && stored.len() == 3);
    });
}

#[test]
fn directories_that_are_too_deep_to_be_read_back_are_left_out() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        let path = |depth: usize| vec!["d"; depth].join("/");
        for depth in 1..1040 {
            tree.directory(&path(depth));
        }
        tree.file(&format!("{}/file", path(1023)), noise(1, 1000), 1);
        tree.file("z", noise(2, 50_000), 1);
        let mut base = None;
        // The second backup reads the file again, whose directories are closed by then: padding is too much.
        for _ in 0..2 {
            let (snapshot, summary) = back_up(&store, &tree, base.as_ref()).await;
            assert_eq!((summary.counts.directories, summary.counts.files_reused), (1024, 0));
            let [finding] = &summary.report.findings[..] else { panic!("{}", summary.report) };
            assert_eq!((&finding.path[..], finding.problem), (path(1024).as_bytes(), Problem::Unreadable));
            let stored = restored(&snapshot, "root").await;
            assert_eq!(stored.len(), 1024 + 2);
            assert_eq!(stored[format!("{}/file", path(1023)).as_bytes()].2, noise(1, 1000));
            tree.file("z", noise(3, 50_000), 2);
            base = Some(snapshot);
        }
    });
}

/// Proves H192.
#[test]
fn an_encrypted_tree_reuses_chunks_of_its_key_only() {
    block_on(async {
        let (store, tree) = (store().await, mixed_tree());
        let key = EncryptionKey::from_bytes(&[7; 32]);
        let write = |key: Option<EncryptionKey>, base: Option<Arc<SnapshotReader>>| {
            let (store, tree) = (store.clone(), tree.clone());
            async move {
                let builder = store.backup(&group());
                let builder = if let Some(key) = &key { builder.encrypt(key) } else { builder };
                let backup = builder.begin().await.unwrap();
                let summary = backup.tree("root", &tree).base_if_usable(base.as_deref()).await.unwrap();
                (Arc::new(backup.finish().await.unwrap().snapshot), summary)
            }
        };
        let (plain, _) = write(None, None).await;
        let (first, summary) = write(Some(key.clone()), Some(Arc::clone(&plain))).await;
        assert_eq!((summary.base, summary.counts.files_reused), (BaseUse::OtherKey, 0));
        let (second, summary) = write(Some(key.clone()), Some(first)).await;
        assert_eq!((summary.base, summary.counts.files_reused), (BaseUse::Used, 84));
        same_tree(&restored(&second, "root").await, &contents_of(&tree).await);
        let (_, summary) = write(None, Some(second)).await;
        assert_eq!((summary.base, summary.counts.files_reused), (BaseUse::Encrypted, 0));
    });
}

#[test]
fn names_are_taken_once_and_a_dropped_tree_leaves_none() {
    block_on(async {
        let (store, tree) = (store().await, mixed_tree());
        let backup = store.backup(&group()).begin().await.unwrap();
        {
            let mut dropped =
                std::pin::pin!(std::future::IntoFuture::into_future(backup.tree("root", &tree)));
            let waker = futures::task::noop_waker();
            let _ = dropped.as_mut().poll(&mut std::task::Context::from_waker(&waker));
        }
        backup.tree("root", &tree).await.unwrap();
        let error = backup.tree("root", &tree).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        backup.tree("root", &tree).unified().await.unwrap();
        backup.tree("more", &tree).unified().await.unwrap();
        let finished = backup.finish().await.unwrap();
        let catalog = crate::archives::read(&finished.snapshot, "catalog.pcat1.didx").await;
        let catalog = larder::pxar::CatalogReader::parse(catalog).unwrap();
        let archives = catalog.entries(catalog.root()).unwrap();
        let names: Vec<_> = archives.iter().map(|entry| &entry.name[..]).collect();
        assert_eq!(names, [&b"root.pxar.didx"[..], b"more.pxar.didx"]);
    });
}

#[test]
fn a_tree_and_its_change_come_back_on_every_runtime_in_every_place() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, tree) = (place.store().await, MemoryTree::default());
            tree.directory("d");
            tree.directory("d/e");
            for number in 0..20 {
                tree.file(&format!("d/e/{number:02}"), noise(number, 10_000), 1);
            }
            let (first, _) = back_up(&store, &tree, None).await;
            tree.opened();
            tree.file("d/z", noise(100, 10_000), 1);
            let (second, summary) = back_up(&store, &tree, Some(&first)).await;
            assert_eq!(summary.counts.files_reused, 20);
            assert_eq!(tree.opened(), ["d/z"]);
            same_tree(&restored(&second, "root").await, &contents_of(&tree).await);
        })
    });
}

#[test]
fn the_observer_of_a_tree_sees_what_is_read_and_what_is_reused() {
    block_on(async {
        let (store, tree) = (store().await, MemoryTree::default());
        tree.directory("d");
        tree.file("d/same", noise(1, 100_000), 1);
        let (first, _) = back_up(&store, &tree, None).await;
        tree.file("e", "new", 1);
        tree.odd_file("f", 1, 1, Contents::Fails(std::io::ErrorKind::NotFound));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let backup = store.backup(&group()).begin().await.unwrap();
        let events = Arc::clone(&seen);
        let observer = move |event: &TreeEvent| events.lock().unwrap().push(event.to_string());
        backup
            .tree("root", &tree)
            .base(&first)
            .chunk_bytes(64 << 10)
            .observer(Arc::new(observer))
            .await
            .unwrap();
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.sort();
        let vanished = "f: it vanished; left out: entity not found";
        assert_eq!(seen, ["d/same: unchanged, 97.7 KiB", "d: entered", "e: read, 3 bytes", vanished]);
    });
}

#[test]
fn names_and_averages_that_are_not_valid_are_refused() {
    block_on(async {
        let (store, tree) = (store().await, mixed_tree());
        let backup = store.backup(&group()).begin().await.unwrap();
        for (name, average) in [("a/b", 4 << 20), ("", 4 << 20), ("root", 100_000), ("root", 8 << 20)] {
            let error = backup.tree(name, &tree).chunk_bytes(average).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?} {average}");
        }
        let odd = MemoryTree::new(metadata(&FileKind::Directory, 1), vec![b"\xff"[..].into()]);
        assert_eq!(backup.tree("root", &odd).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        backup.tree("root", &odd).unified().await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let backup = store.backup(&group()).begin().await.unwrap();
        let error = backup.tree("root", &tree).base(&snapshot).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "the base has the other form");
    });
}

#[cfg(feature = "testing")]
#[test]
fn a_tree_with_any_failed_change_leaves_a_whole_snapshot_or_none() {
    use larder::internal::fault::{Action, FaultBackend, Rule};
    use larder::internal::record::Method;

    block_on(async {
        let tree = MemoryTree::default();
        for number in 0..20 {
            tree.file(&format!("{number:02}"), noise(number, 20_000), 1);
        }
        let mut step = 1;
        loop {
            let memory = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
            let backend = Arc::new(FaultBackend::new(Arc::new(memory)));
            let store = Datastore::create(backend.clone(), Options::default()).await.unwrap();
            let (first, _) = back_up(&store, &tree, None).await;
            tree.file("10", noise(100 + step, 20_000), 2 + step as i64);
            backend.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).nth(step));
            let backup = store.backup(&group()).begin().await.unwrap();
            let written = backup.tree("root", &tree).base(&first).chunk_bytes(64 << 10).await;
            let finished = match written {
                Ok(_) => backup.finish().await.map(|finished| finished.snapshot),
                Err(error) => backup.abort().await.and(Err(error)),
            };
            backend.clear();
            match finished {
                Ok(snapshot) => {
                    same_tree(&restored(&snapshot, "root").await, &contents_of(&tree).await);
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
            }
            let found = store.snapshots(&group()).await.unwrap();
            let finished = found.iter().filter(|info| info.state == SnapshotState::Finished).count();
            assert_eq!(finished, 1, "{step}");
            step += 1;
        }
        assert!(step > 3, "{step}");
    });
}

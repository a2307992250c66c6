//! Restores of trees: what they select, in which order, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::backend::{Backend as _, Removal};
use larder::error::ErrorKind;
use larder::pxar::{FileKind, Metadata};
use larder::tree::{
    DirectoryTarget, LinkId, Problem, SourceEntry, TargetError, TargetFile, Tree, TreeFinding, TreeTarget,
};
use larder_testing::noise;
use larder_testing::tree::{Contents, MemoryTree, metadata};

use crate::reading::{Archive, chunks_of, memory, stored};
use crate::restore_genuine::{of_directory, of_tree};
use crate::write::{back_up, mixed_tree, store};

async fn create(path: &Path) -> DirectoryTarget {
    DirectoryTarget::create(Arc::new(ThreadRuntime::new()), path).await.unwrap()
}

async fn tree_of(source: &MemoryTree) -> Tree {
    back_up(&store().await, source, None).await.0.tree("root").await.unwrap()
}

/// Paths of files and directories below a directory, sorted.
fn paths(directory: &Path) -> Vec<String> {
    let mut found: Vec<_> = block_on(of_directory(directory)).into_keys().collect();
    found.retain(|path| !path.is_empty());
    found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
}

fn problems(findings: &[TreeFinding]) -> Vec<(String, Problem)> {
    let mut found: Vec<_> = findings.iter().map(|found| (found.shown_path(), found.problem)).collect();
    found.sort_by_key(|found| found.0.clone());
    found
}

/// Files with several names in several directories.
pub(crate) fn linked_tree() -> MemoryTree {
    let tree = MemoryTree::default();
    for directory in ["a", "a/b", "c"] {
        tree.directory(directory);
    }
    let file = FileKind::File { size: 5 };
    for (directory, name) in [("a", "first"), ("a/b", "second"), ("c", "third"), ("c", "fourth")] {
        let entry =
            SourceEntry::new(name, file.clone(), metadata(&file, 9)).link(LinkId { device: 1, inode: 2 });
        tree.add(directory.as_bytes(), entry, Contents::Whole("hello".into()));
    }
    tree.file("c/large", noise(1, 3_000_000), 5);
    tree.file("a/b/x.conf", "x", 5);
    tree.file("c/y.conf", "y", 5);
    tree
}

#[test]
fn a_tree_is_restored_in_both_forms() {
    block_on(async {
        let place = tempfile::tempdir().unwrap();
        for (name, source) in [("mixed", mixed_tree()), ("linked", linked_tree())] {
            let store = store().await;
            let backup = store.backup(&crate::write::group()).begin().await.unwrap();
            backup.tree("split", &source).chunk_bytes(64 << 10).await.unwrap();
            backup.tree("unified.pxar", &source).unified().chunk_bytes(64 << 10).await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            for form in ["split", "unified"] {
                let tree = snapshot.tree(form).await.unwrap();
                let to = place.path().join(format!("{name}-{form}"));
                let target = create(&to).await;
                let summary = tree.restore(&target).await.unwrap();
                assert!(summary.report.findings.is_empty() || !is_root(), "{}", summary.report);
                let (restored, expected) = (of_directory(&to).await, of_tree(&tree).await);
                assert_eq!(restored.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (path, (kind, metadata, contents)) in expected {
                    let (found, found_metadata, found_contents) = &restored[&path];
                    assert!(*found == kind && *found_contents == contents, "{}", path.escape_ascii());
                    assert_eq!(found_metadata.stat.mtime, metadata.stat.mtime, "{}", path.escape_ascii());
                }
            }
        }
    });
}

#[test]
fn a_chunk_with_several_selected_files_is_read_once() {
    block_on(async {
        let source = MemoryTree::default();
        (0..40).for_each(|number| source.file(&format!("f{number:02}"), noise(number, 5000), 5));
        let (backend, store) = memory().await;
        let snapshot = back_up(&store, &source, None).await.0;
        let place = tempfile::tempdir().unwrap();
        let tree = snapshot.tree("root").await.unwrap();
        let target = create(&place.path().join("to")).await;
        backend.reset();
        let mut restore = tree.restore(&target);
        for number in 0..40 {
            restore = restore.path(format!("f{number:02}"));
        }
        assert_eq!(restore.await.unwrap().files, 40);
        let gets: Vec<_> = backend.calls().into_iter().map(|call| call.keys).collect();
        let distinct: BTreeSet<_> = gets.iter().map(|keys| format!("{keys:?}")).collect();
        assert_eq!(distinct.len(), gets.len(), "a chunk is read twice");
    });
}

/// Chunks of several MiB lie in several buffers, which are written together.
#[test]
fn a_file_in_long_chunks_is_restored_in_both_forms() {
    block_on(async {
        let mut contents = noise(3, 12_000_000);
        contents[700_000..2_900_000].fill(0);
        let source = MemoryTree::default();
        source.file("large", contents.clone(), 5);
        source.file("small", "text", 5);
        let store = store().await;
        let backup = store.backup(&crate::write::group()).begin().await.unwrap();
        backup.tree("split", &source).await.unwrap();
        backup.tree("unified.pxar", &source).unified().await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let place = tempfile::tempdir().unwrap();
        for form in ["split", "unified"] {
            let tree = snapshot.tree(form).await.unwrap();
            let to = place.path().join(form);
            let target = create(&to).await;
            tree.restore(&target).await.unwrap();
            assert!(fs::read(to.join("large")).unwrap() == contents, "{form}");
            assert_eq!(fs::read(to.join("small")).unwrap(), b"text");
            let written = fs::metadata(to.join("large")).unwrap().blocks() * 512;
            assert!(written <= 12_000_000 - 2_200_000 + 3 * 4096, "{written} bytes, without the hole");
            let target = MemoryTarget::default();
            tree.restore(&target).await.unwrap();
            assert!(target.entries.into_inner().unwrap().contains_key("large"), "{form}");
        }
    });
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn paths_and_patterns_select_entries_with_what_is_below_and_above() {
    let place = tempfile::tempdir().unwrap();
    let tree = block_on(tree_of(&linked_tree()));
    let number = std::cell::Cell::new(0);
    let new = || {
        number.set(number.get() + 1);
        place.path().join(format!("{}", number.get()))
    };
    let restored = |path: &Path, restore: &dyn Fn(&DirectoryTarget) -> larder::tree::TreeRestoreSummary| {
        let summary = restore(&block_on(create(path)));
        assert!(!is_root() || summary.report.findings.is_empty(), "{}", summary.report);
        (paths(path), summary)
    };
    let to = new();
    let (found, summary) = restored(&to, &|target| {
        block_on(tree.restore(target).path("/a/b/").path("c/y.conf").path("a/b/x.conf").into_future())
            .unwrap()
    });
    assert_eq!(found, ["a", "a/b", "a/b/second", "a/b/x.conf", "c", "c/y.conf"]);
    assert_eq!((summary.directories, summary.files, summary.hard_links), (3, 3, 0));
    assert_eq!(fs::read(to.join("a/b/second")).unwrap(), b"hello");
    for directory in ["a", "a/b", "c"] {
        let found = fs::metadata(to.join(directory)).unwrap();
        assert_eq!((found.mtime(), found.mode() & 0o777), (1_700_000_000, 0o755), "{directory}");
    }
    assert_ne!(fs::metadata(&to).unwrap().mtime(), 1_700_000_000, "the root is not of the selection");
    let to = new();
    let (found, summary) =
        restored(&to, &|target| block_on(tree.restore(target).pattern("c/").unwrap().into_future()).unwrap());
    assert_eq!(found, ["c", "c/fourth", "c/large", "c/third", "c/y.conf"]);
    // The file that both name is not selected: one copy, with two names.
    assert_eq!((summary.files, summary.hard_links), (3, 1));
    let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(inode("c/third"), inode("c/fourth"));
    let patterns = |target: &DirectoryTarget| {
        block_on(tree.restore(target).pattern("*.conf").unwrap().pattern("!y.*").unwrap().into_future())
            .unwrap()
    };
    assert_eq!(restored(&new(), &patterns).0, ["a", "a/b", "a/b/x.conf"]);
    let below = |target: &DirectoryTarget| {
        block_on(tree.restore(target).pattern("/a").unwrap().pattern("!/a/b").unwrap().into_future()).unwrap()
    };
    assert_eq!(restored(&new(), &below).0, ["a", "a/first"]);
    let none = new();
    let target = block_on(create(&none));
    assert_eq!(tree.restore(&target).pattern("[").unwrap_err().kind(), ErrorKind::InvalidInput);
    let missing = block_on(tree.restore(&target).path("a").path("nothing").into_future()).unwrap_err();
    assert_eq!((missing.kind(), paths(&none).len()), (ErrorKind::NotFound, 0));
    let missing = tree.restore(&target).path("nothing").pattern("a").unwrap();
    assert_eq!(block_on(missing.into_future()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(paths(&none).len(), 0);
    let all = block_on(tree.restore(&target).path("a").path("/").into_future()).unwrap();
    assert_eq!((all.files, all.hard_links, all.directories), (4, 3, 3));
}

#[test]
fn a_damaged_chunk_costs_the_files_in_it() {
    block_on(async {
        let place = tempfile::tempdir().unwrap();
        let sizes = [10_000_usize, 0, 3_000, 1_200_000, 20, 9_000, 30_000, 1];
        for split in [true, false] {
            let (backend, store) = memory().await;
            let mut archive = Archive::new(split);
            let mut starts = Vec::new();
            for (file, size) in sizes.iter().enumerate() {
                starts.push(archive.file(&format!("f{file}"), &noise(file as u64, *size)));
            }
            let snapshot = stored(&store, &archive.finish(), 4096, None).await;
            let expected = of_tree(&snapshot.tree("root").await.unwrap()).await;
            let chunks = chunks_of(&snapshot, if split { "root.ppxar" } else { "root.pxar" }).await;
            for (number, (chunk, _)) in chunks.iter().enumerate().filter(|(number, _)| number % 60 == 5) {
                let kept = backend.get(chunk, 1 << 20).await.unwrap().bytes;
                backend.delete(&[Removal::any(chunk.clone())]).await.unwrap();
                let to = place.path().join(format!("{split}-{number}"));
                let target = create(&to).await;
                let summary = snapshot.tree("root").await.unwrap().restore(&target).await.unwrap();
                backend.put(chunk, kept, larder::backend::PutMode::Create).await.unwrap();
                let restored = of_directory(&to).await;
                let lost: BTreeSet<_> =
                    expected.keys().filter(|path| !restored.contains_key(*path)).cloned().collect();
                assert!((1..=3).contains(&lost.len()), "{split} {number}: {lost:?}");
                let damaged: BTreeSet<_> = summary
                    .report
                    .findings
                    .iter()
                    .filter(|found| found.problem == Problem::Damaged)
                    .map(|found| found.path.clone())
                    .collect();
                if split {
                    assert_eq!(damaged, lost);
                } else {
                    assert!(damaged.is_subset(&lost) && !summary.report.is_complete());
                }
                for (path, (kind, _, contents)) in &restored {
                    assert!(*kind == expected[path].0 && *contents == expected[path].2);
                }
            }
        }
    });
}

#[test]
fn directories_that_a_cut_archive_leaves_open_are_finished() {
    block_on(async {
        let place = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(false);
        archive.enter("dir");
        archive.enter("inner");
        archive.file("file", b"whole");
        archive.leave();
        let position = usize::try_from(archive.file("later", &noise(1, 10_000))).unwrap();
        archive.leave();
        let mut streams = archive.finish();
        streams[0].truncate(position);
        let (_, store) = memory().await;
        let tree = stored(&store, &streams, 4096, None).await.tree("root").await.unwrap();
        let summary = tree.restore(&create(&place.path().join("to")).await).await.unwrap();
        assert_eq!(problems(&summary.report.findings)[0].1, Problem::EntriesLost);
        assert_eq!(fs::read(place.path().join("to/dir/inner/file")).unwrap(), b"whole");
        for (directory, mode) in [("to", 0o755), ("to/dir", 0o750), ("to/dir/inner", 0o750)] {
            assert_eq!(
                fs::metadata(place.path().join(directory)).unwrap().mode() & 0o777,
                mode,
                "{directory}"
            );
        }
    });
}

#[test]
fn paths_are_restored_although_the_root_is_damaged() {
    block_on(async {
        let place = tempfile::tempdir().unwrap();
        let (backend, store) = memory().await;
        let mut archive = Archive::new(false);
        archive.file("before", &noise(1, 10_000));
        archive.enter("dir");
        archive.file("file", b"whole");
        archive.leave();
        let snapshot = stored(&store, &archive.finish(), 4096, None).await;
        let (chunk, _) = &chunks_of(&snapshot, "root.pxar").await[0];
        let tree = snapshot.tree("root").await.unwrap();
        backend.delete(&[Removal::any(chunk.clone())]).await.unwrap();
        let to = place.path().join("to");
        let summary = tree.restore(&create(&to).await).path("dir").await.unwrap();
        assert_eq!((summary.files, problems(&summary.report.findings)), (1, Vec::new()));
        assert_eq!(fs::read(to.join("dir/file")).unwrap(), b"whole");
    });
}

/// A target in memory that checks the order of calls, and fails where it is asked to.
#[derive(Debug, Default)]
struct MemoryTarget {
    entries: Mutex<BTreeMap<String, Made>>,
    fails: BTreeMap<&'static str, io::ErrorKind>,
    has_no_links: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Made {
    /// `true` if it has its metadata.
    Directory(bool),
    File(Bytes),
    Other,
}

impl MemoryTarget {
    fn make(&self, path: &[u8], made: Made) -> Result<Vec<TreeFinding>, TargetError> {
        let path = String::from_utf8(path.to_vec()).unwrap();
        if let Some(kind) = self.fails.get(&*path) {
            return Err(io::Error::from(*kind).into());
        }
        let mut entries = self.entries.lock().unwrap();
        if let Some((above, _)) = path.rsplit_once('/') {
            assert_eq!(entries.get(above), Some(&Made::Directory(false)), "{path}");
        }
        assert_eq!(entries.insert(path, made), None);
        Ok(Vec::new())
    }
}

#[async_trait]
impl TreeTarget for MemoryTarget {
    async fn directory(&self, path: &[u8], _: &Metadata) -> Result<Vec<TreeFinding>, TargetError> {
        self.make(path, Made::Directory(false))
    }

    async fn small_file(
        &self,
        path: &[u8],
        contents: Bytes,
        _: &Metadata,
    ) -> Result<Vec<TreeFinding>, TargetError> {
        self.make(path, Made::File(contents))
    }

    async fn file(&self, path: &[u8], size: u64, _: &Metadata) -> Result<Box<dyn TargetFile>, TargetError> {
        self.make(path, Made::Other)?;
        Ok(Box::new(Counted(size)))
    }

    async fn special(
        &self,
        path: &[u8],
        _: &FileKind,
        _: &Metadata,
    ) -> Result<Vec<TreeFinding>, TargetError> {
        self.make(path, Made::Other)
    }

    async fn hard_link(&self, path: &[u8], target: &[u8]) -> Result<(), TargetError> {
        if self.has_no_links {
            return Err(io::Error::from(io::ErrorKind::Unsupported).into());
        }
        let target = std::str::from_utf8(target).unwrap();
        let found = self.entries.lock().unwrap().get(target).cloned();
        let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.make(path, found).map(drop)
    }

    async fn finish_directory(&self, path: &[u8], _: &Metadata) -> Result<Vec<TreeFinding>, TargetError> {
        let path = String::from_utf8(path.to_vec()).unwrap();
        let mut entries = self.entries.lock().unwrap();
        let below = format!("{path}/");
        for (inner, made) in entries.iter() {
            let is_below = path.is_empty() || inner.starts_with(&below);
            assert!(!is_below || *made != Made::Directory(false), "{inner} in {path}");
        }
        let before = entries.insert(path.clone(), Made::Directory(true));
        assert_eq!(before, (!path.is_empty()).then_some(Made::Directory(false)));
        Ok(Vec::new())
    }

    async fn finish(&self) -> io::Result<Vec<TreeFinding>> {
        assert_eq!(self.entries.lock().unwrap().get(""), Some(&Made::Directory(true)));
        Ok(Vec::new())
    }
}

/// A large file of which the bytes are counted.
struct Counted(u64);

#[async_trait]
impl TargetFile for Counted {
    async fn write(&mut self, data: Bytes) -> Result<(), TargetError> {
        self.0 -= data.len() as u64;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Vec<TreeFinding>, TargetError> {
        assert_eq!(self.0, 0);
        Ok(Vec::new())
    }
}

#[test]
fn a_target_of_a_caller_is_called_in_order() {
    block_on(async {
        let tree = tree_of(&mixed_tree()).await;
        let target = MemoryTarget::default();
        let summary = tree.restore(&target).await.unwrap();
        assert!(summary.report.findings.is_empty());
        let made = target.entries.into_inner().unwrap();
        assert_eq!(
            made.len() as u64,
            1 + summary.files + summary.directories + summary.hard_links + summary.special
        );
        assert_eq!(made["a/b/two"], Made::File("hello".into()));
    });
}

#[test]
fn errors_of_a_target_cost_the_entry_alone() {
    block_on(async {
        let tree = tree_of(&linked_tree()).await;
        let fails = [
            ("a/b", io::ErrorKind::PermissionDenied),
            ("c/large", io::ErrorKind::AlreadyExists),
            ("c/y.conf", io::ErrorKind::Other),
        ];
        let target = MemoryTarget { fails: fails.into(), ..MemoryTarget::default() };
        let summary = tree.restore(&target).await.unwrap();
        let expected = [
            ("a/b", Problem::NotCreated),
            // Instead of a link to a file in that directory.
            ("a/first", Problem::Copied),
            ("c/large", Problem::Exists),
            ("c/y.conf", Problem::NotCreated),
        ];
        assert_eq!(
            problems(&summary.report.findings),
            expected.map(|(path, problem)| (path.to_owned(), problem))
        );
        let made = target.entries.into_inner().unwrap();
        assert_eq!(made.keys().collect::<Vec<_>>(), ["", "a", "a/first", "c", "c/fourth", "c/third"]);
    });
}

#[test]
fn a_full_target_ends_the_restore() {
    block_on(async {
        let tree = tree_of(&linked_tree()).await;
        for path in ["a/b/x.conf", "c/large"] {
            let fails = [(path, io::ErrorKind::StorageFull)].into();
            let target = MemoryTarget { fails, ..MemoryTarget::default() };
            assert_eq!(tree.restore(&target).await.unwrap_err().kind(), ErrorKind::Full, "{path}");
        }
    });
}

#[test]
fn hard_links_become_copies_where_the_target_has_none() {
    block_on(async {
        let tree = tree_of(&linked_tree()).await;
        let target = MemoryTarget { has_no_links: true, ..MemoryTarget::default() };
        let summary = tree.restore(&target).await.unwrap();
        let copied = ["a/first", "c/fourth", "c/third"].map(|path| (path.to_owned(), Problem::Copied));
        let found = problems(&summary.report.findings);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|found| found.1 == Problem::Copied), "{found:?} {copied:?}");
        let made = target.entries.into_inner().unwrap();
        for name in ["a/first", "a/b/second", "c/third", "c/fourth"] {
            assert_eq!(made[name], Made::File("hello".into()), "{name}");
        }
    });
}

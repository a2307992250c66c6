//! Hard links whose files are lost or are others than they say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::backend::{Backend as _, Removal};
use larder::error::ErrorKind;
use larder::store::SnapshotReader;
use larder::tree::{DirectoryTarget, Problem, Tree, TreeReport};
use larder_testing::noise;

use crate::reading::{Archive, chunks_of, memory, stored};
use crate::restore_genuine::gnu_tar;

/// What is restored: contents by path, and the report.
type Restored = (BTreeMap<String, Vec<u8>>, TreeReport);

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(now) = waiting.pop() {
        for entry in fs::read_dir(now).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Restores a tree into a directory, and through GNU tar into another, if there is one.
async fn both_ways(tree: &Tree) -> Vec<Restored> {
    let place = tempfile::tempdir().unwrap();
    let (to, unpacked) = (place.path().join("to"), place.path().join("unpacked"));
    let target = DirectoryTarget::create(Arc::new(ThreadRuntime::new()), &to).await.unwrap();
    let report = tree.restore(&target).await.unwrap().report;
    let mut all = vec![(files(&to), report)];
    let mut archive = Vec::new();
    let report = tree.to_tar("", &mut archive).await.unwrap();
    // It has no complaints: the file of each link is in the archive.
    if gnu_tar(&archive, &unpacked, &["--warning=no-timestamp"]) {
        all.push((files(&unpacked), report));
    }
    all
}

fn problems(report: &TreeReport) -> Vec<(String, Problem)> {
    let mut found: Vec<_> = report.findings.iter().map(|found| (found.shown_path(), found.problem)).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.retain(|(_, problem)| !matches!(problem, Problem::NotSet(_)));
    found
}

async fn remove_chunk(
    backend: &larder::internal::record::RecordingBackend,
    snapshot: &SnapshotReader,
    at: (&str, u64),
) {
    let chunks = chunks_of(snapshot, at.0).await;
    let (chunk, _) = chunks.iter().find(|(_, range)| range.contains(&at.1)).unwrap();
    backend.delete(&[Removal::any(chunk.clone())]).await.unwrap();
}

#[test]
fn a_further_name_of_a_file_with_damaged_contents_is_reported() {
    block_on(async {
        for size in [9000, 1_300_000] {
            let (backend, store) = memory().await;
            let mut archive = Archive::new(true);
            let position = archive.file("file", &noise(1, size));
            archive.hard_link("link", "file", position);
            archive.file("other", b"kept");
            let snapshot = stored(&store, &archive.finish(), 4096, None).await;
            remove_chunk(&backend, &snapshot, ("root.ppxar", 5000)).await;
            for (number, (files, report)) in
                both_ways(&snapshot.tree("root").await.unwrap()).await.into_iter().enumerate()
            {
                let damaged = ["file", "link"].map(|path| (path.to_owned(), Problem::Damaged));
                assert_eq!(problems(&report), damaged);
                assert_eq!(files["other"], b"kept");
                // Zeros stand for the rest of a large file in a tar, whose header is written before.
                assert_eq!(files.len(), if number == 1 && size > 1 << 20 { 3 } else { 1 });
            }
        }
    });
}

#[test]
fn a_further_name_of_a_file_whose_entry_is_damaged_is_reported() {
    block_on(async {
        let (backend, store) = memory().await;
        let mut archive = Archive::new(true);
        for file in 0..100 {
            archive.file(&format!("a{file:02}"), b"");
        }
        let position = archive.file("file", b"contents");
        for file in 0..100 {
            archive.file(&format!("g{file:02}"), b"");
        }
        archive.hard_link("link", "file", position);
        let snapshot = stored(&store, &archive.finish(), 4096, None).await;
        remove_chunk(&backend, &snapshot, ("root.mpxar", position)).await;
        for (files, report) in both_ways(&snapshot.tree("root").await.unwrap()).await {
            let expected = [(String::new(), Problem::EntriesLost), ("link".to_owned(), Problem::Damaged)];
            assert_eq!(problems(&report), expected);
            assert!(!files.contains_key("link") && files.contains_key("g99"));
        }
    });
}

#[test]
fn a_further_name_of_a_file_that_damage_hides_has_its_contents() {
    block_on(async {
        let (_, store) = memory().await;
        let mut archive = Archive::new(true);
        archive.enter("a");
        let malformed = archive.file("0", b"");
        let position = archive.file("file", b"contents");
        archive.leave();
        let after = archive.file("b", b"");
        archive.hard_link("link", "a/file", position);
        archive.hard_link("more", "a/file", position);
        let mut streams = archive.finish();
        let mut bytes = streams[0].to_vec();
        // The entry of one file, and the table that leads to the next.
        for at in [malformed + 18, after - 24] {
            bytes[usize::try_from(at).unwrap()] ^= 1;
        }
        streams[0] = bytes.into();
        let snapshot = stored(&store, &streams, 4096, None).await;
        for (files, report) in both_ways(&snapshot.tree("root").await.unwrap()).await {
            assert_eq!(problems(&report), [("a".to_owned(), Problem::EntriesLost)]);
            let expected = [("b", ""), ("link", "contents"), ("more", "contents")];
            assert_eq!(files, expected.map(|(path, text)| (path.to_owned(), text.into())).into());
        }
    });
}

/// Proves H194.
#[test]
fn a_hard_link_whose_position_and_path_differ_is_damaged() {
    block_on(async {
        let (_, store) = memory().await;
        let mut archive = Archive::new(true);
        archive.enter("a");
        let position = archive.file("file", b"of a");
        archive.leave();
        archive.enter("b");
        archive.file("file", b"of b");
        archive.leave();
        archive.hard_link("link", "b/file", position);
        archive.hard_link("right", "a/file", position);
        let snapshot = stored(&store, &archive.finish(), 4096, None).await;
        let tree = snapshot.tree("root").await.unwrap();
        for (files, report) in both_ways(&tree).await {
            assert_eq!(problems(&report), [("link".to_owned(), Problem::Damaged)]);
            let expected = [("a/file", "of a"), ("b/file", "of b"), ("right", "of a")];
            assert_eq!(files, expected.map(|(path, text)| (path.to_owned(), text.into())).into());
        }
        assert_eq!(tree.open("link").await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(tree.open("right").await.unwrap().read_all().await.unwrap(), "of a");
    });
}

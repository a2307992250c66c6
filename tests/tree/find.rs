//! Searches by pattern.

use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::{Backend as _, Removal};
use larder::internal::index;
use larder::pxar::FileKind;
use larder::tree::{EntryKind, Excludes, Tree, TreeStep};

use crate::genuine::walked;
use crate::reading::{chunks_of, memory, stored, wide};

/// Paths of the entries that a search yields, and the number of losses.
async fn found(tree: &Tree, pattern: &str) -> (Vec<Bytes>, usize) {
    let (mut paths, mut losses) = (Vec::new(), 0);
    let mut find = tree.find(pattern).unwrap();
    while let Some(step) = find.next().await.unwrap() {
        match step {
            TreeStep::Entry(entry) => paths.push(entry.path),
            _ => losses += 1,
        }
    }
    (paths, losses)
}

/// The matches of a pattern among the steps of a walk.
fn matches(steps: &[TreeStep], pattern: &str) -> Vec<Bytes> {
    let mut excludes = Excludes::default();
    excludes.push(pattern).unwrap();
    let mut matches = Vec::new();
    for step in steps {
        let TreeStep::Entry(entry) = step else { continue };
        let is_directory = entry.kind == FileKind::Directory;
        let kind = if is_directory { EntryKind::Directory } else { EntryKind::Other };
        if excludes.excludes(&entry.path, kind) {
            matches.push(entry.path.clone());
        }
    }
    matches
}

#[test]
fn a_pattern_with_names_in_front_is_searched_where_they_lead() {
    block_on(async {
        let (backend, store) = memory().await;
        let snapshot = stored(&store, &wide(true, 12, 80).finish(), 1 << 16, None).await;
        let chunks = index::of_archive(&snapshot.archive("root.mpxar").await.unwrap()).len() as u64;
        let whole = walked(&snapshot.tree("root").await.unwrap()).await;
        for (pattern, count) in [
            ("/a05/b05/*", 80),
            ("/a05/b05/f01?", 10),
            ("/a05/b05/f010", 1),
            ("/a05/b05/f010/", 0),
            ("/a05/b05/f010/*", 0),
            ("/a05/b05/", 1),
            ("/a05", 1),
            ("/a05/none/*", 0),
            ("/a05/none", 0),
        ] {
            let tree = snapshot.tree("root").await.unwrap();
            backend.reset();
            let (paths, losses) = found(&tree, pattern).await;
            assert_eq!((paths.len(), losses), (count, 0), "{pattern}");
            assert_eq!(paths, matches(&whole, pattern));
            let gets = backend.counts().gets;
            assert!(gets <= 8 && gets < chunks / 2, "{pattern}: {gets} of {chunks}");
        }
        // These may match anywhere.
        for (pattern, count) in [("a05/b05/f01?", 10), ("/*/b05", 12), ("**/f00[12]", 288), ("!/a05/*", 0)] {
            let (paths, _) = found(&snapshot.tree("root").await.unwrap(), pattern).await;
            assert_eq!((paths.len(), &paths), (count, &matches(&whole, pattern)), "{pattern}");
        }
    });
}

#[test]
fn damage_on_the_way_to_the_names_in_front_hides_no_match() {
    block_on(async {
        let (backend, store) = memory().await;
        let snapshot = stored(&store, &wide(true, 4, 40).finish(), 4096, None).await;
        // The table of the root is at the end.
        let (last, _) = chunks_of(&snapshot, "root.mpxar").await.pop().unwrap();
        backend.delete(&[Removal::any(last)]).await.unwrap();
        let tree = snapshot.tree("root").await.unwrap();
        assert!(tree.entry("a01/b01").await.is_err());
        for pattern in ["/a01/b01/*", "/a01/b01/f001"] {
            let (paths, losses) = found(&tree, pattern).await;
            assert!(losses > 0);
            assert_eq!(paths, matches(&walked(&tree).await, pattern));
            assert!(!paths.is_empty());
        }
    });
}

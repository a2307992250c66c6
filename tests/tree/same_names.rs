//! Restores into directories in which several names mean the same entry.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::pxar::FileKind;
use larder::tree::{DirectoryTarget, Existing, LinkId, Problem, SourceEntry, TreeReport};
use larder_testing::tree::{Contents, MemoryTree, metadata};

use crate::write::{back_up, store};

const PLACE: &str = "LARDER_TEST_SAME_NAMES";

/// Each name once in lower case and once in capitals, with these kinds of entries.
const PAIRS: [(&str, Made, Made); 9] = [
    ("directories", Made::Directory, Made::Directory),
    ("directory-and-file", Made::Directory, Made::File),
    ("directory-and-link", Made::Directory, Made::Link),
    ("file-and-directory", Made::File, Made::Directory),
    ("files", Made::File, Made::File),
    ("large", Made::Large, Made::Large),
    ("link-and-directory", Made::Link, Made::Directory),
    ("link-and-file", Made::Link, Made::File),
    ("links", Made::Link, Made::Link),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Directory,
    File,
    Large,
    Link,
}

fn tree() -> MemoryTree {
    let tree = MemoryTree::default();
    for (name, first, second) in PAIRS {
        for (name, made) in [(name.to_uppercase(), first), (name.to_owned(), second)] {
            match made {
                Made::Directory => {
                    tree.directory(&name);
                    tree.file(&format!("{name}/same"), name, 1);
                }
                Made::File => tree.file(&name, name.clone(), 1),
                Made::Large => tree.file(&name, name.repeat(250_000), 1),
                Made::Link => {
                    let kind = FileKind::Symlink { target: name.clone().into() };
                    let entry = SourceEntry::new(name, kind.clone(), metadata(&kind, 1));
                    tree.add(b"", entry, Contents::Whole("".into()));
                }
            }
        }
    }
    let file = FileKind::File { size: 4 };
    for name in ["NAMES", "names"] {
        let entry = SourceEntry::new(name, file.clone(), metadata(&file, 1));
        tree.add(b"", entry.link(LinkId { device: 1, inode: 2 }), Contents::Whole("both".into()));
    }
    tree
}

/// The name in the archive of what stands under a name.
fn restored_as(path: &Path) -> String {
    if let Ok(target) = fs::read_link(path) {
        return target.into_os_string().into_string().unwrap();
    }
    let file = if path.is_dir() {
        assert_eq!(fs::read_dir(path).unwrap().count(), 1);
        path.join("same")
    } else {
        path.to_owned()
    };
    let mut text = fs::read_to_string(file).unwrap();
    let name = path.file_name().unwrap().len();
    text.truncate(name);
    text
}

fn restore(tree: &MemoryTree, to: &Path, existing: Existing) -> TreeReport {
    block_on(async {
        let tree = back_up(&store().await, tree, None).await.0.tree("root").await.unwrap();
        let target = DirectoryTarget::open(Arc::new(ThreadRuntime::new()), to).await.unwrap();
        tree.restore(&target.existing(existing).without_flush()).await.unwrap().report
    })
}

/// Paths that were not restored as they are in the archive.
fn refused(report: &TreeReport) -> Vec<String> {
    let refused = report.findings.iter().filter(|finding| finding.problem == Problem::Exists);
    let mut refused: Vec<_> =
        refused.map(|finding| String::from_utf8(finding.path.clone()).unwrap()).collect();
    refused.sort();
    refused
}

/// Proves H197.
#[test]
fn of_names_that_differ_in_case_only_one_is_restored_and_one_reported() {
    if let Some(place) = std::env::var_os(PLACE) {
        for existing in [Existing::Refuse, Existing::Replace, Existing::Skip] {
            check_case(&Path::new(&place).join("ignores-case"), existing);
        }
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let make = "truncate -s 32M \"$0.img\" && mkfs.ext4 -q -O casefold \"$0.img\" && mount -o loop \"$0.img\" \"$0\" && \
                mkdir \"$0/ignores-case\" && chattr +F \"$0/ignores-case\"";
    let name = "same_names::of_names_that_differ_in_case_only_one_is_restored_and_one_reported";
    crate::with_mounts(name, make, (PLACE, place.path()));
    let _ = fs::remove_file(place.path().with_extension("img"));
}

fn check_case(place: &Path, existing: Existing) {
    let to = place.join(format!("{existing:?}"));
    fs::create_dir(&to).unwrap();
    let report = restore(&tree(), &to, existing);
    let refused = refused(&report);
    for (name, ..) in PAIRS {
        let restored = restored_as(&to.join(name));
        let other = if restored == name { name.to_uppercase() } else { name.to_owned() };
        assert!(refused.contains(&other) && !refused.contains(&restored), "{existing:?} {name}: {report}");
    }
    assert_eq!(fs::read_to_string(to.join("names")).unwrap(), "both");
    assert_eq!((refused.len(), fs::read_dir(&to).unwrap().count()), (PAIRS.len() + 1, PAIRS.len() + 1));
}

/// Proves H197.
#[test]
fn two_directories_of_an_archive_do_not_become_one() {
    let tree = MemoryTree::default();
    for directory in ["one", "two", "two/below"] {
        tree.directory(directory);
    }
    tree.file("one/same", "of one", 1);
    tree.file("two/same", "of two", 1);
    tree.file("two/more", "of two", 1);
    if let Some(place) = std::env::var_os(PLACE) {
        let place = Path::new(&place);
        for (to, existing) in [("a", Existing::Skip), ("b", Existing::Replace)] {
            let report = restore(&tree, &place.join(to), existing);
            assert_eq!(refused(&report), ["two"], "{report}");
            assert_eq!(fs::read_to_string(place.join(to).join("two/same")).unwrap(), "of one");
            assert_eq!(fs::read_dir(place.join(to).join("one")).unwrap().count(), 1);
        }
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let bind = "for to in \"$0/a\" \"$0/b\"; do mkdir -p \"$to/one\" \"$to/two\" && mount --bind \"$to/one\" \"$to/two\" || exit 77; done";
    let name = "same_names::two_directories_of_an_archive_do_not_become_one";
    crate::with_mounts(name, bind, (PLACE, place.path()));
}

//! Genuine archives, restored into a directory of this host.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use futures::future::{BoxFuture, FutureExt as _};
use larder::ThreadRuntime;
use larder::pxar::{FileKind, Metadata};
use larder::tree::{
    Attribute, DirectorySource, DirectoryTarget, FileContents, Problem, SourceDirectory, Tree,
    TreeRestoreEvent, TreeRestoreSummary, TreeSource, TreeStep,
};
use larder_testing::fixture;

use crate::genuine::{open, walked};

/// Kind, metadata and contents of an entry, by its path.
pub(crate) type Entries = BTreeMap<Vec<u8>, (FileKind, Metadata, Vec<u8>)>;

/// Contents of an archive. Hard links appear as the files that they name.
pub(crate) async fn of_tree(tree: &Tree) -> Entries {
    let mut entries = Entries::new();
    for step in walked(tree).await {
        let TreeStep::Entry(entry) = step else { continue };
        let target = tree.target(&entry).await.unwrap();
        let contents = match target.kind {
            FileKind::File { .. } => {
                tree.open_entry(&entry).await.unwrap().read_all().await.unwrap().to_vec()
            }
            _ => Vec::new(),
        };
        entries.insert(entry.path.to_vec(), (target.kind, target.metadata, contents));
    }
    entries
}

/// Contents of a directory.
pub(crate) async fn of_directory(path: &Path) -> Entries {
    let runtime = Arc::new(ThreadRuntime::new());
    let source = DirectorySource::open(runtime, path).await.unwrap().ignore_pattern_files();
    let root = source.root().await.unwrap();
    let mut entries = Entries::from([(Vec::new(), (FileKind::Directory, root.metadata, Vec::new()))]);
    walk(root.directory.as_ref(), b"", &mut entries).await;
    entries
}

fn walk<'a>(directory: &'a dyn SourceDirectory, above: &'a [u8], to: &'a mut Entries) -> BoxFuture<'a, ()> {
    async move {
        let listing = directory.list().await.unwrap();
        assert_eq!(listing.findings, []);
        for entry in listing.entries {
            let path =
                if above.is_empty() { entry.name.to_vec() } else { [above, b"/", &entry.name].concat() };
            let contents = match entry.kind {
                FileKind::Directory => {
                    let below = directory.open_directory(&entry).await.unwrap();
                    walk(below.as_ref(), &path, to).await;
                    Vec::new()
                }
                FileKind::File { .. } => match directory.open_file(&entry).await.unwrap() {
                    FileContents::Whole(bytes) => bytes.to_vec(),
                    FileContents::Stream(mut stream) => {
                        let mut bytes = Vec::new();
                        futures::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await.unwrap();
                        bytes
                    }
                    _ => unreachable!(),
                },
                _ => Vec::new(),
            };
            to.insert(path, (entry.kind, entry.metadata, contents));
        }
    }
    .boxed()
}

async fn restore(tree: &Tree, to: &Path) -> (TreeRestoreSummary, u64) {
    let target = DirectoryTarget::create(Arc::new(ThreadRuntime::new()), to).await.unwrap();
    let events = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&events);
    let observer = Arc::new(move |event: &TreeRestoreEvent| {
        *counted.lock().unwrap() += u64::from(*event == TreeRestoreEvent::EntryRestored);
    });
    let target = target.privileges();
    let summary = tree.restore(&target).observer(observer).await.unwrap();
    let events = *events.lock().unwrap();
    (summary, events)
}

/// The genuine archives, in a directory where all attributes can be set; `None` where none can.
async fn genuine_trees(place: &Path) -> Option<Vec<Tree>> {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || xattr::set(place, "trusted.one", b"1").is_err() {
        eprintln!("skipped: needs root and a filesystem with extended attributes");
        return None;
    }
    fixture::unpack_trees(place);
    let store = open(place).await;
    let mut trees = Vec::new();
    for facts in fixture::expected_trees()["archives"].as_array().unwrap() {
        let snapshot = store.snapshot(&facts["snapshot"].as_str().unwrap().parse().unwrap()).await.unwrap();
        trees.push(snapshot.tree(facts["archive"].as_str().unwrap()).await.unwrap());
    }
    Some(trees)
}

#[test]
fn genuine_archives_are_restored_with_every_entry_byte_and_attribute() {
    let place = tempfile::tempdir().unwrap();
    block_on(async {
        let trees = genuine_trees(place.path()).await.into_iter().flatten().enumerate();
        for (number, tree) in trees {
            let to = place.path().join(format!("restored-{number}"));
            let (summary, events) = restore(&tree, &to).await;
            let mut expected = of_tree(&tree).await;
            let mut projects = 0_usize;
            for (_, metadata, _) in expected.values_mut() {
                projects += usize::from(metadata.project.take().is_some());
            }
            for finding in &summary.report.findings {
                match finding.problem {
                    Problem::NotSet(Attribute::Project) => projects -= 1,
                    // More than ext4 can hold.
                    Problem::NotSet(Attribute::Extended) => {
                        assert!(finding.cause.as_ref().unwrap().starts_with("user.big: "), "{finding}");
                        expected
                            .get_mut(&finding.path)
                            .unwrap()
                            .1
                            .xattrs
                            .retain(|xattr| xattr.name != "user.big");
                    }
                    _ => panic!("{finding}"),
                }
            }
            assert_eq!(projects, 0);
            unseal(&to);
            let restored = of_directory(&to).await;
            assert_eq!(restored.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (path, (kind, metadata, contents)) in &expected {
                let shown = path.escape_ascii();
                let (found_kind, found, found_contents) = &restored[path];
                assert_eq!(found_kind, kind, "{shown}");
                assert!(found_contents == contents, "{shown}");
                let (mut found, mut metadata) = (found.clone(), metadata.clone());
                for metadata in [&mut found, &mut metadata] {
                    metadata.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
                    // Removed before this comparison, so that the tree can be deleted.
                    metadata.stat.flags &= !SEALING;
                }
                assert_eq!(found, metadata, "{shown}");
            }
            let counted = summary.files + summary.directories + summary.hard_links + summary.special;
            assert_eq!((counted, counted), (expected.len() as u64 - 1, events));
        }
    });
}

/// Runs GNU tar on an archive; `false` with a line if there is none.
pub(crate) fn gnu_tar(archive: &[u8], to: &Path, arguments: &[&str]) -> bool {
    std::fs::create_dir(to).unwrap();
    let file = to.with_extension("tar");
    std::fs::write(&file, archive).unwrap();
    let mut command = std::process::Command::new("tar");
    let Ok(output) = command.arg("-xf").arg(&file).args(arguments).current_dir(to).output() else {
        eprintln!("skipped: there is no tar");
        return false;
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_other = |line: &&str| !line.contains("user.big") && !line.contains("previous errors");
    assert_eq!(errors.lines().filter(is_other).collect::<Vec<_>>(), Vec::<&str>::new());
    true
}

#[test]
pub(crate) fn gnu_tar_reads_trees_with_every_entry_byte_and_attribute() {
    let place = tempfile::tempdir().unwrap();
    block_on(async {
        let trees = genuine_trees(place.path()).await.into_iter().flatten().enumerate();
        for (number, tree) in trees {
            let mut archive = Vec::new();
            let report = tree.to_tar("", &mut archive).await.unwrap();
            let to = place.path().join(format!("unpacked-{number}"));
            let arguments = [
                "-p",
                "--same-owner",
                "--numeric-owner",
                "--acls",
                "--xattrs",
                "--xattrs-include=*",
                "--warning=no-timestamp",
            ];
            if !gnu_tar(&archive, &to, &arguments) {
                return;
            }
            let mut expected = of_tree(&tree).await;
            expected.retain(|_, (kind, ..)| *kind != FileKind::Socket);
            let left_out = report.findings.iter().filter(|found| found.problem == Problem::Socket).count();
            assert_eq!(report.findings.len(), left_out);
            let unpacked = of_directory(&to).await;
            assert_eq!(unpacked.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (path, (kind, metadata, contents)) in &expected {
                let shown = path.escape_ascii();
                let (found_kind, found, found_contents) = &unpacked[path];
                assert_eq!(found_kind, kind, "{shown}");
                assert!(found_contents == contents, "{shown}");
                let (mut found, mut metadata) = (found.clone(), metadata.clone());
                for metadata in [&mut found, &mut metadata] {
                    metadata.xattrs.retain(|xattr| xattr.name != "user.big");
                    metadata.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
                    metadata.stat.flags = 0;
                    metadata.project = None;
                }
                assert_eq!(found, metadata, "{shown}");
            }
        }
    });
}

#[test]
fn a_part_of_a_tree_is_a_tar_archive_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    block_on(async {
        let store = crate::write::store().await;
        let (snapshot, _) = crate::write::back_up(&store, &crate::restore::linked_tree(), None).await;
        let tree = snapshot.tree("root").await.unwrap();
        let mut archive = Vec::new();
        let report = tree.to_tar("c", &mut archive).await.unwrap();
        assert_eq!((report.findings.len(), archive.len() % 512), (0, 0));
        let to = place.path().join("c");
        if gnu_tar(&archive, &to, &["--warning=no-timestamp"]) {
            let names: Vec<_> = of_directory(&to).await.into_keys().collect();
            let expected = ["", "c", "c/fourth", "c/large", "c/third", "c/y.conf"];
            assert_eq!(names, expected.map(|name| name.as_bytes().to_vec()));
            assert_eq!(std::fs::read(to.join("c/third")).unwrap(), b"hello");
        }
        assert_eq!(
            tree.to_tar("nothing", &mut archive).await.unwrap_err().kind(),
            larder::error::ErrorKind::NotFound
        );
    });
}

/// Append only and immutable.
const SEALING: u64 = 0x41_0000;

/// Lets the files below a directory be removed.
fn unseal(directory: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let sealing = IFlags::APPEND | IFlags::IMMUTABLE;
    let open = |path: &Path| {
        let file = std::fs::File::open(path).unwrap();
        let flags = ioctl_getflags(&file).unwrap();
        if flags.intersects(sealing) {
            ioctl_setflags(&file, flags - sealing).unwrap();
        }
    };
    open(directory);
    for entry in std::fs::read_dir(directory).unwrap() {
        let (entry, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
        if kind.is_dir() {
            unseal(&entry);
        } else if kind.is_file() {
            open(&entry);
        }
    }
}

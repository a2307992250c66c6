//! Conditions of hosts under which backups and restores of other programs failed.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::pxar::FileKind;
use larder::tree::{Attribute, DirectorySource, DirectoryTarget, Problem, SourceEntry};
use larder_testing::tree::{Contents, MemoryTree, metadata};
use rustix::fs::{Mode, OFlags, mkdirat, open, openat};

use crate::restore_genuine::of_directory;
use crate::write::{back_up, store};

/// A root without a right to change owners: in a container without privileges, or on a network share.
#[test]
fn a_root_that_may_not_set_owners_restores_the_rest() {
    const PLACE: &str = "LARDER_TEST_MAPPED_ROOT";
    let Some(place) = std::env::var_os(PLACE) else {
        let place = tempfile::tempdir().unwrap();
        let name = "conditions::a_root_that_may_not_set_owners_restores_the_rest";
        // Only the user of this process exists there, as root.
        crate::unshared("-r", name, "true", (PLACE, place.path()));
        return;
    };
    let tree = MemoryTree::default();
    let kinds = [
        ("dir", FileKind::Directory),
        ("file", FileKind::File { size: 4 }),
        ("link", FileKind::Symlink { target: "file".into() }),
        ("pipe", FileKind::Fifo),
    ];
    for (name, kind) in &kinds {
        let mut metadata = metadata(kind, 1);
        (metadata.stat.uid, metadata.stat.gid) = (1234, 1234);
        if matches!(kind, FileKind::File { .. }) {
            metadata.stat.mode |= 0o6000;
        }
        tree.add(b"", SourceEntry::new(*name, kind.clone(), metadata), Contents::Whole("text".into()));
    }
    tree.file("dir/below", "text", 1);
    let to = Path::new(&place).join("to");
    let report = block_on(async {
        let tree = back_up(&store().await, &tree, None).await.0.tree("root").await.unwrap();
        let target = DirectoryTarget::create(Arc::new(ThreadRuntime::new()), &to).await.unwrap();
        tree.restore(&target.privileges()).await.unwrap().report
    });
    for (name, _) in kinds {
        let problems = report.findings.iter().filter(|finding| finding.path == name.as_bytes());
        assert!(
            problems.into_iter().any(|finding| finding.problem == Problem::NotSet(Attribute::Owner)),
            "{name}: {report}"
        );
        assert!(to.join(name).symlink_metadata().is_ok(), "{name}");
    }
    assert!(!report.is_complete());
    assert_eq!(std::fs::read(to.join("dir/below")).unwrap(), b"text");
    // The bits would give rights of another owner.
    let file = std::fs::metadata(to.join("file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime()), (0o644, 1));
}

#[test]
fn paths_that_no_system_call_takes_are_backed_up_and_restored() {
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (place.path().join("from"), place.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    let name = "x".repeat(255);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut directory = open(&from, flags, Mode::empty()).unwrap();
    for _ in 0..20 {
        mkdirat(&directory, &*name, Mode::RWXU).unwrap();
        directory = openat(&directory, &*name, flags, Mode::empty()).unwrap();
    }
    let file = openat(&directory, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    drop((directory, file));
    block_on(async {
        let runtime = Arc::new(ThreadRuntime::new());
        let source = DirectorySource::open(runtime.clone(), &from).await.unwrap();
        let (snapshot, summary) = back_up(&store().await, &source, None).await;
        assert_eq!(summary.report.findings, []);
        let target = DirectoryTarget::create(runtime, &to).await.unwrap();
        let restored = snapshot.tree("root").await.unwrap().restore(&target).await.unwrap();
        assert_eq!(restored.report.findings, []);
        let (before, after) = (of_directory(&from).await, of_directory(&to).await);
        let longest = after.keys().map(Vec::len).max();
        assert_eq!((longest, after == before), (Some(20 * 256 + 4), true));
    });
}

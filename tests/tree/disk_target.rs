//! Directories of this host as targets.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::pxar::{AclEntry, Device, FileKind, Metadata, Mtime, Stat, Xattr};
use larder::tree::{Attribute, DirectoryTarget, Existing, Problem, TargetError, TreeFinding, TreeTarget};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn create(path: &Path) -> DirectoryTarget {
    block_on(DirectoryTarget::create(Arc::new(ThreadRuntime::new()), path)).unwrap()
}

fn open(path: &Path) -> DirectoryTarget {
    block_on(DirectoryTarget::open(Arc::new(ThreadRuntime::new()), path)).unwrap()
}

/// Metadata with the owner of this process.
fn metadata(mode: u32) -> Metadata {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mtime = Mtime { seconds: -3, nanoseconds: 250_000_000 };
    Metadata::new(Stat { flags: 0, gid, mode, mtime, uid })
}

fn file(target: &DirectoryTarget, path: &str, contents: &str) -> Result<Vec<TreeFinding>, TargetError> {
    let contents = Bytes::copy_from_slice(contents.as_bytes());
    block_on(target.small_file(path.as_bytes(), contents, &metadata(0o100_640)))
}

fn directory(target: &DirectoryTarget, path: &str) -> Result<Vec<TreeFinding>, TargetError> {
    block_on(target.directory(path.as_bytes(), &metadata(0o040_755)))
}

fn leave(target: &DirectoryTarget, path: &str) -> Vec<TreeFinding> {
    block_on(target.finish_directory(path.as_bytes(), &metadata(0o040_750))).unwrap()
}

fn large(target: &DirectoryTarget, path: &str, contents: &[u8]) -> Result<Vec<TreeFinding>, TargetError> {
    block_on(async {
        let size = contents.len() as u64;
        let mut file = target.file(path.as_bytes(), size, &metadata(0o100_600)).await?;
        for part in contents.chunks(700_001) {
            file.write(Bytes::copy_from_slice(part)).await?;
        }
        file.finish().await
    })
}

fn problem<T>(done: Result<T, TargetError>) -> Option<Problem> {
    done.err().map(|error| error.problem)
}

fn problems(done: Result<Vec<TreeFinding>, TargetError>) -> Vec<Problem> {
    done.unwrap().iter().map(|finding| finding.problem).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_target_restores_every_kind_of_entry_with_its_metadata() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let target = create(&root);
    directory(&target, "a").unwrap();
    directory(&target, "a/b").unwrap();
    file(&target, "a/b/small", "contents").unwrap();
    let contents: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(problems(large(&target, "a/large", &contents)), []);
    block_on(target.hard_link(b"second", b"a/b/small")).unwrap();
    let special = |path: &str, kind: FileKind, mode| {
        block_on(target.special(path.as_bytes(), &kind, &metadata(mode))).unwrap()
    };
    special("link", FileKind::Symlink { target: b"/nowhere//x/".to_vec().into() }, 0o120_777);
    special("pipe", FileKind::Fifo, 0o010_604);
    special("socket", FileKind::Socket, 0o140_755);
    assert_eq!((leave(&target, "a/b"), leave(&target, "a"), leave(&target, "")), (vec![], vec![], vec![]));
    assert_eq!(block_on(target.finish()).unwrap(), []);
    assert_eq!(names(&root), ["a", "link", "pipe", "second", "socket"]);
    assert_eq!(fs::read(root.join("a/b/small")).unwrap(), b"contents");
    assert!(fs::read(root.join("a/large")).unwrap() == contents);
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/nowhere//x/"));
    for (name, mode) in [
        ("", 0o040_750),
        ("a", 0o040_750),
        ("a/b", 0o040_750),
        ("a/b/small", 0o100_640),
        ("a/large", 0o100_600),
        ("link", 0o120_777),
        ("pipe", 0o010_604),
        ("socket", 0o140_755),
    ] {
        let found = fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((found.mode(), found.mtime(), found.mtime_nsec()), (mode, -3, 250_000_000), "{name}");
    }
    let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(inode("second"), inode("a/b/small"));
}

#[test]
fn rights_are_restored_only_when_asked_for() {
    if !is_root() {
        return eprintln!("skipped: needs root");
    }
    let place = tempfile::tempdir().unwrap();
    if xattr::set(place.path(), "trusted.one", b"1").is_err() {
        return eprintln!("skipped: needs a filesystem with extended attributes");
    }
    let mut all = metadata(0o106_755);
    (all.stat.uid, all.stat.gid) = (77, 88);
    all.capabilities = Some([&[1, 0, 0, 2][..], &[0; 16]].concat().into());
    let xattr =
        |name: &str| Xattr { name: name.as_bytes().to_vec().into(), value: Bytes::from_static(b"\0v") };
    all.xattrs = vec![xattr("user.one"), xattr("trusted.one"), xattr("security.selinux")];
    all.acl.users = vec![AclEntry { id: 1234, permissions: 5 }];
    all.acl.group_object = Some(1);
    let device = FileKind::CharDevice(Device { major: 1, minor: 3 });
    for (asked, expected) in [(false, 3), (true, 0)] {
        let root = place.path().join(format!("{asked}"));
        let target = if asked { create(&root).privileges() } else { create(&root) };
        let found = problems(block_on(target.small_file(b"file", Bytes::from_static(b"x"), &all)));
        assert_eq!(found.iter().filter(|found| **found == Problem::Privileges).count(), expected);
        assert_eq!(found.iter().filter(|found| **found == Problem::NotSet(Attribute::Extended)).count(), 1);
        assert_eq!(found.len(), expected + 1);
        let made = block_on(target.special(b"null", &device, &metadata(0o020_666)));
        assert_eq!(problem(made), (!asked).then_some(Problem::Device));
        let file = root.join("file");
        let found = fs::metadata(&file).unwrap();
        assert_eq!((found.uid(), found.gid()), (77, 88));
        assert_eq!(found.mode() & 0o7777, if asked { 0o6755 } else { 0o755 });
        let mut set: Vec<_> = xattr::list(&file).unwrap().map(|name| name.into_string().unwrap()).collect();
        set.sort();
        let mut expected = vec!["system.posix_acl_access", "user.one"];
        if asked {
            expected.extend(["security.capability", "trusted.one"]);
            let null = fs::metadata(root.join("null")).unwrap();
            assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
        }
        expected.sort_unstable();
        assert_eq!(set, expected);
        assert_eq!(xattr::get(&file, "user.one").unwrap().unwrap(), b"\0v");
        let list = xattr::get(&file, "system.posix_acl_access").unwrap().unwrap();
        assert_eq!((list.len(), &list[12..20]), (4 + 5 * 8, &[2, 0, 5, 0, 0xd2, 4, 0, 0][..]));
    }
}

#[test]
fn sealed_files_and_directories_are_sealed_after_their_links_and_entries() {
    let place = tempfile::tempdir().unwrap();
    let probe = File::create(place.path().join("probe")).unwrap();
    let sealed = |file: &File| ioctl_getflags(file).unwrap().contains(IFlags::IMMUTABLE);
    let flags = ioctl_getflags(&probe).unwrap_or(IFlags::empty());
    if ioctl_setflags(&probe, flags | IFlags::IMMUTABLE).is_err() {
        return eprintln!("skipped: no immutable files here");
    }
    ioctl_setflags(&probe, flags).unwrap();
    let root = place.path().join("root");
    let target = create(&root);
    let mut with_flags = metadata(0o100_600);
    with_flags.stat.flags = 0x40_0000 | 0x10_0000;
    directory(&target, "dir").unwrap();
    block_on(target.small_file(b"dir/file", Bytes::from_static(b"x"), &with_flags)).unwrap();
    block_on(target.hard_link(b"dir/second", b"dir/file")).unwrap();
    let mut of_directory = metadata(0o040_700);
    of_directory.stat.flags = 0x40_0000;
    assert_eq!(problems(block_on(target.finish_directory(b"dir", &of_directory))), []);
    block_on(target.hard_link(b"third", b"dir/file")).unwrap();
    assert_eq!(block_on(target.finish()).unwrap(), []);
    for name in ["dir", "dir/file"] {
        let object = File::open(root.join(name)).unwrap();
        assert!(sealed(&object), "{name}");
        let flags = ioctl_getflags(&object).unwrap();
        assert_eq!(flags.contains(IFlags::NODUMP), name == "dir/file");
        ioctl_setflags(&object, flags - IFlags::IMMUTABLE).unwrap();
    }
    assert_eq!(fs::metadata(root.join("third")).unwrap().nlink(), 3);
}

#[test]
fn existing_entries_are_refused_skipped_or_replaced() {
    for existing in [Existing::Refuse, Existing::Skip, Existing::Replace] {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        fs::create_dir_all(root.join("dir/full")).unwrap();
        fs::create_dir_all(root.join("taken")).unwrap();
        fs::write(place.path().join("outside"), "outside").unwrap();
        for name in ["small", "large", "special", "link", "instead"] {
            symlink("../outside", root.join(name)).unwrap();
        }
        let target = open(&root).existing(existing);
        let kept = match existing {
            Existing::Replace => None,
            Existing::Skip => Some(Problem::Skipped),
            _ => Some(Problem::Exists),
        };
        let contents = vec![1; 2_000_000];
        assert_eq!(problem(file(&target, "small", "new")), kept);
        assert_eq!(problem(large(&target, "large", &contents)), kept);
        // Everything below would be missing.
        let instead = (existing != Existing::Replace).then_some(Problem::Exists);
        assert_eq!(problem(directory(&target, "instead")), instead);
        let special = block_on(target.special(b"special", &FileKind::Fifo, &metadata(0o010_600)));
        assert_eq!(problem(special), kept);
        file(&target, "named", "x").unwrap();
        assert_eq!(problem(block_on(target.hard_link(b"link", b"named"))), kept);
        // A directory is never replaced.
        let on_directory = if existing == Existing::Skip { Problem::Skipped } else { Problem::Exists };
        assert_eq!(problem(file(&target, "taken", "new")), Some(on_directory));
        assert_eq!(problem(large(&target, "taken", &contents)), Some(on_directory));
        let entered = problem(directory(&target, "dir"));
        assert_eq!(entered, (existing == Existing::Refuse).then_some(Problem::Exists));
        assert_eq!(fs::read_to_string(place.path().join("outside")).unwrap(), "outside");
        assert_eq!(names(place.path()), ["outside", "root"]);
        let is_new = existing == Existing::Replace;
        assert_eq!(fs::read_to_string(root.join("small")).unwrap(), if is_new { "new" } else { "outside" });
        assert_eq!(fs::symlink_metadata(root.join("large")).unwrap().is_file(), is_new);
        assert!(!names(&root).iter().any(|name| name.contains(".restoring-")), "{:?}", names(&root));
    }
}

/// Proves H197.
#[test]
fn no_entry_replaces_another_of_the_same_restore() {
    for existing in [Existing::Replace, Existing::Skip] {
        let place = tempfile::tempdir().unwrap();
        let target = open(place.path()).existing(existing);
        let contents = vec![1; 2_000_000];
        let special = |name: &str, kind: FileKind, mode| {
            problem(block_on(target.special(name.as_bytes(), &kind, &metadata(mode))))
        };
        let symlink = || FileKind::Symlink { target: "nowhere".into() };
        large(&target, "large", &contents).unwrap();
        file(&target, "small", "first").unwrap();
        assert_eq!(special("link", symlink(), 0o120_777), None);
        assert_eq!(special("pipe", FileKind::Fifo, 0o010_600), None);
        for name in ["large", "small", "link", "pipe"] {
            assert_eq!(problem(file(&target, name, "second")), Some(Problem::Exists));
            assert_eq!(problem(large(&target, name, &contents)), Some(Problem::Exists));
            assert_eq!(problem(directory(&target, name)), Some(Problem::Exists));
            assert_eq!(special(name, FileKind::Fifo, 0o010_600), Some(Problem::Exists));
            assert_eq!(special(name, symlink(), 0o120_777), Some(Problem::Exists));
            if name != "small" {
                let linked = block_on(target.hard_link(name.as_bytes(), b"small"));
                assert_eq!(problem(linked), Some(Problem::Exists));
            }
        }
        assert_eq!(fs::read(place.path().join("small")).unwrap(), b"first");
        assert_eq!(fs::read_link(place.path().join("link")).unwrap(), Path::new("nowhere"));
        assert_eq!(names(place.path()), ["large", "link", "pipe", "small"]);
    }
}

#[test]
fn the_owning_group_does_not_get_the_mask_of_a_list_that_cannot_be_set() {
    let place = tempfile::tempdir().unwrap();
    let target = open(place.path());
    // The system refuses permissions that do not exist.
    let users = vec![AclEntry { id: 1, permissions: 0xff }];
    for (group, expected) in [(Some(0), 0o600), (Some(4), 0o640), (Some(7), 0o660), (None, 0o660)] {
        let mut metadata = metadata(0o100_660);
        metadata.acl.users = users.clone();
        metadata.acl.group_object = group;
        let name = format!("{group:?}");
        let found = block_on(target.small_file(name.as_bytes(), Bytes::new(), &metadata));
        assert_eq!(problems(found), [Problem::NotSet(Attribute::Extended)]);
        assert_eq!(fs::metadata(place.path().join(name)).unwrap().mode() & 0o777, expected);
    }
}

#[test]
fn nothing_leads_out_of_the_target() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir(place.path().join("out")).unwrap();
    fs::write(place.path().join("out/secret"), "secret").unwrap();
    let target = create(&root).existing(Existing::Replace);
    let bytes = |path: &str| path.as_bytes().to_vec();
    block_on(target.special(
        b"link",
        &FileKind::Symlink { target: bytes("../out").into() },
        &metadata(0o120_777),
    ))
    .unwrap();
    symlink("../out", root.join("other")).unwrap();
    for path in
        ["link/new", "other/new", "../new", "/new", "a/../../new", "", ".", "..", "link/../new", "a\0b"]
    {
        assert!(file(&target, path, "x").is_err(), "{path}");
        assert!(large(&target, path, b"x").is_err(), "{path}");
        assert!(block_on(target.special(path.as_bytes(), &FileKind::Fifo, &metadata(0o010_600))).is_err());
        assert!(block_on(target.hard_link(path.as_bytes(), b"link")).is_err());
        if !path.starts_with("link/") && !path.starts_with("other/") || path.contains("..") {
            assert!(directory(&target, path).is_err(), "{path}");
        }
    }
    for outside in ["../out/secret", "link/secret", "other/secret", "/etc/passwd", "other"] {
        assert!(block_on(target.hard_link(b"hard", outside.as_bytes())).is_err(), "{outside}");
    }
    // A file of the target that another program made is no file of this restore.
    fs::write(root.join("foreign"), "x").unwrap();
    let refused = block_on(target.hard_link(b"hard", b"foreign")).unwrap_err();
    assert_eq!(refused.cause.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(names(place.path()), ["out", "root"]);
    assert_eq!(names(&place.path().join("out")), ["secret"]);
    assert_eq!(names(&root), ["foreign", "link", "other"]);
}

/// A program put links to a directory outside into the target, before the restore and during it.
#[test]
fn no_link_in_the_target_is_entered_as_a_directory() {
    for existing in [Existing::Refuse, Existing::Skip, Existing::Replace] {
        let place = tempfile::tempdir().unwrap();
        let (root, out) = (place.path().join("root"), place.path().join("out"));
        fs::create_dir(&out).unwrap();
        let target = create(&root).existing(existing);
        symlink(&out, root.join("before")).unwrap();
        directory(&target, "during").unwrap();
        let entered = directory(&target, "before").is_ok();
        assert_eq!(entered, existing == Existing::Replace);
        // Open directories stay the ones that they were, and others are not opened again.
        fs::rename(root.join("during"), root.join("moved")).unwrap();
        symlink(&out, root.join("during")).unwrap();
        for number in 0..300 {
            let _ = directory(&target, &format!("d{number}"));
        }
        for path in ["before/file", "during/file", "during/dir/file"] {
            let _ = directory(&target, path.rsplit_once('/').unwrap().0);
            let _ = file(&target, path, "x");
            let _ = large(&target, path, b"x");
        }
        let _ = block_on(target.finish_directory(b"during", &metadata(0o040_700)));
        assert_eq!(names(&out), Vec::<String>::new(), "{existing:?}");
        assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7000, 0);
        assert!(root.join("before").is_symlink() != entered);
    }
}

/// Another thread swaps a directory of the target for a link out of it all the time.
#[test]
fn no_race_in_the_target_leads_out_of_it() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let out = place.path().join("out");
    fs::create_dir(&out).unwrap();
    let target = create(&root).existing(Existing::Replace);
    let stop = AtomicBool::new(false);
    let swap = || {
        let mut swaps = 0;
        while !stop.load(Ordering::Relaxed) {
            if fs::rename(root.join("dir"), root.join("aside")).is_ok() {
                let _ = symlink(&out, root.join("dir"));
                swaps += 1;
                (0..20).for_each(|_| std::thread::yield_now());
                let _ = fs::remove_file(root.join("dir"));
                let _ = fs::rename(root.join("aside"), root.join("dir"));
            }
        }
        swaps
    };
    std::thread::scope(|scope| {
        let swapper = scope.spawn(swap);
        let mut restored = 0;
        for number in 0..300 {
            let _ = directory(&target, "dir");
            restored += usize::from(file(&target, &format!("dir/{number}"), "x").is_ok());
            let _ = directory(&target, &format!("dir/d{number}"));
            let _ = file(&target, &format!("dir/d{number}/x"), "x");
            let (path, named) = (format!("dir/l{number}"), format!("dir/{number}"));
            let _ = block_on(target.hard_link(path.as_bytes(), named.as_bytes()));
            let _ = block_on(target.finish_directory(b"dir", &metadata(0o040_700)));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > 0 && restored > 0);
    });
    assert_eq!(names(&out), Vec::<String>::new());
}

#[test]
fn sparse_files_stay_sparse() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let target = create(&root);
    let mut contents = vec![0; 4_000_000];
    contents[1_000_000] = 1;
    large(&target, "middle", &contents).unwrap();
    large(&target, "zeros", &vec![0; 3_000_001]).unwrap();
    let small = Bytes::from(vec![0; 200_000]);
    block_on(target.small_file(b"small", small, &metadata(0o100_600))).unwrap();
    block_on(target.finish()).unwrap();
    let whole = place.path().join("whole");
    File::create(&whole).unwrap().write_all_at(&vec![1; 200_000], 0).unwrap();
    File::open(&whole).unwrap().sync_all().unwrap();
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
    assert!(fs::read(root.join("middle")).unwrap() == contents);
    assert_eq!(fs::metadata(root.join("zeros")).unwrap().len(), 3_000_001);
    for name in ["middle", "zeros", "small"] {
        assert!(blocks(&root.join(name)) <= 128 && blocks(&whole) >= 390, "{name}");
    }
}

#[test]
fn a_file_that_is_not_whole_is_removed() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let target = create(&root);
    block_on(async {
        let mut file = target.file(b"dropped", 10, &metadata(0o100_600)).await.unwrap();
        file.write(Bytes::from_static(b"12345")).await.unwrap();
        assert!(names(&root)[0].starts_with("dropped.restoring-"));
        drop(file);
        let mut file = target.file(b"short", 10, &metadata(0o100_600)).await.unwrap();
        file.write(Bytes::from_static(b"12345")).await.unwrap();
        assert_eq!(file.finish().await.unwrap_err().problem, Problem::NotWritten);
    });
    assert_eq!(names(&root), Vec::<String>::new());
}

#[test]
fn deep_trees_and_long_names_are_restored() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let target = create(&root);
    let name = "n".repeat(255);
    let mut paths = vec![name.clone()];
    for _ in 1..300 {
        paths.push(format!("{}/{name}", paths.last().unwrap()));
    }
    for path in &paths {
        directory(&target, path).unwrap();
    }
    file(&target, &format!("{}/file", paths.last().unwrap()), "x").unwrap();
    let long = vec![b'x'; 4095];
    block_on(target.special(
        b"link",
        &FileKind::Symlink { target: long.clone().into() },
        &metadata(0o120_777),
    ))
    .unwrap();
    for path in paths.iter().rev() {
        assert_eq!(leave(&target, path), []);
    }
    let link = fs::read_link(root.join("link")).unwrap();
    assert_eq!(link.as_os_str().len(), long.len());
}

/// An access list that gives the user 1 all rights, within this mask.
fn list_with_mask(mask: u16) -> Vec<u8> {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let entries =
        [entry(1, 7, none), entry(2, 7, 1), entry(4, 7, none), entry(0x10, mask, none), entry(0x20, 7, none)];
    [vec![2, 0, 0, 0], entries.concat()].concat()
}

/// A directory restored over an existing one has the lists of the archive alone: its mode would be the mask of the old list.
#[test]
fn an_existing_directory_loses_lists_that_the_archive_does_not_have() {
    for existing in [Existing::Skip, Existing::Replace] {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("dir");
        fs::create_dir(&path).unwrap();
        for (name, mask) in [("system.posix_acl_access", 0), ("system.posix_acl_default", 7)] {
            if xattr::set(&path, name, &list_with_mask(mask)).is_err() {
                return eprintln!("skipped: no access control lists here");
            }
        }
        let target = open(place.path()).existing(existing);
        directory(&target, "dir").unwrap();
        file(&target, "dir/file", "x").unwrap();
        assert_eq!(leave(&target, "dir"), []);
        for name in ["dir", "dir/file"] {
            assert_eq!(xattr::list(place.path().join(name)).unwrap().count(), 0, "{name}");
        }
    }
}

#[test]
fn a_created_root_does_not_inherit_lists() {
    let place = tempfile::tempdir().unwrap();
    if xattr::set(place.path(), "system.posix_acl_default", &list_with_mask(7)).is_err() {
        return eprintln!("skipped: no access control lists here");
    }
    let root = place.path().join("root");
    let target = create(&root);
    file(&target, "file", "x").unwrap();
    assert_eq!(leave(&target, ""), []);
    for path in [&root, &root.join("file")] {
        assert_eq!(xattr::list(path).unwrap().count(), 0, "{}", path.display());
    }
}

#[test]
fn new_entries_do_not_inherit_lists() {
    let place = tempfile::tempdir().unwrap();
    if xattr::set(place.path(), "system.posix_acl_default", &list_with_mask(7)).is_err() {
        return eprintln!("skipped: no access control lists here");
    }
    let target = open(place.path());
    directory(&target, "dir").unwrap();
    file(&target, "dir/file", "x").unwrap();
    file(&target, "file", "x").unwrap();
    leave(&target, "dir");
    block_on(target.special(b"pipe", &FileKind::Fifo, &metadata(0o010_640))).unwrap();
    for name in ["dir", "dir/file", "file", "pipe"] {
        assert_eq!(xattr::list(place.path().join(name)).unwrap().count(), 0, "{name}");
    }
    assert_eq!(fs::metadata(place.path().join("file")).unwrap().mode() & 0o777, 0o640);
}

/// The target belongs to an ordinary user: this test runs itself again as that user.
#[test]
fn what_an_ordinary_user_cannot_set_is_reported_and_the_rest_is_restored() {
    const PLACE: &str = "LARDER_TEST_ORDINARY";
    let Ok(place) = std::env::var(PLACE) else {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let name = "disk_target::what_an_ordinary_user_cannot_set_is_reported_and_the_rest_is_restored";
        return crate::as_ordinary_user(name, &[(PLACE, place.path())]);
    };
    let root = Path::new(&place).join("root");
    let target = create(&root).owners().privileges();
    let mut foreign = metadata(0o106_755);
    (foreign.stat.uid, foreign.stat.gid, foreign.stat.flags) = (0, 0, 0x40_0000);
    foreign.capabilities = Some([&[1, 0, 0, 2][..], &[0; 16]].concat().into());
    directory(&target, "dir").unwrap();
    let found = problems(block_on(target.small_file(b"dir/file", Bytes::from_static(b"x"), &foreign)));
    let expected = [
        Problem::NotSet(Attribute::Owner),
        Problem::NotSet(Attribute::Extended),
        Problem::NotSet(Attribute::Mode),
    ];
    assert_eq!(found, expected);
    let device = FileKind::CharDevice(Device { major: 1, minor: 3 });
    assert_eq!(
        problem(block_on(target.special(b"null", &device, &metadata(0o020_666)))),
        Some(Problem::NotCreated)
    );
    leave(&target, "dir");
    let found = block_on(target.finish()).unwrap();
    assert_eq!(found[0].problem, Problem::NotSet(Attribute::Flags));
    let found = fs::metadata(root.join("dir/file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime(), found.len()), (0o755, -3, 1));
    // By default nothing is asked for, and nothing is reported that concerns owners.
    let target = create(&Path::new(&place).join("other"));
    let found = problems(block_on(target.small_file(b"file", Bytes::from_static(b"x"), &foreign)));
    assert_eq!(found, [Problem::Privileges, Problem::NotSet(Attribute::Mode)]);
}

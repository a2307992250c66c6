//! Directories of this host as sources.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use futures::future::{BoxFuture, FutureExt as _};
use futures::io::AsyncReadExt as _;
use larder::ThreadRuntime;
use larder::error::ErrorKind;
use larder::pxar::{AclEntry, FileKind};
use larder::tree::{
    Attribute, DirectorySource, Excludes, FileContents, Problem, SourceDirectory, SourceEntry, TreeSource,
};
use rustix::fs::{CWD, FileType, IFlags, Mode, mknodat};

/// Everything below a root: entries by path, and the problems in order.
#[derive(Debug, Default)]
struct Listed {
    entries: BTreeMap<String, SourceEntry>,
    problems: Vec<(String, Problem)>,
}

fn open(path: &Path) -> DirectorySource {
    block_on(DirectorySource::open(Arc::new(ThreadRuntime::new()), path)).unwrap()
}

fn list(source: &DirectorySource) -> Listed {
    let mut listed = Listed::default();
    let root = block_on(source.root()).unwrap();
    block_on(walk(root.directory.as_ref(), String::new(), &mut listed));
    listed.problems.sort_by(|a, b| a.0.cmp(&b.0));
    listed
}

fn walk<'a>(directory: &'a dyn SourceDirectory, above: String, to: &'a mut Listed) -> BoxFuture<'a, ()> {
    async move {
        let Ok(listing) = directory.list().await else {
            return to.problems.push((above, Problem::UnreadableContents));
        };
        let at = |name: &[u8]| format!("{above}/{}", String::from_utf8_lossy(name));
        to.problems.extend(listing.findings.iter().map(|found| (at(&found.path), found.problem)));
        for entry in listing.entries {
            let path = at(&entry.name);
            if entry.kind == FileKind::Directory {
                let below = directory.open_directory(&entry).await.unwrap();
                walk(below.as_ref(), path.clone(), to).await;
            }
            assert!(to.entries.insert(path, entry).is_none());
        }
    }
    .boxed()
}

/// The bytes of a stream, the error that ended it, and its problem.
fn read(contents: FileContents) -> (Vec<u8>, bool, Option<Problem>) {
    match contents {
        FileContents::Whole(bytes) => (bytes.to_vec(), true, None),
        FileContents::Stream(mut stream) => {
            let mut bytes = Vec::new();
            let read = block_on(stream.read_to_end(&mut bytes));
            (bytes, read.is_ok(), stream.problem())
        }
        _ => panic!("unknown contents"),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_source_lists_every_kind_of_entry_with_its_metadata() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    fs::write(path("file"), "contents").unwrap();
    fs::hard_link(path("file"), path("second")).unwrap();
    fs::create_dir(path("dir")).unwrap();
    symlink("../dangling//x/", path("link")).unwrap();
    mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, path("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
    let odd = std::ffi::OsString::from_vec(b"odd\xff\n".to_vec());
    fs::write(place.path().join(odd), "").unwrap();
    filetime::set_file_mtime(path("file"), filetime::FileTime::from_unix_time(-2, 750_000_000)).unwrap();
    fs::set_permissions(path("dir"), fs::Permissions::from_mode(0o1750)).unwrap();
    let listed = list(&open(place.path()));
    assert_eq!(listed.problems, []);
    let file = &listed.entries["/file"];
    assert_eq!(file.kind, FileKind::File { size: 8 });
    let mtime = file.metadata.stat.mtime;
    assert_eq!((mtime.seconds, mtime.nanoseconds), (-2, 750_000_000));
    assert_eq!(file.metadata.stat.mode & 0o170_000, 0o100_000);
    assert!(file.link.is_some() && file.link == listed.entries["/second"].link);
    assert_eq!(listed.entries["/dir"].link, None);
    assert_eq!(listed.entries["/dir"].metadata.stat.mode, 0o041_750);
    assert_eq!(listed.entries["/link"].kind, FileKind::Symlink { target: b"../dangling//x/"[..].into() });
    assert_eq!(listed.entries["/pipe"].kind, FileKind::Fifo);
    assert_eq!(listed.entries["/socket"].kind, FileKind::Socket);
    assert!(listed.entries.values().any(|entry| entry.name == b"odd\xff\n"[..]));
}

#[test]
fn a_source_reads_lists_capabilities_attributes_and_flags() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "x").unwrap();
    let directory = place.path().join("dir");
    fs::create_dir(&directory).unwrap();
    if !is_root() || xattr::set(&file, "trusted.one", b"1").is_err() {
        return eprintln!("skipped: needs root and a filesystem with extended attributes");
    }
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let (none, version) = (u32::MAX, vec![2, 0, 0, 0]);
    let base =
        [entry(1, 6, none), entry(2, 7, 77), entry(4, 4, none), entry(0x10, 7, none), entry(0x20, 0, none)];
    let list_of_base = [version, base.concat()].concat();
    xattr::set(&file, "system.posix_acl_access", &list_of_base).unwrap();
    xattr::set(&directory, "system.posix_acl_default", &list_of_base).unwrap();
    xattr::set(&file, "user.empty", b"").unwrap();
    xattr::set(&file, "user.long", &[7; 3000]).unwrap();
    let capability = [&[1, 0, 0, 2][..], &[0; 16]].concat();
    xattr::set(&file, "security.capability", &capability).unwrap();
    xattr::set(&file, "security.other", b"not stored").unwrap();
    let flags = rustix::fs::ioctl_getflags(File::open(&file).unwrap()).unwrap();
    rustix::fs::ioctl_setflags(File::open(&file).unwrap(), flags | IFlags::NODUMP).unwrap();
    let listed = list(&open(place.path()));
    assert_eq!(listed.problems, []);
    let metadata = &listed.entries["/file"].metadata;
    assert_eq!(metadata.acl.users, [AclEntry { id: 77, permissions: 7 }]);
    assert_eq!((metadata.acl.group_object, metadata.stat.mode & 0o777), (Some(4), 0o670));
    assert_eq!(metadata.capabilities.as_deref(), Some(&capability[..]));
    assert_eq!(metadata.stat.flags, 0x10_0000);
    let names: Vec<_> = metadata.xattrs.iter().map(|xattr| xattr.name.to_vec()).collect();
    let in_order: Vec<_> = xattr::list(&file).unwrap().map(OsStringExt::into_vec).collect();
    let stored = |name: &&Vec<u8>| name.starts_with(b"user.") || name.starts_with(b"trusted.");
    assert_eq!(names, in_order.iter().filter(stored).cloned().collect::<Vec<_>>());
    assert_eq!(names.len(), 3);
    let inherited = listed.entries["/dir"].metadata.acl.inherited.clone().unwrap();
    assert_eq!((inherited.user_object, inherited.mask, inherited.other), (Some(6), Some(7), Some(0)));
    assert!(listed.entries["/dir"].metadata.acl.users.is_empty());
}

#[test]
fn files_of_every_size_are_read_with_their_holes() {
    let place = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
    fs::write(place.path().join("large"), &large).unwrap();
    fs::write(place.path().join("empty"), "").unwrap();
    fs::write(place.path().join("whole"), &large[..1 << 20]).unwrap();
    let sparse = File::create(place.path().join("sparse")).unwrap();
    sparse.write_all_at(b"end", 2_000_000).unwrap();
    let source = open(place.path());
    let root = block_on(source.root()).unwrap().directory;
    for (name, entry) in list(&source).entries {
        let contents = block_on(root.open_file(&entry)).unwrap();
        assert_eq!(
            matches!(contents, FileContents::Whole(_)),
            matches!(&*name, "/empty" | "/whole"),
            "{name}"
        );
        let expected = fs::read(place.path().join(&name[1..])).unwrap();
        assert!(read(contents) == (expected, true, None), "{name}");
    }
}

#[test]
fn a_file_that_changes_after_the_listing_has_a_problem() {
    let place = tempfile::tempdir().unwrap();
    let names = ["changed", "grown", "shrunk", "same"];
    for (name, size) in names.iter().flat_map(|name| [(name, 1000), (name, 3_000_000)]) {
        fs::write(place.path().join(format!("{name}-{size}")), vec![1; size]).unwrap();
    }
    let source = open(place.path());
    let root = block_on(source.root()).unwrap().directory;
    let listed = list(&source);
    for size in [1000, 3_000_000] {
        let at = |name: &str| place.path().join(format!("{name}-{size}"));
        fs::write(at("grown"), vec![2; size + 1]).unwrap();
        File::options().write(true).open(at("shrunk")).unwrap().set_len(size as u64 / 2).unwrap();
        fs::write(at("changed"), vec![3; size]).unwrap();
        let read = |name| {
            let entry = &listed.entries[&format!("/{name}-{size}")];
            let (bytes, is_whole, problem) = read(block_on(root.open_file(entry)).unwrap());
            assert!(is_whole);
            (bytes.len(), problem)
        };
        assert_eq!(read("same"), (size, None));
        assert_eq!(read("grown"), (size, Some(Problem::Grown)));
        assert_eq!(read("changed"), (size, Some(Problem::Changed)));
        assert_eq!(read("shrunk").0, size / 2);
        fs::remove_file(at("same")).unwrap();
        let gone = block_on(root.open_file(&listed.entries[&format!("/same-{size}")]));
        assert_eq!(gone.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}

/// Sets a write lease, and gives it up when the system asks for it. The standard library has no call for it.
const LEASE: &str = r"
import fcntl, os, signal, sys
files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
def release(*_):
    for file in files:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, release)
for file in files:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('ready', flush=True)
sys.stdin.read()
";

#[test]
fn a_file_on_which_another_program_has_a_lease_is_read() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    for (name, text) in [("file", "leased"), (".pxarexclude", "*.tmp\n"), ("a.tmp", "")] {
        fs::write(place.path().join(name), text).unwrap();
    }
    for name in ["file", ".pxarexclude"] {
        let python = Command::new("python3")
            .args(["-c", LEASE])
            .arg(place.path().join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut holder) = python else { return eprintln!("skipped: no Python here") };
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line == "ready\n" {
            let listed = list(&open(place.path()));
            assert_eq!(listed.problems, []);
            assert_eq!(listed.entries.keys().collect::<Vec<_>>(), ["/.pxarexclude", "/file"], "{name}");
        } else {
            eprintln!("skipped: no leases here");
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }
    assert_eq!(fs::read(file).unwrap(), b"leased");
}

#[test]
fn patterns_of_the_caller_and_of_pattern_files_exclude_entries() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for name in
        ["a.tmp", "keep.tmp", "x/a.tmp", "x/y/only", "x/only", "x/z/a.tmp", "only", "cache/a", "x/cache/b"]
    {
        write(name, "");
    }
    write(".pxarexclude", "!keep.tmp\ncache/\nb[ad\n");
    write("x/.pxarexclude", "/only\n!a.tmp\n");
    symlink("../.pxarexclude", place.path().join("x/y/.pxarexclude")).unwrap();
    write(".pxarexclude-cli", "of an earlier restore");
    let mut excludes = Excludes::default();
    excludes.push("*.tmp").unwrap();
    let source = open(place.path()).excludes(excludes);
    assert_eq!(source.recorded_excludes(), [&b"*.tmp"[..]]);
    let listed = list(&source);
    let names: Vec<_> = listed.entries.keys().map(String::as_str).collect();
    let expected = [
        "/.pxarexclude",
        "/keep.tmp",
        "/only",
        "/x",
        "/x/.pxarexclude",
        "/x/a.tmp",
        "/x/y",
        "/x/y/.pxarexclude",
        "/x/y/only",
        "/x/z",
        "/x/z/a.tmp",
    ];
    assert_eq!(names, expected);
    let problems = [("/.pxarexclude", Problem::BadPattern), ("/.pxarexclude-cli", Problem::Reserved)];
    assert_eq!(listed.problems, problems.map(|(path, problem)| (path.to_owned(), problem)));
    let all = list(&open(place.path()).ignore_pattern_files());
    assert_eq!((all.entries.len(), all.problems.len()), (18, 0));
}

#[test]
fn directories_of_the_store_are_left_out_and_never_the_source() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("a/store/inner")).unwrap();
    let source = open(place.path());
    let source = block_on(source.own_directory(place.path().join("a/store"))).unwrap();
    let listed = list(&source);
    assert_eq!(listed.entries.keys().collect::<Vec<_>>(), ["/a"]);
    assert_eq!(listed.problems, [("/a/store".to_owned(), Problem::OwnStore)]);
    let inside = open(&place.path().join("a/store/inner"));
    let refused = block_on(inside.own_directory(place.path().join("a/store"))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_directory_of_thousands_of_entries_is_listed_once_each() {
    let place = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        File::create(place.path().join(format!("{number}"))).unwrap();
    }
    assert_eq!(list(&open(place.path())).entries.len(), 3000);
}

#[test]
fn virtual_filesystems_and_other_filesystems_are_not_entered() {
    if !is_root() {
        return eprintln!("skipped: needs root");
    }
    let source = open(Path::new("/proc"));
    assert_eq!(block_on(source.root()).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    // Whatever is mounted below `/` here, `/proc` is.
    let root = block_on(open(Path::new("/")).root()).unwrap().directory;
    let found = block_on(root.list()).unwrap();
    let problem = found.findings.iter().find(|finding| finding.path == b"proc").unwrap().problem;
    assert_eq!(problem, Problem::MountPoint);
    let root = block_on(open(Path::new("/")).all_filesystems().root()).unwrap().directory;
    let found = block_on(root.list()).unwrap();
    let problem = found.findings.iter().find(|finding| finding.path == b"proc").unwrap().problem;
    assert_eq!(problem, Problem::VirtualFilesystem);
    let entry = found.entries.iter().find(|entry| entry.name == b"proc"[..]).unwrap();
    let below = block_on(root.open_directory(entry)).unwrap();
    assert!(block_on(below.list()).unwrap().entries.is_empty());
}

#[test]
fn chosen_filesystems_are_entered_and_no_others() {
    const PLACE: &str = "LARDER_TEST_MOUNTS";
    if let Some(place) = std::env::var_os(PLACE) {
        let place = Path::new(&place);
        let source = block_on(open(place).include_filesystem(place.join("a"))).unwrap();
        let listed = list(&source);
        let names: Vec<_> = listed.entries.keys().map(String::as_str).collect();
        assert_eq!(names, ["/a", "/a/below", "/a/file", "/b"]);
        let expected = ["/a/below", "/b"].map(|path| (path.to_owned(), Problem::MountPoint));
        assert_eq!(listed.problems, expected);
        let missing = block_on(open(place).include_filesystem(place.join("none"))).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mount = "cd \"$0\" && mkdir a b && mount -t tmpfs none a && mount -t tmpfs none b && mkdir a/below && \
                 mount -t tmpfs none a/below && touch a/file b/file a/below/file";
    crate::with_mounts(
        "disk_source::chosen_filesystems_are_entered_and_no_others",
        mount,
        (PLACE, place.path()),
    );
}

/// The tree is read by an ordinary user: this test runs itself again as that user.
#[test]
fn entries_that_cannot_be_read_are_reported_and_the_rest_is_listed() {
    const PLACE: &str = "LARDER_TEST_UNREADABLE";
    if let Ok(place) = std::env::var(PLACE) {
        let listed = list(&open(Path::new(&place)));
        let names: Vec<_> = listed.entries.keys().map(String::as_str).collect();
        assert_eq!(names, ["/closed", "/open", "/readable"]);
        let expected = [
            ("/closed", Problem::UnreadableAttribute(Attribute::Extended)),
            ("/closed", Problem::UnreadableContents),
            ("/secret", Problem::Unreadable),
        ];
        let mut problems = listed.problems;
        problems.sort_by_key(|(path, problem)| (path.clone(), *problem == Problem::UnreadableContents));
        assert_eq!(problems, expected.map(|(path, problem)| (path.to_owned(), problem)));
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("open")).unwrap();
    for name in ["secret", "readable", "closed"] {
        if name == "closed" {
            fs::create_dir(place.path().join(name)).unwrap();
        } else {
            fs::write(place.path().join(name), name).unwrap();
        }
        let mode = if name == "readable" { 0o644 } else { 0 };
        fs::set_permissions(place.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let name = "disk_source::entries_that_cannot_be_read_are_reported_and_the_rest_is_listed";
    crate::as_ordinary_user(name, &[(PLACE, place.path())]);
}

/// Proves H182: contents that one user may read are not stored with the rights of a file that all may read.
#[test]
fn an_object_with_other_rights_is_not_stored_in_the_place_of_the_listed_one() {
    let directory = larder_testing::scratch();
    let [file, elsewhere] = ["file", "elsewhere"].map(|name| directory.path().join(name));
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for is_directory in [false, true] {
        let make = |path: &Path, rights, contents: &str| {
            if is_directory {
                fs::create_dir(path).unwrap();
                fs::write(path.join(contents), "").unwrap();
            } else {
                fs::write(path, contents).unwrap();
            }
            mode(path, rights);
        };
        let source = open(directory.path());
        let root = block_on(source.root()).unwrap().directory;
        let reads = |entry: &SourceEntry| {
            if is_directory {
                let found = block_on(root.open_directory(entry)).map_err(drop)?;
                let listed = block_on(found.list()).unwrap().entries;
                Ok(listed[0].name.to_vec())
            } else {
                block_on(root.open_file(entry)).map(|contents| read(contents).0).map_err(drop)
            }
        };
        let entry = || {
            let found = block_on(root.list()).unwrap().entries;
            found.into_iter().find(|entry| entry.name == "file").unwrap()
        };
        make(&file, 0o755, "public");
        let listed = entry();
        fs::rename(&file, &elsewhere).unwrap();
        make(&file, 0o700, "secret");
        assert_eq!(reads(&listed), Err(()), "{is_directory}");
        assert_eq!(reads(&entry()), Ok(b"secret".to_vec()));
        // A program that saves a file renames a new one over it.
        mode(&file, 0o755);
        assert_eq!(reads(&listed), Ok(b"secret".to_vec()));
        // And the same object may have other rights by now.
        let listed = entry();
        mode(&file, 0o700);
        assert_eq!(reads(&listed), Ok(b"secret".to_vec()));
        for path in [&file, &elsewhere] {
            if is_directory { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    }
}

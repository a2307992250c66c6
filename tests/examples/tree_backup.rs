//! Backups of directory trees, pipes and files by the `backup` example: the rest of a tree is backed up whatever one entry does,
//! and the findings reach the user, programs and the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use crate::built::path as example;
use crate::cli::findings::Findings;
use crate::cli::tar_stream::pack::{self, Options, Root};
use crate::cli::tar_stream::unpack::attributes::Owners;
use crate::cli::tar_stream::unpack::source::{ReadError, Source};
use crate::cli::tar_stream::unpack::unpack;
use futures::executor::block_on;
use futures::io::AsyncReadExt as _;
use larder::tree::Problem;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};
use serde_json::{Value, json};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("src")).unwrap();
        let place = Self { directory };
        place.make_store("store");
        place
    }

    /// A store that makes its directories as they are needed, which is much quicker than `--create`.
    fn make_store(&self, name: &str) {
        fs::create_dir_all(self.path(name).join(".chunks")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn command(&self, example_name: &str) -> Command {
        let mut command = Command::new(example(example_name));
        command.current_dir(self.directory.path()).args(["--store", "store"]);
        command
    }

    fn backup(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("backup");
        command.args(["--sync-level", "none", "--group", "host/x", "--json"]).args(arguments);
        command
    }

    /// An archive of a snapshot, as bytes.
    fn restore(&self, report: &Value, archive: &str) -> Vec<u8> {
        let snapshot = report["snapshot"].as_str().unwrap();
        let output = self.command("restore").args([snapshot, archive, "-"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }
}

/// The exit status, the report, and the lines on standard error.
fn result_of(output: &Output) -> (i32, Value, Vec<String>) {
    let messages = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), messages)
}

/// Path and problem of each finding.
fn problems(report: &Value) -> Vec<(&str, &str)> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().map(|one| (one["path"].as_str().unwrap(), one["problem"].as_str().unwrap())).collect()
}

/// Names, without the leading `./` that some have, and contents of a tar stream without sparse files.
fn entries(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        found.insert(name.strip_prefix("./").unwrap_or(&name).to_owned(), contents);
    }
    found
}

fn names(tar: &[u8]) -> Vec<String> {
    entries(tar).into_keys().collect()
}

/// The stream of a directory, with the code of the example in this process.
fn pack(directory: &Path, options: Options) -> io::Result<(Vec<u8>, larder::tree::TreeReport)> {
    let findings = Findings::new("root.tar");
    let mut stream = pack::of_directory(Root::open(directory)?, options, findings.clone());
    let mut tar = Vec::new();
    block_on(stream.read_to_end(&mut tar))?;
    Ok((tar, findings.report()))
}

fn found(report: &larder::tree::TreeReport) -> Vec<(String, Problem)> {
    report.findings.iter().map(|one| (one.shown_path(), one.problem)).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the writer of a pipe is a thread of its own")]
fn a_named_pipe_is_opened_once_and_read_to_its_end() {
    let place = Place::new();
    let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    for name in ["p", "q"] {
        mknodat(CWD, place.path(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
    // The writer fills one pipe after the other: nothing may wait for the second before the first was read.
    let (paths, written) = ([place.path("p"), place.path("q")], data.clone());
    let writer = thread::spawn(move || {
        for path in paths {
            let mut pipe = File::options().write(true).open(path).unwrap();
            written.chunks(50_000).for_each(|part| pipe.write_all(part).unwrap());
        }
    });
    let output = place.backup(&["a.bin:p", "b.bin:q"]).output().unwrap();
    let (status, report, messages) = result_of(&output);
    assert_eq!((status, messages), (0, vec![]));
    writer.join().unwrap();
    for archive in ["a.bin.didx", "b.bin.didx"] {
        assert!(place.restore(&report, archive) == data, "{archive}");
    }
}

#[test]
fn standard_input_can_be_the_source_of_a_stream_or_a_blob() {
    let place = Place::new();
    for (source, archive) in [("a.bin:/dev/stdin", "a.bin.didx"), ("a.conf:/dev/stdin", "a.conf.blob")] {
        let mut backup =
            place.backup(&["--time", "2026-01-01T00:00:00Z", "--group", archive_group(archive), source]);
        let mut child = backup.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"streamed").unwrap();
        let (status, report, _) = result_of(&child.wait_with_output().unwrap());
        assert_eq!(status, 0);
        assert_eq!(place.restore(&report, archive), b"streamed");
    }
}

fn archive_group(archive: &str) -> &'static str {
    if archive.ends_with(".didx") { "host/stream" } else { "host/blob" }
}

#[test]
fn an_image_source_without_a_size_is_refused_before_any_write() {
    let place = Place::new();
    fs::remove_dir_all(place.path("store")).unwrap();
    mknodat(CWD, place.path("p"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    for source in ["a.img:p", "a.img:/dev/zero", "a.img:src", "a.tar:p", "a.bin:none"] {
        let (status, _, messages) = result_of(&place.backup(&["--create", source]).output().unwrap());
        assert_eq!((status, messages.len()), (2, 1), "{source}: {messages:?}");
        assert!(messages[0].starts_with(source), "{messages:?}");
        assert!(!place.path("store").exists(), "{source}");
    }
}

#[test]
fn unreadable_entries_are_named_and_the_rest_is_backed_up() {
    let place = Place::new();
    place.write("src/a", "1");
    place.write("src/lost+found/x", "2");
    place.write("src/secret", "3");
    place.write("src/z", "4");
    for name in ["src/lost+found", "src/secret"] {
        fs::set_permissions(place.path(name), PermissionsExt::from_mode(0o000)).unwrap();
    }
    let run = |extra: &[&str]| {
        let mut backup = place.backup(extra);
        backup.arg("root.tar:src");
        if rustix::process::geteuid().is_root() {
            // Root may read everything. The other user needs a way to the program and to the store.
            let program = place.path("backup");
            // Not by this process: a child of another test could hold the copy open for writing.
            assert!(Command::new("cp").arg(example("backup")).arg(&program).status().unwrap().success());
            for path in ["", "src", "store", "store/.chunks"].map(|name| place.path(name)) {
                std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
            }
            let arguments: Vec<_> = backup.get_args().map(OsStr::to_owned).collect();
            backup = Command::new(program);
            backup.current_dir(place.path("")).args(arguments).uid(65534).gid(65534);
        }
        backup.output().unwrap()
    };
    let (status, report, messages) = result_of(&run(&["--notes", "mine", "--time", "2026-01-01T00:00:00Z"]));
    assert_eq!(status, 1, "{messages:?}");
    let expected = [("src/lost+found", "unreadable_contents"), ("src/secret", "unreadable")];
    assert_eq!(problems(&report), expected);
    assert_eq!(report["complete"], false);
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[1].starts_with("src/secret: it cannot be read; left out: "), "{messages:?}");
    let tar = entries(&place.restore(&report, "root.tar.didx"));
    assert_eq!(tar.keys().collect::<Vec<_>>(), ["", "a", "lost+found/", "z"]);
    assert_eq!(tar["z"], b"4");
    // The snapshot says it too.
    let log = String::from_utf8(place.restore(&report, "client.log.blob")).unwrap();
    let lines: Vec<_> = messages.iter().map(|line| format!("root.tar.didx: {line}")).collect();
    assert_eq!(log, lines.join("\n") + "\n");
    assert_eq!(
        notes(&place, report["snapshot"].as_str().unwrap()),
        "mine\n\nIncomplete; entries that were left out or stored in part: 2. The client log names them."
    );
    // In strict mode there is no snapshot.
    let (status, report, messages) = result_of(&run(&["--strict", "--time", "2026-01-02T00:00:00Z"]));
    assert_eq!((status, &report["snapshot"]), (1, &Value::Null));
    assert!(messages.len() == 1 && messages[0].contains("src/lost+found: "), "{messages:?}");
    assert_eq!(report["error"]["message"], messages[0]);
    let listed = place.command("list").output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("2026-01-02"));
    fs::set_permissions(place.path("src/lost+found"), PermissionsExt::from_mode(0o700)).unwrap();
}

fn notes(place: &Place, snapshot: &str) -> String {
    use larder::backend::{FsBackend, FsOptions};
    use larder::store::{Datastore, Options};
    block_on(async {
        let runtime = std::sync::Arc::new(larder::rt::ThreadRuntime::new());
        let backend = FsBackend::open(runtime, place.path("store"), FsOptions::default()).await.unwrap();
        let store = Datastore::open(std::sync::Arc::new(backend), Options::default()).await.unwrap();
        let reader = store.snapshot(&snapshot.parse().unwrap()).await.unwrap();
        reader.manifest().notes().unwrap_or_default().to_owned()
    })
}

#[test]
fn long_paths_and_deep_trees_are_backed_up() {
    let place = Place::new();
    let mut expected = BTreeSet::from([String::new()]);
    let mut directory = File::open(place.path("src")).unwrap();
    let mut path = String::new();
    let file = |directory: &File, name: &str| {
        let flags = OFlags::CREATE | OFlags::WRONLY;
        drop(openat(directory, name, flags, Mode::RWXU).unwrap());
    };
    for level in 0..300 {
        // Something is left to be visited on the way back up.
        let name = if level < 30 { "d".repeat(200) } else { "d".to_owned() };
        file(&directory, "a");
        file(&directory, "z");
        mkdirat(&directory, name.as_str(), Mode::RWXU).unwrap();
        directory = File::from(openat(&directory, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap());
        expected.extend([format!("{path}a"), format!("{path}z"), format!("{path}{name}/")]);
        path = format!("{path}{name}/");
    }
    assert!(path.len() > 4096);
    // Fewer descriptors than levels.
    let mut limited = Command::new("sh");
    let backup = place.backup(&["root.tar:src"]);
    limited.current_dir(place.path("")).args(["-c", "ulimit -n 150; exec \"$0\" \"$@\""]);
    let output = limited.arg(backup.get_program()).args(backup.get_args()).output().unwrap();
    let (status, report, messages) = result_of(&output);
    assert_eq!((status, messages), (0, vec![]));
    let tar = place.restore(&report, "root.tar.didx");
    assert!(names(&tar).into_iter().eq(expected), "{:?}", names(&tar).len());
}

#[test]
fn a_directory_moved_during_the_walk_loses_only_its_remaining_entries() {
    let place = Place::new();
    let deep: PathBuf = std::iter::repeat_n("d", 100).collect();
    fs::create_dir_all(place.path("src").join(&deep)).unwrap();
    fs::write(place.path("src").join(&deep).join("big"), vec![1; 12 << 20]).unwrap();
    place.write("src/d/d/z", "lost");
    place.write("src/d/z", "kept");
    place.write("src/z", "kept");
    let (tar, report) = while_reading("big", &place.path("src"), || {
        // `..` of the directory below does not lead back any more, and no name does.
        fs::rename(place.path("src/d/d/d"), place.path("moved")).unwrap();
        fs::rename(place.path("src/d/d"), place.path("gone")).unwrap();
    });
    let names = names(&tar);
    assert!(names.contains(&"z".to_owned()) && names.contains(&"d/z".to_owned()), "{names:?}");
    let whole = place.path("src/d/d").display().to_string();
    assert_eq!(found(&report), [(whole, Problem::UnreadableContents)]);
}

/// Packs a directory and changes it while the contents of one file, of 12 MiB, are being read.
fn while_reading(name: &str, directory: &Path, change: impl FnOnce()) -> (Vec<u8>, larder::tree::TreeReport) {
    let findings = Findings::new("root.tar");
    let root = Root::open(directory).unwrap();
    let mut stream = pack::of_directory(root, Options::default(), findings.clone());
    let mut tar = vec![0; 1 << 20];
    block_on(async {
        // The walk is ahead by some blocks of 1 MiB at most, and this many are read, so that it is within the file.
        stream.read_exact(&mut tar).await.unwrap();
        assert!(tar.windows(name.len()).any(|window| window == name.as_bytes()));
        change();
        stream.read_to_end(&mut tar).await.unwrap();
    });
    (tar, findings.report())
}

#[test]
fn files_that_change_or_vanish_are_each_named_once() {
    for (what, problem) in
        [("shrink", Problem::Shrunk(9 << 20)), ("grow", Problem::Grown), ("change", Problem::Changed)]
    {
        let place = Place::new();
        fs::write(place.path("src/aa-big"), vec![1; 12 << 20]).unwrap();
        // A time that no change leaves as it is.
        filetime::set_file_mtime(place.path("src/aa-big"), filetime::FileTime::from_unix_time(1, 0)).unwrap();
        place.write("src/b", "gone");
        place.write("src/c", "kept");
        let (tar, report) = while_reading("aa-big", &place.path("src"), || {
            let file = File::options().write(true).open(place.path("src/aa-big")).unwrap();
            match what {
                "shrink" => file.set_len(9 << 20).unwrap(),
                "grow" => file.set_len(20 << 20).unwrap(),
                _ => file.write_all_at(b"x", 7).unwrap(),
            }
            fs::remove_file(place.path("src/b")).unwrap();
        });
        let path = |name: &str| place.path(name).display().to_string();
        assert_eq!(found(&report), [(path("src/aa-big"), problem), (path("src/b"), Problem::Vanished)]);
        assert_eq!(report.losses, 2);
        let entries = entries(&tar);
        assert_eq!(entries["aa-big"].len(), 12 << 20);
        assert!(entries["aa-big"][..9 << 20].iter().all(|byte| *byte == 1));
        assert_eq!(entries["c"], b"kept");
        assert_eq!(entries.len(), 3);
    }
}

/// Files with holes, by name: their parts with data and their sizes.
fn sparse_files() -> Vec<(OsString, Vec<u64>, u64)> {
    const MIB: u64 = 1 << 20;
    let long = "n".repeat(180);
    vec![
        (OsString::from("tail"), vec![300 * MIB], 300 * MIB + 5),
        (OsString::from("begin"), vec![0], 64 * MIB + 1),
        (OsString::from("several"), vec![MIB, 3 * MIB, 40 * MIB], 50 * MIB),
        (OsString::from("none"), vec![], 70 * MIB),
        (OsString::from(long), vec![2 * MIB], 9 * MIB),
        (OsString::from("ünï"), vec![2 * MIB], 9 * MIB),
        (OsString::from_vec(b"two\nlines".to_vec()), vec![2 * MIB], 9 * MIB),
    ]
}

fn make_sparse_files(directory: &Path) -> Vec<(OsString, u64)> {
    let mut made = Vec::new();
    for (name, parts, size) in sparse_files() {
        let file = File::create_new(directory.join(&name)).unwrap();
        file.set_len(size).unwrap();
        for at in parts {
            file.write_all_at(b"data!", at).unwrap();
        }
        made.push((name, size));
    }
    fs::hard_link(directory.join("tail"), directory.join("tail-again")).unwrap();
    made
}

fn same_contents(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = a.read(&mut left).unwrap();
        if read == 0 {
            return b.read(&mut right).unwrap() == 0;
        }
        b.read_exact(&mut right[..read]).unwrap();
        if left[..read] != right[..read] {
            return false;
        }
    }
}

/// Unpacks with another program, if it is installed.
fn unpack_with(program: &[&str], tar: &[u8], target: &Path) -> bool {
    fs::create_dir(target).unwrap();
    let command =
        Command::new(program[0]).args(&program[1..]).current_dir(target).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = command else {
        eprintln!("skipped: there is no {}", program[0]);
        return false;
    };
    child.stdin.take().unwrap().write_all(tar).unwrap();
    assert!(child.wait().unwrap().success(), "{program:?}");
    true
}

#[test]
fn gnu_tar_and_python_unpack_sparse_files_with_their_holes() {
    let place = Place::new();
    let made = make_sparse_files(&place.path("src"));
    place.write("src/plain", "no hole");
    if fs::metadata(place.path("src/none")).unwrap().blocks() > 1000 {
        eprintln!("skipped: this filesystem keeps no holes");
        return;
    }
    let (tar, report) = pack(&place.path("src"), Options::default()).unwrap();
    assert!(report.findings.is_empty());
    assert!(tar.len() < 1 << 20, "{}", tar.len());
    let python = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(filter='fully_trusted')";
    for (at, program) in [&["tar", "-xf", "-"][..], &["python3", "-c", python]].into_iter().enumerate() {
        let target = place.path(&format!("out{at}"));
        if !unpack_with(program, &tar, &target) {
            continue;
        }
        for (name, size) in &made {
            let (before, after) = (place.path("src").join(name), target.join(name));
            let metadata = fs::metadata(&after).unwrap_or_else(|_| panic!("{program:?} {}", name.display()));
            assert_eq!(metadata.len(), *size, "{program:?} {}", name.display());
            assert!(metadata.blocks() < 1000, "{program:?} {}: {} blocks", name.display(), metadata.blocks());
            assert!(same_contents(&before, &after), "{program:?} {}", name.display());
        }
        let ids = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
        assert_eq!(ids("tail"), ids("tail-again"));
        assert_eq!(fs::read(target.join("plain")).unwrap(), b"no hole");
    }
}

/// A tar stream for the code of the restore example.
struct Bytes(io::Cursor<Vec<u8>>);

impl Source for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        Ok(io::Read::read(&mut self.0, buffer).unwrap())
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        self.0.set_position(position);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn files_with_holes_anywhere_are_restored(
        parts in prop::collection::vec((0..400_000_u64, 1..9000_usize), 0..6),
        size in 0..500_000_u64,
        name in "[a-zü\\n]{1,110}",
    ) {
        let place = Place::new();
        let path = place.path("src").join(&name);
        let file = File::create_new(&path).unwrap();
        for (at, length) in parts {
            file.write_all_at(&vec![7; length], at).unwrap();
        }
        file.set_len(size).unwrap();
        let (tar, report) = pack(&place.path("src"), Options::default()).unwrap();
        prop_assert!(report.findings.is_empty());
        let findings = Findings::new("root.tar");
        unpack(Bytes(io::Cursor::new(tar)), &place.path("out"), Owners::Same, &findings).unwrap();
        prop_assert_eq!(found(&findings.report()), []);
        prop_assert!(same_contents(&path, &place.path("out").join(&name)));
    }
}

/// An entry as far as each program restores it: kind and mode, time, owner, target and contents.
fn described(path: &Path) -> (u32, i64, i64, u32, Option<PathBuf>, Option<Vec<u8>>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let contents = metadata.is_file().then(|| fs::read(path).unwrap());
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    (metadata.mode(), seconds, nanoseconds, metadata.uid(), fs::read_link(path).ok(), contents)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of all that a tree may have")]
fn every_kind_of_entry_is_restored_by_the_example_and_by_gnu_tar() {
    let place = Place::new();
    let source = place.path("src");
    let is_root = rustix::process::geteuid().is_root();
    let names: Vec<OsString> =
        ["plain", "empty", "ünï", "back\\slash", "two\nlines", "dir/inner", &"l".repeat(200)]
            .into_iter()
            .map(OsString::from)
            .chain([OsString::from_vec(b"bytes\xff\xfe".to_vec())])
            .collect();
    for name in &names {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), if name == "empty" { "" } else { "contents" }).unwrap();
    }
    let has_attributes = xattr::set(source.join("plain"), "user.one", b"1").is_ok();
    if has_attributes {
        xattr::set(source.join("dir"), "user.lines", b"a\nb").unwrap();
    }
    fs::hard_link(source.join("plain"), source.join("second")).unwrap();
    let long = "t".repeat(300);
    for (link, target) in
        [("link", "plain"), ("link-long", &long), ("link-lines", "a\nb"), ("link-odd", "./x//../ü/")]
    {
        std::os::unix::fs::symlink(target, source.join(link)).unwrap();
    }
    mknodat(CWD, source.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let mut all: Vec<OsString> = names.clone();
    all.extend(["second", "link", "link-long", "link-lines", "link-odd", "pipe", "dir"].map(OsString::from));
    if is_root {
        let device = rustix::fs::makedev(1, 3);
        if mknodat(CWD, source.join("device"), FileType::CharacterDevice, Mode::RUSR, device).is_ok() {
            all.push("device".into());
        }
        std::os::unix::fs::chown(source.join("empty"), Some(3_000_000), Some(3_000_001)).unwrap();
    }
    fs::set_permissions(source.join("plain"), PermissionsExt::from_mode(0o4751)).unwrap();
    for (name, seconds, nanoseconds) in [
        ("plain", -6, 750_000_000),
        ("ünï", 1_000_000_000, 123_456_789),
        ("empty", 9_000_000_000, 0),
        ("dir", 5, 0),
    ] {
        let time = filetime::FileTime::from_unix_time(seconds, nanoseconds);
        filetime::set_file_mtime(source.join(name), time).unwrap();
    }
    let (tar, report) = pack(&source, Options::default()).unwrap();
    assert_eq!(found(&report), []);
    let findings = Findings::new("root.tar");
    unpack(Bytes(io::Cursor::new(tar.clone())), &place.path("ours"), Owners::Same, &findings).unwrap();
    assert_eq!(found(&findings.report()), []);
    let mut unpacked = vec![place.path("ours")];
    if unpack_with(&["tar", "--xattrs", "-xpf", "-"], &tar, &place.path("gnu")) {
        unpacked.push(place.path("gnu"));
    }
    for target in unpacked {
        for name in &all {
            let (before, after) = (described(&source.join(name)), described(&target.join(name)));
            assert_eq!(before, after, "{} in {}", name.display(), target.display());
        }
        let ids = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
        assert_eq!(ids("plain"), ids("second"));
        if has_attributes {
            assert_eq!(xattr::get(target.join("plain"), "user.one").unwrap().unwrap(), b"1");
        }
        if all.contains(&"device".into()) {
            assert_eq!(fs::metadata(target.join("device")).unwrap().rdev(), rustix::fs::makedev(1, 3));
        }
    }
    if has_attributes {
        assert_eq!(xattr::get(place.path("ours/dir"), "user.lines").unwrap().unwrap(), b"a\nb");
    }
}

#[test]
fn a_signal_ends_a_backup_that_waits_for_a_pipe() {
    let place = Place::new();
    mknodat(CWD, place.path("p"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let child = place.backup(&["a.bin:p"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // This waits until the backup has opened the other end.
    let pipe = File::options().write(true).open(place.path("p")).unwrap();
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    let (status, report, messages) = result_of(&child.wait_with_output().unwrap());
    assert_eq!((status, messages), (143, vec!["ended by SIGTERM".to_owned()]));
    assert_eq!(report["error"], json!({ "kind": null, "message": "ended by SIGTERM", "status": 143 }));
    drop(pipe);
    let listed = place.command("list").output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("host/x/"), "{listed:?}");
}

#[test]
fn a_store_inside_its_own_source_is_excluded_with_one_message() {
    let place = Place::new();
    place.write("src/a", "1");
    fs::rename(place.path("src"), place.path("source")).unwrap();
    place.make_store("source/store");
    fs::create_dir(place.path("source/cache")).unwrap();
    let in_source = |arguments: &[&str]| {
        let mut backup = Command::new(example("backup"));
        backup.current_dir(place.path("")).args([
            "--create",
            "--sync-level",
            "none",
            "--group",
            "host/x",
            "--json",
        ]);
        result_of(&backup.args(arguments).output().unwrap())
    };
    let (status, report, messages) =
        in_source(&["--store", "source/store", "--cache", "source/cache", "root.tar:source"]);
    assert_eq!((status, messages.len()), (0, 2), "{messages:?}");
    assert_eq!(problems(&report), [("source/cache", "own_store"), ("source/store", "own_store")]);
    assert_eq!(report["complete"], true);
    let output = Command::new(example("restore"))
        .args(["--store".as_ref(), place.path("source/store").as_os_str()])
        .args([report["snapshot"].as_str().unwrap(), "root.tar.didx", "-"])
        .output()
        .unwrap();
    assert_eq!(names(&output.stdout), ["", "a"]);
    // A source in the store, or the store itself, also behind a link.
    std::os::unix::fs::symlink("source/store", place.path("link")).unwrap();
    for source in ["root.tar:source/store", "root.tar:source/store/host", "root.tar:link/.chunks"] {
        let (status, _, messages) = in_source(&["--store", "source/store", source]);
        assert_eq!(status, 2, "{source}");
        assert!(messages.len() == 1 && messages[0].contains("belongs to the store"), "{messages:?}");
    }
    // Nothing is created in a directory that is refused.
    let (status, _, _) = in_source(&["--create", "--store", "source", "root.tar:source"]);
    assert_eq!(status, 2);
    assert_eq!(fs::read_dir(place.path("source")).unwrap().count(), 3);
}

#[test]
fn exclude_patterns_exclude_their_matches() {
    let place = Place::new();
    for name in
        ["a.log", "b/a.log", "b/keep.log", "cache/x", "b/cache/y", "cache2", "proc/1", "b/proc/2", "t/u/v"]
    {
        place.write(&format!("src/{name}"), "x");
    }
    place.write("patterns", "# from a file\n!keep.log\n/proc/**\n");
    let arguments = [
        "--exclude",
        "*.log",
        "--exclude-from",
        "patterns",
        "--exclude",
        "cache/",
        "--exclude",
        "t/u",
        "root.tar:src",
    ];
    let (status, report, messages) = result_of(&place.backup(&arguments).output().unwrap());
    assert_eq!((status, messages), (0, vec![]));
    assert_eq!(
        names(&place.restore(&report, "root.tar.didx")),
        ["", "b/", "b/keep.log", "b/proc/", "b/proc/2", "cache2", "proc/", "t/"]
    );
    place.write("bad", "ok\n[!x]\n");
    for bad in [["--exclude", "a["], ["--exclude-from", "bad"], ["--exclude-from", "none"]] {
        let (status, _, messages) = result_of(&place.backup(&bad).arg("root.tar:src").output().unwrap());
        assert_eq!((status, messages.len()), (2, 1), "{messages:?}");
    }
}

#[test]
fn other_filesystems_are_stored_empty_on_request() {
    let place = Place::new();
    place.write("src/a", "1");
    fs::create_dir_all(place.path("src/mnt")).unwrap();
    fs::create_dir_all(place.path("src/proc")).unwrap();
    let script = "mount -t tmpfs -o mode=711 none src/mnt && echo 2 > src/mnt/other && mount --rbind /proc src/proc && \
                  echo mounted >&2 && exec \"$0\" \"$@\"";
    let (one, with_other) = (&["", "a", "mnt/", "proc/"][..], &["", "a", "mnt/", "mnt/other", "proc/"][..]);
    for (number, (extra, expected, problem)) in [
        (&["--one-file-system"][..], one, "mount_point"),
        (&["--one-file-system", "--include-dev", "src/mnt"], with_other, "mount_point"),
        (&["--no-base"], with_other, "virtual_filesystem"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut backup = place.backup(extra);
        backup.args(["--group", &format!("host/{number}"), "root.tar:src"]);
        let mut unshared = Command::new("unshare");
        let program = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
        unshared.current_dir(place.path("")).args([program, "sh", "-c", script]);
        let output = unshared.arg(backup.get_program()).args(backup.get_args()).output();
        let Ok(output) = output else { return eprintln!("skipped: there is no unshare") };
        let (status, report, messages) = result_of(&output);
        if messages.first().is_none_or(|line| line != "mounted") {
            return eprintln!("skipped: nothing can be mounted here: {messages:?}");
        }
        assert_eq!((status, report["complete"].as_bool()), (0, Some(true)), "{messages:?}");
        assert_eq!(names(&place.restore(&report, "root.tar.didx")), expected);
        assert!(problems(&report).contains(&("src/proc", problem)), "{report}");
    }
}

#[test]
fn an_unchanged_tree_gives_the_same_stream() {
    let place = Place::new();
    make_sparse_files(&place.path("src"));
    place.write("src/sub/b", "1");
    std::os::unix::fs::symlink("nowhere", place.path("src/link")).unwrap();
    let first = pack(&place.path("src"), Options::default()).unwrap().0;
    assert!(first == pack(&place.path("src"), Options::default()).unwrap().0);
    assert_eq!(first.len() % 512, 0);
}

#[test]
fn a_source_directory_that_cannot_be_opened_is_an_error() {
    let place = Place::new();
    assert!(Root::open(&place.path("none")).is_err());
    assert!(Root::open(Path::new(OsStr::from_bytes(b"/dev/null"))).is_err());
}

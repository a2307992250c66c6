//! Unpacking tar streams: everything is restored or reported, and damage costs the entries that lie in it.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use crate::cli::findings::Findings;
use crate::cli::tar_stream::unpack::attributes::Owners;
use crate::cli::tar_stream::unpack::source::{ReadError, Source};
use crate::cli::tar_stream::unpack::unpack;
use larder::tree::{Attribute, Problem};
use rustix::fs::{AtFlags, Mode, OFlags};

/// Bytes of an archive, parts of which are damaged.
struct Bytes<'a> {
    damaged: &'a [Range<usize>],
    data: &'a [u8],
    position: usize,
}

impl Source for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let at = self.position.min(self.data.len());
        if let Some(range) = self.damaged.iter().find(|range| range.contains(&at)) {
            let range = range.start as u64..range.end as u64;
            return Err(ReadError::Damaged(range, io::Error::other("damaged")));
        }
        let end = self.damaged.iter().map(|range| range.start).filter(|start| *start > at).min();
        let ahead = &self.data[at..end.unwrap_or(usize::MAX).min(self.data.len())];
        let length = ahead.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ahead[..length]);
        self.position += length;
        Ok(length)
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        self.position = usize::try_from(position).unwrap_or(usize::MAX);
        Ok(())
    }
}

/// The code of each finding with its path.
type Found = Vec<(&'static str, String)>;

fn unpack_damaged(data: &[u8], damaged: &[Range<usize>], to: &Path) -> (io::Result<()>, Found) {
    let findings = Findings::new("root.tar.didx");
    let done = unpack(Bytes { damaged, data, position: 0 }, to, Owners::Same, &findings);
    let report = findings.report();
    let found = report.findings.iter();
    (done, found.map(|finding| (finding.problem.code(), finding.shown_path())).collect())
}

fn unpack_to(data: &[u8], to: &Path) -> Found {
    let (done, found) = unpack_damaged(data, &[], to);
    done.unwrap();
    found
}

/// A header of this kind with data.
fn entry(kind: tar::EntryType, name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    // `set_path` tidies names up.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header.set_mtime(1_000_000);
    header.set_size(data.len() as u64);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    with_data(header.as_bytes(), data)
}

fn with_data(header: &[u8; 512], data: &[u8]) -> Vec<u8> {
    let mut bytes = [&header[..], data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(tar::EntryType::Regular, name, data)
}

fn link(kind: tar::EntryType, name: &str, to: &str) -> Vec<u8> {
    let mut bytes = entry(kind, name, b"");
    bytes[157..157 + to.len()].copy_from_slice(to.as_bytes());
    let mut header = tar::Header::from_byte_slice(&bytes).clone();
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn pax(kind: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length.to_string().len() > rest.to_string().len() {
            length += 1;
        }
        writeln!(data, "{length} {key}={value}").unwrap();
    }
    entry(tar::EntryType::new(kind), "pax", data.as_bytes())
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 10_240]].concat()
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs GNU tar; `None` with a line if there is none.
fn gnu_tar(directory: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("tar").current_dir(directory).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => Some(output.stdout),
        Ok(output) => {
            eprintln!("skipped: tar: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("skipped: tar: {error}");
            None
        }
    }
}

#[test]
fn sparse_files_of_every_format_are_restored_sparse() {
    let source = tempfile::tempdir().unwrap();
    let sparse = fs::File::create(source.path().join("sparse")).unwrap();
    // More parts than a header and one block behind it hold.
    for part in 0..40_u64 {
        sparse.write_all_at(&vec![1; 4096], part * 300_000 / 4096 * 4096).unwrap();
    }
    sparse.set_len(20_000_000).unwrap();
    fs::write(source.path().join("other"), "text").unwrap();
    let wanted = fs::read(source.path().join("sparse")).unwrap();
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for format in formats {
        let arguments = [&["-S", "-cf", "-"], format, &["./sparse", "./other"]].concat();
        let Some(tar) = gnu_tar(source.path(), &arguments) else { return };
        assert!(tar.len() < 1_000_000, "tar found no holes");
        let to = tempfile::tempdir().unwrap();
        assert_eq!(unpack_to(&tar, to.path()), [], "{format:?}");
        assert_eq!(names(to.path()), ["other", "sparse"]);
        let restored = to.path().join("sparse");
        assert!(fs::read(&restored).unwrap() == wanted, "{format:?}");
        assert!(fs::metadata(&restored).unwrap().blocks() * 512 < 2_000_000, "{format:?}: it has no holes");
    }
}

#[test]
fn an_invalid_sparse_map_is_reported() {
    for map in ["0,5,3,5", "0,5", "0,10,20", "5,5,0,5", "0,20", "0,5,95,6", "0,5,18446744073709551615,5"] {
        let records = [("GNU.sparse.size", "100"), ("GNU.sparse.name", "s"), ("GNU.sparse.map", map)];
        let tar = archive(&[pax(b'x', &records), file("x", b"0123456789"), file("next", b"n")]);
        let to = tempfile::tempdir().unwrap();
        assert_eq!(unpack_to(&tar, to.path()), [("damaged", "s".to_owned())], "{map}");
        assert_eq!(names(to.path()), ["next"]);
    }
}

#[test]
fn long_runs_of_zeros_become_holes() {
    let mut data = vec![0; 3_000_000];
    data[1_000_000] = 1;
    data[2_999_999] = 2;
    let tar = archive(&[file("large", &data), file("small", &data[1_000_000..1_200_000])]);
    let to = tempfile::tempdir().unwrap();
    assert_eq!(unpack_to(&tar, to.path()), []);
    assert!(fs::read(to.path().join("large")).unwrap() == data);
    assert!(fs::read(to.path().join("small")).unwrap() == data[1_000_000..1_200_000]);
    for name in ["large", "small"] {
        assert!(fs::metadata(to.path().join(name)).unwrap().blocks() * 512 <= 64 << 10, "{name}");
    }
}

#[test]
fn every_kind_of_tar_entry_is_restored_or_reported() {
    let long = format!("{}/end", "long".repeat(30));
    let outside = tempfile::tempdir().unwrap();
    let tar = archive(&[
        pax(b'g', &[("comment", "of all"), ("mtime", "5.5")]),
        entry(tar::EntryType::new(b'V'), "label", b""),
        entry(tar::EntryType::new(b'L'), "././@LongLink", format!("{long}\0").as_bytes()),
        file("cut", b"1"),
        file("deep/er/without/directories", b"2"),
        file("/absolute", b"3"),
        file("v7/", b""),
        entry(tar::EntryType::new(b'M'), "continued", b"data"),
        entry(tar::EntryType::new(b'Z'), "unknown", &[7; 1000]),
        file("../out", b"4"),
        file("a/../../out", b"5"),
        link(tar::EntryType::Symlink, "up", outside.path().to_str().unwrap()),
        file("up/through", b"6"),
        link(tar::EntryType::Link, "hard", "absolute"),
        link(tar::EntryType::Link, "dangling", "nothing"),
        entry(tar::EntryType::Continuous, "last", b"7"),
    ]);
    let above = tempfile::tempdir().unwrap();
    let to = above.path().join("to");
    let mut found = unpack_to(&tar, &to);
    found.sort();
    let wanted = [
        ("not_created", "dangling"),
        ("orphan", "up/through"),
        ("unsafe", "../out"),
        ("unsafe", "a/../../out"),
        ("unsupported", "continued"),
        ("unsupported", "unknown"),
    ];
    assert_eq!(found, wanted.map(|(code, path)| (code, path.to_owned())));
    assert_eq!(names(above.path()), ["to"]);
    let text = |name: &str| fs::read_to_string(to.join(name)).unwrap();
    assert_eq!((text(&long), text("deep/er/without/directories")), ("1".to_owned(), "2".to_owned()));
    assert_eq!((text("absolute"), text("hard"), text("last")), ("3".into(), "3".into(), "7".into()));
    assert!(to.join("v7").is_dir());
    let time = fs::metadata(to.join("last")).unwrap();
    assert_eq!((time.mtime(), time.mtime_nsec()), (5, 500_000_000), "the record for all counts");
    assert_eq!(names(outside.path()), [""; 0]);
}

#[test]
fn the_last_of_several_entries_with_one_name_is_kept_and_the_others_are_reported() {
    let tar = archive(&[
        file("twice", b"one"),
        file("twice", b"two"),
        link(tar::EntryType::Symlink, "link", "one"),
        link(tar::EntryType::Symlink, "link", "two"),
        entry(tar::EntryType::Directory, "d", b""),
        file("d/f", b"f"),
        entry(tar::EntryType::Directory, "d", b""),
    ]);
    let to = tempfile::tempdir().unwrap();
    let found = unpack_to(&tar, to.path());
    assert_eq!(found, [("replaced", "twice".to_owned()), ("replaced", "link".to_owned())]);
    assert_eq!(names(to.path()), ["d", "link", "twice"]);
    assert_eq!(fs::read(to.path().join("twice")).unwrap(), b"two");
    assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("two"));
}

#[test]
fn a_truncated_archive_or_trailing_data_is_reported() {
    let whole = archive(&[file("a", b"a"), file("b", &[1; 1000])]);
    let directory = larder_testing::scratch();
    for (number, (length, wanted)) in
        [(1024, "entries_lost"), (1024 + 600, "damaged"), (1024 + 100, "entries_lost")]
            .into_iter()
            .enumerate()
    {
        let to = directory.path().join(number.to_string());
        let (done, found) = unpack_damaged(&whole[..length], &[], &to);
        done.unwrap();
        assert_eq!(found[0].0, wanted, "{length}");
        assert_eq!(names(&to), ["a"]);
    }
    let joined = [whole.clone(), file("c", b"c")].concat();
    assert_eq!(unpack_to(&joined, &directory.path().join("joined"))[0].0, "entries_lost");
    let (done, _) = unpack_damaged(&[7; 4096], &[], &directory.path().join("none"));
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::InvalidData);
    // A directory with something in it is left alone.
    let (done, _) = unpack_damaged(&whole, &[], directory.path());
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

/// The place of an entry in an archive, and its contents.
type Stored = (Range<usize>, Vec<u8>);

/// Twenty files with a tar in the middle, and where each entry is with its contents.
fn long_archive(prefix: &str) -> (Vec<u8>, Vec<Stored>) {
    let inner = archive(&(0..30).map(|at| file(&format!("inner{at}"), b"inner")).collect::<Vec<_>>());
    let mut data = entry(tar::EntryType::Directory, "./", b"");
    let mut entries = Vec::new();
    for at in 0..20 {
        let begin = data.len();
        let contents = if at == 10 { inner.clone() } else { vec![u8::try_from(at).unwrap() + 1; 3000] };
        data.extend(pax(b'x', &[("mtime", "7.5")]));
        data.extend(file(&format!("{prefix}f{at:02}"), &contents));
        entries.push((begin..data.len(), contents));
    }
    data.extend([0; 10_240]);
    (data, entries)
}

#[test]
fn damage_loses_only_the_entries_that_it_hits() {
    ["./", ""].into_iter().for_each(damage_anywhere);
}

fn damage_anywhere(prefix: &str) {
    let (data, entries) = long_archive(prefix);
    let directory = larder_testing::scratch();
    for (number, begin) in (0..data.len()).step_by(2900).enumerate() {
        for length in [1, 4000] {
            let damaged = begin..(begin + length).min(data.len());
            let to = directory.path().join(format!("{number}-{length}"));
            let (done, found) = unpack_damaged(&data, std::slice::from_ref(&damaged), &to);
            done.unwrap();
            let restored = names(&to);
            assert!(!found.is_empty() || restored.len() == entries.len(), "{damaged:?}");
            for (at, (entry, contents)) in entries.iter().enumerate() {
                let name = format!("f{at:02}");
                if restored.contains(&name) {
                    assert!(fs::read(to.join(&name)).unwrap() == *contents, "{damaged:?} {name}");
                } else {
                    let is_hit = damaged.start < entry.end && damaged.end > entry.start;
                    assert!(is_hit, "{damaged:?} costs {name}: {found:?}");
                }
            }
            let strangers = restored.iter().filter(|name| !name.starts_with('f') || name.len() != 3);
            assert_eq!(strangers.count(), 0, "{damaged:?}: {restored:?}");
        }
    }
}

#[test]
fn a_file_with_damaged_pax_records_is_not_restored_under_a_wrong_name() {
    let long = format!("./{}", "n".repeat(150));
    let mut header = file("./x", b"data");
    header[..100].copy_from_slice(&long.as_bytes()[..100]);
    let mut fixed = tar::Header::from_byte_slice(&header[..512]).clone();
    fixed.set_cksum();
    header[..512].copy_from_slice(fixed.as_bytes());
    let first = file("./first", b"1");
    let tar = archive(&[first.clone(), pax(b'x', &[("path", &long)]), header, file("./last", b"2")]);
    for damaged in [first.len()..first.len() + 1, first.len() + 512..first.len() + 513] {
        let to = tempfile::tempdir().unwrap();
        let (done, found) = unpack_damaged(&tar, &[damaged], to.path());
        done.unwrap();
        assert!(found.iter().any(|(code, _)| *code == "damaged"), "{found:?}");
        assert_eq!(names(to.path()), ["first", "last"]);
    }
}

#[test]
fn a_file_is_restored_although_its_attributes_cannot_be_set() {
    let mut bytes = file("odd", b"data");
    let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
    header.set_mode(0o4755);
    header.as_mut_bytes()[136..148].copy_from_slice(b"nonsense....");
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    let records = [
        ("uid", "99999999999"),
        ("SCHILY.xattr.nonsense", "value"),
        ("SCHILY.acl.access", "user::rwx"),
        ("LIBARCHIVE.xattr.user.x", "*"),
    ];
    let tar = archive(&[pax(b'x', &records), bytes]);
    let to = tempfile::tempdir().unwrap();
    let findings = Findings::new("root.tar.didx");
    unpack(Bytes { damaged: &[], data: &tar, position: 0 }, to.path(), Owners::Same, &findings).unwrap();
    let report = findings.report();
    let count = |attribute| {
        let problem = Problem::NotSet(attribute);
        report.findings.iter().filter(|finding| finding.problem == problem).count()
    };
    let all = [Attribute::Owner, Attribute::Extended, Attribute::Mode, Attribute::Times].map(count);
    assert_eq!(all, [1, 3, 1, 1], "{report:?}");
    let metadata = fs::metadata(to.path().join("odd")).unwrap();
    assert_eq!(
        metadata.permissions().mode() & 0o7777,
        0o755,
        "the rights of another owner are not given away"
    );
    assert_eq!(fs::read(to.path().join("odd")).unwrap(), b"data");
}

#[test]
fn an_existing_name_is_replaced_only_if_the_archive_created_it() {
    // As on a filesystem where both names are the same: something else made the file.
    struct Intruder<'a>(Bytes<'a>, std::path::PathBuf);
    impl Source for Intruder<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
            fs::write(&self.1, "mine").unwrap();
            self.0.read(buffer)
        }

        fn seek(&mut self, position: u64) -> io::Result<()> {
            self.0.seek(position)
        }
    }
    let data = archive(&[file("a", b"a"), file("b", b"b")]);
    let to = tempfile::tempdir().unwrap();
    let findings = Findings::new("root.tar.didx");
    let bytes = Bytes { damaged: &[], data: &data, position: 0 };
    unpack(Intruder(bytes, to.path().join("a")), to.path(), Owners::Same, &findings).unwrap();
    assert_eq!(findings.report().findings[0].problem, Problem::Exists);
    assert_eq!(names(to.path()), ["a", "b"]);
    assert_eq!(fs::read(to.path().join("a")).unwrap(), b"mine");
}

#[test]
fn a_read_error_leaves_only_whole_files() {
    struct Failing<'a>(Bytes<'a>, usize);
    impl Source for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
            let left = self.1.saturating_sub(self.0.position);
            if left == 0 {
                return Err(ReadError::Failed(io::Error::other("interrupted")));
            }
            let length = left.min(buffer.len());
            self.0.read(&mut buffer[..length])
        }

        fn seek(&mut self, position: u64) -> io::Result<()> {
            self.0.seek(position)
        }
    }
    let data = archive(&[file("small", b"a"), file("large", &vec![1; 2_000_000]), file("never", b"b")]);
    for end in [100, 600, 1024, 1_500_000] {
        let to = tempfile::tempdir().unwrap();
        let source = Failing(Bytes { damaged: &[], data: &data, position: 0 }, end);
        unpack(source, to.path(), Owners::Same, &Findings::new("a")).unwrap_err();
        let wanted: &[&str] = if end >= 600 { &["small"] } else { &[] };
        assert_eq!(names(to.path()), wanted, "{end}");
    }
}

#[test]
fn a_full_disk_ends_the_restore_and_leaves_only_whole_files() {
    let directory = larder_testing::scratch();
    let mount = directory.path();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=400k", "tmpfs"]).arg(mount).status();
    if !is_root() || !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: tmpfs cannot be mounted");
        return;
    }
    let data = archive(&[file("large", &vec![1; 600_000]), file("never", b"b")]);
    let (done, found) = unpack_damaged(&data, &[], &mount.join("to"));
    let left = names(&mount.join("to"));
    Command::new("umount").arg(mount).status().unwrap();
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(found, [("not_written", "large".to_owned())]);
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_tree_packed_by_gnu_tar_is_restored() {
    let source = tempfile::tempdir().unwrap();
    let deep = source.path().join("d").join("e".repeat(120)).join("f");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("g".repeat(110)), "deep").unwrap();
    fs::File::create(source.path().join("large")).unwrap().write_all(&vec![5; 1_000_000]).unwrap();
    fs::hard_link(source.path().join("large"), source.path().join("more")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), source.path().join("link")).unwrap();
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o555)).unwrap();
    for format in ["v7", "ustar", "gnu", "oldgnu", "posix"] {
        let format = format!("--format={format}");
        let mut arguments = vec!["-cf", "-", &*format, "./large", "./more"];
        let has_all = format.ends_with("gnu") || format.ends_with("posix");
        if has_all {
            arguments.extend(["./d", "./link"]);
        }
        let Some(tar) = gnu_tar(source.path(), &arguments) else { return };
        let to = tempfile::tempdir().unwrap();
        assert_eq!(unpack_to(&tar, to.path()), [], "{format}");
        assert!(fs::read(to.path().join("more")).unwrap() == vec![5; 1_000_000]);
        assert_eq!(fs::metadata(to.path().join("large")).unwrap().nlink(), 2);
        if has_all {
            let deep = to.path().join("d").join("e".repeat(120)).join("f");
            assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o555);
            assert_eq!(fs::read(deep.join("g".repeat(110))).unwrap(), b"deep");
            assert_eq!(fs::read_link(to.path().join("link")).unwrap().as_os_str().len(), 150);
            fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn paths_longer_than_the_system_limit_are_restored() {
    let parts: Vec<_> = (0..60).map(|at| format!("{at:0>100}")).collect();
    let long =
        |kind, name: &str| entry(tar::EntryType::new(kind), "././@LongLink", format!("{name}\0").as_bytes());
    let (directory, name) = (parts.join("/"), format!("{}/file", parts.join("/")));
    let tar = archive(&[
        long(b'L', &name),
        file("cut", b"deep"),
        long(b'L', &directory),
        entry(tar::EntryType::Directory, "cut", b""),
        long(b'L', &format!("{directory}/link")),
        long(b'K', &name),
        link(tar::EntryType::Link, "cut", "cut"),
    ]);
    let to = tempfile::tempdir().unwrap();
    assert_eq!(unpack_to(&tar, to.path()), []);
    let mut at = rustix::fs::open(to.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for part in &parts {
        at = rustix::fs::openat(&at, part.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let status = rustix::fs::statat(&at, "link", AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((status.st_size, status.st_nlink), (4, 2));
    let status = rustix::fs::fstat(&at).unwrap();
    assert_eq!((status.st_mode & 0o7777, status.st_mtime), (0o644, 1_000_000));
    rustix::fs::fchmod(&at, Mode::RWXU).unwrap();
}

#[test]
fn owners_are_restored_on_request_and_privileged_modes_never_go_to_other_owners() {
    let of_other = |name: &str| {
        let mut header = tar::Header::from_byte_slice(&file(name, b"")[..512]).clone();
        header.set_uid(12_345);
        header.set_gid(12_345);
        header.set_mode(0o6755);
        header.set_cksum();
        with_data(header.as_bytes(), b"")
    };
    let tar = archive(&[of_other("file")]);
    for owners in [Owners::Own, Owners::Same] {
        let to = tempfile::tempdir().unwrap();
        let findings = Findings::new("root.tar.didx");
        let own = rustix::process::geteuid().as_raw();
        unpack(Bytes { damaged: &[], data: &tar, position: 0 }, to.path(), owners, &findings).unwrap();
        let report = findings.report();
        let problems: Vec<_> = report.findings.iter().map(|finding| finding.problem).collect();
        let metadata = fs::metadata(to.path().join("file")).unwrap();
        let found = (metadata.uid(), metadata.permissions().mode() & 0o7777, &*problems);
        let (owner, mode) = (Problem::NotSet(Attribute::Owner), Problem::NotSet(Attribute::Mode));
        match owners {
            Owners::Own => assert_eq!(found, (own, 0o755, &[mode][..])),
            Owners::Same if is_root() => assert_eq!(found, (12_345, 0o6755, &[][..])),
            Owners::Same => assert_eq!(found, (own, 0o755, &[owner, mode][..])),
        }
    }
}

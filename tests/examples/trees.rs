//! The built examples on file archives: backup, list, diff, restore and mount.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::built::{errors, example, status};

/// A store, and a tree to back up.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { directory: larder_testing::scratch() };
        // A store as PBS creates it, except that prefix directories are created with their first chunk.
        fs::create_dir_all(scene.path("store/.chunks")).unwrap();
        fs::create_dir_all(scene.path("tree/etc/empty")).unwrap();
        fs::write(scene.path("tree/etc/one.conf"), "one").unwrap();
        fs::write(scene.path("tree/etc/two.conf"), "two").unwrap();
        fs::write(scene.path("tree/scratch.tmp"), "left out").unwrap();
        let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(scene.path("tree/large"), large).unwrap();
        fs::hard_link(scene.path("tree/large"), scene.path("tree/same")).unwrap();
        symlink("etc/one.conf", scene.path("tree/link")).unwrap();
        // Before the time of the snapshots: a file that is newer than its backup is read again.
        for name in ["etc/one.conf", "etc/two.conf", "large"] {
            let time = filetime::FileTime::from_unix_time(1_600_000_000, 250_000_000);
            filetime::set_file_mtime(scene.path("tree").join(name), time).unwrap();
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn on(&self, name: &str) -> Command {
        let mut command = example(name);
        command.arg("--store").arg(self.path("store")).args(["--sync-level", "none"]);
        command
    }

    /// Backs the tree up at a minute of an hour.
    fn back_up(&self, minute: u32, options: &[&str]) -> Value {
        let time = format!("2025-07-14T14:{minute:02}:00Z");
        let mut backup = self.on("backup");
        backup.args(["--json", "--group", "host/a", "--time", &time, "--exclude", "*.tmp"]);
        let done = run(backup.args(options).arg(format!("root.pxar:{}", self.path("tree").display())));
        serde_json::from_slice(&done.stdout).unwrap()
    }

    fn restore(&self, snapshot: &str, arguments: &[&str], target: &str) -> Output {
        let target = format!("{}/{target}", self.directory.path().display());
        self.on("restore").args([snapshot, "root.pxar", &target]).args(arguments).output().unwrap()
    }
}

fn snapshot(minute: u32) -> String {
    format!("host/a/2025-07-14T14:{minute:02}:00Z")
}

/// Runs a command that must succeed.
fn run(command: &mut Command) -> Output {
    let done = command.output().unwrap();
    assert_eq!(status(&done), 0, "{command:?}: {}", errors(&done));
    done
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Everything below a directory, by path: mode and time, and contents or target.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![directory.to_owned()]);
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let bytes = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if metadata.is_file() {
            fs::read(&path).unwrap()
        } else {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        };
        let path = path.strip_prefix(directory).unwrap().to_owned();
        found.insert(path, (metadata.mode(), metadata.mtime_nsec(), bytes));
    }
    found
}

#[test]
fn a_tree_is_restored_as_it_was_from_every_form() {
    let scene = Scene::new();
    let first = scene.back_up(0, &[]);
    assert!(first["bytes_read"].as_u64().unwrap() > 1_000_000, "{first}");
    let second = scene.back_up(1, &[]);
    assert!(second["bytes_read"].as_u64().unwrap() < 10_000, "no file is read again: {second}");
    scene.back_up(2, &["--change-detection", "legacy"]);
    scene.back_up(3, &["--change-detection", "data"]);
    let mut wanted = contents(&scene.path("tree"));
    wanted.remove(Path::new("scratch.tmp"));
    for minute in 0..4 {
        let target = format!("restored-{minute}");
        let done = scene.restore(&snapshot(minute), &[], &format!("{target}/"));
        assert_eq!(status(&done), 0, "{}", errors(&done));
        let mut found = contents(&scene.path(&target));
        // The patterns of the command line are a file of the unified form.
        assert_eq!(found.remove(Path::new(".pxarexclude-cli")).is_some(), minute == 2);
        assert!(found == wanted, "{minute}: {:?}", found.keys());
        let links = [scene.path(&target).join("large"), scene.path(&target).join("same")];
        assert_eq!(fs::metadata(&links[0]).unwrap().ino(), fs::metadata(&links[1]).unwrap().ino());
    }
}

#[test]
fn parts_of_a_tree_are_listed_and_restored() {
    let scene = Scene::new();
    scene.back_up(0, &[]);
    let list = |arguments: &[&str]| {
        let mut list = scene.on("list");
        let done = run(list.args(["--tree", "host/a/latest", "root.pxar", "--json"]).args(arguments));
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        let entries = report["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), ["etc", "large", "link", "same"]);
    assert_eq!(list(&["etc"]), ["etc/empty", "etc/one.conf", "etc/two.conf"]);
    assert_eq!(list(&["/etc/one.conf"]), ["etc/one.conf"]);
    assert_eq!(list(&["--recursive"]).len(), 8);

    let done = scene.restore("host/a/latest", &["--path", "etc/two.conf", "--path", "*.nothing"], "some/");
    assert_eq!(status(&done), 0, "{}", errors(&done));
    let paths: Vec<_> = contents(&scene.path("some")).into_keys().collect();
    assert_eq!(paths, ["", "etc", "etc/two.conf"].map(PathBuf::from));
    let done = scene.restore("host/a/latest", &["--path", "*.conf"], "some/");
    assert_eq!(status(&done), 2, "the directory is not empty");
    let done = scene.restore("host/a/latest", &["--path", "*.conf", "--existing", "keep"], "some/");
    assert_eq!(status(&done), 0, "{}", errors(&done));
    assert_eq!(contents(&scene.path("some")).len(), 4);
    let done = scene.restore("host/a/latest", &["--path", "link/../etc"], "some/");
    assert_eq!(status(&done), 2);

    // One file needs no directory.
    let mut restore = scene.on("restore");
    let done = run(restore.args(["host/a/latest", "root.pxar", "-", "--path", "etc/one.conf"]));
    assert_eq!(done.stdout, b"one");
    assert_eq!(status(&scene.restore("host/a/latest", &["--path", "etc/none"], "file")), 2);
    assert_eq!(status(&scene.restore("host/a/latest", &["--path", "etc"], "file")), 2);
    assert!(!scene.path("file").exists());
}

#[test]
fn a_comparison_names_what_was_added_changed_and_removed_in_any_form() {
    let scene = Scene::new();
    scene.back_up(0, &[]);
    fs::write(scene.path("tree/etc/one.conf"), "one!").unwrap();
    fs::set_permissions(scene.path("tree/etc/two.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(scene.path("tree/same")).unwrap();
    fs::create_dir_all(scene.path("tree/etc/a")).unwrap();
    scene.back_up(1, &[]);
    scene.back_up(2, &["--change-detection", "legacy"]);
    for minute in [1, 2] {
        let found = lines(&run(scene.on("diff").args([snapshot(0), snapshot(minute)])));
        let without_times: Vec<_> =
            found.iter().filter(|line| *line != "~ root (time)" && *line != "~ root/etc (time)").collect();
        let mut wanted = vec![
            "+ root/etc/a",
            "~ root/etc/one.conf (size, time)",
            "~ root/etc/two.conf (mode)",
            "- root/same",
        ];
        if minute == 2 {
            wanted.push("+ root/.pxarexclude-cli");
        }
        assert_eq!(without_times, wanted);
    }
    assert_eq!(lines(&run(scene.on("diff").args([snapshot(1), snapshot(1)]))), Vec::<String>::new());
    assert_eq!(status(&scene.on("diff").args([snapshot(1)]).output().unwrap()), 2);
}

#[test]
fn a_mounted_tree_has_what_was_backed_up_until_a_signal_unmounts_it() {
    let scene = Scene::new();
    scene.back_up(0, &[]);
    let mut wanted = contents(&scene.path("tree"));
    wanted.remove(Path::new("scratch.tmp"));
    let done = mounted(&scene, "root.pxar", |mounted| {
        assert!(contents(mounted) == wanted);
        let file = fs::File::open(mounted.join("large")).unwrap();
        let mut word = [0; 4];
        file.read_exact_at(&mut word, 4 * 250_000).unwrap();
        assert_eq!(u32::from_le_bytes(word), 250_000);
        let numbers = ["large", "same"].map(|name| fs::metadata(mounted.join(name)).unwrap().ino());
        assert_eq!(numbers[0], numbers[1]);
        let refused = fs::write(mounted.join("etc/one.conf"), "two").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    });
    if let Some(mountpoint) = done {
        assert_eq!(fs::read_dir(mountpoint).unwrap().count(), 0, "it is not mounted any more");
    }
}

#[test]
fn a_mounted_image_is_a_directory_with_one_file() {
    let scene = Scene::new();
    let mut backup = scene.on("backup");
    run(backup.args(["--group", "host/a"]).arg(format!("disk.img:{}", scene.path("tree/large").display())));
    mounted(&scene, "disk.img.fidx", |mounted| {
        let names: Vec<_> = fs::read_dir(mounted).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["disk.img"]);
        assert!(fs::read(mounted.join("disk.img")).unwrap() == fs::read(scene.path("tree/large")).unwrap());
    });
}

/// A child process of another test that is being started may have an open file too.
#[test]
fn a_signal_ends_a_mount_that_is_in_use_with_its_last_user() {
    let scene = Scene::new();
    scene.back_up(0, &[]);
    std::thread::scope(|threads| {
        mounted(&scene, "root.pxar", |mounted| {
            let (file, mounted) = (fs::File::open(mounted.join("large")).unwrap(), mounted.to_owned());
            threads.spawn(move || {
                while fs::read_dir(&mounted).unwrap().count() > 0 {
                    std::thread::yield_now();
                }
                let mut word = [0; 4];
                file.read_exact_at(&mut word, 4 * 250_000).unwrap();
                assert_eq!(u32::from_le_bytes(word), 250_000, "it is served until it is closed");
            });
        });
    });
}

/// Looks at a mounted archive, and ends the mount by a signal. Returns the mount point, or `None` where nothing can be mounted.
fn mounted(scene: &Scene, archive: &str, look: impl FnOnce(&Path)) -> Option<PathBuf> {
    let mountpoint = scene.path("mounted");
    fs::create_dir(&mountpoint).unwrap();
    let mut mount = scene.on("mount");
    mount.args(["host/a/latest", archive]).arg(&mountpoint).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = mount.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(running.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.contains("is mounted on") {
        let done = running.wait_with_output().unwrap();
        let text = errors(&done);
        let cannot = ["/dev/fuse", "Operation not permitted", "Permission denied", "fusermount"];
        assert!(cannot.iter().any(|why| text.contains(why)) && status(&done) == 1, "{text}");
        eprintln!("skipped: {text}");
        return None;
    }
    // A failed look must not leave the mount behind.
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&mountpoint)));
    kill_process(Pid::from_child(&running), Signal::TERM).unwrap();
    let done = running.wait_with_output().unwrap();
    looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(status(&done), 0, "{}", errors(&done));
    Some(mountpoint)
}

#[test]
fn a_strict_backup_of_a_tree_with_losses_makes_no_snapshot_and_another_names_them() {
    let scene = Scene::new();
    if rustix::process::geteuid().is_root() {
        // Root can read everything: a store within the tree is left out with a notice, which is no loss.
        fs::rename(scene.path("store"), scene.path("tree/store")).unwrap();
        symlink("tree/store", scene.path("store")).unwrap();
        let done = scene.back_up(0, &["--strict"]);
        assert_eq!(done["findings"][0]["problem"], "own_store", "{done}");
        assert_eq!((&done["findings"][0]["path"], &done["complete"]), (&"store".into(), &true.into()));
        return;
    }
    fs::set_permissions(scene.path("tree/etc/one.conf"), fs::Permissions::from_mode(0o000)).unwrap();
    let source = format!("root.pxar:{}", scene.path("tree").display());
    let backup = |options: &[&str]| scene.on("backup").args(options).arg(&source).output().unwrap();
    assert_eq!(status(&backup(&["--strict"])), 1);
    assert!(
        !scene.path("store/host").exists() || fs::read_dir(scene.path("store/host")).unwrap().count() == 0
    );
    let done = backup(&[]);
    assert!(status(&done) == 1 && errors(&done).contains("etc/one.conf"), "{}", errors(&done));
}

#[test]
fn options_of_trees_are_refused_where_they_mean_nothing() {
    let scene = Scene::new();
    scene.back_up(0, &[]);
    for arguments in [
        &["list", "--tree"][..],
        &["list", "host/a/latest"],
        &["list", "--tree", "host/a/latest", "none.pxar"],
        &["restore", "host/a/latest", "disk.img.fidx", "-", "--path", "a"],
        &["restore", "host/a/latest", "root.pxar", "-", "--path", "*"],
        &["restore", "host/a/latest", "root.pxar", "x/", "--existing", "maybe"],
        &["backup", "--change-detection", "guess", "root.pxar:/tmp"],
        &["mount", "host/a/latest", "root.pxar"],
        &["mount", "host/a/latest", "root.pxar", "/nowhere/at/all"],
    ] {
        let done = scene.on(arguments[0]).args(&arguments[1..]).output().unwrap();
        assert_eq!(status(&done), 2, "{arguments:?}: {}", errors(&done));
        assert_eq!(errors(&done).lines().count(), 1, "{}", errors(&done));
    }
}

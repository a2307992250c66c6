//! The built examples `restore` and `list` on damaged stores, existing targets and typing errors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::built::{errors, example, status};

const SNAPSHOT: &str = "host/a/2025-07-14T14:20:02Z";

/// A store with an image, a small file and a tree of two files.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { directory: larder_testing::scratch() };
        // A store as PBS creates it, except that prefix directories are created with their first chunk.
        fs::create_dir_all(scene.path("store/.chunks")).unwrap();
        fs::create_dir(scene.path("tree")).unwrap();
        fs::write(scene.path("tree/file"), "contents").unwrap();
        fs::write(scene.path("image"), [&[1; 5000][..], &[0; 5000]].concat()).unwrap();
        let sources = ["root.tar:tree", "disk.img:image", "small.conf:image"];
        let sources = sources.map(|source| {
            let (name, path) = source.split_once(':').unwrap();
            format!("{name}:{}", scene.path(path).display())
        });
        let mut backup = scene.on("backup");
        backup.args(["--sync-level", "none", "--group", "host/a", "--time", "2025-07-14T14:20:02Z"]);
        let done = backup.args(sources).output().unwrap();
        assert!(done.status.success(), "{}", errors(&done));
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn on(&self, name: &str) -> Command {
        let mut command = example(name);
        command.arg("--store").arg(self.path("store"));
        command
    }

    fn restore(&self, options: &[&str], archive: &str, target: &str) -> Output {
        let target = format!("{}/{target}", self.directory.path().display());
        self.on("restore").args(options).args([SNAPSHOT, archive, &target]).output().unwrap()
    }

    fn chunks(&self) -> Vec<PathBuf> {
        let entries = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let prefixes = entries(&self.path("store/.chunks")).filter(|path| path.is_dir());
        prefixes.flat_map(|prefix| entries(&prefix).collect::<Vec<_>>()).collect()
    }
}

#[test]
fn damage_exits_with_1_and_a_mistyped_name_with_2() {
    let scene = Scene::new();
    for (archive, target) in
        [("disk.fidx", "a"), ("disk", "a"), ("other.conf.blob", "a"), ("disk.img.fidx", "a/")]
    {
        assert_eq!(status(&scene.restore(&[], archive, target)), 2, "{archive}");
    }
    let mistyped = scene.on("restore").args(["host/b/2025-07-14T14:20:02Z", "disk.img.fidx", "-"]).output();
    assert_eq!(status(&mistyped.unwrap()), 2);
    for chunk in scene.chunks() {
        fs::remove_file(chunk).unwrap();
    }
    fs::remove_file(scene.path("store").join(SNAPSHOT).join("small.conf.blob")).unwrap();
    for archive in ["disk.img.fidx", "small.conf.blob"] {
        let done = scene.restore(&[], archive, "target");
        let text = errors(&done);
        assert_eq!(status(&done), 1, "{text}");
        assert!(text.contains(SNAPSHOT) && text.contains(archive), "{text}");
        let left = fs::read_dir(scene.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("target")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let done = scene.restore(&["--json"], "root.tar.didx", "tree-again/");
    assert_eq!(status(&done), 1, "{}", errors(&done));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["findings"][0]["problem"], "entries_lost", "{report}");
    fs::remove_file(scene.path("store").join(SNAPSHOT).join("disk.img.fidx")).unwrap();
    let done = scene.restore(&[], "disk.img.fidx", "target");
    assert_eq!(status(&done), 1, "{}", errors(&done));
}

#[test]
fn an_unreadable_manifest_is_listed_and_the_exit_status_is_1() {
    let scene = Scene::new();
    let other = scene.path("store/host/b/2025-07-14T14:20:02Z");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("index.json.blob"), "damaged").unwrap();
    for options in [&[][..], &["--json"]] {
        let done = scene.on("list").args(options).output().unwrap();
        assert_eq!(status(&done), 1);
        assert!(errors(&done).contains("host/b/2025-07-14T14:20:02Z"), "{}", errors(&done));
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(text.contains(SNAPSHOT) && text.contains("host/b/2025-07-14T14:20:02Z"), "{text}");
        assert!(text.contains("disk.img.fidx"), "{text}");
    }
}

#[test]
fn an_existing_target_is_overwritten_only_on_request() {
    let scene = Scene::new();
    let image = fs::read(scene.path("image")).unwrap();
    fs::write(scene.path("target"), vec![7; 20_000]).unwrap();
    for archive in ["disk.img.fidx", "small.conf.blob", "root.tar.didx"] {
        let done = scene.restore(&[], archive, "target");
        assert!(status(&done) == 2 && errors(&done).contains("--overwrite"), "{}", errors(&done));
        assert_eq!(status(&scene.restore(&["--device"], archive, "target")), 2, "it is no device");
    }
    assert_eq!(fs::read(scene.path("target")).unwrap(), vec![7; 20_000]);
    for archive in ["disk.img.fidx", "small.conf.blob"] {
        fs::write(scene.path("target"), vec![7; 20_000]).unwrap();
        let done = scene.restore(&["--overwrite"], archive, "target");
        assert_eq!(status(&done), 0, "{}", errors(&done));
        assert!(fs::read(scene.path("target")).unwrap() == image, "{archive}");
    }
    // Only what exists can be overwritten.
    assert_eq!(status(&scene.restore(&["--overwrite"], "disk.img.fidx", "new")), 2);
    let done = scene.restore(&[], "root.tar.didx", "tree/");
    assert_eq!(status(&done), 2, "the directory is not empty: {}", errors(&done));
    let done = scene.restore(&[], "root.tar.didx", "new/tree/");
    assert_eq!(status(&done), 0, "{}", errors(&done));
    assert_eq!(fs::read(scene.path("new/tree/file")).unwrap(), b"contents");
}

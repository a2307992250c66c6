//! The built examples as people use them: in pipes, on full disks, interrupted, with typing errors.

use larder_testing::fault_server::{Action, FaultServer, Options, Rule};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::built::{errors, status};

/// No machine is so slow that a process does not come so far in this time.
const SOON: Duration = Duration::from_mins(1);

/// One of the examples, with credentials and an environment without anything else.
pub(crate) fn example(name: &str) -> Command {
    let mut command = crate::built::example(name);
    command.env_clear().env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", "secret");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Where a store is.
enum Place {
    Bucket(Arc<FaultServer>),
    Directory(PathBuf),
}

impl Place {
    /// A command on the store of this name there.
    fn on(&self, name: &str, store: &str) -> Command {
        let mut command = example(name);
        match self {
            Self::Bucket(server) => {
                command
                    .arg("--store")
                    .arg(format!("s3://bucket/{store}"))
                    .arg("--endpoint")
                    .arg(server.url());
            }
            Self::Directory(path) => {
                command.arg("--store").arg(path.join(store)).args(["--sync-level", "none"]);
            }
        }
        command
    }

    /// Makes sure that no process has to wait for the lease.
    fn check_released(&self) {
        let Self::Bucket(server) = self else { return };
        let Some(lease) = server.objects().get("store/.larder/lease").cloned() else { return };
        let lease: serde_json::Value = serde_json::from_slice(&lease).unwrap();
        assert_eq!(lease["held"], false);
    }

    /// The objects of the store except chunks, its identity and its locks.
    fn metadata(&self) -> Vec<String> {
        match self {
            Self::Bucket(server) => {
                let keys = server.objects().into_keys().filter(|key| key.starts_with("store/.cnt/"));
                keys.collect()
            }
            Self::Directory(path) => {
                let entries = fs::read_dir(path.join("store")).unwrap();
                let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                names.filter(|name| !name.starts_with('.')).collect()
            }
        }
    }
}

/// A scratch directory, with something to back up.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = larder_testing::scratch();
        fs::create_dir(directory.path().join("src")).unwrap();
        fs::write(directory.path().join("src/file"), "contents").unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A store in a directory and one in a bucket, each with two snapshots.
    fn places(&self) -> [Place; 2] {
        // A store as PBS creates it, except that prefix directories are created with their first chunk.
        fs::create_dir_all(self.path("store/.chunks")).unwrap();
        let places = [Place::Directory(self.directory.path().to_owned()), bucket()];
        for place in &places {
            for group in ["host/a", "host/b"] {
                let done = output(
                    place.on("backup", "store").args(["--create", "--group", group]).arg(self.source()),
                );
                assert_eq!(status(&done), 0, "{}", errors(&done));
            }
        }
        places
    }

    fn source(&self) -> String {
        format!("root.tar:{}", self.path("src").display())
    }
}

fn bucket() -> Place {
    Place::Bucket(Arc::new(FaultServer::start(Options::default())))
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// The writing end of a pipe that no process reads.
fn closed_pipe() -> Stdio {
    let (_, writer) = io::pipe().unwrap();
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// Every example, with arguments with which all goes well.
fn commands(scene: &Scene, place: &Place) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut add = |name: &str, arguments: &[&str]| {
        let mut command = place.on(name, "store");
        command.args(arguments);
        commands.push(command);
    };
    add("list", &[]);
    add("list", &["--json"]);
    add("list", &["--help"]);
    for command in ["status", "gc", "verify"] {
        add("maintain", &[command]);
        add("maintain", &[command, "--json"]);
    }
    add("maintain", &["status", "--fresh"]);
    add("maintain", &["prune", "--keep-last", "9"]);
    add("maintain", &["copy", "host/a", "--to", "x", "--create-ns", "--dry-run"]);
    add("maintain", &["forget", "host/b", "--dry-run"]);
    let from = scene.path("other");
    fs::create_dir_all(from.join(".chunks")).unwrap();
    add("maintain", &["sync", "--from", from.to_str().unwrap()]);
    add("backup", &["--group", "host/c", &scene.source()]);
    if let Place::Bucket(server) = place {
        let cache = scene.path("cache");
        add("refresh", &["--cache", cache.to_str().unwrap()]);
        let mut check = example("s3_check");
        check.args(["--bucket", "bucket", "--endpoint", &server.url()]);
        commands.push(check);
    }
    commands
}

#[test]
fn a_closed_output_pipe_does_not_change_the_result() {
    let scene = Scene::new();
    for place in scene.places() {
        for mut command in commands(&scene, &place) {
            let done = output(command.stdout(closed_pipe()));
            assert_eq!(status(&done), 0, "{command:?}: {}", errors(&done));
            assert!(!errors(&done).contains("standard output"), "{command:?}: {}", errors(&done));
            place.check_released();
        }
    }
}

#[test]
fn every_example_works_on_a_packed_store() {
    let scene = Scene::new();
    for place in [Place::Directory(scene.directory.path().to_owned()), bucket()] {
        for group in ["host/a", "host/b"] {
            let mut backup = place.on("backup", "store");
            backup.args(["--create", "--packed=8", "--group", group]).arg(scene.source());
            let done = output(&mut backup);
            assert_eq!(status(&done), 0, "{}", errors(&done));
        }
        for mut command in commands(&scene, &place) {
            let done = output(&mut command);
            assert_eq!(status(&done), 0, "{command:?}: {}", errors(&done));
        }
        let target = scene.path("target");
        let mut restore = place.on("restore", "store");
        restore.args(["host/c/latest", "root.tar.didx", &format!("{}/", target.display())]);
        let done = output(&mut restore);
        assert_eq!(status(&done), 0, "{}", errors(&done));
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "contents");
        fs::remove_dir_all(target).unwrap();
        match &place {
            Place::Bucket(server) => {
                assert!(server.objects().keys().all(|key| !key.starts_with("store/.c")));
            }
            Place::Directory(path) => {
                let chunks = fs::read_dir(path.join("store/.chunks")).unwrap().count();
                assert_eq!(chunks, 0, "no directory for chunks");
            }
        }
        let mut gc = place.on("maintain", "store");
        gc.args(["gc", "--dry-run", "--json", "--only-process"]);
        let done = output(gc.args(["--prices", "puts=0.005,gets=0.0004,read=0.09,month=0.023,days=30"]));
        assert_eq!(status(&done), 0, "{}", errors(&done));
        let plan: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(plan["packs"]["delete"]["cost"]["once"], "0.00", "{plan}");
        assert!(plan["packs"]["leave"]["soon_again"]["packs"].as_u64() > Some(0), "{plan}");
        let done = output(place.on("maintain", "store").args(["status", "--json"]));
        let found: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(found["packs"]["all"], plan["packs"]["all"], "{found}");
        assert_eq!(found["packs"]["segments"], plan["packs"]["segments"], "{found}");
        assert_eq!(found["packs"]["unused_bytes"], 0, "{found}");
        if matches!(place, Place::Bucket(_)) {
            let of_packs = &found["requests"]["of_packs"];
            assert!(of_packs["segment_gets"].as_u64() >= found["packs"]["segments"].as_u64(), "{found}");
            assert_eq!(of_packs["pack_gets"], 0, "{found}");
        }
        place.check_released();
    }
}

#[test]
fn wrong_options_of_packed_stores_are_refused() {
    let scene = Scene::new();
    let place = Place::Directory(scene.path("other"));
    for (prices, why) in
        [("puts", "is not NAME=AMOUNT"), ("puts=a", "not an amount"), ("x=1", "there is no x")]
    {
        let done = output(place.on("maintain", "store").args(["gc", "--prices", prices]));
        assert_eq!(status(&done), 2);
        assert!(errors(&done).contains(why), "{}", errors(&done));
    }
    for (arguments, why) in [
        (&["--packed"][..], "it needs --create"),
        (&["--create", "--packed=7"], "8 to 128 MiB"),
        (&["--create", "--packed=x"], "8 to 128 MiB"),
    ] {
        let done = output(place.on("backup", "store").args(arguments).arg(scene.source()));
        assert_eq!(status(&done), 2);
        assert!(errors(&done).contains(why), "{}", errors(&done));
    }
}

#[test]
fn the_custom_backend_example_conforms_and_stores_a_backup() {
    let done = output(&mut example("custom_backend"));
    assert_eq!(status(&done), 0, "{}", errors(&done));
    assert!(String::from_utf8(done.stdout).unwrap().contains("restored: Hello, larder!"));
}

#[test]
fn output_to_a_full_disk_fails_with_a_message() {
    let scene = Scene::new();
    for place in scene.places() {
        for mut command in commands(&scene, &place) {
            let done = output(command.stdout(full_disk()));
            assert_eq!(status(&done), 1, "{command:?}: {}", errors(&done));
            assert!(errors(&done).contains("standard output: No space"), "{command:?}: {}", errors(&done));
            place.check_released();
        }
        let found = output(place.on("list", "store").stdout(Stdio::piped()));
        assert!(String::from_utf8(found.stdout).unwrap().contains("host/c/"), "the backup was made");
    }
}

#[test]
fn an_unwritable_standard_error_does_not_change_the_result() {
    let scene = Scene::new();
    for place in scene.places() {
        for broken in [closed_pipe, full_disk] {
            for mut command in commands(&scene, &place) {
                assert_eq!(status(&output(command.stderr(broken()))), 0, "{command:?}");
            }
            assert_eq!(status(&output(place.on("list", "stor").stderr(broken()))), 2);
            place.check_released();
        }
    }
}

/// A command that is running.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap() }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit status, and what it said on standard error.
    fn end(mut self) -> (i32, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code().unwrap(), said)
    }

    /// Waits for something that it does.
    fn until(&mut self, what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..SOON.as_millis() / 5 {
            if is_so() {
                return;
            }
            if let Some(ended) = self.child.try_wait().unwrap() {
                let mut said = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("{ended} before {what}: {said}");
            }
            pause();
        }
        panic!("it never came to {what}");
    }
}

#[expect(clippy::disallowed_methods, reason = "the process is another one, in real time")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

const SIGNALS: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

/// Stops answering the requests of this method to such paths, and returns whether one came.
fn stall(server: &Arc<FaultServer>, method: &'static str, part: &'static str) -> impl Fn() -> bool + use<> {
    let is_meant = move |path: &str| path.contains(part);
    let before = server.log().len();
    server.add(Rule::on(method).path(is_meant).then(Action::StopReading));
    let server = Arc::clone(server);
    move || server.log()[before..].iter().any(|request| request.method == method && is_meant(&request.path))
}

#[test]
fn an_interrupted_backup_leaves_no_snapshot_and_no_lease() {
    let scene = Scene::new();
    let [directory, in_bucket] = scene.places();
    fs::write(scene.path("src/file"), "other contents").unwrap();
    let Place::Bucket(server) = &in_bucket else { panic!() };
    for (signal, wanted) in SIGNALS {
        let is_stalled = stall(server, "PUT", "/.chunks/");
        let before = in_bucket.metadata();
        let mut running =
            Running::start(in_bucket.on("backup", "store").args(["--group", "host/c"]).arg(scene.source()));
        running.until("the chunk", is_stalled);
        running.signal(signal);
        let (status, said) = running.end();
        assert_eq!(status, wanted, "{said}");
        assert!(said.contains("ended by SIG"), "{said}");
        server.clear();
        assert_eq!(in_bucket.metadata(), before);
        in_bucket.check_released();
    }
    // Reading this takes longer than the test waits.
    let image = File::create(scene.path("image")).unwrap();
    image.set_len(8 << 40).unwrap();
    for (signal, wanted) in SIGNALS {
        let image = format!("disk.img:{}", scene.path("image").display());
        let mut running = Running::start(directory.on("backup", "store").args(["--group", "host/c", &image]));
        let group = scene.path("store/host/c");
        running.until("the group", || group.exists());
        running.signal(signal);
        let (status, said) = running.end();
        assert_eq!(status, wanted, "{said}");
        let left: Vec<_> = fs::read_dir(&group).map_or_else(|_| Vec::new(), |left| left.flatten().collect());
        assert!(left.iter().all(|entry| !entry.path().is_dir()), "{left:?}");
    }
    for place in [&directory, &in_bucket] {
        let done = output(place.on("backup", "store").args(["--group", "host/c"]).arg(scene.source()));
        assert_eq!(status(&done), 0, "nothing is in the way of the next one: {}", errors(&done));
    }
}

#[test]
fn an_interrupted_restore_leaves_no_target() {
    let scene = Scene::new();
    let in_bucket = bucket();
    let Place::Bucket(server) = &in_bucket else { panic!() };
    let sources = [scene.source(), format!("data.bin:{}", scene.path("src/file").display())];
    let done = output(in_bucket.on("backup", "store").args(["--create", "--group", "host/a"]).args(sources));
    assert_eq!(status(&done), 0, "{}", errors(&done));
    let listed = String::from_utf8(output(&mut in_bucket.on("list", "store")).stdout).unwrap();
    let snapshot = listed.split_whitespace().find(|word| word.starts_with("host/a/")).unwrap().to_owned();
    for ((signal, wanted), (archive, target)) in
        SIGNALS.into_iter().zip([("data.bin.didx", "target"), ("root.tar.didx", "target/")])
    {
        let is_stalled = stall(server, "GET", "/.chunks/");
        let path = format!("{}/{target}", scene.directory.path().display());
        let mut running = Running::start(in_bucket.on("restore", "store").args([&snapshot, archive, &path]));
        running.until("the chunk", is_stalled);
        running.signal(signal);
        let (status, said) = running.end();
        assert_eq!(status, wanted, "{said}");
        server.clear();
        let left = fs::read_dir(scene.directory.path()).unwrap().map(|entry| entry.unwrap());
        let left: Vec<_> = left.filter(|entry| entry.file_type().unwrap().is_file()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_signal_ends_a_command_that_waits_for_a_pipe() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("store/.chunks")).unwrap();
    let place = Place::Directory(scene.directory.path().to_owned());
    fs::write(scene.path("large"), vec![7; 1 << 20]).unwrap();
    let source = format!("data.bin:{}", scene.path("large").display());
    let done = output(place.on("backup", "store").args(["--json", "--group", "host/a", &source]));
    assert_eq!(status(&done), 0, "{}", errors(&done));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let snapshot = report["snapshot"].as_str().unwrap();
    for (signal, wanted) in SIGNALS {
        let mut running = Running::start(place.on("restore", "store").args([snapshot, "data.bin.didx", "-"]));
        // More comes than fits into the pipe.
        let mut first = [0];
        running.child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        running.signal(signal);
        let (status, said) = running.end();
        assert_eq!((status, first), (wanted, [7]), "{said}");
        let pipe = scene.path(&format!("pipe{wanted}"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        // Open at both ends, so that it has no end, and nothing in it.
        let _held = File::options().read(true).write(true).open(&pipe).unwrap();
        let source = format!("data.bin:{}", pipe.display());
        let mut running = Running::start(place.on("backup", "store").args(["--group", "host/b", &source]));
        let group = scene.path("store/host/b");
        running.until("the snapshot", || fs::read_dir(&group).is_ok_and(|names| names.count() > 0));
        running.signal(signal);
        let (status, said) = running.end();
        assert_eq!(status, wanted, "{said}");
        let left: Vec<_> = fs::read_dir(&group).map_or_else(|_| Vec::new(), |left| left.flatten().collect());
        assert!(left.iter().all(|entry| !entry.path().is_dir()), "{left:?}");
    }
}

#[test]
fn an_interrupted_command_releases_the_lease() {
    let scene = Scene::new();
    let [_, place] = scene.places();
    let Place::Bucket(server) = &place else { panic!() };
    let other = scene.path("other");
    fs::create_dir_all(other.join(".chunks")).unwrap();
    // An operation that is dropped may stall at any point; one that ends between two steps must complete the current step.
    let cases: [(&str, &[&str], &str, Action); 5] = [
        ("list", &[], "/host/", Action::StopReading),
        ("maintain", &["move", "host/a", "--to", "n", "--create-ns"], "/host/", Action::StopReading),
        ("maintain", &["status"], "/.gc-status", Action::StopReading),
        ("maintain", &["gc"], "/host/", Action::DelayUntilReleased),
        ("maintain", &["verify"], "/.chunks/", Action::DelayUntilReleased),
    ];
    for (at, (name, arguments, part, action)) in cases.into_iter().enumerate() {
        let (signal, wanted) = SIGNALS[at % 2];
        let before = server.log().len();
        server.add(Rule::on("GET").path(move |path| path.contains(part)).then(action));
        let mut running = Running::start(place.on(name, "store").args(arguments));
        running.until("the request", || {
            server.log()[before..]
                .iter()
                .any(|request| request.method == "GET" && request.path.contains(part))
        });
        running.signal(signal);
        // The program hears of it on a thread of its own.
        (0..20).for_each(|_| pause());
        server.release();
        let (status, said) = running.end();
        assert_eq!(status, wanted, "{name} {arguments:?}: {said}");
        server.clear();
        place.check_released();
    }
}

#[test]
fn a_second_signal_ends_a_command_immediately() {
    let scene = Scene::new();
    let place = bucket();
    let Place::Bucket(server) = &place else { panic!() };
    let is_stalled = stall(server, "PUT", "/.chunks/");
    let mut running = Running::start(
        place.on("backup", "store").args(["--create", "--group", "host/c"]).arg(scene.source()),
    );
    running.until("the chunk", is_stalled);
    // Nor is the lease released.
    let is_stalled = stall(server, "PUT", "/lease");
    running.signal(Signal::INT);
    running.until("the end of the lease", is_stalled);
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, 143);
}

#[test]
fn a_mistyped_store_is_neither_opened_nor_created() {
    let scene = Scene::new();
    for place in scene.places() {
        let objects = |place: &Place| match place {
            Place::Bucket(server) => {
                server.objects().into_keys().filter(|key| key.starts_with("stor/")).count()
            }
            Place::Directory(path) => usize::from(path.join("stor").exists()),
        };
        for (name, arguments) in [
            ("list", vec![]),
            ("backup", vec!["--group".to_owned(), "host/a".to_owned(), scene.source()]),
            ("maintain", vec!["gc".to_owned()]),
        ] {
            let done = output(place.on(name, "stor").args(arguments));
            assert_eq!(status(&done), 2, "{name}: {}", errors(&done));
            assert!(errors(&done).contains("there is no datastore"), "{name}: {}", errors(&done));
            assert_eq!(objects(&place), 0, "{name}");
        }
    }
}

/// The object of a failed command with `--json`, and what it said on standard error.
fn failure(command: &mut Command) -> (i32, serde_json::Value, String) {
    let done = output(command);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|error| panic!("{command:?}: {error}: {}", errors(&done)));
    let error = report["error"].clone();
    assert_eq!(error["message"].as_str().unwrap(), errors(&done).trim_end(), "{command:?}");
    assert_eq!(error["status"], status(&done), "{command:?}");
    (status(&done), error["kind"].clone(), errors(&done))
}

#[test]
fn with_json_a_failure_is_an_object_too() {
    let scene = Scene::new();
    for place in scene.places() {
        let (name, target) = (scene.source(), scene.path("out"));
        let target = target.to_str().unwrap();
        for (program, store, arguments, wanted) in [
            ("list", "stor", vec![], (2, "not_found")),
            ("list", "store", vec!["--no-such-option"], (2, "invalid_input")),
            ("list", "store", vec!["--ns", "a/"], (2, "invalid_input")),
            ("backup", "stor", vec!["--group", "host/a", &name], (2, "not_found")),
            ("backup", "store", vec!["--group", "host", &name], (2, "invalid_input")),
            ("restore", "store", vec!["host/a/latest", "x.img", target], (2, "not_found")),
            ("restore", "store", vec!["host/x/latest", "x.img", target], (2, "invalid_input")),
            ("maintain", "stor", vec!["gc"], (2, "not_found")),
            ("maintain", "store", vec!["verify", "host/x"], (2, "invalid_input")),
        ] {
            let (status, kind, said) = failure(place.on(program, store).args(arguments).arg("--json"));
            assert_eq!((status, kind.as_str().unwrap()), wanted, "{said}");
            place.check_released();
        }
        // Standard output is for the data.
        let mut restore = place.on("restore", "store");
        let done = output(restore.args(["host/a/latest", "x.img", "-", "--json"]));
        assert_eq!((status(&done), done.stdout.len()), (2, 0), "{}", errors(&done));
    }
}

#[test]
fn a_mistyped_argument_is_answered_with_what_is_accepted() {
    let scene = Scene::new();
    let [place, _] = scene.places();
    let (zip, text) = (format!("root.zip:{}", scene.path("src").display()), scene.path("src/file"));
    let form = "such as 2025-07-14T14:20:02Z";
    let source = scene.source();
    for (program, arguments, said) in [
        ("restore", vec!["host/a/latest", "rot.tar.didx", "out"], "/2"),
        ("restore", vec!["host/a/latest", "rot.tar.didx", "out"], "Z has root.tar.didx"),
        ("restore", vec!["host/a/2026-01-01T00:00:00", "root.tar", "out"], form),
        ("restore", vec!["host/a/1767225600", "root.tar", "out"], "TYPE/ID/latest is the newest"),
        ("maintain", vec!["verify", "host/a/2026-01-01"], form),
        ("backup", vec!["--time", "yesterday", &source], form),
        ("backup", vec!["--group", "a", &source], "such as vm/100"),
        (
            "backup",
            vec![&zip],
            ".tar for a directory, .img for an image, .bin for a stream or .conf for a small file",
        ),
    ] {
        let done = output(place.on(program, "store").args(&arguments));
        assert_eq!(status(&done), 2, "{arguments:?}: {}", errors(&done));
        assert!(errors(&done).contains(said), "{arguments:?}: {}", errors(&done));
    }
    let mut command = example("list");
    let done = output(command.arg("--store").arg(&text));
    assert!(status(&done) == 2 && errors(&done).contains("Not a directory"), "{}", errors(&done));
}

#[test]
fn the_newest_snapshot_is_named_latest() {
    let scene = Scene::new();
    for place in scene.places() {
        let target = scene.path("unpacked");
        let mut restore = place.on("restore", "store");
        let done =
            output(restore.args(["host/a/latest", "root.tar.didx"]).arg(format!("{}/", target.display())));
        assert_eq!(status(&done), 0, "{}", errors(&done));
        assert_eq!(fs::read(target.join("file")).unwrap(), b"contents");
        fs::remove_dir_all(target).unwrap();
        let done = output(place.on("maintain", "store").args(["verify", "host/a/latest", "--json"]));
        let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!((status(&done), &report["estimate"]["snapshots"]), (0, &1.into()), "{report}");
        let done = output(place.on("maintain", "store").args(["forget", "host/a/latest"]));
        assert_eq!(status(&done), 0, "{}", errors(&done));
        let listed = output(&mut place.on("list", "store"));
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(!listed.contains("host/a/") && listed.contains("host/b/"), "{listed}");
    }
}

#[test]
fn a_silent_server_ends_a_command_after_the_first_contact_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for name in ["list", "backup", "s3_check"] {
        let mut command = example(name);
        command.args(["--endpoint", &url, "--first-contact", "1"]);
        match name {
            "s3_check" => command.args(["--bucket", "bucket"]),
            _ => command.args(["--store", "s3://bucket/store"]),
        };
        if name == "backup" {
            command.arg("file.conf:/proc/self/stat");
        }
        let done = output(&mut command);
        assert_eq!(status(&done), 1, "{name}: {}", errors(&done));
        let said = format!("{url} did not answer within 1 s; --first-contact SECONDS");
        assert!(errors(&done).contains(&said), "{name}: {}", errors(&done));
    }
}

#[test]
fn a_risky_operation_is_refused_with_the_option_that_accepts_it() {
    let lifecycle = "<LifecycleConfiguration><Rule><ID>x</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>\
                     <Expiration><Days>30</Days></Expiration></Rule></LifecycleConfiguration>";
    let risky = [
        ("--accept-lifecycle", Options { lifecycle: Some(lifecycle.to_owned()), ..Options::default() }),
        ("--accept-versions", Options { versioning: Some("Enabled"), ..Options::default() }),
        ("--accept-object-lock", Options { object_lock: true, ..Options::default() }),
    ];
    let scene = Scene::new();
    for (option, options) in risky {
        let place = Place::Bucket(Arc::new(FaultServer::start(options)));
        let back_up = || {
            let mut command = place.on("backup", "store");
            command.args(["--create", "--group", "host/a"]).arg(scene.source());
            command
        };
        let refused = output(&mut back_up());
        assert_eq!(status(&refused), 1, "{option}: {}", errors(&refused));
        assert!(errors(&refused).contains(option), "{option}: {}", errors(&refused));
        let done = output(back_up().arg(option));
        assert_eq!(status(&done), 0, "{option}: {}", errors(&done));
        let Place::Bucket(server) = &place else { panic!() };
        let mut check = example("s3_check");
        check.args(["--bucket", "bucket", "--endpoint", &server.url()]);
        assert!(String::from_utf8(output(&mut check).stdout).unwrap().contains(option), "{option}");
    }
}

#[test]
fn a_refusal_names_the_option_that_permits_it() {
    let scene = Scene::new();
    for (key, body, option) in [
        ("store/.in-use", r#"{"hostname":"pbs"}"#, "--take-over"),
        ("store/.cnt/host/a/owner", "root@pam\n", "--reuse"),
    ] {
        let place = bucket();
        let Place::Bucket(server) = &place else { panic!() };
        server.put(key, body);
        let refused = output(place.on("backup", "store").args(["--group", "host/b"]).arg(scene.source()));
        assert_eq!(status(&refused), 1, "{}", errors(&refused));
        assert!(errors(&refused).contains(option), "{}", errors(&refused));
        let done =
            output(place.on("backup", "store").args(["--group", "host/b", option]).arg(scene.source()));
        assert_eq!(status(&done), 0, "{}", errors(&done));
    }
    let refused =
        output(example("list").args(["--store", "s3://bucket/store", "--endpoint", "http://192.0.2.1"]));
    assert!(errors(&refused).contains("--allow-plaintext"), "{}", errors(&refused));
}

#[test]
fn a_credential_variable_with_a_trailing_newline_is_named() {
    let place = bucket();
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        let done = output(place.on("list", "store").env(variable, "quux\n"));
        assert_eq!(status(&done), 2, "{}", errors(&done));
        assert!(errors(&done).contains(variable) && !errors(&done).contains("quux"), "{}", errors(&done));
    }
}

/// The last Sunday of March 2025 in Berlin: 01:00 UTC is the end of winter time.
#[test]
fn prune_days_follow_the_time_zone_in_summer_and_winter() {
    if !Path::new("/usr/share/zoneinfo/Europe/Berlin").exists() {
        eprintln!("skipped: this host has no time zone database");
        return;
    }
    let scene = Scene::new();
    fs::create_dir_all(scene.path("store/.chunks")).unwrap();
    let place = Place::Directory(scene.directory.path().to_owned());
    let times = [
        "2025-03-28T10:00:00Z",
        // 23:30 in winter time; it would be the next day in summer time.
        "2025-03-28T22:30:00Z",
        // 00:30 of the 30th, in winter time; in UTC it is the 29th.
        "2025-03-29T23:30:00Z",
        // 14:00 of the 30th, in summer time.
        "2025-03-30T12:00:00Z",
        // 00:30 of the 31st, in summer time; it would be the 30th in winter time.
        "2025-03-30T22:30:00Z",
    ];
    for time in times {
        let done = output(
            place.on("backup", "store").args(["--group", "host/a", "--time", time]).arg(scene.source()),
        );
        assert_eq!(status(&done), 0, "{}", errors(&done));
    }
    let removed = |zone: &[&str], variable: Option<&str>| {
        let mut command = place.on("maintain", "store");
        command.args(["prune", "--keep-daily", "9", "--dry-run", "--json"]).args(zone);
        let done = output(command.envs(variable.map(|zone| ("TZ", zone))));
        assert_eq!(status(&done), 0, "{}", errors(&done));
        let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let removed =
            report["snapshots"].as_array().unwrap().iter().filter(|one| one["outcome"] == "would go");
        let is_of = |one: &serde_json::Value, time: &str| one["snapshot"].as_str().unwrap().ends_with(time);
        let mut removed: Vec<_> =
            removed.map(|one| times.iter().position(|time| is_of(one, time)).unwrap()).collect();
        removed.sort_unstable();
        removed
    };
    let zones = ["--time-zone", "--utc-offset"];
    assert_eq!(removed(&[zones[0], "Europe/Berlin"], None), [0, 2]);
    assert_eq!(removed(&[], Some("Europe/Berlin")), [0, 2], "that of the host is the default");
    assert_eq!(removed(&[zones[0], "UTC"], Some("Europe/Berlin")), [0, 3]);
    assert_eq!(removed(&[zones[1], "+01:00"], None), [0, 2, 3]);
    assert_eq!(removed(&[zones[1], "+02:00"], None), [2]);
    let wrong =
        output(place.on("maintain", "store").args(["prune", "--keep-daily", "9", zones[0], "Europe/Berlim"]));
    assert_eq!(status(&wrong), 2, "{}", errors(&wrong));
    assert!(errors(&wrong).contains("Europe/Berlim"), "{}", errors(&wrong));
}

#[test]
fn chown_gives_a_store_to_the_user_of_a_pbs() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let scene = Scene::new();
    let [place, _] = scene.places();
    let owners = || {
        let (mut found, mut paths) = (Vec::new(), vec![scene.path("store")]);
        while let Some(path) = paths.pop() {
            let metadata = fs::symlink_metadata(&path).unwrap();
            found.push((metadata.uid(), metadata.gid()));
            if metadata.is_dir() {
                paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    };
    let outside = scene.path("outside");
    fs::write(&outside, "").unwrap();
    std::os::unix::fs::symlink(&outside, scene.path("store/host/link")).unwrap();
    let chown = |arguments: &[&str]| output(place.on("maintain", "store").arg("chown").args(arguments));
    assert_eq!(status(&chown(&["34:35", "--dry-run"])), 0);
    assert_eq!(owners(), [(0, 0)]);
    let done = chown(&["34:35"]);
    assert_eq!((status(&done), owners()), (0, vec![(34, 35)]), "{}", errors(&done));
    assert_eq!(fs::metadata(&outside).unwrap().uid(), 0, "links are not followed");
    fs::remove_file(scene.path("store/host/link")).unwrap();
    let done = output(place.on("backup", "store").args(["--group", "host/d"]).arg(scene.source()));
    assert_eq!((status(&done), owners()), (0, vec![(34, 35)]), "{}", errors(&done));
    for wrong in [&["nobody-of-that-name"] as &[&str], &["34:no-such-group"], &[]] {
        assert_eq!(status(&chown(wrong)), 2, "{wrong:?}");
    }
    fs::remove_dir_all(scene.path("store")).unwrap();
    fs::create_dir_all(scene.path("store/.chunks")).unwrap();
    let done = output(place.on("backup", "store").args(["--store-owner", "34:35"]).arg(scene.source()));
    assert_eq!(status(&done), 0, "{}", errors(&done));
    assert_eq!(fs::metadata(scene.path("store/host")).unwrap().uid(), 34);
}

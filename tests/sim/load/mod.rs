//! Everything at once in one process with few descriptors and little memory: 32 backups, 8 restores, verification, pruning and garbage collection.
//!
//! The process is a child, so that the bucket of the parent takes none of its memory. `LARDER_LOAD_SECONDS` is the time of all four forms
//! of a store together.

mod child;
mod work;

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use larder_testing::fault_server::{Action, FaultServer, Options, Rule};

/// What a child is to do, as [`child`] reads it: place, layout, seconds.
const VARIABLE: &str = "LARDER_LOAD_CHILD";
/// Seconds that a child may take longer than its load.
const GRACE: u64 = 300;

fn seconds() -> f64 {
    let named = std::env::var("LARDER_LOAD_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    named.unwrap_or(4.0)
}

/// A bucket that is slow, is busy now and then, and loses answers.
fn bucket() -> FaultServer {
    let server = FaultServer::start(Options::default());
    server.add(Rule::any().then(Action::Delay(Duration::from_millis(2))));
    let every = |n: u64, is: fn(&str) -> bool| {
        let count = AtomicU64::new(0);
        move |method: &str, _: &str, _: &str| is(method) && count.fetch_add(1, Ordering::Relaxed) % n == n - 1
    };
    // A deletion without a certain answer would keep its name in doubt for half an hour.
    let deletes_nothing = |method: &str| matches!(method, "GET" | "HEAD" | "PUT");
    server.add(Rule::any().request(every(97, deletes_nothing)).then(Action::status(503, "SlowDown")));
    server.add(Rule::any().request(every(211, deletes_nothing)).then(Action::ExecuteThenDrop));
    server
}

/// Runs a child to its end, and prints its last line.
fn load(place: &str, layout: &str, seconds: f64) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = || File::options().append(true).open(log.path()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "load::child::a_child_does_what_its_parent_says", "--nocapture"])
        .env(VARIABLE, format!("{place} {layout} {seconds}"))
        // As many arenas as threads would each keep what they freed.
        .env("MALLOC_ARENA_MAX", "2")
        .stdout(output())
        .stderr(output())
        .spawn()
        .unwrap();
    let (mut waited, pause) = (Duration::ZERO, Duration::from_millis(20));
    let end = loop {
        if let Some(end) = child.try_wait().unwrap() {
            break end.success();
        }
        if waited > Duration::from_secs_f64(seconds) + Duration::from_secs(GRACE) {
            child.kill().unwrap();
            child.wait().unwrap();
            break false;
        }
        thread::park_timeout(pause);
        waited += pause;
    };
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(end, "{place}, {layout}:\n{log}");
    let report = log.lines().find(|line| line.starts_with("load: ")).unwrap_or_default();
    assert!(!report.is_empty(), "{log}");
    eprintln!("{place}, {layout}: {report}");
}

#[test]
fn a_loaded_process_loses_nothing_within_256_descriptors_and_512_mib() {
    let seconds = seconds() / 4.0;
    for layout in ["loose", "packed"] {
        let directory = larder_testing::scratch();
        load(directory.path().join("store").to_str().unwrap(), layout, seconds);
    }
    for layout in ["loose", "packed"] {
        let server = bucket();
        load(&server.url(), layout, seconds);
        assert_eq!(server.violations(), [] as [String; 0]);
        assert_eq!(server.uploads(), [] as [String; 0]);
    }
}

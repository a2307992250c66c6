//! The quickstart as people use it: kept, in a pipe, on a full disk, interrupted.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

fn quickstart() -> Command {
    // A test that runs in the background of a shell inherits ignored signals, and what a program was started to ignore it ignores.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal=INT,TERM").arg(env!("CARGO_BIN_EXE_quickstart"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn status(output: &Output) -> i32 {
    let errors = String::from_utf8_lossy(&output.stderr);
    output.status.code().unwrap_or_else(|| panic!("{:?}: {errors}", output.status))
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn the_output_names_sizes_times_speeds_and_the_result_of_the_verification() {
    let temporary = tempfile::tempdir().unwrap();
    let done = quickstart().env("TMPDIR", temporary.path()).output().unwrap();
    assert_eq!(status(&done), 0, "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    for part in [" MB, ", " s, ", " MB/s", "verified 2 snapshots: ", "equal to what was backed up", "--keep"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(entries(temporary.path()), 0);
}

#[test]
fn a_kept_store_has_both_snapshots_and_the_output_says_how_to_look_at_it() {
    let temporary = tempfile::tempdir().unwrap();
    let store = temporary.path().join("store");
    let done = quickstart().arg("--keep").arg(&store).output().unwrap();
    assert_eq!(status(&done), 0, "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains(&format!("--example list -- --store {}", store.display())), "{text}");
    assert_eq!(entries(&store.join("host/quickstart")), 3, "an owner and two snapshots");
    // Another run refuses the store, and changes nothing.
    assert_eq!(status(&quickstart().arg("--keep").arg(&store).output().unwrap()), 1);
    assert_eq!(entries(&store.join("host/quickstart")), 3);
}

#[test]
fn unknown_arguments_are_refused() {
    for arguments in [&["--keep"][..], &["--kept", "x"], &["x"]] {
        assert_eq!(status(&quickstart().args(arguments).output().unwrap()), 2, "{arguments:?}");
    }
}

#[test]
fn a_closed_output_pipe_does_not_change_the_result() {
    let (_, writer) = io::pipe().unwrap();
    let done = quickstart().stdout(writer).output().unwrap();
    assert_eq!(status(&done), 0, "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn output_to_a_full_disk_fails() {
    let full_disk = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(status(&quickstart().stdout(full_disk).output().unwrap()), 1);
}

#[test]
fn an_interrupted_quickstart_leaves_no_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let mut running = quickstart().env("TMPDIR", temporary.path()).spawn().unwrap();
    while entries(temporary.path()) == 0 {
        assert!(running.try_wait().unwrap().is_none(), "it ended before it made its directory");
        pause();
    }
    kill_process(Pid::from_child(&running), Signal::TERM).unwrap();
    let done = running.wait_with_output().unwrap();
    assert!(status(&done) == 143 && entries(temporary.path()) == 0, "{}", status(&done));
}

#[expect(clippy::disallowed_methods, reason = "the process is another one, in real time")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

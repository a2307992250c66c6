//! The built examples as commands, and their results.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Path of an example, which `cargo test` and `cargo build --examples` build.
pub(crate) fn path(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let path = this.parent().unwrap().with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not built: run cargo build --examples --all-features", path.display());
    path
}

/// One of the examples, without an input.
pub(crate) fn example(name: &str) -> Command {
    // A test that runs in the background of a shell inherits ignored signals, and what a program was started to ignore it ignores.
    let mut command = Command::new("/usr/bin/env");
    command.arg("--default-signal=INT,TERM").arg(path(name)).stdin(Stdio::null());
    command
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{:?}: {}", output.status, errors(output)))
}

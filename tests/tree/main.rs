//! Trees of files: reading, writing, restoring.

mod archives;
mod changing;
#[cfg(feature = "testing")]
mod crash;
mod disk_source;
mod disk_target;
mod genuine;
mod genuine_writes;
mod hostile;
mod limits;
mod links;
mod reading;
mod restore;
mod restore_genuine;
mod reuse;
mod write;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Runs a test of this program again, as an ordinary user and with variables.
fn as_ordinary_user(test: &str, variables: &[(&str, &Path)]) {
    // The directory of the build may be closed to that user.
    let copy = tempfile::Builder::new().prefix("larder-tree-").tempfile().unwrap().into_temp_path();
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    }
    command.arg(&copy).args([test, "--exact", "--nocapture"]);
    command.envs(variables.iter().map(|(key, value)| (key, value.as_os_str())));
    let Ok(output) = command.output() else { return eprintln!("skipped: there is no setpriv") };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

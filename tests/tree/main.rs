//! Trees of files: reading, writing, restoring.

mod archives;
mod base_ahead;
mod changing;
mod conditions;
#[cfg(feature = "testing")]
mod crash;
mod disk_source;
mod disk_target;
mod dropped;
mod find;
mod genuine;
mod genuine_writes;
mod hostile;
mod limits;
mod links;
mod reading;
mod restore;
mod restore_batches;
mod restore_genuine;
mod reuse;
mod same_names;
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

/// Runs a test of this program again, in a mount namespace of its own after a script, of which `$0` is a directory. Returns `false` with a line if the
/// script fails: then something cannot be mounted here.
fn with_mounts(test: &str, script: &str, place: (&str, &Path)) -> bool {
    unshared("-m", test, script, place)
}

/// Runs a test of this program again, in namespaces of its own after a script. Returns `false` with a line if that is not possible here.
fn unshared(namespaces: &str, test: &str, script: &str, (variable, place): (&str, &Path)) -> bool {
    let script = format!("{script} || exit 77; exec \"$1\" --exact \"$2\" --nocapture");
    let mut command = Command::new("unshare");
    command
        .args([namespaces, "sh", "-c", &script])
        .arg(place)
        .arg(std::env::current_exe().unwrap())
        .arg(test);
    let output = match command.env(variable, place).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: there is no unshare: {error}");
            return false;
        }
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !text.contains("running 1 test") {
        eprintln!("skipped: it is not possible here: {text}");
        return false;
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    true
}

//! The example `key`, and the options about keys that the other examples share.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::SystemTime;

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::crypt::{EncryptionKey, Kdf, KeyFile};
use serde_json::Value;

use crate::cli::Failure;
use crate::cli::keys::KeyArguments;
use crate::programs::example;

const FIRST: &str = "first passphrase";
const SECOND: &str = "second passphrase";

/// Runs the example with both passphrases in its environment.
fn key(arguments: &[&str], input: &str) -> Output {
    let mut command = example("key");
    command.args(arguments).env("FIRST", FIRST).env("SECOND", SECOND).env("EMPTY", "").stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end before it reads anything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(arguments: &[&str], input: &str) -> String {
    let done = key(arguments, input);
    assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
    let errors = text(&done.stderr);
    assert!(errors.is_empty(), "{arguments:?}: {errors}");
    text(&done.stdout)
}

fn json(arguments: &[&str], input: &str) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&succeeds(&arguments, input)).unwrap()
}

/// The message of a command that fails for its arguments.
fn refused(arguments: &[&str], input: &str) -> String {
    let done = key(arguments, input);
    let errors = text(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{arguments:?}: {errors}");
    assert!(!errors.contains(FIRST) && !errors.contains(SECOND) && done.stdout.is_empty(), "{errors}");
    errors
}

#[test]
fn a_key_is_created_changed_printed_and_typed_in_again() {
    let directory = larder_testing::scratch();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (file, again) = (path("a.key"), path("b.key"));
    let made = json(&["create", &file, "--passphrase-env", "FIRST", "--hint", "the first"], "");
    assert_eq!((&made["kdf"], &made["hint"]), (&"scrypt, n 65536, r 8, p 1".into(), &"the first".into()));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(json(&["show", &file], ""), made);
    let taken = refused(&["create", &file, "--kdf", "none"], "");
    assert!(taken.contains("it exists already"), "{taken}");

    let paper = succeeds(&["export", &file, "--passphrase-env", "FIRST"], "");
    assert_eq!(paper.lines().count(), 6, "{paper}");
    let missing = refused(&["export", &file], "");
    assert!(missing.contains("--passphrase-env names a variable"), "{missing}");
    let wrong = refused(&["export", &file, "--passphrase-env", "SECOND"], "");
    assert!(wrong.contains("the passphrase is wrong"), "{wrong}");

    let change = ["change-passphrase", &file, "--passphrase-env", "FIRST", "--new-passphrase-env", "SECOND"];
    let changed = json(&[&change[..], &["--kdf", "pbkdf2"]].concat(), "");
    assert_eq!((&changed["fingerprint"], &changed["created"]), (&made["fingerprint"], &made["created"]));
    assert_eq!((&changed["kdf"], &changed["hint"]), (&"pbkdf2, 65535 iterations".into(), &made["hint"]));
    refused(&["export", &file, "--passphrase-env", "FIRST"], "");
    assert_eq!(json(&["export", &file, "--passphrase-env", "SECOND"], "")["paper"], paper);

    let typed = format!("from the safe:\n\n{}", paper.to_uppercase());
    let imported = json(&["import", &again, "--kdf", "none"], &typed);
    assert_eq!((&imported["fingerprint"], &imported["kdf"]), (&made["fingerprint"], &Value::Null));
    assert_eq!(succeeds(&["export", &again], ""), paper);
    let line = paper.lines().nth(3).unwrap();
    let mistyped =
        paper.replace(line, &line.replace(&line[3..4], if &line[3..4] == "0" { "1" } else { "0" }));
    let mistake = refused(&["import", &path("c.key"), "--kdf", "none"], &mistyped);
    assert!(mistake.contains("line 3 of the paper key"), "{mistake}");
    assert!(!Path::new(&path("c.key")).exists());
}

#[test]
fn a_key_file_without_a_passphrase_has_to_be_asked_for() {
    let directory = larder_testing::scratch();
    let file = directory.path().join("a.key").to_str().unwrap().to_owned();
    for (arguments, part) in [
        (&["create", &file][..], "--kdf none makes a key file without a passphrase"),
        (&["create", &file, "--kdf", "none", "--passphrase-env", "FIRST"], "no use with --kdf none"),
        (&["create", &file, "--passphrase-env", "EMPTY"], "the variable EMPTY has no passphrase"),
        (&["create", &file, "--passphrase-env", "UNSET"], "the variable UNSET has no passphrase"),
        (&["create", &file, "--kdf", "argon2"], "is not scrypt, pbkdf2 or none"),
        (&["create"], "usage: key COMMAND FILE"),
        (&["destroy", &file], "there is no such command"),
        (&["show", &file], "not found"),
    ] {
        let errors = refused(arguments, "");
        assert!(errors.contains(part), "{errors}");
        assert!(!Path::new(&file).exists());
    }
    let made = succeeds(&["create", &file, "--kdf", "none"], "");
    assert!(made.contains("kdf          none"), "{made}");
}

#[test]
fn the_key_files_of_pbs_are_shown() {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pbs-4.2.3/keys");
    let shown = json(&["show", keys.join("key2-scrypt.json").to_str().unwrap()], "");
    assert_eq!(shown["hint"], "animal and number");
    assert_eq!(shown["created"], "2026-11-23T12:37:07Z");
}

#[test]
fn the_options_about_a_key_give_the_key() {
    let directory = larder_testing::scratch();
    let path = directory.path().join("a.key");
    // A variable that every process has.
    let passphrase = std::env::var("PATH").unwrap();
    let made = EncryptionKey::from_bytes(&[5; 32]);
    let file = KeyFile::new(&made, SystemTime::UNIX_EPOCH);
    let kdf = Kdf::Pbkdf2 { iterations: 1 };
    let random = |bytes: &mut [u8]| bytes.fill(1);
    let file = file.protect(&made, passphrase.as_bytes(), kdf, SystemTime::UNIX_EPOCH, random).unwrap();
    fs::write(&path, file.to_json().as_bytes()).unwrap();
    let key = |arguments: &[&str]| {
        let mut parser = lexopt::Parser::from_args(arguments);
        let mut found = KeyArguments::default();
        while let Ok(Some(option)) = crate::cli::next(&mut parser) {
            assert!(matches!(found.take(&option, &mut parser), Ok(true)), "{option}");
        }
        block_on(found.key(&ThreadRuntime::new()))
    };
    let path = path.to_str().unwrap();
    assert!(matches!(key(&[]), Ok(None)));
    assert!(matches!(key(&["--keyfile", path, "--passphrase-env", "PATH"]), Ok(Some(key)) if key == made));
    assert!(matches!(key(&["--passphrase-env", "PATH"]), Err(Failure::Input(_))));
    let Err(Failure::Library(_, missing)) = key(&["--keyfile", path]) else { panic!() };
    assert!(missing.contains("--passphrase-env names a variable"), "{missing}");
}

/// Runs a command on the store, and returns its status and its object.
fn on_store(name: &str, store: &str, arguments: &[&str]) -> (i32, Value) {
    let mut command = example(name);
    command.args(["--store", store, "--sync-level", "none"]).args(arguments).arg("--json");
    let done = command.output().unwrap();
    let answer = serde_json::from_slice(&done.stdout);
    let answer = answer.unwrap_or_else(|_| panic!("{name} {arguments:?}: {}", text(&done.stderr)));
    (done.status.code().unwrap(), answer)
}

#[test]
fn the_examples_back_up_verify_sync_and_restore_with_a_key() {
    let directory = larder_testing::scratch();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (ours, other, data) = (at("a.key"), at("b.key"), at("data"));
    for path in [&ours, &other] {
        succeeds(&["create", path, "--kdf", "none"], "");
    }
    fs::write(&data, vec![7; 10_000]).unwrap();
    let (store, copy, source) = (at("store"), at("copy"), format!("data.bin:{data}"));
    let key = ["--keyfile", ours.as_str()];

    let backup = |more: &[&str]| {
        let (status, done) =
            on_store("backup", &store, &[&["--group", "host/a", &source], &key[..], more].concat());
        assert_eq!(status, 0, "{done}");
        done
    };
    backup(&["--create"]);
    assert_eq!(backup(&[])["chunks_new"], 0, "the base has the same key");
    let (_, listed) = on_store("list", &store, &key);
    let snapshots = listed["snapshots"].as_array().unwrap();
    assert!(snapshots.iter().all(|it| it["authentic"] == true && it["files"][0]["crypt-mode"] == "encrypt"));

    let restore = |store: &str, target: &str, more: &[&str]| {
        let target = at(target);
        let (status, answer) =
            on_store("restore", store, &[&["host/a/latest", "data.bin.didx", &target], more].concat());
        let is_there = fs::read(&target).is_ok_and(|bytes| bytes == vec![7; 10_000]);
        assert_eq!(is_there, status == 0);
        answer["error"]["kind"].as_str().map(str::to_owned)
    };
    assert_eq!(restore(&store, "none", &[]).as_deref(), Some("key_required"));
    assert_eq!(restore(&store, "wrong", &["--keyfile", &other]).as_deref(), Some("wrong_key"));
    assert_eq!(restore(&store, "right", &key), None);

    let (status, report) = on_store("maintain", &store, &[&["verify"], &key[..]].concat());
    assert_eq!(status, 0, "{report}");
    let sync = ["sync", "--from", &store, "--create", "--keyfile", &other, "--from-keyfile", &ours];
    let (status, report) = on_store("maintain", &copy, &sync);
    assert_eq!(status, 0, "{report}");
    assert_eq!(restore(&copy, "copied", &["--keyfile", &other]), None);
    let refused = on_store("maintain", &copy, &["sync", "--from", &store, "--from-keyfile", &ours]);
    assert_eq!(refused.0, 2, "{}", refused.1);
}

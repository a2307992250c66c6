//! Holds the table of rooms: which folder or file directly under `src/` may name which other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room with the rooms that it may name beside `error`. Floors from bottom to top.
const ROOMS: [(&str, &[&str]); 22] = [
    ("error", &[]),
    ("buffers", &[]),
    ("format", &[]),
    ("chunker", &["format"]),
    ("digest_set", &["format"]),
    ("rename", &[]),
    ("retention", &["format"]),
    ("tree", &[]),
    ("rt", &[]),
    ("wire", &[]),
    ("http", &["buffers", "rt", "wire"]),
    ("s3", &["buffers", "http", "rt", "wire"]),
    ("local", &["format", "rt"]),
    ("backend", &["buffers", "format", "local", "rename", "rt", "s3"]),
    ("chunks", &["backend", "buffers", "digest_set", "format", "local", "rt"]),
    ("store", &["backend", "buffers", "chunker", "chunks", "format", "local", "rename", "retention", "rt"]),
    ("gc", &["backend", "chunks", "digest_set", "format", "rt", "store"]),
    ("prune", &["backend", "format", "retention", "rt", "store"]),
    ("sync", &["backend", "buffers", "chunks", "format", "local", "retention", "rt", "store"]),
    ("verify", &["backend", "buffers", "chunks", "digest_set", "format", "rt", "store"]),
    (
        "lib",
        &[
            "backend",
            "buffers",
            "chunker",
            "chunks",
            "digest_set",
            "error",
            "format",
            "gc",
            "http",
            "local",
            "prune",
            "retention",
            "rt",
            "store",
            "sync",
            "tree",
            "verify",
            "wire",
        ],
    ),
    ("manual", &[]),
];

#[test]
fn no_file_names_a_room_that_its_own_may_not() {
    let allowed: BTreeMap<_, _> = ROOMS.into_iter().collect();
    let mut broken = Vec::new();
    for file in sources(Path::new("src")) {
        let room = room_of(&file);
        let Some(allowed) = allowed.get(room.as_str()) else {
            broken.push(format!("{}: there is no room {room:?} in the table", file.display()));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            for named in named_rooms(line) {
                if named != room && named != "error" && !allowed.contains(&named.as_str()) {
                    broken.push(format!("{}:{}: names crate::{named}", file.display(), number + 1));
                }
            }
            if let Some(why) = unwanted_import(line) {
                broken.push(format!("{}:{}: {why}", file.display(), number + 1));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_table_has_no_circle_and_no_unknown_room() {
    let place = |room: &str| ROOMS.iter().position(|(name, _)| *name == room);
    for (room, allowed) in ROOMS {
        for named in allowed {
            assert!(place(named) < place(room), "{room} may name {named}, which is not below it");
        }
    }
}

/// Proves H185.
///
/// Output belongs to the program: the library has no line of its own, for a chunk or for anything else.
#[test]
fn no_source_file_prints_or_logs() {
    let mut broken = Vec::new();
    for file in sources(Path::new("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().enumerate().filter(|(_, line)| writes_output(line));
        broken.extend(lines.map(|(number, line)| format!("{}:{}: {line}", file.display(), number + 1)));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let logs = ["log", "tracing", "slog", "env_logger"];
    let added =
        manifest.lines().find(|line| logs.contains(&line.split([' ', '=']).next().unwrap_or_default()));
    assert_eq!(added, None);
}

#[test]
fn the_test_would_notice() {
    assert!(
        writes_output("    eprintln!(\"x\");") && writes_output("dbg!(x)") && writes_output("log::warn!()")
    );
    assert!(!writes_output("/// println!(\"x\");") && !writes_output("self.log.write_all(&record)"));
    assert_eq!(named_rooms("use crate::store::Datastore; crate::rt::x()"), ["store", "rt"]);
    assert_eq!(room_of(Path::new("src/backend/fs/mod.rs")), "backend");
    assert_eq!(room_of(Path::new("src/error.rs")), "error");
    assert!(unwanted_import("use crate::{a, b};").is_some());
    assert!(unwanted_import("    use super::super::x;").is_some());
    assert!(unwanted_import("use crate::*;").is_some());
    assert!(unwanted_import("use super::*;").is_none());
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "{} holds no sources", directory.display());
    found
}

fn room_of(file: &Path) -> String {
    let below = file.strip_prefix("src").unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn named_rooms(line: &str) -> Vec<String> {
    let ends = |rest: &str| rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    line.split("crate::")
        .skip(1)
        .map(|rest| rest[..ends(rest)].to_owned())
        .filter(|room| !room.is_empty())
        .collect()
}

fn writes_output(line: &str) -> bool {
    let macros = ["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!(", "log::", "tracing::"];
    let code = line.trim_start();
    !code.starts_with("//")
        && macros.iter().any(|found| {
            let before = code.split(found).next().unwrap_or_default();
            code.contains(found) && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
        })
}

fn unwanted_import(line: &str) -> Option<&'static str> {
    let line = line.trim_start();
    if line.starts_with("use crate::{") || line.starts_with("use crate::*") {
        return Some("imports several rooms at once");
    }
    line.contains("super::super").then_some("reaches two levels up")
}

//! Holds the table of rooms: which folder or file directly under `src/` may name which other, and that no files of one room import
//! each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room with the rooms that it may name beside `error`. Floors from bottom to top.
const ROOMS: [(&str, &[&str]); 37] = [
    ("mutation", &[]),
    ("wording", &[]),
    ("error", &["wording"]),
    ("base64", &[]),
    ("buffers", &[]),
    ("calendar", &[]),
    ("crypt", &["base64", "calendar", "wording"]),
    ("format", &["buffers", "calendar", "crypt", "wording"]),
    ("chunker", &["format"]),
    ("digest_set", &["format"]),
    ("holes", &[]),
    ("locked_file", &[]),
    ("rename", &[]),
    ("observer", &[]),
    ("retention", &["format"]),
    ("pxar", &["wording"]),
    ("rt", &[]),
    ("keys", &["base64", "crypt", "rename", "rt"]),
    ("trace", &["rt", "wording"]),
    ("wire", &["calendar"]),
    ("http", &["base64", "buffers", "rt", "wire", "wording"]),
    ("s3", &["base64", "buffers", "http", "rt", "trace", "wire", "wording"]),
    ("local", &["format", "locked_file", "rt", "trace", "wording"]),
    ("backend", &["buffers", "format", "local", "locked_file", "rename", "rt", "s3", "trace", "wording"]),
    ("packs", &["backend", "buffers", "format", "local", "rt"]),
    ("chunks", &["backend", "buffers", "crypt", "digest_set", "format", "local", "packs", "rt", "trace"]),
    (
        "store",
        &[
            "backend",
            "buffers",
            "chunker",
            "chunks",
            "crypt",
            "format",
            "holes",
            "local",
            "locked_file",
            "observer",
            "packs",
            "pxar",
            "rename",
            "retention",
            "rt",
            "trace",
            "wording",
        ],
    ),
    (
        "gc",
        &[
            "backend",
            "chunks",
            "digest_set",
            "format",
            "observer",
            "packs",
            "rt",
            "store",
            "trace",
            "wording",
        ],
    ),
    ("prune", &["backend", "format", "observer", "retention", "rt", "store", "trace", "wording"]),
    (
        "sync",
        &[
            "backend",
            "buffers",
            "chunks",
            "crypt",
            "format",
            "local",
            "observer",
            "retention",
            "rt",
            "store",
            "trace",
            "wording",
        ],
    ),
    (
        "verify",
        &[
            "backend",
            "buffers",
            "chunks",
            "crypt",
            "digest_set",
            "format",
            "observer",
            "rt",
            "store",
            "trace",
            "wording",
        ],
    ),
    (
        "tree",
        &[
            "buffers", "calendar", "chunker", "crypt", "format", "holes", "observer", "pxar", "rename", "rt",
            "store", "trace", "wording",
        ],
    ),
    ("open", &["backend", "http", "local", "rt", "s3", "store", "wire"]),
    (
        "simulation",
        &[
            "backend",
            "calendar",
            "chunker",
            "crypt",
            "format",
            "gc",
            "http",
            "local",
            "packs",
            "prune",
            "pxar",
            "retention",
            "rt",
            "s3",
            "store",
            "sync",
            "tree",
            "verify",
            "wire",
        ],
    ),
    (
        "internal",
        &[
            "backend",
            "base64",
            "calendar",
            "chunker",
            "crypt",
            "format",
            "http",
            "local",
            "packs",
            "pxar",
            "rt",
            "s3",
            "simulation",
            "store",
            "tree",
            "wire",
        ],
    ),
    (
        "lib",
        &[
            "backend",
            "base64",
            "buffers",
            "chunker",
            "chunks",
            "crypt",
            "digest_set",
            "error",
            "format",
            "gc",
            "http",
            "internal",
            "keys",
            "local",
            "observer",
            "open",
            "packs",
            "prune",
            "pxar",
            "retention",
            "rt",
            "store",
            "sync",
            "trace",
            "tree",
            "verify",
            "wire",
            "wording",
        ],
    ),
    ("manual", &[]),
];

#[test]
fn no_file_imports_a_room_that_the_table_forbids() {
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
fn the_table_of_rooms_has_no_cycle_and_no_unknown_room() {
    let place = |room: &str| ROOMS.iter().position(|(name, _)| *name == room);
    for (room, allowed) in ROOMS {
        for named in allowed {
            assert!(place(named) < place(room), "{room} may name {named}, which is not below it");
        }
    }
}

/// Proves H185.
///
/// Output belongs to the program: nothing prints, and only `trace` writes to a subscriber that the program set, if the feature is on.
#[test]
fn no_source_file_prints_or_logs() {
    let mut broken = Vec::new();
    for file in sources(Path::new("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let may_log = room_of(&file) == "trace";
        let lines = text.lines().enumerate().filter(|(_, line)| writes_output(line, may_log));
        broken.extend(lines.map(|(number, line)| format!("{}:{}: {line}", file.display(), number + 1)));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let logs = ["log", "tracing", "slog", "env_logger"];
    let mut of_logs =
        dependencies.lines().filter(|line| logs.contains(&line.split([' ', '=']).next().unwrap_or_default()));
    assert!(of_logs.all(|line| line.starts_with("tracing = ") && line.contains("optional = true")));
}

#[test]
fn the_import_test_detects_violations() {
    assert!(
        writes_output("    eprintln!(\"x\");", true)
            && writes_output("dbg!(x)", false)
            && writes_output("log::warn!()", false)
            && !writes_output("log::warn!()", true)
    );
    assert!(
        !writes_output("/// println!(\"x\");", false) && !writes_output("self.log.write_all(&record)", false)
    );
    assert_eq!(named_rooms("use crate::store::Datastore; crate::rt::x()"), ["store", "rt"]);
    assert_eq!(room_of(Path::new("src/backend/fs/mod.rs")), "backend");
    assert_eq!(room_of(Path::new("src/error.rs")), "error");
    assert!(unwanted_import("use crate::{a, b};").is_some());
    assert!(unwanted_import("    use super::super::x;").is_some());
    assert!(unwanted_import("use crate::*;").is_some());
    assert!(unwanted_import("use super::*;").is_none());
}

/// An edge from a file to a `mod.rs` above it is left out: that is the door of the room, which holds what its files share.
#[test]
fn no_files_of_a_room_import_each_other_in_a_cycle() {
    let imports = imports_of(Path::new("src"));
    let circles = circles(&imports);
    assert!(circles.is_empty(), "files that import each other: {circles:#?}");
}

#[test]
fn the_cycle_test_detects_violations() {
    let files = |pairs: &[(&str, &[&str])]| -> BTreeMap<String, BTreeSet<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        pairs.iter().map(|(name, named)| ((*name).to_owned(), owned(named))).collect()
    };
    assert_eq!(
        circles(&files(&[("a::x", &["a::y"]), ("a::y", &[]), ("a", &["a::x"])])),
        Vec::<Vec<String>>::new()
    );
    let circle = files(&[("a::x", &["a::y"]), ("a::y", &["a::z"]), ("a::z", &["a::x"]), ("a::w", &["a::x"])]);
    assert_eq!(circles(&circle), [["a::x", "a::y", "a::z"]]);
    let known = ["a", "a::x", "a::x::y"].map(str::to_owned).into();
    assert_eq!(named_file("a::x::Thing", &known).as_deref(), Some("a::x"));
    assert_eq!(named_file("b::Thing", &known), None);
    let text = "use crate::a::{b::C, d};\n// crate::not::here\nfn f() { crate::e::g() }\n#[cfg(test)]\nmod tests { use crate::h; }";
    assert_eq!(named_paths(text), ["a::b::C", "a::d", "e::g"]);
}

/// The files of each room, by module path, with the files of the same room that they name.
fn imports_of(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let module_of = |file: &Path| -> String {
        let below = file.strip_prefix(src).unwrap().with_extension("");
        let parts: Vec<_> =
            below.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
        parts.join("::")
    };
    let files: BTreeMap<_, _> = sources(src).into_iter().map(|file| (module_of(&file), file)).collect();
    let known: BTreeSet<String> = files.keys().cloned().collect();
    let imports = files.iter().filter(|(module, _)| !module.ends_with("::tests")).map(|(module, file)| {
        let text = fs::read_to_string(file).unwrap();
        let room = module.split("::").next().unwrap();
        let named = named_paths(&text)
            .iter()
            .filter_map(|path| named_file(path, &known))
            .filter(|named| named != module && named.split("::").next() == Some(room))
            .filter(|named| !module.starts_with(&format!("{named}::")))
            .collect();
        (module.clone(), named)
    });
    imports.collect()
}

/// The paths below `crate::` that the code of a file names, without its comments and its tests.
fn named_paths(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join(" ");
    let mut paths = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let ends = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let path = &rest[..ends];
        match rest[ends..].strip_prefix('{').and_then(|list| list.split_once('}')) {
            Some((list, _)) if path.ends_with("::") => {
                let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
                paths.extend(names.map(|name| format!("{path}{}", name.split(' ').next().unwrap())));
            }
            _ => paths.push(path.trim_end_matches(':').to_owned()),
        }
    }
    paths
}

/// The file that holds what a path names: the longest part of it that is one.
fn named_file(path: &str, known: &BTreeSet<String>) -> Option<String> {
    let mut path = path;
    while !known.contains(path) {
        path = path.rsplit_once("::")?.0;
    }
    Some(path.to_owned())
}

/// The sets of files of which each reaches each other.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached = |from: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            for named in imports.get(file).into_iter().flatten() {
                if reached.insert(named.clone()) {
                    next.push(named);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|file| (file, reached(file))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for file in imports.keys().filter(|file| reached[file].contains(*file)) {
        let circle = |other: &&String| reached[file].contains(*other) && reached[*other].contains(file);
        let circle: Vec<_> = imports.keys().filter(circle).cloned().collect();
        if !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
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

fn writes_output(line: &str, may_log: bool) -> bool {
    let prints = ["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!("];
    let logs: &[&str] = if may_log { &[] } else { &["log::", "tracing::"] };
    let code = line.trim_start();
    !code.starts_with("//")
        && prints.iter().chain(logs).any(|found| {
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

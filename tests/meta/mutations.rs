//! `docs/mutations.md` and the mutations in the sources agree, and the tests that it names exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const LIST: &str = "docs/mutations.md";
const MACRO: &str = "src/mutation.rs";
/// What the list has at least.
const MUTATIONS: usize = 60;
const IN_CI: usize = 10;

/// A row of the table.
#[derive(Debug, PartialEq)]
struct Row {
    file: String,
    binary: String,
    test: String,
}

#[test]
fn every_mutation_is_in_the_sources_once_and_in_the_list_once() {
    let code = mutations();
    let listed: Vec<_> = rows().into_iter().map(|(name, row)| (name, row.file)).chain(survivors()).collect();
    assert!(listed.len() >= MUTATIONS, "{}", listed.len());
    assert_eq!(sorted(&code), sorted(&listed));
    assert_eq!((repeated(&code), repeated(&listed)), (Vec::new(), Vec::new()));
}

#[test]
fn the_test_of_every_mutation_exists() {
    let missing: Vec<_> = rows().into_iter().filter(|(_, row)| !exists(row)).collect();
    assert_eq!(missing, []);
}

#[test]
fn the_mutations_in_ci_are_in_the_list() {
    let known: BTreeSet<_> = rows().into_iter().map(|(name, _)| name).collect();
    let text = list();
    let section = text.split("\n## In CI\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let chosen: BTreeSet<_> = quoted_items(section).collect();
    assert_eq!(chosen.len(), IN_CI);
    assert_eq!(chosen.difference(&known).collect::<Vec<_>>(), [] as [&String; 0]);
}

/// A mutation outside of builds for them would be a way to break a rule by the environment.
#[test]
fn only_builds_for_mutations_read_the_environment_for_them() {
    let readers: Vec<_> =
        sources().into_iter().filter(|(_, text)| text.contains("\"LARDER_MUTATION\"")).collect();
    let [(path, text)] = &readers[..] else { panic!("{readers:?}") };
    assert_eq!(path, Path::new(MACRO));
    let function = text.split("fn is_selected").next().unwrap();
    assert!(function.trim_end().ends_with("#[cfg(larder_mutation)]\npub(crate)"), "{function}");
    assert!(text.contains("#[cfg(not(larder_mutation))]\nconst _: () = assert!(!mutated!(\"\"));"));
}

#[test]
fn the_test_of_the_list_detects_each_fault() {
    let pair = |name: &str, file: &str| (name.to_owned(), file.to_owned());
    let code = "if mutated!(\"a\") {\nmutated!(\n    \"b\" => return);";
    assert_eq!(named_in(code).collect::<Vec<_>>(), ["a", "b"]);
    let row = "| `a` | src/x.rs | what it breaks | H1 | `lib` | `x::tests::y` (hangs) |";
    let expected = Row { file: "src/x.rs".into(), binary: "lib".into(), test: "x::tests::y".into() };
    assert_eq!(row_of(row), Some(("a".into(), expected)));
    assert_eq!(row_of("| name | file | rule | hazards | binary | test |"), None);
    assert_eq!(repeated(&[pair("a", "x"), pair("b", "x"), pair("a", "y")]), ["a"]);
}

/// Names in the sources, with their files.
fn mutations() -> Vec<(String, String)> {
    let sources = sources().into_iter().filter(|(path, _)| path != Path::new(MACRO));
    let all = sources.flat_map(|(path, text)| {
        let names: Vec<_> =
            named_in(&text).map(|name| (name.to_owned(), path.display().to_string())).collect();
        names
    });
    all.collect()
}

fn named_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("mutated!(").skip(1).filter_map(|rest| rest.split('"').nth(1))
}

fn rows() -> Vec<(String, Row)> {
    list().lines().filter_map(row_of).collect()
}

fn row_of(line: &str) -> Option<(String, Row)> {
    let cells: Vec<_> = line.strip_prefix("| `")?.trim_end_matches('|').split('|').map(str::trim).collect();
    let [name, file, _, _, binary, test] = cells[..] else { return None };
    let plain = |cell: &str| cell.split(' ').next().unwrap_or_default().replace('`', "");
    Some((plain(name), Row { file: plain(file), binary: plain(binary), test: plain(test) }))
}

/// Mutations that nothing finds, because a second rule holds, with their files.
fn survivors() -> Vec<(String, String)> {
    let text = list();
    let section = text.split("\n## A second rule holds\n").nth(1).unwrap_or_default().to_owned();
    let rows = section.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("| `")?.split_once("` |")?;
        Some((name.to_owned(), rest.split('|').next()?.trim().to_owned()))
    });
    rows.collect()
}

/// The names at the beginning of the items of a list.
fn quoted_items(section: &str) -> impl Iterator<Item = String> {
    section.lines().filter_map(|line| Some(line.strip_prefix("* `")?.split_once('`')?.0.to_owned()))
}

/// Returns `true` if the test is in the place that its path and its binary say.
fn exists(row: &Row) -> bool {
    let Some((module, name)) = row.test.rsplit_once("::") else { return false };
    let root =
        PathBuf::from(if row.binary == "lib" { "src".into() } else { format!("tests/{}", row.binary) });
    let below = root.join(module.replace("::", "/"));
    let in_file = below.parent().map(Path::to_owned).unwrap_or_default();
    let places = [
        below.with_extension("rs"),
        below.join("mod.rs"),
        in_file.with_extension("rs"),
        in_file.join("mod.rs"),
    ];
    let has = |text: String| text.contains(&format!("fn {name}("));
    places.iter().filter_map(|place| fs::read_to_string(place).ok()).any(has)
}

fn repeated(pairs: &[(String, String)]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    pairs.iter().filter(|(name, _)| !seen.insert(name)).map(|(name, _)| name.as_str()).collect()
}

fn sorted(pairs: &[(String, String)]) -> Vec<String> {
    let mut lines: Vec<_> = pairs.iter().map(|(name, file)| format!("{name} in {file}")).collect();
    lines.sort();
    lines
}

fn list() -> String {
    fs::read_to_string(LIST).unwrap()
}

fn sources() -> Vec<(PathBuf, String)> {
    let (mut left, mut files) = (vec![PathBuf::from("src")], Vec::new());
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files
}

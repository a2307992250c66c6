//! The register of hazards is complete, and the sources mention no code that `docs/hazards.md` or `docs/decisions.md` lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The number of hazards and invariants.
const HAZARDS: u32 = 208;
const INVARIANTS: u32 = 12;

const DECISIONS: &str = "docs/decisions.md";
const REGISTER: &str = "docs/hazards.md";

/// One hazard of the register.
#[derive(Debug, Default, PartialEq)]
struct Entry {
    hazard: String,
    /// Why no test proves it.
    inapplicable: String,
    rule: String,
    tests: Vec<String>,
}

#[test]
fn hazards_invariants_and_decisions_are_numbered_consecutively() {
    let text = read(REGISTER);
    assert_eq!(headings(&text, "### H"), (1..=HAZARDS).collect::<Vec<_>>());
    assert_eq!(invariants(&text), (1..=INVARIANTS).collect::<Vec<_>>());
    let decisions = headings(&read(DECISIONS), "## D");
    assert!(
        decisions.len() > 20 && (1..).zip(&decisions).all(|(number, found)| number == *found),
        "{decisions:?}"
    );
}

#[test]
fn every_hazard_has_a_rule_and_an_answer() {
    assert_eq!(unanswered(&entries(&read(REGISTER))), Vec::<String>::new());
}

#[test]
fn every_test_of_the_register_exists_and_names_its_hazard() {
    let tests = tests_in(&sources());
    assert!(tests.len() > 800, "{}", tests.len());
    assert_eq!(unproven(&entries(&read(REGISTER)), &tests), Vec::<String>::new());
}

#[test]
fn names_of_tests_hold_no_codes() {
    let tests = tests_in(&sources());
    assert_eq!(tests.keys().filter_map(|name| coded(name)).collect::<Vec<_>>(), [] as [&str; 0]);
}

#[test]
fn every_code_in_the_sources_is_explained() {
    let register = read(REGISTER);
    let hazards = headings(&register, "### H").into_iter().map(|number| format!("H{number}"));
    let invariants = invariants(&register).into_iter().map(|number| format!("I{number}"));
    let decisions = headings(&read(DECISIONS), "## D").into_iter().map(|number| format!("D{number}"));
    let known: BTreeSet<_> = hazards.chain(invariants).chain(decisions).collect();
    let mut texts = sources();
    texts.extend(files_below("benches").chain(files_below("examples")).map(with_text));
    texts.extend(files_below("docs").chain(files_below("src/manual")).map(with_text));
    texts.push(with_text("README.md".into()));
    let mut unknown = Vec::new();
    for (path, text) in texts {
        let codes = codes(&text).into_iter().filter(|code| !known.contains(code));
        unknown.extend(codes.map(|code| format!("{}: {code}", path.display())));
    }
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn the_register_test_detects_each_fault() {
    let whole = "### H1. A\n\n* Hazard: a\n* Rule: b\n* Tests: `one`, `two`\n\n### H2. B\n\n* Hazard: a\n* Rule: b\n* Not applicable: c\n";
    let tests: BTreeMap<_, _> = tests_in(&[(
        "x.rs".into(),
        "/// Proves H1.\n#[test]\nfn one() {\n}\n/// H1.\nfn three() {}\n#[test]\nfn two() {\n}\n".to_owned(),
    )]);
    assert_eq!(headings(whole, "### H"), [1, 2]);
    assert_eq!(unanswered(&entries(whole)), Vec::<String>::new());
    assert_eq!(unproven(&entries(whole), &tests), ["H1: `two` does not name it"]);
    let renamed = whole.replace("two", "three");
    assert_eq!(unproven(&entries(&renamed), &tests), ["H1: there is no test `three`"]);
    assert_eq!(coded("h17_late").or(coded("h1_i2_late")), Some("h17_late"));
    assert_eq!(coded("hazards_late").or(coded("h_late")), None);
    for missing in ["* Hazard: a\n", "* Rule: b\n", "* Tests: `one`, `two`\n", " c\n"] {
        assert_eq!(unanswered(&entries(&whole.replacen(missing, "", 1))).len(), 1, "{missing}");
    }
    assert_eq!(codes("(H17, I3), D9; xH1 H1x H1_2 H1234 h5"), ["D9", "H17", "I3"].map(str::to_owned).into());
}

/// The numbers of the headings that begin so, in order.
fn headings(text: &str, start: &str) -> Vec<u32> {
    let numbers = text.lines().filter_map(|line| line.strip_prefix(start)?.split_once(". ")?.0.parse().ok());
    numbers.collect()
}

fn invariants(text: &str) -> Vec<u32> {
    let numbers =
        text.lines().filter_map(|line| line.strip_prefix("- **I")?.split_once("** ")?.0.parse().ok());
    numbers.collect()
}

fn entries(text: &str) -> BTreeMap<u32, Entry> {
    let mut entries = BTreeMap::new();
    for part in text.split("\n### H").map(|part| part.trim_start_matches("### H")) {
        let Some(number) = part.split_once(". ").and_then(|(number, _)| number.parse().ok()) else {
            continue;
        };
        let field = |name: &str| {
            let lines = part
                .lines()
                .filter_map(|line| line.strip_prefix("* ")?.strip_prefix(name)?.strip_prefix(':'));
            lines.map(|value| value.trim().to_owned()).next().unwrap_or_default()
        };
        let tests = field("Tests").split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let (hazard, rule, inapplicable) = (field("Hazard"), field("Rule"), field("Not applicable"));
        entries.insert(number, Entry { hazard, inapplicable, rule, tests });
    }
    entries
}

fn unanswered(entries: &BTreeMap<u32, Entry>) -> Vec<String> {
    let answered = |entry: &Entry| !entry.tests.is_empty() || !entry.inapplicable.is_empty();
    let lacking = entries
        .iter()
        .filter(|(_, entry)| entry.hazard.is_empty() || entry.rule.is_empty() || !answered(entry));
    lacking
        .map(|(number, _)| format!("H{number} lacks its hazard, its rule, or tests and a reason"))
        .collect()
}

/// Names of tests that do not exist, or whose doc comment does not mention the hazard.
fn unproven(entries: &BTreeMap<u32, Entry>, tests: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut unproven = Vec::new();
    for (number, entry) in entries {
        let code = format!("H{number}");
        for name in &entry.tests {
            match tests.get(name) {
                None => unproven.push(format!("{code}: there is no test `{name}`")),
                Some(codes) if !codes.contains(&code) => {
                    unproven.push(format!("{code}: `{name}` does not name it"));
                }
                Some(_) => {}
            }
        }
    }
    unproven
}

/// The tests by name, each with the codes in its doc comment.
fn tests_in(sources: &[(PathBuf, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let mut tests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, text) in sources {
        let (mut doc, mut is_test) = (String::new(), false);
        for line in text.lines().map(str::trim_start) {
            if let Some(comment) = line.strip_prefix("///") {
                doc.push_str(comment);
                doc.push('\n');
            } else if line.starts_with("#[") {
                is_test |= line.contains("test]");
            } else {
                let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                let name = function.and_then(|rest| rest.split_once('(')).map(|(name, _)| name);
                if let Some(name) = name.filter(|_| is_test) {
                    tests.entry(name.to_owned()).or_default().extend(codes(&doc));
                }
                (doc, is_test) = (String::new(), false);
            }
        }
    }
    tests
}

/// The name of a test if it begins with a code.
fn coded(name: &str) -> Option<&str> {
    let first = name.split('_').next().unwrap_or_default().to_ascii_uppercase();
    (!codes(&first).is_empty()).then_some(name)
}

/// The codes of hazards, invariants and decisions in a text.
fn codes(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_code = |word: &&str| {
        let digits = word.strip_prefix(['D', 'H', 'I']).unwrap_or_default();
        (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    words.filter(is_code).map(str::to_owned).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    let files = files_below("src").chain(files_below("tests"));
    files
        .filter(|file| {
            file.extension().is_some_and(|extension| extension == "rs") && !file.ends_with(file!())
        })
        .map(with_text)
        .collect()
}

fn files_below(directory: &str) -> impl Iterator<Item = PathBuf> {
    let root = Path::new(directory).to_owned();
    let (mut left, mut files) = (vec![root], Vec::new());
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { left.push(path) } else { files.push(path) }
        }
    }
    files.into_iter()
}

fn with_text(path: PathBuf) -> (PathBuf, String) {
    let text = fs::read_to_string(Path::new(&path)).unwrap();
    (path, text)
}

fn read(path: &str) -> String {
    with_text(path.into()).1
}

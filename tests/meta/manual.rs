//! Claims of the manual have tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_test_that_the_manual_names_exists() {
    let root = Path::new("");
    let mut tests = BTreeSet::new();
    for file in files_below(&root.join("src")).into_iter().chain(files_below(&root.join("tests"))) {
        if file.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(file).unwrap();
            tests.extend(text.lines().filter_map(|line| {
                let name = line.trim_start().strip_prefix("fn ")?.split_once("()")?.0;
                Some(name.to_owned())
            }));
        }
    }
    let guides = ["locking.md", "proof.md"].map(|guide| root.join("src/manual").join(guide));
    let text: String = guides.iter().map(|guide| fs::read_to_string(guide).unwrap()).collect();
    // Between backticks, and long enough to be the sentence that a test proves.
    let is_name = |text: &&str| text.chars().all(|c| c == '_' || c.is_ascii_lowercase());
    let named =
        text.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() >= 3).filter(is_name);
    let named: BTreeSet<_> = named.map(str::to_owned).collect();
    assert!(named.len() > 20, "the manual names tests: {named:?}");
    assert_eq!(named.difference(&tests).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

//! A list of exclude patterns.

use crate::error::ParseError;
use crate::tree::policy::pattern::{EntryKind, Pattern};

/// Exclude patterns for paths below the root of a tree, in the given order. The last pattern that matches a path decides; a path without a
/// match is included.
///
/// Patterns and paths are bytes: no Unicode rules, and case matters. A path matches as a whole.
///
/// | part | matches |
/// |---|---|
/// | `/` in front | anchors the pattern: it is matched with the path from the root of the tree; without it, with the end of the path from any `/` on |
/// | `/` at the end | restricts the pattern to directories |
/// | `!` in front | makes the pattern include again what an earlier one excluded |
/// | `*` | any bytes within one name, also none, also a dot in front |
/// | `?` | one byte within a name |
/// | `**` | as a part of its own (`**/a`, `a/**/b`, `a/**`), any number of names: none in front or between, at least one at the end; elsewhere as `*` |
/// | `[a-c_]`, `[[:digit:]]` | one byte of the class; `]` as the first and `-` as the first or last stand for themselves |
/// | `[^…]` | one byte that is not of the class, and not `/` |
/// | `\` | takes the meaning from the byte that follows |
///
/// A walker asks about each entry before it reads it, and does not enter an excluded directory, so later patterns cannot include
/// entries below it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excludes {
    patterns: Vec<Pattern>,
}

impl Excludes {
    /// Returns `true` if the list excludes an entry. `path` is relative to the root of the tree: `etc/fstab`.
    pub fn excludes(&self, path: &[u8], kind: EntryKind) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let decisive = self.patterns.iter().rev().find(|pattern| pattern.matches_names(&names, kind));
        decisive.is_some_and(|pattern| !pattern.is_include())
    }

    /// Appends a pattern.
    ///
    /// # Errors
    /// If it is malformed or could never match.
    pub fn push(&mut self, pattern: impl AsRef<[u8]>) -> Result<(), ParseError> {
        self.patterns.push(Pattern::parse(pattern.as_ref())?);
        Ok(())
    }

    /// Appends the patterns of a file, one a line. White space at both ends of a line is ignored, and so are empty lines and lines
    /// that begin with `#`; a pattern for such a name begins with `\#`.
    ///
    /// # Errors
    /// For the first invalid line, with its number; then none is added.
    pub fn push_lines(&mut self, text: &[u8]) -> Result<(), ParseError> {
        let mut found = Vec::new();
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.trim_ascii();
            if !line.is_empty() && !line.starts_with(b"#") {
                let in_line = |error| ParseError::new(format!("line {number}: {error}"));
                found.push(Pattern::parse(line).map_err(in_line)?);
            }
        }
        self.patterns.append(&mut found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_match_decides() {
        let mut excludes = Excludes::default();
        excludes.push_lines(b"# comment\n\n  *.log \r\n!/keep/*.log\n/keep/old.log\n\\#x\n").unwrap();
        assert_eq!(excludes.patterns.len(), 4);
        for (path, excluded) in [
            ("a.log", true),
            ("b/a.log", true),
            ("keep/a.log", false),
            ("keep/old.log", true),
            ("b/keep/a.log", true),
            ("a.txt", false),
            ("#x", true),
        ] {
            assert_eq!(excludes.excludes(path.as_bytes(), EntryKind::Other), excluded, "{path}");
        }
    }

    #[test]
    fn a_bad_line_is_named_and_nothing_is_added() {
        let mut excludes = Excludes::default();
        let error = excludes.push_lines(b"a\n\nb[\n").unwrap_err();
        assert_eq!(error.to_string(), "line 3: a class in brackets is malformed");
        assert!(excludes.patterns.is_empty());
    }

    proptest! {
        #[test]
        fn a_pattern_list_decides_by_its_last_match(
            patterns in prop::collection::vec("!?/?[ab*]{1,3}(/[ab*]{1,3}){0,1}/?", 0..6),
            path in "[ab]{1,2}(/[ab]{1,2}){0,2}",
            is_directory: bool,
        ) {
            let kind = if is_directory { EntryKind::Directory } else { EntryKind::Other };
            let mut excludes = Excludes::default();
            let mut expected = false;
            for text in &patterns {
                let pattern = Pattern::parse(text.as_bytes()).unwrap();
                if pattern.matches(path.as_bytes(), kind) {
                    expected = !pattern.is_include();
                }
                excludes.push(text).unwrap();
            }
            prop_assert_eq!(excludes.excludes(path.as_bytes(), kind), expected);
        }
    }
}

//! A list of exclude patterns.

use crate::tree::pattern::{EntryKind, Pattern, PatternError};

/// Exclude patterns in the given order. The last pattern that matches a path decides; a path without a match is
/// included.
///
/// A walker asks about each entry before it reads it, and does not enter an excluded directory, so later patterns cannot include
/// entries below it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excludes {
    patterns: Vec<Pattern>,
}

impl Excludes {
    /// A list without patterns. It excludes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns `true` if the list excludes an entry. `path` is relative to the root of the tree: `etc/fstab`.
    pub fn excludes(&self, path: &[u8], kind: EntryKind) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let decisive = self.patterns.iter().rev().find(|pattern| pattern.matches_names(&names, kind));
        decisive.is_some_and(|pattern| !pattern.is_include())
    }

    /// Returns `true` if there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Appends a pattern.
    pub fn push(&mut self, pattern: Pattern) {
        self.patterns.push(pattern);
    }

    /// Appends the patterns of a file, one a line. White space at both ends of a line is ignored, and so are empty lines and lines
    /// that begin with `#`; a pattern for such a name begins with `\#`.
    ///
    /// # Errors
    /// [`LineError`] for the first invalid line; then none is added.
    pub fn push_lines(&mut self, text: &[u8]) -> Result<(), LineError> {
        let mut found = Vec::new();
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.trim_ascii();
            if !line.is_empty() && !line.starts_with(b"#") {
                found.push(Pattern::parse(line).map_err(|error| LineError { error, line: number })?);
            }
        }
        self.patterns.append(&mut found);
        Ok(())
    }
}

/// An invalid line in a file of patterns.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct LineError {
    /// The defect.
    pub error: PatternError,
    /// Line number, from 1.
    pub line: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_match_decides() {
        let mut excludes = Excludes::new();
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
        let mut excludes = Excludes::new();
        let error = excludes.push_lines(b"a\n\nb[\n").unwrap_err();
        assert_eq!(error, LineError { error: PatternError::Class, line: 3 });
        assert_eq!(error.to_string(), "line 3: a class in brackets is malformed");
        assert!(excludes.is_empty());
    }

    proptest! {
        #[test]
        fn a_pattern_list_decides_by_its_last_match(
            patterns in prop::collection::vec("!?/?[ab*]{1,3}(/[ab*]{1,3}){0,1}/?", 0..6),
            path in "[ab]{1,2}(/[ab]{1,2}){0,2}",
            is_directory: bool,
        ) {
            let kind = if is_directory { EntryKind::Directory } else { EntryKind::Other };
            let mut excludes = Excludes::new();
            let mut expected = false;
            for text in &patterns {
                let pattern: Pattern = text.parse().unwrap();
                if pattern.matches(path.as_bytes(), kind) {
                    expected = !pattern.is_include();
                }
                excludes.push(pattern);
            }
            prop_assert_eq!(excludes.excludes(path.as_bytes(), kind), expected);
        }
    }
}

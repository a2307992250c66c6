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

/// The beginning of all paths that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tree) struct LeadingPath {
    /// `true` if the pattern matches nothing below.
    pub(in crate::tree) is_all: bool,
    pub(in crate::tree) path: Vec<u8>,
}

impl Excludes {
    /// Returns `true` if the list excludes an entry. `path` is relative to the root of the tree: `etc/fstab`.
    pub fn excludes(&self, path: &[u8], kind: EntryKind) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        self.decide(&names, 0, kind).unwrap_or(false)
    }

    /// Decision of a list in the directory `depth` levels below the root: `true` if it excludes an entry, `None` without a match. Only anchored
    /// patterns begin at that directory; the others match the end of the whole path.
    pub(in crate::tree) fn decide(&self, names: &[&[u8]], depth: usize, kind: EntryKind) -> Option<bool> {
        let below = names.get(depth..)?;
        let decisive =
            self.patterns.iter().rev().find(|pattern| {
                pattern.matches_names(if pattern.is_anchored() { below } else { names }, kind)
            })?;
        Some(!decisive.is_include())
    }

    /// The path with which every match begins, if this is a single pattern that has one.
    pub(in crate::tree) fn leading_path(&self) -> Option<LeadingPath> {
        let [pattern] = &self.patterns[..] else { return None };
        let names = pattern.leading_names();
        let is_all = pattern.is_literal();
        (!names.is_empty()).then(|| LeadingPath { is_all, path: names.join(&b'/') })
    }

    /// Returns `true` without any pattern.
    pub(in crate::tree) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns as they were written.
    pub(in crate::tree) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.patterns.iter().map(Pattern::text)
    }

    /// Appends a pattern.
    ///
    /// # Errors
    /// If it is malformed or could never match.
    pub fn push(&mut self, pattern: impl AsRef<[u8]>) -> Result<(), ParseError> {
        self.patterns.push(Pattern::parse(pattern.as_ref())?);
        Ok(())
    }

    /// The patterns of a file, as of [`push_lines`](Self::push_lines), without invalid lines, and the error of each of these.
    pub(in crate::tree) fn valid_lines(text: &[u8]) -> (Self, Vec<ParseError>) {
        let (mut found, mut errors) = (Self::default(), Vec::new());
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            match parse_line(line, number) {
                None => {}
                Some(Ok(pattern)) => found.patterns.push(pattern),
                Some(Err(error)) => errors.push(error),
            }
        }
        (found, errors)
    }

    /// Appends the patterns of a file, one a line. White space at both ends of a line is ignored, and so are empty lines and lines
    /// that begin with `#`; a pattern for such a name begins with `\#`.
    ///
    /// # Errors
    /// For the first invalid line, with its number; then none is added.
    pub fn push_lines(&mut self, text: &[u8]) -> Result<(), ParseError> {
        let mut found = Vec::new();
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            found.extend(parse_line(line, number).transpose()?);
        }
        self.patterns.append(&mut found);
        Ok(())
    }
}

/// `None` for a line without a pattern.
fn parse_line(line: &[u8], number: usize) -> Option<Result<Pattern, ParseError>> {
    let line = line.trim_ascii();
    let has_pattern = !line.is_empty() && !line.starts_with(b"#");
    let in_line = |error| ParseError::new(format!("line {number}: {error}"));
    has_pattern.then(|| Pattern::parse(line).map_err(in_line))
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
    fn an_anchored_pattern_has_a_leading_path() {
        for (pattern, leading) in [
            ("/etc/nginx/*.conf", Some(("etc/nginx", false))),
            ("/etc/**", Some(("etc", false))),
            ("/a/**/b", Some(("a", false))),
            ("/a\\*/b/", Some(("a*/b", true))),
            ("/etc", Some(("etc", true))),
            ("/*", None),
            ("/**/a", None),
            ("etc/nginx/*.conf", None),
            ("etc", None),
        ] {
            let mut excludes = Excludes::default();
            excludes.push(pattern).unwrap();
            let expected = leading.map(|(path, is_all)| LeadingPath { is_all, path: path.into() });
            assert_eq!(excludes.leading_path(), expected, "{pattern}");
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

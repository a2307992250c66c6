//! Entries that a restore selects.

use std::collections::BTreeSet;

use crate::error::ParseError;
use crate::pxar::names;
use crate::tree::{EntryKind, Excludes};

/// Why an entry is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selected {
    /// With everything below, whatever the patterns are.
    ByPath,
    /// With everything below, except for what a pattern leaves out.
    ByPattern,
    No,
}

/// Paths and patterns of the caller.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    paths: BTreeSet<Vec<Vec<u8>>>,
    patterns: Excludes,
}

impl Selection {
    pub(super) fn add_path(&mut self, path: &[u8]) {
        self.paths.insert(names(path).map(<[u8]>::to_vec).collect());
    }

    pub(super) fn add_pattern(&mut self, pattern: &[u8]) -> Result<(), ParseError> {
        self.patterns.push(pattern)
    }

    /// Returns `true` if the whole tree is selected.
    pub(super) fn is_whole(&self) -> bool {
        let has_root = self.paths.first().is_some_and(Vec::is_empty);
        has_root || (self.paths.is_empty() && self.patterns.is_empty())
    }

    pub(super) fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The selected paths, without those below others, in the order of their names.
    pub(super) fn top_paths(&self) -> Vec<Vec<u8>> {
        let mut top: Vec<&Vec<Vec<u8>>> = Vec::new();
        for path in &self.paths {
            if top.last().is_none_or(|last| !path.starts_with(last)) {
                top.push(path);
            }
        }
        top.into_iter().map(|names| names.join(&b'/')).collect()
    }

    /// Decision about the root.
    pub(super) fn root(&self) -> Selected {
        if self.is_whole() { Selected::ByPath } else { Selected::No }
    }

    /// Decision about an entry in a directory with this one.
    pub(super) fn selects(&self, path: &[u8], kind: EntryKind, directory: Selected) -> Selected {
        if directory == Selected::ByPath {
            return Selected::ByPath;
        }
        let names: Vec<&[u8]> = names(path).collect();
        let is_path = |selected: &Vec<Vec<u8>>| selected.iter().map(Vec::as_slice).eq(names.iter().copied());
        if self.paths.iter().any(is_path) {
            return Selected::ByPath;
        }
        match self.patterns.decide(&names, 0, kind) {
            Some(true) => Selected::ByPattern,
            Some(false) => Selected::No,
            None => directory,
        }
    }

    /// Returns `true` if a file is selected, by itself or by a directory that it is in.
    pub(super) fn covers_file(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let directory =
            ends.fold(self.root(), |above, end| self.selects(&path[..end], EntryKind::Directory, above));
        self.selects(path, EntryKind::Other, directory) != Selected::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_covers_what_is_below_its_paths_and_patterns() {
        let mut selection = Selection::default();
        assert!(selection.is_whole() && selection.covers_file(b"x"));
        for path in ["/b//c/", "b/c/d", "a", "./b/c-d"] {
            selection.add_path(path.as_bytes());
        }
        assert_eq!(selection.top_paths(), [&b"a"[..], b"b/c", b"b/c-d"]);
        selection.add_pattern(b"*.d/").unwrap();
        for (path, covered) in
            [("a/x", true), ("b/x", false), ("b/c", true), ("x/y.d/z", true), ("x/y.d", false), ("ab", false)]
        {
            assert_eq!(selection.covers_file(path.as_bytes()), covered, "{path}");
        }
        selection.add_pattern(b"!x/y.d/no").unwrap();
        selection.add_pattern(b"!/a/x").unwrap();
        selection.add_pattern(b"x/y.d/no/but").unwrap();
        for (path, covered) in [
            ("x/y.d/z", true),
            ("x/y.d/no", false),
            ("x/y.d/no/z", false),
            ("x/y.d/no/but", true),
            ("a/x", true),
        ] {
            assert_eq!(selection.covers_file(path.as_bytes()), covered, "{path}");
        }
        selection.add_path(b"/");
        assert!(selection.is_whole());
    }
}

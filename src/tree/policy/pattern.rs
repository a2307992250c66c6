//! One exclude pattern: parsing and matching.
//!
//! The syntax is that of pxar archives, so that tar and pxar backups of one tree leave out the same entries. Source: PBS pxar format,
//! exclude patterns. One accepted form of pxar is refused: `[!…]`, which negates a class in other tools but not in pxar.

use std::fmt;

use crate::error::ParseError;

/// Kind of an entry for matching. A symbolic link is not a directory, whatever its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "an entry is a directory or it is not")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// A pattern for paths below the root of a tree; [`Excludes`](crate::tree::Excludes) has the syntax.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    anchored: bool,
    directories_only: bool,
    includes: bool,
    segments: Vec<Segment>,
    text: Vec<u8>,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`PatternError`] if it is malformed or could never match.
    pub(super) fn parse(text: &[u8]) -> Result<Self, PatternError> {
        if text.contains(&0) {
            return Err(PatternError::Nul);
        }
        let (includes, rest) = text.strip_prefix(b"!").map_or((false, text), |rest| (true, rest));
        let (anchored, rest) = rest.strip_prefix(b"/").map_or((false, rest), |rest| (true, rest));
        let mut body = rest;
        while let Some(shorter) = body.strip_suffix(b"/") {
            body = shorter;
        }
        if body.is_empty() {
            return Err(PatternError::Empty);
        }
        let mut segments = if anchored { Vec::new() } else { vec![Segment::Names] };
        segments.extend(parse_segments(body)?);
        if segments.last() == Some(&Segment::Names) {
            segments.push(Segment::Name(vec![Token::Run]));
        }
        let directories_only = body.len() < rest.len();
        Ok(Self { anchored, directories_only, includes, segments, text: text.to_owned() })
    }

    /// Returns `true` if the pattern begins at the directory of its list.
    pub(super) fn is_anchored(&self) -> bool {
        self.anchored
    }

    /// The names with which every match begins, counted from the root: those without wildcards in front of an anchored pattern.
    pub(super) fn leading_names(&self) -> Vec<Vec<u8>> {
        let segments = if self.anchored { &self.segments[..] } else { &[] };
        segments.iter().map_while(Segment::literal).collect()
    }

    /// Returns `true` if the pattern matches its [leading names](Self::leading_names) alone.
    pub(super) fn is_literal(&self) -> bool {
        self.leading_names().len() == self.segments.len()
    }

    /// The pattern as it was written.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns `true` if the pattern includes its matches, that is, if it begins with `!`.
    pub(super) fn is_include(&self) -> bool {
        self.includes
    }

    #[cfg(test)]
    pub(super) fn matches(&self, path: &[u8], kind: EntryKind) -> bool {
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        self.matches_names(&names, kind)
    }

    pub(super) fn matches_names(&self, names: &[&[u8]], kind: EntryKind) -> bool {
        if self.directories_only && kind != EntryKind::Directory || names.is_empty() {
            return false;
        }
        wildcard_match(&self.segments, names, Segment::is_names, |segment, name| match segment {
            Segment::Name(tokens) => {
                wildcard_match(tokens, name, Token::is_run, |token, byte| token.takes(*byte))
            }
            Segment::Names => false,
        })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text))
    }
}

/// A defect of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    /// A class begins with `[!`, which has different meanings in different tools.
    #[error("`[!` is ambiguous: write `[^` to negate, or `[\\!` for the character")]
    Ambiguous,
    /// A class in brackets is not closed, empty, contains a `/`, an unknown name or a reversed range.
    #[error("a class in brackets is malformed")]
    Class,
    /// The pattern is empty.
    #[error("the pattern is empty")]
    Empty,
    /// The pattern ends with a backslash.
    #[error("nothing follows the backslash at the end")]
    Escape,
    /// The pattern has an empty part, `.` or `..`, which no path has.
    #[error("the pattern matches nothing: no path has an empty part, `.` or `..`")]
    NeverMatches,
    /// The pattern contains a zero byte.
    #[error("the pattern holds a zero byte")]
    Nul,
}

impl From<PatternError> for ParseError {
    fn from(error: PatternError) -> Self {
        Self::new(error.to_string())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Name(Vec<Token>),
    /// Any number of names, including none.
    Names,
}

impl Segment {
    fn is_names(&self) -> bool {
        *self == Self::Names
    }

    /// The only name that it matches.
    fn literal(&self) -> Option<Vec<u8>> {
        let Self::Name(tokens) = self else { return None };
        tokens.iter().map(Token::literal).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Class(Box<Class>),
    One,
    /// Any number of bytes, including none.
    Run,
}

impl Token {
    fn is_run(&self) -> bool {
        *self == Self::Run
    }

    fn literal(&self) -> Option<u8> {
        if let Self::Byte(byte) = self { Some(*byte) } else { None }
    }

    fn takes(&self, byte: u8) -> bool {
        match self {
            Self::Byte(wanted) => *wanted == byte,
            Self::Class(class) => class.contains(byte) != class.negated,
            Self::One | Self::Run => true,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Class {
    /// One bit for each byte.
    bits: [u64; 4],
    negated: bool,
}

impl Class {
    fn contains(&self, byte: u8) -> bool {
        self.bits[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }

    fn insert(&mut self, byte: u8) {
        self.bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }
}

/// Matches a sequence with a pattern in which some elements stand for any run. Takes at most the product of both lengths.
fn wildcard_match<P, T>(
    pattern: &[P],
    subject: &[T],
    is_run: impl Fn(&P) -> bool,
    takes: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at_pattern, mut at_subject) = (0, 0);
    // Position after the last run, and the end of its match. An earlier run need not be extended: whatever
    // it could match in addition, the last run can match as well.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(element) = subject.get(at_subject) {
        match pattern.get(at_pattern) {
            Some(run) if is_run(run) => {
                at_pattern += 1;
                retry = Some((at_pattern, at_subject));
            }
            Some(one) if takes(one, element) => {
                at_pattern += 1;
                at_subject += 1;
            }
            _ => {
                let Some((after, reached)) = retry else { return false };
                (at_pattern, at_subject) = (after, reached + 1);
                retry = Some((after, reached + 1));
            }
        }
    }
    pattern.iter().skip(at_pattern).all(is_run)
}

fn parse_segments(body: &[u8]) -> Result<Vec<Segment>, PatternError> {
    let mut segments = Vec::new();
    let mut rest = body;
    loop {
        let (segment, left) = parse_segment(rest)?;
        segments.push(segment);
        match left {
            Some(left) => rest = left,
            None => return Ok(segments),
        }
    }
}

/// Parses up to the next `/`, and returns the rest after it.
fn parse_segment(text: &[u8]) -> Result<(Segment, Option<&[u8]>), PatternError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut left = None;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        match first {
            b'/' => {
                left = Some(rest);
                break;
            }
            b'*' => tokens.push(Token::Run),
            b'?' => tokens.push(Token::One),
            b'[' => {
                let (class, behind) = parse_class(rest)?;
                tokens.push(Token::Class(Box::new(class)));
                rest = behind;
            }
            b'\\' => {
                let (escaped, behind) = rest.split_first().ok_or(PatternError::Escape)?;
                if *escaped == b'/' {
                    // The slash still separates.
                    continue;
                }
                tokens.push(Token::Byte(*escaped));
                rest = behind;
            }
            byte => tokens.push(Token::Byte(*byte)),
        }
    }
    let segment = match tokens.as_slice() {
        [] | [Token::Byte(b'.')] | [Token::Byte(b'.'), Token::Byte(b'.')] => {
            return Err(PatternError::NeverMatches);
        }
        [Token::Run, Token::Run] => Segment::Names,
        _ => {
            tokens.dedup_by(|a, b| a.is_run() && b.is_run());
            Segment::Name(tokens)
        }
    };
    Ok((segment, left))
}

/// Parses a class after its `[`, and returns the rest after its `]`.
fn parse_class(text: &[u8]) -> Result<(Class, &[u8]), PatternError> {
    let mut class = Class::default();
    let mut rest = text;
    if rest.starts_with(b"!") {
        return Err(PatternError::Ambiguous);
    }
    if let Some(behind) = rest.strip_prefix(b"^") {
        class.negated = true;
        rest = behind;
    }
    let mut is_first = true;
    loop {
        if let Some(behind) = rest.strip_prefix(b"]").filter(|_| !is_first) {
            return Ok((class, behind));
        }
        is_first = false;
        if let Some(behind) = rest.strip_prefix(b"[:") {
            let end = behind.windows(2).position(|two| two == b":]").ok_or(PatternError::Class)?;
            let (name, behind) = behind.split_at(end);
            let contains = named_class(name).ok_or(PatternError::Class)?;
            (0..=u8::MAX).filter(contains).for_each(|byte| class.insert(byte));
            rest = behind.get(2..).unwrap_or_default();
            continue;
        }
        let (low, behind) = class_byte(rest)?;
        rest = behind;
        let range = rest.strip_prefix(b"-").filter(|behind| !behind.starts_with(b"]"));
        let high = match range {
            Some(behind) => {
                let (high, behind) = class_byte(behind)?;
                rest = behind;
                high
            }
            None => low,
        };
        if low > high {
            return Err(PatternError::Class);
        }
        (low..=high).for_each(|byte| class.insert(byte));
    }
}

fn class_byte(text: &[u8]) -> Result<(u8, &[u8]), PatternError> {
    match text {
        [b'\\', byte, rest @ ..] if *byte != b'/' => Ok((*byte, rest)),
        [b'/' | b'\\', ..] | [] => Err(PatternError::Class),
        [byte, rest @ ..] => Ok((*byte, rest)),
    }
}

fn named_class(name: &[u8]) -> Option<fn(&u8) -> bool> {
    Some(match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| matches!(byte, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let pattern = Pattern::parse(pattern.as_bytes()).unwrap();
        pattern.matches(path.as_bytes(), EntryKind::Other)
    }

    #[test]
    fn patterns_match_as_the_table_says() {
        for (pattern, yes, no) in [
            ("a", "a b/a b/c/a", "ab ba a/b"),
            ("/a", "a", "b/a a/b"),
            ("a/b", "a/b c/a/b", "a b a/c/b ca/b"),
            ("*.o", "x.o .o d/x.o", "x.oo x.o/y"),
            ("/d/*", "d/x d/.x", "d d/x/y e/d/x"),
            ("a?c", "abc d/a.c", "ac abbc a/c"),
            ("**", "a a/b", ""),
            ("/**/x", "x a/x a/b/x", "ax x/a"),
            ("/a/**", "a/b a/b/c", "a b/a/b"),
            ("/a/**/b", "a/b a/x/b a/x/y/b", "ab a/xb b"),
            ("a**b", "ab axxb", "a/b"),
            ("***", "a a/b", ""),
            ("[a-c_]", "a b c _", "d -"),
            ("[^a-c]", "d x/d", "a ab"),
            ("[]a]", "] a", "b"),
            ("[a-]", "a -", "b"),
            ("[[:digit:]x]", "0 x", "d : ["),
            ("[\\]\\\\]", "] \\", "a"),
            ("\\*\\?\\[a\\]", "*?[a]", "xyz"),
            ("\\!a", "!a", "a"),
            ("a\\/b", "a/b", "a\\/b"),
            ("a*b*c", "abc aXbXbXc", "acb abcd"),
        ] {
            for path in yes.split_whitespace() {
                assert!(matches(pattern, path), "{pattern} {path}");
            }
            for path in no.split_whitespace() {
                assert!(!matches(pattern, path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn a_slash_at_the_end_restricts_a_pattern_to_directories() {
        let pattern = Pattern::parse(b"cache//").unwrap();
        assert!(pattern.matches(b"a/cache", EntryKind::Directory));
        assert!(!pattern.matches(b"a/cache", EntryKind::Other));
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for (pattern, error) in [
            ("", PatternError::Empty),
            ("/", PatternError::Empty),
            ("!", PatternError::Empty),
            ("!//", PatternError::Empty),
            ("a\\", PatternError::Escape),
            ("a\0", PatternError::Nul),
            ("[a", PatternError::Class),
            ("[]", PatternError::Class),
            ("[^]", PatternError::Class),
            ("[c-a]", PatternError::Class),
            ("[a/b]", PatternError::Class),
            ("[[:nope:]]", PatternError::Class),
            ("[!a]", PatternError::Ambiguous),
            ("./a", PatternError::NeverMatches),
            ("a/../b", PatternError::NeverMatches),
            ("a//b", PatternError::NeverMatches),
        ] {
            assert_eq!(Pattern::parse(pattern.as_bytes()), Err(error), "{pattern:?}");
        }
    }

    /// The definition of a match, without regard to its cost.
    fn plainly_matches(pattern: &[u8], subject: &[u8]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                let name = subject.iter().position(|byte| *byte == b'/').unwrap_or(subject.len());
                (0..=name).any(|taken| plainly_matches(rest, &subject[taken..]))
            }
            ([b'?', rest @ ..], [byte, left @ ..]) => *byte != b'/' && plainly_matches(rest, left),
            ([wanted, rest @ ..], [byte, left @ ..]) => wanted == byte && plainly_matches(rest, left),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused_and_never_panic(text: Vec<u8>, path: Vec<u8>) {
            if let Ok(pattern) = Pattern::parse(&text) {
                pattern.matches(&path, EntryKind::Directory);
                prop_assert_eq!(&pattern.text[..], text);
            }
        }

        #[test]
        fn stars_match_as_defined(
            pattern in "/([ab]|[*?]){1,4}(/[ab*?]{1,4}){0,2}",
            path in "[ab]{1,4}(/[ab]{1,4}){0,2}",
        ) {
            let names: Vec<_> = pattern[1..].split('/').collect();
            prop_assume!(!names.contains(&"**"));
            let expected = plainly_matches(pattern.as_bytes(), format!("/{path}").as_bytes());
            prop_assert_eq!(matches(&pattern, &path), expected);
        }

        #[test]
        fn an_unanchored_pattern_matches_if_it_matches_an_end_of_the_path(
            pattern in "[ab*?]{1,3}(/[ab*?]{1,3}){0,2}",
            path in "[ab]{1,3}(/[ab]{1,3}){0,3}",
        ) {
            let anchored = format!("/{pattern}");
            let ends = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
            let expected = ends.into_iter().any(|at| matches(&anchored, &path[at..]));
            prop_assert_eq!(matches(&pattern, &path), expected);
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_exponential_time() {
        let pattern = format!("{}b", "*a".repeat(60));
        assert!(!matches(&pattern, &"a".repeat(250)));
        let pattern = format!("/{}b", "**/a/".repeat(60));
        assert!(!matches(&pattern, &"a/".repeat(1000)));
    }
}

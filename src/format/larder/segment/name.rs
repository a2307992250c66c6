//! Names of index segments.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::larder::pack::name::{SessionId, parse_name};

/// The name of an index segment, `<session>-<n>`. A name is used once and never again (H17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Its writer.
    pub(crate) session: SessionId,
    /// Number among the segments of its writer, from 0.
    pub(crate) n: u32,
}

impl SegmentName {
    /// The path of the segment in a store: `.larder/index/<session>-<n>`.
    pub(crate) fn path(&self) -> String {
        format!("{SEGMENTS}{self}")
    }

    /// The name of the segment at a path; `None` for any other text.
    pub(crate) fn from_path(path: &str) -> Option<Self> {
        path.strip_prefix(SEGMENTS)?.parse().ok()
    }
}

impl FromStr for SegmentName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (session, n) = parse_name(text)?;
        Ok(Self { session, n })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.n)
    }
}

/// Path below which a store has its index segments.
pub(crate) const SEGMENTS: &str = ".larder/index/";

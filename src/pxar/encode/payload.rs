//! Bytes beside the entries: headers of the payload stream, and exclude patterns.

use bytes::Bytes;
use serde::Serialize;

use crate::pxar::encode::error::TreeEncodeError;
use crate::pxar::item::{self, HEADER_BYTES};

/// Name of the file that has the exclude patterns of an archive in unified form. It is the last entry of the root.
pub const EXCLUDE_FILE: &[u8] = b".pxarexclude-cli";

/// The first bytes of a payload stream.
pub const PAYLOAD_START: [u8; HEADER_BYTES] = item::header(item::PAYLOAD_START, 16);

/// The last bytes of a payload stream.
pub const PAYLOAD_END: [u8; HEADER_BYTES] = item::header(item::PAYLOAD_TAIL, 16);

/// The header before the contents of a file of this size in a payload stream.
///
/// # Errors
/// `Length` if the size exceeds that of any stream.
pub fn payload_header(size: u64) -> Result<[u8; HEADER_BYTES], TreeEncodeError> {
    let whole = size.checked_add(HEADER_BYTES as u64).ok_or(TreeEncodeError::Length("a file"))?;
    Ok(item::header(item::PAYLOAD, whole))
}

/// Contents of [`EXCLUDE_FILE`]: one pattern a line.
pub fn exclude_lines(patterns: &[Bytes]) -> Vec<u8> {
    let mut lines = patterns.join(&b'\n');
    if !patterns.is_empty() {
        lines.push(b'\n');
    }
    lines
}

/// The prelude of an archive in split form, with the exclude patterns; empty without any.
///
/// # Errors
/// `Prelude` if a pattern is not UTF-8.
pub fn exclude_prelude(patterns: &[Bytes]) -> Result<Vec<u8>, TreeEncodeError> {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Prelude {
        exclude_patterns: String,
    }
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let exclude_patterns =
        String::from_utf8(exclude_lines(patterns)).map_err(|_| TreeEncodeError::Prelude)?;
    serde_json::to_vec(&Prelude { exclude_patterns }).map_err(|_| TreeEncodeError::Prelude)
}

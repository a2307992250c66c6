//! SHA-256 digests, the names of chunks.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::crypt::EncryptionKey;
use crate::error::ParseError;
use crate::wording::text_as_json;

/// A SHA-256 digest: the name of a chunk, or the checksum of a file.
///
/// Written as 64 lower-case hexadecimal digits; nothing else is accepted when reading.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of a chunk: of its plaintext alone, or with a key.
    pub(crate) fn of_chunk(plaintext: &[u8], key: Option<&EncryptionKey>) -> Self {
        key.map_or_else(|| Self::of(plaintext), |key| Self(key.digest(plaintext)))
    }

    /// A digest from its 32 bytes.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| not_a_digest())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

text_as_json!(Digest);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

fn not_a_digest() -> ParseError {
    ParseError::new("not a digest: 64 lower-case hexadecimal digits are wanted")
}

fn nibble(digit: u8) -> Result<u8, ParseError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(not_a_digest()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_four_mebibytes_of_zeros_is_the_one_every_datastore_holds() {
        let text = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";
        assert_eq!(Digest::of(&vec![0; 4 << 20]).to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(&vec![0; 4 << 20])));
    }

    /// Proves H177.
    #[test]
    fn upper_case_and_other_lengths_are_not_digests() {
        let text = Digest::of(b"a").to_string();
        assert_eq!(text.to_uppercase().parse::<Digest>(), Err(not_a_digest()));
        assert_eq!(text[1..].parse::<Digest>(), Err(not_a_digest()));
        assert_eq!(format!("{text}0").parse::<Digest>(), Err(not_a_digest()));
        assert_eq!("".parse::<Digest>(), Err(not_a_digest()));
    }
}

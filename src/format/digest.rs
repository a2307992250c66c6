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
    /// The digest of 4 MiB of zeros, the chunk of unused areas in images of the usual chunk size.
    pub(crate) const OF_ZEROS: Self = Self([
        0xbb, 0x9f, 0x8d, 0xf6, 0x14, 0x74, 0xd2, 0x5e, 0x71, 0xfa, 0x00, 0x72, 0x23, 0x18, 0xcd, 0x38, 0x73,
        0x96, 0xca, 0x17, 0x36, 0x60, 0x5e, 0x12, 0x48, 0x82, 0x1c, 0xc0, 0xde, 0x3d, 0x3a, 0xf8,
    ]);

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of a chunk: of its plaintext alone, or with a key.
    pub(crate) fn of_chunk(plaintext: &[u8], key: Option<&EncryptionKey>) -> Self {
        Self::of_parts([plaintext], key)
    }

    /// As [`of_chunk`](Self::of_chunk), of plaintext in several parts.
    pub(crate) fn of_parts<'a>(
        parts: impl IntoIterator<Item = &'a [u8]>,
        key: Option<&EncryptionKey>,
    ) -> Self {
        let mut hasher = ChunkHasher::default();
        parts.into_iter().for_each(|part| hasher.update(part));
        hasher.finish(key)
    }

    /// A digest from its 32 bytes.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight bytes, in the order of digests.
    pub(crate) fn mark(&self) -> u64 {
        self.0[..8].iter().fold(0, |mark, byte| mark << 8 | u64::from(*byte))
    }
}

/// Computes the digest of a chunk from its plaintext in parts.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChunkHasher(Sha256);

impl ChunkHasher {
    pub(crate) fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    /// The digest of the plaintext alone, or with a key.
    pub(crate) fn finish(mut self, key: Option<&EncryptionKey>) -> Digest {
        if let Some(key) = key {
            self.0.update(key.digest_suffix());
        }
        Digest(self.0.finalize().into())
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
        // Listings parse millions of these.
        for at in 0..32 {
            let (high, low) =
                (NIBBLES[usize::from(digits[2 * at])], NIBBLES[usize::from(digits[2 * at + 1])]);
            if high | low > 15 {
                return Err(not_a_digest());
            }
            bytes[at] = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

text_as_json!(Digest);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Writes bytes as lower-case hexadecimal digits. Paths of objects consist of them.
pub(crate) fn write_hex<const BYTES: usize>(bytes: &[u8; BYTES], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = bytes.map(|byte| [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
    f.pad(std::str::from_utf8(text.as_flattened()).map_err(|_| fmt::Error)?)
}

fn not_a_digest() -> ParseError {
    ParseError::new("not a digest: 64 lower-case hexadecimal digits are wanted")
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The value of each digit, and 255 for each other byte.
const NIBBLES: [u8; 256] = {
    let (mut values, mut value) = ([255; 256], 0);
    while value < 16 {
        values[DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_four_mebibytes_of_zeros_is_the_one_every_datastore_holds() {
        let text = "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8";
        assert_eq!(Digest::of(&vec![0; 4 << 20]).to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(&vec![0; 4 << 20])));
        assert_eq!(text.parse(), Ok(Digest::OF_ZEROS));
    }

    /// Computed with Python: SHA-256 of the plaintext, followed by the id key.
    #[test]
    fn a_keyed_digest_is_the_one_pbs_computes() {
        let key = EncryptionKey::from_bytes(&std::array::from_fn(|at| at.to_le_bytes()[0]));
        let text = "7644dc089559031d6fc353d406fdab17171ffc262cd0e2653da512881fed0450";
        assert_eq!(Digest::of_chunk(b"test", Some(&key)).to_string(), text);
        assert_eq!(Digest::of_chunk(b"test", None), Digest::of(b"test"));
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

//! The list of suspect chunks, `.larder/suspects`: digests for which neither an index nor the length of an object may vouch.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | magic | [`MAGIC`] |
//! | 8 | 32 · n | digests | ascending, each once |
//! | 8 + 32 · n | 32 | checksum | SHA-256 of everything before |
//!
//! It is this crate's own; PBS never looks below `.larder/`. An absent list is an empty one.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;

/// The first eight bytes: those of the SHA-256 of `larder list of suspect chunks v1.0`.
pub const MAGIC: [u8; 8] = [0xbf, 0xd3, 0xf0, 0x0a, 0x84, 0xab, 0xba, 0xe4];

/// Maximum number of digests of a list.
pub const MAX_SUSPECTS: usize = 1 << 20;

/// The most bytes of a list.
pub const MAX_BYTES: u64 = (MAGIC.len() + DIGEST_BYTES * (MAX_SUSPECTS + 1)) as u64;

const DIGEST_BYTES: usize = 32;

/// The list of these digests.
pub fn encode(digests: &BTreeSet<Digest>) -> Bytes {
    let mut bytes = Vec::with_capacity(MAGIC.len() + DIGEST_BYTES * (digests.len() + 1));
    bytes.extend(MAGIC);
    for digest in digests {
        bytes.extend(digest.as_bytes());
    }
    let checksum = Digest::of(&bytes);
    bytes.extend(checksum.as_bytes());
    bytes.into()
}

/// The digests of a list.
///
/// # Errors
/// `Checksum`, `Magic`, `Truncated`; `Field` if the digests do not ascend.
pub fn decode(bytes: &[u8]) -> Result<BTreeSet<Digest>, DecodeError> {
    let least = MAGIC.len() + DIGEST_BYTES;
    let truncated = || DecodeError::Truncated { want: least as u64, have: bytes.len() as u64 };
    let (body, checksum) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or_else(truncated)?;
    let (magic, digests) = body.split_first_chunk().ok_or_else(truncated)?;
    if *magic != MAGIC {
        return Err(DecodeError::Magic);
    }
    if Digest::of(body) != Digest::from_bytes(*checksum) {
        return Err(DecodeError::Checksum);
    }
    let (digests, rest) = digests.as_chunks::<DIGEST_BYTES>();
    if !rest.is_empty() || !digests.is_sorted_by(|one, next| one < next) {
        return Err(DecodeError::Field { offset: MAGIC.len() as u64, name: "digests" });
    }
    Ok(digests.iter().copied().map(Digest::from_bytes).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_magic_number_is_the_digest_of_its_text() {
        assert_eq!(Digest::of(b"larder list of suspect chunks v1.0").as_bytes()[..8], MAGIC);
    }

    #[test]
    fn the_suspect_list_has_exactly_these_bytes() {
        let one = Digest::from_bytes([1; 32]);
        let bytes = encode(&BTreeSet::from([one, Digest::from_bytes([2; 32])]));
        let body = [&MAGIC[..], &[1; 32], &[2; 32]].concat();
        assert_eq!(bytes, [&body[..], Digest::of(&body).as_bytes()].concat());
        assert_eq!(encode(&BTreeSet::new()).len(), 40);
    }

    #[test]
    fn a_damaged_suspect_list_is_refused() {
        let digests = BTreeSet::from([[1; 32], [2; 32]].map(Digest::from_bytes));
        let good = encode(&digests);
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "byte {at}");
            assert!(decode(&good[..at]).is_err(), "{at} bytes");
        }
        let sealed = |digests: &[u8]| {
            let body = [&MAGIC[..], digests].concat();
            [&body[..], Digest::of(&body).as_bytes()].concat()
        };
        let field = Err(DecodeError::Field { offset: 8, name: "digests" });
        assert_eq!(decode(&sealed(&[[2; 32], [1; 32]].concat())), field);
        assert_eq!(decode(&sealed(&[[1; 32], [1; 32]].concat())), field);
        assert_eq!(decode(&sealed(&[1; 33])), field);
    }

    proptest! {
        #[test]
        fn lists_are_read_as_they_are_written(digests: std::collections::BTreeSet<[u8; 32]>) {
            let digests: BTreeSet<_> = digests.into_iter().map(Digest::from_bytes).collect();
            prop_assert_eq!(decode(&encode(&digests)), Ok(digests));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}

//! Fingerprints of encryption keys.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::wording::text_as_json;

/// A 32-byte identifier of an encryption key. It does not allow decryption.
///
/// Written as 32 pairs of lower-case hexadecimal digits joined by `:`; nothing else is accepted when reading.
/// Source: PBS datastore format §6.4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyFingerprint([u8; 32]);

impl KeyFingerprint {
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for KeyFingerprint {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; 32];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(not_a_fingerprint)?;
            let lower = pair.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            if pair.len() != 2 || !lower {
                return Err(not_a_fingerprint());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| not_a_fingerprint())?;
        }
        if pairs.next().is_some() {
            return Err(not_a_fingerprint());
        }
        Ok(Self(bytes))
    }
}

fn not_a_fingerprint() -> ParseError {
    ParseError::new("not a fingerprint: 32 pairs of lower-case hexadecimal digits joined by ':' are wanted")
}

text_as_json!(KeyFingerprint);

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str =
        "52:5a:fa:70:b3:de:09:67:93:9d:e2:7f:50:00:a4:24:22:0a:f0:6e:f5:57:db:4e:b0:33:8b:22:63:60:51:c2";

    #[test]
    fn a_fingerprint_has_one_spelling() {
        let fingerprint: KeyFingerprint = TEXT.parse().unwrap();
        assert_eq!(fingerprint.0[..4], [0x52, 0x5a, 0xfa, 0x70]);
        let wrong = [TEXT.to_uppercase(), TEXT.replace(':', ""), format!("{TEXT}:"), format!("{TEXT}:00")];
        for text in wrong.iter().map(String::as_str).chain(["", ":", &TEXT[3..], &TEXT.replace("5a", "+a")]) {
            assert_eq!(text.parse::<KeyFingerprint>(), Err(not_a_fingerprint()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn fingerprints_are_read_as_they_are_written(bytes: [u8; 32], any in "([0-9a-fé]{2}:){30,33}.*") {
            let fingerprint = KeyFingerprint(bytes);
            prop_assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
            let _ = any.parse::<KeyFingerprint>();
        }
    }
}

//! Base64 with padding: keys in key files and PEM texts, and bytes in headers.
//!
//! Each sequence of bytes has one text, and decoding refuses every other one. Neither direction reallocates, so a secret leaves no copies behind.
//!
//! Source: RFC 4648 §4.

use zeroize::Zeroizing;

/// Encodes bytes.
pub(crate) fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 0x3f).unwrap_or_default();
            text.push(if place <= group.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

/// Decodes the text that [`encode`] makes; `None` for any other. The bytes are erased when they are dropped.
pub(crate) fn decode(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let padding = text.iter().rev().take_while(|digit| **digit == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let digits = &text[..text.len() - padding];
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3));
    for group in digits.chunks(4) {
        let mut bits = 0;
        for digit in group {
            bits = bits << 6 | value_of(*digit)?;
        }
        bits <<= 6 * (4 - group.len());
        let [low, middle, high, _] = bits.to_le_bytes();
        let decoded = [high, middle, low];
        let (kept, beyond) = decoded.split_at_checked(group.len() - 1)?;
        if beyond.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}

fn value_of(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_base64_test_vectors_match() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{7ff}", "378="),
        ] {
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(text.as_bytes()).unwrap().as_slice(), plain.as_bytes());
        }
    }

    #[test]
    fn bytes_have_one_base64_text() {
        for text in
            ["Zg", "Zg=", "Zh==", "Zm9=", "Z===", "====", "Zm9v\n", "Zm-_", "Zg==Zg==", "=Zg=", "Zm 9v"]
        {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn bytes_are_decoded_as_they_are_encoded(bytes in prop::collection::vec(any::<u8>(), 0..80), any in "[A-Za-z0-9+/=]{0,12}") {
            let text = encode(&bytes);
            prop_assert_eq!(text.capacity(), text.len());
            prop_assert_eq!(decode(text.as_bytes()).map(|decoded| decoded.to_vec()), Some(bytes));
            if let Some(decoded) = decode(any.as_bytes()) {
                prop_assert_eq!(encode(&decoded), any);
            }
        }
    }
}

//! Percent-encoding. Source: RFC 3986 §2.

use std::fmt::Write as _;

/// The text has only what a path and a query may have, and every `%` is followed by two hex digits.
pub(super) fn is_proper(target: &str) -> bool {
    let mut rest = target.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => tail,
            (b'%', _) => return false,
            (byte, tail) if is_unreserved(*byte) || b"!$&'()*+,;=:@/?".contains(byte) => tail,
            _ => return false,
        };
    }
    true
}

/// The decoded text, if it is one.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let mut byte = *first;
        if let (b'%', [high, low, tail @ ..]) = (first, tail) {
            byte = hex(*high)? << 4 | hex(*low)?;
            rest = tail;
        }
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

/// The text as a listing encodes it: a blank is `+`.
pub(super) fn encode(text: &str, slash: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => encoded.push('+'),
            b'/' if !slash => encoded.push('/'),
            byte if is_unreserved(byte) => encoded.push(char::from(byte)),
            byte => write!(encoded, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    encoded
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

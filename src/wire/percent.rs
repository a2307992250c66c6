//! Percent-encoding of paths and parameters.
//!
//! Source: RFC 3986 §2.

/// Encodes a path: every byte but `A-Z a-z 0-9 - . _ ~ /`.
pub fn encode_path(raw: &str) -> String {
    encode_but(raw, b"/")
}

/// Encodes a name or value of a query, or one segment of a path: `/` too.
#[cfg(feature = "s3")]
pub fn encode(raw: &str) -> String {
    encode_but(raw, b"")
}

fn encode_but(raw: &str, kept: &[u8]) -> String {
    let mut encoded = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let digit = |number: u8| char::from(HEX_DIGITS[usize::from(number & 0xf)]);
            encoded.extend(['%', digit(byte >> 4), digit(byte)]);
        }
    }
    encoded
}

/// Decodes a text. `+` stands for itself. `None` if an escape is truncated, or the result is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit =
                || char::from(bytes.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (high, low) = (digit()?, digit()?);
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";

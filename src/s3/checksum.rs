//! MD5, for servers that want it or show it as the tag of an object. Nothing is trusted because of it.

use std::fmt::Write as _;

use md5::{Digest as _, Md5};

/// As a `content-md5` header has it.
pub(in crate::s3) fn base64_md5(bytes: &[u8]) -> String {
    base64(&Md5::digest(bytes))
}

/// As most servers have it in a tag.
pub(in crate::s3) fn hex_md5(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// The tag that most servers give to an object of which the parts have these tags; `None` if they are no MD5.
pub(in crate::s3) fn tag_of_parts<'a>(tags: impl ExactSizeIterator<Item = &'a str>) -> Option<String> {
    let count = tags.len();
    let mut all = Md5::new();
    for tag in tags {
        let tag = tag.trim().trim_matches('"');
        if tag.len() != 32 || !tag.is_ascii() {
            return None;
        }
        for at in (0..32).step_by(2) {
            all.update([u8::from_str_radix(tag.get(at..at + 2)?, 16).ok()?]);
        }
    }
    Some(format!("{}-{count}", hex(&all.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Source: RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_vectors_of_base64_come_out() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{7ff}", "378="),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    #[test]
    fn the_tag_of_parts_is_the_hash_of_their_hashes() {
        let parts = [hex_md5(b"hello "), format!("\"{}\"", hex_md5(b"world"))];
        let both = [Md5::digest(b"hello "), Md5::digest(b"world")].concat();
        let tag = tag_of_parts(parts.iter().map(String::as_str));
        assert_eq!(tag, Some(format!("{}-2", hex_md5(&both))));
        assert_eq!(tag_of_parts(["no hash"].into_iter()), None);
        assert_eq!(tag_of_parts(["\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}"].into_iter()), None);
    }
}

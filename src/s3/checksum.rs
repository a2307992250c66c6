//! MD5, for servers that require it or use it as entity tag. No integrity decision relies on it.

use std::fmt::Write as _;

use md5::{Digest as _, Md5};

use crate::base64;

/// Encoded for a `content-md5` header.
pub(super) fn base64_md5(bytes: &[u8]) -> String {
    base64::encode(&Md5::digest(bytes))
}

/// Encoded as most servers write it in an entity tag.
pub(super) fn hex_md5(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// The entity tag that most servers give to a multipart object with parts of these tags; `None` if they are no MD5.
pub(super) fn tag_of_parts<'a>(tags: impl ExactSizeIterator<Item = &'a str>) -> Option<String> {
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
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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

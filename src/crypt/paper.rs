//! Keys on paper (H191).
//!
//! A paper key is a text that a person can print, and type in again. It is the key itself, without a passphrase.
//!
//! ```text
//! larder paper key 1
//! 1  1111 1111 1111 1111  0369
//! 2  1111 1111 1111 1111  4425
//! 3  a5a5 a5a5 a5a5 a5a5  fcfb
//! 4  a5a5 a5a5 a5a5 a5a5  536d
//! 5  525a fa70 b3de 0967  7579
//! ```
//!
//! | line | 16 digits | 4 digits |
//! |---|---|---|
//! | 1 to 4 | 8 bytes of the key | check of the line |
//! | 5 | first 8 bytes of the fingerprint | check of the line |
//!
//! The check is the first 2 bytes of SHA-256(`larder paper key` ‖ number of the line, one byte ‖ the 8 bytes). A mistake in one line is noticed with a
//! probability of 65535 in 65536, and named; what slips through, and lines of different keys, do not fit the fingerprint, up to one case in 2^64.
//!
//! A reader accepts capitals, any spaces between digits, lines in any order and other lines between them. The letters O, I and l count as the
//! digits that look like them.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::crypt::errors::KeyError;
use crate::crypt::key::EncryptionKey;
use crate::crypt::secret_text::SecretText;

const LABEL: &str = "larder paper key";
const LINE_BYTES: usize = 8;
const CHECK_BYTES: usize = 2;
/// Number of lines with parts of the key.
const KEY_LINES: usize = 4;
/// The line with the fingerprint.
const LAST_LINE: u8 = 5;

impl EncryptionKey {
    /// The key as a text of six lines that a person can print, and type in again. It contains the key without a passphrase.
    ///
    /// Each line has a checksum, so that [`from_paper`](Self::from_paper) notices typing mistakes.
    pub fn to_paper(&self) -> SecretText {
        let fingerprint = *self.fingerprint().as_bytes();
        let parts = self.expose_bytes().chunks(LINE_BYTES).chain([&fingerprint[..LINE_BYTES]]);
        let lines: Vec<_> = (1..=LAST_LINE).zip(parts).map(|(number, part)| line(number, part)).collect();
        let title = format!("{LABEL} 1\n");
        let texts: Vec<&str> =
            [title.as_str()].into_iter().chain(lines.iter().map(|line| line.as_str())).collect();
        SecretText::of_parts(&texts)
    }

    /// Reads the text of [`to_paper`](Self::to_paper). Case, spaces between digits, the order of the lines and other lines do not matter.
    ///
    /// # Errors
    /// `PaperLine` for the first line that is missing, repeated or mistyped; `OtherFingerprint` if the lines belong to different keys.
    pub fn from_paper(text: &str) -> Result<Self, KeyError> {
        let (mut key, mut fingerprint) = (Zeroizing::new([0; LINE_BYTES * KEY_LINES]), [0; LINE_BYTES]);
        let parts = key.chunks_mut(LINE_BYTES).chain([fingerprint.as_mut_slice()]);
        for (number, part) in (1..=LAST_LINE).zip(parts) {
            let read = read_line(text, number).ok_or(KeyError::PaperLine(number))?;
            part.copy_from_slice(&*read);
        }
        let key = Self::from_bytes(&key);
        if key.fingerprint().as_bytes().starts_with(&fingerprint) {
            Ok(key)
        } else {
            Err(KeyError::OtherFingerprint)
        }
    }
}

fn line(number: u8, part: &[u8]) -> Zeroizing<String> {
    // "1  1111 1111 1111 1111  0369\n"
    let mut line = Zeroizing::new(String::with_capacity(30));
    // Writing into a string cannot fail.
    let _ = write!(line, "{number} ");
    for (at, byte) in part.iter().enumerate() {
        let space = if at % 2 == 0 { " " } else { "" };
        let _ = write!(line, "{space}{byte:02x}");
    }
    let [high, low] = check(number, part);
    let _ = writeln!(line, "  {high:02x}{low:02x}");
    line
}

fn check(number: u8, part: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = Sha256::new().chain_update(LABEL).chain_update([number]).chain_update(part).finalize();
    [hash[0], hash[1]]
}

/// The bytes of the one line with a number; `None` if it is missing, repeated or wrong.
fn read_line(text: &str, number: u8) -> Option<Zeroizing<[u8; LINE_BYTES]>> {
    let is_wanted = |line: &&str| {
        let label = line.split_whitespace().next().unwrap_or_default().trim_end_matches([':', '.']);
        label == number.to_string() || (number == 1 && matches!(label, "l" | "I"))
    };
    let mut lines = text.lines().filter(is_wanted);
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let (_, digits) = line.trim().split_once(char::is_whitespace)?;
    let mut nibbles = digits.chars().filter(|c| !c.is_whitespace()).map(nibble);
    let mut bytes = Zeroizing::new([0; LINE_BYTES + CHECK_BYTES]);
    for byte in bytes.iter_mut() {
        *byte = nibbles.next()?? << 4 | nibbles.next()??;
    }
    if nibbles.next().is_some() {
        return None;
    }
    let mut part = Zeroizing::new([0; LINE_BYTES]);
    part.copy_from_slice(&bytes[..LINE_BYTES]);
    (bytes[LINE_BYTES..] == check(number, &*part)).then_some(part)
}

fn nibble(digit: char) -> Option<u8> {
    let digit = match digit {
        'O' | 'o' => '0',
        'I' | 'i' | 'l' | 'L' => '1',
        digit => digit,
    };
    digit.to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAPER: &str = "larder paper key 1\n\
        1  1111 1111 1111 1111  0369\n\
        2  1111 1111 1111 1111  4425\n\
        3  a5a5 a5a5 a5a5 a5a5  fcfb\n\
        4  a5a5 a5a5 a5a5 a5a5  536d\n\
        5  525a fa70 b3de 0967  7579\n";

    fn key() -> EncryptionKey {
        EncryptionKey::from_bytes(&std::array::from_fn(|at| if at < 16 { 0x11 } else { 0xa5 }))
    }

    #[test]
    fn a_paper_key_has_a_fixed_form_and_is_read_as_people_type() {
        assert_eq!(&*key().to_paper(), PAPER);
        let mut reversed: Vec<_> = PAPER.lines().rev().collect();
        reversed.insert(2, "found in the safe\n\n");
        let typed = [
            PAPER.to_uppercase(),
            PAPER.replace("1111 1111", "11 11l1I1").replace("fa70", "fa7o"),
            PAPER.replace('\n', "\r\n").replace("\n1  ", "\n  1: "),
            reversed.join("\n"),
        ];
        for text in typed {
            assert_eq!(EncryptionKey::from_paper(&text), Ok(key()), "{text}");
        }
    }

    /// Proves H191.
    #[test]
    fn a_mistake_is_found_in_its_line() {
        let wrong = |text: &str| EncryptionKey::from_paper(text).unwrap_err();
        for (at, original) in PAPER.char_indices().skip(PAPER.find('\n').unwrap() + 1) {
            let line = PAPER[..at].matches('\n').count();
            let is_label = PAPER[..at].ends_with('\n');
            for other in "0123456789abcdefxg".chars().filter(|other| *other != original) {
                if original.is_whitespace() || is_label {
                    continue;
                }
                let mut text = PAPER.to_owned();
                text.replace_range(at..=at, &other.to_string());
                assert_eq!(wrong(&text), KeyError::PaperLine(u8::try_from(line).unwrap()), "{text}");
            }
        }
        assert_eq!(wrong(""), KeyError::PaperLine(1));
        assert_eq!(
            wrong(&PAPER.replace("a5a5 a5a5 a5a5 a5a5", "a5a5 a5a5 a5a5 5aa5")),
            KeyError::PaperLine(3)
        );
        let without = |number: &str| {
            PAPER.lines().filter(|line| !line.starts_with(number)).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(wrong(&without("4")), KeyError::PaperLine(4));
        let swapped = PAPER.replace("\n1 ", "\nx ").replace("\n2 ", "\n1 ").replace("\nx ", "\n2 ");
        assert_eq!(wrong(&swapped), KeyError::PaperLine(1));
        let repeated = format!("{PAPER}{PAPER}");
        assert_eq!(wrong(&repeated), KeyError::PaperLine(1));
    }

    /// Proves H191.
    #[test]
    fn lines_of_different_keys_are_refused() {
        let other = EncryptionKey::from_bytes(&[3; 32]).to_paper();
        let third = |text: &str| text.lines().nth(3).unwrap().to_owned();
        let mixed = PAPER.replace(&third(PAPER), &third(&other));
        assert_eq!(EncryptionKey::from_paper(&mixed), Err(KeyError::OtherFingerprint));
    }

    proptest! {
        #[test]
        fn a_paper_key_is_read_as_it_is_written(bytes: [u8; 32], any in "([1-5l] .{0,24}\n){0,7}") {
            let key = EncryptionKey::from_bytes(&bytes);
            let read = EncryptionKey::from_paper(&key.to_paper()).unwrap();
            prop_assert_eq!(read.expose_bytes(), &bytes);
            prop_assert!(EncryptionKey::from_paper(&any).is_err());
        }
    }
}

//! Names of packs.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::Digest;
use crate::format::digest::write_hex;

/// The writer of packs and segments: 16 random bytes, drawn by each writer. Written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// A session from its random bytes.
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 16];
        if digits.len() != bytes.len() || !rest.is_empty() {
            return Err(not_a_name());
        }
        for (byte, digits) in bytes.iter_mut().zip(digits) {
            *byte = hex_byte(*digits).ok_or_else(not_a_name)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// The name of a pack, `<session>-<n>`. A name is used once and never again, so no late request hits a newer pack (H17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackName {
    /// Its writer.
    pub(crate) session: SessionId,
    /// Number among the packs of its writer, from 0.
    pub(crate) n: u32,
}

impl PackName {
    /// The path of the pack in a store: `.larder/packs/<cc>/<session>-<n>`. `cc` is the first byte of the SHA-256 of the name, in
    /// hexadecimal.
    pub(crate) fn path(&self) -> String {
        format!("{PACKS}{}/{self}", self.shard())
    }

    /// The name of the pack at a path; `None` for any other text.
    pub(crate) fn from_path(path: &str) -> Option<Self> {
        let (shard, name) = path.strip_prefix(PACKS)?.split_once('/')?;
        let name: Self = name.parse().ok()?;
        (name.shard() == shard).then_some(name)
    }

    fn shard(&self) -> String {
        let digest = Digest::of(self.to_string().as_bytes());
        format!("{:02x}", digest.as_bytes()[0])
    }
}

impl FromStr for PackName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (session, n) = parse_name(text)?;
        Ok(Self { session, n })
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.n)
    }
}

/// Path below which a store has its packs.
pub(crate) const PACKS: &str = ".larder/packs/";

/// Session and number of a name. Each name has one text.
pub(in crate::format::larder) fn parse_name(text: &str) -> Result<(SessionId, u32), ParseError> {
    let (session, digits) = text.split_once('-').ok_or_else(not_a_name)?;
    let is_canonical = digits == "0" || !digits.starts_with(['0', '+']);
    let n = digits.parse().ok().filter(|_| is_canonical).ok_or_else(not_a_name)?;
    Ok((session.parse()?, n))
}

fn not_a_name() -> ParseError {
    ParseError::new("not a session of 32 lower-case hexadecimal digits, a hyphen and a number")
}

fn hex_byte(digits: [u8; 2]) -> Option<u8> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    Some(value(digits[0])? << 4 | value(digits[1])?)
}

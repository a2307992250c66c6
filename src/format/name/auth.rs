use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::name::{NameFault, NameKind};
use crate::wording::text_as_json;

/// The owner or user of a group: `user@realm`, or `user@realm!token` for an API token of that user.
///
/// The user may contain anything but white space, ASCII control characters, `:` and `/`; realm and token are safe ids. At
/// most 1024 bytes; the limit is this crate's own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthId {
    text: String,
    /// Length of `user@realm`.
    user_bytes: usize,
}

impl AuthId {
    /// Maximum bytes of an id.
    pub(crate) const MAX_BYTES: usize = 1024;

    /// `root@pam`, the administrator of a stock PBS.
    pub(crate) fn root() -> Self {
        let text = "root@pam".to_owned();
        Self { user_bytes: text.len(), text }
    }

    /// `user@realm`, without the token.
    pub(crate) fn user(&self) -> &str {
        self.text.get(..self.user_bytes).unwrap_or(&self.text)
    }

    /// The name of the token, if this is one.
    pub(crate) fn token(&self) -> Option<&str> {
        self.text.get(self.user_bytes + 1..)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns `true` if this caller may use what `owner` owns: it is the owner, or the user whose token is the owner.
    ///
    /// A token may not use what its user owns. Source: PBS datastore format §1.5.
    pub(crate) fn may_access(&self, owner: &Self) -> bool {
        self == owner || (self.token().is_none() && owner.token().is_some() && self.text == owner.user())
    }
}

impl FromStr for AuthId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let kind = NameKind::AuthId;
        if text.is_empty() {
            return Err(kind.fault(NameFault::Empty));
        }
        if text.len() > Self::MAX_BYTES {
            return Err(kind.fault(NameFault::TooLong));
        }
        // Neither realm nor token can hold '@', the user can: the last one is the separator.
        let (user, rest) = text.rsplit_once('@').ok_or(kind.fault(NameFault::Form))?;
        if user.is_empty() {
            return Err(kind.fault(NameFault::Empty));
        }
        if user.chars().any(|c| c.is_whitespace() || c.is_ascii_control() || matches!(c, ':' | '/')) {
            return Err(kind.fault(NameFault::Character));
        }
        let realm = match rest.split_once('!') {
            Some((realm, token)) => {
                kind.safe_id(token, Self::MAX_BYTES)?;
                realm
            }
            None => rest,
        };
        kind.safe_id(realm, Self::MAX_BYTES)?;
        Ok(Self { text: text.to_owned(), user_bytes: user.len() + 1 + realm.len() })
    }
}

text_as_json!(AuthId);

impl fmt::Display for AuthId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for AuthId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthId({self})")
    }
}

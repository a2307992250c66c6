//! Text that is a secret.

use std::fmt;
use std::ops::Deref;

use zeroize::Zeroizing;

/// A text that contains a key. It is erased from memory when it is dropped, and `Debug` does not show it.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Joins parts. The text is allocated once, so no part of it stays in memory that was freed.
    pub(crate) fn of_parts(parts: &[&str]) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
        for part in parts {
            text.push_str(part);
        }
        Self(text)
    }
}

impl Deref for SecretText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretText").finish_non_exhaustive()
    }
}

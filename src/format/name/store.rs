use std::fmt;
use std::str::FromStr;

use crate::format::name::{NameError, NameFault, NameKind};

/// The name of a datastore: a safe id of 3 to 32 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreName(String);

impl StoreName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StoreName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        NameKind::Store.safe_id(text, 32)?;
        if text.len() < 3 {
            return Err(NameKind::Store.fault(NameFault::TooShort));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for StoreName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for StoreName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreName({self})")
    }
}

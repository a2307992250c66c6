//! Reasons why a key cannot be read or used.

use thiserror::Error as ThisError;

use crate::error::{Error, ErrorKind};

/// Reason why a key, a key file or a paper key cannot be used. No variant holds a part of a key or of a passphrase.
///
/// As an [`Error`] it is the [source](std::error::Error::source) of an error with the kind in this table.
///
/// | variant | kind |
/// |---|---|
/// | `Damaged`, `OtherFingerprint` | `Corrupt` |
/// | `NoPassphrase` | `KeyRequired` |
/// | `TooCostly`, `UnsupportedKdf` | `Unsupported` |
/// | `WrongPassphrase` | `WrongKey` |
/// | all others | `InvalidInput` |
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ThisError)]
pub enum KeyError {
    /// The key file is not one, or was changed. The text names the flaw.
    #[error("the key file is damaged: {0}")]
    Damaged(&'static str),
    /// The key file is protected, and no passphrase was given.
    #[error("the key file is protected by a passphrase, and none was given")]
    NoPassphrase,
    /// The key does not have the recorded fingerprint.
    #[error("the key does not have the recorded fingerprint")]
    OtherFingerprint,
    /// A line of a paper key, counted from 1, is missing, repeated or mistyped.
    #[error("line {0} of the paper key is missing, repeated or mistyped")]
    PaperLine(u8),
    /// The passphrase has fewer than 5 bytes, which PBS refuses too.
    #[error("the passphrase has fewer than 5 bytes")]
    ShortPassphrase,
    /// The key derivation exceeds a limit: 1025 MiB of memory, a parallelism of 16, or ten million iterations.
    #[error("the key derivation exceeds 1025 MiB of memory, a parallelism of 16 or ten million iterations")]
    TooCostly,
    /// The key file is protected by a key derivation function other than scrypt and PBKDF2, or with a parameter that is unknown.
    #[error("the key derivation function or one of its parameters is unknown")]
    UnsupportedKdf,
    /// The passphrase is wrong, or the encrypted key was changed. The two look the same.
    #[error("the passphrase is wrong, or the encrypted key was changed")]
    WrongPassphrase,
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::new(error.kind(), "use the key").because(error)
    }
}

impl KeyError {
    /// The kind of error that the caller of an operation with I/O gets.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Damaged(_) | Self::OtherFingerprint => ErrorKind::Corrupt,
            Self::TooCostly | Self::UnsupportedKdf => ErrorKind::Unsupported,
            Self::NoPassphrase => ErrorKind::KeyRequired,
            Self::PaperLine(_) | Self::ShortPassphrase => ErrorKind::InvalidInput,
            Self::WrongPassphrase => ErrorKind::WrongKey,
        }
    }
}

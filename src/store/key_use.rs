//! Use of a key by a snapshot.

use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{CryptMode, Manifest, ManifestFile};
use crate::format::name::ArchiveName;

/// The key of a backup, encrypted for a master key.
const ENCRYPTED_KEY: &str = "rsa-encrypted.key.blob";

/// Use of a key by a new snapshot, for all of its archives alike (H179).
#[derive(Clone, Debug, Default)]
pub(crate) enum KeyUse {
    /// Archives are encrypted, and the manifest is signed.
    Encrypt(EncryptionKey),
    #[default]
    None,
    /// Archives are plain, and the manifest is signed.
    Sign(EncryptionKey),
}

impl KeyUse {
    /// The mode of the archives in the manifest.
    pub(crate) fn mode(&self) -> CryptMode {
        match self {
            Self::Encrypt(_) => CryptMode::Encrypt,
            Self::None => CryptMode::None,
            Self::Sign(_) => CryptMode::SignOnly,
        }
    }

    /// The key of chunks and blobs.
    pub(crate) fn encryption_key(&self) -> Option<&EncryptionKey> {
        match self {
            Self::Encrypt(key) => Some(key),
            Self::None | Self::Sign(_) => None,
        }
    }

    /// The key of the signature.
    pub(crate) fn signing_key(&self) -> Option<&EncryptionKey> {
        match self {
            Self::Encrypt(key) | Self::Sign(key) => Some(key),
            Self::None => None,
        }
    }

    /// Checks that a snapshot of this kind can build on an archive: its mode and its key are the same, and the key signed the
    /// manifest. So the base lends no chunk that an unauthenticated manifest names, and no digest of another key.
    ///
    /// # Errors
    /// `KeyRequired` for an encrypted archive without a key; `WrongKey` for another key or mode; `Corrupt` if the signature does not match.
    pub(crate) fn check_base(&self, manifest: &Manifest, file: &ManifestFile) -> Result<()> {
        let failed = |kind| Error::new(kind, "build on").on(&file.name);
        if file.crypt_mode == CryptMode::Encrypt && self.signing_key().is_none() {
            return Err(failed(ErrorKind::KeyRequired));
        }
        if file.crypt_mode != self.mode() && !mutated!("base-of-another-mode") {
            let (theirs, ours) = (file.crypt_mode, self.mode());
            return Err(failed(ErrorKind::WrongKey)
                .because(format!("its mode is {theirs}, and that of the backup {ours}")));
        }
        match self.signing_key() {
            Some(key) => manifest.authenticate(key),
            None => Ok(()),
        }
    }
}

/// Returns `true` for the key of a backup, encrypted for a master key. It is stored as a plain blob in every mode, because it is needed when
/// the key is lost.
pub(crate) fn is_encrypted_key(name: &ArchiveName) -> bool {
    name.as_str() == ENCRYPTED_KEY
}

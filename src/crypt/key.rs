//! The key, and the values that it makes.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::crypt::cipher::Cipher;
use crate::crypt::{KeyFingerprint, NONCE_BYTES, TAG_BYTES, Unauthentic};

const ID_KEY_ITERATIONS: u32 = 10;
const ID_KEY_SALT: &[u8] = b"_id_key";
const FINGERPRINT_LABEL: &[u8] = b"Proxmox Backup Encryption Key Fingerprint";

/// A key that encrypts and signs backups.
///
/// Clones share one copy of the secret, which is erased from memory when the last of them is dropped. `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct EncryptionKey(Arc<Secrets>);

struct Secrets {
    cipher: Cipher,
    fingerprint: KeyFingerprint,
    id_key: Zeroizing<[u8; 32]>,
    key: Zeroizing<[u8; 32]>,
}

impl EncryptionKey {
    /// A key from its 32 bytes, which must come from a source of secure randomness.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut id_key = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2_hmac::<Sha256>(bytes, ID_KEY_SALT, ID_KEY_ITERATIONS, id_key.as_mut_slice());
        let fingerprint =
            Sha256::new().chain_update(Sha256::digest(FINGERPRINT_LABEL)).chain_update(id_key.as_slice());
        let fingerprint = KeyFingerprint::from_bytes(fingerprint.finalize().into());
        let cipher = Cipher::new(bytes);
        Self(Arc::new(Secrets { cipher, fingerprint, id_key, key: Zeroizing::new(*bytes) }))
    }

    /// The 32 bytes, for a copy in a safe place.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0.key
    }

    /// The fingerprint, which names the key and reveals nothing of it.
    pub fn fingerprint(&self) -> KeyFingerprint {
        self.0.fingerprint
    }

    /// The bytes after the plaintext of a chunk of which its digest under this key is the SHA-256 too.
    pub(crate) fn digest_suffix(&self) -> &[u8] {
        self.0.id_key.as_slice()
    }

    /// Signature of a message.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 32] {
        self.mac(message).finalize().into_bytes().into()
    }

    /// Compares a signature in constant time.
    pub(crate) fn check_signature(&self, message: &[u8], signature: &[u8; 32]) -> Result<(), Unauthentic> {
        mutated!("signature-is-not-compared" => return Ok(()));
        self.mac(message).verify(signature.into()).map_err(|_| Unauthentic)
    }

    /// Encrypts in place, and returns the tag. A nonce must be random, and is used once.
    pub(crate) fn seal(&self, nonce: &[u8; NONCE_BYTES], data: &mut [u8]) -> [u8; TAG_BYTES] {
        self.0.cipher.seal(nonce, data)
    }

    /// Authenticates, then decrypts in place. Data that is not authentic stays encrypted.
    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        tag: &[u8; TAG_BYTES],
        data: &mut [u8],
    ) -> Result<(), Unauthentic> {
        self.0.cipher.open(nonce, tag, data)
    }

    fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
        // HMAC takes keys of any length.
        let key: &[u8; 32] = &self.0.id_key;
        Hmac::new(&hmac_key(key)).chain_update(message)
    }
}

/// The key padded to a block of SHA-256, as HMAC pads it.
fn hmac_key(key: &[u8; 32]) -> hmac::digest::Key<Hmac<Sha256>> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..32].copy_from_slice(key);
    block
}

impl PartialEq for EncryptionKey {
    /// Compares fingerprints.
    fn eq(&self, other: &Self) -> bool {
        self.0.fingerprint == other.0.fingerprint
    }
}

impl Eq for EncryptionKey {}

impl Hash for EncryptionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.fingerprint.hash(state);
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EncryptionKey").field(&self.0.fingerprint).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::hex;

    /// The vector of the format's description.
    #[test]
    fn derived_values_are_those_of_pbs() {
        let key = EncryptionKey::from_bytes(&std::array::from_fn(|at| u8::try_from(at).unwrap()));
        assert_eq!(hex(&*key.0.id_key), "7c2c013efd07f3b25717a485263343cd4d292a4b65c200bb3b18ea227abe225c");
        let fingerprint = "0eabd4460b6eb9ca345023dee2b778c790e54a1683b9659c0a57ae199090159b";
        assert_eq!(key.fingerprint().to_string().replace(':', ""), fingerprint);
    }

    #[test]
    fn a_signature_is_checked_against_its_message() {
        let key = EncryptionKey::from_bytes(&[7; 32]);
        let signature = key.sign(b"message");
        assert_eq!(key.check_signature(b"message", &signature), Ok(()));
        assert_eq!(key.check_signature(b"massage", &signature), Err(Unauthentic));
    }
}

//! Encryption keys, and the cipher of blobs. Bytes and values only: nothing here reads a file or draws a random number.
//!
//! One key of 32 bytes does everything. From it comes a second one, the *id key*, by which chunks are named and manifests are signed:
//!
//! | value | definition |
//! |---|---|
//! | id key | PBKDF2-HMAC-SHA-256 of the key, salt `_id_key`, 10 iterations, 32 bytes |
//! | digest of an encrypted chunk | SHA-256(plaintext ‖ id key) |
//! | signature | HMAC-SHA-256(id key, canonical manifest) |
//! | fingerprint | SHA-256(SHA-256("Proxmox Backup Encryption Key Fingerprint") ‖ id key) |
//! | cipher | AES-256-GCM, nonce of 16 bytes, tag of 16 bytes, no associated data |
//!
//! Source: PBS datastore format, keys.

mod cipher;
mod errors;
mod fingerprint;
mod json_fields;
pub(crate) mod kdf;
mod key;
pub(crate) mod key_file;
mod key_time;
mod paper;
mod secret_text;

pub use errors::KeyError;
pub use fingerprint::KeyFingerprint;
pub use kdf::Kdf;
pub use key::EncryptionKey;
pub use key_file::KeyFile;
pub use secret_text::SecretText;

/// Bytes of a nonce of the cipher.
pub(crate) const NONCE_BYTES: usize = 16;
/// Bytes of an authentication tag.
pub(crate) const TAG_BYTES: usize = 16;

/// Data that was not encrypted with this key, or was changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unauthentic;

#[cfg(test)]
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

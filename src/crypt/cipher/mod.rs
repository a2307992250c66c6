//! AES-256-GCM with nonces of 16 bytes.
//!
//! The counter block of a nonce that is not 12 bytes long is J0 = GHASH(nonce ‖ 0 (8 bytes) ‖ bits of the nonce (8 bytes, big-endian)).
//! Its last 32 bits count the blocks, and wrap without a carry. Source: NIST SP 800-38D §7.1.
//!
//! The crate `aes-gcm` detects AES and carry-less multiplication at run time, and has code of constant time for processors without them.

use std::fmt;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::consts::U16;
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, KeyInit as _};

use crate::crypt::{NONCE_BYTES, TAG_BYTES, Unauthentic};

/// The cipher under one key, with its key schedule.
pub(super) struct Cipher(AesGcm<Aes256, U16>);

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(AesGcm::new(key.into()))
    }

    /// Encrypts in place, and returns the tag. More than 64 GiB, which no blob has, are erased: plaintext never stands in for ciphertext.
    pub(super) fn seal(&self, nonce: &[u8; NONCE_BYTES], data: &mut [u8]) -> [u8; TAG_BYTES] {
        let Ok(tag) = self.0.encrypt_inout_detached(nonce.into(), &[], (&mut *data).into()) else {
            data.fill(0);
            return [0; TAG_BYTES];
        };
        tag.into()
    }

    /// Authenticates, then decrypts in place. Data that is not authentic stays encrypted.
    pub(super) fn open(
        &self,
        nonce: &[u8; NONCE_BYTES],
        tag: &[u8; TAG_BYTES],
        data: &mut [u8],
    ) -> Result<(), Unauthentic> {
        mutated!("tag-is-not-compared" => return Ok(_ = self.seal(nonce, data)));
        self.0.decrypt_inout_detached(nonce.into(), &[], data.into(), tag.into()).map_err(|_| Unauthentic)
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

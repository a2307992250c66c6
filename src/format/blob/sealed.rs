//! Payloads of encrypted blobs.

use crate::crypt::EncryptionKey;
use crate::format::blob::{Blob, BlobDecoder, DecodeError, ENCRYPTED_HEADER_BYTES, PlaintextSize};

/// Maximum bytes of a buffer that a decoder keeps.
const KEPT_BYTES: usize = 4 << 20;

impl BlobDecoder {
    /// The decrypted payload of a blob, for [`keep`](Self::keep) afterwards.
    pub(super) fn open(&mut self, blob: &Blob, key: &EncryptionKey) -> Result<Vec<u8>, DecodeError> {
        let mut payload = std::mem::take(&mut self.compressed);
        payload.clear();
        open_into(blob, key, &mut payload, PlaintextSize::AtMost(usize::MAX)).map(|()| payload)
    }

    /// Keeps a buffer for the next payload, or a part of a large one.
    pub(super) fn keep(&mut self, mut payload: Vec<u8>) {
        payload.clear();
        payload.shrink_to(KEPT_BYTES);
        self.compressed = payload;
    }
}

/// Appends the decrypted payload of a blob, which has the expected size. Verifies the checksum, then the size and the authentication tag.
pub(super) fn open_into(
    blob: &Blob,
    key: &EncryptionKey,
    out: &mut Vec<u8>,
    expected: PlaintextSize,
) -> Result<(), DecodeError> {
    let (iv, tag) = blob.seal().ok_or(DecodeError::NotEncrypted)?;
    blob.check_crc()?;
    let payload = blob.bytes.get(ENCRYPTED_HEADER_BYTES..).unwrap_or_default();
    expected.check(payload.len())?;
    out.extend_from_slice(payload);
    key.open(&iv, &tag, out).map_err(|_| DecodeError::Tag)
}

//! Plaintext in parts, for checks that keep none of it.
//!
//! A frame that breaks the format, with offsets beyond its own window, may give other bytes here than to a decoder with all of the plaintext in
//! memory. No encoder writes one.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::crypt::EncryptionKey;
use crate::format::blob::{Blob, BlobDecoder, BlobKind, DecodeError, PlaintextSize, window_log_of};

/// Bytes of a part. Hashed at once, it is still in the cache of the processor.
const PART_BYTES: usize = 128 << 10;

/// A decompressor with the buffer for its parts.
pub(super) struct PartDecoder {
    decoder: Decoder<'static>,
    part: Vec<u8>,
}

impl BlobDecoder {
    /// Passes the plaintext to `sink` in parts, at most `limit` bytes, and returns its length. Verifies the checksum first, and then, with a key,
    /// the authentication tag.
    ///
    /// It refuses some blobs that [`decode`](Self::decode) accepts: those whose window is much larger than `limit`.
    ///
    /// # Errors
    /// `Checksum`, `Compression`, `Encrypted` without a key, `NotEncrypted` with one, `Tag`, `TooLong`; `sink` may have had a part by then.
    pub(crate) fn decode_parts(
        &mut self,
        blob: &Blob,
        key: Option<&EncryptionKey>,
        limit: usize,
        sink: impl FnMut(&[u8]),
    ) -> Result<usize, DecodeError> {
        let Some(key) = key else {
            if blob.kind().is_encrypted() {
                return Err(DecodeError::Encrypted);
            }
            blob.check_crc()?;
            return self.payload_parts(blob.kind(), &blob.payload(), limit, sink);
        };
        let payload = self.open(blob, key)?;
        let decoded = self.payload_parts(blob.kind(), &payload, limit, sink);
        self.keep(payload);
        decoded
    }

    fn payload_parts(
        &mut self,
        kind: BlobKind,
        payload: &[u8],
        limit: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<usize, DecodeError> {
        if kind.is_compressed() {
            return self.decompress_parts(payload, limit, sink);
        }
        PlaintextSize::AtMost(limit).check(payload.len())?;
        sink(payload);
        Ok(payload.len())
    }

    fn decompress_parts(
        &mut self,
        payload: &[u8],
        limit: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<usize, DecodeError> {
        let failed = |_| DecodeError::Compression;
        let PartDecoder { decoder, part } = match &mut self.parts {
            Some(parts) => parts,
            parts => parts.insert(PartDecoder::new().map_err(failed)?),
        };
        decoder.reinit().map_err(failed)?;
        decoder.set_parameter(DParameter::WindowLogMax(window_log_of(limit))).map_err(failed)?;
        let mut input = InBuffer::around(payload);
        // Zero between frames.
        let (mut length, mut wanted) = (0, 0);
        loop {
            let mut output = OutBuffer::around(&mut part[..]);
            if input.pos() < payload.len() || wanted > 0 {
                wanted = decoder.run(&mut input, &mut output).map_err(failed)?;
            }
            let produced = output.pos();
            length += produced;
            if length > limit {
                return Err(DecodeError::TooLong { limit });
            }
            sink(&part[..produced]);
            if input.pos() == payload.len() && produced < part.len() {
                return if wanted == 0 { Ok(length) } else { Err(DecodeError::Compression) };
            }
        }
    }
}

impl PartDecoder {
    fn new() -> std::io::Result<Self> {
        Ok(Self { decoder: Decoder::new()?, part: vec![0; PART_BYTES] })
    }
}

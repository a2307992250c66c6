//! Interim.
use bytes::Bytes;
use thiserror::Error;
pub const MAX_CHUNK_BYTES: usize = 16 << 20;
pub const MAX_ENCODED_CHUNK_BYTES: usize = MAX_CHUNK_BYTES + 44;
pub const MIN_BLOB_BYTES: usize = 12;
pub const DEFAULT_ZSTD_LEVEL: i32 = 1;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobKind {
    Plain,
    Zstd,
}
impl BlobKind {
    pub fn is_compressed(self) -> bool {
        self == Self::Zstd
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("enc")]
    Encrypted,
    #[error("bad")]
    Bad,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("enc")]
pub struct EncodeError;
pub enum PlaintextSize {
    AtMost(usize),
    Exactly(usize),
}
const PLAIN: [u8; 8] = [0x42, 0xab, 0x38, 0x07, 0xbe, 0x83, 0x70, 0xa1];
const ZSTD: [u8; 8] = [0x31, 0xb9, 0x58, 0x42, 0x6f, 0xb6, 0xa3, 0x7f];
#[derive(Debug)]
pub struct Blob {
    kind: BlobKind,
    bytes: Bytes,
}
impl Blob {
    pub fn parse(bytes: Bytes) -> Result<Self, DecodeError> {
        let kind = match bytes.get(..8) {
            Some(m) if m == PLAIN => BlobKind::Plain,
            Some(m) if m == ZSTD => BlobKind::Zstd,
            _ => return Err(DecodeError::Bad),
        };
        if bytes.len() < 12 {
            return Err(DecodeError::Bad);
        }
        Ok(Self { kind, bytes })
    }
    pub fn kind(&self) -> BlobKind {
        self.kind
    }
}
#[derive(Debug)]
pub struct BlobEncoder(i32);
impl BlobEncoder {
    pub fn new(level: i32) -> Result<Self, EncodeError> {
        Ok(Self(level))
    }
    pub fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<BlobKind, EncodeError> {
        let c = zstd::bulk::compress(plain, self.0).map_err(|_| EncodeError)?;
        out.clear();
        let (kind, payload) =
            if c.len() < plain.len() { (BlobKind::Zstd, &c[..]) } else { (BlobKind::Plain, plain) };
        out.extend_from_slice(if kind == BlobKind::Zstd { &ZSTD } else { &PLAIN });
        out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        out.extend_from_slice(payload);
        Ok(kind)
    }
}
#[derive(Debug, Default)]
pub struct BlobDecoder;
impl BlobDecoder {
    pub fn decode(&mut self, b: &Blob, out: &mut Vec<u8>, e: PlaintextSize) -> Result<(), DecodeError> {
        let r = self.decode_bytes(b, e)?;
        out.clear();
        out.extend_from_slice(&r);
        Ok(())
    }
    pub fn decode_bytes(&mut self, b: &Blob, e: PlaintextSize) -> Result<Bytes, DecodeError> {
        let p = b.bytes.slice(12..);
        if crc32fast::hash(&p).to_le_bytes() != b.bytes[8..12] {
            return Err(DecodeError::Bad);
        }
        let (n, exact) = match e {
            PlaintextSize::AtMost(n) => (n, false),
            PlaintextSize::Exactly(n) => (n, true),
        };
        let r = if b.kind == BlobKind::Zstd {
            Bytes::from(zstd::bulk::decompress(&p, n).map_err(|_| DecodeError::Bad)?)
        } else {
            p
        };
        if r.len() > n || exact && r.len() != n {
            return Err(DecodeError::Bad);
        }
        Ok(r)
    }
}

//! Interim.
use crate::format::Digest;
use crate::format::index::*;
#[derive(Debug)]
pub struct DynamicIndexWriter {
    v: Vec<u8>,
    end: u64,
}
impl DynamicIndexWriter {
    pub fn new() -> Self {
        Self { v: vec![0; 4096], end: 0 }
    }
    pub fn push(&mut self, len: u64, d: Digest) -> Result<(), IndexWriteError> {
        self.end += len;
        self.v.extend_from_slice(&self.end.to_le_bytes());
        self.v.extend_from_slice(d.as_bytes());
        Ok(())
    }
    pub fn finish(mut self, uuid: [u8; 16], t: i64) -> Result<FinishedIndex, IndexWriteError> {
        if self.end == 0 {
            return Err(IndexWriteError);
        }
        let sum = Digest::of(&self.v[4096..]);
        self.v[..8].copy_from_slice(&[0x1c, 0x91, 0x4e, 0xa5, 0x19, 0xba, 0xb3, 0xcd]);
        self.v[8..24].copy_from_slice(&uuid);
        self.v[24..32].copy_from_slice(&t.to_le_bytes());
        self.v[32..64].copy_from_slice(sum.as_bytes());
        Ok(FinishedIndex {
            checksum: sum,
            size: self.end,
            chunks: (self.v.len() - 4096) / 40,
            bytes: self.v.into(),
        })
    }
}

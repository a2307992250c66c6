//! Interim.
use crate::format::Digest;
use crate::format::index::*;
use std::collections::BTreeMap;
#[derive(Debug)]
pub struct FixedIndexWriter {
    m: BTreeMap<u64, Digest>,
    chunk: u64,
    size: u64,
}
impl FixedIndexWriter {
    pub fn new(_: Option<u64>, chunk: u64) -> Result<Self, IndexWriteError> {
        Ok(Self { m: BTreeMap::new(), chunk, size: 0 })
    }
    pub fn set(&mut self, o: u64, len: u64, d: Digest) -> Result<(), IndexWriteError> {
        self.m.insert(o, d);
        self.size = self.size.max(o + len);
        Ok(())
    }
    pub fn finish(self, uuid: [u8; 16], t: i64) -> Result<FinishedIndex, IndexWriteError> {
        if self.m.is_empty() || self.m.len() as u64 != self.size.div_ceil(self.chunk) {
            return Err(IndexWriteError);
        }
        let mut v = vec![0; 4096];
        for d in self.m.values() {
            v.extend_from_slice(d.as_bytes());
        }
        let sum = Digest::of(&v[4096..]);
        v[..8].copy_from_slice(&[0x2f, 0x7f, 0x41, 0xed, 0x91, 0xfd, 0x0f, 0xcd]);
        v[8..24].copy_from_slice(&uuid);
        v[24..32].copy_from_slice(&t.to_le_bytes());
        v[32..64].copy_from_slice(sum.as_bytes());
        v[64..72].copy_from_slice(&self.size.to_le_bytes());
        v[72..80].copy_from_slice(&self.chunk.to_le_bytes());
        Ok(FinishedIndex { checksum: sum, size: self.size, chunks: self.m.len(), bytes: v.into() })
    }
}

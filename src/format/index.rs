//! Interim.
use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::name::ArchiveKind;
use bytes::Bytes;
use thiserror::Error;
#[derive(Clone, Copy, Debug)]
pub struct ChunkEntry {
    pub offset: u64,
    pub len: u64,
    pub digest: Digest,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("index write")]
pub struct IndexWriteError;
#[derive(Clone, Debug)]
pub struct FinishedIndex {
    pub bytes: Bytes,
    pub checksum: Digest,
    pub size: u64,
    pub chunks: usize,
}
#[derive(Debug)]
pub enum IndexReader {
    Dynamic(Inner),
    Fixed(Inner),
}
#[derive(Debug)]
pub struct Inner {
    e: Vec<(u64, Digest)>,
    chunk: u64,
    size: u64,
    sum: Digest,
}
impl Inner {
    pub fn size(&self) -> u64 {
        self.size
    }
    pub fn chunk_size(&self) -> u64 {
        self.chunk
    }
}
impl IndexReader {
    fn i(&self) -> &Inner {
        match self {
            Self::Dynamic(i) | Self::Fixed(i) => i,
        }
    }
    pub fn parse(kind: ArchiveKind, b: Bytes) -> Result<Self, DecodeError> {
        let sum = Digest::of(&b[4096..]);
        Ok(if kind == ArchiveKind::Fixed {
            let size = u64::from_le_bytes(b[64..72].try_into().unwrap());
            let chunk = u64::from_le_bytes(b[72..80].try_into().unwrap());
            let e = b[4096..]
                .chunks(32)
                .enumerate()
                .map(|(i, d)| (size.min((i as u64 + 1) * chunk), Digest::from_bytes(d.try_into().unwrap())))
                .collect();
            Self::Fixed(Inner { e, chunk, size, sum })
        } else {
            let e: Vec<_> = b[4096..]
                .chunks(40)
                .map(|d| {
                    (
                        u64::from_le_bytes(d[..8].try_into().unwrap()),
                        Digest::from_bytes(d[8..].try_into().unwrap()),
                    )
                })
                .collect();
            let size = e.last().unwrap().0;
            Self::Dynamic(Inner { e, chunk: 0, size, sum })
        })
    }
    pub fn len(&self) -> usize {
        self.i().e.len()
    }
    pub fn size(&self) -> u64 {
        self.i().size
    }
    pub fn checksum(&self) -> Digest {
        self.i().sum
    }
    pub fn digest(&self, n: usize) -> Option<Digest> {
        self.i().e.get(n).map(|e| e.1)
    }
    pub fn chunk(&self, n: usize) -> Option<ChunkEntry> {
        let e = self.i().e.get(n)?;
        let o = if n == 0 { 0 } else { self.i().e[n - 1].0 };
        Some(ChunkEntry { offset: o, len: e.0 - o, digest: e.1 })
    }
    pub fn chunk_at(&self, at: u64) -> Option<usize> {
        (at < self.size()).then(|| self.i().e.partition_point(|e| e.0 <= at))
    }
}

//! Interim.
pub trait Chunker: std::fmt::Debug + Send {
    fn scan(&mut self, data: &[u8]) -> Option<usize>;
    fn max_bytes(&self) -> usize;
    fn typical_bytes(&self) -> usize;
}
pub fn is_zero(d: &[u8]) -> bool {
    d.chunks(128).all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}
#[derive(Debug, Default)]
pub struct RollingChunker {
    at: usize,
    h: u64,
}
impl Chunker for RollingChunker {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        for (i, b) in data.iter().enumerate() {
            self.h = (self.h << 1).wrapping_add(u64::from(*b).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            self.at += 1;
            if self.at >= (1 << 20) && (self.h >> 43 == 0 || self.at == 16 << 20) {
                *self = Self::default();
                return Some(i + 1);
            }
        }
        None
    }
    fn max_bytes(&self) -> usize {
        16 << 20
    }
    fn typical_bytes(&self) -> usize {
        4 << 20
    }
}

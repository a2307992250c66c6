//! Buffers that are used again, because fresh memory of several megabytes costs as much to touch as to fill.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// How many buffers lie ready at most. More than are in flight are never wanted.
const KEPT: usize = 64;

/// Capacities are multiples of this, and plaintext gets room for a header too: what held the plaintext of one chunk then fits
/// the encoded form of another.
const STEP_BYTES: usize = 64 << 10;

/// Buffers that lie ready.
#[derive(Debug)]
pub(in crate::store) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    /// What all the buffers that lie ready may hold together.
    kept_bytes: usize,
}

/// A buffer that returns to its pool when it is dropped. Its contents are whatever it held last.
pub(in crate::store) struct Buffer {
    pool: Weak<Buffers>,
    vec: Vec<u8>,
}

impl Buffers {
    pub(in crate::store) fn new(kept_bytes: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), kept_bytes })
    }

    /// A buffer of any length that has at least this capacity: the smallest that lies ready, or a new and empty one.
    pub(in crate::store) fn take(self: &Arc<Self>, capacity: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free.iter().enumerate().filter(|(_, vec)| vec.capacity() >= capacity);
        let smallest = fitting.min_by_key(|(_, vec)| vec.capacity()).map(|(at, _)| at);
        let vec = match smallest {
            Some(at) => free.swap_remove(at),
            None => Vec::with_capacity(capacity.next_multiple_of(STEP_BYTES)),
        };
        Buffer { pool: Arc::downgrade(self), vec }
    }

    fn put_back(&self, vec: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = free.iter().map(Vec::capacity).sum();
        if free.len() < KEPT && held + vec.capacity() <= self.kept_bytes {
            free.push(vec);
        }
    }
}

impl Buffer {
    /// The buffer as bytes that can be shared; it returns to the pool with the last of them.
    pub(in crate::store) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.vec
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.vec
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.vec
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade()
            && self.vec.capacity() > 0
        {
            pool.put_back(std::mem::take(&mut self.vec));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.vec.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_of_its_bytes_is_dropped() {
        let pool = Buffers::new(1 << 20);
        let mut buffer = pool.take(1000);
        buffer.resize(1000, 7);
        let bytes = buffer.freeze();
        let part = bytes.slice(1..2);
        drop(bytes);
        assert_ne!(pool.take(1000).len(), 1000);
        drop(part);
        assert_eq!(pool.free.lock().unwrap().len(), 2);
        let again = [pool.take(1000), pool.take(1000)];
        assert_eq!(again.iter().map(|buffer| buffer.len()).max(), Some(1000));
        drop(again);
        assert_eq!(pool.take(STEP_BYTES + 1).len(), 0, "too small ones stay where they are");
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let pool = Buffers::new(3 * STEP_BYTES);
        let two = [2 * STEP_BYTES, 2 * STEP_BYTES].map(|length| {
            let mut buffer = pool.take(length);
            buffer.resize(length, 0);
            buffer
        });
        drop(two);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
    }
}

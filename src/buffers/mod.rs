//! Reusable buffers, because touching fresh memory of several megabytes costs as much as filling it.

mod list;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

pub(crate) use self::list::BytesList;

/// Maximum number of free buffers. No more than those in flight are needed.
const KEPT: usize = 64;

/// Share of all kept bytes, in eighths, above which a buffer is too large to be kept. A third would be the very size of usual chunks and packs,
/// which are a little longer with their headers.
const LARGEST_EIGHTHS: usize = 3;

/// Unit of capacities. Plaintext gets room for a header too, so a buffer for the plaintext of one chunk also fits
/// the encoded form of another.
const STEP_BYTES: usize = 64 << 10;

/// Zeros to extend buffers with.
static ZEROS: [u8; STEP_BYTES] = [0; STEP_BYTES];

/// Larger buffers have a capacity of [`MAPPED_BYTES`].
pub(crate) const LARGE_BYTES: usize = 1 << 20;

/// glibc maps allocations above 32 MiB and unmaps them on free, while holes in its heap
/// cost half as much again as the used memory. A mapping uses memory only for touched pages.
const MAPPED_BYTES: usize = (32 << 20) + STEP_BYTES;

/// Free buffers.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Maximum bytes of all free buffers.
    kept_bytes: usize,
    state: Mutex<State>,
    /// Maximum bytes of free buffers and buffers in use, when a buffer returns; the latter alone may have more.
    total_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Free>,
    /// Bytes that the buffers in use were taken for.
    used: usize,
}

struct Free {
    /// Number of touched bytes, which is the memory it uses.
    touched: usize,
    vec: Vec<u8>,
}

/// Extends `bytes` with zeros to at least this length. Without optimisation `resize` writes byte by byte, a hundred times slower than
/// copying zeros.
pub(crate) fn lengthen(bytes: &mut Vec<u8>, length: usize) {
    bytes.reserve(length.saturating_sub(bytes.len()));
    while bytes.len() < length {
        let missing = length - bytes.len();
        bytes.extend_from_slice(&ZEROS[..missing.min(ZEROS.len())]);
    }
}

/// A buffer that returns to its pool when dropped, if it has one. Its contents are arbitrary.
#[derive(Default)]
pub(crate) struct Buffer {
    pool: Weak<Buffers>,
    touched: usize,
    /// Bytes that the pool counts for it while it is in use.
    used: usize,
    vec: Vec<u8>,
}

impl Buffers {
    pub(crate) fn new(kept_bytes: usize) -> Arc<Self> {
        Arc::new(Self { kept_bytes, state: Mutex::default(), total_bytes: usize::MAX })
    }

    /// When a buffer returns, free ones go while all buffers, free and in use, have more than `total_bytes`.
    pub(crate) fn within(total_bytes: usize) -> Arc<Self> {
        Arc::new(Self { kept_bytes: total_bytes, state: Mutex::default(), total_bytes })
    }

    /// A buffer of any length with at least this capacity, which uses at most twice as much memory: the free
    /// one that fits best, or a new and empty one.
    pub(crate) fn take(self: &Arc<Self>, capacity: usize) -> Buffer {
        if capacity < STEP_BYTES {
            // A small content must not keep a large buffer alive.
            return Buffer { pool: Weak::new(), touched: 0, used: 0, vec: Vec::with_capacity(capacity) };
        }
        let capacity = capacity.next_multiple_of(STEP_BYTES);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let free = &mut state.free;
        // Not a much larger one, because a reference to a few bytes keeps all of it alive.
        let fits =
            |free: &Free| free.vec.capacity() >= capacity && free.touched <= capacity.saturating_mul(2);
        let fitting = free.iter().enumerate().filter(|(_, free)| fits(free));
        let nearest = fitting.rev().min_by_key(|(_, free)| free.touched.abs_diff(capacity)).map(|(at, _)| at);
        let found = nearest.map(|at| free.swap_remove(at));
        let Free { touched, vec } = found.unwrap_or_else(|| {
            let capacity = if capacity <= LARGE_BYTES { capacity } else { capacity.max(MAPPED_BYTES) };
            Free { touched: 0, vec: Vec::with_capacity(capacity) }
        });
        let used = touched.max(capacity);
        state.used += used;
        Buffer { pool: Arc::downgrade(self), touched, used, vec }
    }

    /// Keeps a buffer that is not too large. If there are too many now, the largest ones go: each of them uses the memory of several.
    fn recycle(&self, buffer: Free, used: usize) {
        let mut gone = Vec::new();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.used -= used;
        let most = self.kept_bytes.min(self.total_bytes.saturating_sub(state.used));
        if buffer.vec.capacity() == 0 || buffer.touched > self.kept_bytes / 8 * LARGEST_EIGHTHS {
            return;
        }
        let free = &mut state.free;
        free.push(buffer);
        let mut held: usize = free.iter().map(|free| free.touched).sum();
        while free.len() > KEPT || held > most {
            let largest = free.iter().enumerate().max_by_key(|(_, free)| free.touched).map(|(at, _)| at);
            let Some(at) = largest else { break };
            let largest = free.swap_remove(at);
            held -= largest.touched;
            gone.push(largest);
        }
        drop(state);
        // Memory is returned to the system outside of the lock.
        drop(gone);
    }
}

impl Buffer {
    /// Extends it to at least this length. Old contents stay, new bytes are zero.
    pub(crate) fn lengthen(&mut self, length: usize) {
        lengthen(&mut self.vec, length);
    }

    /// The first `length` bytes, shareable; the buffer returns to the pool with the last reference. Its length is
    /// kept, so that reuse need not fill it with zeros again.
    pub(crate) fn freeze_to(self, length: usize) -> Bytes {
        self.freeze().slice(..length)
    }

    /// The buffer as shareable bytes; it returns to the pool with the last reference.
    pub(crate) fn freeze(self) -> Bytes {
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
        if let Some(pool) = self.pool.upgrade() {
            let vec = std::mem::take(&mut self.vec);
            pool.recycle(Free { touched: self.touched.max(vec.len()), vec }, self.used);
        }
    }
}

/// Without the contents, which are those of chunks.
impl fmt::Debug for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Free({} bytes)", self.touched)
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
    fn the_text_of_a_pool_has_no_contents() {
        let pool = Buffers::new(1 << 20);
        let mut buffer = pool.take(STEP_BYTES);
        buffer.resize(STEP_BYTES, 123);
        drop(buffer);
        let text = format!("{pool:?}");
        assert!(text.contains("Free(65536 bytes)") && !text.contains("123"), "{text}");
    }

    #[test]
    fn a_buffer_returns_to_the_pool_with_its_last_reference() {
        let pool = Buffers::new(1 << 20);
        let mut buffer = pool.take(STEP_BYTES);
        buffer.resize(STEP_BYTES, 7);
        let bytes = buffer.freeze();
        let part = bytes.slice(1..2);
        drop(bytes);
        assert_ne!(pool.take(STEP_BYTES).len(), STEP_BYTES);
        drop(part);
        assert_eq!(pool.state.lock().unwrap().free.len(), 2);
        let again = [pool.take(STEP_BYTES), pool.take(STEP_BYTES)];
        assert_eq!(again.iter().map(|buffer| buffer.len()).max(), Some(STEP_BYTES));
        drop(again);
        assert_eq!(pool.take(2 * STEP_BYTES).len(), 0, "too small ones stay where they are");
        let mut large = pool.take(3 * STEP_BYTES);
        large.lengthen(3 * STEP_BYTES);
        drop(large);
        assert!(pool.take(STEP_BYTES).capacity() < 3 * STEP_BYTES, "much too large ones too");
        assert_eq!(pool.take(3 * STEP_BYTES).len(), 3 * STEP_BYTES);
    }

    #[test]
    fn free_buffers_go_while_those_in_use_need_the_memory() {
        let pool = Buffers::within(8 * STEP_BYTES);
        let take = |steps: usize| {
            let mut buffer = pool.take(steps * STEP_BYTES);
            buffer.lengthen(steps * STEP_BYTES);
            buffer
        };
        let free =
            || pool.state.lock().unwrap().free.iter().map(|free| free.touched / STEP_BYTES).sum::<usize>();
        let (two, three, six) = (take(2), take(3), take(6));
        drop(three);
        assert_eq!(free(), 0, "eight are in use");
        drop(two);
        assert_eq!(free(), 2, "six are in use");
        let mut taken = six;
        drop(std::mem::take(&mut *taken));
        drop(taken);
        drop([take(3), take(3)]);
        assert_eq!(free(), 8, "none is in use");
    }

    #[test]
    fn the_pool_keeps_at_most_its_limit_in_the_smallest_buffers() {
        let pool = Buffers::new(8 * STEP_BYTES);
        let buffers = [2, 3, 2, 3, 4].map(|steps| {
            let mut buffer = pool.take(steps * STEP_BYTES);
            buffer.resize(steps * STEP_BYTES, 0);
            buffer
        });
        drop(buffers);
        let mut free: Vec<_> =
            pool.state.lock().unwrap().free.iter().map(|free| free.touched / STEP_BYTES).collect();
        free.sort_unstable();
        assert_eq!(free, [2, 2, 3]);
    }
}

//! The digest of a chunk whose bytes arrive in parts.
//!
//! Blocking jobs hash the parts that are known to be of the chunk while its end is still looked for, so that the last part of a large chunk is all that is left to
//! hash when it is cut.
//!
//! # States
//! | state | left by |
//! |---|---|
//! | idle: every part is hashed | a part, or the end: a job |
//! | running: one job hashes parts in order until none waits | that job: idle, or after the end complete |
//! | lost: the job panicked, or the pool has shut down | nothing; the digest is an error |
//! | complete: the digest is sent | |
//!
//! A dropped digester leaves a job that ends with the parts that wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;

use crate::buffers::BytesList;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::digest::ChunkHasher;
use crate::rt::Runtime;

/// The digest of a chunk that is not complete.
#[derive(Debug)]
pub(super) struct Digester(Arc<Shared>);

/// The digest of a complete chunk.
#[derive(Debug)]
pub(in crate::store) struct PendingDigest(oneshot::Receiver<Digest>);

#[derive(Debug)]
struct Shared {
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Set at the end of the chunk.
    end: Option<(Option<EncryptionKey>, oneshot::Sender<Digest>)>,
    hasher: ChunkHasher,
    phase: Phase,
    waiting: BytesList,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Lost,
    Running,
}

/// The right of a job to hash. Dropped before the job has ended, it loses the digest.
struct Turn {
    /// Set together with the phase: another job may hash when this one is dropped.
    has_ended: bool,
    shared: Arc<Shared>,
}

impl Digester {
    pub(super) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self(Arc::new(Shared { runtime, state: Mutex::default() }))
    }

    /// Adds the next bytes of the chunk.
    pub(super) fn push(&self, bytes: BytesList) {
        self.go_on(|state| state.waiting.append(bytes));
    }

    /// Ends the chunk with its last bytes.
    pub(super) fn finish(self, bytes: BytesList, key: Option<EncryptionKey>) -> PendingDigest {
        let (sender, receiver) = oneshot::channel();
        self.go_on(|state| {
            state.waiting.append(bytes);
            state.end = Some((key, sender));
        });
        PendingDigest(receiver)
    }

    /// Changes the state, and starts a job unless one is running.
    fn go_on(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state();
        change(&mut state);
        match state.phase {
            Phase::Idle => {
                state.phase = Phase::Running;
                drop(state);
                let mut turn = Turn { has_ended: false, shared: Arc::clone(&self.0) };
                self.0.runtime.spawn_blocking(Box::new(move || turn.hash()));
            }
            // The sender is dropped with the end.
            Phase::Lost => state.end = None,
            Phase::Running => {}
        }
    }
}

impl PendingDigest {
    /// Waits for the digest.
    ///
    /// # Errors
    /// `Internal` if a job panicked or the pool has shut down.
    ///
    /// # Cancel safety
    /// The jobs run to completion even if the future is dropped.
    pub(in crate::store) async fn wait(self) -> Result<Digest> {
        self.0.await.map_err(|_| Error::new(ErrorKind::Internal, "digest chunk"))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Hashes parts until none waits.
    fn hash(&mut self) {
        loop {
            let mut state = self.shared.state();
            if state.waiting.is_empty() {
                state.phase = Phase::Idle;
                self.has_ended = true;
                let complete =
                    state.end.take().map(|(key, sender)| (key, sender, std::mem::take(&mut state.hasher)));
                // A woken task may run at once.
                drop(state);
                if let Some((key, sender, hasher)) = complete {
                    // The backup may have been dropped.
                    let _ = sender.send(hasher.finish(key.as_ref()));
                }
                return;
            }
            let (bytes, mut hasher) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.hasher));
            drop(state);
            bytes.iter().for_each(|part| hasher.update(part));
            self.shared.state().hasher = hasher;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.has_ended {
            let mut state = self.shared.state();
            state.phase = Phase::Lost;
            let end = state.end.take();
            drop(state);
            // A woken task may run at once.
            drop(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::executor::block_on;
    use futures::future::FutureExt as _;

    use super::*;
    use crate::rt::BlockingJob;
    use crate::rt::held::HeldRuntime;

    fn part(text: &'static [u8]) -> BytesList {
        Bytes::from_static(text).into()
    }

    #[test]
    fn one_job_at_a_time_hashes_the_parts_in_order() {
        let runtime = Arc::new(HeldRuntime::default());
        let digester = Digester::new(Arc::<HeldRuntime>::clone(&runtime));
        digester.push(part(b"ab"));
        digester.push(part(b"c"));
        let job = runtime.job().unwrap();
        assert!(runtime.job().is_none(), "a second job would hash out of order");
        job();
        digester.push(part(b"d"));
        let job = runtime.job().unwrap();
        let digest = digester.finish(part(b"e"), None);
        assert!(runtime.job().is_none());
        job();
        assert_eq!(block_on(digest.wait()).unwrap(), Digest::of(b"abcde"));
    }

    #[test]
    fn a_digest_has_the_key() {
        let runtime = Arc::new(HeldRuntime::default());
        let digester = Digester::new(Arc::<HeldRuntime>::clone(&runtime));
        let key = EncryptionKey::from_bytes(&[1; 32]);
        let digest = digester.finish(part(b"test"), Some(key.clone()));
        runtime.job().unwrap()();
        assert_eq!(block_on(digest.wait()).unwrap(), Digest::of_chunk(b"test", Some(&key)));
    }

    #[test]
    fn a_lost_job_is_an_error_before_and_after_the_end() {
        for is_early in [true, false] {
            let runtime = Arc::new(HeldRuntime::default());
            let digester = Digester::new(Arc::<HeldRuntime>::clone(&runtime));
            digester.push(part(b"a"));
            let job = runtime.job().unwrap();
            let lose = |job: BlockingJob| drop(job);
            let digest = if is_early {
                lose(job);
                digester.finish(part(b"b"), None)
            } else {
                let digest = digester.finish(part(b"b"), None);
                lose(job);
                digest
            };
            let lost = digest.wait().now_or_never().expect("nothing is left to wait for");
            assert_eq!(lost.unwrap_err().kind(), ErrorKind::Internal);
        }
    }

    #[test]
    fn a_job_that_has_ended_loses_nothing_of_the_next_one() {
        let runtime = Arc::new(HeldRuntime::default());
        let digester = Digester::new(Arc::<HeldRuntime>::clone(&runtime));
        digester.push(part(b"a"));
        // The turn of this job, by hand.
        std::mem::forget(runtime.job().unwrap());
        let mut turn = Turn { has_ended: false, shared: Arc::clone(&digester.0) };
        turn.hash();
        let digest = digester.finish(part(b"b"), None);
        drop(turn);
        runtime.job().unwrap()();
        assert_eq!(block_on(digest.wait()).unwrap(), Digest::of(b"ab"));
    }
}

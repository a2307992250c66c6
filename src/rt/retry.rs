//! Repeated attempts within a bounded time.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::rt::Runtime;

/// First pause between two attempts; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

const MAX_PAUSE: Duration = Duration::from_millis(100);

impl dyn Runtime {
    /// Repeats an attempt while its error is one to wait for, until `wait` is over.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub(crate) async fn retry_for<T, F>(
        &self,
        wait: Duration,
        should_wait: impl Fn(&Error) -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let end = self.monotonic() + wait;
        let mut pause = FIRST_PAUSE;
        loop {
            match attempt().await {
                Err(error) if should_wait(&error) && self.monotonic() < end => {
                    self.sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                done => return done,
            }
        }
    }
}

//! Work that runs to its end even if its caller goes away.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;
use futures::future::FutureExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

/// The result of a task, as a future. Dropping it does not end the task.
#[derive(Debug)]
#[must_use = "the result of the task may be an error"]
pub(crate) struct Detached<T> {
    action: &'static str,
    result: oneshot::Receiver<Result<T>>,
}

impl dyn Runtime {
    /// Starts `work` as a task of its own at once, and returns a future of its result.
    ///
    /// Used where work that stops halfway would be worse than work that nobody waits for: a deletion that was sent must end while its
    /// locks are held, and a snapshot whose manifest was sent must be published or known to be absent. A caller may drop its future at
    /// any await point, so the locks that protect such a step belong to the task and not to the caller's future.
    ///
    /// `work` and all that it owns is dropped before the result is visible, so a caller with the result may take the same locks again.
    ///
    /// # Errors
    /// Errors of `work`; `Internal` if it panicked or the runtime ended.
    ///
    /// # Cancel safety
    /// The work runs to its end even if the future is dropped, or was never polled.
    pub(crate) fn run_detached<T, F>(&self, action: &'static str, work: F) -> Detached<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.spawn(Box::pin(async move {
            // The await drops `work` with its locks before the caller sees the result.
            let result = work.await;
            // The send fails if the caller dropped its future. The work is complete, and its result is not needed.
            let _ = sender.send(result);
        }));
        Detached { action, result: receiver }
    }
}

impl<T> Future for Detached<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let received = ready!(self.result.poll_unpin(context));
        Poll::Ready(received.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, self.action))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::executor::block_on;

    use super::*;
    use crate::rt::ThreadRuntime;

    #[test]
    fn detached_work_continues_when_its_caller_is_dropped() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let (release, released) = oneshot::channel::<()>();
        let (report, reported) = oneshot::channel();
        let work = async move {
            released.await.map_err(|_| Error::new(ErrorKind::Internal, "wait"))?;
            let _ = report.send(());
            Ok(())
        };
        drop(runtime.run_detached("test", work));
        release.send(()).unwrap();
        assert_eq!(block_on(reported), Ok(()));
    }

    #[test]
    fn work_is_dropped_before_its_result_is_visible() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        for _ in 0..100 {
            let held = Arc::new(Mutex::new(0));
            let inside = Arc::clone(&held);
            let work = async move {
                *inside.lock().unwrap() += 1;
                Ok(())
            };
            block_on(runtime.run_detached("test", work)).unwrap();
            assert_eq!(Arc::into_inner(held).unwrap().into_inner().unwrap(), 1);
        }
    }

    #[test]
    fn work_that_panics_is_an_error() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let result = block_on(runtime.run_detached::<(), _>("test", async { panic!("for the test") }));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Internal);
    }
}

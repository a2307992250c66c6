//! The condition that must hold before an attempt of a changing request is sent.
//!
//! A request waits for its slot, for credentials, for a connection and between attempts, and the host may be suspended at any of these
//! points. So each attempt asks again after every wait except connecting, and gives the transport a time after which it
//! must not send the request.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;

/// The right of a process to change something, asked before each attempt.
#[async_trait]
pub(crate) trait Guard: fmt::Debug + Send + Sync {
    /// Returns the time until which an attempt may be sent, by the monotonic clock. `None` means that the right has to be
    /// [confirmed](Self::confirm) first. `failed` is the end of the previous attempt, if there was one. Makes no request.
    ///
    /// # Errors
    /// `Busy` if the right is lost for good.
    fn permit(&self, failed: Option<Duration>) -> Result<Option<Duration>>;

    /// Asks the server for the right, so that [`permit`](Self::permit) can answer.
    ///
    /// # Errors
    /// `Busy` if the right is lost for good; any failure to reach the server.
    async fn confirm(&self, failed: Option<Duration>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::num::NonZeroU32;
    use std::sync::{Arc, Mutex, MutexGuard};

    use bytes::Bytes;
    use futures::executor::block_on;

    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::http::{HttpTransport, Progress, Request, Response, TransportError, TransportErrorKind};
    use crate::rt::{Runtime, ThreadRuntime};
    use crate::s3::{BucketClient, Condition, Credentials, RetryOptions, S3Options, StaticCredentials};

    const LATER: Duration = Duration::from_hours(1);

    /// Name of the case, the answers of the guard, and the expected events.
    type Case = (&'static str, Vec<Permit>, Vec<Result<()>>, Vec<Event>);
    type Permit = Result<Option<Duration>>;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Event {
        Confirmed,
        Permitted,
        Sent(Option<Duration>),
    }

    /// A guard with prepared answers, and a transport with some. Both record their calls.
    #[derive(Debug, Default)]
    struct Script {
        /// Bodies of successful responses; without one, the connection is closed.
        answers: Mutex<VecDeque<&'static str>>,
        confirmations: Mutex<VecDeque<Result<()>>>,
        events: Mutex<Vec<Event>>,
        /// The attempts that follow a failure.
        failed: Mutex<Vec<bool>>,
        permits: Mutex<VecDeque<Permit>>,
    }

    impl Script {
        fn events(&self) -> MutexGuard<'_, Vec<Event>> {
            self.events.lock().unwrap()
        }
    }

    #[async_trait]
    impl Guard for Script {
        fn permit(&self, failed: Option<Duration>) -> Permit {
            self.failed.lock().unwrap().push(failed.is_some());
            self.events().push(Event::Permitted);
            self.permits.lock().unwrap().pop_front().unwrap()
        }

        async fn confirm(&self, _: Option<Duration>) -> Result<()> {
            self.events().push(Event::Confirmed);
            self.confirmations.lock().unwrap().pop_front().unwrap()
        }
    }

    #[async_trait]
    impl HttpTransport for Script {
        async fn exchange(&self, request: &Request) -> std::result::Result<Response, TransportError> {
            self.events().push(Event::Sent(request.not_after));
            if let Some(body) = self.answers.lock().unwrap().pop_front() {
                return Ok(Response::new(200, Vec::new(), Bytes::from_static(body.as_bytes())));
            }
            Err(TransportError::new(TransportErrorKind::Closed, Progress::Sent, "read the response"))
        }
    }

    fn busy<T>() -> Result<T> {
        Err(Error::new(ErrorKind::Busy, "change the store"))
    }

    fn client(
        attempts: u32,
        permits: impl Into<VecDeque<Permit>>,
        confirmations: impl Into<VecDeque<Result<()>>>,
    ) -> (Arc<Script>, BucketClient) {
        let (confirmations, permits) = (Mutex::new(confirmations.into()), Mutex::new(permits.into()));
        let script = Arc::new(Script { confirmations, permits, ..Script::default() });
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
        let attempts = NonZeroU32::new(attempts).unwrap();
        let max_backoff = Duration::from_millis(1);
        let retry = RetryOptions { attempts, max_backoff, ..RetryOptions::default() };
        let options = S3Options::new("http://localhost", "bucket").credentials(credentials).retry(retry);
        let transport: Arc<dyn HttpTransport> = Arc::<Script>::clone(&script);
        let client = BucketClient::new(runtime, transport, options).unwrap();
        let guard: Arc<dyn Guard> = Arc::<Script>::clone(&script);
        (script, client.guarded(guard))
    }

    /// Proves H169.
    #[test]
    fn an_attempt_is_sent_only_while_the_guard_permits_it() {
        use Event::{Confirmed, Permitted, Sent};
        let until = Some(LATER);
        let cases: [Case; 5] = [
            ("permitted", vec![Ok(until)], vec![], vec![Permitted, Sent(until)]),
            ("refused", vec![busy()], vec![], vec![Permitted]),
            (
                "permitted once it was confirmed",
                vec![Ok(None), Ok(until)],
                vec![Ok(())],
                vec![Permitted, Confirmed, Permitted, Sent(until)],
            ),
            (
                "refused after it was confirmed, when its turn came again",
                vec![Ok(None), busy()],
                vec![Ok(())],
                vec![Permitted, Confirmed, Permitted],
            ),
            ("not confirmed", vec![Ok(None), Ok(until)], vec![busy()], vec![Permitted, Confirmed]),
        ];
        for (what, permits, confirmations, events) in cases {
            let (script, client) = client(1, permits, confirmations);
            let deleted = block_on(client.delete("key", &Condition::Always));
            let is_sent = matches!(events.last(), Some(Sent(_)));
            let kind = if is_sent { ErrorKind::Unavailable } else { ErrorKind::Busy };
            assert_eq!(deleted.unwrap_err().kind(), kind, "{what}");
            assert_eq!(*script.events(), events, "{what}");
        }
    }

    /// Proves H169: the server called the error of one object temporary, and the process may have slept since.
    #[test]
    fn the_guard_learns_that_a_repeated_deletion_follows_a_failure() {
        let (script, client) = client(2, [Ok(Some(LATER)), Ok(Some(LATER))], []);
        let refused = "<DeleteResult><Error><Key>b</Key><Code>SlowDown</Code></Error></DeleteResult>";
        *script.answers.lock().unwrap() = [refused, "<DeleteResult></DeleteResult>"].into();
        let deleted = block_on(client.delete_many(&["a", "b"])).unwrap();
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        assert_eq!(*script.failed.lock().unwrap(), [false, true]);
    }

    #[test]
    fn a_read_request_is_sent_without_asking_the_guard() {
        let (script, client) = client(1, [], []);
        assert_eq!(block_on(client.head("key")).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(*script.events(), [Event::Sent(None)]);
    }
}

//! One attempt: waits for a slot, asks the guard, signs, sends, and counts the outcome.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Progress, Response, TransportError};
use crate::s3::call::{Call, Shared};
use crate::s3::counters::RequestOutcome;
use crate::s3::credentials::Credentials;
use crate::s3::guard::Guard;
use crate::s3::limits::Slot;
use crate::s3::place::Place;
use crate::s3::retry::{Judgement, Verdict};
use crate::trace;
use crate::wire::date::parse_http_date;
use crate::wire::sigv4::{self, EMPTY_SHA256};

/// Maximum number of confirmations of the guard in one attempt.
const CONFIRMATIONS: u32 = 3;
/// Minimum length in bytes of a body that is hashed on the blocking pool.
const HASH_INLINE_BYTES: usize = 16 << 10;

/// The outcome of an attempt.
pub(super) struct Attempt {
    pub(super) credentials: Credentials,
    pub(super) judgement: Judgement,
    pub(super) outcome: std::result::Result<Response, TransportError>,
    pub(super) place: Place,
}

/// Inputs of an attempt.
pub(super) struct Sending<'a> {
    pub(super) deadline: Duration,
    /// End of the previous attempt, if there was one.
    pub(super) failed: Option<Duration>,
    /// Guard of a changing request.
    pub(super) guard: Option<&'a dyn Guard>,
    /// The hash of the body.
    pub(super) hash: &'a str,
    /// Endpoint to which the server redirected this call.
    pub(super) place: Option<Place>,
}

/// Counts a request from its start. A dropped future counts as unanswered.
struct Counting<'a> {
    bytes_in: u64,
    bytes_out: u64,
    call: &'a Call<'a>,
    outcome: RequestOutcome,
    shared: &'a Shared,
    /// Start, by the monotonic clock.
    started: Duration,
    /// Status of the answer; 0 without one.
    status: u16,
}

impl Shared {
    /// Waits for a slot, asks the guard, signs and sends. The outer error does not come from the server.
    pub(super) async fn attempt(&self, call: &Call<'_>, sending: Sending<'_>) -> Result<Attempt> {
        let (slot, credentials, not_after) = self.permitted(call, &sending).await?;
        let place = sending.place.unwrap_or_else(|| self.place().clone());
        let left = sending.deadline.saturating_sub(self.runtime.monotonic());
        let mut request = self.signed(call, sending.hash, left, &credentials, &place);
        request.not_after = not_after;
        let mut counting = Counting::begin(self, call);
        let outcome = self.transport.exchange(&request).await;
        self.note_time(&outcome);
        let judgement = Judgement::of(&outcome, call.operation, self.now());
        counting.ended(&outcome, &judgement.verdict);
        drop(slot);
        drop(counting);
        Ok(Attempt { credentials, judgement, outcome, place })
    }

    /// Returns a slot in which the guard permits the attempt, and until when. A confirmation is a request that needs a slot of
    /// its own, so this one is released for it.
    async fn permitted(
        &self,
        call: &Call<'_>,
        sending: &Sending<'_>,
    ) -> Result<(Slot, Credentials, Option<Duration>)> {
        let late = |why: &'static str| Error::new(ErrorKind::Unavailable, "send a request").because(why);
        let deadline = sending.deadline;
        for _ in 0..=CONFIRMATIONS {
            let turn = self.before(deadline, self.turn(call)).await;
            let (slot, credentials) = turn.ok_or_else(|| late("timed out waiting for a request slot"))??;
            let Some(guard) = sending.guard else { return Ok((slot, credentials, None)) };
            if let Some(until) = guard.permit(sending.failed)? {
                return Ok((slot, credentials, Some(until)));
            }
            drop(slot);
            let confirmed = self.before(deadline, guard.confirm(sending.failed)).await;
            confirmed.ok_or_else(|| late("the server did not confirm the lease in time"))??;
        }
        Err(late("the lease expired each time before a request slot was free"))
    }

    /// Compares the date of an answer with the local wall clock.
    fn note_time(&self, outcome: &std::result::Result<Response, TransportError>) {
        let Ok(response) = outcome else { return };
        let Some(date) = response.header("date").and_then(parse_http_date) else { return };
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let ahead = match date.duration_since(self.runtime.now()) {
            Ok(ahead) => seconds(ahead),
            Err(behind) => -seconds(behind.duration()),
        };
        self.ahead.store(ahead, Ordering::Relaxed);
    }

    /// Waits until a request may be sent, and gets the credentials for it. Only connecting comes between here and the first
    /// byte, so the signature is fresh (H130).
    async fn turn(&self, call: &Call<'_>) -> Result<(Slot, Credentials)> {
        let requests = if call.operation.writes() { &self.writes } else { &self.reads };
        if let Some(rate) = requests {
            rate.take(1, &*self.runtime).await;
        }
        if let Some(rate) = self.bytes_out.as_ref().filter(|_| !call.body.is_empty()) {
            rate.take(call.body.len() as u64, &*self.runtime).await;
        }
        if let Some(rate) = &self.bytes_in {
            rate.take(0, &*self.runtime).await;
        }
        let slot = self.concurrency.enter().await;
        Ok((slot, self.keeper.current(&*self.runtime).await?))
    }

    pub(super) async fn hash(&self, body: &Bytes) -> Result<String> {
        match body.len() {
            0 => Ok(EMPTY_SHA256.to_owned()),
            1..HASH_INLINE_BYTES => Ok(sigv4::hex_sha256(body)),
            _ => {
                let body = body.clone();
                self.runtime.run_blocking("hash a body", move || Ok(sigv4::hex_sha256(&body))).await
            }
        }
    }

    /// Runs a future until the deadline (H128).
    pub(super) async fn before<T>(&self, deadline: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        // Usually the future is ready, and no timer is needed.
        if let Some(value) = future::poll_immediate(&mut future).await {
            return Some(value);
        }
        let left = deadline.saturating_sub(self.runtime.monotonic());
        match future::select(future, self.runtime.sleep(left)).await {
            Either::Left((value, _)) => Some(value),
            Either::Right(_) => None,
        }
    }
}

impl<'a> Counting<'a> {
    fn begin(shared: &'a Shared, call: &'a Call<'a>) -> Self {
        let (outcome, started) = (RequestOutcome::Broken, shared.runtime.monotonic());
        let bytes_out = call.body.len() as u64;
        Self { bytes_in: 0, bytes_out, call, outcome, shared, started, status: 0 }
    }

    fn ended(&mut self, outcome: &std::result::Result<Response, TransportError>, verdict: &Verdict) {
        self.outcome = match outcome {
            Ok(response) => {
                self.bytes_in = response.body.len() as u64;
                self.status = response.status;
                match verdict {
                    Verdict::Answer => RequestOutcome::Answered,
                    Verdict::Later { throttled: true, .. } => RequestOutcome::Throttled,
                    _ => RequestOutcome::Refused,
                }
            }
            Err(error) if error.progress == Progress::NotSent => {
                self.bytes_out = 0;
                RequestOutcome::NotSent
            }
            Err(_) => RequestOutcome::Broken,
        };
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        let Self { bytes_in, bytes_out, call, outcome, shared, started, status } = self;
        match outcome {
            RequestOutcome::Throttled => shared.concurrency.throttled(shared.runtime.monotonic()),
            RequestOutcome::Answered => shared.concurrency.answered(),
            _ => {}
        }
        if let Some(rate) = &shared.bytes_in {
            rate.owe(*bytes_in, &*shared.runtime);
        }
        shared.counters.add(call.operation, *outcome, *bytes_in, *bytes_out);
        trace::attempt(&trace::Attempt {
            bytes_in: *bytes_in,
            bytes_out: *bytes_out,
            elapsed: shared.runtime.monotonic().saturating_sub(*started),
            operation: call.operation.word(),
            outcome: outcome.word(),
            status: *status,
        });
    }
}

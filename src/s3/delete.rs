//! Bulk deletion.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::Refusal;
use crate::s3::call::Call;
use crate::s3::checksum::base64_md5;
use crate::s3::client::BucketClient;
use crate::s3::counters::Operation;
use crate::s3::object::{Deletion, from_answer, from_document, not_there};
use crate::s3::options::RetryOptions;
use crate::s3::retry::{longest, passes, pause, wait_of};
use crate::wire::s3_xml::{ErrorBody, parse_deleted, write_delete};

/// Maximum number of objects of a request.
const MOST_KEYS: usize = 1000;

impl BucketClient {
    /// Deletes any number of objects in requests of up to 1000, with one result for each, in the given order. Deleting a
    /// missing object succeeds.
    ///
    /// # Errors
    /// The outer error: a request failed, and any of the objects may be deleted; `Unsupported` if the server lacks the operation.
    ///
    /// # Cancel safety
    /// A dropped future may delete any of the objects later.
    pub async fn delete_many(&self, keys: &[&str]) -> Result<Vec<Result<Deletion>>> {
        let mut results = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MOST_KEYS) {
            let found = self.delete_batch(keys).await?;
            results.extend(keys.iter().filter_map(|key| found.get(key).cloned()));
        }
        Ok(results)
    }

    /// Deletes one batch, and repeats the objects whose error the server calls temporary (H116).
    async fn delete_batch<'a>(&self, keys: &[&'a str]) -> Result<BTreeMap<&'a str, Result<Deletion>>> {
        let (options, runtime) = (&self.shared.options.retry, &*self.shared.runtime);
        let deadline = self.shared.deadline(Duration::ZERO);
        let (mut results, mut left) = (BTreeMap::new(), keys.to_vec());
        left.sort_unstable();
        left.dedup();
        let (mut client, mut failures, mut deletion) = (self.clone(), 0, Deletion::Final);
        loop {
            let (refused, unsettled) = client.delete_request(&left).await?;
            client = self.after_failure();
            if unsettled && !mutated!("batch-delete-without-an-answer-is-final") {
                // The request names all remaining objects, whatever is answered later.
                deletion = Deletion::InDoubt;
            }
            let mut refused: BTreeMap<_, _> = refused.into_iter().collect();
            let (mut again, mut throttled) = (Vec::new(), false);
            for key in left {
                let Some(body) = refused.remove(key).filter(|body| body.code != "NoSuchKey") else {
                    results.insert(key, Ok(deletion));
                    continue;
                };
                if let Some(deadline) = passes(&body.code) {
                    throttled |= deadline;
                    again.push(key);
                }
                results.insert(key, Err(refused_key(key, body, deletion, options)));
            }
            if let Some((key, body)) = refused.pop_first() {
                return Err(refused_key(&key, body, deletion, options));
            }
            failures += 1;
            if again.is_empty() || failures >= options.attempts.get() {
                return Ok(results);
            }
            let rest = pause(failures - 1, throttled, None, options, runtime).unwrap_or_default();
            let rest = if self.shared.budget.take() { rest } else { longest(options, runtime) };
            if runtime.monotonic() + rest >= deadline {
                return Ok(results);
            }
            if throttled {
                self.shared.concurrency.throttled(runtime.monotonic());
            }
            runtime.sleep(rest).await;
            left = again;
        }
    }

    /// The errors by key, and `true` if the same request may still be executed once more.
    async fn delete_request(&self, keys: &[&str]) -> Result<(Vec<(String, ErrorBody)>, bool)> {
        let action = "delete objects";
        let subject = keys.first().copied().unwrap_or_default();
        let document =
            write_delete(keys.iter().copied()).map_err(|error| from_document(error, action, subject))?;
        let mut call = Call::new(Operation::DeleteMany, "POST", None);
        call.query = &[("delete", "")];
        call.header("content-type", "application/xml");
        // The one operation for which all servers require it (D12).
        call.header("content-md5", base64_md5(document.as_bytes()));
        call.body = Bytes::from(document);
        let answer = self.call(action, &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, action, subject));
        }
        match parse_deleted(&answer.response.body) {
            Ok(answered) => Ok((answered.errors, answer.is_ambiguous())),
            Err(error) => Err(from_answer(&answer, error, action, subject)),
        }
    }
}

/// The error for an object that the server did not delete. If an earlier request may still do so, the error claims nothing else (I6).
fn refused_key(key: &str, body: ErrorBody, deletion: Deletion, options: &RetryOptions) -> Error {
    let wait = wait_of(passes(&body.code) == Some(true), None, options);
    let is_denied = body.code == "AccessDenied" && deletion == Deletion::Final;
    let kind = if is_denied { ErrorKind::Denied } else { ErrorKind::Unavailable };
    let refusal = Refusal { code: body.code, message: body.message, status: 200, request_id: None };
    let error = Error::new(kind, "delete").on(key).because(refusal);
    match wait {
        Some(wait) => error.retry_in(wait),
        None => error,
    }
}

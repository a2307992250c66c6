//! A client for S3: objects in one bucket, on any server that speaks the protocol.
//!
//! [`S3Client`] has a method for each operation. All of them go through one loop, in `client`, which waits for its turn,
//! signs, sends, judges the outcome and tries again; no other layer repeats anything (H134).
//!
//! # What may be repeated
//! Bodies are buffers and every operation can be sent again. But a request that got no answer may have been executed: such an
//! outcome is *ambiguous* and is remembered (I6). A condition that fails after an ambiguous attempt may have met that very
//! attempt, so the object is read back and compared before anybody is told that somebody else was faster (H114).
//!
//! | outcome | what is done |
//! |---|---|
//! | 2xx | done |
//! | 412, 416, 304; 404 with the code of an object that is not there | an answer too |
//! | no connection; 408, 429, 500, 502, 503, 504; codes that ask for patience | again, later, by full jitter; fewer requests at once |
//! | an old connection that was dead | again at once, without counting |
//! | the clock is wrong, keys expired or replaced, another region | mended, and again at once |
//! | 400, 403 or 404 without a code | again once |
//! | a server or certificate that is not the right one; anything else | an error |
//!
//! Tries end with the patience of the operation or with the number of attempts. All operations of a client share a budget of
//! retries, which answers refill; while it is empty, every pause is nearly the longest one.

mod attempt;
mod bucket;
mod capabilities;
mod checksum;
mod client;
mod counters;
mod credentials;
mod delete;
mod guard;
mod limits;
mod list;
mod multipart;
mod object;
mod options;
mod place;
mod probe;
mod retry;
mod sign;

use std::fmt;

pub(crate) use guard::Guard;

pub use capabilities::{Risk, S3Capabilities, Support};
pub use client::{ClockOffset, S3Client};
pub use counters::{Counters, Operation, OperationCount, Outcome};
pub use credentials::{
    CredentialProvider, Credentials, EnvironmentCredentials, ProfileCredentials, StaticCredentials,
};
pub use list::{ListRequest, ListedPage};
pub use object::{Condition, Deletion, Head};
pub use options::{Addressing, Encryption, RateLimits, RetryOptions, S3Options};
pub use sign::PresignedMethod;

/// What a server answered when it did not do what it was asked. It is the source of errors of this room.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The code in the body, such as `AccessDenied`; empty if there was none.
    pub code: String,
    /// The text in the body.
    pub message: String,
    /// What the operator of the server finds the request by.
    pub request_id: Option<String>,
    /// The status.
    pub status: u16,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        for (before, text) in [(" ", self.code.as_str()), (": ", self.message.as_str())] {
            if !text.is_empty() {
                write!(f, "{before}{text}")?;
            }
        }
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

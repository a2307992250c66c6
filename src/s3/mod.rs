//! A client for S3: objects in one bucket, on any server that speaks the protocol.
//!
//! An [`S3Client`] is made from [`S3Options`], tests its server, and counts requests; the backend sends them. Every request goes through one loop, in `client`, which waits for a slot,
//! signs, sends, judges the response and retries; no other layer retries (H134).
//!
//! # Retries
//! Bodies are buffers, so every request can be sent again. But a request without an answer may have been executed: such an
//! outcome is *ambiguous*, and the loop remembers it (I6). A condition that fails after an ambiguous attempt may have met that very
//! attempt, so the client reads the object back and compares it before it reports a conflict (H114).
//!
//! | response | action |
//! |---|---|
//! | 2xx | done |
//! | 412, 416, 304; 404 with the error code of a missing object | returned as an answer |
//! | no connection; 408, 429, 500, 502, 503, 504; throttling codes | retried after a backoff with full jitter, with lower concurrency |
//! | a reused connection that turned out dead | retried at once, not counted as an attempt |
//! | clock skew, expired or replaced keys, another region | corrected and retried at once |
//! | 400, 403 or 404 without an error code | retried once |
//! | a wrong server or certificate; anything else | returned as an error |
//!
//! Retries end at the deadline of the call or at the maximum number of attempts. All operations of a client share a retry
//! budget, which answers refill; while it is empty, every backoff is close to the maximum.

mod attempt;
mod bucket;
mod call;
mod capabilities;
mod checksum;
pub(crate) mod client;
mod counters;
pub(crate) mod credentials;
mod delete;
mod guard;
mod handle;
mod limits;
pub(crate) mod list;
mod multipart;
pub(crate) mod object;
mod options;
mod partition;
mod place;
mod probe;
mod retry;
pub(crate) mod sign;

use std::fmt;

pub(crate) use guard::Guard;

pub(crate) use crate::wire::s3_xml::ListedObject;
pub use capabilities::{Risk, S3Capabilities, Support};
pub(crate) use client::{BucketClient, ClockOffset};
pub use counters::{Operation, RequestCount, RequestOutcome, RequestStats};
pub use credentials::{
    AssumeRoleCredentials, ContainerCredentials, CredentialProvider, Credentials, DefaultCredentials,
    EnvironmentCredentials, InstanceCredentials, ProfileCredentials, StaticCredentials,
    WebIdentityCredentials,
};
pub use handle::S3Client;
pub(crate) use list::{ListRequest, ListedPage};
pub(crate) use object::{Condition, Deletion, Head, Stored};
pub use options::{Addressing, Encryption, RateLimits, RetryOptions, S3Options};
pub(crate) use partition::aws_domain;

/// An error answer of a server. It is the source of the errors of this module.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Refusal {
    /// The error code in the body, such as `AccessDenied`; empty if there was none.
    pub code: String,
    /// The message in the body.
    pub message: String,
    /// Identifies the request to the operator of the server.
    pub request_id: Option<String>,
    /// The HTTP status.
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

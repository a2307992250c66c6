//! The lease as it was read from the server.

use std::time::Duration;

use crate::format::larder::lease_record::Record;
use crate::s3::Head;

/// The lease as it was read.
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) record: Record,
    pub(super) tag: String,
}

impl Found {
    /// Time since the last renewal, by the clock of the server; `None` if the answer lacks a time.
    pub(super) fn age(&self) -> Option<Duration> {
        self.head.age()
    }
}

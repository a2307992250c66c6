//! The lease as it was read from the server.

use std::time::Duration;

use crate::format::larder::lease_record::Record;
use crate::s3::Head;

/// A lease as it was found.
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) record: Record,
    pub(super) tag: String,
}

impl Found {
    /// How long the server has seen no renewal, by its own clock. `None` if it does not say.
    pub(super) fn age(&self) -> Option<Duration> {
        let (answered, renewed) = (self.head.answered?, self.head.last_modified?);
        Some(answered.duration_since(renewed).unwrap_or_default())
    }
}

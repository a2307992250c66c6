//! The lease as it was read from the server.

use crate::format::larder::lease_record::Record;
use crate::s3::Head;

/// The lease as it was read.
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) record: Record,
    pub(super) tag: String,
}

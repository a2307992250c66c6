//! Metrics of the facade crate `metrics`.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use crate::trace::{Attempt, Lease};

pub(super) fn operation(operation: &'static str, outcome: &'static str, elapsed: Duration) {
    counter!("larder_operations", "operation" => operation, "outcome" => outcome).increment(1);
    histogram!("larder_operation_seconds", "operation" => operation, "outcome" => outcome).record(elapsed);
}

pub(super) fn attempt(attempt: &Attempt) {
    let Attempt { bytes_in, bytes_out, elapsed, operation, outcome, status } = *attempt;
    let status = status.to_string();
    counter!("larder_s3_requests", "operation" => operation, "outcome" => outcome, "status" => status)
        .increment(1);
    counter!("larder_s3_bytes_in", "operation" => operation).increment(bytes_in);
    counter!("larder_s3_bytes_out", "operation" => operation).increment(bytes_out);
    histogram!("larder_s3_request_seconds", "operation" => operation).record(elapsed);
}

pub(super) fn retry(operation: &'static str) {
    counter!("larder_s3_retries", "operation" => operation).increment(1);
}

pub(super) fn lease(place: &str, event: Lease) {
    match event {
        Lease::Taken | Lease::Renewed => gauge!("larder_lease_held", "place" => place.to_owned()).set(1.0),
        Lease::Lost | Lease::Released => gauge!("larder_lease_held", "place" => place.to_owned()).set(0.0),
        Lease::NotRenewed | Lease::Overdue => {
            counter!("larder_lease_troubles", "place" => place.to_owned()).increment(1);
        }
    }
}

pub(crate) fn cache_hit() {
    counter!("larder_cache_hits").increment(1);
}

pub(crate) fn cache_miss() {
    counter!("larder_cache_misses").increment(1);
}

/// Counts what a backup did, when it ends.
pub(crate) fn backed_up(read: u64, written: u64, new: u64, known: u64, reused: u64) {
    counter!("larder_backup_bytes_read").increment(read);
    counter!("larder_backup_bytes_written").increment(written);
    for (result, chunks) in [("new", new), ("known", known), ("reused", reused)] {
        counter!("larder_backup_chunks", "result" => result).increment(chunks);
    }
}

/// Counts a restored chunk or hole.
pub(crate) fn restored(bytes: u64) {
    counter!("larder_restore_bytes").increment(bytes);
    counter!("larder_restore_chunks").increment(1);
}

/// Counts a batch of chunks that a collection removed.
pub(crate) fn collected(bytes: u64, chunks: u64) {
    counter!("larder_gc_bytes_removed").increment(bytes);
    counter!("larder_gc_chunks_removed").increment(chunks);
}

/// Counts a chunk that a sync sent.
pub(crate) fn sent(bytes: u64) {
    counter!("larder_sync_bytes_sent").increment(bytes);
    counter!("larder_sync_chunks", "result" => "sent").increment(1);
}

/// Counts a chunk that a sync found at its target.
pub(crate) fn synced() {
    counter!("larder_sync_chunks", "result" => "reused").increment(1);
}

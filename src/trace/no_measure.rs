//! The functions of `measure`, without feature `metrics`.

use std::time::Duration;

use crate::trace::{Attempt, Lease};

pub(super) fn operation(_: &'static str, _: &'static str, _: Duration) {}

pub(super) fn attempt(_: &Attempt) {}

pub(super) fn retry(_: &'static str) {}

pub(super) fn lease(_: &str, _: Lease) {}

pub(crate) fn cache_hit() {}

pub(crate) fn cache_miss() {}

pub(crate) fn backed_up(_: u64, _: u64, _: u64, _: u64, _: u64) {}

pub(crate) fn restored(_: u64) {}

pub(crate) fn collected(_: u64, _: u64) {}

pub(crate) fn sent(_: u64) {}

pub(crate) fn synced() {}

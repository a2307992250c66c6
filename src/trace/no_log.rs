//! The functions of `log`, without feature `tracing`.

#![allow(clippy::unused_self, reason = "the signatures are those of `log`")]

use std::fmt;
use std::time::Duration;

use crate::trace::{Attempt, Facts, Lease, Operation, Subject};

#[derive(Clone, Debug)]
pub(super) struct Span;

impl Span {
    pub(super) fn begin(_: Operation, _: Option<&str>, _: Subject<'_>) -> Self {
        Self
    }

    pub(super) fn name_snapshot(&self, _: &dyn fmt::Display) {}

    pub(super) fn end(&self, _: Operation, _: Duration, _: &Facts) {}

    pub(super) fn fail(&self, _: Operation, _: Duration, _: &str, _: bool, _: &str) {}

    pub(super) fn dropped(&self, _: Operation, _: Duration) {}
}

pub(super) fn run<F: Future>(_: Option<Span>, part: F) -> impl Future<Output = F::Output> + use<F> {
    part
}

pub(super) fn archive(_: Option<&Span>, _: &str) -> Span {
    Span
}

pub(super) fn step(_: &str) {}

pub(super) fn damage(_: &dyn fmt::Display, _: &str) {}

pub(super) fn lease(_: &str, _: u64, _: Lease) {}

pub(super) fn attempt(_: &Attempt) {}

pub(super) fn call<F: Future>(
    _: &'static str,
    _: &str,
    _: Option<&str>,
    request: F,
) -> impl Future<Output = F::Output> + use<F> {
    request
}

pub(super) fn begin_attempt(_: u32) {}

pub(super) fn warn_of_retry(_: &'static str, _: u32, _: Duration, _: u64, _: &dyn fmt::Display) {}

pub(super) fn retry(_: &'static str, _: u32, _: Duration, _: &dyn fmt::Display) {}

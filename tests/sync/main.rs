//! Copies of snapshots between stores.

#[path = "../support/mod.rs"]
mod support;

mod basic;

//! Verification: what is found, recorded and repaired.

#[path = "../support/mod.rs"]
mod support;

mod basic;
mod bucket;
mod damage;

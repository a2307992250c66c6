//! Copies of snapshots between stores.

mod basic;
mod resume;

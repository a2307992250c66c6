//! Copies of snapshots between stores.

mod basic;
mod reencrypt;
mod resume;

//! The store engine for deduplicating backups.

pub mod backend;
pub mod chunker;
pub mod error;
pub mod format;
pub mod retention;
pub mod rt;
pub mod store;

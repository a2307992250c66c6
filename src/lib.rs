//! The store engine for deduplicating backups.

pub mod backend;
pub mod error;
pub mod format;
pub mod rt;

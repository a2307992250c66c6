//! The store engine for deduplicating backups.

pub mod error;
pub mod format;

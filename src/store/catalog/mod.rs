//! The names in a store: namespaces, groups and snapshots with their metadata, and their deletion.

pub(in crate::store) mod delete;
pub(in crate::store) mod list;
pub(in crate::store) mod metadata;

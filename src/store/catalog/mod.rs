//! The names in a store: namespaces, groups and snapshots with their metadata, and their deletion.

pub(super) mod delete;
pub(super) mod list;
pub(super) mod metadata;
pub(super) mod scope;

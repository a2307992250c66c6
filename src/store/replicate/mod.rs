//! Snapshots in their stored form: read from one store, published in another.

pub(super) mod import;

//! Snapshots in their stored form: read from one store, published in another.

pub(in crate::store) mod source;
pub(in crate::store) mod target;

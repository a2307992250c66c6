//! How snapshots are written: the builder of a backup, its archives, and the publication of its manifest.

pub(in crate::store) mod builder;
pub(in crate::store) mod image;
pub(in crate::store) mod pipeline;
pub(in crate::store) mod publish;
pub(in crate::store) mod random_image;
pub(in crate::store) mod stream;
pub(in crate::store) mod writer;

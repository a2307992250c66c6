//! How snapshots are written: the builder of a backup, its archives, and the publication of its manifest.

pub(super) mod builder;
mod chunk_buffer;
mod digester;
pub(super) mod dirty_map;
pub(super) mod file_source;
pub(super) mod finish;
pub(super) mod group;
pub(super) mod image;
pub(super) mod parts;
pub(super) mod pipeline;
pub(super) mod random_image;
pub(super) mod session;
pub(super) mod stream;
pub(super) mod writer;

//! How chunks are removed.

//! Restores of trees.

pub(super) mod target;

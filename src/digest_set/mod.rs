//! Sets of digests that take little memory.

mod mark_set;
mod sorted_set;

pub(crate) use mark_set::{MarkSet, MarkSetBuilder, Shard, mark_of};
pub(crate) use sorted_set::SortedSet;

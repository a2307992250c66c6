//! Backups of trees.
//!
//! # Forms
//! | form | archives | made by |
//! |---|---|---|
//! | split (default) | `NAME.ppxar` has the contents of files, `NAME.mpxar` the entries | [`TreeBuilder::split`] |
//! | unified | `NAME.pxar` has both; `catalog.pcat1` names the entries of all unified trees of the snapshot | [`TreeBuilder::unified`] |
//!
//! Only the split form detects changes: with a base, files whose metadata are those of the base are not opened ([`reuse`]).
//!
//! # Order
//! ```text
//! walk (directories listed ahead) → unchanged? → files opened ahead → queue of the unchanged → entries and contents → chunks
//! ```
//! 1. [`walk`] yields the entries in the order of the archive, and lists the directories that come next in tasks of their own.
//! 2. [`ahead`] opens the files that come next, and reads small ones, in groups, within a bound on their number and bytes.
//! 3. [`archive`] encodes entries and puts contents into the buffer of the current chunk; a stream is read right into it.
//! 4. Chunks are digested, compressed and stored by the parts of an archive in [`store`](crate::store), in tasks of their own.
//!
//! A drop at any point leaves no archive in the snapshot. The catalog is kept in memory, about 30 bytes an entry, and is written when the
//! backup finishes, because there is one for all trees.

mod ahead;
mod archive;
mod base;
mod builder;
mod contents;
mod findings;
mod listed;
mod reuse;
mod summary;
mod walk;
mod wording;

pub use builder::TreeBuilder;
pub use findings::TreeEvent;
pub use summary::{TreeCounts, TreeSummary};

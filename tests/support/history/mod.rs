//! Random histories: who does what to a store is decided by a seed, and what the store should have is kept beside it.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod damage;
mod keyed;
mod life;
mod make;
mod model;
mod place;
mod remove;
mod side;
mod transfer;
mod trees;
mod world;

pub use life::live;
pub use side::side_by_side;

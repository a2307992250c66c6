//! What is kept on a local disk for a store that is far away. All of it may be lost at any time, at the price of time and
//! requests only (I5, H74).

pub(crate) mod cache;

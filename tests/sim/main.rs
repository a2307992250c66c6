//! Runtimes, and whole histories of stores in virtual time.

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "testing")]
mod histories;
mod runtime;
#[cfg(all(feature = "s3", feature = "testing"))]
mod storm;

//! Runtimes, and whole histories of stores in virtual time.

#[cfg(feature = "testing")]
mod histories;
mod runtime;
#[cfg(all(feature = "s3", feature = "testing"))]
mod storm;

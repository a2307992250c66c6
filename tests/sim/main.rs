//! Runtimes, and whole histories of stores in virtual time.

#[cfg(feature = "testing")]
mod histories;
#[cfg(all(feature = "s3", feature = "testing", feature = "tokio"))]
mod load;
mod runtime;
#[cfg(all(feature = "s3", feature = "testing"))]
mod storm;

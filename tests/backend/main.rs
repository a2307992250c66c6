//! Backends: the contract, the filesystem below it, and what is left after a crash.

#[cfg(feature = "testing")]
mod conformance;
#[cfg(feature = "testing")]
mod crash;
mod filesystem;
#[cfg(feature = "testing")]
mod filesystem_limits;
#[cfg(all(feature = "object_store", feature = "testing"))]
mod object_store;
#[cfg(feature = "testing")]
mod packs;
#[cfg(feature = "testing")]
mod publication;
#[cfg(all(feature = "s3", feature = "testing"))]
mod s3;

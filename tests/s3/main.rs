//! Stores in buckets, and the client below them.

#[cfg(feature = "testing")]
mod chunks;
mod client;
mod compat;
mod doubts;
mod endless;
mod faults;
#[cfg(feature = "testing")]
mod late;
#[cfg(feature = "testing")]
mod local;
#[cfg(feature = "testing")]
mod markers;
#[cfg(feature = "testing")]
mod metadata;
#[cfg(feature = "testing")]
mod names;
mod open;
mod operations;
#[cfg(feature = "testing")]
mod outage;
#[cfg(feature = "testing")]
mod ownership;
#[cfg(feature = "tls")]
mod proxy;
#[cfg(feature = "testing")]
mod quota;
#[cfg(feature = "testing")]
mod rights;
#[cfg(feature = "testing")]
mod suspended;
#[cfg(feature = "testing")]
mod trees;

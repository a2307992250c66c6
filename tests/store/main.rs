//! The store as a whole: backups, restores, names, retention, moves, and what other processes do meanwhile.

mod backup;
mod compat;
mod convenience;
#[cfg(feature = "testing")]
mod dropped;
mod encryption;
mod keys;
#[cfg(feature = "testing")]
mod leftovers;
#[cfg(all(feature = "s3", feature = "testing"))]
mod lifecycle;
#[cfg(all(feature = "s3", feature = "testing"))]
mod local_state;
#[cfg(feature = "testing")]
mod pack_faults;
#[cfg(feature = "testing")]
mod packs;
#[cfg(feature = "testing")]
mod processes;
#[cfg(feature = "testing")]
mod prune;
#[cfg(feature = "testing")]
mod relocate;
#[cfg(feature = "testing")]
mod restore;
#[cfg(feature = "testing")]
mod safeguards;
#[cfg(feature = "testing")]
mod steps;
#[cfg(feature = "testing")]
mod stuck;
mod unreadable;

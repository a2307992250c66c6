//! Collections of garbage: what stays, what goes, and what stops them.

mod basic;
#[cfg(all(feature = "s3", feature = "testing"))]
mod bucket;
#[cfg(feature = "testing")]
mod crash;
#[cfg(feature = "testing")]
mod damage;
#[cfg(feature = "testing")]
mod disk;
#[cfg(all(feature = "s3", feature = "testing"))]
mod lease;
#[cfg(feature = "testing")]
mod pack_classes;
#[cfg(feature = "testing")]
mod pack_index;
#[cfg(feature = "testing")]
mod pack_plan;
#[cfg(feature = "testing")]
mod pack_races;
#[cfg(feature = "testing")]
mod packs;
#[cfg(feature = "testing")]
mod races;
#[cfg(feature = "testing")]
mod time;
#[cfg(all(feature = "s3", feature = "testing"))]
mod turns;

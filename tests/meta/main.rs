//! The sources, the manual, and the servers that other tests speak to.

#[cfg(all(feature = "master-key", feature = "s3", feature = "testing"))]
#[path = "../fuzz/bodies/mod.rs"]
mod bodies;
mod fault_server;
#[cfg(all(feature = "master-key", feature = "s3", feature = "testing"))]
mod fuzz_bodies;
mod hazards;
mod manual;
mod mutations;
mod rooms;
mod s3_server;
mod surface;

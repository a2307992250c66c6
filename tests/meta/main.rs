//! The sources, the manual, and the servers that other tests speak to.

#[cfg(feature = "s3")]
#[path = "../fuzz/bodies.rs"]
mod bodies;
mod fault_server;
#[cfg(feature = "s3")]
mod fuzz_bodies;
mod hazards;
mod manual;
mod mutations;
mod rooms;
mod s3_server;
mod surface;

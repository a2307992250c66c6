//! Processes and machines that stop in the middle of an operation.

mod bucket;
mod disk;
mod errors;
mod injection;
mod kills;
mod operations;
mod scene;
mod steps;

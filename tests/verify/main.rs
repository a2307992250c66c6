//! Verification: what is found, recorded and repaired.

mod basic;
mod bucket;
mod damage;
mod matrix;
mod resume;

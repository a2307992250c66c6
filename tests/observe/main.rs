//! What an operator sees of a store: JSON and words of reports, logs, and metrics.

mod collect;
mod nightly;
mod reports;
mod secrets;

//! What an operator sees of a store: JSON and words of reports.

mod reports;

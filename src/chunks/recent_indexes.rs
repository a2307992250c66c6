//! Indexes that this process stored recently.
//!
//! A listing may not show them yet (H13), and their pins are released when the snapshot is finished. So the collector adds them to the listed ones,
//! whichever handle of the store they came through.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::format::layout::Key;

/// Maximum lag of a listing.
const LAG: Duration = Duration::from_hours(1);

/// Keys, and the time of each by the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct RecentIndexes(Mutex<HashMap<Key, Duration>>);

impl RecentIndexes {
    /// Records that an index was stored.
    pub(crate) fn note(&self, key: &Key, now: Duration) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        published.retain(|_, at| now.saturating_sub(*at) < LAG);
        published.insert(key.clone(), now);
    }

    /// The recently stored indexes.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

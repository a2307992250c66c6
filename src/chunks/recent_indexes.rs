//! Which indexes this process stored a short while ago.
//!
//! A listing may not show them yet (H13), and pins are given up when a snapshot is finished. So whoever marks adds them to what was listed,
//! through whichever opening of the store they were stored.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::format::layout::Key;

/// How long a listing may lag behind.
const LAG: Duration = Duration::from_hours(1);

/// Keys, and since when, by the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct RecentIndexes(Mutex<HashMap<Key, Duration>>);

impl RecentIndexes {
    /// An index was stored.
    pub(crate) fn note(&self, key: &Key, now: Duration) {
        let mut published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        published.retain(|_, at| now.saturating_sub(*at) < LAG);
        published.insert(key.clone(), now);
    }

    /// The indexes that were stored of late.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

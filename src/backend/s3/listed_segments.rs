//! Listings of index segments, completed by the lease.

use std::collections::HashSet;

use futures::stream::{self, StreamExt as _};

use crate::backend::s3::S3Backend;
use crate::backend::{Backend as _, ListEntry, ListQuery};
use crate::error::{ErrorKind, Result};
use crate::format::layout::Key;

/// Number of segments looked up at the same time.
const LOOKS_IN_FLIGHT: usize = 8;

impl S3Backend {
    /// Adds the segments to the last page of a listing that it lacks although they exist (H13).
    pub(super) async fn add_recent_segments(
        &self,
        query: &ListQuery,
        is_only_page: bool,
        entries: &mut Vec<ListEntry>,
    ) -> Result<()> {
        let after = query.after.as_ref().map(Key::path);
        // The pages before ended at an unknown key below the first one of this page.
        let first = if is_only_page { None } else { entries.first().map(ListEntry::path) };
        let listed: HashSet<_> = entries.iter().map(ListEntry::path).collect();
        let keys = self.lease.segments_to_look_for().await?.into_iter().map(Key::Segment);
        let keys = keys.filter(|key| {
            let path = Some(key.path());
            path > after && path > first && path.is_some_and(|path| !listed.contains(&path))
        });
        let mut looks =
            stream::iter(keys).map(|key| async move { self.head(&key).await }).buffered(LOOKS_IN_FLIGHT);
        while let Some(found) = looks.next().await {
            match found {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                found => entries.push(ListEntry::Object(found?)),
            }
        }
        entries.sort_by_cached_key(ListEntry::path);
        Ok(())
    }
}

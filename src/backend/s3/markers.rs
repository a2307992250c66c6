//! Folder markers: empty objects whose keys end in `/`, which consoles and some tools make for folders.
//!
//! They are not part of a store. Listings do not show them, and a group, a snapshot or a namespace that contains only markers does not exist.
//! The namespace markers of PBS are named `.namespace` and are objects like others.
//!
//! A folded listing shows a folder even if it contains only its marker. So after the first marker was seen in a store, each folder of such a
//! listing costs a request of its own; a store without markers has no such cost. Tools that make markers make one for each folder, and the
//! marker of the listed folder is on the first page. A delete of the last object of a folder also deletes the known markers in it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::s3::lease::Care;
use crate::backend::s3::place::is_marker;
use crate::backend::s3::{IN_FLIGHT, S3Backend};
use crate::backend::{ListEntry, Removal};
use crate::error::Result;
use crate::format::layout::{Key, Prefix};
use crate::s3::{Condition, ListRequest, ListedObject};

/// Maximum number of known markers. Others are hidden too, but never deleted.
const REMEMBERED: usize = 100_000;
/// Number of keys of a folder that one request lists.
const LOOKED_AT: u16 = 20;

/// The known markers, by their keys in the bucket.
#[derive(Debug, Default)]
pub(super) struct Markers {
    seen: Mutex<BTreeSet<String>>,
}

impl Markers {
    pub(super) fn note(&self, key: &str) {
        let mut seen = self.seen();
        if seen.len() < REMEMBERED {
            seen.insert(key.to_owned());
        }
    }

    fn is_empty(&self) -> bool {
        self.seen().is_empty()
    }

    fn contains(&self, key: &str) -> bool {
        self.seen().contains(key)
    }

    fn below(&self, prefix: &str) -> Vec<String> {
        let seen = self.seen();
        seen.range(prefix.to_owned()..).take_while(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn forget(&self, key: &str) {
        self.seen().remove(key);
    }

    fn seen(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Every change is a single insertion or removal.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl S3Backend {
    /// Removes folders that contain only markers from a folded listing.
    pub(super) async fn without_ghosts(&self, entries: Vec<ListEntry>) -> Result<Vec<ListEntry>> {
        if self.markers.is_empty() {
            return Ok(entries);
        }
        let kept = stream::iter(entries).map(|entry| async move {
            let is_there = match &entry {
                ListEntry::Prefix(prefix) => self.has_content(self.render_prefix(prefix)).await?,
                _ => true,
            };
            Ok::<_, crate::error::Error>(is_there.then_some(entry))
        });
        kept.buffered(IN_FLIGHT).try_filter_map(|entry| async move { Ok(entry) }).try_collect().await
    }

    /// Returns `true` if a prefix has an object that is not a marker.
    async fn has_content(&self, prefix: String) -> Result<bool> {
        let mut request = ListRequest::new(prefix);
        request.max_keys = Some(LOOKED_AT);
        let is_content = |object: &ListedObject| !is_marker(&object.key, object.size);
        Ok(self.client.find_listed(&request, is_content).await?.is_some())
    }

    /// Deletes the markers of folders from which an object was deleted. A marker that remains does no harm.
    pub(super) async fn remove_markers(&self, removals: &[Removal]) {
        if self.markers.is_empty() {
            return;
        }
        let mut markers = BTreeSet::new();
        for Removal { key, .. } in removals.iter().filter(|removal| removal.key.exposed().is_content()) {
            // These are deleted last: their folders have no other objects.
            let emptied = match key.exposed() {
                Key::Owner(group) => {
                    let prefix = Prefix::Group(group.clone());
                    Some(if key.is_content() { prefix } else { Prefix::Enclosed(Box::new(prefix)) })
                }
                _ => key.marked_namespace(),
            };
            if let Some(prefix) = emptied {
                markers.extend(self.markers.below(&self.render_prefix(&prefix)));
            } else {
                let rendered = self.render(key);
                let folder = rendered.rfind('/').map(|at| &rendered[..=at]);
                markers.extend(folder.filter(|folder| self.markers.contains(folder)).map(str::to_owned));
            }
        }
        for marker in markers {
            let attempt = self.lease.attempt(Care::Confirmed);
            let deleted = attempt.client().delete(&marker, &Condition::Always).await;
            // A late deletion of a marker does no harm either.
            if attempt.finish(deleted).is_ok() {
                self.markers.forget(&marker);
            }
        }
    }
}

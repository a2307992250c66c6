//! Folder markers: empty objects whose keys end in `/`, which consoles and some tools make for folders.
//!
//! They are no part of a store. Listings do not show them, and a group, a snapshot or a namespace of which nothing but markers is left
//! is not there; the markers of PBS for namespaces are called `.namespace` and are objects like others.
//!
//! A listing that is folded shows a folder whether there is more in it than its marker or not. So once a marker was seen in a store, each
//! folder of such a listing is looked at by a request of its own; in a store without markers, nothing is. Tools that make markers make
//! one for each folder, and the one of the folder that is listed is on the first page. Whoever deletes the last object of a folder deletes
//! the markers in it too, as far as they were seen.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::s3::lease::Care;
use crate::backend::s3::place::is_marker;
use crate::backend::s3::{IN_FLIGHT, S3Backend};
use crate::backend::{ListEntry, Removal};
use crate::error::Result;
use crate::format::layout::{Key, Prefix};
use crate::s3::{Condition, ListRequest};

/// How many markers are remembered. Those beyond are hidden all the same, and stay.
const REMEMBERED: usize = 100_000;
/// How many keys of a folder are asked for at once.
const LOOKED_AT: u16 = 20;

/// The markers that were seen, by their keys in the bucket.
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
    /// Takes folders out of a folded listing in which there is nothing but markers.
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

    /// Returns `true` if there is anything but markers below a prefix.
    async fn has_content(&self, prefix: String) -> Result<bool> {
        let mut request = ListRequest::new(prefix);
        request.max_keys = Some(LOOKED_AT);
        let mut token = None;
        loop {
            let page = self.client.list(&request, token.as_deref()).await?;
            if page.listing.objects.iter().any(|object| !is_marker(&object.key, object.size)) {
                return Ok(true);
            }
            // A page may be as short as the server likes.
            token = page.next;
            if token.is_none() {
                return Ok(false);
            }
        }
    }

    /// Deletes the markers of folders from which something was deleted. One that stays does no harm.
    pub(super) async fn remove_markers(&self, removals: &[Removal]) {
        if self.markers.is_empty() {
            return;
        }
        let mut markers = BTreeSet::new();
        for Removal { key, .. } in removals.iter().filter(|removal| removal.key.is_content()) {
            match key {
                // Both go last: nothing else is there any more.
                Key::Namespace(namespace) => {
                    let prefix = Prefix::Namespace(namespace.clone());
                    markers.extend(self.markers.below(&self.render_prefix(&prefix)));
                }
                Key::Owner(group) => {
                    markers.extend(self.markers.below(&self.render_prefix(&Prefix::Group(group.clone()))));
                }
                _ => {
                    let rendered = self.render(key);
                    let folder = rendered.rfind('/').map(|at| &rendered[..=at]);
                    markers.extend(folder.filter(|folder| self.markers.contains(folder)).map(str::to_owned));
                }
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

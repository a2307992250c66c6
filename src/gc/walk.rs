//! All indexes of a store, group by group, newest snapshot first.

use std::collections::VecDeque;

use crate::backend::{Backend, ListEntry, ListQuery, ObjectInfo, Pager};
use crate::error::Result;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{ArchiveKind, GroupName, Namespace};

/// Maximum number of unimportant foreign paths kept.
pub(super) const NAMED: usize = 1000;

/// A walk over an uncached listing.
#[derive(Debug)]
pub(super) struct Walk {
    entries: VecDeque<ListEntry>,
    /// Foreign paths: a thousand of them, and all that may be or contain an index, or be leftovers of a put.
    pub(super) foreign: Vec<String>,
    /// Number of all foreign paths.
    pub(super) foreign_count: u64,
    group: Option<GroupName>,
    indexes: Vec<ObjectInfo>,
    pager: Pager,
}

impl Walk {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            foreign: Vec::new(),
            foreign_count: 0,
            group: None,
            indexes: Vec::new(),
            pager: Pager::new(ListQuery::all(Prefix::Namespace(Namespace::root()))),
        }
    }

    /// The indexes of the next group that has any, newest snapshot first. `None` after the last, if the listing
    /// was certainly complete.
    pub(super) async fn next(&mut self, backend: &dyn Backend) -> Result<Option<Vec<ObjectInfo>>> {
        loop {
            while let Some(entry) = self.entries.pop_front() {
                if let Some(done) = self.take(entry)? {
                    return Ok(Some(done));
                }
            }
            let Some(page) = self.pager.next(backend).await? else {
                self.group = None;
                let last = std::mem::take(&mut self.indexes);
                return Ok((!last.is_empty()).then(|| newest_first(last)));
            };
            self.entries.extend(page);
        }
    }

    /// Adds an entry; returns the previous group if the entry is the first of another one. An unreadable entry ends the walk, because an index
    /// may lie behind it.
    fn take(&mut self, entry: ListEntry) -> Result<Option<Vec<ObjectInfo>>> {
        let info = match entry {
            ListEntry::Foreign(path) => {
                self.foreign_count += 1;
                if self.foreign.len() < NAMED || matters(&path) {
                    self.foreign.push(path);
                }
                return Ok(None);
            }
            ListEntry::Object(info) => info,
            ListEntry::Name(_) | ListEntry::Prefix(_) => return Ok(None),
            ListEntry::Unreadable(_) if mutated!("gc-walks-past-unreadable-places") => return Ok(None),
            ListEntry::Unreadable(unreadable) => return Err(unreadable.error("collect garbage behind")),
        };
        let Key::Archive(snapshot, name) = &info.key else { return Ok(None) };
        if name.kind() == ArchiveKind::Blob {
            return Ok(None);
        }
        let group = snapshot.group();
        let done = if self.group.as_ref() == Some(group) {
            None
        } else {
            self.group = Some(group.clone());
            Some(std::mem::take(&mut self.indexes)).filter(|indexes| !indexes.is_empty())
        };
        self.indexes.push(info);
        Ok(done.map(newest_first))
    }
}

/// Returns `true` for a path that backends are asked about as orphan.
fn matters(path: &str) -> bool {
    // On a filesystem that ignores case, an index is found under a name of another case.
    let is_index = |path: &str| path.ends_with(".fidx") || path.ends_with(".didx");
    path.ends_with('/') || path.contains(".tmp_") || is_index(&path.to_ascii_lowercase())
}

fn newest_first(mut indexes: Vec<ObjectInfo>) -> Vec<ObjectInfo> {
    // By time; indexes of one snapshot stay in order.
    indexes.sort_by_key(|info| match &info.key {
        Key::Archive(snapshot, _) => std::cmp::Reverse(Some(snapshot.time())),
        _ => std::cmp::Reverse(None),
    });
    indexes
}

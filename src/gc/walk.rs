//! All indexes of a store, group by group, the newest snapshot first.

use std::collections::VecDeque;

use crate::backend::{Backend, ListEntry, ListQuery, ObjectInfo, Pager};
use crate::error::Result;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{ArchiveKind, GroupName, Namespace};

/// How many paths that do not matter are kept.
pub(super) const NAMED: usize = 1000;

/// A walk over what a listing of the backend itself shows.
#[derive(Debug)]
pub(super) struct Walk {
    entries: VecDeque<ListEntry>,
    /// Paths that no key names: a thousand of them, and all that may be an index, have one in it, or be left of a write.
    pub(super) foreign: Vec<String>,
    /// How many there are.
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

    /// The indexes of the next group that has any, those of the newest snapshot first. `None` after the last, when the listing
    /// certainly was complete.
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

    /// Takes an entry in; the group before, if it is the first of another one. An entry that cannot be read ends the walk: an index
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

/// Whether a path is one of those that backends are asked about.
fn matters(path: &str) -> bool {
    // Where the filesystem ignores case, an index is found by a name of another case.
    let is_index = |path: &str| path.ends_with(".fidx") || path.ends_with(".didx");
    path.ends_with('/') || path.contains(".tmp_") || is_index(&path.to_ascii_lowercase())
}

fn newest_first(mut indexes: Vec<ObjectInfo>) -> Vec<ObjectInfo> {
    // By time; those of one snapshot stay in their order.
    indexes.sort_by_key(|info| match &info.key {
        Key::Archive(snapshot, _) => std::cmp::Reverse(Some(snapshot.time())),
        _ => std::cmp::Reverse(None),
    });
    indexes
}

//! Keys of a packed store, above and below.

use crate::backend::{ListEntry, ListPage, ListQuery, ObjectInfo, Orphan, Removal, Unreadable};
use crate::format::layout::{ENCLOSURE, Key, Prefix};

/// The key below of an object that is no chunk.
pub(super) fn enclose(key: &Key) -> Key {
    if key.is_content() { Key::Enclosed(Box::new(key.clone())) } else { key.clone() }
}

/// The key above.
pub(super) fn expose(key: Key) -> Key {
    if let Key::Enclosed(key) = key { *key } else { key }
}

pub(super) fn expose_info(info: ObjectInfo) -> ObjectInfo {
    ObjectInfo { key: expose(info.key), ..info }
}

pub(super) fn enclose_removal(removal: &Removal) -> Removal {
    Removal { key: enclose(&removal.key), version: removal.version.clone() }
}

/// The query below, for anything but chunks.
pub(super) fn enclose_query(query: &ListQuery) -> ListQuery {
    ListQuery {
        after: query.after.as_ref().map(enclose),
        prefix: Prefix::Enclosed(Box::new(query.prefix.clone())),
        until: query.until.as_ref().map(enclose),
        ..query.clone()
    }
}

/// The page above.
pub(super) fn expose_page(page: ListPage) -> ListPage {
    let entries = page.entries.into_iter().map(|entry| match entry {
        ListEntry::Foreign(path) => ListEntry::Foreign(expose_path(path)),
        ListEntry::Name(key) => ListEntry::Name(expose(key)),
        ListEntry::Object(info) => ListEntry::Object(expose_info(info)),
        ListEntry::Prefix(Prefix::Enclosed(prefix)) => ListEntry::Prefix(*prefix),
        ListEntry::Prefix(prefix) => ListEntry::Prefix(prefix),
        ListEntry::Unreadable(unreadable) => {
            ListEntry::Unreadable(Unreadable { path: expose_path(unreadable.path), ..unreadable })
        }
    });
    ListPage::new(entries.collect(), page.next)
}

/// Paths of foreign objects as the backend below lists them.
pub(super) fn enclose_paths(paths: &[String]) -> Vec<String> {
    // Those among packs and segments are named as they are below.
    let is_content = |path: &&String| !path.starts_with(".larder/");
    let enclosed =
        |path: &String| if is_content(&path) { format!("{ENCLOSURE}{path}") } else { path.clone() };
    paths.iter().map(enclosed).collect()
}

pub(super) fn enclose_orphan(orphan: &Orphan) -> Orphan {
    Orphan { path: format!("{ENCLOSURE}{}", orphan.path) }
}

pub(super) fn expose_orphan(orphan: Orphan) -> Orphan {
    Orphan { path: expose_path(orphan.path) }
}

fn expose_path(path: String) -> String {
    path.strip_prefix(ENCLOSURE).map(str::to_owned).unwrap_or(path)
}

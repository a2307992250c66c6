//! Listings: queries, pages and entries, and the proof that the last page was read.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use crate::backend::Backend;
use crate::backend::object::ObjectInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::SnapshotName;

/// Maximum number of empty pages in a row. Servers send some where many objects were deleted.
const EMPTY_PAGES: usize = 1000;

/// A query for a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// List only paths after this one.
    pub after: Option<Key>,
    /// Depth of the listing.
    pub depth: Depth,
    /// Details of each entry.
    pub details: Details,
    /// List only objects below this prefix.
    pub prefix: Prefix,
    /// List only paths up to and including this one.
    pub until: Option<Key>,
}

impl ListQuery {
    /// Everything below `prefix`.
    #[must_use]
    pub fn all(prefix: Prefix) -> Self {
        Self { after: None, depth: Depth::All, details: Details::All, prefix, until: None }
    }

    /// The objects directly below `prefix`, and the prefixes one level deeper. For chunks, all chunks.
    #[must_use]
    pub fn children(prefix: Prefix) -> Self {
        Self { after: None, depth: Depth::Children, details: Details::All, prefix, until: None }
    }

    /// Restricts the listing to the paths after that of `after`, up to and including that of `until`. The collector lists shards of the
    /// digest space this way. A prefix that is listed as a child is within the bounds if its own path is.
    #[must_use]
    pub fn between(mut self, after: Option<Key>, until: Option<Key>) -> Self {
        self.after = after;
        self.until = until;
        self
    }

    /// Lists only names, as [`ListEntry::Name`], if the backend would have to look up each object for its details.
    #[must_use]
    pub fn names(mut self) -> Self {
        self.details = Details::Names;
        self
    }

    /// Returns `true` if `path` lies within the bounds `after` and `until`.
    pub fn covers(&self, path: &str) -> bool {
        self.after.as_ref().is_none_or(|after| path > after.path().as_str())
            && self.until.as_ref().is_none_or(|until| path <= until.path().as_str())
    }
}

/// The depth of a listing.
#[expect(clippy::exhaustive_enums, reason = "a backend must handle each of them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All objects below the prefix.
    All,
    /// One level: the objects on it, and a prefix for each deeper level.
    Children,
}

/// The details of the entries of a listing.
#[expect(clippy::exhaustive_enums, reason = "a backend must handle each of them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Details {
    /// The full description of each object.
    All,
    /// Names; full descriptions where they cost nothing.
    Names,
}

/// One page of a listing, at most some thousand entries.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The entries, in byte order of their paths.
    pub entries: Vec<ListEntry>,
    /// The cursor of the next page; `None` only if this page is certainly the last.
    pub next: Option<Cursor>,
}

impl ListPage {
    /// A page, and the cursor of the page after it if there is one.
    pub fn new(entries: Vec<ListEntry>, next: Option<Cursor>) -> Self {
        Self { entries, next }
    }
}

/// One entry of a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    /// The path of a file or object that no key names. It is reported and left alone.
    Foreign(String),
    /// An object without its description, in a listing of [names](ListQuery::names).
    Name(Key),
    /// An object.
    Object(ObjectInfo),
    /// A prefix with objects one level deeper. A backend that has directories may show an empty one.
    Prefix(Prefix),
    /// An entry that cannot be read, in the place of an object or a prefix. Objects that other hosts can see may lie behind it.
    Unreadable(Unreadable),
}

impl ListEntry {
    /// The path, by which listings are ordered.
    pub fn path(&self) -> String {
        match self {
            Self::Foreign(path) => path.clone(),
            Self::Name(key) => key.path(),
            Self::Object(info) => info.key.path(),
            Self::Prefix(prefix) => prefix.path(),
            Self::Unreadable(unreadable) => unreadable.path.clone(),
        }
    }
}

/// The position of a page in a listing, in a form that only the backend understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// A cursor made from a text of the backend.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text that the backend made it from.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An unreadable entry: a symbolic link, a named pipe or a device in the place of an object or a prefix.
///
/// The backend does not know what lies behind it. An operation that deletes unreferenced data must stop.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Unreadable {
    /// The path relative to the root of the store. It ends in `/` for a directory in the place of an object.
    pub path: String,
    /// The reason why it cannot be read: "named pipe".
    pub why: &'static str,
}

impl Unreadable {
    /// An entry at `path` that cannot be read, for the reason `why`.
    pub fn new(path: impl Into<String>, why: &'static str) -> Self {
        Self { path: path.into(), why }
    }

    /// The snapshot that it belongs to, or in whose place it is, if there is one.
    pub(crate) fn snapshot(&self) -> Option<SnapshotName> {
        let path = self.path.trim_end_matches('/');
        path.parse().or_else(|_| path.rsplit_once('/').map_or("", |(parent, _)| parent).parse()).ok()
    }

    /// The error of an operation that cannot go on without it.
    pub(crate) fn error(&self, action: &'static str) -> Error {
        Error::new(ErrorKind::Corrupt, action).on(&self.path).because(self.why)
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.why)
    }
}

/// All entries of a listing.
///
/// Only [`list_all`] makes one, after a page that was certainly the last. A function that decides from the absence of an entry takes a
/// `Listing`, so that a part of a listing cannot be mistaken for all of it.
#[derive(Debug)]
pub struct Listing {
    entries: Vec<ListEntry>,
}

impl Listing {
    /// The entries, in byte order.
    pub fn entries(&self) -> &[ListEntry] {
        &self.entries
    }

    /// The entries, in byte order.
    pub fn into_entries(self) -> Vec<ListEntry> {
        self.entries
    }
}

/// Reads all pages of a listing.
///
/// # Errors
/// As for [`Backend::list`]; `Unavailable` if the backend returns keys out of order, the same cursor twice, or empty pages without end: the
/// listing would then be incomplete or never end.
pub async fn list_all(backend: &dyn Backend, query: &ListQuery) -> Result<Listing> {
    let (mut pager, mut entries) = (Pager::new(query.clone()), Vec::new());
    while let Some(page) = pager.next(backend).await? {
        entries.extend(page);
    }
    Ok(Listing { entries })
}

/// Returns `true` if any object exists below the prefix. Reads pages up to the first object.
pub(crate) async fn has_objects(backend: &dyn Backend, prefix: Prefix) -> Result<bool> {
    let mut pager = Pager::new(ListQuery::all(prefix));
    while let Some(page) = pager.next(backend).await? {
        if page.iter().any(|entry| matches!(entry, ListEntry::Object(_) | ListEntry::Unreadable(_))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a listing page by page, for callers that do not hold all of it in memory.
///
/// Absence from the pages proves nothing until [`next`](Pager::next) returned `None`.
#[derive(Debug)]
pub struct Pager {
    cursor: Option<Cursor>,
    empty_pages: usize,
    ended: bool,
    last: String,
    query: ListQuery,
}

impl Pager {
    /// The pages of a listing.
    #[must_use]
    pub fn new(query: ListQuery) -> Self {
        Self { cursor: None, empty_pages: 0, ended: false, last: String::new(), query }
    }

    /// The pages of a listing that [began](crate::backend::Housekeeping::begin_listing) with this cursor.
    #[must_use]
    pub fn starting_at(query: ListQuery, cursor: Option<Cursor>) -> Self {
        Self { cursor, ..Self::new(query) }
    }

    /// Returns `true` if the page that was read last was certainly the last page of the listing.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The entries of the next page, in byte order; `None` after the last.
    ///
    /// # Errors
    /// As for [`list_all`]. The next call reads the same page again.
    ///
    /// # Cancel safety
    /// Dropping the future does not skip a page.
    pub async fn next(&mut self, backend: &dyn Backend) -> Result<Option<Vec<ListEntry>>> {
        if self.ended {
            return Ok(None);
        }
        let broken = || Error::new(ErrorKind::Unavailable, "list").on(&self.query.prefix);
        let page = backend.list(&self.query, self.cursor.as_ref()).await?;
        let mut last: Option<&ListEntry> = None;
        for entry in &page.entries {
            let follows = match last {
                None => self.last.is_empty() || entry.path() > self.last,
                Some(last) => follows(last, entry),
            };
            if !follows && !mutated!("list-in-any-order") {
                return Err(broken().because("the backend returned keys out of order"));
            }
            last = Some(entry);
        }
        // Cursors that alternate repeat a page, whose keys are then out of order.
        let empty_pages = if page.entries.is_empty() { self.empty_pages + 1 } else { 0 };
        if page.next.is_some() && (empty_pages > EMPTY_PAGES || page.next == self.cursor) {
            return Err(broken().because("the listing does not advance"));
        }
        self.empty_pages = empty_pages;
        if let Some(last) = last {
            self.last = last.path();
        }
        self.ended = page.next.is_none();
        self.cursor = page.next;
        Ok(Some(page.entries))
    }
}

/// Returns `true` if an entry comes after another. Chunks and snapshots of a group are many, and are compared without making their paths.
fn follows(last: &ListEntry, entry: &ListEntry) -> bool {
    let chunk = |entry: &ListEntry| match entry {
        ListEntry::Name(Key::Chunk(digest))
        | ListEntry::Object(ObjectInfo { key: Key::Chunk(digest), .. }) => Some(*digest),
        _ => None,
    };
    match (last, entry) {
        (ListEntry::Prefix(Prefix::Snapshot(last)), ListEntry::Prefix(Prefix::Snapshot(name)))
            if last.group() == name.group() =>
        {
            name.time() > last.time()
        }
        _ => match (chunk(last), chunk(entry)) {
            (Some(last), Some(digest)) => digest > last,
            _ => entry.path() > last.path(),
        },
    }
}

/// Makes one page of a listing, of at most `max_entries` entries (at least one), from a sorted map of all objects by their paths. `info` describes
/// one of them.
///
/// For backends that know their objects in memory. It folds deeper levels, applies the bounds, and shows paths that no key names as
/// [foreign](ListEntry::Foreign), except those at the root of the store that begin with a `.`. Its cursors stay valid while objects are
/// stored and deleted.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::time::SystemTime;
///
/// use larder::backend::{ListEntry, ListQuery, ObjectInfo, Version, page_of};
/// use larder::format::layout::Prefix;
/// use larder::format::name::Namespace;
///
/// let objects: BTreeMap<String, u64> = [("vm/1/owner".to_owned(), 9), ("vm/1/todo".to_owned(), 1), ("vm/2/owner".to_owned(), 9)].into();
/// let info = |key, size: &u64| ObjectInfo::new(key, *size, SystemTime::UNIX_EPOCH, Version::new("1"));
/// let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
/// let first = page_of(&objects, &all, None, 2, info);
/// assert_eq!(first.entries[1], ListEntry::Foreign("vm/1/todo".to_owned()));
/// let second = page_of(&objects, &all, first.next.as_ref(), 2, info);
/// assert_eq!(second.entries[0].path(), "vm/2/owner");
/// assert_eq!(second.next, None);
/// ```
pub fn page_of<T>(
    objects: &BTreeMap<String, T>,
    query: &ListQuery,
    cursor: Option<&Cursor>,
    max_entries: usize,
    info: impl Fn(Key, &T) -> ObjectInfo,
) -> ListPage {
    let root = query.prefix.path();
    let mut entries: Vec<ListEntry> = Vec::new();
    let (after, until) = (query.after.as_ref().map(Key::path), query.until.as_ref().map(Key::path));
    let folded = query.depth == Depth::Children && query.prefix != Prefix::Chunks;
    // `0` is the byte after `/`: this continues after everything below the child.
    let behind = |child: &str| Bound::Included(format!("{}0", child.strip_suffix('/').unwrap_or(child)));
    let mut from = match (cursor.map(Cursor::as_str), &after) {
        (Some(child), _) if folded && child.ends_with('/') => behind(child),
        (Some(path), _) => Bound::Excluded(path.to_owned()),
        // The path of a child is a prefix of the paths below it: no child of a path up to `after` is beyond that bound.
        (None, Some(after)) if *after > root => Bound::Excluded(after.clone()),
        _ => Bound::Included(root.clone()),
    };
    while let Some((path, object)) = objects.range::<String, _>((from.clone(), Bound::Unbounded)).next() {
        if !path.starts_with(&root) {
            break;
        }
        from = Bound::Excluded(path.clone());
        let key = Key::parse(path);
        let is_elsewhere = match &key {
            Some(key) => !query.prefix.contains(key),
            // Chunks, and objects of the store as a whole, are not below the root namespace.
            None => root.is_empty() && path.starts_with('.'),
        };
        if is_elsewhere {
            continue;
        }
        let deeper = path[root.len()..].split_once('/').filter(|_| folded);
        let child = deeper.map(|(child, _)| format!("{root}{child}/"));
        if let Some(child) = &child {
            from = behind(child);
        }
        let listed = child.as_ref().unwrap_or(path);
        if until.as_ref().is_some_and(|until| listed > until) {
            break;
        }
        if after.as_ref().is_some_and(|after| listed <= after) {
            continue;
        }
        if let Some(last) = entries.last().filter(|_| entries.len() >= max_entries) {
            let cursor = Cursor::new(last.path());
            return ListPage::new(entries, Some(cursor));
        }
        entries.push(match (child, key) {
            (None, Some(key)) => ListEntry::Object(info(key, object)),
            (None, None) => ListEntry::Foreign(path.clone()),
            (Some(child), _) => Prefix::parse(&child).map_or(ListEntry::Foreign(child), ListEntry::Prefix),
        });
    }
    ListPage::new(entries, None)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::backend::object::Version;
    use crate::format::name::Namespace;

    fn objects(paths: &[&str]) -> BTreeMap<String, u64> {
        paths.iter().map(|path| ((*path).to_owned(), 7)).collect()
    }

    fn page(
        objects: &BTreeMap<String, u64>,
        query: &ListQuery,
        cursor: Option<&Cursor>,
        max: usize,
    ) -> ListPage {
        let info = |key, size: &u64| ObjectInfo::new(key, *size, SystemTime::UNIX_EPOCH, Version::new("v"));
        page_of(objects, query, cursor, max, info)
    }

    fn paths(objects: &BTreeMap<String, u64>, query: &ListQuery, max: usize) -> Vec<String> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = page(objects, query, cursor.as_ref(), max);
            assert!(page.entries.len() <= max);
            found.extend(page.entries.iter().map(ListEntry::path));
            cursor = page.next;
            if cursor.is_none() {
                return found;
            }
        }
    }

    const PATHS: [&str; 12] = [
        ".chunks/0000/x",
        ".in-use",
        ".larder/other",
        ".larder/store.json",
        "lost+found",
        "ns/a/.namespace",
        "ns/a/vm/1/owner",
        "vm/1-a/owner",
        "vm/1/2025-07-14T14:20:02Z/a.blob",
        "vm/1/2025-07-14T14:20:02Z/a.blob.tmp",
        "vm/1/owner",
        "x y/z",
    ];

    #[test]
    fn pages_of_any_size_make_up_the_same_listing() {
        let objects = objects(&PATHS);
        let root = || Prefix::Namespace(Namespace::root());
        let vms = || Prefix::parse("vm/").unwrap();
        for (query, wanted) in [
            (ListQuery::all(root()), &PATHS[4..]),
            (ListQuery::all(Prefix::Chunks), &PATHS[..1]),
            (ListQuery::children(root()), &["lost+found", "ns/", "vm/", "x y/"]),
            (ListQuery::children(vms()), &["vm/1-a/", "vm/1/"]),
        ] {
            for max in 1..=PATHS.len() {
                assert_eq!(paths(&objects, &query, max), wanted, "{query:?} by {max}");
            }
        }
    }

    #[test]
    fn a_cursor_stays_valid_while_objects_come_and_go() {
        let mut objects = objects(&["vm/1/owner", "vm/2/owner", "vm/3/owner", "vm/4/owner"]);
        let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
        let first = page(&objects, &all, None, 2);
        objects.remove("vm/2/owner");
        objects.insert("vm/2/notes".to_owned(), 7);
        objects.remove("vm/3/owner");
        let second = page(&objects, &all, first.next.as_ref(), 2);
        assert_eq!(second.entries.iter().map(ListEntry::path).collect::<Vec<_>>(), ["vm/4/owner"]);
        assert_eq!(second.next, None);
        // More below a child that was listed do not list it again.
        let children = ListQuery::children(Prefix::parse("vm/").unwrap());
        let first = page(&objects, &children, None, 1);
        objects.insert("vm/1/zzz".to_owned(), 7);
        let second = page(&objects, &children, first.next.as_ref(), 1);
        assert_eq!(second.entries[0].path(), "vm/2/");
    }
}

//! Listings: queries, pages and entries, and the proof that the last page was read.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use crate::backend::Backend;
use crate::backend::object::ObjectInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::SnapshotName;

/// So many pages in a row may be empty: servers send some where much was deleted.
const EMPTY_PAGES: usize = 1000;

/// What to list.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// List only what comes after this key.
    pub after: Option<Key>,
    /// How deep.
    pub depth: Depth,
    /// How much is said of each object.
    pub details: Details,
    /// List only what lies below this.
    pub prefix: Prefix,
    /// List only up to this key, with it.
    pub until: Option<Key>,
}

impl ListQuery {
    /// Everything below `prefix`.
    #[must_use]
    pub fn all(prefix: Prefix) -> Self {
        Self { after: None, depth: Depth::All, details: Details::All, prefix, until: None }
    }

    /// What lies directly below `prefix`: its objects, and the prefixes one level deeper. For chunks, all of them.
    #[must_use]
    pub fn children(prefix: Prefix) -> Self {
        Self { after: None, depth: Depth::Children, details: Details::All, prefix, until: None }
    }

    /// Restricts the listing to the paths after that of `after`, up to and with that of `until`. Shards of the digest space are
    /// made so. A prefix that is listed as a child is within the bounds if its own path is, whatever lies below it.
    #[must_use]
    pub fn between(mut self, after: Option<Key>, until: Option<Key>) -> Self {
        self.after = after;
        self.until = until;
        self
    }

    /// A backend to which more costs more lists names only, as [`ListEntry::Name`].
    #[must_use]
    pub fn names(mut self) -> Self {
        self.details = Details::Names;
        self
    }

    /// Whether the key at `path` lies within the bounds `after` and `until`.
    pub fn covers(&self, path: &str) -> bool {
        self.after.as_ref().is_none_or(|after| path > after.path().as_str())
            && self.until.as_ref().is_none_or(|until| path <= until.path().as_str())
    }
}

/// How deep a listing goes.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All objects, however deep.
    All,
    /// One level: objects, and prefixes for what is deeper.
    Children,
}

/// How much a listing says of each object.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Details {
    /// All that is known.
    All,
    /// Names, and more where it costs nothing.
    Names,
}

/// One page of a listing, at most some thousand entries.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// What was found, in byte order.
    pub entries: Vec<ListEntry>,
    /// Where the next page begins; `None` only if this page is certainly the last (H12).
    pub next: Option<Cursor>,
}

impl ListPage {
    /// A page with what follows it, if anything does.
    pub fn new(entries: Vec<ListEntry>, next: Option<Cursor>) -> Self {
        Self { entries, next }
    }
}

/// One line of a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    /// Something that is no object of a store, by its path. Reported and left alone.
    Foreign(String),
    /// An object of which nothing more was looked up, since only [names](ListQuery::names) were asked for.
    Name(Key),
    /// An object.
    Object(ObjectInfo),
    /// Objects one level deeper. A backend that has directories may show one with nothing in it.
    Prefix(Prefix),
    /// Something in the place of an object or a prefix that is neither. Objects that others can see may lie behind it.
    Unreadable(Unreadable),
}

impl ListEntry {
    /// Its path: what listings are ordered by.
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

/// Where a page of a listing begins, in a form that only the backend understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// A cursor from the text that the backend wants to see again.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text that the backend gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Something in the place of an object or a prefix that is neither: a symbolic link, a named pipe, a device.
///
/// A backend that meets one does not know what lies behind it. An operation that removes data because nothing refers to it must stop.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The path relative to the root of the store. It ends in `/` for a directory in the place of an object.
    pub path: String,
    /// The reason why it cannot be read, as a clause: "it is a named pipe".
    pub why: &'static str,
}

impl Unreadable {
    /// An entry at `path` that cannot be read because of `why`.
    pub fn new(path: impl Into<String>, why: &'static str) -> Self {
        Self { path: path.into(), why }
    }

    /// The snapshot that it belongs to or stands in place of, if there is one.
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
/// Only [`list_all`] makes one, after a page that was certainly the last. Whoever decides something from the absence of an
/// entry takes a `Listing`, so that half a listing cannot be mistaken for a whole one (H12).
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
/// Those of [`Backend::list`]; `Unavailable` if the backend returns keys out of order, the same cursor twice, or page after page
/// with nothing on it, since the listing would then never end or miss something (H122).
pub async fn list_all(backend: &dyn Backend, query: &ListQuery) -> Result<Listing> {
    let (mut pager, mut entries) = (Pager::new(query.clone()), Vec::new());
    while let Some(page) = pager.next(backend).await? {
        entries.extend(page);
    }
    Ok(Listing { entries })
}

/// Returns `true` if there is any object below the prefix. Reads no further than it must.
pub(crate) async fn has_objects(backend: &dyn Backend, prefix: Prefix) -> Result<bool> {
    let query = ListQuery::all(prefix);
    let mut cursor = None;
    loop {
        let page = backend.list(&query, cursor.as_ref()).await?;
        if page.entries.iter().any(|entry| matches!(entry, ListEntry::Object(_) | ListEntry::Unreadable(_))) {
            return Ok(true);
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(false);
        }
    }
}

/// Reads a listing page by page, for who does not want all of it in memory.
///
/// It has ended only when [`next`](Pager::next) returned `None`: then, and not before, what did not come is not there (H12).
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

    /// Returns `true` if the page that came last was certainly the last one.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The entries of the next page, in byte order; `None` after the last.
    ///
    /// # Errors
    /// Those of [`list_all`]. The same page can be asked for again.
    ///
    /// # Cancel safety
    /// A dropped future has read nothing.
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
            if !follows {
                return Err(broken().because("the backend returned keys out of order"));
            }
            last = Some(entry);
        }
        // Cursors that alternate show as pages with nothing new: what is on a page again is out of order.
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

/// Whether one entry comes after another. Chunks, of which there are many, are compared without their paths.
fn follows(last: &ListEntry, entry: &ListEntry) -> bool {
    let chunk = |entry: &ListEntry| match entry {
        ListEntry::Name(Key::Chunk(digest))
        | ListEntry::Object(ObjectInfo { key: Key::Chunk(digest), .. }) => Some(*digest),
        _ => None,
    };
    match (chunk(last), chunk(entry)) {
        (Some(last), Some(digest)) => digest > last,
        _ => entry.path() > last.path(),
    }
}

/// Makes one page of a listing, of at most `most` entries, from a sorted map of all objects by their [paths](Key::path). `info` describes one
/// of them. For backends that know their objects in memory.
pub fn page_of<T>(
    objects: &BTreeMap<String, T>,
    query: &ListQuery,
    cursor: Option<&Cursor>,
    most: usize,
    info: impl Fn(Key, &T) -> ObjectInfo,
) -> ListPage {
    let root = query.prefix.path();
    let mut entries: Vec<ListEntry> = Vec::new();
    let mut from = match cursor {
        Some(cursor) => Bound::Excluded(cursor.as_str().to_owned()),
        None => Bound::Included(root.clone()),
    };
    while let Some((path, object)) = objects.range::<String, _>((from.clone(), Bound::Unbounded)).next() {
        if !path.starts_with(&root) {
            break;
        }
        from = Bound::Excluded(path.clone());
        let Some(key) = Key::parse(path) else { continue };
        let folded = query.depth == Depth::Children && query.prefix != Prefix::Chunks;
        let deeper = path[root.len()..].split_once('/').filter(|_| folded);
        let child = deeper.map(|(child, _)| format!("{root}{child}/"));
        if let Some(child) = &child {
            // `0` is the byte after `/`: on to what comes after everything below the child.
            from = Bound::Included(format!("{}0", &child[..child.len() - 1]));
        }
        if !query.prefix.contains(&key) || !query.covers(child.as_ref().unwrap_or(path)) {
            continue;
        }
        if entries.len() == most {
            let before =
                objects.range::<str, _>((Bound::Unbounded, Bound::Excluded(path.as_str()))).next_back();
            let cursor = before.map_or(root.as_str(), |(path, _)| path);
            return ListPage::new(entries, Some(Cursor::new(cursor)));
        }
        entries.push(match child {
            None => ListEntry::Object(info(key, object)),
            Some(child) => Prefix::parse(&child).map_or(ListEntry::Foreign(child), ListEntry::Prefix),
        });
    }
    ListPage::new(entries, None)
}

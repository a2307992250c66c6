//! Listings, and the order that a client may lack.
//!
//! | order | a page | the next page |
//! |---|---|---|
//! | by path | the next objects of the client's stream, which must be in order | the rest of the stream, or a new one after the cursor |
//! | any | the whole stream, sorted | the rest, or the whole stream again |
//!
//! The rest of a stream is parked under the query and the cursor of its next page, so that an ordinary listing reads each page of the service
//! once. A parked stream is only faster: a page that is asked for again, or later than others, begins a new one. By the order of the client,
//! or after sorting, everything after the cursor follows.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::backend::object_store::errors::failed;
use crate::backend::object_store::{CONTENT, ListingOrder, ObjectStoreBackend, info, location};
use crate::backend::{Cursor, ListEntry, ListPage, ListQuery};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};

/// Maximum number of entries on a page.
const PAGE_ENTRIES: usize = 1000;
/// Maximum number of parked streams.
const PARKED: usize = 8;

type Objects = BoxStream<'static, object_store::Result<ObjectMeta>>;

/// Streams whose next page was not asked for yet, the oldest first.
#[derive(Default)]
pub(super) struct Parked(Mutex<VecDeque<(ListQuery, String, Objects)>>);

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parked")
    }
}

impl Parked {
    fn park(&self, query: &ListQuery, cursor: &str, rest: Objects) {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.len() >= PARKED {
            parked.pop_front();
        }
        parked.push_back((query.clone(), cursor.to_owned(), rest));
    }

    fn take(&self, query: &ListQuery, cursor: &str) -> Option<Objects> {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = parked.iter().position(|(of, at, _)| of == query && at == cursor)?;
        parked.remove(at).map(|(_, _, rest)| rest)
    }
}

impl ObjectStoreBackend {
    /// One page of all objects below a prefix.
    pub(super) async fn list_all_levels(
        &self,
        query: &ListQuery,
        cursor: Option<&Cursor>,
    ) -> Result<ListPage> {
        let parked = cursor.and_then(|cursor| self.parked.take(query, cursor.as_str()));
        let after =
            cursor.map(|cursor| cursor.as_str().to_owned()).or_else(|| query.after.as_ref().map(Key::path));
        let mut rest = match parked {
            Some(rest) => rest,
            None => self.objects(&query.prefix, after.as_deref()).await?,
        };
        let mut last = after.unwrap_or_default();
        let mut entries = Vec::new();
        while entries.len() < PAGE_ENTRIES {
            let found = rest.try_next().await.map_err(|error| unlisted(error, &query.prefix))?;
            let Some(meta) = found else { return Ok(ListPage::new(entries, None)) };
            let Some(entry) = entry(&query.prefix, &meta)? else { continue };
            let path = entry.path();
            if path <= last {
                let error = Error::new(ErrorKind::Unavailable, "list").on(&query.prefix);
                return Err(error.because("the client does not list by path: use `ListingOrder::Any`"));
            }
            if query.until.as_ref().is_some_and(|until| path > until.path()) {
                return Ok(ListPage::new(entries, None));
            }
            last = path;
            entries.push(entry);
        }
        self.parked.park(query, &last, rest);
        Ok(ListPage::new(entries, Some(Cursor::new(last))))
    }

    /// One page of one level. Clients return a level as a whole, in any order.
    pub(super) async fn list_children(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let level = self.client.list_with_delimiter(Some(&place(&query.prefix)?)).await;
        let level = level.map_err(|error| unlisted(error, &query.prefix))?;
        let mut entries = BTreeMap::new();
        for meta in &level.objects {
            if let Some(entry) = entry(&query.prefix, meta)? {
                entries.insert(entry.path(), entry);
            }
        }
        for deeper in &level.common_prefixes {
            let path = format!("{}/", path_of(deeper));
            let entry =
                Prefix::parse(&path).map_or_else(|| ListEntry::Foreign(path.clone()), ListEntry::Prefix);
            entries.insert(path, entry);
        }
        entries.retain(|path, _| {
            query.covers(path) && cursor.is_none_or(|cursor| path.as_str() > cursor.as_str())
        });
        let next = entries.keys().nth(PAGE_ENTRIES - 1).filter(|_| entries.len() > PAGE_ENTRIES).cloned();
        let page = entries.into_values().take(PAGE_ENTRIES).collect();
        Ok(ListPage::new(page, next.map(Cursor::new)))
    }

    /// Fails if anything but the object of `key` lies below a prefix.
    pub(super) async fn check_empty(&self, key: &Key, prefix: &Prefix) -> Result<()> {
        let mut objects = self.client.list(Some(&place(prefix)?));
        while let Some(meta) = objects.try_next().await.map_err(|error| unlisted(error, prefix))? {
            let entry = entry(prefix, &meta)?;
            if entry.is_some_and(|entry| entry.path() != key.path()) {
                let error = Error::new(ErrorKind::Conflict, "delete").on(key);
                return Err(error.because("the namespace is not empty"));
            }
        }
        Ok(())
    }

    /// All objects below a prefix after a path, in order.
    async fn objects(&self, prefix: &Prefix, after: Option<&str>) -> Result<Objects> {
        let below = place(prefix)?;
        let objects = match after {
            None => self.client.list(Some(&below)),
            Some(after) => {
                let area = if prefix.is_of_content() { CONTENT } else { "" };
                self.client.list_with_offset(Some(&below), &location(&format!("{area}{after}"))?)
            }
        };
        if self.order == ListingOrder::ByPath {
            return Ok(objects);
        }
        let mut objects: Vec<_> = objects.try_collect().await.map_err(|error| unlisted(error, prefix))?;
        objects.sort_unstable_by(|one, other| one.location.cmp(&other.location));
        Ok(stream::iter(objects.into_iter().map(Ok)).boxed())
    }
}

/// The entry of an object that is listed below a prefix; `None` for an empty one that no key names, such as the marker of a folder.
fn entry(prefix: &Prefix, meta: &ObjectMeta) -> Result<Option<ListEntry>> {
    let path = path_of(&meta.location);
    // A key below `.cnt/` with the path of a chunk is not that chunk.
    match Key::parse(path).filter(|key| prefix.contains(key)) {
        Some(key) => info(key, meta).map(ListEntry::Object).map(Some),
        None if meta.size == 0 => Ok(None),
        None => Ok(Some(ListEntry::Foreign(path.to_owned()))),
    }
}

fn place(prefix: &Prefix) -> Result<Path> {
    let area = if prefix.is_of_content() { CONTENT } else { "" };
    location(&format!("{area}{}", prefix.path()))
}

/// The path of a location in the store.
fn path_of(location: &Path) -> &str {
    let path = location.as_ref();
    path.strip_prefix(CONTENT).unwrap_or(path)
}

/// The error of a listing. Nothing is absent because of it.
fn unlisted(error: object_store::Error, prefix: &Prefix) -> Error {
    let error = failed(error, "list", prefix);
    match error.kind() {
        ErrorKind::Denied | ErrorKind::Unsupported => error,
        _ => Error::new(ErrorKind::Unavailable, "list").on(prefix).because(error),
    }
}

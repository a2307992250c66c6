//! Reading a listing to its end, and the proof that the end was reached.

use crate::backend::{Backend, ListEntry, ListQuery};
use crate::error::{Error, ErrorKind, Result};

/// So many pages in a row may be empty: servers send some where much was deleted.
const EMPTY_PAGES: usize = 1000;

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
    let broken = || Error::new(ErrorKind::Unavailable, "list").on(&query.prefix);
    let mut entries = Vec::new();
    let mut last = String::new();
    let mut cursor = None;
    let mut empty_pages = 0;
    loop {
        let page = backend.list(query, cursor.as_ref()).await?;
        for entry in &page.entries {
            let path = entry.path();
            if !last.is_empty() && path <= last {
                return Err(broken().because("the backend returned keys out of order"));
            }
            last = path;
        }
        // Cursors that alternate show as pages with nothing new: what is on a page again is out of order.
        empty_pages = if page.entries.is_empty() { empty_pages + 1 } else { 0 };
        if empty_pages > EMPTY_PAGES && page.next.is_some() {
            return Err(broken().because("the listing does not advance"));
        }
        entries.extend(page.entries);
        match page.next {
            None => return Ok(Listing { entries }),
            next if next == cursor => return Err(broken().because("the listing does not advance")),
            next => cursor = next,
        }
    }
}

//! Listings in pages.

use futures::future::BoxFuture;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::call::Call;
use crate::s3::client::BucketClient;
use crate::s3::counters::Operation;
use crate::s3::object::{from_document, not_there};
use crate::wire::s3_xml::{ListedObject, parse_listing};

use crate::wire::s3_xml::Listing;

/// A request for a listing.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Folds everything after the next `/` behind the prefix into one entry.
    pub fold: bool,
    /// Maximum number of entries of a page; default: the choice of the server, which is 1000.
    pub max_keys: Option<u16>,
    /// Prefix of the listed keys.
    pub prefix: String,
    /// Lists only keys after this one.
    pub start_after: Option<String>,
}

impl ListRequest {
    /// Lists all keys with this prefix.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }
}

/// A page of a listing.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ListedPage {
    /// The entries, in byte order.
    pub listing: Listing,
    /// Token of the next page, for the next call; `None` only if this is certainly the last page.
    pub next: Option<String>,
}

/// Default maximum number of entries of a page.
const DEFAULT_PAGE: u64 = 1000;
/// Maximum number of consecutive pages without an object.
const EMPTY_PAGES: u32 = 1000;
/// Minimum bytes of a page that is parsed on the blocking pool.
const LARGE_PAGE: usize = 32 << 10;

impl BucketClient {
    /// Reads one page of a listing: the first without a token, or the one that the previous page named.
    ///
    /// # Errors
    /// `Unavailable` for a page that is incomplete, unsorted, or does not continue after the previous one; the rest of
    /// [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn list(&self, request: &ListRequest, token: Option<&str>) -> Result<ListedPage> {
        let listing = self.page(request, token).await?;
        let broken =
            |why: &'static str| Error::new(ErrorKind::Unavailable, "list").on(&request.prefix).because(why);
        let next = match next_page(request, token, &listing).map_err(broken)? {
            Next::Page(token) => Some(token),
            Next::Nothing => None,
            Next::Unsaid if self.is_last(request, &listing).await? => None,
            Next::Unsaid => {
                return Err(broken("the page does not say that more follows, and more follows"));
            }
        };
        Ok(ListedPage { listing, next })
    }

    /// The first object of a listing that this selects. Reads pages up to it; a server may send pages with fewer keys than asked for.
    ///
    /// # Errors
    /// As for [`list`](Self::list); `Unavailable` if the listing does not advance.
    pub(crate) async fn find_listed(
        &self,
        request: &ListRequest,
        is_wanted: impl Fn(&ListedObject) -> bool,
    ) -> Result<Option<ListedObject>> {
        let (mut last, mut empty_pages, mut token) = (String::new(), 0, None);
        loop {
            let page = self.list(request, token.as_deref()).await?;
            let objects = page.listing.objects;
            empty_pages = if objects.is_empty() { empty_pages + 1 } else { 0 };
            if empty_pages > EMPTY_PAGES || objects.first().is_some_and(|object| object.key <= last) {
                let error = Error::new(ErrorKind::Unavailable, "list").on(&request.prefix);
                return Err(error.because("the listing does not advance"));
            }
            last = objects.last().map_or(last, |object| object.key.clone());
            let found = objects.into_iter().find(&is_wanted);
            token = page.next;
            if found.is_some() || token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Returns `true` if no page follows.
    async fn is_last(&self, request: &ListRequest, listing: &Listing) -> Result<bool> {
        let objects = listing.objects.last().map(|object| object.key.clone());
        // Sorts after everything that is folded into the entry.
        let folded = listing.common_prefixes.last().map(|prefix| format!("{prefix}{}", char::MAX));
        let behind = ListRequest {
            max_keys: Some(1),
            start_after: objects.max(folded).max(request.start_after.clone()),
            ..request.clone()
        };
        let rest = self.page(&behind, None).await?;
        let is_empty = rest.objects.is_empty() && rest.common_prefixes.is_empty();
        Ok(is_empty && rest.truncated != Some(true) && rest.next.is_none())
    }

    fn page<'a>(
        &'a self,
        request: &'a ListRequest,
        token: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(async move {
            let max_keys = request.max_keys.map(|most| most.to_string());
            let mut query =
                vec![("list-type", "2"), ("encoding-type", "url"), ("prefix", request.prefix.as_str())];
            query.extend(request.fold.then_some(("delimiter", "/")));
            query.extend(max_keys.as_deref().map(|most| ("max-keys", most)));
            // Every wanted key sorts after a start key before the prefix, and Garage answers such a start key with nothing.
            let start_after = request.start_after.as_deref().filter(|key| *key > request.prefix.as_str());
            query.extend(start_after.map(|key| ("start-after", key)));
            query.extend(token.map(|token| ("continuation-token", token)));
            let call = Call { query: &query, ..Call::new(Operation::List, "GET", None) };
            let answer = self.call("list", &call).await?;
            if !answer.is_success() {
                return Err(not_there(answer, "list", &request.prefix));
            }
            let body = answer.response.body;
            // Parsing a full page takes milliseconds, during which other tasks may run.
            let parsed = if body.len() < LARGE_PAGE {
                parse_listing(&body)
            } else {
                self.shared.runtime.run_blocking("read a listing", move || Ok(parse_listing(&body))).await?
            };
            let listing = parsed.map_err(|error| from_document(error, "list", &request.prefix))?;
            let broken = |why: &'static str| {
                Error::new(ErrorKind::Unavailable, "list").on(&request.prefix).because(why)
            };
            let keys = listing.objects.iter().map(|object| object.key.as_str());
            check_order(request, keys).map_err(broken)?;
            check_order(request, listing.common_prefixes.iter().map(String::as_str)).map_err(broken)?;
            Ok(listing)
        })
    }
}

/// The page after this one.
enum Next {
    Nothing,
    /// It begins at this token.
    Page(String),
    /// The page does not say.
    Unsaid,
}

/// Reads from a page if another one follows: certainly not, yes, or unknown (H12).
fn next_page(
    request: &ListRequest,
    token: Option<&str>,
    listing: &Listing,
) -> std::result::Result<Next, &'static str> {
    mutated!("list-contradiction-is-the-end" => return Ok(listing.next.clone().map_or(Next::Nothing, Next::Page)));
    match (listing.truncated, &listing.next) {
        (Some(false), None) => Ok(Next::Nothing),
        (Some(false), Some(_)) => Err("the page is the last, and says where the next begins"),
        (Some(true), None) => Err("the page is not the last, and does not say where the next begins"),
        (_, Some(next)) if token == Some(next.as_str()) => Err("the same page follows again and again"),
        (_, Some(next)) => Ok(Next::Page(next.clone())),
        // Some servers leave out both on the last page. The page is certainly the last if it is shorter than the requested maximum and
        // the maximum that the server states.
        (None, None) => {
            let entries = (listing.objects.len() + listing.common_prefixes.len()) as u64;
            let asked = request.max_keys.map_or(DEFAULT_PAGE, u64::from);
            let most = asked.min(listing.max_keys.unwrap_or(asked));
            let is_whole = listing.key_count.is_none_or(|count| count == entries);
            if !is_whole {
                return Err("the page has not as many entries as it says");
            }
            Ok(if entries < most { Next::Nothing } else { Next::Unsaid })
        }
    }
}

/// The requested names, each once, in byte order.
fn check_order<'a>(
    request: &ListRequest,
    names: impl Iterator<Item = &'a str>,
) -> std::result::Result<(), &'static str> {
    let mut last: Option<&str> = None;
    for name in names {
        if !name.starts_with(&request.prefix) {
            return Err("the page has keys that were not asked for");
        }
        if last.is_some_and(|last| last >= name) {
            return Err("the page is not in order");
        }
        last = Some(name);
    }
    Ok(())
}

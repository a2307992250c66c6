//! Detection of changes by programs that take no lease.
//!
//! A generation is correct as long as this process alone changes the store. A PBS that is configured for the bucket ignores the lease, so
//! an operation that decides by a listing [looks](MetadataCache::look) first: it lists the uncached backend and compares.
//!
//! | difference | effect |
//! |---|---|
//! | an object that this process changed during the listing | none: the listing may be older or newer than the change |
//! | anything else | the generation is in doubt: the uncached backend answers everything until the next refresh |
//!
//! A listing that lags differs too. That costs requests only.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::backend::cached::{Kept, MetadataCache};
use crate::backend::{Backend, ListEntry, ListQuery, ObjectInfo, list_all};
use crate::error::Result;
use crate::format::layout::Prefix;

/// The paths that changed since a look began.
type Changed = Mutex<HashSet<String>>;

/// The looks that are under way.
#[derive(Debug, Default)]
pub(super) struct Lookers(Vec<Weak<Changed>>);

impl Lookers {
    /// Notes that this process changed an object.
    pub(super) fn note(&mut self, path: &str) {
        self.0.retain(|changed| changed.strong_count() > 0);
        for changed in self.0.iter().filter_map(Weak::upgrade) {
            changed.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        }
    }

    fn begin(&mut self) -> Arc<Changed> {
        let changed = Arc::<Changed>::default();
        self.0.push(Arc::downgrade(&changed));
        changed
    }
}

impl MetadataCache {
    /// Returns `true` if the generation answers instead of the uncached backend.
    pub(crate) fn has_generation(&self) -> bool {
        let since = self.inner.lease_term().map(|lease_term| lease_term.since);
        since.is_some() && self.state().generation.since == since
    }

    /// Lists the objects below a prefix in the uncached backend. A generation that the listing contradicts is in doubt from then on.
    pub(crate) async fn look(&self, prefix: Prefix) -> Result<Vec<ObjectInfo>> {
        let changed = self.state().lookers.begin();
        let query = ListQuery::all(prefix);
        let found = objects_of(self.inner.as_ref(), &query).await?;
        let mut state = self.state();
        let changed = changed.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation.since.is_some() && !agrees(&state.generation.objects, &query, &found, &changed) {
            state.doubt();
        }
        drop(state);
        Ok(found)
    }

    /// As [`look`](MetadataCache::look), unless the uncached backend answers anyway.
    pub(crate) async fn look_again(&self, prefix: Prefix) -> Result<()> {
        if self.has_generation() { self.look(prefix).await.map(drop) } else { Ok(()) }
    }
}

/// Lists all objects of a query.
pub(super) async fn objects_of(backend: &dyn Backend, query: &ListQuery) -> Result<Vec<ObjectInfo>> {
    let entries = list_all(backend, query).await?.into_entries().into_iter();
    let objects = entries.filter_map(|entry| match entry {
        ListEntry::Object(info) => Some(info),
        _ => None,
    });
    Ok(objects.collect())
}

/// Returns `true` if a listing shows the known objects, except for those that changed during the listing.
fn agrees(
    known: &BTreeMap<String, Kept>,
    query: &ListQuery,
    found: &[ObjectInfo],
    changed: &HashSet<String>,
) -> bool {
    mutated!("changes-of-others-are-unnoticed" => return true);
    let found: BTreeMap<String, &ObjectInfo> = found.iter().map(|info| (info.key.path(), info)).collect();
    let below = query.prefix.path();
    let is_gone =
        |path: &String| path.starts_with(&below) && !found.contains_key(path) && !changed.contains(path);
    let is_known = |(path, info): (&String, &&ObjectInfo)| {
        let is_same = |kept: &Kept| kept.version == info.version && kept.size == info.size;
        known.get(path).is_some_and(is_same) || changed.contains(path)
    };
    !known.keys().any(is_gone) && found.iter().all(is_known)
}

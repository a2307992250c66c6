//! Deletion of objects, and its outcome.

use futures::stream::{FuturesOrdered, StreamExt as _};

use crate::backend::s3::S3Backend;
use crate::backend::s3::lease::Care;
use crate::backend::s3::place::is_marker;
use crate::backend::{Backend as _, Deleted, Removal};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::s3::{Condition, Deletion, ListRequest, ListedObject, Support};

/// Number of requests at the same time, each for one object.
const DELETES_IN_FLIGHT: usize = 16;
/// Minimum number of objects for one request for all of them.
const DELETE_MANY: usize = 2;

impl S3Backend {
    /// Deletes objects, except those that an earlier put may store again.
    pub(super) async fn delete_settled(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let mut refused = Vec::with_capacity(removals.len());
        for removal in removals {
            refused.push(self.check_stays_deleted(&removal.key).await);
        }
        if refused.iter().all(Result::is_ok) {
            return self.delete_objects(removals).await;
        }
        let settled = removals.iter().zip(&refused).filter(|(_, refused)| refused.is_ok());
        let settled: Vec<_> = settled.map(|(removal, _)| removal.clone()).collect();
        let mut deleted = self.delete_objects(&settled).await?.into_iter();
        let result = |refused: Result<()>| refused.map_or_else(|error| Some(Err(error)), |()| deleted.next());
        Ok(refused.into_iter().filter_map(result).collect())
    }

    /// Fails while an earlier put may store this object again after a deletion, or while that is unknown.
    async fn check_stays_deleted(&self, key: &Key) -> Result<()> {
        self.lease.check_stays_deleted(key)?;
        let Some(left) = self.lease.may_be_under_way(key) else { return Ok(()) };
        let found = match self.client.head(&self.render(key)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            // No DELETE was sent, so the deletion is not in doubt.
            Err(error) => return Err(Error::new(ErrorKind::Busy, "delete").on(key).because(error)),
            Ok(head) => Some(head),
        };
        self.lease.check_not_recent(key, found.as_ref(), left)
    }

    pub(super) async fn delete_objects(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let simple = |removal: &Removal| {
            removal.version.is_none() && !matches!(removal.key.exposed(), Key::Namespace(_) | Key::Lease)
        };
        if removals.len() >= DELETE_MANY
            && self.server.multi_delete == Support::Yes
            && removals.iter().all(simple)
        {
            let keys: Vec<_> = removals.iter().map(|removal| self.render(&removal.key)).collect();
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            let attempt = self.lease.attempt(Care::Confirmed);
            let deleted = attempt.client().delete_many(&keys).await;
            let results = attempt.finish_deletes(deleted)?;
            return Ok(results.into_iter().map(|result| result.map(outcome)).collect());
        }
        let mut each = FuturesOrdered::new();
        let mut results = Vec::with_capacity(removals.len());
        for removal in removals {
            each.push_back(self.delete_one(removal));
            if each.len() >= DELETES_IN_FLIGHT {
                results.extend(each.next().await);
            }
        }
        results.extend(each.collect::<Vec<_>>().await);
        Ok(results)
    }

    async fn delete_one(&self, removal: &Removal) -> Result<Deleted> {
        let key = &removal.key;
        self.check_empty(key).await?;
        let condition = match &removal.version {
            None => Condition::Always,
            Some(_) if !self.capabilities.conditional_delete => {
                return Err(Error::new(ErrorKind::Unsupported, "delete on a condition").on(key));
            }
            Some(version) => Condition::Tag(self.tag(version)),
        };
        let deleted = if *key == Key::Lease {
            // Nothing of the store is stored from here on.
            self.reserve.forget();
            self.lease.remove(&condition).await
        } else {
            let attempt = self.lease.attempt(Care::Confirmed);
            let deleted = attempt.client().delete(&self.render(key), &condition).await;
            attempt.finish_delete(deleted)
        };
        match deleted {
            Ok(deletion) => Ok(outcome(deletion)),
            // Some servers return this for an absent object too.
            Err(error) if error.kind() == ErrorKind::Conflict && removal.version.is_some() => {
                match self.head(key).await {
                    Err(absent) if absent.kind() == ErrorKind::NotFound => Ok(Deleted::Absent),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Fails unless a namespace contains only its marker.
    async fn check_empty(&self, key: &Key) -> Result<()> {
        let Some(namespace) = key.marked_namespace() else { return Ok(()) };
        let mut request = ListRequest::new(self.render_prefix(&namespace));
        request.max_keys = Some(2);
        let marker = self.render(key);
        let is_content = |object: &ListedObject| {
            let is_other = object.key != marker && is_marker(&object.key, object.size);
            if is_other {
                self.markers.note(&object.key);
            }
            object.key != marker && !is_other
        };
        match self.client.find_listed(&request, is_content).await? {
            None => Ok(()),
            Some(_) => {
                Err(Error::new(ErrorKind::Conflict, "delete").on(key).because("the namespace is not empty"))
            }
        }
    }
}

fn outcome(deletion: Deletion) -> Deleted {
    match deletion {
        Deletion::Final => Deleted::Unknown,
        Deletion::InDoubt => Deleted::InDoubt,
    }
}

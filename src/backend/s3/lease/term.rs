//! Taking, renewing, reading and writing the lease.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::backend::in_doubt::MAX_REQUEST_TIME;
use crate::backend::s3::lease::found::Found;
use crate::backend::s3::lease::names::Doubt;
use crate::backend::s3::lease::{
    Held, LIFETIME, Lease, RENEWAL_INTERVAL, RETRY_INTERVAL, SETTLE_TIME, State, lost, unix_seconds,
};
use crate::backend::s3::mark::DEFAULT_HOST;
use crate::backend::s3::place::bare;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::lease_record::{LIMIT_BYTES, Record};
use crate::trace;

impl Lease {
    /// Takes the lease, for the first time or after a release.
    ///
    /// # Errors
    /// `Busy` if another process holds it, or takes it at the same time; `Denied` if the owner mark names another host.
    pub(super) async fn take(self: &Arc<Self>) -> Result<()> {
        let was_ours = self.mark.claim().await?;
        let found = self.read().await?;
        let (mut until, mut epoch, mut continues) = (None, 0, None);
        if let Some(found @ Found { record, .. }) = &found {
            epoch = record.epoch;
            if record.held {
                until = Some(self.last_request_until(found)?);
            }
            // A PBS that used the store meanwhile has removed our mark, but not the lease. The term does not continue then.
            continues = (was_ours && record.holder.instance == self.me.instance).then_some(epoch);
        }
        let holder = self.me.clone();
        let answered = found.as_ref().and_then(|found| found.head.answered);
        let server_now = answered.map(unix_seconds).unwrap_or_default();
        if let Some(Found { record, .. }) = &found {
            self.inherit_late_puts(&record.returning, server_now);
            self.inherit_segments(&record.segments, server_now);
        }
        until.inspect(|until| self.add_puts_of_dead_holder(*until, server_now));
        let doubt = Doubt::taken(found.as_ref(), server_now, until);
        let in_doubt_until = doubt.until;
        let mut record = Record {
            beat: 0,
            in_doubt: None,
            in_doubt_before: None,
            in_doubt_until: None,
            epoch: next(epoch)?,
            held: true,
            holder,
            removing: self.names_removed(),
            returning: BTreeMap::new(),
            segments: BTreeMap::new(),
        };
        doubt.write_to(&mut record);
        let sent = self.moment();
        (record.returning, record.segments) = (self.listed_late_puts(sent), self.listed_segments(sent));
        let tag = match self.write(&record, found.as_ref().map(|found| found.tag.as_str())).await {
            Ok(tag) if !tag.is_empty() => tag,
            Ok(_) => self.written(&record).await?.ok_or_else(taken_by_other)?,
            Err(error) => self.written(&record).await?.ok_or_else(|| match error.kind() {
                ErrorKind::AlreadyExists | ErrorKind::Conflict => taken_by_other(),
                _ => error,
            })?,
        };
        if !self.place.conditional {
            self.runtime.sleep(SETTLE_TIME).await;
            self.written(&record).await?.ok_or_else(taken_by_other)?;
        }
        let left = in_doubt_until.map(|until| until.saturating_sub(server_now));
        let in_doubt_until = left
            .filter(|left| *left > 0)
            .map(|left| sent.monotonic.saturating_add(Duration::from_secs(left)));
        let since = record.epoch;
        self.report(since, trace::Lease::Taken);
        let (confirmed, renewed) = (sent.monotonic, sent);
        *self.state() =
            State::Held(Held { confirmed, continues, in_doubt_until, record, renewed, since, tag });
        self.renew_regularly(since);
        Ok(())
    }

    /// The time, in Unix seconds by the clock of the server, after which no request of a holder that did not release the lease can be
    /// executed. Fails with `Busy` if the lease cannot be taken over yet.
    fn last_request_until(&self, found: &Found) -> Result<u64> {
        let holder = &found.record.holder;
        let busy = |why: String| Err(Error::new(ErrorKind::Busy, "lock the store").because(why));
        let (Some(age), Some(renewed)) = (found.head.age(), found.head.last_modified) else {
            return busy(format!(
                "{} holds the lease, and the answers of the server lack the times",
                holder.host
            ));
        };
        // Both times are in whole seconds, so their difference is not exact.
        let life = LIFETIME + Duration::from_secs(2);
        if age <= life && holder.instance != self.me.instance && !mutated!("lease-is-taken-from-its-holder") {
            let left = life.saturating_sub(age).as_secs() + 1;
            // The default name is that of no host.
            let on = if holder.host == DEFAULT_HOST { String::new() } else { format!(" on {}", holder.host) };
            let why =
                format!("the process {}{on} holds the lease for at least another {left} s", holder.instance);
            return busy(why).map_err(|error: Error| error.retry_in(Duration::from_secs(left)));
        }
        // It signed its last request at most a lifetime after its last renewal.
        Ok(unix_seconds(renewed + LIFETIME + MAX_REQUEST_TIME))
    }

    /// Renews the lease: replaces exactly the one that this process stored last. The caller holds `changing`.
    ///
    /// Only this process knows its nonce, and every content has another `beat`. So a stored record that equals the new one proves that this
    /// put, or an attempt of it, was executed; the nonce of another holder proves that the lease was lost.
    ///
    /// # Errors
    /// `Busy` if the lease was lost; `Unavailable` if that is unknown.
    pub(super) fn renew(self: &Arc<Self>, held: Held) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let sent = self.moment();
            let record = Record {
                beat: held.record.beat + 1,
                removing: self.names_removed(),
                returning: self.listed_late_puts(sent),
                segments: self.listed_segments(sent),
                ..held.record
            };
            if !self.place.conditional {
                let found = self.read().await?;
                if !found.as_ref().is_some_and(|found| self.is_mine(found)) {
                    return Err(self.lose(found.as_ref()));
                }
            }
            let tag = match self.write(&record, Some(&held.tag)).await {
                Ok(tag) if !tag.is_empty() => tag,
                written => match self.read().await? {
                    Some(found) if found.record == record => found.tag,
                    // The put had no effect, and no other process changed the lease: the next renewal retries against the same tag.
                    Some(found) if found.tag == held.tag => return written.map(drop),
                    // An earlier renewal of this process was executed late. The lease is still ours: the next renewal replaces that one.
                    Some(found) if self.is_mine(&found) && found.record.epoch >= self.last_epoch() => {
                        // It began a term if its epoch is a later one.
                        let is_same_term = found.record.epoch == self.last_epoch();
                        let continues = held.continues.filter(|_| is_same_term);
                        let found = Held { continues, record: found.record, tag: found.tag, ..held };
                        *self.state() = State::Held(found);
                        let error = Error::new(ErrorKind::Unavailable, "renew the lease");
                        return Err(error
                            .on(&self.place.lease)
                            .because("an earlier renewal was executed late"));
                    }
                    found => return Err(self.lose(found.as_ref())),
                },
            };
            // Counted from the time at which the put was sent: the server may have executed it right then.
            self.report(record.epoch, trace::Lease::Renewed);
            *self.state() =
                State::Held(Held { confirmed: sent.monotonic, record, renewed: sent, tag, ..held });
            Ok(())
        })
    }

    /// The last epoch that this process knows as stored; the largest one if it does not hold the lease any more.
    fn last_epoch(&self) -> u64 {
        if let State::Held(held) = &*self.state() { held.record.epoch } else { u64::MAX }
    }

    /// Renews the lease in the background while it is held and the backend exists.
    fn renew_regularly(self: &Arc<Self>, since: u64) {
        let (weak, runtime): (Weak<Self>, _) = (Arc::downgrade(self), Arc::clone(&self.runtime));
        self.runtime.spawn(Box::pin(async move {
            let mut pause = RENEWAL_INTERVAL;
            loop {
                runtime.sleep(pause).await;
                let Some(lease) = weak.upgrade() else { return };
                let _alone = lease.changing.lock().await;
                let State::Held(held) = lease.state().clone() else { return };
                if held.since != since {
                    return;
                }
                lease.reset_extra_renewals();
                // A failure is not reported here: the next change renews the lease first, and fails with it.
                let epoch = held.record.epoch;
                pause = RENEWAL_INTERVAL;
                if lease.renew(held).await.is_err() {
                    lease.report(epoch, trace::Lease::NotRenewed);
                    pause = RETRY_INTERVAL;
                }
            }
        }));
    }

    /// Replaces the lease with this tag, or creates it. In a full bucket the [reserve](crate::backend::s3::reserve) makes room for it.
    pub(super) async fn write(&self, record: &Record, over: Option<&str>) -> Result<String> {
        let json = record.encode().map_err(|error| self.internal(error))?;
        let condition = self.place.condition(over);
        let stored = self.reserve.put(&self.client, &self.place.lease, json.into(), &condition).await?;
        Ok(bare(&stored.etag).to_owned())
    }

    /// The tag of the stored lease if it is this record; `None` if another process stored one.
    async fn written(&self, record: &Record) -> Result<Option<String>> {
        let found = self.read().await?;
        Ok(found.filter(|found| found.record == *record).map(|found| found.tag))
    }

    pub(super) async fn read(&self) -> Result<Option<Found>> {
        let (bytes, head) = match self.client.get(&self.place.lease, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let record = Record::parse(&bytes);
        let corrupt = |error| Error::new(ErrorKind::Corrupt, "read").on(&self.place.lease).because(error);
        let tag = bare(&head.etag).to_owned();
        Ok(Some(Found { head, record: record.map_err(corrupt)?, tag }))
    }

    pub(super) fn lose(&self, found: Option<&Found>) -> Error {
        let holder = found.filter(|found| found.record.held).map(|found| &found.record.holder);
        let who = holder.map_or_else(|| "no process".to_owned(), |holder| holder.host.clone());
        let error = lost(&who);
        self.report(found.map_or(0, |found| found.record.epoch), trace::Lease::Lost);
        *self.state() = State::Lost(who);
        error
    }

    pub(super) fn is_mine(&self, found: &Found) -> bool {
        found.record.held && found.record.holder == self.me
    }

    fn internal(&self, error: serde_json::Error) -> Error {
        Error::new(ErrorKind::Internal, "write").on(&self.place.lease).because(error)
    }
}

/// The epoch after another.
pub(super) fn next(epoch: u64) -> Result<u64> {
    epoch.checked_add(1).ok_or_else(|| {
        let error = Error::new(ErrorKind::Corrupt, "lock the store");
        error.because("the epoch of the lease has its largest value")
    })
}

/// The error of a take that another process won.
fn taken_by_other() -> Error {
    let error = Error::new(ErrorKind::Busy, "lock the store")
        .because("another process took the lease at this moment");
    error.retry_in(LIFETIME)
}

//! Tests the capabilities of a server with objects of its own, and never relies on the name of the server (I12, H112).
//!
//! A store that answers 200 to a failed condition and overwrites the object is worse than one that refuses: the probe distinguishes them.
//! Its objects lie within the store, at `<store>/.larder/probe-…`, so credentials for the store are enough. It removes them
//! at the end; a failed probe may leave some.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::attempt::Sending;
use crate::s3::call::Call;
use crate::s3::capabilities::{S3Capabilities, Support};
use crate::s3::client::BucketClient;
use crate::s3::counters::Operation;
use crate::s3::list::ListRequest;
use crate::s3::object::Condition;
use crate::wire::sigv4::hex_sha256;

impl BucketClient {
    /// As [`S3Client::probe`](crate::s3::S3Client::probe).
    pub(super) async fn probe(&self, prefix: &str) -> Result<S3Capabilities> {
        let mut random = [0; 8];
        self.shared.runtime.fill_random(&mut random);
        let name = prefix.trim_end_matches('/');
        let slash = if name.is_empty() { "" } else { "/" };
        let place = format!("{name}{slash}.larder/probe-{:016x}/", u64::from_le_bytes(random));
        let probe = Probe { client: self, place, store: prefix };
        let found = probe.run().await;
        let removed = probe.clean_up().await;
        let mut found = found?;
        found.multi_delete = removed?;
        Ok(found)
    }
}

struct Probe<'a> {
    client: &'a BucketClient,
    place: String,
    store: &'a str,
}

/// Names of the probe's objects.
const NAMES: [&str; 4] = ["a", "b", "c", "copy"];

impl Probe<'_> {
    async fn run(&self) -> Result<S3Capabilities> {
        let mut found = S3Capabilities::unknown();
        let body = |text: &'static str| Bytes::from_static(text.as_bytes());
        for name in ["a", "b", "c"] {
            self.client.put(&self.key(name), body("first"), &Condition::Always).await?;
        }
        let (first, _) = self.client.get(&self.key("a"), 64).await?;
        if first != "first" {
            return Err(Error::new(ErrorKind::Corrupt, "probe the server").on(self.key("a")));
        }
        found.create_only_put = self.create_only().await?;
        (found.conditional_put, found.quoted_tags) = self.conditional_put().await?;
        found.conditional_delete = self.conditional_delete(found.quoted_tags).await?;
        found.checks_bodies = self.checks_bodies().await?;
        found.ranges = match self.client.get_range(&self.key("b"), 1..3).await {
            Ok((bytes, _)) if bytes == "ir" => Support::Yes,
            Ok(_) => Support::Ignored,
            Err(error) => refused(&error)?,
        };
        found.copy = match self.client.copy(&self.key("b"), &self.key("copy")).await {
            Ok(_) if self.holds("copy", "first").await? => Support::Yes,
            Ok(_) => Support::Ignored,
            Err(error) => refused(&error)?,
        };
        found.listing = self.listing().await?;
        found.keeps_versions = self.client.keeps_versions().await?;
        found.locks_objects = self.client.locks_objects().await?;
        let rules = self.client.lifecycle().await?;
        found.expires_objects = rules.map(|rules| {
            let concerns = |prefix: &str| self.store.starts_with(prefix) || prefix.starts_with(self.store);
            let harmful = rules.iter().filter(|rule| rule.enabled && (rule.expires || rule.transitions));
            harmful.into_iter().any(|rule| concerns(&rule.prefix))
        });
        found.clock_offset_seconds = self.client.clock_offset().0;
        Ok(found)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    async fn holds(&self, name: &str, text: &str) -> Result<bool> {
        Ok(self.client.get(&self.key(name), 64).await?.0 == text)
    }

    /// Once over an object, and once at a free key, which must succeed.
    async fn create_only(&self) -> Result<Support> {
        let over = self.client.put(&self.key("a"), Bytes::from_static(b"second"), &Condition::Absent).await;
        match over {
            Ok(_) => Ok(Support::Ignored),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !self.holds("a", "first").await? {
                    return Ok(Support::Ignored);
                }
                let _ = self.client.delete(&self.key("a"), &Condition::Always).await?;
                match self.client.put(&self.key("a"), Bytes::from_static(b"first"), &Condition::Absent).await
                {
                    Ok(_) => Ok(Support::Yes),
                    Err(error) => refused(&error),
                }
            }
            Err(error) => refused(&error),
        }
    }

    /// A wrong version must be refused, for an existing and a missing object; the right one must be accepted, with or
    /// without quotes.
    async fn conditional_put(&self) -> Result<(Support, bool)> {
        let wrong = wrong_tag();
        match self.client.put(&self.key("copy"), Bytes::from_static(b"second"), &wrong).await {
            // The put would bring back an object that another process deleted.
            Ok(_) => return Ok((Support::Ignored, true)),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Ok((refused(&error)?, true)),
        }
        match self.client.put(&self.key("b"), Bytes::from_static(b"second"), &wrong).await {
            Ok(_) => {
                self.client.put(&self.key("b"), Bytes::from_static(b"first"), &Condition::Always).await?;
                return Ok((Support::Ignored, true));
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Ok((refused(&error)?, true)),
        }
        let etag = self.client.head(&self.key("b")).await?.etag;
        let plain = etag.trim_matches('"');
        for (tag, quoted) in [(format!("\"{plain}\""), true), (plain.to_owned(), false)] {
            match self.client.put(&self.key("b"), Bytes::from_static(b"first"), &Condition::Tag(tag)).await {
                Ok(_) => return Ok((Support::Yes, quoted)),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Ok((refused(&error)?, true)),
            }
        }
        Ok((Support::Refused, true))
    }

    /// As [`conditional_put`](Self::conditional_put); `quoted` is its result.
    async fn conditional_delete(&self, quoted: bool) -> Result<Support> {
        let key = self.key("c");
        match self.client.delete(&key, &wrong_tag()).await {
            Ok(_) => return Ok(Support::Ignored),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return refused(&error),
        }
        let etag = match self.client.head(&key).await {
            Ok(head) => head.etag,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Support::Ignored),
            Err(error) => return Err(error),
        };
        let plain = etag.trim_matches('"');
        let right = if quoted { format!("\"{plain}\"") } else { plain.to_owned() };
        match self.client.delete(&key, &Condition::Tag(right)).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(Support::Refused),
            Err(error) => return refused(&error),
        }
        match self.client.head(&key).await {
            Ok(_) => Ok(Support::Ignored),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Support::Yes),
            Err(error) => Err(error),
        }
    }

    /// A body with a wrongly signed hash must not be stored.
    async fn checks_bodies(&self) -> Result<Support> {
        let key = self.key("c");
        let mut call = Call::new(Operation::Put, "PUT", Some(&key));
        call.body = Bytes::from_static(b"damaged");
        let shared = &self.client.shared;
        let deadline = shared.deadline(Duration::ZERO);
        let hash = hex_sha256(b"sent");
        let sending = Sending { deadline, failed: None, guard: None, hash: &hash, place: None };
        let sent = shared.attempt(&call, sending).await?;
        let status = sent.outcome.map_or(0, |response| response.status);
        // The stored object counts, not the answer.
        let stored = match self.client.get(&key, 64).await {
            Ok((found, _)) => found == "damaged",
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(match (stored, status) {
            (true, _) => Support::Ignored,
            (false, 0 | 429 | 502..=504) => Support::Unknown,
            (false, _) => Support::Yes,
        })
    }

    /// All objects in pages of one, and the page after one of them.
    async fn listing(&self) -> Result<Support> {
        let mut request = ListRequest::new(self.place.clone());
        request.max_keys = Some(1);
        let (mut keys, mut token) = (Vec::new(), None);
        for _ in 0..=NAMES.len() {
            let page = match self.client.list(&request, token.as_deref()).await {
                Ok(page) => page,
                Err(error) => return refused(&error),
            };
            keys.extend(page.listing.objects.into_iter().map(|object| object.key));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        request.start_after = keys.first().cloned();
        request.max_keys = None;
        let after = match self.client.list(&request, None).await {
            Ok(page) => page.listing.objects,
            Err(error) => return refused(&error),
        };
        let after: Vec<_> = after.into_iter().map(|object| object.key).collect();
        let complete =
            keys.is_sorted() && keys.first() == Some(&self.key("a")) && keys.contains(&self.key("b"));
        Ok(if complete && keys.get(1..) == Some(&after[..]) { Support::Yes } else { Support::Ignored })
    }

    /// Deletes all objects in bulk, and one by one if that fails.
    async fn clean_up(&self) -> Result<Support> {
        let keys = NAMES.map(|name| self.key(name));
        let many = self.client.delete_many(&keys.each_ref().map(String::as_str)).await;
        let support = match many {
            Ok(results) if results.iter().all(Result::is_ok) => match self.client.head(&keys[0]).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Support::Yes,
                Err(error) => return Err(error),
                Ok(_) => Support::Ignored,
            },
            Err(error) => refused(&error)?,
            Ok(_) => Support::Refused,
        };
        if support != Support::Yes {
            for key in &keys {
                let _ = self.client.delete(key, &Condition::Always).await?;
            }
        }
        Ok(support)
    }
}

/// A condition that no object meets.
fn wrong_tag() -> Condition {
    Condition::Tag("\"0123456789abcdef0123456789abcdef\"".to_owned())
}

/// `Ok` for a refusal by the server; other failures prove nothing and are returned.
fn refused(error: &Error) -> Result<Support> {
    match error.kind() {
        ErrorKind::Denied | ErrorKind::Full | ErrorKind::Internal | ErrorKind::Unavailable => {
            Err(error.clone())
        }
        _ => Ok(Support::Refused),
    }
}

use std::fmt;

use crate::crypt::KeyFingerprint;
use crate::error::{Error, ErrorKind, Result};
use crate::format::json::{Json, Object};
use crate::format::manifest::{Manifest, ManifestError, field};
use crate::format::name::BackupTime;
use crate::format::upid::Upid;

const FINGERPRINT: &str = "key-fingerprint";
const NOTES: &str = "notes";
const SOURCE_MARK: &str = "sync-source-signature";
const STATS: &str = "chunk_upload_stats";
const VERIFY_STATE: &str = "verify_state";

fn unreadable(error: ManifestError) -> Error {
    Error::new(ErrorKind::Corrupt, "read the manifest").because(error)
}

/// The part of a manifest that its signature does not cover. Source: PBS datastore format §6.4.
impl Manifest {
    /// The notes of the snapshot, any number of lines. `None` also if the stored value is not a string.
    pub fn notes(&self) -> Option<&str> {
        self.unprotected.get(NOTES)?.as_str()
    }

    /// Replaces or removes the notes.
    pub(crate) fn set_notes(&mut self, notes: Option<&str>) {
        self.set(NOTES, notes.map(Json::from));
    }

    /// Result of the last verification; `None` if there was none.
    ///
    /// # Errors
    /// `Corrupt` if the state cannot be parsed. The result of the last verification is then unknown.
    pub fn verify_state(&self) -> Result<Option<VerifyState>> {
        let Some(state) = self.unprotected.get(VERIFY_STATE) else {
            return Ok(None);
        };
        field(VERIFY_STATE, VerifyState::parse(state)).map(Some).map_err(unreadable)
    }

    /// Replaces or removes the result of the last verification.
    pub(crate) fn set_verify_state(&mut self, state: Option<&VerifyState>) {
        self.set(VERIFY_STATE, state.map(VerifyState::to_json));
    }

    /// Fingerprint of the key that encrypted or signed the backup; `None` if none is recorded.
    ///
    /// # Errors
    /// `Corrupt` if the stored value cannot be parsed.
    pub fn key_fingerprint(&self) -> Result<Option<KeyFingerprint>> {
        let Some(fingerprint) = self.unprotected.get(FINGERPRINT) else {
            return Ok(None);
        };
        field(FINGERPRINT, fingerprint.as_str().and_then(|it| it.parse().ok())).map(Some).map_err(unreadable)
    }

    /// Replaces or removes the fingerprint of the key.
    pub(crate) fn set_key_fingerprint(&mut self, fingerprint: Option<KeyFingerprint>) {
        self.set(FINGERPRINT, fingerprint.map(|it| Json::from(it.to_string())));
    }

    /// Signature of the snapshot from which a sync made this one with another key.
    pub(crate) fn source_mark(&self) -> Option<&str> {
        self.unprotected.get(SOURCE_MARK)?.as_str()
    }

    /// Replaces the signature of the snapshot from which this one was made.
    pub(crate) fn set_source_mark(&mut self, mark: &str) {
        self.set(SOURCE_MARK, Some(Json::from(mark)));
    }

    /// Upload statistics of the backup. `None` also if they cannot be parsed, since they are informational.
    pub(crate) fn chunk_upload_stats(&self) -> Option<UploadStats> {
        let Json::Object(stats) = self.unprotected.get(STATS)? else {
            return None;
        };
        let number = |name| stats.get(name)?.as_size();
        Some(UploadStats {
            count: number("count")?,
            size: number("size")?,
            compressed_size: number("compressed_size")?,
            duplicates: number("duplicates")?,
        })
    }

    /// Replaces or removes the upload statistics.
    pub(crate) fn set_chunk_upload_stats(&mut self, stats: Option<UploadStats>) {
        self.set(STATS, stats.map(UploadStats::to_json));
    }

    /// The keys of the unprotected part.
    #[cfg(test)]
    pub(crate) fn unprotected_keys(&self) -> impl Iterator<Item = &str> {
        self.unprotected.keys().map(String::as_str)
    }

    /// The value of `key`, as JSON text without white space.
    pub(crate) fn unprotected(&self, key: &str) -> Option<String> {
        self.unprotected.get(key).map(Json::compact)
    }

    /// Replaces or removes the value of `key`. PBS keeps unknown keys here.
    ///
    /// # Errors
    /// If `json` is not JSON text, or contains a duplicate key. Nothing is changed then.
    #[cfg(test)]
    pub(crate) fn set_unprotected(&mut self, key: &str, json: Option<&str>) -> Result<(), ManifestError> {
        let value = json.map(|text| Json::parse(text.as_bytes())).transpose()?;
        self.set(key, value);
        Ok(())
    }

    fn set(&mut self, key: &str, value: Option<Json>) {
        match value {
            Some(value) => self.unprotected.insert(key.to_owned(), value),
            None => self.unprotected.remove(key),
        };
    }
}

/// Result of the last verification of a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VerifyState {
    /// Task id of the verification. Its start is the time of the verification.
    pub upid: Upid,
    /// The result.
    pub state: VerifyResult,
}

/// State of a verification. The format defines exactly these two, so the enum is exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum VerifyResult {
    /// Something was missing or damaged.
    Failed,
    /// Everything was present and intact.
    Ok,
}

impl fmt::Display for VerifyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        match BackupTime::from_epoch(self.upid.start_epoch()) {
            Ok(time) => write!(f, " at {time}"),
            Err(_) => Ok(()),
        }
    }
}

impl fmt::Display for VerifyResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "verification failed",
            Self::Ok => "verified",
        })
    }
}

impl VerifyState {
    /// A result of the task `upid`.
    #[must_use]
    pub(crate) const fn new(upid: Upid, state: VerifyResult) -> Self {
        Self { upid, state }
    }

    fn parse(json: &Json) -> Option<Self> {
        let Json::Object(object) = json else {
            return None;
        };
        let state = match object.get("state")?.as_str()? {
            "failed" => VerifyResult::Failed,
            "ok" => VerifyResult::Ok,
            _ => return None,
        };
        Some(Self { upid: object.get("upid")?.as_str()?.parse().ok()?, state })
    }

    fn to_json(&self) -> Json {
        let state = match self.state {
            VerifyResult::Failed => "failed",
            VerifyResult::Ok => "ok",
        };
        let entries = [("state", state), ("upid", self.upid.as_str())];
        Json::Object(entries.map(|(key, text)| (key.to_owned(), Json::from(text))).into())
    }
}

/// Upload statistics of a backup: each chunk counts once an archive, chunks of the previous snapshot not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UploadStats {
    /// Chunks sent.
    pub(crate) count: u64,
    /// Bytes of their contents, and of every blob as stored.
    pub(crate) size: u64,
    /// Stored bytes of the chunks.
    pub(crate) compressed_size: u64,
    /// Number of chunks that the store had already.
    pub(crate) duplicates: u64,
}

impl UploadStats {
    fn to_json(self) -> Json {
        let Self { count, size, compressed_size, duplicates } = self;
        let entries = [
            ("compressed_size", compressed_size),
            ("count", count),
            ("duplicates", duplicates),
            ("size", size),
        ];
        Json::Object(Object::from(entries.map(|(key, number)| (key.to_owned(), Json::from(number)))))
    }
}

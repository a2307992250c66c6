//! Change of the key of a snapshot on its way to the target.
//!
//! A snapshot gets new chunks, blobs and indexes under the key of the target, and a new signed manifest. Names, boundaries of chunks and notes
//! stay. The state of verification does not, since it says nothing about the new chunks. The encrypted key of a backup for a master key stays behind, because it is another key.
//!
//! # Identity
//! The stored bytes of both snapshots have nothing in common. So the new manifest has a *mark*, in its unprotected part where PBS keeps it: the
//! signature of the original, or the SHA-256 of its canonical form if it is not signed. A later sync compares marks.
//!
//! # Known chunks
//! The digest under the new key is that of the plaintext, so a chunk must be read to learn it. To read each chunk once, the digests of chunks that
//! the target has are taken from pairs of snapshots, original and result, whose indexes have the same entries in the same order: the newest
//! snapshot of the target, and those that this run transferred. The original is authenticated or equal to the mark, the result is authenticated.

use std::collections::HashMap;
use std::sync::Arc;

use crate::chunks::WriterPins;
use crate::crypt::{EncryptionKey, KeyFingerprint};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::manifest::{CryptMode, Manifest, ManifestFile};
use crate::store::has_failed_verification;
use crate::sync::kinds::{SyncConflict, Verdict};
use crate::sync::options::SyncOptions;

/// Digests under the key of the target, by the digests at the source.
pub(super) type NewDigests = HashMap<Digest, Digest>;

/// Chunks under the key of the target.
#[derive(Clone, Debug)]
pub(super) struct Rekeyed {
    /// Of the newest snapshot.
    pub(super) digests: Arc<NewDigests>,
    /// Pinned with the key, and confirmed.
    pub(super) pins: Arc<WriterPins>,
}

/// Keys of one snapshot.
#[derive(Clone, Debug)]
pub(super) struct KeyChange {
    mark: String,
    /// `None` if the snapshot is plain at the source.
    source: Option<EncryptionKey>,
    pub(super) target: EncryptionKey,
}

impl KeyChange {
    /// The change that the options require for a snapshot of the source; `None` if it is transferred as it is.
    ///
    /// # Errors
    /// `KeyRequired` if the options lack its key; `Corrupt` if its key did not sign the manifest.
    pub(super) fn of(options: &SyncOptions, manifest: &Manifest) -> Result<Option<Self>> {
        let Some(target) = &options.reencrypt else { return Ok(None) };
        let fingerprint = manifest.key_fingerprint()?;
        let source = match fingerprint {
            None if manifest.files().iter().any(|file| file.crypt_mode == CryptMode::Encrypt) => {
                let error = Error::new(ErrorKind::KeyRequired, "change the key");
                return Err(error.because("the manifest does not name its key"));
            }
            None => None,
            Some(fingerprint) => {
                let mut keys = options.source_keys.iter().chain([target]);
                let key = keys.find(|key| key.fingerprint() == fingerprint).ok_or_else(|| {
                    let error = Error::new(ErrorKind::KeyRequired, "change the key");
                    error.because(format!("its key is {fingerprint}"))
                })?;
                manifest.authenticate(key)?;
                let is_encrypted = manifest.files().iter().all(|file| file.crypt_mode == CryptMode::Encrypt);
                if key == target && is_encrypted {
                    return Ok(None);
                }
                Some(key.clone())
            }
        };
        let mark = manifest.signature().unwrap_or_else(|| Digest::of(&manifest.canonical_json()));
        let mark = KeyFingerprint::from_bytes(*mark.as_bytes()).to_string();
        Ok(Some(Self { mark, source, target: target.clone() }))
    }

    /// The key of a file at the source; `None` if it is plain.
    pub(super) fn source_key(&self, file: &ManifestFile) -> Option<&EncryptionKey> {
        self.source.as_ref().filter(|_| file.crypt_mode == CryptMode::Encrypt)
    }

    /// The key of the client log at the source, if it is encrypted.
    pub(super) fn log_key(&self) -> Option<&EncryptionKey> {
        self.source.as_ref()
    }

    /// Returns `true` if a snapshot of the target is the result of this change, and authentic.
    pub(super) fn made(&self, theirs: &Manifest) -> bool {
        theirs.source_mark() == Some(self.mark.as_str()) && theirs.authenticate(&self.target).is_ok()
    }

    /// Compares manifests; `None` for one that cannot be read. The snapshot at the target is the same if it is the result of this change.
    pub(super) fn compare(
        &self,
        source: &Manifest,
        target: Option<&Manifest>,
        resync_corrupt: bool,
    ) -> Verdict {
        let Some(theirs) = target else {
            return if resync_corrupt { Verdict::Everything } else { Verdict::Damaged };
        };
        if !self.made(theirs) {
            return Verdict::Conflict(SyncConflict::Key);
        }
        match has_failed_verification(theirs) {
            true if resync_corrupt => Verdict::Everything,
            true => Verdict::Damaged,
            false if theirs.notes() == source.notes() => Verdict::Same,
            false => Verdict::Manifest,
        }
    }

    /// The manifest at the target, of these files.
    pub(super) fn manifest(&self, source: &Manifest, files: Vec<ManifestFile>) -> Result<Manifest> {
        let mut manifest = Manifest::new(source.backup_type(), source.id().clone(), source.time());
        for file in files {
            manifest
                .add_file(file)
                .map_err(|error| Error::new(ErrorKind::Internal, "change the key").because(error))?;
        }
        manifest.set_notes(source.notes());
        manifest.set_chunk_upload_stats(source.chunk_upload_stats());
        manifest.set_source_mark(&self.mark);
        manifest.sign(&self.target);
        Ok(manifest)
    }
}

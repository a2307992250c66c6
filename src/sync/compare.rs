//! Comparison of two snapshots of one name.
//!
//! What counts is what was backed up and how it is protected: files, sizes, checksums, modes of encryption, key, signature. Notes,
//! the state of verification and the statistics of the upload may differ (H52).

use bytes::Bytes;

use crate::format::manifest::{CryptMode, Manifest, ManifestFile};
use crate::store::has_failed_verification;
use crate::sync::key_change::KeyChange;
use crate::sync::kinds::{SyncConflict, Verdict};

/// Compares manifests, each as it is stored and as what it says; `None` for one that cannot be read. If the key changes, the snapshot at the
/// target is the same if it is the result of the change.
pub(super) fn compare(
    source: (&Bytes, &Manifest),
    change: Option<&KeyChange>,
    target: Option<(&Bytes, &Manifest)>,
    resync_corrupt: bool,
) -> Verdict {
    if let Some(change) = change {
        return change.compare(source.1, target.map(|target| target.1), resync_corrupt);
    }
    let Some((bytes, theirs)) = target else {
        return if resync_corrupt { Verdict::Everything } else { Verdict::Damaged };
    };
    let is_bad = has_failed_verification(theirs);
    let is_to_be_replaced = is_bad && resync_corrupt;
    if source.0 == bytes && !is_to_be_replaced {
        return Verdict::Same;
    }
    let conflict = conflict(source.1, theirs);
    let loses_encryption = has_encrypted(theirs) && !has_encrypted(source.1);
    match conflict {
        _ if is_to_be_replaced && !loses_encryption => Verdict::Everything,
        Some(conflict) => Verdict::Conflict(conflict),
        // A snapshot known to be bad must not become good because the source is.
        None if is_bad => Verdict::Damaged,
        None => Verdict::Manifest,
    }
}

fn conflict(ours: &Manifest, theirs: &Manifest) -> Option<SyncConflict> {
    fn sorted(manifest: &Manifest) -> Vec<&ManifestFile> {
        let mut files: Vec<_> = manifest.files().iter().collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }
    let (our_files, their_files) = (sorted(ours), sorted(theirs));
    let modes = |files: &[&ManifestFile]| -> Vec<_> { files.iter().map(|file| file.crypt_mode).collect() };
    if has_encrypted(ours) != has_encrypted(theirs)
        || our_files.len() == their_files.len() && modes(&our_files) != modes(&their_files)
    {
        return Some(SyncConflict::Encryption);
    }
    // As text: one that cannot be read is the same only as itself.
    let key = |manifest: &Manifest| (manifest.unprotected("key-fingerprint"), manifest.signature());
    let content = |files: &[&ManifestFile]| -> Vec<_> {
        files.iter().map(|file| (file.name.clone(), file.size, file.checksum)).collect()
    };
    let has_same_content = content(&our_files) == content(&their_files);
    let (our_key, their_key) = (key(ours), key(theirs));
    if our_key.0 != their_key.0 || has_same_content && our_key.1 != their_key.1 {
        return Some(SyncConflict::Key);
    }
    (!has_same_content).then_some(SyncConflict::Content)
}

fn has_encrypted(manifest: &Manifest) -> bool {
    manifest.files().iter().any(|file| file.crypt_mode == CryptMode::Encrypt)
}

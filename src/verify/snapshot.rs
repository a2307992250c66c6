//! Check of one snapshot in one pass.

use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind};
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::manifest::{CryptMode, Manifest, ManifestFile};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::{Copies, SnapshotInfo, yield_now};
use crate::verify::chunk::Step;
use crate::verify::conclusion::{Conclusion, Tally};
use crate::verify::context::{Run, Work};
use crate::verify::findings::{Visit, VisitFindings};
use crate::verify::ledger::ChunkId;
use crate::verify::options::VerifyMode;
use crate::verify::passes::Which;
use crate::verify::report::{ObjectFault, SkipReason, VerifyEvent};

/// Number of entries of an index after which other tasks have a turn.
const ENTRIES_AT_ONCE: usize = 1024;

/// An object that is read as a whole, and its counterpart.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Blob(Option<&'a ManifestFile>, Option<&'a EncryptionKey>),
    Index(&'a ManifestFile),
    Manifest(&'a SnapshotName),
}

/// Result of reading it.
enum Found {
    Blob,
    Corrupt,
    Index(IndexReader),
    Manifest(Box<Manifest>),
    Missing,
    Stopped,
    Unreachable(ErrorKind),
}

impl Run {
    /// Checks a snapshot in one pass. The pass has concluded it only if its results are complete and recorded.
    pub(super) async fn snapshot(&self, visit: Visit, work: Work<'_>) {
        let Some(target) = self.targets.get(visit.snapshot) else { return };
        if self.control.stopped().is_some() {
            return;
        }
        let name = &target.name;
        let mut conclusion = Conclusion::new(visit, name.clone(), work.merge());
        let lock = match self.store.inner().locks().snapshot_to_read(name).await {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::Busy => {
                return self.keep_skipped(conclusion, SkipReason::Busy);
            }
            Err(error) => return self.keep_unreachable(conclusion, error.kind()),
        };
        let manifest = Key::Manifest(name.clone());
        match self.object(&mut conclusion.found, &manifest, Wanted::Manifest(name)).await {
            Found::Manifest(manifest) => {
                let is_before = self.was_verified(visit.snapshot, &manifest);
                if self.passes().which(visit.pass) == Which::VerifiedBefore && !is_before {
                    return self.conclude(conclusion);
                }
                let work = match work {
                    Work::Full(Some(listed)) if is_before => {
                        conclusion.found.skipped = Some(SkipReason::VerifiedBefore);
                        Work::Presence(listed)
                    }
                    work => work,
                };
                let Ok(key) = self.key_number(&manifest) else {
                    // A manifest that is not authentic is never updated.
                    conclusion.found.damage.manifest = Some(ObjectFault::Signature);
                    return self.conclude(conclusion);
                };
                self.notify(&VerifyEvent::SnapshotStarted { snapshot: name.clone() });
                conclusion.lock = Some(lock);
                self.files(&mut conclusion, target, (&manifest, key), work).await;
                self.submit(conclusion).await;
            }
            Found::Missing => {
                // Otherwise the lock file would stay.
                lock.release_deleted().await;
                conclusion.found.skipped = Some(SkipReason::Vanished);
                self.conclude(conclusion);
            }
            Found::Unreachable(kind) => self.keep_unreachable(conclusion, kind),
            Found::Stopped => {}
            Found::Blob | Found::Corrupt | Found::Index(_) => {
                // An unreadable manifest is never updated.
                conclusion.found.damage.manifest = Some(ObjectFault::Corrupt);
                self.conclude(conclusion);
            }
        }
    }

    /// Number of the key of a snapshot, 0 if it is not known. Fails if the key did not sign the manifest.
    fn key_number(&self, manifest: &Manifest) -> Result<u8, Error> {
        let Ok(Some(fingerprint)) = manifest.key_fingerprint() else { return Ok(0) };
        let mut keys = (1..).zip(&self.options.keys);
        let Some((number, key)) = keys.find(|(_, key)| key.fingerprint() == fingerprint) else {
            return Ok(0);
        };
        mutated!("verify-without-the-signature" => return Ok(number));
        manifest.authenticate(key).map(|()| number)
    }

    /// Concludes a snapshot without a state to record.
    fn conclude(&self, conclusion: Conclusion) {
        self.findings().conclude(conclusion.visit, conclusion.found);
        self.passes().conclude(conclusion.visit);
    }

    /// Skips a snapshot until the next execution.
    fn keep_skipped(&self, mut conclusion: Conclusion, reason: SkipReason) {
        conclusion.found.skipped = Some(reason);
        self.findings().keep(conclusion.visit, conclusion.found);
    }

    fn keep_unreachable(&self, conclusion: Conclusion, kind: ErrorKind) {
        self.control.count_unreachable();
        self.keep_skipped(conclusion, SkipReason::Unreachable(kind));
    }

    /// Returns `true` if the snapshot was verified recently. A time in the future does not count. The first answer stays, because later
    /// passes and executions find the state that this run recorded.
    fn was_verified(&self, snapshot: usize, manifest: &Manifest) -> bool {
        let is_recent = |within: Duration| {
            let state = manifest.verify_state().ok().flatten()?;
            let start = u64::try_from(state.upid.start_epoch()).ok()?;
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(start);
            self.now.duration_since(start).ok().filter(|age| *age <= within)
        };
        let now = || self.options.skip_verified_within.and_then(is_recent).is_some();
        self.verified().get_mut(snapshot).is_some_and(|verified| *verified.get_or_insert_with(now))
    }

    async fn files(
        &self,
        conclusion: &mut Conclusion,
        target: &SnapshotInfo,
        (manifest, key): (&Manifest, u8),
        work: Work<'_>,
    ) {
        let is_full = matches!(work, Work::Full(_));
        conclusion.is_read = is_full;
        let decrypting = self.key_of(key);
        for file in manifest.files() {
            let place = Key::Archive(target.name.clone(), file.name.clone());
            let found = match (file.name.kind(), work) {
                (ArchiveKind::Blob, Work::Full(_)) => {
                    self.object(&mut conclusion.found, &place, Wanted::Blob(Some(file), decrypting)).await
                }
                (ArchiveKind::Blob, _) => self.find_blob(target, &place, file).await,
                (ArchiveKind::Dynamic | ArchiveKind::Fixed, _) => {
                    self.object(&mut conclusion.found, &place, Wanted::Index(file)).await
                }
            };
            match found {
                Found::Blob | Found::Manifest(_) => {}
                Found::Corrupt => conclusion.fault(file, ObjectFault::Corrupt),
                Found::Index(index) => conclusion.tally(file, self.chunks(&index, (file, key), work).await),
                Found::Missing => conclusion.fault(file, ObjectFault::Missing),
                Found::Stopped => conclusion.open = true,
                Found::Unreachable(_) => {
                    self.control.count_unreachable();
                    conclusion.open = true;
                }
            }
        }
        if target.has_client_log && is_full {
            let place = Key::ClientLog(target.name.clone());
            let log = self.object(&mut conclusion.found, &place, Wanted::Blob(None, decrypting)).await;
            conclusion.found.has_damaged_log = matches!(log, Found::Corrupt);
            conclusion.is_log_open = matches!(log, Found::Stopped | Found::Unreachable(_));
        }
    }

    /// Looks up a blob without reading it.
    async fn find_blob(&self, target: &SnapshotInfo, key: &Key, file: &ManifestFile) -> Found {
        let listed = target.files.iter().find(|listed| listed.name == file.name);
        if listed.is_some_and(|listed| listed.stored_bytes == file.size) {
            return Found::Blob;
        }
        if !self.control.admit() {
            return Found::Stopped;
        }
        match self.store.inner().uncached_backend().head(key).await {
            Ok(info) if info.size == file.size => Found::Blob,
            Ok(_) => Found::Corrupt,
            Err(error) if error.kind() == ErrorKind::NotFound => Found::Missing,
            Err(error) => Found::Unreachable(error.kind()),
        }
    }

    /// Reads and checks an object. It is reported corrupt only if another fetch is corrupt too. A run that does not check contents may
    /// use local copies, but only a good one counts (H69).
    async fn object(&self, found: &mut VisitFindings, key: &Key, wanted: Wanted<'_>) -> Found {
        if self.options.mode != VerifyMode::Full
            && let good @ (Found::Index(_) | Found::Manifest(_)) =
                self.object_once(key, wanted, Copies::Use).await
        {
            found.objects += 1;
            return good;
        }
        let (mut left, mut was_corrupt) = (self.options.refetches, false);
        loop {
            let object = self.object_once(key, wanted, Copies::Bypass).await;
            match object {
                Found::Corrupt if left > 0 => (left, was_corrupt) = (left - 1, true),
                Found::Blob | Found::Index(_) | Found::Manifest(_) => {
                    found.objects += 1;
                    found.unsteady += u64::from(was_corrupt);
                    return object;
                }
                _ => return object,
            }
        }
    }

    async fn object_once(&self, key: &Key, wanted: Wanted<'_>, copies: Copies) -> Found {
        if !self.control.admit() {
            return Found::Stopped;
        }
        let failed = |error: Error| match error.kind() {
            ErrorKind::Corrupt => Found::Corrupt,
            ErrorKind::NotFound => Found::Missing,
            kind => Found::Unreachable(kind),
        };
        let stored = match self.store.inner().snapshot_files().read(key, copies).await {
            Ok(stored) => stored,
            Err(error) => return failed(error),
        };
        self.control.count_bytes(stored.len() as u64);
        match wanted {
            Wanted::Blob(file, decrypting) => self
                .store
                .inner()
                .snapshot_files()
                .check_blob(key, file, stored, decrypting)
                .await
                .map_or_else(failed, |()| Found::Blob),
            Wanted::Index(file) => self
                .store
                .inner()
                .snapshot_files()
                .parse_index(key, file, stored)
                .await
                .map_or_else(failed, Found::Index),
            Wanted::Manifest(name) => {
                let manifest = self.store.inner().manifests().parse(name, stored).await;
                match manifest {
                    Ok(manifest) => Found::Manifest(Box::new(manifest)),
                    // A manifest is never encrypted.
                    Err(error) if error.kind() == ErrorKind::KeyRequired => Found::Corrupt,
                    Err(error) => failed(error),
                }
            }
        }
    }

    /// Checks the chunks of an archive, many concurrently.
    async fn chunks(&self, index: &IndexReader, (file, key): (&ManifestFile, u8), work: Work<'_>) -> Tally {
        let is_encrypted = file.crypt_mode == CryptMode::Encrypt;
        let key = if is_encrypted { key } else { 0 };
        let mut tally = Tally::new(is_encrypted);
        let mut checks = FuturesUnordered::new();
        for number in 0..index.len() {
            if number % ENTRIES_AT_ONCE == 0 {
                yield_now().await;
                while let Some(Some((id, verdict))) = checks.next().now_or_never() {
                    tally.add(id, verdict);
                }
            }
            if self.control.stopped().is_some() {
                tally.open = true;
                break;
            }
            let Some(entry) = index.chunk(number) else { continue };
            let Some(length) =
                u32::try_from(entry.len).ok().filter(|length| *length as usize <= MAX_CHUNK_BYTES)
            else {
                // No chunk is that long, so no stored chunk matches.
                tally.misfits.insert(ChunkId { digest: entry.digest, key, length: u32::MAX });
                continue;
            };
            let id = ChunkId { digest: entry.digest, key, length };
            match self.step(id, work) {
                Step::Done(verdict) => tally.add(id, verdict),
                Step::Later(turn, depth) => {
                    while checks.len() >= self.concurrency
                        && let Some((id, verdict)) = checks.next().await
                    {
                        tally.add(id, verdict);
                    }
                    checks.push(self.check(id, turn, depth));
                }
            }
        }
        while let Some((id, verdict)) = checks.next().await {
            tally.add(id, verdict);
        }
        tally
    }
}

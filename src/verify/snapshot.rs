//! How one snapshot is looked at.

use std::collections::HashSet;

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::error::{Error, ErrorKind};
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::manifest::{CryptMode, Manifest, ManifestFile, VerifyResult, VerifyState};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::{Copies, SnapshotInfo, yield_now};
use crate::verify::chunk::Step;
use crate::verify::conclusion::{Conclusion, Tally};
use crate::verify::context::{Run, Which, Work};
use crate::verify::ledger::ChunkId;
use crate::verify::options::{Mode, Recording, Repair};
use crate::verify::report::{Event, Fault, LISTED, SkipReason};

/// After how many entries of an index other tasks have a turn.
const ENTRIES_AT_ONCE: usize = 1024;

/// An object that is read whole, and what it has to fit.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Blob(Option<&'a ManifestFile>),
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
    /// Looks at a snapshot in one pass.
    pub(super) async fn snapshot(&self, number: usize, work: Work<'_>, which: Which) {
        let Some(target) = self.targets.get(number) else { return };
        if self.control.stopped().is_some() {
            return;
        }
        let name = &target.name;
        let lock = match self.store.inner().locks().snapshot_to_read(name).await {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::Busy => {
                return self.findings().skip(name, SkipReason::Busy);
            }
            Err(error) => return self.unreachable(name, error.kind()),
        };
        let mut conclusion = Conclusion::new(name.clone(), work.merge(which));
        match self.object(&Key::Manifest(name.clone()), Wanted::Manifest(name)).await {
            Found::Manifest(manifest) => {
                let is_before = self.was_verified(&manifest);
                if which == Which::VerifiedBefore && !is_before {
                    return;
                }
                let work = match work {
                    Work::Full(Some(listed)) if is_before => {
                        self.findings().skip(name, SkipReason::VerifiedBefore);
                        Work::Presence(listed)
                    }
                    work => work,
                };
                self.tell(&Event::SnapshotStarted { snapshot: name });
                conclusion.lock = Some(lock);
                self.files(&mut conclusion, target, &manifest, work).await;
                let is_whole = !conclusion.open;
                self.conclude(conclusion).await;
                if is_whole && which == Which::All {
                    self.note_whole(number);
                }
            }
            Found::Missing => {
                // It would leave a lock file behind.
                lock.release_deleted().await;
                self.findings().skip(name, SkipReason::Vanished);
            }
            Found::Unreachable(kind) => self.unreachable(name, kind),
            Found::Stopped => {}
            Found::Blob | Found::Corrupt | Found::Index(_) => {
                // A manifest that cannot be read is never updated.
                conclusion.damaged.manifest = Some(Fault::Corrupt);
                self.findings().damage(conclusion.damaged, conclusion.merge);
            }
        }
    }

    fn unreachable(&self, name: &SnapshotName, kind: ErrorKind) {
        self.control.note_unreachable();
        self.findings().skip(name, SkipReason::Unreachable(kind));
    }

    /// Returns `true` if the snapshot was verified recently. A time in the future does not count.
    fn was_verified(&self, manifest: &Manifest) -> bool {
        let Some(within) = self.options.skip_verified_within else { return false };
        let Ok(Some(state)) = manifest.verify_state() else { return false };
        let Ok(start) = u64::try_from(state.upid.start_epoch()) else { return false };
        let start = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(start);
        self.now.duration_since(start).is_ok_and(|age| age <= within)
    }

    async fn files(
        &self,
        conclusion: &mut Conclusion,
        target: &SnapshotInfo,
        manifest: &Manifest,
        work: Work<'_>,
    ) {
        let is_full = matches!(work, Work::Full(_));
        conclusion.is_read = is_full;
        for file in manifest.files() {
            let key = Key::Archive(target.name.clone(), file.name().clone());
            let found = match (file.name().kind(), work) {
                (ArchiveKind::Blob, Work::Full(_)) => self.object(&key, Wanted::Blob(Some(file))).await,
                (ArchiveKind::Blob, _) => self.blob_is_there(target, &key, file).await,
                (ArchiveKind::Dynamic | ArchiveKind::Fixed, _) => {
                    self.object(&key, Wanted::Index(file)).await
                }
            };
            match found {
                Found::Blob | Found::Manifest(_) => {}
                Found::Corrupt => conclusion.fault(file, Fault::Corrupt),
                Found::Index(index) => conclusion.tally(file, self.chunks(&index, file, work).await),
                Found::Missing => conclusion.fault(file, Fault::Missing),
                Found::Stopped => conclusion.open = true,
                Found::Unreachable(_) => {
                    self.control.note_unreachable();
                    conclusion.open = true;
                }
            }
        }
        if target.has_client_log && is_full {
            let key = Key::ClientLog(target.name.clone());
            if let Found::Corrupt = self.object(&key, Wanted::Blob(None)).await {
                self.findings().report.damaged_logs.push(target.name.clone());
            }
        }
    }

    /// Looks for a blob without reading it.
    async fn blob_is_there(&self, target: &SnapshotInfo, key: &Key, file: &ManifestFile) -> Found {
        let listed = target.files.iter().find(|listed| listed.name == *file.name());
        if listed.is_some_and(|listed| listed.stored_bytes == file.size()) {
            return Found::Blob;
        }
        if !self.control.admit() {
            return Found::Stopped;
        }
        match self.store.inner().uncached_backend().head(key).await {
            Ok(info) if info.size == file.size() => Found::Blob,
            Ok(_) => Found::Corrupt,
            Err(error) if error.kind() == ErrorKind::NotFound => Found::Missing,
            Err(error) => Found::Unreachable(error.kind()),
        }
    }

    /// Reads and checks an object. What is corrupt is believed only when it was fetched again. Where nothing is said about contents,
    /// local copies may answer; what they say counts only if it is good (H69).
    async fn object(&self, key: &Key, wanted: Wanted<'_>) -> Found {
        if self.options.mode != Mode::Full
            && let good @ (Found::Index(_) | Found::Manifest(_)) =
                self.object_once(key, wanted, Copies::Use).await
        {
            self.findings().report.objects += 1;
            return good;
        }
        let (mut left, mut was_corrupt) = (self.options.refetches, false);
        loop {
            let found = self.object_once(key, wanted, Copies::Bypass).await;
            match found {
                Found::Corrupt if left > 0 => (left, was_corrupt) = (left - 1, true),
                Found::Blob | Found::Index(_) | Found::Manifest(_) => {
                    let report = &mut self.findings().report;
                    report.objects += 1;
                    report.unsteady += u64::from(was_corrupt);
                    return found;
                }
                _ => return found,
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
            Wanted::Blob(file) => self
                .store
                .inner()
                .snapshot_files()
                .check_blob(key, file, stored)
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
                    Err(error) if error.kind() == ErrorKind::Unsupported => Found::Corrupt,
                    Err(error) => failed(error),
                }
            }
        }
    }

    /// Looks at the chunks of an archive, many at the same time.
    async fn chunks(&self, index: &IndexReader, file: &ManifestFile, work: Work<'_>) -> Tally {
        let is_encrypted = file.crypt_mode() == CryptMode::Encrypt;
        let mut tally = Tally {
            corrupt: HashSet::new(),
            is_encrypted,
            misfits: HashSet::new(),
            missing: HashSet::new(),
            open: false,
        };
        let mut looks = FuturesUnordered::new();
        for number in 0..index.len() {
            if number % ENTRIES_AT_ONCE == 0 {
                yield_now().await;
                while let Some(Some((id, verdict))) = looks.next().now_or_never() {
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
                // No chunk is that long, so no stored chunk can match.
                tally.misfits.insert(ChunkId { digest: entry.digest, length: u32::MAX });
                continue;
            };
            let id = ChunkId { digest: entry.digest, length };
            match self.step(id, work) {
                Step::Done(verdict) => tally.add(id, verdict),
                Step::Later(turn, depth) => {
                    while looks.len() >= self.in_flight
                        && let Some((id, verdict)) = looks.next().await
                    {
                        tally.add(id, verdict);
                    }
                    looks.push(self.look(id, turn, depth));
                }
            }
        }
        while let Some((id, verdict)) = looks.next().await {
            tally.add(id, verdict);
        }
        tally
    }

    /// Writes down what was found of a snapshot: into the report, and into its manifest. `ok` only if all of it was read and is good
    /// (H102).
    pub(super) async fn write_down(&self, conclusion: Conclusion) {
        let Conclusion { damaged, is_read, lock: _lock, merge, missing, open } = conclusion;
        let name = damaged.name.clone();
        let state = if !damaged.archives.is_empty() {
            Some(VerifyResult::Failed)
        } else if is_read && !open {
            Some(VerifyResult::Ok)
        } else {
            None
        };
        if !damaged.archives.is_empty() {
            self.findings().damage(damaged, merge);
        }
        if !missing.is_empty()
            && self.options.repair == Repair::Quarantine
            && let Err(error) = self.store.inner().repairs().suspect_missing(&missing).await
        {
            for digest in missing {
                self.findings().unrepaired(digest, error.clone());
            }
        }
        if let Some(state) = state
            && self.options.recording == Recording::On
        {
            let verified = VerifyState::new(self.upid.clone(), state);
            if let Err(error) = self.store.inner().manifests().record_verification(&name, &verified).await {
                let mut findings = self.findings();
                if findings.report.unrecorded.len() < LISTED {
                    findings.report.unrecorded.push((name.clone(), error.kind()));
                }
            }
        }
        self.tell(&Event::SnapshotFinished { snapshot: &name, state });
    }
}

//! Transfer of a snapshot whose key changes.
//!
//! ```text
//! indexes → distinct chunks → [digest known? → reused │ read → decrypted → digested → encrypted → stored] → new indexes → blobs → manifest
//! ```

use std::sync::Arc;

use bytes::Bytes;

use crate::chunks::{CachePolicy, Provenance, ReuseSource, Stored, WriterPins};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::dynamic_index::DynamicIndexWriter;
use crate::format::fixed_index::FixedIndexWriter;
use crate::format::index::{ChunkEntry, FinishedIndex, IndexReader, IndexWriteError};
use crate::format::larder::pack::PackClass;
use crate::format::manifest::{CryptMode, Manifest, ManifestFile};
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::{
    ImportedManifest, SnapshotImport, StoredManifest, in_archive, is_encrypted_key, is_of_the_object,
};
use crate::sync::chunks::{Index, Stop, Wanted, concurrently, distinct};
use crate::sync::context::{Failure, GroupRun, Run, Transfer};
use crate::sync::events::SyncEvent;
use crate::sync::key_change::{KeyChange, NewDigests, Rekeyed};

/// Chunks whose digests at the target are known and that are not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reuse {
    /// Chunks that the base names or this run stored.
    Base,
    /// None: the snapshot at the target is damaged, so each chunk there is read and checked.
    Nothing,
    /// Chunks that this run stored.
    Sent,
}

/// A snapshot on its way.
struct Reencryption<'a> {
    change: &'a KeyChange,
    run: &'a Run,
    transfer: Transfer<'a>,
}

/// Transfers everything but the manifest and the log. Returns the number of reused chunks, and the files of the new manifest.
pub(super) async fn fill(
    run: &Run,
    group: &mut GroupRun<'_>,
    transfer: Transfer<'_>,
    (source, change): (&StoredManifest, &KeyChange),
    import: &mut SnapshotImport,
) -> Result<(u64, Vec<ManifestFile>), Failure> {
    let this = Reencryption { change, run, transfer };
    let mut indexes = Vec::new();
    for file in source.manifest.files().iter().filter(|file| file.name.kind() != ArchiveKind::Blob) {
        run.check_abort()?;
        let from = &transfer.plan.source;
        let (_, reader) = run.source.inner().snapshot_files().stored_index(from, file).await?;
        indexes.push((file, reader));
    }
    let (rekeyed, reuse) = this.begin(group, import).await?;
    // A later snapshot goes on from here if this one fails.
    group.rekeyed = Some(rekeyed.clone());
    let (reused, digests) = this.chunks(&indexes, &rekeyed, reuse).await?;
    // The digests of the newest snapshot are enough, because the next one is the most like it.
    let digests = Arc::new(digests);
    group.rekeyed = Some(Rekeyed { digests: Arc::clone(&digests), pins: rekeyed.pins });
    let mut files = Vec::new();
    for (file, reader) in indexes {
        let index = this.index(reader, Arc::clone(&digests)).await?;
        run.throttle(index.bytes.len() as u64).await?;
        import.add_index(&file.name, index.bytes)?;
        files.push(entry(file, index.size, index.checksum)?);
    }
    let is_carried =
        |file: &&ManifestFile| file.name.kind() == ArchiveKind::Blob && !is_encrypted_key(&file.name);
    for file in source.manifest.files().iter().filter(is_carried) {
        run.check_abort()?;
        let files_of_source = run.source.inner().snapshot_files();
        let stored = files_of_source.stored_blob(&transfer.plan.source, file).await?;
        let plaintext = files_of_source.decode(stored, change.source_key(file)).await?;
        let bytes = run.target.inner().chunks().encode(&plaintext, Some(&change.target)).await?;
        run.throttle(bytes.len() as u64).await?;
        files.push(entry(file, bytes.len() as u64, Digest::of(&bytes))?);
        import.put_blob(&file.name, bytes).await?;
    }
    run.check_abort()?;
    Ok((reused, files))
}

/// The manifest of the new snapshot, and its log.
pub(super) async fn manifest(
    run: &Run,
    from: &SnapshotName,
    (source, change): (&Manifest, &KeyChange),
    files: Vec<ManifestFile>,
    with_log: bool,
) -> Result<ImportedManifest, Failure> {
    let manifest = change.manifest(source, files)?;
    let bytes = run.target.inner().manifests().encode(&manifest).await?;
    let log = if with_log { run.source.inner().snapshot_files().client_log(from).await? } else { None };
    let log = match log {
        Some(stored) => {
            let plaintext =
                run.source.inner().snapshot_files().decode_either(stored, change.log_key()).await?;
            Some(run.target.inner().chunks().encode(&plaintext, Some(&change.target)).await?)
        }
        None => None,
    };
    let sent = bytes.len() + log.as_ref().map_or(0, Bytes::len);
    run.throttle(sent as u64).await?;
    Ok(ImportedManifest { bytes, log })
}

fn entry(file: &ManifestFile, size: u64, checksum: Digest) -> Result<ManifestFile> {
    ManifestFile::new(file.name.clone(), CryptMode::Encrypt, size, checksum)
        .map_err(|error| Error::new(ErrorKind::Corrupt, "change the key").on(&file.name).because(error))
}

impl Reencryption<'_> {
    /// Pins the chunks of the group under the key of the target, and finds out which of them are known. The newest snapshot of the target is
    /// kept as a base.
    async fn begin(
        &self,
        group: &mut GroupRun<'_>,
        import: &mut SnapshotImport,
    ) -> Result<(Rekeyed, Reuse), Failure> {
        let earlier = group.rekeyed.take();
        let (is_first, has_present) = (earlier.is_none(), import.present().is_some());
        let new = || {
            let key = Some(self.change.target.clone());
            let pins = self.run.target.inner().pins_beside(&self.run.pins(), key);
            Rekeyed { digests: Arc::default(), pins }
        };
        let mut rekeyed = earlier.filter(|_| !has_present).unwrap_or_else(new);
        import.pin_with(Arc::clone(&rekeyed.pins))?;
        if has_present {
            return Ok((rekeyed, Reuse::Nothing));
        }
        let Some(base) = group.base(&self.transfer.plan.target).await? else {
            return Ok((rekeyed, Reuse::Sent));
        };
        import.build_on(base.name.clone(), base.version.clone(), Arc::clone(&base.held))?;
        if is_first {
            rekeyed.digests = Arc::new(self.digests_of(&base.name).await?);
        }
        Ok((rekeyed, Reuse::Base))
    }

    /// The digests of a snapshot of the target that a change of the key made, by those of its original. None if the original is gone.
    async fn digests_of(&self, result: &SnapshotName) -> Result<NewDigests> {
        let (from, to) = (self.run.source.inner(), self.run.target.inner());
        let original = self.transfer.plan.source.group().snapshot(result.time());
        let mut digests = NewDigests::new();
        let pair = async {
            let (theirs, _) = to.manifests().read(result).await?;
            let (ours, _) = from.manifests().read(&original).await?;
            let Some(change) = KeyChange::of(&self.run.options, &ours)? else { return Ok(()) };
            if !change.made(&theirs) {
                return Ok(());
            }
            for file in ours.files().iter().filter(|file| file.name.kind() != ArchiveKind::Blob) {
                let Some(their_file) = theirs.file(&file.name) else { continue };
                let (_, our_index) = from.snapshot_files().stored_index(&original, file).await?;
                let (_, their_index) = to.snapshot_files().stored_index(result, their_file).await?;
                if our_index.len() == their_index.len() {
                    digests.extend(our_index.digests().zip(their_index.digests()));
                }
            }
            Ok(())
        };
        match pair.await {
            // Without it, the chunks are read.
            Err(error) if is_of_the_object(&error) => Ok(NewDigests::new()),
            Err(error) => Err(error),
            Ok(()) => Ok(digests),
        }
    }

    /// Transfers the chunks. Returns the number of reused ones, and the digests of all at the target.
    async fn chunks(
        &self,
        indexes: &[(&ManifestFile, IndexReader)],
        rekeyed: &Rekeyed,
        reuse: Reuse,
    ) -> Result<(u64, NewDigests), Failure> {
        let run = self.run;
        let archives = indexes.iter().map(|(file, reader)| Index {
            mode: file.crypt_mode,
            name: file.name.clone(),
            reader: reader.clone(),
        });
        let archives: Vec<_> = archives.collect();
        let wanted = run
            .target
            .inner()
            .runtime()
            .run_blocking("read indexes", move || distinct(&archives, |_| false))
            .await?;
        let stop = &Stop::new(run);
        let transfer = |wanted: Wanted| async move {
            let file = indexes.get(wanted.archive).map(|(file, _)| *file);
            let file = file.ok_or_else(|| Error::new(ErrorKind::Internal, "change the key"))?;
            let known = rekeyed.digests.get(&wanted.digest).copied().filter(|new| match reuse {
                Reuse::Base => true,
                Reuse::Nothing => false,
                Reuse::Sent => rekeyed.pins.is_confirmed(new),
            });
            let known = (known, reuse, rekeyed.pins.as_ref());
            let (new, is_reused) = self.chunk(file, &wanted, known, stop).await?;
            Ok::<_, Failure>((wanted.digest, new, is_reused))
        };
        let (mut reused, mut digests) = (0, NewDigests::new());
        concurrently(stop, wanted, transfer, |(old, new, is_reused)| {
            reused += u64::from(is_reused);
            digests.insert(old, new);
        })
        .await?;
        Ok((reused, digests))
    }

    /// Makes sure that the target has a chunk under the new key. Returns its digest there, and `true` if it was not read.
    async fn chunk(
        &self,
        file: &ManifestFile,
        wanted: &Wanted,
        (known, reuse, pins): (Option<Digest>, Reuse, &WriterPins),
        stop: &Stop<'_>,
    ) -> Result<(Digest, bool), Failure> {
        let run = self.run;
        stop.check()?;
        let (snapshot, target) = (Arc::clone(self.transfer.name), run.target.inner());
        if let Some(digest) = known
            && target.chunks().reuse_if_present(pins, digest, ReuseSource::Base).await?
        {
            run.notify(&SyncEvent::ChunkReused { digest, snapshot });
            return Ok((digest, true));
        }
        let (plaintext, read) = {
            let _slot = run.reads.budget.acquire(1).await;
            let read = run.source.inner().read_permit(wanted.length).await;
            stop.check()?;
            let (chunks, key) = (run.source.inner().chunks(), self.change.source_key(file));
            let chunk = chunks.get(wanted.digest, wanted.length, CachePolicy::Bypass, key).await;
            let from = &self.transfer.plan.source;
            (chunk.map_err(|error| in_archive(error, wanted.digest, &file.name, from))?, read)
        };
        let (hashed, key) = (plaintext.clone(), self.change.target.clone());
        let digest = move || Ok(Digest::of_parts(hashed.iter(), Some(&key)));
        let digest = target.runtime().run_blocking("digest chunk", digest).await?;
        run.throttle(wanted.length).await?;
        let write = target.write_permit(wanted.length).await;
        let _slot = run.writes.budget.acquire(1).await;
        stop.check()?;
        if reuse == Reuse::Nothing {
            // Equal length would be enough for a chunk that is not suspect.
            target.chunks().mark_suspect(digest).await;
        }
        let put = target
            .chunks()
            .put(pins, digest, (plaintext, PackClass::of_archive(&file.name)), Provenance::Unknown)
            .await?;
        drop((read, write));
        match put {
            Stored::Known => self.transfer.progress.counts.add_known(),
            Stored::Duplicate(stored) | Stored::New(stored) => {
                run.notify(&SyncEvent::ChunkSent { digest, snapshot, stored });
                self.transfer.progress.counts.add_sent(stored);
            }
        }
        Ok((digest, false))
    }

    /// The index of an archive at the target.
    async fn index(&self, reader: IndexReader, digests: Arc<NewDigests>) -> Result<FinishedIndex> {
        let runtime = self.run.target.inner().runtime();
        let mut uuid = [0; 16];
        runtime.fill_random(&mut uuid);
        let created = reader.header().created;
        runtime.run_blocking("write index", move || translate(&reader, &digests, uuid, created)).await
    }
}

/// The same entries with other digests.
fn translate(
    reader: &IndexReader,
    digests: &NewDigests,
    uuid: [u8; 16],
    created: i64,
) -> Result<FinishedIndex> {
    let failed = |error: IndexWriteError| Error::new(ErrorKind::Internal, "change the key").because(error);
    let digest_of = |chunk: &ChunkEntry| {
        let digest = digests.get(&chunk.digest).copied();
        digest.ok_or_else(|| Error::new(ErrorKind::Internal, "change the key").on(chunk.digest))
    };
    match reader {
        IndexReader::Dynamic(_) => {
            let mut index = DynamicIndexWriter::new();
            for chunk in reader.iter() {
                index.push(chunk.len, digest_of(&chunk)?).map_err(failed)?;
            }
            index.finish(uuid, created).map_err(failed)
        }
        IndexReader::Fixed(old) => {
            let mut index = FixedIndexWriter::new(old.size(), old.chunk_size()).map_err(failed)?;
            for chunk in reader.iter() {
                index.set(chunk.offset, chunk.len, digest_of(&chunk)?).map_err(failed)?;
            }
            index.finish(uuid, created).map_err(failed)
        }
    }
}

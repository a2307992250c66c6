//! The archives of a tree: entries and contents in one stream or in two.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::{
    CatalogWriter, EXCLUDE_FILE, Encoder, FileKind, Metadata, PAYLOAD_END, PAYLOAD_START, PayloadOrigin,
    PayloadReference, Stat, TreeEncodeError, exclude_lines, payload_header,
};
use crate::store::{ArchiveParts, ArchiveSummary};
use crate::tree::write::contents;
use crate::tree::write::findings::{Findings, TreeEvent};
use crate::tree::write::summary::TreeCounts;
use crate::tree::write::walk::{Found, SameFile};
use crate::tree::{FileContents, Problem, TreeFinding};

/// Bytes of entries that gather before they are pushed.
const BATCH_BYTES: usize = 64 << 10;

/// Maximum bytes of the path of a file with further names.
pub(super) const MAX_LINK_BYTES: usize = 4096;

/// Mode of the file that records exclude patterns.
const RECORD_MODE: u32 = 0o100_600;

/// Where contents of files go.
#[derive(Debug)]
pub(super) enum Form {
    /// Contents are in a payload archive of their own.
    Split(Box<ArchiveParts>),
    /// Contents stand between the entries, and a catalog names the entries.
    Unified(CatalogWriter),
}

/// The archives of a tree while they are written.
#[derive(Debug)]
pub(super) struct TreeArchive {
    pub(super) counts: TreeCounts,
    encoder: Encoder,
    /// The archive of the entries.
    entries: ArchiveParts,
    findings: Findings,
    form: Form,
    /// Path and position of each file with several names.
    links: HashMap<SameFile, (Bytes, u64)>,
    /// Number of open directories that are left out, because the outermost of them could not be encoded.
    skipped: usize,
}

/// Result of [`TreeArchive::finish`].
pub(super) struct FinishedTree {
    pub(super) archives: Vec<ArchiveSummary>,
    pub(super) catalog: Option<CatalogWriter>,
    pub(super) counts: TreeCounts,
}

impl TreeArchive {
    pub(super) async fn begin(
        encoder: Encoder,
        entries: ArchiveParts,
        mut form: Form,
        findings: Findings,
    ) -> Result<Self> {
        if let Form::Split(payload) = &mut form {
            payload.push(&PAYLOAD_START).await?;
        }
        let counts = TreeCounts { directories: 1, ..TreeCounts::default() };
        Ok(Self { counts, encoder, entries, findings, form, links: HashMap::new(), skipped: 0 })
    }

    /// The payload archive, if there is one.
    pub(super) fn payload(&mut self) -> Option<&mut ArchiveParts> {
        match &mut self.form {
            Form::Split(payload) => Some(payload),
            Form::Unified(_) => None,
        }
    }

    /// Returns `true` if a further name of this file can be added.
    pub(super) fn can_link(&self, file: &SameFile) -> bool {
        self.links.get(file).is_some_and(|(path, _)| path.len() <= MAX_LINK_BYTES)
    }

    /// Reports a further name of a file that was left out.
    pub(super) fn refuse_link(&self, found: &Found) {
        let finding = TreeFinding::new(found.path(), Problem::Unreadable);
        self.findings.add(finding.because("the file that it is a further name of was left out"));
    }

    /// Adds a directory, whose children follow.
    pub(super) async fn enter(&mut self, found: &Found) -> Result<()> {
        if self.skipped > 0 {
            self.skipped += 1;
            return Ok(());
        }
        let entered = self.encoder.enter(&found.entry.name, &found.entry.metadata);
        if self.accepted(found, entered)?.is_none() {
            self.skipped = 1;
            return Ok(());
        }
        self.counts.directories += 1;
        if let Form::Unified(catalog) = &mut self.form {
            catalog.enter(&found.entry.name).map_err(broken)?;
        }
        self.push_entries().await
    }

    /// Ends the directory that was entered last.
    pub(super) async fn leave(&mut self) -> Result<()> {
        if self.skipped > 0 {
            self.skipped -= 1;
            return Ok(());
        }
        self.encoder.leave().map_err(broken)?;
        if let Form::Unified(catalog) = &mut self.form {
            catalog.leave().map_err(broken)?;
        }
        self.push_entries().await
    }

    /// Adds an entry that is neither a directory nor a file.
    pub(super) async fn special(&mut self, found: &Found) -> Result<()> {
        if self.skipped > 0 {
            return Ok(());
        }
        let added = self.encoder.special(&found.entry.name, &found.entry.metadata, &found.entry.kind);
        if self.accepted(found, added)?.is_some() {
            self.counts.others += 1;
            self.add_to_catalog(found, &found.entry.kind)?;
        }
        self.push_entries().await
    }

    /// Adds a further name of a file; returns `false` if the file is not in the archive, so that its contents are needed.
    pub(super) async fn link(&mut self, found: &Found) -> Result<bool> {
        if self.skipped > 0 {
            return Ok(true);
        }
        let Some((target, position)) = found.same_file().and_then(|file| self.links.get(&file)) else {
            return Ok(false);
        };
        // A path that is too long for a link, for instance.
        if self.encoder.hard_link(&found.entry.name, target, *position).is_err() {
            return Ok(false);
        }
        let kind = FileKind::HardLink { target: target.clone() };
        self.counts.hard_links += 1;
        self.add_to_catalog(found, &kind)?;
        self.push_entries().await?;
        Ok(true)
    }

    /// Adds a file with its contents, unless it could not be opened.
    pub(super) async fn file(&mut self, found: &Found, contents: io::Result<FileContents>) -> Result<()> {
        if self.skipped > 0 {
            return Ok(());
        }
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => {
                self.findings.lost(found.path(), &error, Problem::Unreadable);
                return Ok(());
            }
        };
        let (name, size) = (&found.entry.name, found.size());
        let (position, problem) = match &mut self.form {
            Form::Split(payload) => {
                let reference =
                    PayloadReference { offset: payload.position(), origin: PayloadOrigin::Written, size };
                payload.suggest_end();
                payload.push(&payload_header(size).map_err(broken)?).await?;
                let problem = contents::push(payload, contents, size).await?;
                let mut metadata = found.entry.metadata.clone();
                if problem.is_some() {
                    // No listing has this time, so the next backup reads the file again.
                    metadata.stat.mtime.nanoseconds ^= 1;
                }
                let added = self.encoder.file_reference(name, &metadata, reference);
                let Some(position) = self.accepted(found, added)? else { return Ok(()) };
                (position, problem)
            }
            Form::Unified(_) => {
                let added = self.encoder.file(name, &found.entry.metadata, size);
                let Some(position) = self.accepted(found, added)? else { return Ok(()) };
                self.add_to_catalog(found, &found.entry.kind)?;
                self.entries.push(&self.encoder.take()).await?;
                self.encoder.contents_elsewhere(size).map_err(broken)?;
                (position, contents::push(&mut self.entries, contents, size).await?)
            }
        };
        if let Some((problem, cause)) = problem {
            let finding = TreeFinding::new(found.path(), problem);
            self.findings.add(cause.into_iter().fold(finding, TreeFinding::because));
        }
        self.counts.files += 1;
        self.counts.bytes += size;
        self.findings.emit(|| TreeEvent::FileRead { path: found.path().into(), size });
        self.note_link(found, position);
        self.push_entries().await
    }

    /// Adds a file whose contents are in chunks of the base, which are or will be at this offset of the payload archive.
    pub(super) async fn reference(&mut self, found: &Found, offset: u64) -> Result<()> {
        if self.skipped > 0 {
            return Ok(());
        }
        let size = found.size();
        let reference = PayloadReference { offset, origin: PayloadOrigin::Reused, size };
        let added = self.encoder.file_reference(&found.entry.name, &found.entry.metadata, reference);
        let Some(position) = self.accepted(found, added)? else { return Ok(()) };
        self.counts.files += 1;
        self.counts.files_reused += 1;
        self.counts.bytes += size;
        self.counts.bytes_reused += size;
        self.findings.emit(|| TreeEvent::FileReused { path: found.path().into(), size });
        self.note_link(found, position);
        self.push_entries().await
    }

    /// Ends the archives.
    pub(super) async fn finish(mut self, excludes: &[Bytes]) -> Result<FinishedTree> {
        if let Form::Unified(catalog) = &mut self.form {
            if !excludes.is_empty() {
                let lines = exclude_lines(excludes);
                let metadata = Metadata::new(Stat { mode: RECORD_MODE, ..Stat::default() });
                let size = lines.len() as u64;
                self.encoder.file(EXCLUDE_FILE, &metadata, size).map_err(broken)?;
                self.encoder.contents(&lines).map_err(broken)?;
                catalog.entry(EXCLUDE_FILE, &FileKind::File { size }, 0).map_err(broken)?;
            }
            catalog.leave().map_err(broken)?;
        }
        self.entries.push(&self.encoder.finish().map_err(broken)?).await?;
        let mut archives = Vec::new();
        let catalog = match self.form {
            Form::Split(mut payload) => {
                payload.push(&PAYLOAD_END).await?;
                payload.drain().await?;
                self.entries.drain().await?;
                let (payload, entries) = (payload.seal()?, self.entries.seal()?);
                // Both or neither: nothing waits in between. In the order of the clients of PBS.
                archives.extend([payload.complete()?, entries.complete()?]);
                None
            }
            Form::Unified(catalog) => {
                self.entries.drain().await?;
                archives.push(self.entries.seal()?.complete()?);
                Some(catalog)
            }
        };
        Ok(FinishedTree { archives, catalog, counts: self.counts })
    }

    fn note_link(&mut self, found: &Found, position: u64) {
        if let Some(file) = found.same_file() {
            self.links.entry(file).or_insert_with(|| (found.path().into(), position));
        }
    }

    fn add_to_catalog(&mut self, found: &Found, kind: &FileKind) -> Result<()> {
        let Form::Unified(catalog) = &mut self.form else { return Ok(()) };
        catalog.entry(&found.entry.name, kind, found.entry.metadata.stat.mtime.seconds).map_err(broken)
    }

    /// Pushes the bytes of entries once there are enough.
    async fn push_entries(&mut self) -> Result<()> {
        if self.encoder.pending() < BATCH_BYTES {
            return Ok(());
        }
        self.entries.push(&self.encoder.take()).await
    }

    /// Reports an entry that no archive can hold, and returns `None` for it.
    fn accepted<T>(
        &self,
        found: &Found,
        encoded: std::result::Result<T, TreeEncodeError>,
    ) -> Result<Option<T>> {
        match encoded {
            Ok(encoded) => Ok(Some(encoded)),
            Err(
                error @ (TreeEncodeError::Kind
                | TreeEncodeError::Length(_)
                | TreeEncodeError::LinkTarget
                | TreeEncodeError::Name
                | TreeEncodeError::Order),
            ) => {
                self.findings.add(TreeFinding::new(found.path(), Problem::Unreadable).because(error));
                Ok(None)
            }
            Err(error) => Err(broken(error)),
        }
    }
}

pub(super) fn broken(error: TreeEncodeError) -> Error {
    Error::new(ErrorKind::Internal, "write tree").because(error)
}

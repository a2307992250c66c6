//! An open directory of a source.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::Rules;
use super::contents;
use super::early::{EarlyBudget, EarlyFiles};
use super::listing::{self, Bar, Name};
use super::patterns::{Layer, Patterns};
use crate::buffers::Buffers;
use crate::pxar::{FileKind, Stat, joined};
use crate::rt::Runtime;
use crate::tree::disk::open;
use crate::tree::disk::status::Status;
use crate::tree::{
    FileContents, LinkId, OpenFileJob, Problem, SourceDirectory, SourceEntry, SourceListing, TreeFinding,
};

/// Number of entries whose metadata one blocking job reads.
const ENTRIES_PER_JOB: usize = 512;

/// Maximum number of such jobs of one directory at once.
const JOBS: usize = 64;

/// An open directory. Its clones share the descriptor.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    /// For contents of files.
    buffers: Arc<Buffers>,
    inner: Arc<Inner>,
    rules: Arc<Rules>,
    runtime: Arc<dyn Runtime>,
}

#[derive(Debug)]
struct Inner {
    early: EarlyFiles,
    fd: OwnedFd,
    /// Patterns of the directories above and of this one, once it is listed.
    patterns: OnceLock<Patterns>,
    place: Place,
}

/// Facts about a directory before it is listed.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) ancestor: Arc<Ancestor>,
    /// Findings about the directory itself.
    pub(super) findings: Vec<TreeFinding>,
    /// Path from the root.
    pub(super) path: Vec<u8>,
    /// Patterns of the directories above.
    pub(super) patterns: Patterns,
}

/// A directory with those that it lies in, up to the root.
#[derive(Debug)]
pub(super) struct Ancestor {
    above: Option<Arc<Self>>,
    depth: usize,
    pub(super) id: LinkId,
}

impl Ancestor {
    pub(super) fn root(id: LinkId) -> Arc<Self> {
        Arc::new(Self { above: None, depth: 0, id })
    }

    /// Returns `true` if it is, or lies in, a directory.
    pub(super) fn lies_in(&self, id: LinkId) -> bool {
        let mut next = Some(self);
        while let Some(now) = next {
            if now.id == id {
                return true;
            }
            next = now.above.as_deref();
        }
        false
    }

    pub(super) fn is_root(&self) -> bool {
        self.above.is_none()
    }

    /// Device of the root.
    pub(super) fn root_device(&self) -> u64 {
        let mut now = self;
        while let Some(above) = now.above.as_deref() {
            now = above;
        }
        now.id.device
    }
}

impl Drop for Ancestor {
    /// Not by recursion, which a deep tree would carry too far.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(mut last) = above.and_then(Arc::into_inner) {
            above = last.above.take();
        }
    }
}

impl Directory {
    pub(super) fn new(
        (runtime, buffers): (Arc<dyn Runtime>, Arc<Buffers>),
        rules: Arc<Rules>,
        fd: OwnedFd,
        place: Place,
        budget: Arc<EarlyBudget>,
    ) -> Self {
        let inner = Inner { early: EarlyFiles::new(budget), fd, patterns: OnceLock::new(), place };
        Self { buffers, inner: Arc::new(inner), rules, runtime }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn early(&self) -> &EarlyFiles {
        &self.inner.early
    }

    pub(super) fn ancestor(&self) -> &Ancestor {
        &self.inner.place.ancestor
    }

    /// Returns `true` if the patterns exclude an entry.
    pub(super) fn excludes(&self, name: &[u8], is_directory: bool) -> bool {
        use crate::tree::EntryKind::{Directory, Other};
        let Some(layer) = self.patterns() else { return false };
        layer.excludes(&joined(&self.inner.place.path, name), if is_directory { Directory } else { Other })
    }

    fn patterns(&self) -> &Patterns {
        self.inner.patterns.get().unwrap_or(&self.inner.place.patterns)
    }

    /// Reads the names, then the metadata of the first ones. Returns the names that remain.
    fn begin(&self) -> io::Result<(SourceListing, Vec<Vec<Name>>)> {
        let mut listing = SourceListing { findings: self.inner.place.findings.clone(), ..Default::default() };
        let names = listing::names(self.fd(), &mut listing.findings)?;
        let has_file = |name: &Name| name.text.as_c_str() == super::patterns::FILE_NAME;
        if self.rules.pattern_files && self.inner.patterns.get().is_none() && names.iter().any(has_file) {
            let mut patterns = self.inner.place.patterns.clone();
            let errors = Layer::add_file(&mut patterns, self.fd(), self.inner.place.ancestor.depth);
            let path = super::patterns::FILE_NAME.to_bytes();
            let finding = |error| TreeFinding::new(path, Problem::BadPattern).because(error);
            listing.findings.extend(errors.into_iter().map(finding));
            // Another listing at the same time found the same.
            let _ = self.inner.patterns.set(patterns);
        }
        let mut parts = Vec::new();
        let mut rest = names.into_iter();
        loop {
            let part: Vec<_> = rest.by_ref().take(ENTRIES_PER_JOB).collect();
            if part.is_empty() {
                break;
            }
            parts.push(part);
        }
        if !parts.is_empty() {
            listing::entries(self, parts.remove(0), &mut listing)?;
        }
        Ok((listing, parts))
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let this = self.clone();
        self.runtime
            .run_blocking("read a directory", move || Ok(job(this)))
            .await
            .map_err(io::Error::other)?
    }

    fn enter(self, name: &[u8], (id, stat): (Option<LinkId>, &Stat)) -> io::Result<Box<dyn SourceDirectory>> {
        let c_name = CString::new(name)?;
        let fd = match open::directory(self.fd(), &c_name) {
            Ok(fd) => fd,
            Err(error) => {
                let error = io::Error::from(error);
                let is_gone = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
                if is_gone || open::is_shortage(&error) || !is_directory(self.fd(), &c_name) {
                    return Err(error);
                }
                return Ok(Box::new(Closed(Some(error.to_string()))));
            }
        };
        let status = Status::of(&fd)?;
        if !status.has_rights_of(id, stat) {
            return Err(io::Error::other("another object took the place of the directory"));
        }
        match listing::bar(&self, &fd, &status) {
            Some(Bar::Loop) => Ok(Box::new(Closed(Some("the directory lies within itself".to_owned())))),
            Some(Bar::Mount | Bar::Own | Bar::Virtual) => Ok(Box::new(Closed(None))),
            None => {
                let above = Arc::clone(&self.inner.place.ancestor);
                let depth = above.depth + 1;
                let ancestor = Arc::new(Ancestor { above: Some(above), depth, id: status.id });
                let (path, patterns) = (joined(&self.inner.place.path, name), self.patterns().clone());
                let place = Place { ancestor, findings: Vec::new(), path, patterns };
                let budget = Arc::clone(self.early().budget());
                Ok(Box::new(Self::new((self.runtime, self.buffers), self.rules, fd, place, budget)))
            }
        }
    }
}

fn is_directory(above: BorrowedFd<'_>, name: &std::ffi::CStr) -> bool {
    Status::of_name(above, name).is_ok_and(|status| status.file_type().is_dir())
}

#[async_trait]
impl SourceDirectory for Directory {
    fn expect_reading(&self) {
        self.early().budget().allow();
    }

    async fn list(&self) -> io::Result<SourceListing> {
        let (mut listing, parts) = self.run(|this| this.begin()).await?;
        // At once: a large directory would be copied as it grows.
        listing.entries.reserve_exact(parts.iter().map(Vec::len).sum());
        let jobs = parts.into_iter().map(|names| {
            self.run(|this| {
                let mut listing = SourceListing::default();
                listing::entries(&this, names, &mut listing).map(|()| listing)
            })
        });
        let mut parts = stream::iter(jobs).buffer_unordered(JOBS);
        while let Some(part) = parts.try_next().await? {
            listing.entries.extend(part.entries);
            listing.findings.extend(part.findings);
        }
        Ok(listing)
    }

    async fn open_directory(&self, entry: &SourceEntry) -> io::Result<Box<dyn SourceDirectory>> {
        let (name, id, stat) = (entry.name.clone(), entry.id, entry.metadata.stat);
        self.run(move |this| this.enter(&name, (id, &stat))).await
    }

    async fn open_file(&self, entry: &SourceEntry) -> io::Result<FileContents> {
        let FileKind::File { size } = entry.kind else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the entry is no file"));
        };
        if let Some(bytes) = self.early().take(&entry.name, (size, entry.metadata.stat.mtime)) {
            return Ok(FileContents::Whole(bytes));
        }
        match self.open_file_job(entry) {
            Some(job) => self.run(|_| job()).await,
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn open_file_job(&self, entry: &SourceEntry) -> Option<OpenFileJob> {
        let FileKind::File { size } = entry.kind else { return None };
        if self.early().has(&entry.name) {
            // Nothing is left to read.
            return None;
        }
        let (this, name) = (self.clone(), entry.name.clone());
        let (id, stat) = (entry.id, entry.metadata.stat);
        Some(Box::new(move || {
            contents::open((&this.runtime, &this.buffers), this.fd(), &name, (id, &stat), size)
        }))
    }
}

/// A directory that is not entered: empty, or with the reason why it cannot be listed.
#[derive(Debug)]
struct Closed(Option<String>);

#[async_trait]
impl SourceDirectory for Closed {
    async fn list(&self) -> io::Result<SourceListing> {
        self.0.clone().map_or_else(|| Ok(SourceListing::default()), |why| Err(io::Error::other(why)))
    }

    async fn open_directory(&self, _: &SourceEntry) -> io::Result<Box<dyn SourceDirectory>> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn open_file(&self, _: &SourceEntry) -> io::Result<FileContents> {
        Err(io::ErrorKind::NotFound.into())
    }
}

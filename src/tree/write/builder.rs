//! The builder of a backup of a tree.

use std::fmt;
use std::future::IntoFuture;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::TryStreamExt as _;

use crate::chunker::BuzhashChunker;
use crate::error::{Error, ErrorKind, Result};
use crate::format::dynamic_index::DynamicIndexReader;
use crate::observer::Observer;
use crate::pxar::{CatalogWriter, Encoder, exclude_prelude};
use crate::store::{ArchiveParts, BaseChoice, BaseUse, SnapshotReader, SnapshotWriter};
use crate::tree::write::ahead::prepared;
use crate::tree::write::archive::{Form, TreeArchive};
use crate::tree::write::base::BaseCursor;
use crate::tree::write::findings::{Findings, TreeEvent};
use crate::tree::write::listed::Context;
use crate::tree::write::reuse::{Policy, Reuser};
use crate::tree::write::summary::TreeSummary;
use crate::tree::write::walk::Walker;
use crate::tree::{SourceRoot, TreeSource};

/// Default average size of a chunk.
const CHUNK_BYTES: usize = 4 << 20;

/// A tree that is about to be written; awaiting it writes it.
#[must_use = "nothing is written before it is awaited"]
pub struct TreeBuilder<'a> {
    base: BaseChoice<'a>,
    chunk_bytes: usize,
    is_unified: bool,
    name: String,
    observer: Option<Arc<dyn Observer<TreeEvent>>>,
    policy: Policy,
    rereads: bool,
    source: &'a dyn TreeSource,
    writer: &'a SnapshotWriter,
}

impl SnapshotWriter {
    /// Writes a tree of files as a pxar archive. `name` is `root`, which makes `root.ppxar.didx` and `root.mpxar.didx`, or in the
    /// [unified](TreeBuilder::unified) form `root.pxar.didx`; a suffix `.pxar` or `.pxar.didx` of the name is ignored.
    ///
    /// An entry that cannot be read as it is costs itself only: the [report](TreeSummary::report) names it, and the rest is stored.
    ///
    /// # Errors
    /// `Stream` if the root cannot be opened or listed; `InvalidInput` for a name that is not valid or taken, or an exclude pattern that is not UTF-8, which
    /// only the unified form can record; any failure of the backend.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archives out of the snapshot.
    pub fn tree<'a>(&'a self, name: impl Into<String>, source: &'a dyn TreeSource) -> TreeBuilder<'a> {
        let name = name.into();
        let stem = name.strip_suffix(".didx").unwrap_or(&name);
        let stem = stem.strip_suffix(".pxar").unwrap_or(&name).to_owned();
        TreeBuilder {
            base: BaseChoice::None,
            chunk_bytes: CHUNK_BYTES,
            is_unified: false,
            name: stem,
            observer: None,
            policy: Policy::default(),
            rereads: false,
            source,
            writer: self,
        }
    }
}

impl<'a> TreeBuilder<'a> {
    /// An earlier snapshot with the archives of this name in the same form. In the split form, a file whose metadata and size are those of the base is not opened, and its
    /// contents come from the base: a change that keeps size and time of modification is missed, unless
    /// [`reread_all`](Self::reread_all) is set. Files that were modified while the base was written, or in the minute before, are read again. Chunks that the base names are known and neither compressed nor stored again. The base stays locked until the backup ends.
    ///
    /// Awaiting then fails with `NotFound` if it has no such archives, with `Conflict` if it failed verification, with
    /// `KeyRequired` if it is encrypted and the backup is not, and with `WrongKey` if its key or the use of the key differs.
    pub fn base(mut self, base: &'a SnapshotReader) -> Self {
        self.base = BaseChoice::Required(base);
        self
    }

    /// As [`base`](Self::base), but a base that cannot be used means a full backup, and [`TreeSummary::base`] gives the
    /// reason. `None` means a full backup too.
    ///
    /// Awaiting still fails if the base belongs to another store, or the backend fails.
    #[doc(alias = "incremental")]
    #[doc(alias = "parent")]
    pub fn base_if_usable(mut self, base: Option<&'a SnapshotReader>) -> Self {
        self.base = BaseChoice::IfUsable(base);
        self
    }

    /// The average size of a chunk in bytes, a power of two from 64 KiB to 4 MiB; default: 4 MiB, as the clients of PBS have it. Only equal
    /// averages share chunks.
    ///
    /// Awaiting fails with `InvalidInput` for any other.
    pub fn chunk_bytes(mut self, average: usize) -> Self {
        self.chunk_bytes = average;
        self
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<TreeEvent>>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Reads every file, also those whose metadata are unchanged since the base.
    pub fn reread_all(mut self) -> Self {
        self.rereads = true;
        self
    }

    /// Writes contents and entries as two archives; the default.
    pub fn split(mut self) -> Self {
        self.is_unified = false;
        self
    }

    /// Writes one archive with entries and contents, and a catalog when the backup finishes. Every file is read, also with a base.
    pub fn unified(mut self) -> Self {
        self.is_unified = true;
        self
    }

    /// Takes the numbers of the clients of PBS.
    pub(crate) fn with_stock_policy(mut self) -> Self {
        self.policy = Policy { file_bytes: 0, max_queued: 512, seconds_of_doubt: None, takes_next: true };
        self
    }

    async fn write(self) -> Result<TreeSummary> {
        let findings = Findings::new(self.observer.clone());
        let root = self.source.root().await.map_err(|error| {
            Error::new(ErrorKind::Stream, "open the root of").on(&self.name).because(error)
        })?;
        let excludes = self.source.recorded_excludes();
        let SourceRoot { directory, metadata } = root;
        let invalid = |error| Error::new(ErrorKind::InvalidInput, "write tree").on(&self.name).because(error);
        let (encoder, entries, form) = if self.is_unified {
            let encoder = Encoder::unified(&metadata).map_err(invalid)?;
            let entries = self.parts("pxar").await?;
            let mut catalog = CatalogWriter::new();
            catalog.enter(format!("{}.pxar.didx", self.name).as_bytes()).map_err(invalid)?;
            (encoder, entries, Form::Unified(catalog))
        } else {
            let prelude = exclude_prelude(&excludes).map_err(invalid)?;
            let encoder = Encoder::split(&metadata, &prelude).map_err(invalid)?;
            let payload = self.parts("ppxar").await?;
            (encoder, self.parts("mpxar").await?, Form::Split(Box::new(payload)))
        };
        let base_use = base_use(&entries, &form);
        let (base, index) = self.base_tree(&entries, &form).await?;
        let runtime = Arc::clone(self.writer.runtime());
        let reads_all = index.is_none();
        if reads_all {
            directory.expect_reading();
        }
        let context = Context { findings: findings.clone(), reads_all, runtime: Arc::clone(&runtime) };
        let archive = TreeArchive::begin(encoder, entries, form, findings.clone()).await?;
        let mut reuser = Reuser::new(archive, index, self.policy, runtime);
        let walker = Walker::new(context, directory, base).await.map_err(|error| error.on(&self.name))?;
        let mut steps = pin!(prepared(walker));
        while let Some(step) = steps.try_next().await? {
            reuser.take(step).await?;
        }
        self.finish(reuser, &excludes, base_use, &findings).await
    }

    async fn finish(
        &self,
        reuser: Reuser,
        excludes: &[Bytes],
        base: BaseUse,
        findings: &Findings,
    ) -> Result<TreeSummary> {
        let finished = reuser.finish().await?.finish(excludes).await?;
        if let Some(catalog) = finished.catalog {
            self.writer.add_to_tree_catalog(catalog);
        }
        Ok(TreeSummary {
            archives: finished.archives,
            base: if findings.is_base_damaged() { BaseUse::Damaged } else { base },
            counts: finished.counts,
            report: findings.take(),
        })
    }

    async fn parts(&self, extension: &str) -> Result<ArchiveParts> {
        let name = format!("{}.{extension}", self.name);
        self.writer.parts(&name, BuzhashChunker::new(self.chunk_bytes)?, self.base).await
    }

    /// The second since 1970 from which on a modification of a file makes it uncertain that the base has its last change.
    /// The name of the base may be ahead of the clock, and `created` may be behind the first listing.
    fn uncertain_from(&self, created: i64) -> i64 {
        mutated!("tree-believes-recent-files" => return i64::MAX);
        let (BaseChoice::Required(base) | BaseChoice::IfUsable(Some(base))) = self.base else {
            return i64::MAX;
        };
        self.policy
            .seconds_of_doubt
            .map_or(i64::MAX, |doubt| base.name().time().epoch().min(created).saturating_sub(doubt))
    }

    /// The entries of the base and the index of its payload archive, if changes are detected.
    async fn base_tree(
        &self,
        entries: &ArchiveParts,
        form: &Form,
    ) -> Result<(Option<BaseCursor>, Option<DynamicIndexReader>)> {
        let Form::Split(payload) = form else { return Ok((None, None)) };
        let index = payload.base_index().cloned().filter(|_| !self.rereads);
        match (index, entries.base_reader().await?) {
            (Some(index), Some(reader)) => {
                let uncertain_from = self.uncertain_from(index.header().created);
                let base = BaseCursor::open(reader, index.size(), uncertain_from).await?;
                Ok((Some(base), Some(index)))
            }
            _ => Ok((None, None)),
        }
    }
}

fn base_use(entries: &ArchiveParts, form: &Form) -> BaseUse {
    match form {
        Form::Split(payload) if entries.base_use() == BaseUse::Used => payload.base_use(),
        _ => entries.base_use(),
    }
}

impl fmt::Debug for TreeBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> IntoFuture for TreeBuilder<'a> {
    type Output = Result<TreeSummary>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.write())
    }
}

//! Marking: the chunks that snapshots name.
//!
//! ```text
//! list everything → mark new indexes, newest first ──▶ again, until a listing shows none or ten were made
//!     → indexes stored by this process recently → orphans → pending moves, whose journal is dropped only then
//! ```
//! An index is read from the uncached backend, or from a local copy of the version that the listing shows.
//!
//! A listing may miss snapshots that come and go meanwhile. Only this process makes new ones while the store is locked, and pins all chunks
//! that they use. A move records its destinations first, and the collector reads them after everything else (H8).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};

use crate::backend::lock_wait::lock_with_timeout;
use crate::backend::{LockMode, LockScope, ObjectInfo, Orphan};
use crate::digest_set::{MarkSet, MarkSetBuilder, mark_of};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::layout::Key;
use crate::format::name::ArchiveName;
use crate::gc::options::{GcEvent, GcOptions};
use crate::gc::walk::Walk;
use crate::store::Datastore;

/// Number of indexes read concurrently, in addition to one for each processor.
const INDEXES_AHEAD: usize = 2;
/// Maximum number of marks kept of a snapshot for comparison with the next one.
const KEPT_MARKS: usize = 4 << 20;
/// Maximum wait for a process that deletes a snapshot.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Maximum number of listings. Snapshots that appear in the last one are pinned.
const ROUNDS: usize = 10;

/// Result of marking.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// Total size in bytes of the archives of all indexes.
    pub(super) data_bytes: u64,
    /// Foreign paths outside the chunks, up to a limit.
    pub(super) foreign: Vec<String>,
    /// Number of all foreign paths.
    pub(super) foreign_count: u64,
    /// References that the previous snapshot has at the same position.
    pub(super) hits: u64,
    /// Number of indexes.
    pub(super) indexes: u64,
    /// Other references.
    pub(super) misses: u64,
    pub(super) set: MarkSet,
}

/// A marking in progress.
#[derive(Debug)]
struct Marking<'a> {
    builder: MarkSetBuilder,
    marked: Marked,
    options: &'a GcOptions,
    /// Marks of the previous snapshot, by archive.
    previous: HashMap<ArchiveName, Vec<u64>>,
    /// Marked indexes, by an identity of sixteen bytes.
    seen: HashSet<[u8; 16]>,
    store: &'a Datastore,
}

/// Marks of one index.
struct IndexMarks {
    data_bytes: u64,
    marks: Vec<u64>,
}

pub(super) async fn mark(store: &Datastore, options: &GcOptions) -> Result<Marked> {
    let mut marking = Marking {
        builder: MarkSetBuilder::default(),
        marked: Marked::default(),
        options,
        previous: HashMap::new(),
        seen: HashSet::new(),
        store,
    };
    let moves = store.inner().chunks().moves_in_progress().watch();
    for _ in 0..ROUNDS {
        if marking.round().await? == 0 || mutated!("gc-lists-once") {
            break;
        }
    }
    marking.published().await?;
    let orphans = store.inner().uncached_backend().orphans(&marking.marked.foreign).await?;
    marking.orphans(&orphans).await?;
    marking.moved().await?;
    loop {
        let pending_moves = moves.take();
        if pending_moves.is_empty() || mutated!("gc-ignores-moves-in-progress") {
            break;
        }
        for key in pending_moves {
            marking.by_name(&key).await?;
        }
    }
    marking.marked.set = marking.builder.finish();
    Ok(marking.marked)
}

impl Marking<'_> {
    /// Marks the indexes of a listing that are not marked yet; returns their number.
    async fn round(&mut self) -> Result<usize> {
        let backend = self.store.inner().uncached_backend();
        let (mut walk, mut new) = (Walk::new(), 0);
        while let Some(indexes) = walk.next(backend.as_ref()).await? {
            let indexes: Vec<_> =
                indexes.into_iter().filter(|info| !self.seen.contains(&id_of(info))).collect();
            new += indexes.len();
            self.group(indexes).await?;
        }
        self.marked.foreign = walk.foreign;
        self.marked.foreign_count = walk.foreign_count;
        Ok(new)
    }

    /// Marks indexes in the given order.
    async fn group(&mut self, indexes: Vec<ObjectInfo>) -> Result<()> {
        self.previous.clear();
        let (store, options) = (self.store, self.options);
        let ahead = INDEXES_AHEAD + store.inner().runtime().parallelism().get();
        let read = |info: ObjectInfo| async move {
            options.check_abort()?;
            match store.inner().snapshot_files().checked_index(&info).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    read_again_or_gone(store, info, error).await
                }
                Err(_) if mutated!("gc-skips-unreadable-indexes") => Ok((info, None)),
                checked => {
                    let marks = marks_of(store, checked?.index).await?;
                    Ok::<_, Error>((info, Some(marks)))
                }
            }
        };
        let mut reads = stream::iter(indexes).map(read).buffered(ahead);
        while let Some(done) = reads.next().await {
            let (info, marks) = done?;
            self.seen.insert(id_of(&info));
            let (Some(marks), Key::Archive(_, name)) = (marks, info.key) else { continue };
            self.enter(name, marks);
        }
        Ok(())
    }

    fn enter(&mut self, name: ArchiveName, index: IndexMarks) {
        let previous = self.previous.remove(&name).unwrap_or_default();
        let hits = self.insert(&previous, &index);
        self.marked.hits += hits;
        self.marked.misses += index.marks.len() as u64 - hits;
        let kept: usize = self.previous.values().map(Vec::len).sum();
        if kept + index.marks.len() <= KEPT_MARKS {
            self.previous.insert(name, index.marks);
        }
    }

    /// Marks the chunks that the previous index does not have at the same position; returns their number.
    fn insert(&mut self, previous: &[u64], index: &IndexMarks) -> u64 {
        let (mut hits, mut last) = (0, None);
        for (at, mark) in index.marks.iter().enumerate() {
            if previous.get(at) == Some(mark) || last == Some(*mark) {
                hits += 1;
            } else {
                self.builder.insert(*mark);
            }
            last = Some(*mark);
        }
        self.marked.indexes += 1;
        self.marked.data_bytes += index.data_bytes;
        self.options.control.notify(&GcEvent::IndexMarked { chunks: index.marks.len() as u64 });
        hits
    }

    /// Marks an index by name, if it exists and is not marked yet.
    async fn by_name(&mut self, key: &Key) -> Result<()> {
        match self.store.inner().uncached_backend().head(key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            info => {
                let info = info?;
                if self.seen.contains(&id_of(&info)) { Ok(()) } else { self.group(vec![info]).await }
            }
        }
    }

    async fn published(&mut self) -> Result<()> {
        mutated!("gc-ignores-recent-indexes" => return Ok(()));
        for key in self.store.inner().published() {
            self.by_name(&key).await?;
        }
        Ok(())
    }

    async fn orphans(&mut self, orphans: &[Orphan]) -> Result<()> {
        mutated!("gc-ignores-orphan-indexes" => return Ok(()));
        for orphan in orphans {
            self.options.check_abort()?;
            let marks = match self.store.inner().snapshot_files().orphan_index(orphan).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                checked => marks_of(self.store, checked?.index).await?,
            };
            self.marked.misses += marks.marks.len() as u64 - self.insert(&[], &marks);
        }
        Ok(())
    }

    async fn moved(&mut self) -> Result<()> {
        mutated!("gc-ignores-the-move-journal" => return Ok(()));
        if let Some(pending_moves) = self.store.inner().uncached_backend().pending_moves().await? {
            for key in pending_moves.keys() {
                self.by_name(key).await?;
            }
            self.orphans(pending_moves.orphans()).await?;
            pending_moves.clear().await?;
        }
        Ok(())
    }
}

/// Reads an index that was absent once more, if a new snapshot of the same name has one. Otherwise makes sure that it vanished with its whole
/// snapshot, and not alone (H9).
async fn read_again_or_gone(
    store: &Datastore,
    listed: ObjectInfo,
    absent: Error,
) -> Result<(ObjectInfo, Option<IndexMarks>)> {
    mutated!("gc-believes-that-an-index-vanished" => return Ok((listed, None)));
    let Key::Archive(snapshot, _) = &listed.key else { return Err(absent) };
    let backend = store.inner().uncached_backend();
    // As readers do. A process that deletes the snapshot holds the lock briefly.
    let scope = LockScope::Snapshot(snapshot.clone());
    let held = lock_with_timeout(backend.as_ref(), &scope, LockMode::Shared, LOCK_WAIT).await?;
    match backend.head(&listed.key).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if !backend.has(&Key::Manifest(snapshot.clone())).await? {
                held.release_deleted().await;
                return Ok((listed, None));
            }
        }
        info => {
            let info = info?;
            match store.inner().snapshot_files().checked_index(&info).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                checked => return Ok((info, Some(marks_of(store, checked?.index).await?))),
            }
        }
    }
    let error = Error::new(ErrorKind::Corrupt, "collect garbage").on(&listed.key);
    Err(error.because("it is listed and cannot be found, although its snapshot exists"))
}

async fn marks_of(store: &Datastore, index: IndexReader) -> Result<IndexMarks> {
    let marks = move || {
        let marks = index.digests().map(|digest| mark_of(&digest)).collect();
        Ok(IndexMarks { data_bytes: index.size(), marks })
    };
    store.inner().runtime().run_blocking("mark", marks).await
}

/// Identity of an index: its name and its version.
fn id_of(info: &ObjectInfo) -> [u8; 16] {
    let text = format!("{}\n{}\n{}", info.key, info.size, info.version.as_str());
    let digest = Digest::of(text.as_bytes());
    std::array::from_fn(|at| digest.as_bytes()[at])
}

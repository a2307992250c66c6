//! Files that are read ahead.
//!
//! Up to [`FILES_AHEAD`] files are opened, and small ones read, before their turn, in the order of the archive. Their contents take at most
//! [`BYTES_AHEAD`]; a large file counts as [`FILE_BYTES`], since it is read when its turn comes.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};

use crate::error::{Error, Result};
use crate::rt::semaphore::{Permit, Semaphore};
use crate::tree::FileContents;
use crate::tree::write::walk::{Found, Step, Walker};

/// Maximum number of steps of the walk that are prepared ahead.
const FILES_AHEAD: usize = 128;

/// Maximum bytes of contents of files that wait for their turn.
const BYTES_AHEAD: usize = 32 << 20;

/// Bytes that a file of this size or more counts.
const FILE_BYTES: u64 = 1 << 20;

/// A step with the contents of its file.
pub(super) enum Prepared {
    /// A directory begins.
    Enter(Found),
    /// An entry without contents, or whose contents are not needed.
    Entry(Found),
    /// A file that was opened.
    File(Found, io::Result<FileContents>, Permit),
    /// The directory that was entered last ends.
    Leave,
}

/// The steps of a walk in order.
pub(super) fn prepared(walker: Walker) -> impl Stream<Item = Result<Prepared>> {
    let budget = Semaphore::new(BYTES_AHEAD);
    let steps = stream::try_unfold((walker, budget), |(mut walker, budget)| async move {
        let Some(step) = walker.next().await? else { return Ok(None) };
        let permit = match &step {
            Step::Entry(found) if found.needs_contents() => Some(budget.acquire(weight(found.size())).await),
            _ => None,
        };
        Ok::<_, Error>(Some(((step, permit), (walker, budget))))
    });
    steps
        .map(|step| async move {
            Ok(match step? {
                (Step::Entry(found), Some(permit)) => {
                    let contents = open(&found).await;
                    Prepared::File(found, contents, permit)
                }
                (Step::Entry(found), None) => Prepared::Entry(found),
                (Step::Enter(found), _) => Prepared::Enter(found),
                (Step::Leave, _) => Prepared::Leave,
            })
        })
        .buffered(FILES_AHEAD)
}

/// Opens files in order, several ahead.
pub(super) fn reopened(files: Vec<Arc<Found>>) -> impl Stream<Item = (io::Result<FileContents>, Permit)> {
    let budget = Semaphore::new(BYTES_AHEAD);
    let permits = stream::unfold((files.into_iter(), budget), |(mut files, budget)| async move {
        let found = files.next()?;
        let permit = budget.acquire(weight(found.size())).await;
        Some(((found, permit), (files, budget)))
    });
    permits.map(|(found, permit)| async move { (open(&found).await, permit) }).buffered(FILES_AHEAD)
}

/// Opens a file. Of an empty one there is nothing to read.
pub(super) async fn open(found: &Found) -> io::Result<FileContents> {
    match found.size() {
        0 => Ok(FileContents::Whole(Bytes::new())),
        _ => match &found.directory {
            Some(directory) => directory.open_file(&found.entry).await,
            None => found.place.directory().await?.open_file(&found.entry).await,
        },
    }
}

fn weight(size: u64) -> usize {
    usize::try_from(size.clamp(1, FILE_BYTES)).unwrap_or(usize::MAX)
}

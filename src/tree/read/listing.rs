//! Listings of directories.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::joined;
use crate::tree::read::Tree;
use crate::tree::read::entry::TreeEntry;
use crate::tree::read::lookup::{entry_of, find};
use crate::tree::read::tables::head_of;

/// Number of entries whose heads are read concurrently, for directories whose entries lie in many chunks.
const CONCURRENT: usize = 8;

/// Entries of a directory, in the order of the archive. It is a stream, too.
///
/// An entry that is damaged is an error, and the next one follows.
pub struct ReadDir {
    entries: BoxStream<'static, Result<TreeEntry>>,
    len: usize,
}

impl ReadDir {
    /// Returns the next entry; `None` at the end.
    ///
    /// # Errors
    /// `Corrupt` if the entry is damaged; any failure of the backend. The listing goes on with the next entry.
    pub async fn next(&mut self) -> Option<Result<TreeEntry>> {
        self.entries.next().await
    }

    /// Number of entries in the directory.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if the directory is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Stream for ReadDir {
    type Item = Result<TreeEntry>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.entries.poll_next_unpin(context)
    }
}

impl fmt::Debug for ReadDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadDir").field("len", &self.len).finish_non_exhaustive()
    }
}

pub(super) async fn read_dir(tree: &Tree, path: &[u8]) -> Result<ReadDir> {
    let found = find(tree, path).await?;
    let Some(directory) = found.directory else {
        let error = Error::new(ErrorKind::InvalidInput, "list").on(String::from_utf8_lossy(path));
        return Err(error.because("it is no directory"));
    };
    let table = tree.shared.tables.read(&tree.shared.streams, directory).await?;
    let (tree, parent) = (tree.clone(), found.entry.path);
    let len = table.len();
    let children = stream::iter((0..len).filter_map(move |index| table.child(index)));
    let entries = children.map(move |child| {
        let (tree, parent) = (tree.clone(), parent.clone());
        async move {
            let streams = &tree.shared.streams;
            let head = head_of(streams, child).await?;
            let path =
                if parent.is_empty() { head.name.clone() } else { Bytes::from(joined(&parent, &head.name)) };
            entry_of(head, path, child.position).map_err(|error| streams.damaged(error))
        }
    });
    Ok(ReadDir { entries: entries.buffered(CONCURRENT).boxed(), len })
}

//! Reading of trees in file archives.
//!
//! A [`Tree`] reads an archive in two ways.
//!
//! *By lookup*: the end of each directory has a table of its entries, by the hashes of their names, and the table of the root is at the end of the
//! archive. [`Tree::entry`], [`Tree::read_dir`] and [`Tree::open`] go down from there. Each level costs the chunks of a table and of the heads of
//! entries; tables and chunks are cached.
//!
//! *In order*: [`Tree::walk`] decodes the archive from its start, with read-ahead, past the contents of files. When a chunk is damaged, it
//! goes on at the next entry to which an intact table leads, and yields a [finding](TreeStep::Lost) instead of what is lost: names and
//! files in the damaged chunk. If the head of a directory lies there, but the directory ends behind it, the walk enters it under a made-up name. It
//! does so in archives in split form only: in the unified form, the bytes in the place of the table may be contents of a file, whose owner
//! could then make up entries.
//!
//! A malformed entry is treated as a damaged one. Names are checked in both ways: no path of an entry leads out of the tree.

mod entry;
mod file;
mod find;
mod in_order;
mod listing;
mod lookup;
mod lost;
mod streams;
mod tables;
mod walk;

use std::sync::Arc;

use bytes::Bytes;

pub use entry::TreeEntry;
pub use file::TreeFile;
pub use find::TreeFind;
pub use listing::ReadDir;
pub use walk::{TreeStep, TreeWalk};

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::ArchiveName;
use crate::pxar::{EntryContents, FileKind, Metadata};
use crate::store::SnapshotReader;
use crate::tree::read::streams::Streams;
use crate::tree::read::tables::Tables;

/// A tree of files in an archive of a snapshot. Clones share caches.
///
/// Paths are bytes, relative to the root; slashes in front, at the end and next to each other do not matter.
///
/// # Cancel safety
/// Futures of its methods can be dropped at any time.
#[derive(Clone, Debug)]
pub struct Tree {
    shared: Arc<Shared>,
}

/// Limits of the memory for reading a tree, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadLimits {
    /// Maximum bytes of cached chunks of each stream.
    pub(crate) chunks: usize,
    /// Bytes of tables of open directories above which a walk keeps no further ones. It does not look at the tables of the directories below.
    pub(crate) held_tables: usize,
    /// Maximum bytes of cached tables.
    pub(crate) tables: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { chunks: 32 << 20, held_tables: 64 << 20, tables: 32 << 20 }
    }
}

#[derive(Debug)]
struct Shared {
    limits: ReadLimits,
    streams: Streams,
    tables: Tables,
}

impl SnapshotReader {
    /// Opens the tree in a file archive: `root.pxar`, or `root`, in either form, or by its full name. Reads indexes only.
    ///
    /// # Errors
    /// `NotFound` if the snapshot has no such archive, or only one half of it; `InvalidInput` for an archive of another kind; as for
    /// [`archive`](SnapshotReader::archive).
    pub async fn tree(&self, name: &str) -> Result<Tree> {
        self.tree_within(name, ReadLimits::default()).await
    }

    /// Opens a tree, and limits the memory for reading it.
    pub(crate) async fn tree_within(&self, name: &str, limits: ReadLimits) -> Result<Tree> {
        let bare = name.strip_suffix(".didx").unwrap_or(name);
        let stem = [".pxar", ".mpxar", ".ppxar"].iter().find_map(|suffix| bare.strip_suffix(suffix));
        let stem = stem.unwrap_or(bare);
        let named = |suffix: &str| -> Option<ArchiveName> {
            let name = format!("{stem}.{suffix}.didx").parse().ok()?;
            self.manifest().file(&name).map(|file| file.name.clone())
        };
        let streams = match (named("pxar"), named("mpxar"), named("ppxar")) {
            (Some(archive), ..) if !bare.ends_with(".mpxar") => {
                Streams::unified(self.archive(archive.as_str()).await?, limits.chunks)
            }
            (_, Some(archive), Some(payload)) => {
                let archive = self.archive(archive.as_str());
                let payload = self.archive(payload.as_str());
                let (archive, payload) = futures::future::try_join(archive, payload).await?;
                Streams::split(archive, payload, limits.chunks)
            }
            (_, Some(half), None) | (_, None, Some(half)) => {
                let error = Error::new(ErrorKind::NotFound, "open tree").on(name);
                return Err(error.because(format!("the snapshot has only {half}")));
            }
            _ => {
                // Its error names the archives that there are.
                self.archive(name).await?;
                let error = Error::new(ErrorKind::InvalidInput, "open tree").on(name);
                return Err(error.because("it is no file archive"));
            }
        };
        let tables = Tables::new(limits.tables);
        Ok(Tree { shared: Arc::new(Shared { limits, streams, tables }) })
    }
}

impl Tree {
    /// Returns `true` if contents are in a stream of their own, so that listings read none.
    pub fn is_split(&self) -> bool {
        self.shared.streams.is_split()
    }

    /// Exclude patterns that the backup recorded, one a line; empty without any. Reads the start or the end of the archive.
    ///
    /// # Errors
    /// `Corrupt` if that is damaged; any failure of the backend.
    pub async fn recorded_excludes(&self) -> Result<Bytes> {
        lookup::recorded_excludes(self).await
    }

    /// Finds an entry. The root has an empty path.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InvalidInput` for a path with `..`; `Corrupt` if what leads to it is damaged; any failure of the backend.
    pub async fn entry(&self, path: impl AsRef<[u8]>) -> Result<TreeEntry> {
        Ok(lookup::find(self, path.as_ref()).await?.entry)
    }

    /// Metadata of an entry; those of a hard link are those of its target.
    ///
    /// # Errors
    /// As for [`entry`](Self::entry).
    pub async fn metadata(&self, path: impl AsRef<[u8]>) -> Result<Metadata> {
        let entry = self.entry(path).await?;
        Ok(self.target(&entry).await?.metadata)
    }

    /// The file to which a hard link leads; other entries are their own targets. It has the path and the metadata of the file.
    ///
    /// # Errors
    /// `Corrupt` if the link leads to anything else than a file of the path that it names; any failure of the backend.
    pub async fn target(&self, entry: &TreeEntry) -> Result<TreeEntry> {
        let target = self.target_by_position(entry).await?;
        if target.position != entry.position {
            lookup::check_path(self, entry, &target).await?;
        }
        Ok(target)
    }

    /// The file at the position to which a hard link leads, if it has the last name in the path of the link. Saves the lookup of that path.
    pub(in crate::tree) async fn target_by_position(&self, entry: &TreeEntry) -> Result<TreeEntry> {
        match (&entry.kind, entry.contents) {
            (FileKind::HardLink { target }, EntryContents::Of { position }) => {
                lookup::target(self, entry, target, position).await
            }
            _ => Ok(entry.clone()),
        }
    }

    /// Lists a directory, in the order of the archive, without a scan of what is below.
    ///
    /// # Errors
    /// `InvalidInput` if the path is that of another entry; as for [`entry`](Self::entry).
    pub async fn read_dir(&self, path: impl AsRef<[u8]>) -> Result<ReadDir> {
        listing::read_dir(self, path.as_ref()).await
    }

    /// Opens the contents of a file, also by a hard link.
    ///
    /// # Errors
    /// `InvalidInput` if the path is that of another entry; symbolic links are not followed. As for [`entry`](Self::entry).
    pub async fn open(&self, path: impl AsRef<[u8]>) -> Result<TreeFile> {
        let entry = self.entry(path).await?;
        self.open_entry(&entry).await
    }

    /// Opens the contents of a file that a listing or a walk of this tree yielded.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_entry(&self, entry: &TreeEntry) -> Result<TreeFile> {
        let target = self.target(entry).await?;
        TreeFile::open(&self.shared.streams, &target).await
    }

    /// Walks through the whole tree, in the order of the archive.
    pub fn walk(&self) -> TreeWalk {
        TreeWalk::whole(self)
    }

    /// Walks through an entry and what is below it, in the order of the archive.
    ///
    /// # Errors
    /// As for [`entry`](Self::entry).
    pub async fn walk_from(&self, path: impl AsRef<[u8]>) -> Result<TreeWalk> {
        let found = lookup::find(self, path.as_ref()).await?;
        Ok(TreeWalk::below(self, &found))
    }

    /// Walks through the entries that match a pattern; [`Excludes`](crate::tree::Excludes) has the syntax. A pattern with a slash and names in front,
    /// such as `/etc/nginx/*.conf`, leads to `etc/nginx` at once; the search for others passes through the whole tree.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed pattern.
    pub fn find(&self, pattern: impl AsRef<[u8]>) -> Result<TreeFind> {
        TreeFind::new(self, pattern.as_ref())
    }
}

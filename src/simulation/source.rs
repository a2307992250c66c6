//! A tree in memory, as the source of a backup.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use crate::pxar::{FileKind, Metadata, Mtime, Stat};
use crate::tree::{FileContents, SourceDirectory, SourceEntry, SourceListing, SourceRoot, TreeSource};

/// Metadata of a file or directory of root, modified at this second.
pub(crate) fn metadata(kind: &FileKind, seconds: i64) -> Metadata {
    let mode = match kind {
        FileKind::Directory => 0o040_755,
        FileKind::Symlink { .. } => 0o120_777,
        _ => 0o100_644,
    };
    Metadata::new(Stat { mode, mtime: Mtime { seconds, nanoseconds: 0 }, ..Stat::default() })
}

/// The entries of a directory, and the bytes of those that are files.
type Entries = Vec<(SourceEntry, Bytes)>;

#[derive(Debug, Default)]
pub(crate) struct MemorySource {
    /// By the path of the directory.
    directories: Arc<BTreeMap<String, Entries>>,
    opened: Arc<Mutex<Vec<String>>>,
}

impl MemorySource {
    pub(crate) fn new(directories: BTreeMap<String, Entries>) -> Self {
        Self { directories: Arc::new(directories), opened: Arc::default() }
    }

    /// The paths of the files that the backup opened.
    pub(crate) fn opened(&self) -> Vec<String> {
        self.opened.lock().unwrap().clone()
    }

    fn at(&self, path: String) -> Box<dyn SourceDirectory> {
        let (directories, opened) = (Arc::clone(&self.directories), Arc::clone(&self.opened));
        Box::new(MemoryDirectory { path, source: Self { directories, opened } })
    }
}

#[async_trait]
impl TreeSource for MemorySource {
    async fn root(&self) -> io::Result<SourceRoot> {
        let metadata = metadata(&FileKind::Directory, 1_700_000_000);
        Ok(SourceRoot { directory: self.at(String::new()), metadata })
    }

    fn recorded_excludes(&self) -> Vec<Bytes> {
        Vec::new()
    }
}

#[derive(Debug)]
struct MemoryDirectory {
    path: String,
    source: MemorySource,
}

impl MemoryDirectory {
    fn path_of(&self, entry: &SourceEntry) -> String {
        format!("{}{}", self.path, String::from_utf8_lossy(&entry.name))
    }
}

#[async_trait]
impl SourceDirectory for MemoryDirectory {
    async fn list(&self) -> io::Result<SourceListing> {
        let mut listing = SourceListing::default();
        // A filesystem has its own order.
        let entries = self.source.directories[&self.path].iter().rev();
        listing.entries = entries.map(|(entry, _)| entry.clone()).collect();
        Ok(listing)
    }

    async fn open_directory(&self, entry: &SourceEntry) -> io::Result<Box<dyn SourceDirectory>> {
        Ok(self.source.at(format!("{}/", self.path_of(entry))))
    }

    async fn open_file(&self, entry: &SourceEntry) -> io::Result<FileContents> {
        self.source.opened.lock().unwrap().push(self.path_of(entry));
        let found = self.source.directories[&self.path].iter().find(|(other, _)| other.name == entry.name);
        found
            .map(|(_, bytes)| FileContents::Whole(bytes.clone()))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

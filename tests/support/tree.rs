//! Trees in memory, as sources of backups.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures::io::AsyncRead;
use larder::pxar::{FileKind, Metadata, Mtime, Stat};
use larder::tree::{
    FileContents, OpenFileJob, Problem, SourceDirectory, SourceEntry, SourceListing, SourceRoot,
    SourceStream, TreeSource,
};

/// Behaviour of an entry that a backup opens.
#[derive(Clone, Debug)]
pub enum Contents {
    /// It fails with this error.
    Fails(io::ErrorKind),
    /// A stream of these bytes, which then fails.
    FailsAfter(Bytes),
    /// A stream of these bytes, with a problem at the end.
    Stream(Bytes, Option<Problem>),
    /// These bytes, all at once.
    Whole(Bytes),
}

/// A tree in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryTree(Arc<Shared>);

type Directories = BTreeMap<Vec<u8>, Vec<(SourceEntry, Contents)>>;

#[derive(Debug)]
struct Shared {
    /// The entries of each directory, by its path.
    directories: Mutex<Directories>,
    excludes: Vec<Bytes>,
    opened: Mutex<Vec<String>>,
    /// Directories that are open, and the most that ever were.
    open_directories: Mutex<(usize, usize)>,
    root: Metadata,
}

/// Metadata of a file or directory of root, modified at this second.
pub fn metadata(kind: &FileKind, seconds: i64) -> Metadata {
    let mode = match kind {
        FileKind::Directory => 0o040_755,
        FileKind::Symlink { .. } => 0o120_777,
        FileKind::Fifo => 0o010_644,
        FileKind::Socket => 0o140_755,
        FileKind::CharDevice(_) => 0o020_600,
        FileKind::BlockDevice(_) => 0o060_600,
        _ => 0o100_644,
    };
    Metadata::new(Stat { mode, mtime: Mtime { seconds, nanoseconds: 0 }, ..Stat::default() })
}

impl Default for MemoryTree {
    fn default() -> Self {
        Self::new(metadata(&FileKind::Directory, 1_700_000_000), Vec::new())
    }
}

impl MemoryTree {
    /// An empty tree.
    pub fn new(root: Metadata, excludes: Vec<Bytes>) -> Self {
        let directories = Mutex::new(BTreeMap::from([(Vec::new(), Vec::new())]));
        let (opened, open_directories) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { directories, excludes, opened, open_directories, root }))
    }

    /// Adds an entry, or replaces one.
    pub fn add(&self, directory: &[u8], entry: SourceEntry, contents: Contents) {
        let mut directories = self.0.directories.lock().unwrap();
        if entry.kind == FileKind::Directory {
            directories.entry(joined(directory, &entry.name)).or_default();
        }
        let siblings = directories.get_mut(directory).unwrap();
        siblings.retain(|(sibling, _)| sibling.name != entry.name);
        siblings.push((entry, contents));
    }

    /// Adds a directory.
    pub fn directory(&self, path: &str) {
        let (above, name) = split(path);
        let kind = FileKind::Directory;
        let metadata = metadata(&kind, 1_700_000_000);
        self.add(above, SourceEntry::new(name.to_vec(), kind, metadata), Contents::Whole(Bytes::new()));
    }

    /// Adds a file, modified at this second.
    pub fn file(&self, path: &str, bytes: impl Into<Bytes>, seconds: i64) {
        let bytes = bytes.into();
        self.odd_file(path, bytes.len() as u64, seconds, Contents::Whole(bytes));
    }

    /// Adds a file of this size in the listing, whatever its contents are.
    pub fn odd_file(&self, path: &str, size: u64, seconds: i64, contents: Contents) {
        let (above, name) = split(path);
        let kind = FileKind::File { size };
        let metadata = metadata(&kind, seconds);
        self.add(above, SourceEntry::new(name.to_vec(), kind, metadata), contents);
    }

    /// Removes an entry.
    pub fn remove(&self, path: &str) {
        let (above, name) = split(path);
        self.0.directories.lock().unwrap().get_mut(above).unwrap().retain(|(entry, _)| entry.name != name);
    }

    /// Removes the root with all entries: it can be opened, and not listed.
    pub fn remove_root(&self) {
        self.0.directories.lock().unwrap().clear();
    }

    /// The most directories that ever were open at once.
    pub fn max_open_directories(&self) -> usize {
        self.0.open_directories.lock().unwrap().1
    }

    /// The paths of the files that were opened since the last call, sorted.
    pub fn opened(&self) -> Vec<String> {
        let mut opened = std::mem::take(&mut *self.0.opened.lock().unwrap());
        opened.sort();
        opened
    }
}

#[async_trait]
impl TreeSource for MemoryTree {
    async fn root(&self) -> io::Result<SourceRoot> {
        let directory = MemoryDirectory::open(Vec::new(), &self.0);
        Ok(SourceRoot { directory: Box::new(directory), metadata: self.0.root.clone() })
    }

    fn recorded_excludes(&self) -> Vec<Bytes> {
        self.0.excludes.clone()
    }
}

#[derive(Debug)]
struct MemoryDirectory {
    path: Vec<u8>,
    tree: Arc<Shared>,
}

impl MemoryDirectory {
    fn open(path: Vec<u8>, tree: &Arc<Shared>) -> Self {
        let mut open = tree.open_directories.lock().unwrap();
        open.0 += 1;
        open.1 = open.1.max(open.0);
        drop(open);
        Self { path, tree: Arc::clone(tree) }
    }
}

impl Drop for MemoryDirectory {
    fn drop(&mut self) {
        self.tree.open_directories.lock().unwrap().0 -= 1;
    }
}

#[async_trait]
impl SourceDirectory for MemoryDirectory {
    async fn list(&self) -> io::Result<SourceListing> {
        let directories = self.tree.directories.lock().unwrap();
        let mut listing = SourceListing::default();
        let entries = directories.get(&self.path).ok_or(io::ErrorKind::NotFound)?;
        // A filesystem has its own order.
        listing.entries = entries.iter().rev().map(|(entry, _)| entry.clone()).collect();
        Ok(listing)
    }

    async fn open_directory(&self, entry: &SourceEntry) -> io::Result<Box<dyn SourceDirectory>> {
        self.tree.find(&self.path, &entry.name)?;
        Ok(Box::new(Self::open(joined(&self.path, &entry.name), &self.tree)))
    }

    async fn open_file(&self, entry: &SourceEntry) -> io::Result<FileContents> {
        self.tree.open_file(&self.path, &entry.name)
    }

    fn open_file_job(&self, entry: &SourceEntry) -> Option<OpenFileJob> {
        // The others are opened by calls.
        let is_for_job = entry.name.iter().map(|byte| byte.count_ones()).sum::<u32>() % 2 == 0;
        let (tree, path, name) = (Arc::clone(&self.tree), self.path.clone(), entry.name.clone());
        is_for_job.then(|| Box::new(move || tree.open_file(&path, &name)) as OpenFileJob)
    }
}

impl Shared {
    fn find(&self, directory: &[u8], name: &[u8]) -> io::Result<Contents> {
        let directories = self.directories.lock().unwrap();
        let siblings = directories.get(directory).ok_or(io::ErrorKind::NotFound)?;
        let found = siblings.iter().find(|(entry, _)| entry.name == name);
        match &found.ok_or(io::ErrorKind::NotFound)?.1 {
            Contents::Fails(kind) => Err((*kind).into()),
            contents => Ok(contents.clone()),
        }
    }

    fn open_file(&self, directory: &[u8], name: &[u8]) -> io::Result<FileContents> {
        let path = String::from_utf8_lossy(&joined(directory, name)).into_owned();
        self.opened.lock().unwrap().push(path);
        Ok(match self.find(directory, name)? {
            Contents::Whole(bytes) => FileContents::Whole(bytes),
            Contents::Stream(bytes, problem) => {
                FileContents::Stream(Box::new(MemoryStream { bytes, fails: false, problem }))
            }
            Contents::FailsAfter(bytes) => {
                FileContents::Stream(Box::new(MemoryStream { bytes, fails: true, problem: None }))
            }
            Contents::Fails(kind) => return Err(kind.into()),
        })
    }
}

struct MemoryStream {
    bytes: Bytes,
    fails: bool,
    problem: Option<Problem>,
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.is_empty() && self.fails {
            return Poll::Ready(Err(io::Error::other("a bad sector")));
        }
        let length = self.bytes.len().min(buffer.len()).min(70_001);
        let part = self.bytes.split_to(length);
        buffer[..length].copy_from_slice(&part);
        Poll::Ready(Ok(length))
    }
}

impl SourceStream for MemoryStream {
    /// Most parts. No bytes for some, and `None` for others, which are read.
    fn poll_bytes(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let left = self.bytes.len();
        let length = if left.is_multiple_of(5) { 0 } else { left.min(90_001) };
        Poll::Ready(Ok((!left.is_multiple_of(3) || left == 0).then(|| self.bytes.split_to(length))))
    }

    fn problem(&self) -> Option<Problem> {
        self.problem
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn split(path: &str) -> (&[u8], &[u8]) {
    path.rsplit_once('/').map_or((b"", path.as_bytes()), |(above, name)| (above.as_bytes(), name.as_bytes()))
}

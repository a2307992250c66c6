//! Trees that a backup reads.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures::io::AsyncRead;

use crate::pxar::{FileKind, Metadata};
use crate::tree::{Problem, TreeFinding};

/// Maximum bytes of files that are read when their directories are listed.
pub(in crate::tree) const EARLY_BYTES: u64 = 8 << 20;

/// Maximum length of such a file.
pub(in crate::tree) const EARLY_FILE_BYTES: u64 = 256 << 10;

/// A tree of files that a backup reads.
///
/// An error is that of the source alone: a backup leaves the entry out, reports it, and continues with the next. Only an error of
/// [`root`](TreeSource::root) ends it.
#[async_trait]
pub trait TreeSource: fmt::Debug + Send + Sync {
    /// Opens the root directory, and returns its metadata with it.
    ///
    /// # Errors
    /// Any error ends the backup.
    async fn root(&self) -> io::Result<SourceRoot>;

    /// Exclude patterns to record in the archive, in their order, as [`Excludes`](crate::tree::Excludes) writes them. They are information for
    /// readers: the source itself leaves out what they match.
    fn recorded_excludes(&self) -> Vec<Bytes> {
        Vec::new()
    }
}

/// The root of a [`TreeSource`].
#[allow(clippy::exhaustive_structs, reason = "sources make it")]
#[derive(Debug)]
pub struct SourceRoot {
    /// The open directory.
    pub directory: Box<dyn SourceDirectory>,
    /// Its metadata.
    pub metadata: Metadata,
}

/// An open directory of a [`TreeSource`]. Its methods run concurrently.
#[async_trait]
pub trait SourceDirectory: fmt::Debug + Send + Sync {
    /// Tells the root that the backup will read every file, in the order of their names. A source may then read the smallest ones when it lists
    /// their directories, which are listed less far ahead. Default: does nothing.
    fn expect_reading(&self) {}

    /// Lists the directory: every entry with its metadata, in any order, and without opening a file for its contents.
    ///
    /// # Errors
    /// If it cannot be listed at all.
    async fn list(&self) -> io::Result<SourceListing>;

    /// Opens a directory of the listing.
    ///
    /// # Errors
    /// `NotFound` if it is gone; any other.
    async fn open_directory(&self, entry: &SourceEntry) -> io::Result<Box<dyn SourceDirectory>>;

    /// Opens the contents of a file of the listing.
    ///
    /// # Errors
    /// `NotFound` if it is gone; any other.
    async fn open_file(&self, entry: &SourceEntry) -> io::Result<FileContents>;

    /// Opens the contents of a file of the listing as [`open_file`](SourceDirectory::open_file) does, in a job that may block: a backup runs those of
    /// many small files at once on its pool. Default: `None`, and the backup calls `open_file`.
    fn open_file_job(&self, entry: &SourceEntry) -> Option<OpenFileJob> {
        let _ = entry;
        None
    }
}

/// A job that opens the contents of a file.
pub type OpenFileJob = Box<dyn FnOnce() -> io::Result<FileContents> + Send>;

/// Contents of a directory.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct SourceListing {
    /// The entries, without those that are excluded or could not be read.
    pub entries: Vec<SourceEntry>,
    /// Entries left out and attributes that could not be read. Paths are relative to the directory.
    pub findings: Vec<TreeFinding>,
}

/// An entry of a directory that a backup reads.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceEntry {
    /// Identity of the object whose metadata this is, if the source knows it.
    pub(crate) id: Option<LinkId>,
    /// Its kind. A hard link is a [`File`](FileKind::File) with a [`link`](Self::link).
    pub kind: FileKind,
    /// Identity of a file with several names, of which a backup stores the contents once.
    pub link: Option<LinkId>,
    /// Its metadata.
    pub metadata: Metadata,
    /// Its name: 1 to 255 bytes, without `/` and NUL, and neither `.` nor `..`.
    pub name: Bytes,
}

impl SourceEntry {
    /// An entry that has one name.
    pub fn new(name: impl Into<Bytes>, kind: FileKind, metadata: Metadata) -> Self {
        Self { id: None, kind, link: None, metadata, name: name.into() }
    }

    /// Sets the identity of a file with several names.
    #[must_use]
    pub fn link(mut self, link: LinkId) -> Self {
        self.link = Some(link);
        self
    }
}

/// Identity of a file within one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "sources make it")]
pub struct LinkId {
    /// Number of the device.
    pub device: u64,
    /// Number of the inode on the device.
    pub inode: u64,
}

/// Contents of a file.
#[non_exhaustive]
pub enum FileContents {
    /// A stream of them. The backup reads no more than the size in the listing.
    Stream(Box<dyn SourceStream>),
    /// All of them, for a small file.
    Whole(Bytes),
}

impl FileContents {
    /// A stream that reports no problems.
    pub fn stream(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self::Stream(Box::new(Plain(reader)))
    }
}

impl fmt::Debug for FileContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(_) => f.write_str("Stream"),
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
        }
    }
}

/// A stream of the contents of a file, which may find a problem by its end.
pub trait SourceStream: AsyncRead + Send + Unpin {
    /// The next bytes of the stream, in a buffer of the source: the backup keeps it until the chunks with these bytes are stored, and copies only few
    /// bytes. `None`, as by default, or no bytes: the backup reads instead, from the same position. It drops bytes beyond the size in the listing.
    ///
    /// # Errors
    /// As for a read.
    fn poll_bytes(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        Poll::Ready(Ok(None))
    }

    /// The problem of the file, such as [`Problem::Changed`], once all bytes of its size in the listing are read.
    fn problem(&self) -> Option<Problem>;
}

/// A stream without problems.
struct Plain<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Plain<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<R: AsyncRead + Send + Unpin> SourceStream for Plain<R> {
    fn problem(&self) -> Option<Problem> {
        None
    }
}

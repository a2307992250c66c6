//! Where a restore puts the entries of a tree.

use std::error::Error as StdError;
use std::{fmt, io};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future;

use crate::pxar::{FileKind, Metadata};
use crate::tree::{Problem, TreeFinding};

/// Where a restore puts the entries of a tree: a directory, memory, an archive of another format, another host.
///
/// Paths are relative to the root of the target, without a slash in front and at the end; the empty path is the root. Their names have 1 to 255
/// bytes, without NUL, and are neither `.` nor `..`. No two entries have the same path.
///
/// # Contract
/// A restore calls the methods from several tasks at once, in this order:
///
/// * **Parents first**: calls for entries in a directory begin when [`directory`](TreeTarget::directory) of it has returned. There is none for the root.
/// * **Links last**: [`hard_link`](TreeTarget::hard_link) begins when the file that it names is restored.
/// * **Directories are left**: [`finish_directory`](TreeTarget::finish_directory) begins when all calls for entries below have returned. It comes for
///   each directory, and for the root unless only parts of a tree are restored.
/// * **The end**: [`finish`](TreeTarget::finish) is the last call, and comes once if the restore reaches its end.
///
/// A method returns the attributes that it could not set as findings. An error means that the entry is not restored: the restore reports it and
/// continues, except if the storage is full.
#[async_trait]
pub trait TreeTarget: fmt::Debug + Send + Sync {
    /// Creates a directory that entries can be created in.
    ///
    /// # Errors
    /// Any; the restore leaves out everything below.
    async fn directory(&self, path: &[u8], metadata: &Metadata) -> Result<Vec<TreeFinding>, TargetError>;

    /// Creates a file with all its contents and metadata.
    ///
    /// # Errors
    /// Any.
    async fn small_file(
        &self,
        path: &[u8],
        contents: Bytes,
        metadata: &Metadata,
    ) -> Result<Vec<TreeFinding>, TargetError>;

    /// Creates small files of one directory, each as [`small_file`](TreeTarget::small_file) does. Default: all at once.
    ///
    /// Returns one result for each file, in the same order. The restore reports a file without a result as not created.
    async fn small_files(&self, files: Vec<SmallFile>) -> Vec<Result<Vec<TreeFinding>, TargetError>> {
        let create = |file: SmallFile| async move {
            let SmallFile { contents, metadata, path } = file;
            self.small_file(&path, contents, &metadata).await
        };
        future::join_all(files.into_iter().map(create)).await
    }

    /// Creates a file whose contents follow.
    ///
    /// # Errors
    /// Any.
    async fn file(
        &self,
        path: &[u8],
        size: u64,
        metadata: &Metadata,
    ) -> Result<Box<dyn TargetFile>, TargetError>;

    /// Creates a symbolic link, a device, a pipe or a socket with its metadata.
    ///
    /// # Errors
    /// Any.
    async fn special(
        &self,
        path: &[u8],
        kind: &FileKind,
        metadata: &Metadata,
    ) -> Result<Vec<TreeFinding>, TargetError>;

    /// Creates a further name of a file of this restore.
    ///
    /// # Errors
    /// `AlreadyExists`; any other: the restore then makes a copy, and reports it for `Unsupported` and `CrossesDevices`.
    async fn hard_link(&self, path: &[u8], target: &[u8]) -> Result<(), TargetError>;

    /// Sets the metadata of a directory whose entries are complete.
    ///
    /// # Errors
    /// Any.
    async fn finish_directory(
        &self,
        path: &[u8],
        metadata: &Metadata,
    ) -> Result<Vec<TreeFinding>, TargetError>;

    /// Completes the target. When this returns, it has all entries, as durable as it promises.
    ///
    /// # Errors
    /// Any error fails the restore.
    async fn finish(&self) -> io::Result<Vec<TreeFinding>>;
}

/// A file that a [`TreeTarget`] creates at once.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct SmallFile {
    /// All its contents.
    pub contents: Bytes,
    /// Its metadata.
    pub metadata: Metadata,
    /// Its path from the root of the target.
    pub path: Bytes,
}

/// A file of a [`TreeTarget`] that is being written. Dropped before [`finish`](TargetFile::finish), it must not pass for the whole file.
#[async_trait]
pub trait TargetFile: Send {
    /// Appends contents.
    ///
    /// # Errors
    /// Any; the restore then drops the file.
    async fn write(&mut self, data: Bytes) -> Result<(), TargetError>;

    /// Appends contents that lie in several buffers, one after the other. Default: a [`write`](TargetFile::write) for each.
    ///
    /// A restore calls this for all contents. A file around another one should pass it on.
    ///
    /// # Errors
    /// Any; the restore then drops the file.
    async fn write_vectored(&mut self, parts: Vec<Bytes>) -> Result<(), TargetError> {
        for part in parts {
            self.write(part).await?;
        }
        Ok(())
    }

    /// Completes the file and sets its metadata.
    ///
    /// # Errors
    /// Any.
    async fn finish(self: Box<Self>) -> Result<Vec<TreeFinding>, TargetError>;
}

/// An entry that a [`TreeTarget`] did not restore.
#[non_exhaustive]
#[derive(Debug)]
pub struct TargetError {
    /// The underlying error.
    pub cause: io::Error,
    /// The problem to report.
    pub problem: Problem,
}

impl TargetError {
    /// An entry with this problem.
    pub fn new(problem: Problem, cause: io::Error) -> Self {
        Self { cause, problem }
    }

    /// Contents that could not be written.
    pub(in crate::tree) fn not_written(cause: impl Into<io::Error>) -> Self {
        Self::new(Problem::NotWritten, cause.into())
    }
}

/// [`Problem::Exists`] for `AlreadyExists`, otherwise [`Problem::NotCreated`].
impl From<io::Error> for TargetError {
    fn from(cause: io::Error) -> Self {
        let is_there = cause.kind() == io::ErrorKind::AlreadyExists;
        Self::new(if is_there { Problem::Exists } else { Problem::NotCreated }, cause)
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl StdError for TargetError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}

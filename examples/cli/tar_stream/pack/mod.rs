//! Writes a directory as a tar stream.
//!
//! Only the root of the tree has to be readable. An entry below that cannot be read, or changes meanwhile, becomes a finding
//! with its whole path, and the rest goes on; in strict mode the first such finding ends the stream with an error.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

pub(crate) mod contents;
mod header;
mod walk;

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use futures::channel::mpsc as channel;
use futures::executor::block_on;
use futures::io::AsyncRead;
use futures::sink::SinkExt as _;
use futures::stream::TryStreamExt as _;
use larder::tree::{Excludes, TreeFinding};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::super::findings::Findings;

/// Bytes sent through the channel at once.
const BLOCK_BYTES: usize = 1 << 20;

/// A file by its device and inode.
pub(crate) type FileId = (u64, u64);

pub(crate) fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// A directory to back up, opened once.
#[derive(Debug)]
pub(crate) struct Root {
    directory: File,
    path: PathBuf,
}

impl Root {
    /// Opens a directory. A link to a directory means the directory.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = File::from(openat(CWD, path, flags, Mode::empty())?);
        Ok(Self { directory, path: path.to_owned() })
    }

    /// The directory and the ones that it lies in, as far up as this process may look.
    pub(crate) fn ancestry(&self) -> io::Result<Vec<FileId>> {
        let mut ids = vec![id_of(&self.directory.metadata()?)];
        let mut directory = self.directory.try_clone()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        while let Ok(parent) = openat(&directory, "..", flags, Mode::empty()) {
            directory = File::from(parent);
            let id = id_of(&directory.metadata()?);
            if ids.last() == Some(&id) {
                break;
            }
            ids.push(id);
        }
        Ok(ids)
    }
}

/// Entries to include.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) excludes: Excludes,
    /// Directories whose filesystems are stored although they are other ones, with their devices.
    pub(crate) included: Vec<(PathBuf, u64)>,
    /// Directories on other filesystems than that of the root are stored empty.
    pub(crate) one_file_system: bool,
    /// Directories of the store that the backup goes to; they are left out.
    pub(crate) own: HashSet<FileId>,
    /// The first finding that is no notice ends the stream.
    pub(crate) strict: bool,
}

/// Reads a directory on a thread of its own and yields it as a tar stream, always in the same order.
pub(crate) fn of_directory(
    root: Root,
    options: Options,
    findings: Findings,
) -> impl AsyncRead + Send + Unpin {
    let (mut blocks, receiver) = Blocks::channel();
    thread::spawn(move || {
        let listener = Listener { findings, strict: options.strict };
        let written = walk::write(root, &options, &listener, &mut blocks);
        blocks.end(written);
    });
    receiver
}

/// Where findings go.
struct Listener {
    findings: Findings,
    strict: bool,
}

impl Listener {
    fn found(&self, finding: TreeFinding) -> io::Result<()> {
        if self.strict && !finding.problem.is_notice() {
            return Err(io::Error::other(finding.to_string()));
        }
        self.findings.add(finding);
        Ok(())
    }
}

/// Collects what is written into blocks and sends them.
#[derive(Debug)]
pub(crate) struct Blocks {
    block: Vec<u8>,
    sender: channel::Sender<io::Result<Vec<u8>>>,
}

impl Blocks {
    /// Somewhere to write on one thread, and the reader for another.
    pub(crate) fn channel() -> (Self, impl AsyncRead + Send + Unpin) {
        let (sender, receiver) = channel::channel(4);
        (Self { block: Vec::with_capacity(BLOCK_BYTES), sender }, receiver.into_async_read())
    }

    /// Sends the rest, or an error in its place.
    pub(crate) fn end(mut self, written: io::Result<()>) {
        if let Err(error) = written.and_then(|()| self.flush()) {
            // A reader that is gone needs no error either.
            let _ = block_on(self.sender.send(Err(error)));
        }
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..length]);
        if self.block.len() == BLOCK_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        if block.is_empty() {
            return Ok(());
        }
        block_on(self.sender.send(Ok(block))).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

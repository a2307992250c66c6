//! Sources of a backup. Each is opened once.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

use std::fs::{self, File};
use std::io::{self, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use futures::executor::block_on;
use futures::io::AsyncRead;
use larder::format::name::{ArchiveKind, ArchiveName};
use larder::tree::DirectorySource;

use super::tar_stream::pack::{Blocks, Root};

/// Bytes of a stream read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// A source that was opened, or will be.
#[derive(Debug)]
pub(crate) enum Opened {
    /// For a tar stream.
    Directory(Root),
    /// A file or a block device.
    File(File),
    Stream(Stream),
    /// For a file archive.
    Tree(DirectorySource),
}

/// Bytes that come once.
#[derive(Debug)]
pub(crate) enum Stream {
    File(File),
    /// A pipe is opened when its turn comes: opening waits for the writer, which may wait until an earlier pipe was read.
    Pipe(PathBuf),
}

/// Opens a source. Its kind is looked at first, since opening may wait.
pub(crate) fn open(path: &Path, archive: &ArchiveName) -> io::Result<Opened> {
    let refused = |why: &str| Err(io::Error::other(why));
    let kind = fs::metadata(path)?.file_type();
    let (is_tree, is_tar) = (archive.stem().ends_with(".pxar"), archive.stem().ends_with(".tar"));
    match (kind.is_dir(), is_tree || is_tar) {
        (true, true) if is_tree => {
            let opened = block_on(DirectorySource::open(super::runtime(), path));
            return opened.map(Opened::Tree).map_err(|error| io::Error::other(super::told(&error)));
        }
        (true, true) => return Root::open(path).map(Opened::Directory),
        (true, false) => return refused("the path is a directory"),
        (false, true) => return refused("the path is not a directory"),
        (false, false) => {}
    }
    let has_size = kind.is_file() || kind.is_block_device();
    if !has_size && archive.kind() == ArchiveKind::Fixed {
        let why = "an image needs a source with a size, a file or a block device; a stream can be stored as NAME.bin";
        return refused(why);
    }
    if kind.is_fifo() {
        return Ok(Opened::Stream(Stream::Pipe(path.to_owned())));
    }
    if kind.is_socket() {
        // A socket has no name under which it could be opened.
        return match path.to_str() {
            Some("/dev/stdin" | "/dev/fd/0") => {
                Ok(Opened::Stream(Stream::File(File::from(io::stdin().as_fd().try_clone_to_owned()?))))
            }
            _ => refused("the path is a socket"),
        };
    }
    let file = File::open(path)?;
    // Another one may have taken its place.
    let kind = file.metadata()?.file_type();
    match (has_size, kind.is_file() || kind.is_block_device()) {
        (true, true) => Ok(Opened::File(file)),
        (false, _) if !kind.is_dir() => Ok(Opened::Stream(Stream::File(file))),
        _ => refused("it was replaced while it was opened"),
    }
}

/// The size of a file or a block device in bytes. The size of a device is where its end is.
pub(crate) fn size(file: &mut File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let size = file.seek(io::SeekFrom::End(0))?;
    file.rewind()?;
    Ok(size)
}

/// Reads a stream to its end, on a thread of its own since it may wait for ever.
pub(crate) fn of_stream(stream: Stream) -> impl AsyncRead + Send + Unpin {
    let (mut blocks, receiver) = Blocks::channel();
    thread::spawn(move || {
        let file = match stream {
            Stream::File(file) => Ok(file),
            Stream::Pipe(path) => File::open(path),
        };
        let read = file.map(|file| io::BufReader::with_capacity(BUFFER_BYTES, file));
        let read = read.and_then(|mut reader| io::copy(&mut reader, &mut blocks)).map(drop);
        blocks.end(read);
    });
    receiver
}

//! Contents of files, from the source into an archive.
//!
//! The archive gets exactly as many bytes as the listing said, whatever happens to the file meanwhile: a longer file is cut, and zeros
//! follow where a file ends early or cannot be read.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use futures::io::AsyncReadExt as _;

use crate::error::Result;
use crate::store::{ArchiveParts, checked_read};
use crate::tree::{FileContents, Problem, SourceStream};

/// A problem of a file, with its cause.
pub(super) type FileProblem = (Problem, Option<String>);

/// The next bytes of a stream.
enum Next {
    /// In a buffer of the stream.
    Bytes(Bytes),
    /// The number of bytes in the space of the archive; 0 at the end of the stream.
    Read(usize),
}

/// Takes or reads at most `limit` bytes.
async fn next(parts: &mut ArchiveParts, stream: &mut dyn SourceStream, limit: u64) -> io::Result<Next> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let taken = poll_fn(|context| stream.poll_bytes(context)).await?;
    if let Some(mut bytes) = taken.filter(|bytes| !bytes.is_empty()) {
        bytes.truncate(limit);
        return Ok(Next::Bytes(bytes));
    }
    let space = parts.space();
    let length = limit.min(space.len());
    let read = stream.read(&mut space[..length]).await?;
    Ok(Next::Read(checked_read(read, length)?))
}

/// Adds the contents of a file, `size` bytes, to an archive.
pub(super) async fn push(
    parts: &mut ArchiveParts,
    contents: FileContents,
    size: u64,
) -> Result<Option<FileProblem>> {
    let (written, problem) = match contents {
        FileContents::Whole(bytes) => {
            let wanted = usize::try_from(size).unwrap_or(usize::MAX);
            let stored = bytes.len().min(wanted);
            parts.push(&bytes[..stored]).await?;
            (stored as u64, (bytes.len() > wanted).then_some((Problem::Grown, None)))
        }
        FileContents::Stream(mut stream) => {
            let mut written = 0;
            let mut failure = None;
            while written < size {
                match next(parts, &mut *stream, size - written).await {
                    Ok(Next::Bytes(bytes)) => {
                        written += bytes.len() as u64;
                        parts.push_bytes(bytes).await?;
                    }
                    Ok(Next::Read(0)) => break,
                    Ok(Next::Read(read)) => {
                        parts.filled(read).await?;
                        written += read as u64;
                    }
                    Err(error) => {
                        failure = Some((Problem::UnreadableFrom(written), Some(error.to_string())));
                        break;
                    }
                }
            }
            let found =
                || (written == size).then(|| stream.problem()).flatten().map(|problem| (problem, None));
            (written, failure.or_else(found))
        }
    };
    parts.push_zeros(size - written).await?;
    Ok(problem.or((written < size).then_some((Problem::Shrunk(written), None))))
}

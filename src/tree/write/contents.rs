//! Contents of files, from the source into an archive.
//!
//! The archive gets exactly as many bytes as the listing said, whatever happens to the file meanwhile: a longer file is cut, and zeros
//! follow where a file ends early or cannot be read.

use futures::io::AsyncReadExt as _;

use crate::error::Result;
use crate::store::ArchiveParts;
use crate::tree::{FileContents, Problem};

/// A problem of a file, with its cause.
pub(super) type FileProblem = (Problem, Option<String>);

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
                let space = parts.space();
                let length = usize::try_from(size - written).unwrap_or(usize::MAX).min(space.len());
                match stream.read(&mut space[..length]).await {
                    Ok(0) => break,
                    Ok(read) => {
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

//! Contents of files.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::io::AsyncRead;

use crate::pxar::Mtime;
use crate::rt::Runtime;
use crate::tree::disk::open;
use crate::tree::disk::status::Status;
use crate::tree::{FileContents, Problem, SourceStream};

/// Maximum length of a file that is read as a whole.
const WHOLE_BYTES: u64 = 1 << 20;

/// Bytes that one job of a stream reads.
const PART_BYTES: u64 = 1 << 20;

/// Number of jobs of a stream at once.
const JOBS: usize = 3;

/// Opens a file with the size and the time of its listing.
pub(super) fn open(
    runtime: Arc<dyn Runtime>,
    directory: BorrowedFd<'_>,
    name: &[u8],
    listed: (u64, Mtime),
) -> io::Result<FileContents> {
    let file = File::from(open::to_read(directory, &CString::new(name)?)?);
    let before = Status::of(&file)?;
    if !before.file_type().is_file() {
        return Err(io::Error::other("another object took the place of the file"));
    }
    let (size, _) = listed;
    let found = Found::new(file, before, listed);
    if size > WHOLE_BYTES {
        return Ok(FileContents::Stream(Box::new(ReadAhead::new(runtime, found))));
    }
    let part = found.read(0..size);
    let problem = found.closing.get().copied();
    Ok(match part {
        Part { error: None, is_short: false, bytes } if problem.is_none() => FileContents::Whole(bytes),
        Part { error: Some(error), bytes, .. } if bytes.is_empty() => return Err(error),
        part => FileContents::Stream(Box::new(Held { part, problem })),
    })
}

/// An open file with what is known about it.
struct Found {
    before: Status,
    /// The problem that shows when every part is read.
    closing: OnceLock<Problem>,
    file: File,
    /// Time of the listing.
    mtime: Mtime,
    /// Size in the listing.
    size: u64,
    /// Number of parts to read.
    unread: AtomicU64,
}

/// A part of a file, up to an error.
#[derive(Default)]
struct Part {
    bytes: Bytes,
    error: Option<io::Error>,
    /// `true` if it has fewer bytes than asked for.
    is_short: bool,
}

impl Found {
    fn new(file: File, before: Status, (size, mtime): (u64, Mtime)) -> Self {
        let unread = if size > WHOLE_BYTES { size.div_ceil(PART_BYTES) } else { 1 };
        Self { before, closing: OnceLock::new(), file, mtime, size, unread: unread.into() }
    }

    /// Reads a range. Fewer bytes without an error mean that the file ends.
    fn read(&self, range: std::ops::Range<u64>) -> Part {
        let length = usize::try_from(range.end - range.start).unwrap_or(0);
        let mut bytes = Vec::new();
        crate::buffers::lengthen(&mut bytes, length);
        let (mut filled, mut failed) = (0, None);
        while filled < length {
            match self.file.read_at(&mut bytes[filled..], range.start + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        bytes.truncate(filled);
        // Parts end in any order, and the file may change until the last of them.
        if self.unread.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(problem) = self.problem()
        {
            let _ = self.closing.set(problem);
        }
        Part { bytes: Bytes::from(bytes), error: failed, is_short: filled < length }
    }

    /// Compares the file with its listing and with its opening.
    fn problem(&self) -> Option<Problem> {
        let Ok(after) = Status::of(&self.file) else { return Some(Problem::Changed) };
        let is_same = after.stat.mtime == self.mtime
            && after.stat.mtime == self.before.stat.mtime
            && after.changed == self.before.changed
            && after.size == self.size;
        if after.size > self.size { Some(Problem::Grown) } else { (!is_same).then_some(Problem::Changed) }
    }
}

/// A small file that is not as it was listed, or that cannot be read to its end.
struct Held {
    part: Part,
    problem: Option<Problem>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(take(&mut self.part, buffer))
    }
}

impl SourceStream for Held {
    fn problem(&self) -> Option<Problem> {
        self.problem
    }
}

/// Moves bytes of a part to a buffer; the error of the part follows its bytes.
fn take(part: &mut Part, buffer: &mut [u8]) -> io::Result<usize> {
    if part.bytes.is_empty() {
        return part.error.take().map_or(Ok(0), Err);
    }
    let length = part.bytes.len().min(buffer.len());
    buffer[..length].copy_from_slice(&part.bytes.split_to(length));
    Ok(length)
}

/// A large file, of which blocking jobs read the next parts.
struct ReadAhead {
    current: Part,
    found: Arc<Found>,
    /// `true` after the last part, or one that ended early.
    is_over: bool,
    jobs: VecDeque<Job>,
    /// Position of the next job.
    next: u64,
    runtime: Arc<dyn Runtime>,
}

/// A job that reads a part, or its result.
enum Job {
    Done(Part),
    Running(BoxFuture<'static, Part>),
}

impl ReadAhead {
    fn new(runtime: Arc<dyn Runtime>, found: Found) -> Self {
        let current = Part::default();
        Self { current, found: Arc::new(found), is_over: false, jobs: VecDeque::new(), next: 0, runtime }
    }

    /// Starts jobs. An answer wakes the task of the last poll.
    fn poll_jobs(&mut self, context: &mut Context<'_>) {
        while self.jobs.len() < JOBS && self.next < self.found.size {
            let range = self.next..self.found.size.min(self.next + PART_BYTES);
            self.next = range.end;
            let (runtime, found) = (Arc::clone(&self.runtime), Arc::clone(&self.found));
            self.jobs.push_back(Job::Running(Box::pin(async move {
                let read = runtime.run_blocking("read a file", move || Ok(found.read(range))).await;
                let failed =
                    |error| Part { error: Some(io::Error::other(error)), is_short: true, ..Part::default() };
                read.unwrap_or_else(failed)
            })));
        }
        for job in &mut self.jobs {
            if let Job::Running(running) = job
                && let Poll::Ready(part) = running.poll_unpin(context)
            {
                *job = Job::Done(part);
            }
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.current.bytes.is_empty() && this.current.error.is_none() && !this.is_over {
            this.poll_jobs(context);
            match this.jobs.pop_front() {
                None => this.is_over = true,
                Some(Job::Done(part)) => {
                    // Later parts would stand at the wrong position.
                    this.is_over = part.is_short;
                    this.current = part;
                }
                Some(running) => {
                    this.jobs.push_front(running);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(take(&mut this.current, buffer))
    }
}

impl SourceStream for ReadAhead {
    fn problem(&self) -> Option<Problem> {
        self.found.closing.get().copied()
    }
}

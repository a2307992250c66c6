//! Contents of files.
//!
//! Parts of a large file that are holes are not read, where the filesystem tells them from data.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::io::AsyncRead;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use crate::buffers::{Buffer, Buffers, LARGE_BYTES};
use crate::holes;
use crate::pxar::{Mtime, Stat};
use crate::rt::Runtime;
use crate::tree::disk::open;
use crate::tree::disk::status::Status;
use crate::tree::{FileContents, LinkId, Problem, SourceStream};

/// Maximum length of a file that is read as a whole.
const WHOLE_BYTES: u64 = 1 << 20;

/// Bytes that one job of a stream reads.
const PART_BYTES: u64 = 1 << 20;

// A read fills the capacity of its buffer.
const _: () = assert!(PART_BYTES <= LARGE_BYTES as u64, "a larger buffer has room for much more than a part");

/// Number of jobs of a stream at once.
const JOBS: usize = 4;

/// Size and time of a file in its listing.
pub(super) type Listed = (u64, Mtime);

/// Opens a file with the identity, the status and the size of its listing.
pub(super) fn open(
    (runtime, buffers): (&Arc<dyn Runtime>, &Arc<Buffers>),
    directory: BorrowedFd<'_>,
    name: &[u8],
    (id, stat): (Option<LinkId>, &Stat),
    size: u64,
) -> io::Result<FileContents> {
    let file = File::from(open::to_read(directory, &CString::new(name)?)?);
    let before = Status::of(&file)?;
    if !before.file_type().is_file() || !before.has_rights_of(id, stat) {
        return Err(io::Error::other("another object took the place of the file"));
    }
    let found = Found::new(file, before, (size, stat.mtime));
    if size > WHOLE_BYTES {
        let stream = ReadAhead::new(Arc::clone(runtime), Arc::clone(buffers), found);
        return Ok(FileContents::Stream(Box::new(stream)));
    }
    let part = found.read(0..size, buffers.take(length_of(&(0..size))));
    let problem = found.closing.get().copied();
    Ok(match part {
        Part { error: None, is_short: false, bytes, .. } if problem.is_none() => FileContents::Whole(bytes),
        Part { error: Some(error), bytes, .. } if bytes.is_empty() => return Err(error),
        part => FileContents::Stream(Box::new(Held { part, problem })),
    })
}

/// Reads a small open file of this status. `None` if it cannot be read as it is listed.
pub(super) fn unchanged(file: File, before: Status, listed: Listed) -> Option<Bytes> {
    let found = Found::new(file, before, listed);
    let part = found.read(0..listed.0, Buffer::default());
    (part.error.is_none() && !part.is_short && found.closing.get().is_none()).then_some(part.bytes)
}

/// An open file with what is known about it.
struct Found {
    before: Status,
    /// The problem that shows when every part is read.
    closing: OnceLock<Problem>,
    file: File,
    /// `true` if holes can be told from data.
    has_holes: bool,
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
    /// The bytes that the reader has not taken.
    bytes: Bytes,
    error: Option<io::Error>,
    /// `true` if it has fewer bytes than asked for.
    is_short: bool,
    /// Number of zeros instead of bytes, for a hole.
    zeros: usize,
}

impl Part {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.zeros == 0 && self.error.is_none()
    }
}

fn length_of(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(0)
}

impl Found {
    fn new(file: File, before: Status, (size, mtime): Listed) -> Self {
        let unread = if size > WHOLE_BYTES { size.div_ceil(PART_BYTES) } else { 1 };
        let has_holes = size > WHOLE_BYTES && before.is_sparse && holes::are_reported(&file);
        Self { before, closing: OnceLock::new(), file, has_holes, mtime, size, unread: unread.into() }
    }

    /// Reads a range into a buffer, replacing its contents. Fewer bytes without an error mean that the file ends.
    fn read(&self, range: Range<u64>, buffer: Buffer) -> Part {
        let part = if self.is_hole(&range) {
            Part { zeros: length_of(&range), ..Part::default() }
        } else {
            self.read_data(&range, buffer)
        };
        // Parts end in any order, and the file may change until the last of them.
        if self.unread.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(problem) = self.problem()
        {
            let _ = self.closing.set(problem);
        }
        part
    }

    fn read_data(&self, range: &Range<u64>, mut bytes: Buffer) -> Part {
        let length = length_of(range);
        bytes.clear();
        bytes.reserve_exact(length);
        let mut failed = None;
        while bytes.len() < length {
            let position = range.start + bytes.len() as u64;
            match pread(&self.file, spare_capacity(&mut bytes), position) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    failed = Some(error.into());
                    break;
                }
            }
        }
        // The capacity may be larger.
        let read = bytes.len().min(length);
        Part { error: failed, is_short: read < length, bytes: bytes.freeze_to(read), ..Part::default() }
    }

    /// Returns `true` if a range has no data, and the file does not end in it.
    fn is_hole(&self, range: &Range<u64>) -> bool {
        self.has_holes
            && holes::next_data(&self.file, range.start)
                .is_ok_and(|data| data.is_none_or(|data| data >= range.end))
            && Status::of(&self.file).is_ok_and(|status| status.size >= range.end)
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
    if part.zeros > 0 {
        let length = part.zeros.min(buffer.len());
        buffer[..length].fill(0);
        part.zeros -= length;
        return Ok(length);
    }
    if part.bytes.is_empty() {
        return part.error.take().map_or(Ok(0), Err);
    }
    let length = part.bytes.len().min(buffer.len());
    buffer[..length].copy_from_slice(&part.bytes.split_to(length));
    Ok(length)
}

/// A large file, of which blocking jobs read the next parts.
struct ReadAhead {
    /// The buffers of parts. Touching fresh memory costs as much as reading into it.
    buffers: Arc<Buffers>,
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
    fn new(runtime: Arc<dyn Runtime>, buffers: Arc<Buffers>, found: Found) -> Self {
        Self {
            buffers,
            current: Part::default(),
            found: Arc::new(found),
            is_over: false,
            jobs: VecDeque::new(),
            next: 0,
            runtime,
        }
    }

    /// Starts jobs. An answer wakes the task of the last poll.
    fn poll_jobs(&mut self, context: &mut Context<'_>) {
        while self.jobs.len() < JOBS && self.next < self.found.size {
            let range = self.next..self.found.size.min(self.next + PART_BYTES);
            self.next = range.end;
            let (runtime, found) = (Arc::clone(&self.runtime), Arc::clone(&self.found));
            let buffer = self.buffers.take(length_of(&range));
            self.jobs.push_back(Job::Running(Box::pin(async move {
                let read = runtime.run_blocking("read a file", move || Ok(found.read(range, buffer))).await;
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

    /// Advances to the next part when the current one is taken.
    fn poll_current(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.current.is_empty() && !self.is_over {
            self.poll_jobs(context);
            match self.jobs.pop_front() {
                None => self.is_over = true,
                Some(Job::Done(part)) => {
                    // Later parts would stand at the wrong position.
                    self.is_over = part.is_short;
                    self.current = part;
                }
                Some(running) => {
                    self.jobs.push_front(running);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_current(context));
        Poll::Ready(take(&mut self.current, buffer))
    }
}

impl SourceStream for ReadAhead {
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        ready!(self.poll_current(context));
        // Zeros of a hole, an error and the end are for a read.
        let is_whole = self.current.zeros == 0 && !self.current.bytes.is_empty();
        Poll::Ready(Ok(is_whole.then(|| std::mem::take(&mut self.current.bytes))))
    }

    fn problem(&self) -> Option<Problem> {
        self.found.closing.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn holes_of_a_file_are_not_read_and_are_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(20 * PART_BYTES + 5).unwrap();
        let data = 7 * PART_BYTES + 100;
        file.write_all_at(b"data", data).unwrap();
        let before = Status::of(&file).unwrap();
        if !before.is_sparse || !holes::are_reported(&file) {
            // This filesystem tells none.
            return;
        }
        let listed = (before.size, before.stat.mtime);
        let found = Found::new(file.try_clone().unwrap(), before, listed);
        for start in (0..before.size).step_by(usize::try_from(PART_BYTES).unwrap()) {
            let range = start..before.size.min(start + PART_BYTES);
            let part = found.read(range.clone(), Buffer::default());
            assert!(part.error.is_none() && !part.is_short);
            if range.contains(&data) {
                assert_eq!((part.zeros, part.bytes.len()), (0, length_of(&range)));
                assert_eq!(part.bytes[100..104], b"data"[..]);
            } else {
                assert_eq!((part.zeros, part.bytes.len()), (length_of(&range), 0));
            }
        }
        assert_eq!(found.closing.get(), None);
        // What is written into a hole is read, and a hole behind the end is none.
        file.write_all_at(b"new", 3 * PART_BYTES).unwrap();
        file.set_len(10 * PART_BYTES).unwrap();
        assert_eq!(found.read(3 * PART_BYTES..4 * PART_BYTES, Buffer::default()).bytes[..3], b"new"[..]);
        assert!(found.read(12 * PART_BYTES..13 * PART_BYTES, Buffer::default()).is_short);
    }
}

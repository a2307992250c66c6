//! Regular files.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::directories::{Parent, remove_inherited};
use super::own::{OwnEntries, exists};
use super::{DirectoryTarget, Existing, Outcome, split, temporary};
use crate::chunker::is_zero;
use crate::pxar::Metadata;
use crate::tree::Problem;
use crate::tree::disk::metadata::flags::EARLY;
use crate::tree::disk::metadata::write::{MetadataWriter, add_flags};
use crate::tree::disk::status::Status;
use crate::tree::restore::target::{TargetError, TargetFile};

/// Zeros of this many bytes, at a multiple of it, are not written.
const HOLE_BYTES: usize = 4096;

const CREATE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

const OWN_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

impl DirectoryTarget {
    /// Creates a file with all its contents and metadata. It has its own name at once if existing entries are refused.
    pub(super) fn write_small(&self, path: &[u8], contents: &[u8], metadata: &Metadata) -> Outcome {
        let write = |file: &File| {
            let mut end = 0;
            let written = write_with_holes(file, 0, contents, &mut end);
            written
                .and_then(|()| set_length(file, contents.len() as u64, end))
                .map_err(TargetError::not_written)
        };
        if self.existing != Existing::Refuse {
            let written = Written::create(self, path, metadata.clone())?;
            write(&written.file)?;
            let findings = self.complete_file(path, metadata, &written.parent, &written.file)?;
            written.publish(self)?;
            return Ok(findings);
        }
        let (above, name) = split(path)?;
        let parent = self.state.directories.get(above)?;
        let file = match openat(&parent.fd, &*name, CREATE, OWN_MODE) {
            Err(Errno::EXIST) => return Err(exists(Problem::Exists)),
            created => File::from(created.map_err(io::Error::from)?),
        };
        set_early(&file, metadata);
        if let Err(error) = write(&file) {
            let _ = unlinkat(&parent.fd, &*name, AtFlags::empty());
            return Err(error);
        }
        self.complete_file(path, metadata, &parent, &file)
    }

    /// Sets the metadata of a file that is written.
    fn complete_file(&self, path: &[u8], metadata: &Metadata, parent: &Parent, file: &File) -> Outcome {
        remove_inherited(parent, file.as_fd());
        let status = Status::of(file)?;
        let mut writer = MetadataWriter::new(path, metadata, self.powers);
        writer.set(file.as_fd(), &status);
        self.flags(path, metadata, file, status.id, &mut writer);
        self.state.own().files.insert(status.id);
        Ok(writer.findings())
    }
}

/// A file that is written in parts, under a temporary name.
pub(super) struct LargeFile {
    written: Arc<Written>,
    /// End of the last bytes that are no hole.
    end: u64,
    position: u64,
    size: u64,
    target: DirectoryTarget,
}

/// The file under its temporary name. Dropped before it has its own, it is removed.
struct Written {
    file: File,
    is_over: AtomicBool,
    metadata: Metadata,
    name: CString,
    parent: Parent,
    path: Vec<u8>,
    temporary: CString,
}

impl LargeFile {
    pub(super) fn create(
        target: &DirectoryTarget,
        path: &[u8],
        size: u64,
        metadata: Metadata,
    ) -> Result<Self, TargetError> {
        let written = Arc::new(Written::create(target, path, metadata)?);
        Ok(Self { written, end: 0, position: 0, size, target: target.clone() })
    }
}

#[async_trait]
impl TargetFile for LargeFile {
    async fn write(&mut self, data: Bytes) -> Result<(), TargetError> {
        self.write_vectored(vec![data]).await
    }

    async fn write_vectored(&mut self, parts: Vec<Bytes>) -> Result<(), TargetError> {
        let (written, mut position, mut end) = (Arc::clone(&self.written), self.position, self.end);
        self.position += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        // One job for all of them: each switch between threads may take as long as the writing.
        let write = move |_: &DirectoryTarget, _: &[u8]| {
            for part in parts {
                write_with_holes(&written.file, position, &part, &mut end)
                    .map_err(TargetError::not_written)?;
                position += part.len() as u64;
            }
            Ok(end)
        };
        self.end = self.target.run(b"", write).await?;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Outcome {
        let (written, end, size, position) = (Arc::clone(&self.written), self.end, self.size, self.position);
        if position != size {
            let why = format!("{position} of {size} bytes were written");
            return Err(TargetError::not_written(io::Error::other(why)));
        }
        let finish = move |target: &DirectoryTarget, _: &[u8]| {
            set_length(&written.file, size, end).map_err(TargetError::not_written)?;
            let findings =
                target.complete_file(&written.path, &written.metadata, &written.parent, &written.file)?;
            written.publish(target)?;
            Ok(findings)
        };
        self.target.run(b"", finish).await
    }
}

impl Drop for LargeFile {
    fn drop(&mut self) {
        // Not left to the last job that holds the file: the process may end before it does.
        self.written.discard();
    }
}

impl Written {
    /// Creates an empty file under a temporary name.
    fn create(target: &DirectoryTarget, path: &[u8], metadata: Metadata) -> Result<Self, TargetError> {
        let (above, name) = split(path)?;
        let parent = target.state.directories.get(above)?;
        if target.existing != Existing::Replace && is_there(parent.fd.as_fd(), &name) {
            let own = OwnEntries::lock(&target.state.own, target.existing);
            return Err(own.map_or_else(|| exists(Problem::Exists), |own| own.skipped(&parent.fd, &name)));
        }
        let create = |name: &CStr| openat(&parent.fd, name, CREATE, OWN_MODE).map(File::from);
        let made = temporary::make(&*target.runtime, &name, create);
        let (file, temporary) = made.map_err(io::Error::from)?;
        set_early(&file, &metadata);
        Ok(Self { file, is_over: false.into(), metadata, name, parent, path: path.to_vec(), temporary })
    }

    /// Gives the file its name.
    fn publish(&self, target: &DirectoryTarget) -> Result<(), TargetError> {
        temporary::publish(target, &self.parent, (&self.temporary, &self.name))?;
        self.is_over.store(true, Ordering::Release);
        Ok(())
    }

    /// Removes the file, unless it has its name. A job may be about to rename it: the rename then fails, or was first and leaves nothing to remove.
    fn discard(&self) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            // If it stays, its name tells what it is.
            let _ = unlinkat(&self.parent.fd, &*self.temporary, AtFlags::empty());
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.discard();
    }
}

fn is_there(directory: BorrowedFd<'_>, name: &CString) -> bool {
    Status::of_name(directory, name).is_ok()
}

/// Sets flags that change how contents are stored. A failure shows when all flags are set.
fn set_early(file: &File, metadata: &Metadata) {
    let flags = metadata.stat.flags & EARLY;
    if flags != 0 {
        let _ = add_flags(file.as_fd(), flags);
    }
}

/// Extends a file that ends with a hole.
fn set_length(file: &File, size: u64, end: u64) -> io::Result<()> {
    if end < size { file.set_len(size) } else { Ok(()) }
}

/// Writes to a part of a file that reads as zeros, and leaves out blocks of zeros. `end` becomes the end of the last bytes written.
fn write_with_holes(file: &File, offset: u64, data: &[u8], end: &mut u64) -> io::Result<()> {
    let mut write = |range: std::ops::Range<usize>| {
        // Also shorter ones at both ends: data rarely begin at a block.
        if is_zero(&data[range.clone()]) {
            return Ok(());
        }
        *end = offset + range.end as u64;
        file.write_all_at(&data[range.clone()], offset + range.start as u64)
    };
    let block = HOLE_BYTES as u64;
    let first = usize::try_from(offset.next_multiple_of(block) - offset).unwrap_or(0).min(data.len());
    let (mut begin, mut at) = (0, first);
    while let Some(zeros) = data.get(at..at + HOLE_BYTES) {
        if is_zero(zeros) {
            write(begin..at)?;
            begin = at + HOLE_BYTES;
        }
        at += HOLE_BYTES;
    }
    write(begin..data.len())
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::pxar::{Mtime, Stat};
    use crate::rt::{Runtime, ThreadRuntime};

    #[test]
    fn a_dropped_file_is_removed_although_a_job_holds_it() {
        let directory = larder_testing::scratch();
        let root = directory.path().join("root");
        let target = block_on(DirectoryTarget::create(Arc::new(ThreadRuntime::new()), &root)).unwrap();
        let mtime = Mtime { seconds: 0, nanoseconds: 0 };
        let metadata = Metadata::new(Stat { flags: 0, gid: 0, mode: 0o100_600, mtime, uid: 0 });
        let file = LargeFile::create(&target, b"name", 5, metadata).unwrap();
        let held_by_a_job = Arc::clone(&file.written);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
        drop(file);
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        drop(held_by_a_job);
    }

    /// Without it, a crash would leave neither, or a part that `Existing::Skip` keeps.
    #[test]
    fn a_name_shows_the_old_file_or_the_new_one_while_it_is_replaced() {
        let directory = larder_testing::scratch();
        let root = directory.path().join("root");
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        drop(block_on(DirectoryTarget::create(Arc::clone(&runtime), &root)).unwrap());
        let (name, long) = (root.join("name"), vec![7; 100_000]);
        std::fs::write(&name, &long).unwrap();
        let mtime = Mtime { seconds: 0, nanoseconds: 0 };
        let metadata = Metadata::new(Stat { flags: 0, gid: 0, mode: 0o100_600, mtime, uid: 0 });
        let replace = || {
            for contents in [&b"new"[..], &long].into_iter().cycle().take(200) {
                let target = block_on(DirectoryTarget::open(Arc::clone(&runtime), &root)).unwrap();
                let target = target.existing(Existing::Replace);
                assert!(target.write_small(b"name", contents, &metadata).is_ok());
            }
        };
        std::thread::scope(|threads| {
            let writer = threads.spawn(replace);
            while !writer.is_finished() {
                let found = std::fs::read(&name).unwrap();
                assert!(found == long || found == b"new", "{} bytes", found.len());
            }
            writer.join().unwrap();
        });
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
    }
}

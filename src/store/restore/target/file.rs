//! Files and block devices as targets.

use std::fs::File;
use std::io::{self, Seek as _};
use std::ops::Deref;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::locked_file::LockedFile;
use crate::rt::Runtime;
use crate::store::restore::target::temporary::Temporary;
use crate::store::restore::target::{RestoreTarget, ZEROS_BYTES};

/// Maximum time for which `open` waits for a file that is in use.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// A file or a block device.
///
/// A [new file](FileTarget::create) appears under its name when it is complete and flushed. An [existing one](FileTarget::open)
/// is written in place.
///
/// # Cancel safety
/// A dropped restore may leave one job that still writes to the target. The next restore into the same target waits for that job.
#[derive(Debug)]
pub struct FileTarget {
    /// The restore that may write.
    attempt: Arc<Mutex<Attempt>>,
    /// Number of the restore into this target.
    number: u64,
    runtime: Arc<dyn Runtime>,
    state: State,
}

/// Jobs outlive the futures that wait for them, so each of them looks here first, and holds the lock until it has ended.
#[derive(Debug, Default)]
struct Attempt {
    /// `true` if the new file has its final name.
    is_published: bool,
    number: u64,
}

#[derive(Debug)]
enum State {
    Existing(Existing),
    New(Arc<Temporary>),
    /// A new file that has its final name.
    Published,
}

/// An existing file or block device.
#[derive(Debug)]
struct Existing {
    /// Announced size of the archive in bytes.
    announced: u64,
    /// `true` if the file is cut at the end of the archive.
    cuts: bool,
    file: Arc<Opened>,
}

/// A file or device that is open until the last job has ended.
#[derive(Debug)]
enum Opened {
    /// For exclusive use, on Linux.
    Device(File),
    /// Locked against other targets.
    File(LockedFile),
}

impl Deref for Opened {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Self::Device(file) => file,
            Self::File(file) => file,
        }
    }
}

impl FileTarget {
    /// Restores into a new file. Zeros become holes.
    ///
    /// Until [`finish`](RestoreTarget::finish) the file is `NAME.restoring-<16 hexadecimal digits>` in the same directory, with
    /// the name cut at 100 bytes. `finish` flushes it, renames it without replacing an object that appeared at `path`
    /// meanwhile, and flushes the directory. A target dropped earlier removes the file; a killed process leaves
    /// it, and the next restore uses another name. A target takes one archive: after `finish`, `begin` fails.
    ///
    /// On a filesystem with neither hard links nor a rename that replaces nothing, `finish` first claims the name with an empty
    /// file.
    ///
    /// # Errors
    /// `AlreadyExists` if the path exists; `InvalidInput` if it names a directory; `Denied`, `NotFound` and
    /// similar.
    pub async fn create(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let random = Arc::clone(&runtime);
        let create = move || {
            let created = Temporary::create(&path, random.as_ref());
            created.map_err(|error| Error::io(error, "create").on(path.display()))
        };
        let temporary = runtime.run_blocking("create", create).await?;
        Ok(Self::of(runtime, State::New(Arc::new(temporary))))
    }

    /// Restores over an existing file or block device, in place and from its start: a failed or interrupted restore
    /// leaves a mixture of old and new. Zeros replace old data, as holes where the system can punch them.
    ///
    /// A shorter file grows to the length of the archive; bytes beyond the end of the archive stay, except with
    /// [`truncate`](FileTarget::truncate). [`begin`](RestoreTarget::begin) refuses a device that is smaller than the archive
    /// before anything is written. On Linux a device is opened for exclusive use. A file is locked until the target is dropped and its last write has
    /// ended, where the filesystem has locks.
    ///
    /// # Errors
    /// `Busy` for a device that is mounted or in use as a part of another, and for a file that is locked by another target
    /// or with `flock`, after half a second; `InvalidInput` for anything but a file and a block
    /// device; `NotFound`, `Denied` and similar.
    pub async fn open(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        // The last write of a dropped target may still hold it.
        let is_in_use = |error: &Error| error.kind() == ErrorKind::Busy;
        let open = || {
            let path = path.clone();
            runtime.run_blocking("open", move || Existing::open(&path))
        };
        let existing = runtime.retry_for(LOCK_WAIT, is_in_use, open).await?;
        Ok(Self::of(runtime, State::Existing(existing)))
    }

    fn of(runtime: Arc<dyn Runtime>, state: State) -> Self {
        Self { attempt: Arc::default(), number: 0, runtime, state }
    }

    /// Cuts an [opened](FileTarget::open) file at the end of the archive, in `finish`; default: the rest stays.
    #[must_use]
    pub fn truncate(mut self) -> Self {
        if let State::Existing(existing) = &mut self.state {
            existing.cuts = true;
        }
        self
    }

    /// Runs a job with the file, in the turn of this restore.
    async fn blocking(&self, job: impl FnOnce(&File) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        match &self.state {
            State::Existing(existing) => {
                let file = Arc::clone(&existing.file);
                self.run(move |_| job(&file)).await
            }
            State::New(temporary) => {
                let temporary = Arc::clone(temporary);
                self.run(move |_| job(&temporary.file)).await
            }
            State::Published => Err(is_finished()),
        }
    }

    /// Runs a job in the turn of this restore: after those of earlier ones, and not after one of a later one.
    async fn run(&self, job: impl FnOnce(&mut Attempt) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let (attempt, number) = (Arc::clone(&self.attempt), self.number);
        let job = move || {
            let mut attempt = attempt.lock().unwrap_or_else(PoisonError::into_inner);
            let done = if attempt.is_published {
                Err(is_finished())
            } else if attempt.number > number {
                // Nobody waits for it: its restore was dropped.
                Err(io::Error::other("another restore into the target has begun"))
            } else {
                attempt.number = number;
                job(&mut attempt)
            };
            done.map_err(|error| Error::io(error, "write to the target"))
        };
        self.runtime.run_blocking("write to the target", job).await.map_err(io::Error::other)
    }
}

fn is_finished() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the file is finished; a target takes one archive")
}

impl Existing {
    fn is_device(&self) -> bool {
        matches!(*self.file, Opened::Device(_))
    }

    fn open(path: &PathBuf) -> Result<Self> {
        let failed = |error| Error::io(error, "open").on(path.display());
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            let error = Error::new(ErrorKind::InvalidInput, "open").on(path.display());
            return Err(error.because("it is neither a file nor a block device"));
        }
        let mut options = File::options();
        options.write(true);
        #[cfg(target_os = "linux")]
        if is_device {
            options.custom_flags(nix::fcntl::OFlag::O_EXCL.bits());
        }
        let file = options.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                Error::new(ErrorKind::Busy, "open").on(path.display()).because(error)
            }
            _ => failed(error),
        })?;
        let file = if is_device {
            Opened::Device(file)
        } else {
            Opened::File(LockedFile::lock_if_supported(file).map_err(|_| {
                Error::new(ErrorKind::Busy, "open").on(path.display()).because("it is locked")
            })?)
        };
        Ok(Self { announced: 0, cuts: false, file: Arc::new(file) })
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        // Not left to the last job that holds the file: the process may end before it does.
        if let State::New(temporary) = &self.state {
            temporary.discard();
        }
    }
}

#[async_trait]
impl RestoreTarget for FileTarget {
    async fn begin(&mut self, size: u64) -> io::Result<()> {
        self.number += 1;
        let is_device = match &mut self.state {
            State::Existing(existing) => {
                existing.announced = size;
                existing.is_device()
            }
            State::New(_) | State::Published => {
                // Data of an earlier attempt would show where zeros are skipped.
                return self.blocking(move |file| file.set_len(0).and_then(|()| file.set_len(size))).await;
            }
        };
        self.blocking(move |mut file| {
            let length = file.seek(io::SeekFrom::End(0))?;
            if is_device && length < size {
                let why = format!("the device has {length} bytes, the archive {size}");
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            if length < size { file.set_len(size) } else { Ok(()) }
        })
        .await
    }

    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()> {
        self.write_vectored_at(offset, vec![data]).await
    }

    async fn write_vectored_at(&mut self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        // One job for all of them: each switch between threads may take as long as the writing.
        self.blocking(move |file| {
            let mut at = offset;
            for part in parts {
                file.write_all_at(&part, at)?;
                at += part.len() as u64;
            }
            Ok(())
        })
        .await
    }

    async fn write_zeros(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if matches!(self.state, State::New(_)) {
            return Ok(());
        }
        self.blocking(
            move |file| if punch(file, offset, length) { Ok(()) } else { fill(file, offset, length) },
        )
        .await
    }

    async fn finish(&mut self) -> io::Result<()> {
        match &self.state {
            State::New(temporary) => {
                let temporary = Arc::clone(temporary);
                self.run(move |attempt| {
                    let published = temporary.publish();
                    // It may have its name although the directory could not be flushed.
                    attempt.is_published = temporary.is_over();
                    published
                })
                .await?;
                self.state = State::Published;
                Ok(())
            }
            State::Existing(existing) if existing.cuts && !existing.is_device() => {
                let end = existing.announced;
                self.blocking(move |file| file.set_len(end).and_then(|()| file.sync_all())).await
            }
            _ => self.blocking(File::sync_all).await,
        }
    }
}

/// Makes a range read as zeros without writing them; `false` if the system cannot.
#[cfg(target_os = "linux")]
fn punch(file: &File, offset: u64, length: u64) -> bool {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match (offset.try_into(), length.try_into()) {
        (Ok(offset), Ok(length)) => fallocate(file, flags, offset, length).is_ok(),
        _ => false,
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_: &File, _: u64, _: u64) -> bool {
    false
}

fn fill(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    let mut rest = offset..offset + length;
    while !rest.is_empty() {
        let part = usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..part], rest.start)?;
        rest.start += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::future::{BoxFuture, FutureExt as _};

    use super::*;
    use crate::rt::held::HeldRuntime;
    use crate::rt::{BlockingJob, ThreadRuntime};

    /// Polls a call of a target until its job is with the runtime, and drops it.
    fn dropped(held: &HeldRuntime, mut call: BoxFuture<'_, io::Result<()>>) -> BlockingJob {
        assert!((&mut call).now_or_never().is_none());
        held.job().unwrap()
    }

    /// Runs a call of a target with its job, if it has one.
    fn whole(held: &HeldRuntime, mut call: BoxFuture<'_, io::Result<()>>) -> io::Result<()> {
        if let Some(done) = (&mut call).now_or_never() {
            return done;
        }
        held.job().unwrap()();
        call.now_or_never().unwrap()
    }

    #[test]
    fn a_job_of_a_dropped_restore_writes_nothing_into_the_next_one() {
        let directory = larder_testing::scratch();
        let threads: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        for is_new in [true, false] {
            let path = directory.path().join(format!("target {is_new}"));
            let held = Arc::new(HeldRuntime::default());
            let state = if is_new {
                State::New(Arc::new(Temporary::create(&path, threads.as_ref()).unwrap()))
            } else {
                std::fs::write(&path, [9; 6]).unwrap();
                State::Existing(Existing::open(&path).unwrap())
            };
            let mut target = FileTarget::of(Arc::<HeldRuntime>::clone(&held), state);
            whole(&held, target.begin(6)).unwrap();
            let late_write = dropped(&held, target.write_at(0, Bytes::from_static(b"first")));
            let late_begin = dropped(&held, target.begin(3));
            whole(&held, target.begin(6)).unwrap();
            whole(&held, target.write_zeros(0, 4)).unwrap();
            late_write();
            whole(&held, target.write_at(4, Bytes::from_static(b"xy"))).unwrap();
            late_begin();
            whole(&held, target.finish()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0\0xy", "{is_new}");
        }
    }

    #[test]
    fn a_file_that_a_dropped_future_published_is_not_written_again() {
        let directory = larder_testing::scratch();
        let threads: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let path = directory.path().join("target");
        let held = Arc::new(HeldRuntime::default());
        let state = State::New(Arc::new(Temporary::create(&path, threads.as_ref()).unwrap()));
        let mut target = FileTarget::of(Arc::<HeldRuntime>::clone(&held), state);
        whole(&held, target.begin(1)).unwrap();
        whole(&held, target.write_at(0, Bytes::from_static(b"x"))).unwrap();
        dropped(&held, target.finish())();
        let error = whole(&held, target.begin(2)).unwrap_err();
        assert!(error.to_string().contains("cannot write to the target"), "{error}");
        drop(target);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_file_has_one_target_at_a_time() {
        let directory = larder_testing::scratch();
        let path = directory.path().join("target");
        std::fs::write(&path, "old").unwrap();
        let first = Existing::open(&path).unwrap();
        let held_by_a_job = Arc::clone(&first.file);
        drop(first);
        assert_eq!(Existing::open(&path).unwrap_err().kind(), ErrorKind::Busy);
        drop(held_by_a_job);
        Existing::open(&path).unwrap();
    }

    #[test]
    fn a_dropped_target_removes_its_file_although_a_job_holds_it() {
        let directory = larder_testing::scratch();
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let path = directory.path().join("target");
        let target = block_on(FileTarget::create(runtime, &path)).unwrap();
        let State::New(temporary) = &target.state else { panic!("{:?}", target.state) };
        let held_by_a_job = Arc::clone(temporary);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        drop(target);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        drop(held_by_a_job);
    }
}

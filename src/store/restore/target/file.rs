//! Files and block devices as targets.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;
use crate::store::restore::target::temporary::Temporary;
use crate::store::restore::target::{RestoreTarget, ZEROS_BYTES};

/// A file or a block device.
///
/// A [new file](FileTarget::create) appears under its name when it is complete and flushed. An [existing one](FileTarget::open)
/// is written in place.
#[derive(Debug)]
pub struct FileTarget {
    runtime: Arc<dyn Runtime>,
    state: State,
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
    file: Arc<File>,
    is_device: bool,
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
        Ok(Self { runtime, state: State::New(Arc::new(temporary)) })
    }

    /// Restores over an existing file or block device, in place and from its start: a failed or interrupted restore
    /// leaves a mixture of old and new. Zeros replace old data, as holes where the system can punch them.
    ///
    /// A shorter file grows to the length of the archive; bytes beyond the end of the archive stay, except with
    /// [`truncate`](FileTarget::truncate). [`begin`](RestoreTarget::begin) refuses a device that is smaller than the archive
    /// before anything is written. On Linux a device is opened for exclusive use.
    ///
    /// # Errors
    /// `Busy` for a device that is mounted or in use as a part of another; `InvalidInput` for anything but a file and a block
    /// device; `NotFound`, `Denied` and similar.
    pub async fn open(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let existing = runtime.run_blocking("open", move || Existing::open(&path)).await?;
        Ok(Self { runtime, state: State::Existing(existing) })
    }

    /// Cuts an [opened](FileTarget::open) file at the end of the archive, in `finish`; default: the rest stays.
    #[must_use]
    pub fn truncate(mut self) -> Self {
        if let State::Existing(existing) = &mut self.state {
            existing.cuts = true;
        }
        self
    }

    async fn blocking(&self, job: impl FnOnce(&File) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        match &self.state {
            State::Existing(existing) => {
                let file = Arc::clone(&existing.file);
                self.run(move || job(&file)).await
            }
            State::New(temporary) => {
                let temporary = Arc::clone(temporary);
                self.run(move || job(&temporary.file)).await
            }
            State::Published => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the file is finished; a target takes one archive",
            )),
        }
    }

    async fn run(&self, job: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let job = move || job().map_err(|error| Error::io(error, "write to the target"));
        self.runtime.run_blocking("write to the target", job).await.map_err(io::Error::other)
    }
}

impl Existing {
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
        Ok(Self { announced: 0, cuts: false, file: Arc::new(file), is_device })
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
        let is_device = match &mut self.state {
            State::Existing(existing) => {
                existing.announced = size;
                existing.is_device
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
                self.run(move || temporary.publish()).await?;
                self.state = State::Published;
                Ok(())
            }
            State::Existing(Existing { announced, cuts: true, is_device: false, .. }) => {
                let end = *announced;
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

    use super::*;
    use crate::rt::ThreadRuntime;

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

//! Where a restored archive goes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::io::{AsyncWrite, AsyncWriteExt as _};

use crate::error::{Error, Result};
use crate::rt::Runtime;

/// How many zeros are written at once.
const ZEROS_BYTES: usize = 64 << 10;

/// Takes an archive as it is restored: first `begin`, then all of it in order and without gaps, then `finish`.
#[async_trait]
pub trait RestoreTarget: Send {
    /// An archive of `size` bytes follows.
    ///
    /// # Errors
    /// Ends the restore.
    async fn begin(&mut self, size: u64) -> io::Result<()>;

    /// Takes bytes at an offset.
    ///
    /// # Errors
    /// Ends the restore.
    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()>;

    /// Takes `length` zeros at an offset. A target that was empty may leave a hole there.
    ///
    /// # Errors
    /// Ends the restore.
    async fn write_zeros(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Everything was written.
    ///
    /// # Errors
    /// Fails the restore.
    async fn finish(&mut self) -> io::Result<()>;
}

/// A file or a block device. `finish` flushes it to the disk.
#[derive(Debug)]
pub struct FileTarget {
    file: Arc<File>,
    /// What is not written reads as zeros.
    is_new: bool,
    runtime: Arc<dyn Runtime>,
}

impl FileTarget {
    /// Makes a new file. Zeros become holes.
    ///
    /// # Errors
    /// `AlreadyExists` if there is something at the path; `Denied`, `NotFound` and the like.
    pub async fn create(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let create =
            move || File::create_new(&path).map_err(|error| Error::io(error, "create").on(path.display()));
        let file = runtime.run_blocking("create", create).await?;
        Ok(Self { file: Arc::new(file), is_new: true, runtime })
    }

    /// Opens a file or a block device that is there, to be overwritten from its beginning. Zeros are written too, and what lies
    /// behind the end of the archive stays.
    ///
    /// # Errors
    /// `NotFound`, `Denied` and the like.
    pub async fn open(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let open = move || {
            let opened = File::options().write(true).open(&path);
            opened.map_err(|error| Error::io(error, "open").on(path.display()))
        };
        let file = runtime.run_blocking("open", open).await?;
        Ok(Self { file: Arc::new(file), is_new: false, runtime })
    }

    async fn blocking(&self, job: impl FnOnce(&File) -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        let job = move || job(&file).map_err(|error| Error::io(error, "write to the target"));
        self.runtime.run_blocking("write to the target", job).await.map_err(io::Error::other)
    }
}

#[async_trait]
impl RestoreTarget for FileTarget {
    async fn begin(&mut self, size: u64) -> io::Result<()> {
        if self.is_new {
            // What an earlier restore wrote would show where zeros are left out.
            self.blocking(move |file| file.set_len(0).and_then(|()| file.set_len(size))).await?;
        }
        Ok(())
    }

    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()> {
        self.blocking(move |file| file.write_all_at(&data, offset)).await
    }

    async fn write_zeros(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.is_new {
            return Ok(());
        }
        self.blocking(move |file| {
            let zeros = vec![0; ZEROS_BYTES];
            let mut rest = offset..offset + length;
            while !rest.is_empty() {
                let part = usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX).min(zeros.len());
                file.write_all_at(&zeros[..part], rest.start)?;
                rest.start += part as u64;
            }
            Ok(())
        })
        .await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.blocking(File::sync_all).await
    }
}

/// Any writer: a pipe, a socket, standard output. Zeros are written out.
#[derive(Debug)]
pub struct WriterTarget<W> {
    writer: W,
    zeros: Bytes,
}

impl<W: AsyncWrite + Send + Unpin> WriterTarget<W> {
    /// Writes to `writer`, and flushes it at the end.
    pub fn new(writer: W) -> Self {
        Self { writer, zeros: Bytes::from(vec![0; ZEROS_BYTES]) }
    }

    /// The writer.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

#[async_trait]
impl<W: AsyncWrite + Send + Unpin> RestoreTarget for WriterTarget<W> {
    async fn begin(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    async fn write_at(&mut self, _: u64, data: Bytes) -> io::Result<()> {
        self.writer.write_all(&data).await
    }

    async fn write_zeros(&mut self, _: u64, length: u64) -> io::Result<()> {
        let mut rest = length;
        while rest > 0 {
            let part = usize::try_from(rest).unwrap_or(usize::MAX).min(self.zeros.len());
            self.writer.write_all(&self.zeros[..part]).await?;
            rest -= part as u64;
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.writer.flush().await
    }
}

//! Files and block devices as sources.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;
use futures::future::FutureExt as _;
use futures::io::{AsyncRead, AsyncSeek};

use crate::buffers::lengthen;
use crate::error::{Error, ErrorKind, Result};
use crate::holes;
use crate::rt::Runtime;
use crate::store::backup::dirty_map::DirtyMap;
use crate::store::position::after_seek;

/// Bytes read at once.
const READ_BYTES: usize = 2 << 20;
/// Maximum number of extents that are looked up. A file with more of them is read as a whole behind the last one.
const MAX_EXTENTS: usize = 1 << 20;

/// A file or a block device, read on the blocking pool of the runtime with read-ahead. Holes of a sparse file are not read on ext4, XFS, Btrfs and
/// tmpfs. Other filesystems may report a hole in the place of data, and everything is read.
///
/// [`SnapshotWriter::image_file`](crate::store::SnapshotWriter::image_file) skips whole chunks of holes. As an [`AsyncRead`] it yields zeros for
/// a hole. It ends at the size that the file had when it was opened. Holes are looked up at that time too: bytes that are written into one
/// later are stored as zeros, like any change behind the position of a reader.
pub struct FileSource {
    ahead: Option<Ahead>,
    /// Bytes that were read, from this offset on.
    buffer: (u64, Vec<u8>),
    data: DirtyMap,
    file: Arc<File>,
    position: u64,
    runtime: Arc<dyn Runtime>,
    size: u64,
    /// A buffer that is not in use.
    spare: Vec<u8>,
}

/// A read that was started.
struct Ahead {
    bytes: oneshot::Receiver<io::Result<Vec<u8>>>,
    offset: u64,
}

impl FileSource {
    /// Opens a file or a block device.
    ///
    /// # Errors
    /// `InvalidInput` for anything but a file and a block device; `NotFound`, `Denied` and similar.
    pub async fn open(runtime: Arc<dyn Runtime>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let open = move || {
            let failed = |error| Error::io(error, "open").on(path.display());
            let mut file = File::open(&path).map_err(failed)?;
            let kind = file.metadata().map_err(failed)?.file_type();
            if !kind.is_file() && !kind.is_block_device() {
                let error = Error::new(ErrorKind::InvalidInput, "open").on(path.display());
                return Err(error.because("it is neither a file nor a block device"));
            }
            let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
            let data = data_extents(&file, size, holes::are_reported(&file)).into_iter().collect();
            Ok((file, size, data))
        };
        let (file, size, data) = runtime.run_blocking("open", open).await?;
        Ok(Self {
            ahead: None,
            buffer: (0, Vec::new()),
            data,
            file: Arc::new(file),
            position: 0,
            runtime,
            size,
            spare: Vec::new(),
        })
    }

    /// Size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The extents that have data.
    pub(in crate::store) fn data(&self) -> &DirtyMap {
        &self.data
    }

    fn start(&mut self, offset: u64) {
        let (sender, bytes) = oneshot::channel();
        let (file, mut buffer) = (Arc::clone(&self.file), std::mem::take(&mut self.spare));
        let end = self.data.end_of_extent(offset).unwrap_or(self.size).min(self.size);
        let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(READ_BYTES);
        self.runtime.spawn_blocking(Box::new(move || {
            buffer.truncate(length);
            lengthen(&mut buffer, length);
            let read = file.read_exact_at(&mut buffer, offset).map(|()| buffer);
            // A dropped source wants no bytes.
            let _ = sender.send(read);
        }));
        self.ahead = Some(Ahead { bytes, offset });
    }

    /// Fills the buffer with bytes at the position, which is in an extent with data.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let position = self.position;
        if self.ahead.as_ref().is_none_or(|ahead| ahead.offset != position) {
            self.start(position);
        }
        let Some(ahead) = &mut self.ahead else { return Poll::Ready(Ok(())) };
        let read = ready!(ahead.bytes.poll_unpin(context));
        self.ahead = None;
        let read = read.map_err(|_| io::Error::other("a job of the runtime disappeared"))?;
        let bytes = read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was read")
            }
            _ => error,
        })?;
        let (before, old) = std::mem::replace(&mut self.buffer, (position, bytes));
        let is_in_order = !old.is_empty() && before + old.len() as u64 == position;
        self.spare = old;
        let next = position + self.buffer.1.len() as u64;
        if is_in_order && self.data.end_of_extent(next).is_some() {
            self.start(next);
        }
        Poll::Ready(Ok(()))
    }

    fn buffered(&self) -> &[u8] {
        let within = self.position.checked_sub(self.buffer.0).and_then(|within| usize::try_from(within).ok());
        within.and_then(|within| self.buffer.1.get(within..)).unwrap_or_default()
    }
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource").field("size", &self.size).finish_non_exhaustive()
    }
}

impl AsyncRead for FileSource {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let rest = usize::try_from(this.size.saturating_sub(this.position)).unwrap_or(usize::MAX);
        let length = rest.min(buffer.len());
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if this.data.end_of_extent(this.position).is_none() {
            let hole = this.data.next_start(this.position).unwrap_or(this.size) - this.position;
            let length = length.min(usize::try_from(hole).unwrap_or(usize::MAX));
            buffer[..length].fill(0);
            this.position += length as u64;
            return Poll::Ready(Ok(length));
        }
        if this.buffered().is_empty() {
            ready!(this.poll_fill(context))?;
        }
        let bytes = this.buffered();
        let length = length.min(bytes.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        this.position += length as u64;
        Poll::Ready(Ok(length))
    }
}

impl AsyncSeek for FileSource {
    fn poll_seek(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: SeekFrom) -> Poll<io::Result<u64>> {
        let position = after_seek(to, self.position, self.size)?;
        self.position = position;
        Poll::Ready(Ok(position))
    }
}

/// The parts of a file that are no holes. Without reports that can be relied on, it has none: a hole in the place of data would be stored as zeros.
fn data_extents(file: &File, size: u64, are_holes_reported: bool) -> Vec<Range<u64>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while are_holes_reported && at < size && extents.len() < MAX_EXTENTS {
        let start = match holes::next_data(file, at) {
            Ok(None) => return extents,
            Ok(Some(start)) => start.max(at),
            Err(_) => at,
        };
        let end = holes::next_hole(file, start).ok().filter(|end| *end > start).unwrap_or(size).min(size);
        if start < end {
            extents.push(start..end);
        }
        at = end;
    }
    if at < size {
        extents.push(at..size);
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_reliable_reports_a_file_has_no_holes() {
        let file = tempfile::tempfile().unwrap();
        let size = 8 << 20;
        file.set_len(size).unwrap();
        assert_eq!(data_extents(&file, size, false), vec![Range { start: 0, end: size }]);
        assert!(data_extents(&file, 0, false).is_empty());
        if holes::are_reported(&file) {
            assert!(data_extents(&file, size, true).is_empty());
        }
    }
}

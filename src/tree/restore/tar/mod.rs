//! Trees as tar archives.

mod header;

use std::io;

use bytes::Bytes;
use futures::io::{AsyncWrite, AsyncWriteExt as _};

use self::header::{BLOCK_BYTES, TarEntry, pad};
use super::contents::{ContentsReader, Pieces};
use super::walked::{LinkedFile, WalkedFiles, contradiction};
use crate::error::{Error, ErrorKind, Result};
use crate::pxar::{FileKind, Metadata};
use crate::tree::read::{Tree, TreeEntry, TreeStep};
use crate::tree::{Problem, TreeFinding, TreeReport};

/// Maximum length of a file that is read before its header is written.
const SMALL_BYTES: u64 = 1 << 20;

static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 256 << 10;

impl Tree {
    /// Writes an entry and what is below it as a tar archive, in the pax format that GNU tar, libarchive and others read; the empty path means the
    /// whole tree. Names begin with `./`.
    ///
    /// The archive has owners by number, times in nanoseconds, extended attributes, capabilities and access control lists. It has no
    /// attribute flags, project ids and sockets. Holes are written as zeros. The report says what is missing: files of up to 1 MiB that are damaged are
    /// left out, and zeros stand for the rest of a larger one from the damaged chunk on. The writer is flushed, not closed.
    ///
    /// # Errors
    /// `Stream` if the writer fails; `NotFound` if there is no such entry; any failure of the store.
    ///
    /// # Cancel safety
    /// A dropped future leaves a part of the archive, without its end.
    pub async fn to_tar<W>(&self, path: impl AsRef<[u8]>, writer: W) -> Result<TreeReport>
    where
        W: AsyncWrite + Send + Unpin,
    {
        let mut tar = TarWriter {
            buffer: Vec::new(),
            files: WalkedFiles::default(),
            report: TreeReport::default(),
            writer,
        };
        let mut walk = self.walk_from(path.as_ref()).await?;
        let mut contents = ContentsReader::new(self);
        while let Some(step) = walk.next().await? {
            match step {
                TreeStep::DirectoryEnd(_) => {}
                TreeStep::Lost(finding) => {
                    tar.files.note_loss();
                    tar.report.add(finding);
                }
                TreeStep::Entry(entry) => {
                    if let FileKind::HardLink { target } = &entry.kind {
                        tar.hard_link(self, &entry, target).await?;
                    } else if let FileKind::File { size } = entry.kind {
                        let TreeEntry { ref metadata, ref path, position, .. } = *entry;
                        let is_whole = match contents.begin(self, &mut walk, &entry).await {
                            Ok(pieces) => tar.file(path, metadata, size, pieces).await?,
                            Err(error) => tar.damaged(path, error)?,
                        };
                        if is_whole {
                            tar.files.note(position, path);
                        }
                    } else {
                        tar.other(&entry).await?;
                    }
                }
            }
        }
        tar.finish().await
    }
}

/// A tar archive that is being written.
struct TarWriter<W> {
    buffer: Vec<u8>,
    /// Files that are whole in the archive.
    files: WalkedFiles,
    report: TreeReport,
    writer: W,
}

impl<W: AsyncWrite + Send + Unpin> TarWriter<W> {
    /// Adds a file, and returns `true` if it is whole.
    async fn file(
        &mut self,
        path: &Bytes,
        metadata: &Metadata,
        size: u64,
        mut pieces: Pieces<'_>,
    ) -> Result<bool> {
        let kind = FileKind::File { size };
        let entry = |path: &[u8]| TarEntry { kind: &kind, metadata, name: name_of(path), target: Vec::new() };
        if size <= SMALL_BYTES {
            match pieces.whole(size).await {
                Ok(bytes) if bytes.len() as u64 == size => {
                    self.head(path, &entry(path));
                    self.buffer.extend_from_slice(&bytes);
                    pad(&mut self.buffer);
                    self.drain(BUFFER_BYTES).await?;
                    return Ok(true);
                }
                Ok(_) => return self.damaged(path, cut()),
                Err(error) => return self.damaged(path, error),
            }
        }
        self.head(path, &entry(path));
        self.drain(0).await?;
        let (mut rest, mut is_whole) = (size, true);
        while rest > 0 {
            let piece = match pieces.next(rest).await {
                Ok(piece) if piece.is_empty() => Err(cut()),
                piece => piece,
            };
            match piece {
                Ok(bytes) => {
                    self.write(&bytes).await?;
                    rest -= bytes.len() as u64;
                }
                Err(error) => {
                    is_whole = self.damaged(path, error)?;
                    self.zeros(rest).await?;
                    rest = 0;
                }
            }
        }
        self.zeros(size.next_multiple_of(BLOCK_BYTES as u64) - size).await?;
        Ok(is_whole)
    }

    /// Adds a link, or the file itself if that is not in this archive.
    async fn hard_link(&mut self, tree: &Tree, entry: &TreeEntry, target: &Bytes) -> Result<()> {
        let linked = self.files.file_of(entry);
        let found = match linked {
            LinkedFile::Other => Err(contradiction()),
            LinkedFile::NotWalked | LinkedFile::Walked => tree.target_by_position(entry).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.damaged(&entry.path, error).map(drop),
        };
        if linked == LinkedFile::Walked {
            let (kind, name) = (&entry.kind, name_of(&entry.path));
            let link = TarEntry { kind, metadata: &found.metadata, name, target: name_of(target) };
            self.head(&entry.path, &link);
            return self.drain(BUFFER_BYTES).await;
        }
        let written = match tree.open_entry(&found).await {
            Ok(file) => self.file(&entry.path, &found.metadata, found.size(), Pieces::File(file)).await,
            Err(error) => self.damaged(&entry.path, error),
        };
        written.map(drop)
    }

    async fn other(&mut self, entry: &TreeEntry) -> Result<()> {
        let mut name = name_of(&entry.path);
        let target = match &entry.kind {
            FileKind::Symlink { target } => target.to_vec(),
            _ => Vec::new(),
        };
        if entry.kind == FileKind::Directory && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let header = TarEntry { kind: &entry.kind, metadata: &entry.metadata, name, target };
        self.head(&entry.path, &header);
        self.drain(BUFFER_BYTES).await
    }

    /// Adds the blocks in front of the contents of an entry.
    fn head(&mut self, path: &[u8], entry: &TarEntry<'_>) {
        let Some(blocks) = entry.encode() else {
            return self.report.add(TreeFinding::new(path, Problem::Socket));
        };
        self.buffer.extend(blocks);
    }

    /// Reports damage: what is there of the file is not whole.
    fn damaged(&mut self, path: &Bytes, error: Error) -> Result<bool> {
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        self.report.add(TreeFinding::new(&path[..], Problem::Damaged).because(format_args!("{error:#}")));
        Ok(false)
    }

    async fn zeros(&mut self, length: u64) -> Result<()> {
        let mut rest = length;
        while rest > 0 {
            let part = usize::try_from(rest).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(&ZEROS[..part]).await?;
            rest -= part as u64;
        }
        Ok(())
    }

    /// Writes the buffer if it has more than this number of bytes.
    async fn drain(&mut self, limit: usize) -> Result<()> {
        if self.buffer.len() <= limit {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.write(&buffer).await?;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).await.map_err(failed)
    }

    async fn finish(mut self) -> Result<TreeReport> {
        self.buffer.resize(self.buffer.len() + 2 * BLOCK_BYTES, 0);
        self.drain(0).await?;
        self.writer.flush().await.map_err(failed)?;
        Ok(self.report)
    }
}

fn failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Stream, "write a tar archive").because(error)
}

/// The archive has fewer bytes than it says.
fn cut() -> Error {
    Error::new(ErrorKind::Corrupt, "read file").because("its contents end early")
}

/// The name of an entry in a tar archive.
fn name_of(path: &[u8]) -> Vec<u8> {
    [b"./", path].concat()
}

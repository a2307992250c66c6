//! Files, links and others.

use bytes::Bytes;

use super::contents::{ContentsReader, Pieces};
use super::directories::{DirectoryNumber, when_ready};
use super::engine::{Done, Engine, Restored, weight};
use super::report::TreeRestoreEvent;
use super::selection::Selection;
use super::target::{SmallFile, TargetError};
use super::walked::{LinkedFile, contradiction};
use crate::error::{Error, ErrorKind, Result};
use crate::pxar::{EntryContents, FileKind, Metadata};
use crate::tree::read::{TreeEntry, TreeWalk};
use crate::tree::{Problem, TreeFinding};

/// Maximum length of a file that the target gets as a whole.
const SMALL_BYTES: u64 = 1 << 20;

/// A file to write.
struct NewFile {
    directory: DirectoryNumber,
    metadata: Metadata,
    path: Bytes,
    size: u64,
}

/// Why a large file was not written.
enum WriteError {
    Read(Error),
    Target(TargetError),
}

impl Engine<'_> {
    /// Restores the file that the walk yielded last.
    pub(super) async fn file(
        &mut self,
        entry: TreeEntry,
        directory: DirectoryNumber,
        walk: &mut TreeWalk,
        contents: &mut ContentsReader,
    ) -> Result<()> {
        let tree = self.tree;
        match self.wait(contents.begin(tree, walk, &entry)).await {
            Ok(pieces) => {
                let size = entry.size();
                let file = NewFile { directory, metadata: entry.metadata, path: entry.path, size };
                self.write(file, pieces).await
            }
            Err(error) => self.damaged(&entry.path, error),
        }
    }

    async fn write(&mut self, file: NewFile, mut pieces: Pieces<'_>) -> Result<()> {
        if file.size > SMALL_BYTES {
            return self.large(file, pieces).await;
        }
        let whole = self.wait(pieces.whole(file.size)).await;
        drop(pieces);
        match whole {
            Ok(bytes) if bytes.len() as u64 == file.size => {
                let NewFile { directory, metadata, path, .. } = file;
                self.small(directory, SmallFile { contents: bytes, metadata, path });
                Ok(())
            }
            Ok(_) => self.damaged(&file.path, cut()),
            Err(error) => self.damaged(&file.path, error),
        }
    }

    /// Writes a large file, while small ones are written too.
    async fn large(&mut self, file: NewFile, mut pieces: Pieces<'_>) -> Result<()> {
        let ready = self.begin(file.directory);
        let outcome = if self.wait(ready).await {
            match self.stream(&file, &mut pieces).await {
                Ok(findings) => Some(Ok(findings)),
                Err(WriteError::Target(error)) => Some(Err(error)),
                Err(WriteError::Read(error)) => {
                    self.damaged(&file.path, error)?;
                    None
                }
            }
        } else {
            None
        };
        let kind = Some(FileKind::File { size: file.size });
        let NewFile { directory, path, .. } = file;
        self.settle(Done::of(0, Some(directory), Restored { kind, outcome, path }));
        Ok(())
    }

    async fn stream(
        &mut self,
        file: &NewFile,
        pieces: &mut Pieces<'_>,
    ) -> std::result::Result<Vec<TreeFinding>, WriteError> {
        let target = self.target;
        let created = self.wait(target.file(&file.path, file.size, &file.metadata)).await;
        let mut writer = created.map_err(WriteError::Target)?;
        let mut rest = file.size;
        while rest > 0 {
            let parts = self.wait(pieces.next_parts(rest)).await.map_err(WriteError::Read)?;
            let size = parts.iter().map(|part| part.len() as u64).sum();
            if size == 0 {
                return Err(WriteError::Read(cut()));
            }
            self.wait(writer.write_vectored(parts)).await.map_err(WriteError::Target)?;
            self.emit(|| TreeRestoreEvent::ContentsRestored { size });
            rest -= size;
        }
        self.wait(writer.finish()).await.map_err(WriteError::Target)
    }

    pub(super) fn special(&mut self, entry: TreeEntry, directory: DirectoryNumber) {
        let ready = self.begin(directory);
        let target = self.target;
        let bytes = weight(&entry.metadata);
        self.task_bytes += bytes;
        self.start(async move {
            let TreeEntry { kind, metadata, path, .. } = entry;
            let outcome = when_ready(ready, target.special(&path, &kind, &metadata)).await;
            Done::of(bytes, Some(directory), Restored { kind: Some(kind), outcome, path })
        });
    }

    /// Restores a further name of a file, or a copy if the file is not selected or names are not possible.
    pub(super) async fn hard_link(
        &mut self,
        entry: TreeEntry,
        directory: DirectoryNumber,
        selection: &Selection,
    ) -> Result<()> {
        let (FileKind::HardLink { target: named }, EntryContents::Of { position }) =
            (&entry.kind, entry.contents)
        else {
            return Ok(());
        };
        let linked = self.walked.file_of(&entry);
        if linked == LinkedFile::Other {
            return self.damaged(&entry.path, contradiction());
        }
        let is_walked = linked == LinkedFile::Walked;
        let copy = self.copies.get(&position).cloned();
        let to = copy.or_else(|| (is_walked && selection.covers_file(named)).then(|| named.clone()));
        let mut not_linked = None;
        if let Some(to) = to {
            self.wait_for_file(&to).await;
            let mut is_done = true;
            let ready = self.begin(directory);
            let target = self.target;
            let linked = if self.wait(ready).await {
                Some(self.wait(target.hard_link(&entry.path, &to)).await)
            } else {
                None
            };
            let is_final = |error: &TargetError| {
                matches!(error.problem, Problem::Exists | Problem::Skipped | Problem::Unsafe)
            };
            let outcome = match linked {
                Some(Err(error)) if !is_final(&error) => {
                    not_linked = Some(error);
                    is_done = false;
                    None
                }
                Some(Err(error)) => Some(Err(error)),
                Some(Ok(())) => Some(Ok(Vec::new())),
                None => None,
            };
            let (path, kind) = (entry.path.clone(), Some(entry.kind.clone()));
            self.settle(Done::of(0, Some(directory), Restored { kind, outcome, path }));
            if is_done {
                return Ok(());
            }
        }
        self.copy(&entry, position, directory, not_linked).await
    }

    async fn copy(
        &mut self,
        entry: &TreeEntry,
        position: u64,
        directory: DirectoryNumber,
        not_linked: Option<TargetError>,
    ) -> Result<()> {
        let tree = self.tree;
        let opened = self.wait(async {
            let target = tree.target_by_position(entry).await?;
            let file = tree.open_entry(&target).await?;
            Ok::<_, Error>((target, file))
        });
        match opened.await {
            Ok((target, file)) => {
                if let Some(error) = not_linked {
                    self.found(TreeFinding::new(&entry.path[..], Problem::Copied).because(error.cause));
                }
                self.copies.entry(position).or_insert_with(|| entry.path.clone());
                let (path, size) = (entry.path.clone(), target.size());
                let file_to_write = NewFile { directory, metadata: target.metadata, path, size };
                self.write(file_to_write, Pieces::File(file)).await
            }
            Err(error) => self.damaged(&entry.path, error),
        }
    }
}

/// The archive has fewer bytes than it says.
fn cut() -> Error {
    Error::new(ErrorKind::Corrupt, "read file").because("its contents end early")
}

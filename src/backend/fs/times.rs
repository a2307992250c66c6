//! Times of last use: reading and setting them, and the clock of the filesystem.
//!
//! A writer that reuses a chunk sets its access time. The collection of a PBS decides by that time alone; the collector of this crate uses the
//! later of access and modification time as a reason to keep a chunk. While the writer runs, the lock of the store excludes collectors in
//! other processes; once its index is published, the index keeps the chunk. A collector that the lock does not reach could still delete a
//! chunk whose time was not set, so a writer never reuses such a chunk: it sets the time, stores the chunk again, or fails.
//!
//! | file of the chunk | effect of a touch |
//! |---|---|
//! | own file, or the caller is root | the access time is set to now |
//! | file of another user that the caller may write | both times are set to now, which changes the version |
//! | file of another user, in a directory that the caller may write | the bytes are written to a new file, flushed, and renamed over it |
//! | neither | `Denied`, with the owner |

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use bytes::Bytes;

use crate::backend::fs::call::{is_full, is_refused};
use crate::backend::fs::disk::{Contents, Replacing};
use crate::backend::fs::info::{info, last_used};
use crate::backend::fs::objects::{Inner, failure, parent};
use crate::backend::{ObjectInfo, Touched};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;

impl Inner {
    /// Sets the time of last use. `temporary` names a file beside the object, for a chunk that must be stored again.
    pub(super) fn touch(&self, key: &Key, temporary: impl FnOnce() -> String) -> Result<Touched> {
        if let Key::Namespace(_) = key.exposed() {
            return match self.head(key) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Touched::Absent),
                found => found.map(Touched::Present),
            };
        }
        let path = key.path();
        let touched = self.disk.touch(&path).and_then(|()| self.disk.metadata(&path));
        match touched {
            Ok(metadata) => {
                self.reused(parent(&path));
                Ok(Touched::Present(info(key, &metadata)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Touched::Absent),
            Err(error) if is_refused(&error) && matches!(key, Key::Chunk(_)) => {
                self.renew(key, &temporary(), &error).map(Touched::Present)
            }
            Err(error) => Err(failure(error, "touch", key)),
        }
    }

    /// Stores a chunk again with the same bytes, since its times may not be set. The bytes are flushed before the rename at every level: a
    /// power cut must not lose a chunk that was durable.
    fn renew(&self, key: &Key, temporary: &str, refused: &io::Error) -> Result<ObjectInfo> {
        let path = key.path();
        let (file, before) = self.disk.open(&path).map_err(|error| failure(error, "touch", key))?;
        let stored = self.disk.write_new(temporary, Contents::File(&file)).and_then(|file| {
            self.disk.sync_file(temporary, &file)?;
            file.metadata()
        });
        let renewed = stored.and_then(|metadata| {
            self.disk.rename(temporary, &path, Replacing::Intended)?;
            Ok(metadata)
        });
        match renewed {
            Ok(metadata) => {
                self.relied_on(parent(&path));
                Ok(info(key, &metadata))
            }
            Err(error) => {
                // A file that cannot be removed is a leftover that its name identifies.
                let _ = self.disk.remove_file(temporary);
                if !is_refused(&error) {
                    return Err(failure(error, "touch", key));
                }
                let why = format!(
                    "the file belongs to user {}: the caller may neither set its times ({refused}) nor store it again ({error}); \
                     give all of .chunks to one user, or let every user who stores backups write there",
                    before.uid()
                );
                Err(Error::new(ErrorKind::Denied, "touch").on(key).because(why))
            }
        }
    }

    /// Reads the clock of the filesystem: the time of a new file, or on a full disk that of the directory of chunks after a touch.
    pub(super) fn clock(&self, temporary: &str) -> Result<SystemTime> {
        // The times that matter are those of chunks, whose filesystem may be another one with another clock (H14).
        let directory = if self.disk.are_chunks_apart() { ".chunks/" } else { "" };
        let temporary = &format!("{directory}{temporary}");
        let failed = |error| failure(error, "read the clock of the filesystem", temporary);
        let metadata = match self.disk.write_new(temporary, Contents::Bytes(&Bytes::new())) {
            Err(error) if is_full(&error) => {
                // No decision uses the times of this directory.
                self.disk.touch_whole(".chunks").and_then(|()| self.disk.any_metadata(".chunks"))
            }
            file => {
                let metadata = file.map_err(failed)?.metadata();
                self.disk.remove_file(temporary).map_err(failed)?;
                metadata
            }
        };
        metadata.map(|metadata| last_used(&metadata)).map_err(failed)
    }
}

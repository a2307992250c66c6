//! Times of use: telling, setting, and the clock that they are told by.
//!
//! A writer that relies on a chunk sets its access time. The collection of a PBS goes by that time alone; that of this crate by the later of
//! access and modification time, as a reason to keep. While the writer runs, the lock of the store keeps collectors of other processes
//! away; once its index is published, the index keeps the chunk. A chunk whose time could not be set would still be lost to a collector
//! that the lock does not reach, so a writer never relies on one: its time is set, or it is stored again, or the backup fails.
//!
//! | the file of the chunk | what is done |
//! |---|---|
//! | own, or the caller is root | the access time is set to now |
//! | of another user, may be written | both times are set to now, which changes the version |
//! | of another user, its directory may be written | its bytes are written to a new file, flushed, and renamed over it |
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
    /// Sets the time of use. `temporary` names a file beside the object, for a chunk whose times may not be set: it is stored again.
    pub(super) fn touch(&self, key: &Key, temporary: impl FnOnce() -> String) -> Result<Touched> {
        if let Key::Namespace(_) = key {
            return match self.head(key) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Touched::Absent),
                found => found.map(Touched::Present),
            };
        }
        let path = key.path();
        let touched = self.disk.touch(&path).and_then(|()| self.disk.metadata(&path));
        match touched {
            Ok(metadata) => {
                // Whoever stored it may have died before it was flushed, and the next barrier promises that it is there.
                self.relied_on(parent(&path));
                Ok(Touched::Present(info(key, &metadata)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Touched::Absent),
            Err(error) if is_refused(&error) && matches!(key, Key::Chunk(_)) => {
                self.renew(key, &temporary(), &error).map(Touched::Present)
            }
            Err(error) => Err(failure(error, "touch", key)),
        }
    }

    /// Stores a chunk again with the bytes that it has, since its times may not be set: garbage collection, here or by a PBS, goes by
    /// them. The bytes are flushed first at every level: a power cut must not lose a chunk that was durable.
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
                // A file that cannot be removed is a leftover with a name that says so.
                let _ = self.disk.remove_file(temporary);
                if !is_refused(&error) {
                    return Err(failure(error, "touch", key));
                }
                let why = format!(
                    "it belongs to user {}: its times may not be set ({refused}), and it may not be stored again ({error}); \
                     give all of .chunks to one user, or let every user who stores backups write there",
                    before.uid()
                );
                Err(Error::new(ErrorKind::Denied, "touch").on(key).because(why))
            }
        }
    }

    /// The time by the clock of the filesystem: that of a file which was just made, or of the directory of the chunks, which is touched, if
    /// no file can be made.
    pub(super) fn clock(&self, temporary: &str) -> Result<SystemTime> {
        // Times of use are those of chunks. Where these lie on a filesystem of their own, it may have another clock (H14).
        let directory = if self.disk.are_chunks_apart() { ".chunks/" } else { "" };
        let temporary = &format!("{directory}{temporary}");
        let failed = |error| failure(error, "ask the filesystem for the time", temporary);
        let metadata = match self.disk.write_new(temporary, Contents::Bytes(&Bytes::new())) {
            Err(error) if is_full(&error) => {
                // Nothing goes by its times.
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

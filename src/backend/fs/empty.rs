//! Removal of empty directories, also of those that a crash left. All functions block.

use std::ffi::OsString;
use std::fs;
use std::io;

use nix::errno::Errno;

use crate::backend::fs::call::errno;
use crate::backend::fs::objects::{Inner, is_snapshot, is_temporary, parent};

impl Inner {
    /// Removes the directory of a snapshot or group, and the group of a snapshot, if they are empty. A failure is ignored: files that
    /// keep the directory are visible in listings.
    pub(super) fn remove_empty(&self, directory: &str) {
        let is_snapshot = is_snapshot(directory);
        if is_snapshot {
            self.remove_temporaries(directory);
        }
        if self.disk.remove_directory(directory).is_ok() {
            self.changed(parent(directory));
            if is_snapshot {
                self.remove_empty(parent(directory));
            }
        }
    }

    /// Removes temporary files of a dead writer from the directory of a snapshot that contains nothing else.
    fn remove_temporaries(&self, directory: &str) {
        let Ok(names) = self.names(directory) else { return };
        let names: Option<Vec<_>> =
            names.iter().map(|name| name.to_str().filter(|name| is_temporary(name))).collect();
        for name in names.unwrap_or_default() {
            // A file that cannot be removed keeps the directory, which stays visible.
            let _ = self.disk.remove_file(&format!("{directory}/{name}"));
        }
    }

    /// Removes the directory of a type, and groups in it in which a crash left nothing but empty directories: no listing shows them.
    /// What has contents stays.
    pub(super) fn remove_empty_groups(&self, directory: &str) -> io::Result<()> {
        for group in self.names(directory)?.iter().filter_map(|name| name.to_str()) {
            let group = format!("{directory}/{group}");
            for name in self.names(&group)?.iter().filter_map(|name| name.to_str()) {
                let snapshot = format!("{group}/{name}");
                if is_snapshot(&snapshot) {
                    self.remove_temporaries(&snapshot);
                    self.remove_if_empty(&snapshot)?;
                }
            }
            self.remove_if_empty(&group)?;
        }
        self.remove_if_empty(directory)
    }

    /// Removes a directory, unless there is none of that name, or something is in it.
    pub(super) fn remove_if_empty(&self, directory: &str) -> io::Result<()> {
        match self.disk.remove_directory(directory) {
            Err(error) if is_none(&error) || error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.map(|()| self.changed(parent(directory))),
        }
    }

    /// The names in a directory; none if it does not exist.
    fn names(&self, directory: &str) -> io::Result<Vec<OsString>> {
        match self.disk.at_directory(directory).and_then(fs::read_dir) {
            Err(error) if is_none(&error) => Ok(Vec::new()),
            entries => entries?.map(|entry| entry.map(|entry| entry.file_name())).collect(),
        }
    }
}

/// Returns `true` if there is no directory of that name.
fn is_none(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || errno(error) == Some(Errno::ELOOP)
}

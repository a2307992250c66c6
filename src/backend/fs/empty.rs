//! Removal of empty directories, also of those that a crash left. All functions block.

use std::ffi::OsString;
use std::fs;

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
        let names = self.names(directory);
        let names: Option<Vec<_>> =
            names.iter().map(|name| name.to_str().filter(|name| is_temporary(name))).collect();
        for name in names.unwrap_or_default() {
            // A file that cannot be removed keeps the directory, which stays visible.
            let _ = self.disk.remove_file(&format!("{directory}/{name}"));
        }
    }

    /// Removes groups, below the directory of a type, in which a crash left nothing but empty directories: no listing shows them.
    pub(super) fn remove_empty_groups(&self, directory: &str) {
        for group in self.names(directory).iter().filter_map(|name| name.to_str()) {
            let group = format!("{directory}/{group}");
            for name in self.names(&group).iter().filter_map(|name| name.to_str()) {
                let snapshot = format!("{group}/{name}");
                if is_snapshot(&snapshot) {
                    self.remove_empty(&snapshot);
                }
            }
            self.remove_empty(&group);
        }
    }

    /// The names in a directory; none if it cannot be read.
    fn names(&self, directory: &str) -> Vec<OsString> {
        let entries = self.disk.at_directory(directory).and_then(fs::read_dir);
        entries.into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
    }
}

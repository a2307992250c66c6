//! A store as plain data: what is at which path, in a directory or in a bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A directory with nothing in it.
    Directory,
    Fifo,
    File(Bytes),
    /// A symbolic link to this path of the store.
    Link(String),
}

/// Everything at its path below the root of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) BTreeMap<String, Entry>);

impl Image {
    pub(crate) fn of_bucket(objects: BTreeMap<String, Bytes>) -> Self {
        let entry =
            |(key, body): (String, Bytes)| Some((key.strip_prefix("store/")?.to_owned(), Entry::File(body)));
        Self(objects.into_iter().filter_map(entry).collect())
    }

    pub(crate) fn of_directory(root: &Path) -> Self {
        let mut image = Self::default();
        image.read(root, "");
        image
    }

    fn read(&mut self, root: &Path, path: &str) {
        let names: Vec<_> =
            fs::read_dir(root.join(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if names.is_empty() {
            self.0.insert(path.trim_end_matches('/').to_owned(), Entry::Directory);
        }
        for name in names {
            let path = format!("{path}{}", name.to_str().unwrap());
            if root.join(&path).is_dir() {
                self.read(root, &format!("{path}/"));
            } else {
                let bytes = fs::read(root.join(&path)).unwrap();
                self.0.insert(path, Entry::File(bytes.into()));
            }
        }
    }

    /// Makes it in an empty directory.
    pub(crate) fn make(&self, root: &Path) {
        let mut made = BTreeSet::new();
        for (path, entry) in &self.0 {
            let here = root.join(path);
            if made.insert(here.parent().unwrap().to_owned()) {
                fs::create_dir_all(here.parent().unwrap()).unwrap();
            }
            match entry {
                Entry::Directory => fs::create_dir_all(&here).unwrap(),
                Entry::Fifo => {
                    mknodat(CWD, &here, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
                }
                Entry::File(bytes) => fs::write(&here, bytes).unwrap(),
                Entry::Link(to) => symlink(root.join(to), &here).unwrap(),
            }
        }
    }

    pub(crate) fn file(&self, path: &str) -> Option<&Bytes> {
        match self.0.get(path) {
            Some(Entry::File(bytes)) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn put(&mut self, path: &str, entry: Entry) {
        self.0.insert(path.to_owned(), entry);
    }

    /// Takes the entry at a path, or everything below it if the path ends in `/`, by the rest of its path.
    pub(crate) fn take(&mut self, path: &str) -> BTreeMap<String, Entry> {
        let is_part = |found: &str| if path.ends_with('/') { found.starts_with(path) } else { found == path };
        let keys: Vec<_> = self.0.keys().filter(|found| is_part(found)).cloned().collect();
        let part = |key: String| (key[path.len()..].to_owned(), self.0.remove(&key).unwrap());
        keys.into_iter().map(part).collect()
    }

    /// Puts what was [taken](Self::take) to a path.
    pub(crate) fn give(&mut self, path: &str, taken: BTreeMap<String, Entry>) {
        self.0.extend(taken.into_iter().map(|(rest, entry)| (format!("{path}{rest}"), entry)));
    }
}

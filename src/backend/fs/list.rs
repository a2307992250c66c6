//! Listing a store in a directory, in the byte order of paths.
//!
//! A page is a walk that skips what comes before its start and stops after a number of entries. Directories are sorted as if
//! their names ended in `/`, which is where they stand among the paths. The directories of chunks are tried one after the
//! other, so that a page costs what is on it; the names in `.chunks` are read once a page where one is empty or missing.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use nix::errno::Errno;

use crate::backend::fs::chunks::ChunkDirectories;
use crate::backend::fs::disk::Disk;
use crate::backend::fs::objects::{info, marker_info};
use crate::backend::{Cursor, Depth, Details, ListEntry, ListPage, ListQuery};
use crate::format::layout::{Key, Prefix};

/// After how many directories of chunks that are not there it is looked which ones are.
const MANY_ABSENT: usize = 16;
/// A page ends with the entry that reaches this number.
const PAGE_ENTRIES: usize = 4096;

pub(super) fn page(disk: &Disk, query: &ListQuery, cursor: Option<&Cursor>) -> io::Result<ListPage> {
    let start = query.after.as_ref().map(Key::path);
    let start = start.into_iter().chain(cursor.map(|cursor| cursor.as_str().to_owned())).max();
    let mut walk = Walk {
        after: start.unwrap_or_default(),
        deep: query.depth == Depth::All || query.prefix == Prefix::Chunks,
        details: query.details,
        disk,
        entries: Vec::new(),
        until: query.until.as_ref().map(Key::path),
    };
    let more = if query.prefix == Prefix::Chunks { walk.chunks()? } else { walk.prefix(&query.prefix)? };
    if more != Progress::Full {
        // Before it is said to be complete.
        disk.check_there()?;
    }
    let next = match (more, walk.entries.last()) {
        (Progress::Full, Some(last)) => Some(Cursor::new(last.path())),
        _ => None,
    };
    Ok(ListPage::new(walk.entries, next))
}

struct Walk<'a> {
    /// Only what comes after this path is wanted; empty: everything.
    after: String,
    deep: bool,
    details: Details,
    disk: &'a Disk,
    entries: Vec<ListEntry>,
    until: Option<String>,
}

/// How a part of a walk ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Everything was seen.
    Done,
    /// The page is full.
    Full,
    /// The rest lies beyond the end of the query.
    Past,
}

impl Walk<'_> {
    fn prefix(&mut self, prefix: &Prefix) -> io::Result<Progress> {
        let path = prefix.path();
        match self.disk.at(&path).and_then(fs::symlink_metadata) {
            Ok(found) if found.is_dir() => self.directory(&path),
            Ok(found) if found.is_symlink() => Err(Errno::ELOOP.into()),
            Ok(_) => Ok(Progress::Done),
            Err(error) if is_gone(&error) => Ok(Progress::Done),
            Err(error) => Err(error),
        }
    }

    fn chunks(&mut self) -> io::Result<Progress> {
        let Some(directories) = ChunkDirectories::open(self.disk)? else { return Ok(Progress::Done) };
        let skipped = self.after.strip_prefix(".chunks/").and_then(|rest| rest.get(..4));
        let first = skipped.and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or(0);
        let (mut present, mut empty) = (None, 0);
        for number in first..=u16::MAX {
            // Where there are few, most need not be looked for.
            if present.as_ref().is_some_and(|present: &BTreeSet<_>| !present.contains(&number)) {
                continue;
            }
            let path = format!(".chunks/{number:04x}/");
            if self.until.as_deref().is_some_and(|until| path.as_str() > until) {
                return Ok(Progress::Past);
            }
            let progress = match directories.list(number, self.details) {
                Err(error) if is_link(&error) || is_gone(&error) => {
                    self.file(path.trim_end_matches('/').to_owned())?
                }
                Ok(None) if present.is_none() => {
                    empty += 1;
                    if empty >= MANY_ABSENT {
                        present = Some(self.chunk_directories()?);
                    }
                    continue;
                }
                listed => self.chunks_of(&path, listed?.unwrap_or_default()),
            };
            if progress != Progress::Done {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// Takes what is within the bounds of the listing of a directory of chunks.
    fn chunks_of(&mut self, directory: &str, entries: Vec<ListEntry>) -> Progress {
        // Most directories lie within the bounds as a whole.
        let is_first = self.after.as_str() >= directory;
        let is_last = self.until.as_ref().is_some_and(|until| until.starts_with(directory));
        for entry in entries {
            if is_first && entry.path() <= self.after {
                continue;
            }
            if is_last && self.until.as_ref().is_some_and(|until| entry.path() > *until) {
                return Progress::Past;
            }
            if self.push(entry) == Progress::Full {
                return Progress::Full;
            }
        }
        Progress::Done
    }

    /// The numbers of the directories of chunks that there are.
    fn chunk_directories(&self) -> io::Result<BTreeSet<u16>> {
        let number = |(name, _): (String, bool)| u16::from_str_radix(name.trim_end_matches('/'), 16).ok();
        Ok(self.names(".chunks/")?.into_iter().filter_map(number).collect())
    }

    /// Lists what is in the directory at `path`, which ends in `/` or is empty.
    fn directory(&mut self, path: &str) -> io::Result<Progress> {
        self.children(path, self.names(path)?)
    }

    fn children(&mut self, path: &str, names: Vec<(String, bool)>) -> io::Result<Progress> {
        for (name, is_directory) in names {
            let child = format!("{path}{name}");
            if self.until.as_ref().is_some_and(|until| child > *until) {
                return Ok(Progress::Past);
            }
            let progress = if is_directory { self.child_directory(child)? } else { self.file(child)? };
            if progress != Progress::Done {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// The names in a directory in the order of their paths, those of directories ending in `/`.
    fn names(&self, path: &str) -> io::Result<Vec<(String, bool)>> {
        let listing = match self.disk.at_directory(path).and_then(fs::read_dir) {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            listing => listing?,
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry?;
            let is_directory = match entry.file_type() {
                // Where the listing does not say, the file is looked up, and it may be gone by then.
                Err(error) if is_gone(&error) => continue,
                found => found?.is_dir(),
            };
            let mut name = entry.file_name().to_string_lossy().into_owned();
            if path.is_empty() && (name.starts_with('.') || name == "lost+found") {
                continue;
            }
            if is_directory {
                name.push('/');
            }
            names.push((name, is_directory));
        }
        if let Some(Prefix::Namespace(namespace)) = Prefix::parse(path)
            && !namespace.is_root()
        {
            names.push((".namespace".to_owned(), false));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn child_directory(&mut self, path: String) -> io::Result<Progress> {
        if path <= self.after && !(self.deep && self.after.starts_with(&path)) {
            return Ok(Progress::Done);
        }
        match Prefix::parse(&path) {
            Some(_) if self.deep => self.directory(&path),
            Some(prefix) => Ok(self.push(ListEntry::Prefix(prefix))),
            None if path <= self.after => Ok(Progress::Done),
            None => Ok(self.push(ListEntry::Foreign(path))),
        }
    }

    fn file(&mut self, path: String) -> io::Result<Progress> {
        if path <= self.after {
            return Ok(Progress::Done);
        }
        let entry = match Key::parse(&path) {
            None => ListEntry::Foreign(path),
            Some(key @ Key::Namespace(_)) => {
                let directory = path.strip_suffix(".namespace").unwrap_or(&path);
                match self.disk.at(directory).and_then(fs::symlink_metadata) {
                    Ok(found) => ListEntry::Object(marker_info(key, &found)),
                    Err(error) if is_gone(&error) => return Ok(Progress::Done),
                    Err(error) => return Err(error),
                }
            }
            Some(key) => match self.disk.at(&path).and_then(fs::symlink_metadata) {
                Ok(found) if found.is_file() => ListEntry::Object(info(&key, &found)),
                Ok(_) => ListEntry::Foreign(path),
                Err(error) if is_gone(&error) => return Ok(Progress::Done),
                Err(error) => return Err(error),
            },
        };
        Ok(self.push(entry))
    }

    fn push(&mut self, entry: ListEntry) -> Progress {
        self.entries.push(entry);
        if self.entries.len() >= PAGE_ENTRIES { Progress::Full } else { Progress::Done }
    }
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ELOOP as i32)
}

/// Whether it vanished while the walk was on its way, or a file now stands where a directory was.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

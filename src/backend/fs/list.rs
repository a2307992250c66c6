//! Listing a store in a directory, in the byte order of paths.
//!
//! A page is a walk that skips what comes before its start and stops after a number of entries. Directories are sorted as if
//! their names ended in `/`, which is where they stand among the paths. The directories of chunks are tried one after the
//! other, so that a page costs what is on it; the names in `.chunks` are read once a page where one is empty or missing.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use nix::errno::Errno;

use crate::backend::fs::call::errno;
use crate::backend::fs::chunks::ChunkDirectories;
use crate::backend::fs::disk::Disk;
use crate::backend::fs::info::{info, marker_info};
use crate::backend::fs::kind::{Kind, is_place_of_content, why_unreadable};
use crate::backend::fs::objects::failure;
use crate::backend::{Cursor, Depth, Details, ListEntry, ListPage, ListQuery, Unreadable};
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
            // Nothing lies below a file.
            Ok(found) if found.is_file() => Ok(Progress::Done),
            Ok(found) => {
                let unreadable = Unreadable::new(path.trim_end_matches('/'), why_unreadable(&found));
                Err(io::Error::other(unreadable.error("list")))
            }
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
                    self.file(path.trim_end_matches('/').to_owned(), Kind::File)?
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
        let number = |(name, _): (String, Kind)| u16::from_str_radix(name.trim_end_matches('/'), 16).ok();
        Ok(self.names(".chunks/")?.into_iter().filter_map(number).collect())
    }

    /// Lists what is in the directory at `path`, which ends in `/` or is empty.
    fn directory(&mut self, path: &str) -> io::Result<Progress> {
        self.children(path, self.names(path)?)
    }

    fn children(&mut self, path: &str, names: Vec<(String, Kind)>) -> io::Result<Progress> {
        for (name, kind) in names {
            let child = format!("{path}{name}");
            if self.until.as_ref().is_some_and(|until| child > *until) {
                return Ok(Progress::Past);
            }
            let progress = match kind {
                Kind::Directory => self.child_directory(child)?,
                Kind::File | Kind::Other => self.file(child, kind)?,
            };
            if progress != Progress::Done {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// The names in a directory in the order of their paths, those of directories ending in `/`.
    fn names(&self, path: &str) -> io::Result<Vec<(String, Kind)>> {
        let failed = |error| named(error, path);
        let listing = match self.disk.at_directory(path).and_then(fs::read_dir) {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            listing => listing.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(failed)?;
            let kind = match entry.file_type() {
                // Where the listing does not say, the file is looked up, and it may be gone by then.
                Err(error) if is_gone(&error) => continue,
                found => Kind::of(found.map_err(failed)?),
            };
            let mut name = entry.file_name().to_string_lossy().into_owned();
            if path.is_empty() && (name.starts_with('.') || name == "lost+found") {
                continue;
            }
            if kind == Kind::Directory {
                name.push('/');
            }
            names.push((name, kind));
        }
        if let Some(Prefix::Namespace(namespace)) = Prefix::parse(path)
            && !namespace.is_root()
        {
            names.push((".namespace".to_owned(), Kind::File));
        }
        names.sort_unstable();
        names.dedup_by(|one, other| one.0 == other.0);
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
            None if Key::parse(path.trim_end_matches('/')).is_some() => {
                let why = "it is a directory in the place of a file";
                Ok(self.push(ListEntry::Unreadable(Unreadable::new(path, why))))
            }
            None => Ok(self.push(ListEntry::Foreign(path))),
        }
    }

    fn file(&mut self, path: String, kind: Kind) -> io::Result<Progress> {
        if path <= self.after {
            return Ok(Progress::Done);
        }
        let entry = match Key::parse(&path) {
            None if kind == Kind::File || !is_place_of_content(&path) => ListEntry::Foreign(path),
            Some(key @ Key::Namespace(_)) => {
                let directory = path.strip_suffix(".namespace").unwrap_or(&path);
                match self.disk.at(directory).and_then(fs::symlink_metadata) {
                    Ok(found) => ListEntry::Object(marker_info(key, &found)),
                    Err(error) if is_gone(&error) => return Ok(Progress::Done),
                    Err(error) => return Err(named(error, directory)),
                }
            }
            key => match (self.disk.at(&path).and_then(fs::symlink_metadata), key) {
                (Ok(found), Some(key)) if found.is_file() => ListEntry::Object(info(&key, &found)),
                // It became one since its name was read.
                (Ok(found), None) if found.is_file() => ListEntry::Foreign(path),
                (Ok(found), _) => ListEntry::Unreadable(Unreadable::new(path, why_unreadable(&found))),
                // No path leads to it.
                (Err(error), _) if is_gone(&error) && path.contains(char::REPLACEMENT_CHARACTER) => {
                    ListEntry::Unreadable(Unreadable::new(path, "its name is not UTF-8"))
                }
                (Err(error), _) if is_gone(&error) => return Ok(Progress::Done),
                (Err(error), _) => return Err(named(error, &path)),
            },
        };
        Ok(self.push(entry))
    }

    fn push(&mut self, entry: ListEntry) -> Progress {
        self.entries.push(entry);
        if self.entries.len() >= PAGE_ENTRIES { Progress::Full } else { Progress::Done }
    }
}

/// The failure with the path at which it happened, and not only that of the listing.
fn named(error: io::Error, path: &str) -> io::Error {
    io::Error::other(failure(error, "list", if path.is_empty() { "the store" } else { path }))
}

fn is_link(error: &io::Error) -> bool {
    errno(error) == Some(Errno::ELOOP)
}

/// Whether it vanished while the walk was on its way, or a file now stands where a directory was.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

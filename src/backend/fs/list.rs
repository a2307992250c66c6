//! Listings of a store in a directory, in the byte order of paths.
//!
//! A page is a walk that skips the entries before its start and stops after a number of entries. Directories are sorted as if their names
//! ended in `/`, which is their order among the paths. The directories of chunks are opened one after the other, so that the cost of a page
//! depends on its entries; after several missing ones, the walk reads the names in `.chunks` once.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use nix::errno::Errno;

use crate::backend::fs::call::errno;
use crate::backend::fs::chunks::ChunkDirectories;
use crate::backend::fs::disk::Disk;
use crate::backend::fs::info::{info, marker_info};
use crate::backend::fs::kind::{Kind, is_place_of_content, why_unreadable};
use crate::backend::fs::objects::{failure, without_enclosure};
use crate::backend::{Cursor, Depth, Details, ListEntry, ListPage, ListQuery, Unreadable};
use crate::format::layout::{Key, Prefix};
use crate::format::name::GroupName;

/// Number of missing directories of chunks after which a walk reads which of them exist.
const MANY_ABSENT: usize = 16;
/// Maximum number of entries on a page.
const PAGE_ENTRIES: usize = 4096;
/// The same for the snapshots of a group: each page reads all names of its directory, and every backup needs the last of them.
const PAGE_SNAPSHOTS: usize = 1 << 14;

pub(super) fn page(disk: &Disk, query: &ListQuery, cursor: Option<&Cursor>) -> io::Result<ListPage> {
    let start = query.after.as_ref().map(Key::path);
    let start = start.into_iter().chain(cursor.map(|cursor| cursor.as_str().to_owned())).max();
    let mut walk = Walk {
        after: start.unwrap_or_default(),
        deep: query.depth == Depth::All || query.prefix == Prefix::Chunks,
        details: query.details,
        disk,
        entries: Vec::new(),
        group: match &query.prefix {
            Prefix::Group(group) => Some((group, query.prefix.path())),
            _ => None,
        },
        most: match query.prefix {
            Prefix::Group(_) if query.depth == Depth::Children => PAGE_SNAPSHOTS,
            _ => PAGE_ENTRIES,
        },
        until: query.until.as_ref().map(Key::path),
    };
    let more = if query.prefix == Prefix::Chunks { walk.chunks()? } else { walk.prefix(&query.prefix)? };
    if more != Progress::Full {
        // Only a mounted store can be listed completely.
        disk.check_there()?;
    }
    let next = match (more, walk.entries.last()) {
        (Progress::Full, Some(last)) => Some(Cursor::new(last.path())),
        _ => None,
    };
    Ok(ListPage::new(walk.entries, next))
}

struct Walk<'a> {
    /// The path after which the page begins; empty for the beginning.
    after: String,
    deep: bool,
    details: Details,
    disk: &'a Disk,
    entries: Vec<ListEntry>,
    /// The group that is listed, with its path.
    group: Option<(&'a GroupName, String)>,
    /// Maximum number of entries.
    most: usize,
    until: Option<String>,
}

/// The end of a part of a walk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// All entries were seen.
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
            // Nothing can be below a file.
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
        let (mut present, mut empty, mut next) = (None::<BTreeSet<u16>>, 0, Some(first));
        while let Some(number) = next {
            // In a store with few directories, most are known to be missing.
            if let Some(present) = present.as_ref().filter(|present| !present.contains(&number)) {
                next = present.range(number..).next().copied();
                continue;
            }
            next = number.checked_add(1);
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

    /// Adds the entries of a directory of chunks that are within the bounds.
    fn chunks_of(&mut self, directory: &str, entries: Vec<ListEntry>) -> Progress {
        // Most directories are within the bounds as a whole.
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

    /// The numbers of the existing directories of chunks.
    fn chunk_directories(&self) -> io::Result<BTreeSet<u16>> {
        let number = |(name, _): (String, Kind)| u16::from_str_radix(name.trim_end_matches('/'), 16).ok();
        Ok(self.names(".chunks/")?.into_iter().filter_map(number).collect())
    }

    /// Lists the directory at `path`, which ends in `/` or is empty.
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
        let skipped = self.after.strip_prefix(path).and_then(|rest| rest.split('/').next());
        let listing = match self.disk.at_directory(path).and_then(fs::read_dir) {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            listing => listing.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(failed)?;
            let kind = match entry.file_type() {
                // A filesystem that does not list kinds needs a lookup, and the file may be removed by then.
                Err(error) if is_gone(&error) => continue,
                found => Kind::of(found.map_err(failed)?),
            };
            let name = entry.file_name().into_string();
            let mut name = name.unwrap_or_else(|name| name.to_string_lossy().into_owned());
            if skipped.is_some_and(|skipped| comes_before(&name, skipped)) {
                continue;
            }
            if path.is_empty() && (name.starts_with('.') || name == "lost+found") {
                continue;
            }
            if kind == Kind::Directory {
                name.push('/');
            }
            names.push((name, kind));
        }
        if let Some(Prefix::Namespace(namespace)) = Prefix::parse(without_enclosure(path))
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
        match self.snapshot(&path).or_else(|| Prefix::parse(&path)) {
            Some(_) if self.deep => self.directory(&path),
            Some(prefix) => Ok(self.push(ListEntry::Prefix(prefix))),
            None if path <= self.after => Ok(Progress::Done),
            None if Key::parse(path.trim_end_matches('/')).is_some() => {
                let why = "directory in the place of a file";
                Ok(self.push(ListEntry::Unreadable(Unreadable::new(path, why))))
            }
            None => Ok(self.push(ListEntry::Foreign(path))),
        }
    }

    /// The snapshot in a directory of the group that is listed, which may have many.
    fn snapshot(&self, path: &str) -> Option<Prefix> {
        let (group, above) = self.group.as_ref()?;
        let time = path.strip_prefix(above.as_str())?.strip_suffix('/')?.parse().ok()?;
        Some(Prefix::Snapshot(group.snapshot(time)))
    }

    fn file(&mut self, path: String, kind: Kind) -> io::Result<Progress> {
        if path <= self.after {
            return Ok(Progress::Done);
        }
        let entry = match Key::parse(&path) {
            None if kind == Kind::File || !is_place_of_content(&path) => ListEntry::Foreign(path),
            Some(key) if matches!(key.exposed(), Key::Namespace(_)) => {
                let directory = path.strip_suffix(".namespace").unwrap_or(&path);
                match self.disk.at(directory).and_then(fs::symlink_metadata) {
                    Ok(found) => ListEntry::Object(marker_info(key, &found)),
                    Err(error) if is_gone(&error) => return Ok(Progress::Done),
                    Err(error) => return Err(named(error, directory)),
                }
            }
            key => match (self.disk.at(&path).and_then(fs::symlink_metadata), key) {
                (Ok(found), Some(key)) if found.is_file() => ListEntry::Object(info(&key, &found)),
                // It was replaced by a file since its name was read.
                (Ok(found), None) if found.is_file() => ListEntry::Foreign(path),
                (Ok(found), _) => ListEntry::Unreadable(Unreadable::new(path, why_unreadable(&found))),
                // The path with replacement characters is not the name on the disk.
                (Err(error), _) if is_gone(&error) && path.contains(char::REPLACEMENT_CHARACTER) => {
                    ListEntry::Unreadable(Unreadable::new(path, "the name is not UTF-8"))
                }
                (Err(error), _) if is_gone(&error) => return Ok(Progress::Done),
                (Err(error), _) => return Err(named(error, &path)),
            },
        };
        Ok(self.push(entry))
    }

    fn push(&mut self, entry: ListEntry) -> Progress {
        self.entries.push(entry);
        if self.entries.len() >= self.most { Progress::Full } else { Progress::Done }
    }
}

/// Returns `true` if everything at and below a name comes before the path that continues with `component`.
fn comes_before(name: &str, component: &str) -> bool {
    // The path of a directory goes on with `/`, which comes after some characters of names.
    name < component && !component.starts_with(name)
}

/// The failure of a listing, with the path at which it happened.
fn named(error: io::Error, path: &str) -> io::Error {
    io::Error::other(failure(error, "list", if path.is_empty() { "the store" } else { path }))
}

fn is_link(error: &io::Error) -> bool {
    errno(error) == Some(Errno::ELOOP)
}

/// Returns `true` if the entry was removed during the walk, or a file has replaced a directory.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_skipped_only_if_all_its_paths_come_before(
            name in "[!-0a]{1,3}",
            component in "[!-0a]{0,3}",
            below in "[!-0a]{0,2}",
        ) {
            prop_assume!(!name.contains('/') && !component.contains('/'));
            let paths = [name.clone(), format!("{name}/{below}")];
            let after = [component.clone(), format!("{component}/{below}"), format!("{component}/")];
            let all = paths.iter().all(|path| after.iter().all(|after| path < after));
            prop_assert!(!comes_before(&name, &component) || all);
        }
    }
}

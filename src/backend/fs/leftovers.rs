//! Orphan indexes, and temporary files of dead writers. All functions block.

use std::fs;
use std::io::{self, Read as _};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::backend::fs::CLOCK;
use crate::backend::fs::disk::Disk;
use crate::backend::fs::kind::{Kind, is_index, is_place_of_content, why_unreadable};
use crate::backend::fs::objects::{Inner, failure, is_snapshot, parent, temporary_of, without_enclosure};
use crate::backend::{Orphan, Unreadable};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::GroupName;

/// Finds the index files among the foreign paths of a listing, and in the directories among them.
pub(super) fn orphans(disk: &Disk, foreign: &[String]) -> Result<Vec<Orphan>> {
    let mut found = Vec::new();
    for path in foreign {
        let failed = |error| failure(error, "look for indexes in", path);
        if path.trim_end_matches('/').rsplit('/').next().is_some_and(|name| name.starts_with('.')) {
            continue;
        }
        if path.ends_with('/') {
            walk(disk, path, &mut found)?;
        } else if is_index(path) {
            match certain(path, disk.any_metadata(path)).map_err(failed)? {
                Some(metadata) if metadata.is_file() => found.push(Orphan::new(path)),
                Some(metadata) => return Err(unreadable(path, &metadata)),
                None => {}
            }
        }
    }
    disk.check_there().map_err(|error| failure(error, "look for indexes in", disk.root().display()))?;
    Ok(found)
}

/// Reads an index that [`orphans`] found.
pub(super) fn get_orphan(disk: &Disk, orphan: &Orphan, limit: u64) -> Result<Bytes> {
    let path = &orphan.path;
    let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if !path.split('/').all(is_plain) {
        let error = Error::new(ErrorKind::InvalidInput, "read").on(path);
        return Err(error.because("the path is not below the store"));
    }
    let failed = |error| failure(error, "read", path);
    let (file, metadata) = disk.open(path).map_err(failed)?;
    let too_large =
        || Err(Error::new(ErrorKind::Corrupt, "read").on(path).because("the index is larger than the limit"));
    if metadata.len() > limit {
        return too_large();
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { too_large() } else { Ok(bytes.into()) }
}

/// Removes the temporary files among the foreign paths of a listing, and those that no listing shows, which were not changed for at least
/// `age`. Returns their number.
pub(super) fn remove(inner: &Inner, foreign: &[String], now: SystemTime, age: Duration) -> Result<u64> {
    let mut removed = 0;
    let unlisted = unlisted(&inner.disk)?;
    for path in foreign.iter().chain(&unlisted) {
        let Some(object) = temporary_of(path) else { continue };
        let is_of_a_put = object == CLOCK
            || Key::parse(object).is_some_and(|key| !matches!(key.exposed(), Key::Namespace(_)));
        if !is_of_a_put {
            continue;
        }
        let failed = |error| failure(error, "remove the leftover", path);
        let Some(metadata) = gone_or(inner.disk.any_metadata(path)).map_err(failed)? else { continue };
        // A time in the future counts as new.
        let is_old = |changed| {
            mutated!("fs-young-leftovers-are-removed")
                || now.duration_since(changed).is_ok_and(|passed| passed >= age)
        };
        if !metadata.is_file() || !metadata.modified().is_ok_and(is_old) {
            continue;
        }
        if gone_or(inner.disk.remove_file(path)).map_err(failed)?.is_none() {
            continue;
        }
        removed += 1;
        inner.changed(parent(path));
        remove_empty(inner, parent(path));
    }
    Ok(removed)
}

/// Files in the directories of single objects, which no listing shows.
fn unlisted(disk: &Disk) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for directory in ["", ".larder/"] {
        let failed = |error| failure(error, "look for leftovers in", disk.root().join(directory).display());
        for entry in read_directory(disk, directory).map_err(failed)?.into_iter().flatten() {
            let name = entry.map_err(failed)?.file_name();
            files.extend(name.to_str().map(|name| format!("{directory}{name}")));
        }
    }
    Ok(files)
}

/// Removes the directory of a snapshot or a group if it is empty, and then that of the group.
fn remove_empty(inner: &Inner, directory: &str) {
    let is_snapshot = is_snapshot(directory);
    if !is_snapshot && without_enclosure(directory).parse::<GroupName>().is_err() {
        return;
    }
    // Files that keep the directory are visible in listings.
    if inner.disk.remove_directory(directory).is_ok() {
        inner.changed(parent(directory));
        if is_snapshot {
            remove_empty(inner, parent(directory));
        }
    }
}

fn walk(disk: &Disk, top: &str, found: &mut Vec<Orphan>) -> Result<()> {
    let mut left = vec![top.to_owned()];
    while let Some(directory) = left.pop() {
        let failed = |error| failure(error, "look for indexes in", &directory);
        let Some(entries) = read_directory(disk, &directory).map_err(failed)? else { continue };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Some(kind) = gone_or(entry.file_type()).map_err(failed)? else { continue };
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = format!("{directory}{}", name.to_string_lossy());
            let is_wanted = match Kind::of(kind) {
                Kind::Directory => true,
                Kind::File => is_index(&path),
                Kind::Other => is_place_of_content(&path),
            };
            match name.to_str() {
                _ if !is_wanted => {}
                Some(_) if !kind.is_dir() && !kind.is_file() => {
                    let Some(found) = gone_or(disk.any_metadata(&path)).map_err(failed)? else { continue };
                    return Err(unreadable(&path, &found));
                }
                Some(name) if kind.is_dir() => left.push(format!("{directory}{name}/")),
                Some(name) => found.push(Orphan::new(format!("{directory}{name}"))),
                // No path in the form of text reaches the entry, which may hide the only index that names a chunk.
                None => {
                    let error = Error::new(ErrorKind::Corrupt, "look for indexes in").on(&directory);
                    return Err(error.because(format!("the name {} is not UTF-8", name.display())));
                }
            }
        }
    }
    Ok(())
}

/// The entries of a directory; `None` if it does not exist, or is a `lost+found` that may not be read.
fn read_directory(disk: &Disk, directory: &str) -> io::Result<Option<fs::ReadDir>> {
    match disk.at_directory(directory).and_then(fs::read_dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_lost_and_found(directory) => {
            Ok(None)
        }
        entries => certain(directory, entries),
    }
}

/// Returns `true` for the `lost+found` of a filesystem that is mounted at the store or at one of its directories.
fn is_lost_and_found(directory: &str) -> bool {
    let mut parts = directory.trim_end_matches('/').rsplit('/');
    parts.next() == Some("lost+found") && parts.count() <= 1
}

/// As [`gone_or`], but a path with replacement characters is not the name on the disk, so its absence proves nothing.
fn certain<T>(path: &str, found: io::Result<T>) -> io::Result<Option<T>> {
    match gone_or(found)? {
        None if path.contains(char::REPLACEMENT_CHARACTER) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the name is not UTF-8"))
        }
        found => Ok(found),
    }
}

fn gone_or<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// The error for a link or another entry in the place of an index: the index behind it may be the only one that names a chunk.
fn unreadable(path: &str, found: &fs::Metadata) -> Error {
    Unreadable::new(path, why_unreadable(found)).error("look for indexes behind")
}

//! Listings of the directories of chunks, which are up to 65,536 with millions of names: by descriptors, so that no path is resolved twice,
//! and without lookups that the query does not need.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstatat};
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};

use crate::backend::fs::disk::Disk;
use crate::backend::fs::info::later;
use crate::backend::fs::version::version_of;
use crate::backend::{Details, ListEntry, ObjectInfo};
use crate::format::Digest;
use crate::format::layout::Key;

/// The directory `.chunks`, open.
#[derive(Debug)]
pub(super) struct ChunkDirectories {
    chunks: OwnedFd,
}

impl ChunkDirectories {
    /// Opens `.chunks`; `None` if it does not exist.
    pub(super) fn open(disk: &Disk) -> io::Result<Option<Self>> {
        let path = match disk.at_directory(".chunks/") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            path => path?,
        };
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Ok(Some(Self { chunks: file?.into() })),
        }
    }

    /// Lists one of the directories, in order; `None` if it does not exist. A link in its place is an error, `ELOOP` or `ENOTDIR`.
    pub(super) fn list(&self, number: u16, details: Details) -> io::Result<Option<Vec<ListEntry>>> {
        let prefix = format!("{number:04x}");
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match openat(self.chunks.as_fd(), prefix.as_str(), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            directory => directory?,
        };
        // That of `nix` leaks the descriptor if it cannot be made.
        let mut directory = Dir::new(directory)?;
        let (mut chunks, mut others) = (Vec::new(), Vec::new());
        let names: Vec<_> = directory.by_ref().collect::<Result<_, _>>()?;
        let directory = directory.fd()?;
        for entry in &names {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match (entry.file_type(), details) {
                (FileType::RegularFile, Details::Names) => None,
                (FileType::Directory, _) => {
                    others.push(ListEntry::Foreign(path_of(&prefix, name) + "/"));
                    continue;
                }
                _ => match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    // The file was removed since its name was read.
                    Err(Errno::ENOENT) => continue,
                    stat => Some(stat?),
                },
            };
            match classify(&prefix, name, stat.as_ref()) {
                ListEntry::Object(ObjectInfo { key: Key::Chunk(digest), .. })
                    if details == Details::Names =>
                {
                    chunks.push((digest, ListEntry::Name(Key::Chunk(digest))));
                }
                entry @ (ListEntry::Name(Key::Chunk(digest))
                | ListEntry::Object(ObjectInfo { key: Key::Chunk(digest), .. })) => {
                    chunks.push((digest, entry));
                }
                entry => others.push(entry),
            }
        }
        chunks.sort_unstable_by_key(|(digest, _)| *digest);
        let mut entries: Vec<_> = chunks.into_iter().map(|(_, entry)| entry).collect();
        if !others.is_empty() {
            entries.extend(others);
            entries.sort_by_cached_key(ListEntry::path);
        }
        Ok(Some(entries))
    }
}

/// The entry of a listing for a name, with a description if the file was looked up.
fn classify(prefix: &str, name: &CStr, stat: Option<&FileStat>) -> ListEntry {
    let kind = stat.map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    if kind.is_some_and(|kind| kind != SFlag::S_IFREG) {
        let slash = if kind == Some(SFlag::S_IFDIR) { "/" } else { "" };
        return ListEntry::Foreign(path_of(prefix, name) + slash);
    }
    let digest = name.to_str().ok().filter(|name| name.starts_with(prefix));
    let digest = digest.and_then(|name| name.parse::<Digest>().ok());
    let key = digest.map(Key::Chunk).or_else(|| Key::parse(&path_of(prefix, name)));
    match (key, stat) {
        (None, _) => ListEntry::Foreign(path_of(prefix, name)),
        (Some(key), None) => ListEntry::Name(key),
        (Some(key), Some(stat)) => {
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            let accessed = (stat.st_atime, stat.st_atime_nsec);
            let last_used = later(accessed, (stat.st_mtime, stat.st_mtime_nsec));
            ListEntry::Object(ObjectInfo::new(key, size, last_used, version_of(stat)))
        }
    }
}

fn path_of(prefix: &str, name: &CStr) -> String {
    format!(".chunks/{prefix}/{}", name.to_string_lossy())
}

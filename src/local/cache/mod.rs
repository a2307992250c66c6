//! Stored chunks of a remote store on a local disk, within a budget of bytes.
//!
//! A hit means that the bytes are here, never that the store has the chunk (H72). The cache is never fatal: it counts failures, reads
//! become misses, and it accepts no entries for a while (I8, H63). All its files may be deleted while
//! it is in use (H74). One directory belongs to one cache; the caller ensures that (H71).
//!
//! # Layout
//! An entry is `PP/<digest>`, where `PP` are the first two of the 64 digits. It is written as `tmp-<number>` and renamed
//! (H67). Nothing is flushed: a read detects an entry that a crash left incomplete (H66). [`file`] has the format of an entry.
//!
//! The modification time of a file is the time of its last hit. It restores the order when the cache is opened again (H61).
//!
//! # Locks
//! An operation that changes a file and its entry holds the stripe of the digest for writing, a read holds it for reading (H60). No
//! operation holds two stripes. The state is locked last, and never during file operations.

pub(crate) mod file;
mod index;

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use bytes::Bytes;
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use self::file::{blocks, is_gone, read, size_on_disk, trailer};
use self::index::Index;
use crate::format::Digest;
use crate::local::private::{self, make_directory};
use crate::trace;
use crate::wording::{Count, Size};

/// A cache of stored chunks in a directory. Its functions block on the disk.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    directory: PathBuf,
    budget: u64,
    /// Maximum bytes of disk for one entry.
    entry_most: u64,
    next_temp: AtomicU64,
    stripes: [RwLock<()>; 64],
    state: Mutex<State>,
}

/// Statistics of a cache since it was opened, and its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CacheCounts {
    /// Number of hits.
    pub hits: u64,
    /// Number of misses, for any reason.
    pub misses: u64,
    /// Number of removed damaged entries.
    pub damaged: u64,
    /// Number of disk failures in reads, writes and removals.
    pub errors: u64,
    /// Number of stored entries.
    pub inserted: u64,
    /// Number of evicted entries.
    pub evicted: u64,
    /// Bytes of disk of all entries, in whole blocks of 4096.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

impl fmt::Display for CacheCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, hits) = (Count(self.entries, "cached chunk"), Count(self.hits, "hit"));
        write!(f, "{entries}, {}; {hits}, {}", Size(self.bytes), Count(self.misses, "miss"))
    }
}

impl ChunkCache {
    /// Opens the cache in `directory`, or creates it, with at most `budget` bytes of disk, counted in whole
    /// blocks of 4096.
    ///
    /// Reads the directories and no entry. Removes entries beyond the budget. An entry may have at most an eighth of
    /// the budget, or the 17 MiB of the largest chunk if the budget is at least 64 MiB.
    ///
    /// # Errors
    /// If the directory cannot be created or read. The caller continues without a cache.
    pub(crate) fn open(directory: &Path, budget: u64) -> io::Result<Self> {
        make_directory(directory)?;
        let cache = Self {
            directory: directory.to_owned(),
            budget,
            entry_most: if budget < 64 << 20 { budget / 8 } else { size_on_disk(17 << 20) },
            next_temp: AtomicU64::new(0),
            stripes: [const { RwLock::new(()) }; 64],
            state: Mutex::new(State::new(budget)),
        };
        cache.remove_temps()?;
        cache.account()?;
        while cache.state().used() > budget {
            let oldest = cache.state().index.oldest();
            if oldest.is_none_or(|oldest| cache.evict(&oldest).is_none()) {
                break;
            }
        }
        Ok(cache)
    }

    /// Stored form of a chunk, if it is cached. It is complete; the caller checks it against the digest, and calls
    /// [`Self::remove_damaged`] if it does not match.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        let mut found = {
            let _stripe = self.share(digest);
            self.look(digest)
        };
        if matches!(found, Found::Damaged) {
            let _stripe = self.own(digest);
            // Between the two locks it may have been removed and stored again.
            found = self.look(digest);
            if matches!(found, Found::Damaged) {
                self.state().counts.damaged += 1;
                self.discard(digest);
            }
        }
        let mut state = self.state();
        match found {
            Found::Bytes(bytes) => {
                state.counts.hits += 1;
                trace::cache_hit();
                return Some(bytes);
            }
            Found::Failure => state.counts.errors += 1,
            Found::Damaged | Found::Nothing => {}
        }
        state.counts.misses += 1;
        trace::cache_miss();
        None
    }

    /// Stores a chunk, which the caller has checked (H68). Does nothing if the entry exists.
    ///
    /// Never fails. After an error it skips the next 256 inserts, and twice as many after each further error, up
    /// to 65,536; a success resets that.
    pub(crate) fn insert(&self, digest: &Digest, stored: &[u8]) {
        let Some(trailer) = trailer(stored) else { return };
        let size = size_on_disk(stored.len() as u64);
        if size > self.entry_most || self.contains(digest) || self.state().is_paused() || !self.reserve(size)
        {
            return;
        }
        let temp = self.directory.join(format!("{TEMP}{}", self.next_temp.fetch_add(1, Ordering::Relaxed)));
        let written = self.write(&temp, stored, &trailer).and_then(|()| self.publish(&temp, digest, size));
        if let Err(error) = written {
            self.write_failed(&temp, size, &error);
        }
    }

    /// Returns `true` if the entry exists. It may still be unreadable.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.state().index.size(digest).is_some()
    }

    /// Removes an entry if it exists.
    pub(crate) fn remove(&self, digest: &Digest) {
        let _stripe = self.own(digest);
        if self.contains(digest) {
            self.discard(digest);
        }
    }

    /// Removes a damaged entry and counts it.
    pub(crate) fn remove_damaged(&self, digest: &Digest) {
        let _stripe = self.own(digest);
        if self.contains(digest) {
            self.state().counts.damaged += 1;
            self.discard(digest);
        }
    }

    /// Frees at least this number of bytes of disk, if it has them, and skips the next 256 inserts: metadata on the
    /// same disk comes first (H64).
    pub(crate) fn yield_bytes(&self, bytes: u64) {
        self.state().pause();
        self.give_back(bytes);
    }

    /// Statistics so far, and the contents.
    pub(crate) fn counts(&self) -> CacheCounts {
        let state = self.state();
        // A cache of 2^64 entries would have to have as many files.
        let entries = u64::try_from(state.index.entries()).unwrap_or(u64::MAX);
        CacheCounts { bytes: state.index.bytes(), entries, ..state.counts }
    }
}

/// Result of reading an entry.
enum Found {
    Bytes(Bytes),
    /// The file differs from what was written.
    Damaged,
    /// The file cannot be read now, but perhaps later.
    Failure,
    Nothing,
}

/// Reading and removing.
impl ChunkCache {
    /// Reads an entry. The stripe of the digest is held.
    fn look(&self, digest: &Digest) -> Found {
        let Some(size) = self.state().index.size(digest) else { return Found::Nothing };
        let file = match private::open(&self.path(digest)) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => {
                self.state().index.remove(digest);
                return Found::Nothing;
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Found::Damaged,
            Err(_) => return Found::Failure,
        };
        match read(&file, size) {
            Ok(Some(bytes)) => {
                self.state().index.promote(*digest);
                // Only the order after a restart depends on it.
                let _ = futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW);
                Found::Bytes(bytes)
            }
            // A block that the disk cannot read stays so until it is written again.
            Ok(None) | Err(_) => Found::Damaged,
        }
    }

    /// Removes the file of an entry and then the entry. Returns the freed bytes of disk. If the file cannot be
    /// removed, the entry stays, because its bytes do. The caller holds the stripe of the digest for writing.
    fn discard(&self, digest: &Digest) -> Option<u64> {
        let removed = fs::remove_file(self.path(digest));
        let mut state = self.state();
        match removed {
            Ok(()) => state.index.remove(digest),
            Err(error) if is_gone(&error) => {
                state.index.remove(digest);
                Some(0)
            }
            Err(_) => {
                state.counts.errors += 1;
                state.index.put_off(digest);
                None
            }
        }
    }

    /// Removes an entry to make room; `None` if the disk refuses.
    fn evict(&self, digest: &Digest) -> Option<u64> {
        let _stripe = self.own(digest);
        if !self.contains(digest) {
            return Some(0);
        }
        let freed = self.discard(digest)?;
        self.state().counts.evicted += 1;
        Some(freed)
    }

    /// Evicts entries until this number of disk bytes is free.
    fn give_back(&self, bytes: u64) {
        let mut freed = 0_u64;
        while freed < bytes {
            let oldest = self.state().index.oldest();
            let Some(more) = oldest.and_then(|oldest| self.evict(&oldest)) else { return };
            freed = freed.saturating_add(more);
        }
    }
}

/// Writing.
impl ChunkCache {
    /// Reserves room for an entry. Returns `true` if there is enough.
    fn reserve(&self, size: u64) -> bool {
        loop {
            let oldest = {
                let mut state = self.state();
                if state.used().saturating_add(size) <= self.budget {
                    state.reserved += size;
                    return true;
                }
                state.index.oldest()
            };
            // Without entries, concurrent writes have reserved everything.
            let Some(oldest) = oldest else { return false };
            if self.evict(&oldest).is_none() {
                self.state().pause();
                return false;
            }
        }
    }

    fn write(&self, temp: &Path, stored: &[u8], trailer: &[u8]) -> io::Result<()> {
        let create = || private::options().write(true).create_new(true).open(temp);
        let mut file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_directory(&self.directory)?;
                create()?
            }
            created => created?,
        };
        file.write_all(stored)?;
        file.write_all(trailer)
    }

    /// Gives the file its name and the digest its entry, in place of the reservation.
    fn publish(&self, temp: &Path, digest: &Digest, size: u64) -> io::Result<()> {
        let _stripe = self.own(digest);
        if self.contains(digest) {
            fs::remove_file(temp).or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })?;
            self.state().reserved -= size;
            return Ok(());
        }
        let path = self.path(digest);
        if let Err(error) = fs::rename(temp, &path) {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            make_directory(&self.subdirectory(digest))?;
            fs::rename(temp, &path)?;
        }
        let mut state = self.state();
        state.reserved -= size;
        state.index.insert(*digest, size);
        state.counts.inserted += 1;
        state.next_pause = PAUSE_LEAST;
        Ok(())
    }

    fn write_failed(&self, temp: &Path, size: u64, error: &io::Error) {
        // If it stays, the next `open` removes it.
        let _ = fs::remove_file(temp);
        {
            let mut state = self.state();
            state.reserved -= size;
            state.counts.errors += 1;
            state.pause();
        }
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            self.give_back(self.budget / 8);
        }
    }
}

/// Opening.
impl ChunkCache {
    /// Removes files of interrupted writes.
    fn remove_temps(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(TEMP)?.parse::<u64>().ok());
            if number.is_some() && entry.file_type()?.is_file() && fs::remove_file(entry.path()).is_err() {
                self.state().counts.errors += 1;
            }
        }
        Ok(())
    }

    /// Registers the existing entries, oldest first.
    fn account(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for first in 0..=u8::MAX {
            match fs::read_dir(self.directory.join(format!("{first:02x}"))) {
                Ok(entries) => account_directory(entries, first, &mut found)?,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_unstable();
        for (_, digest, size) in found {
            self.state().index.insert(digest, size);
            if size > self.entry_most {
                self.evict(&digest);
            }
        }
        Ok(())
    }
}

fn account_directory(
    entries: fs::ReadDir,
    first: u8,
    found: &mut Vec<(SystemTime, Digest, u64)>,
) -> io::Result<()> {
    for entry in entries {
        let entry = entry?;
        let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
        let Some(digest) = digest.filter(|digest| digest.as_bytes()[0] == first) else { continue };
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => {
                found.push((metadata.modified()?, digest, blocks(metadata.len())));
            }
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[derive(Debug)]
struct State {
    index: Index,
    /// Bytes of disk of writes in progress.
    reserved: u64,
    /// Number of inserts still to skip.
    pause: u64,
    next_pause: u64,
    counts: CacheCounts,
}

impl State {
    fn new(budget: u64) -> Self {
        Self {
            index: Index::new(budget),
            reserved: 0,
            pause: 0,
            next_pause: PAUSE_LEAST,
            counts: CacheCounts::default(),
        }
    }

    fn used(&self) -> u64 {
        self.index.bytes() + self.reserved
    }

    /// Begins a pause. Does nothing during one: simultaneous failures of several threads count as one.
    fn pause(&mut self) {
        if self.pause == 0 {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MOST);
        }
    }

    /// Returns `true` if an insert is skipped.
    fn is_paused(&mut self) -> bool {
        let paused = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        paused
    }
}

impl ChunkCache {
    fn subdirectory(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{:02x}", digest.as_bytes()[0]))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.subdirectory(digest);
        path.push(digest.to_string());
        path
    }

    fn share(&self, digest: &Digest) -> RwLockReadGuard<'_, ()> {
        self.stripe(digest).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self, digest: &Digest) -> RwLockWriteGuard<'_, ()> {
        self.stripe(digest).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, digest: &Digest) -> &RwLock<()> {
        &self.stripes[usize::from(digest.as_bytes()[31]) % self.stripes.len()]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const TEMP: &str = "tmp-";
const PAUSE_LEAST: u64 = 256;
const PAUSE_MOST: u64 = 65_536;

#[cfg(test)]
mod tests;

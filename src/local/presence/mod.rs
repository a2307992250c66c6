//! Presence records: 40 bytes a chunk, in sorted files with a short log (H65).
//!
//! # Files
//! | name | contents |
//! |---|---|
//! | `current` | text: stamp, names of the segments from old to new, CRC-32 of both |
//! | `log` | records in the order in which they were made |
//! | `segment-N` | records in the order of their digests, each digest once, then the first 8 bytes of every 256th digest |
//!
//! A record is a digest, 4 bytes little-endian with the state in the upper 4 bits and the stored length in the lower 28, and the CRC-32 of
//! both, little-endian. Of several records of a digest the newest counts: the log before the segments, the last before the first.
//!
//! The log is in memory too. At [`MERGE_AT`] records it becomes a segment, together with those segments that are not at least four
//! times as long. A new segment is written beside the old ones and flushed; then `current` is replaced, and only then the
//! log is cut and the old segments are removed. A crash before the replacement leaves the old state and an unnamed file, a
//! crash after it leaves records in the log that the segment has too.
//!
//! # Validity
//! Records are valid for the stamp that they were made under, and are dropped under another. Lost records cost requests. A forgotten
//! record must stay forgotten: [`PresenceStore::forget_all`] returns when that is on the disk (H16). A damaged record may hide an older
//! one, so damage is worse than a lost record. A damaged log is dropped with everything else, unless the damage is what a crash
//! leaves at its end: half a record, or zeros. A damaged block of a segment answers nothing, and a merge that meets one drops
//! everything.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::Digest;
use crate::local::private;

const RECORD_BYTES: usize = 40;
/// Number of records that one lookup in a segment reads.
const BLOCK_RECORDS: usize = 256;
/// Number of records at which the log becomes a segment.
const MERGE_AT: usize = 64 << 10;
/// A segment is merged with a newer one that is more than this part of it.
const RATIO: u64 = 4;
const LENGTH_BITS: u32 = 28;

/// Record of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// The chunk is unknown.
    Forgotten,
    /// The store has it, in an object of this many bytes.
    Present(u32),
}

/// The records of one store. Its functions block on the disk.
#[derive(Debug)]
pub(crate) struct PresenceStore {
    directory: PathBuf,
    merge_at: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    log: File,
    /// Contents of the log.
    recent: HashMap<Digest, Presence>,
    segments: Vec<Arc<Segment>>,
    stamp: String,
}

/// A sorted file.
#[derive(Debug)]
struct Segment {
    count: u64,
    /// The first 8 bytes of the first digest of each block.
    fences: Vec<[u8; 8]>,
    file: File,
    name: String,
}

impl PresenceStore {
    /// Opens the records in a directory, or creates it. Drops records with another stamp than `valid`; the others are valid under
    /// `stamp` from then on.
    pub(crate) fn open(directory: &Path, valid: Option<&str>, stamp: &str) -> io::Result<Self> {
        Self::open_merging_at(directory, valid, stamp, MERGE_AT)
    }

    /// As [`open`](Self::open), with another number of records at which the log becomes a segment.
    pub(crate) fn open_merging_at(
        directory: &Path,
        valid: Option<&str>,
        stamp: &str,
        merge_at: usize,
    ) -> io::Result<Self> {
        private::make_directory(directory)?;
        let found =
            read_current(directory).filter(|(found, _)| Some(found.as_str()) == valid || found == stamp);
        let log_path = directory.join(LOG);
        let opened = found.and_then(|(_, names)| {
            let segments = names.iter().map(|name| Segment::open(directory, name));
            Some((segments.collect::<io::Result<Vec<_>>>().ok()?, read_log(&log_path).ok()?))
        });
        let (segments, recent) = opened.unwrap_or_default();
        let mut log = private::options().create(true).read(true).append(true).open(&log_path)?;
        if segments.is_empty() && recent.is_empty() {
            log.set_len(0)?;
            // A crash must not leave the new stamp beside the old records.
            log.sync_data()?;
        }
        log.seek(SeekFrom::End(0))?;
        let state = State { log, recent, segments, stamp: stamp.to_owned() };
        // Under the new stamp before anything is recorded that is true for it alone.
        write_current(directory, &state)?;
        remove_unnamed(directory, &state)?;
        Ok(Self { directory: directory.to_owned(), merge_at, state: Mutex::new(state) })
    }

    /// Looks up a chunk. An unreadable record counts as missing.
    pub(crate) fn get(&self, digest: &Digest) -> Option<u32> {
        let segments = {
            let state = self.state();
            match state.recent.get(digest) {
                Some(Presence::Present(length)) => return Some(*length),
                Some(Presence::Forgotten) => return None,
                None => state.segments.clone(),
            }
        };
        for segment in segments.iter().rev() {
            match segment.find(digest) {
                Ok(None) => {}
                Ok(Some(Presence::Present(length))) => return Some(length),
                // A newer record that cannot be read may say that the chunk is gone.
                Ok(Some(Presence::Forgotten)) | Err(_) => return None,
            }
        }
        None
    }

    /// Records that the store has the chunk, in an object of this many bytes.
    pub(crate) fn set(&self, digest: Digest, length: u32) -> io::Result<()> {
        if self.get(&digest) == Some(length) {
            return Ok(());
        }
        self.append(digest, Presence::Present(length), false)
    }

    /// Forgets a chunk. Durable when it returns.
    #[cfg(test)]
    pub(crate) fn forget(&self, digest: Digest) -> io::Result<()> {
        self.append(digest, Presence::Forgotten, true)
    }

    /// Forgets chunks. Durable when it returns.
    pub(crate) fn forget_all(&self, digests: &[Digest]) -> io::Result<()> {
        let Some((last, others)) = digests.split_last() else { return Ok(()) };
        for digest in others {
            self.append(*digest, Presence::Forgotten, false)?;
        }
        self.append(*last, Presence::Forgotten, true)
    }

    /// Makes the records valid under another stamp instead of the current one. Durable when it returns.
    pub(crate) fn restamp(&self, stamp: &str) -> io::Result<()> {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.stamp, stamp.to_owned());
        let written = write_current(&self.directory, &state);
        if written.is_err() {
            state.stamp = before;
        }
        written
    }

    fn append(&self, digest: Digest, presence: Presence, durable: bool) -> io::Result<()> {
        let mut state = self.state();
        // In memory first: even if the disk fails, this process no longer uses the forgotten records.
        if presence == Presence::Forgotten {
            state.recent.insert(digest, presence);
        }
        let before = state.log.metadata()?.len();
        let written = state
            .log
            .write_all(&encode(&digest, presence))
            .and_then(|()| if durable { state.log.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // Records after half a record cannot be read.
            state.log.set_len(before)?;
            return Err(error);
        }
        state.recent.insert(digest, presence);
        // A failed merge is retried after the same number of records.
        if !state.recent.len().is_multiple_of(self.merge_at) {
            return Ok(());
        }
        match self.merge(&mut state) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => self.drop_all(&mut state),
            merged => merged,
        }
    }

    fn drop_all(&self, state: &mut State) -> io::Result<()> {
        state.segments.clear();
        state.recent.clear();
        write_current(&self.directory, state)?;
        state.log.set_len(0)
    }

    /// Makes a segment of the log, and of the newest segments that are not much longer.
    fn merge(&self, state: &mut State) -> io::Result<()> {
        let recent: BTreeMap<_, _> =
            state.recent.iter().map(|(digest, presence)| (*digest, *presence)).collect();
        let mut count = recent.len() as u64;
        let mut keep = state.segments.len();
        while keep > 0 && state.segments[keep - 1].count < count * RATIO {
            keep -= 1;
            count += state.segments[keep].count;
        }
        let number =
            state.segments.iter().filter_map(|segment| segment.number()).max().map_or(0, |number| number + 1);
        let name = format!("{SEGMENT}{number}");
        let mut sources: Vec<Source> = Vec::new();
        for segment in state.segments[keep..].iter().rev() {
            sources.push(Source::of(segment)?);
        }
        // No older segment is left, so forgotten records can be omitted.
        write_segment(&self.directory.join(&name), recent.into_iter(), sources, keep == 0)?;
        let segment = Segment::open(&self.directory, &name)?;
        let old = state.segments.split_off(keep);
        state.segments.push(segment);
        if let Err(error) = write_current(&self.directory, state) {
            state.segments.truncate(keep);
            state.segments.extend(old);
            return Err(error);
        }
        state.log.set_len(0)?;
        state.log.sync_data()?;
        state.recent.clear();
        for segment in old {
            // One that stays is removed when the records are opened again.
            let _ = fs::remove_file(self.directory.join(&segment.name));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    fn open(directory: &Path, name: &str) -> io::Result<Arc<Self>> {
        let file = private::open(&directory.join(name))?;
        let length = file.metadata()?.len();
        let mut end = [0; FOOT_BYTES];
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let foot_at = length.checked_sub(FOOT_BYTES as u64).ok_or_else(damaged)?;
        file.read_exact_at(&mut end, foot_at)?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| end[at + byte]));
        let (count, crc) = (word(0), word(8));
        let blocks = count.div_ceil(BLOCK_RECORDS as u64);
        let fences_at = count.checked_mul(RECORD_BYTES as u64).ok_or_else(damaged)?;
        let wanted =
            blocks.checked_mul(8).and_then(|fences| fences_at.checked_add(fences + FOOT_BYTES as u64));
        if wanted != Some(length) {
            return Err(damaged());
        }
        let mut bytes = vec![0; usize::try_from(blocks * 8).map_err(|_| damaged())?];
        file.read_exact_at(&mut bytes, fences_at)?;
        if u64::from(crc32fast::hash(&bytes)) != crc {
            return Err(damaged());
        }
        Ok(Arc::new(Self { count, fences: bytes.as_chunks().0.to_vec(), file, name: name.to_owned() }))
    }

    fn find(&self, digest: &Digest) -> io::Result<Option<Presence>> {
        let wanted = fence(digest);
        // Digests that begin alike may stand on both sides of a fence.
        let first = self.fences.partition_point(|fence| *fence < wanted).saturating_sub(1);
        let last = self.fences.partition_point(|fence| *fence <= wanted);
        for block in first..last {
            let start = (block * BLOCK_RECORDS) as u64;
            let records = (self.count - start).min(BLOCK_RECORDS as u64);
            let mut bytes = vec![0; usize::try_from(records).unwrap_or(BLOCK_RECORDS) * RECORD_BYTES];
            self.file.read_exact_at(&mut bytes, start * RECORD_BYTES as u64)?;
            let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
            let mut previous = None;
            for record in records {
                let (found, presence) = decode(record)?;
                check_order(previous.replace(found), found)?;
                if found == *digest {
                    return Ok(Some(presence));
                }
            }
        }
        Ok(None)
    }

    fn number(&self) -> Option<u64> {
        self.name.strip_prefix(SEGMENT)?.parse().ok()
    }
}

/// The records of a segment, one after the other.
struct Source {
    left: u64,
    next: Option<(Digest, Presence)>,
    reader: BufReader<File>,
}

impl Source {
    fn of(segment: &Segment) -> io::Result<Self> {
        let mut file = segment.file.try_clone()?;
        file.rewind()?;
        let mut source =
            Self { left: segment.count, next: None, reader: BufReader::with_capacity(64 << 10, file) };
        source.advance()?;
        Ok(source)
    }

    /// Advances to the next record.
    fn advance(&mut self) -> io::Result<()> {
        let previous = self.next.take().map(|(digest, _)| digest);
        if self.left > 0 {
            let mut record = [0; RECORD_BYTES];
            self.reader.read_exact(&mut record)?;
            self.left -= 1;
            let (digest, presence) = decode(&record)?;
            check_order(previous, digest)?;
            self.next = Some((digest, presence));
        }
        Ok(())
    }
}

/// Checks the order of two records of a segment.
///
/// # Errors
/// `InvalidData` unless a digest follows the previous one. A second record of a digest would restore what a newer segment forgot.
fn check_order(previous: Option<Digest>, digest: Digest) -> io::Result<()> {
    let is_ordered =
        previous.is_none_or(|previous| previous < digest) || mutated!("records-out-of-order-count");
    if is_ordered { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Writes a segment from sources, the newest first.
fn write_segment(
    path: &Path,
    recent: impl Iterator<Item = (Digest, Presence)>,
    mut sources: Vec<Source>,
    is_oldest: bool,
) -> io::Result<()> {
    let mut recent = recent.peekable();
    let mut writer = BufWriter::with_capacity(64 << 10, private::create(path)?);
    let mut fences = Vec::new();
    let mut count: u64 = 0;
    loop {
        let heads = sources.iter().filter_map(|source| source.next.map(|(digest, _)| digest));
        let Some(digest) = heads.chain(recent.peek().map(|(digest, _)| *digest)).min() else { break };
        let mut presence = recent.next_if(|(next, _)| *next == digest).map(|(_, presence)| presence);
        for source in &mut sources {
            if let Some((next, found)) = source.next
                && next == digest
            {
                presence.get_or_insert(found);
                source.advance()?;
            }
        }
        let Some(presence) = presence.filter(|presence| !is_oldest || *presence != Presence::Forgotten)
        else {
            continue;
        };
        if count.is_multiple_of(BLOCK_RECORDS as u64) {
            fences.extend(fence(&digest));
        }
        writer.write_all(&encode(&digest, presence))?;
        count += 1;
    }
    writer.write_all(&fences)?;
    writer.write_all(&count.to_le_bytes())?;
    writer.write_all(&u64::from(crc32fast::hash(&fences)).to_le_bytes())?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()
}

fn fence(digest: &Digest) -> [u8; 8] {
    let bytes = digest.as_bytes();
    std::array::from_fn(|at| bytes[at])
}

fn encode(digest: &Digest, presence: Presence) -> [u8; RECORD_BYTES] {
    let word = match presence {
        Presence::Forgotten => 0,
        Presence::Present(length) => 1 << LENGTH_BITS | (length & ((1 << LENGTH_BITS) - 1)),
    };
    let mut record = [0; RECORD_BYTES];
    record[..32].copy_from_slice(digest.as_bytes());
    record[32..36].copy_from_slice(&word.to_le_bytes());
    let crc = crc32fast::hash(&record[..36]);
    record[36..].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> io::Result<(Digest, Presence)> {
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    if word(36) != crc32fast::hash(&record[..36]) && !mutated!("records-that-are-damaged-count") {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(&record[..32]);
    let digest = Digest::from_bytes(digest);
    match word(32) >> LENGTH_BITS {
        0 => Ok((digest, Presence::Forgotten)),
        1 => Ok((digest, Presence::Present(word(32) & ((1 << LENGTH_BITS) - 1)))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The records of a log. An incomplete end, as left by a crash, is cut off.
fn read_log(path: &Path) -> io::Result<HashMap<Digest, Presence>> {
    let bytes = match private::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        bytes => bytes?,
    };
    let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
    let written = records.iter().rposition(|record| *record != [0; RECORD_BYTES]).map_or(0, |last| last + 1);
    let whole = records[..written].iter().map(decode).collect::<io::Result<Vec<_>>>()?;
    let length = (written * RECORD_BYTES) as u64;
    if length != bytes.len() as u64 {
        private::options().write(true).open(path)?.set_len(length)?;
    }
    Ok(whole.into_iter().collect())
}

fn read_current(directory: &Path) -> Option<(String, Vec<String>)> {
    let text = private::read_text(&directory.join(CURRENT)).ok()?;
    let (body, crc) = text.trim_end().rsplit_once('\n')?;
    if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(body.as_bytes())) {
        return None;
    }
    let mut lines = body.lines().map(str::to_owned);
    Some((lines.next()?, lines.collect()))
}

fn write_current(directory: &Path, state: &State) -> io::Result<()> {
    let names = state.segments.iter().map(|segment| segment.name.as_str());
    let body: Vec<_> = std::iter::once(state.stamp.as_str()).chain(names).collect();
    let body = body.join("\n");
    let temporary = directory.join(format!("{CURRENT}.new"));
    let mut file = private::create(&temporary)?;
    write!(file, "{body}\n{:08x}\n", crc32fast::hash(body.as_bytes()))?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(CURRENT))?;
    File::open(directory)?.sync_all()
}

/// Removes segments that a crash left beside those that count.
fn remove_unnamed(directory: &Path, state: &State) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(SEGMENT) && !state.segments.iter().any(|segment| segment.name == name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

const CURRENT: &str = "current";
/// The number of records, and the CRC-32 of the fences.
const FOOT_BYTES: usize = 16;
const LOG: &str = "log";
const SEGMENT: &str = "segment-";

#[cfg(test)]
mod tests;

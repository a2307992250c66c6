//! The entries of a tar stream, parts of which may be damaged.
//!
//! Data that is damaged is met by whoever reads it, and costs that entry: its size is in its header, so the next header is found.
//! Where a header or records lie in a damaged part, the entries in it are lost, and the next header is looked for:
//!
//! 1. Only a block at a multiple of 512 bytes with a fitting checksum, the mark `ustar` and a known kind is a candidate, and only
//!    if its name begins with `./` where that of the first entry below the root does.
//! 2. From a candidate, headers are followed to the end of the archive, without reading data. If an end mark comes before that,
//!    it was a tar within the tar, all of which is skipped; if something else comes before [`CONVINCING`] headers, it was no
//!    header.
//! 3. The first entry behind may lack the records before its header. It is restored, with a finding, unless its name may have
//!    been cut, its size does not lead to another header, or it is a sparse file.
//!
//! Following headers costs a second read of all headers behind, once for each damaged part with headers in it.
//!
//! A limit remains: a tar within the tar that lacks its end mark, and that begins in the damaged part, can be taken for a part of
//! the outer one. Its entries are restored then, below the target as all others.

use std::io;

use larder::tree::{Problem, TreeFinding};

use super::header::{Header, Parts, more_parts};
use super::records::{Records, decimal};
use super::source::{BLOCK_BYTES, ReadError, Source, Stream, lost, padded};
use crate::cli::findings::Findings;

/// The most bytes of records or a name.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Number of consecutive headers that cannot be a coincidence.
const CONVINCING: usize = 16;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// An entry and everything that is said of it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where its data begins in the archive.
    pub(crate) data_at: u64,
    /// Size in bytes.
    pub(crate) data_bytes: u64,
    pub(crate) header: Header,
    pub(crate) link: Vec<u8>,
    /// As the archive has it.
    pub(crate) path: Vec<u8>,
    pub(crate) records: Records,
    /// Of a sparse file.
    pub(crate) sparse: Option<Sparse>,
}

#[derive(Debug)]
pub(crate) struct Sparse {
    /// Offset in the file and length of what is in the archive, ascending.
    pub(crate) parts: Parts,
    /// The size of the file.
    pub(crate) size: u64,
}

/// Block at the position of a header.
enum Found {
    /// Nothing: the archive ends there, or within the block.
    End,
    Header(Box<Header>),
    Nonsense,
    Zeros,
}

/// Result of a run of headers.
enum Chain {
    /// To nonsense.
    Broken,
    /// To an end mark with something behind, which begins at this position.
    Inner(u64),
    Sound,
}

/// Records before a header that belong to it.
#[derive(Default)]
struct Prelude {
    /// Some of it is damaged.
    is_damaged: bool,
    link: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    records: Records,
    /// There was something.
    was_given: bool,
}

pub(crate) struct Entries<S> {
    findings: Findings,
    globals: Records,
    /// Something unknown lies before the next header.
    is_behind_gap: bool,
    last: Vec<u8>,
    next: u64,
    /// `true` if names begin with `./`, other than that of the root.
    style: Option<bool>,
    pub(crate) stream: Stream<S>,
}

impl<S: Source> Entries<S> {
    pub(crate) fn new(source: S, findings: Findings) -> Self {
        Self {
            findings,
            globals: Records::default(),
            is_behind_gap: false,
            last: b".".to_vec(),
            next: 0,
            style: None,
            stream: Stream::new(source),
        }
    }

    /// Returns the next entry, and reports lost ones.
    ///
    /// # Errors
    /// If this is no tar, or nothing more can be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut prelude = Prelude::default();
        loop {
            let at = self.next;
            let header = match self.look(at) {
                Ok(Found::Header(header)) => *header,
                Ok(Found::Zeros) => {
                    self.end(at)?;
                    return Ok(None);
                }
                Ok(Found::End) => {
                    let why = "the archive ends without its end mark; it may have been cut off";
                    self.lose(why);
                    return Ok(None);
                }
                Ok(Found::Nonsense) if at == 0 => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no tar archive"));
                }
                Ok(Found::Nonsense) => {
                    self.lose(&format!("there is no header at byte {at} of the archive"));
                    if !self.resume(at + BLOCK)? {
                        return Ok(None);
                    }
                    prelude = Prelude::default();
                    continue;
                }
                Err(ReadError::Damaged(range, error)) => {
                    self.lose(&lost(&(at.max(range.start)..range.end), &error));
                    if !self.resume(range.end)? {
                        return Ok(None);
                    }
                    prelude = Prelude::default();
                    continue;
                }
                Err(ReadError::Failed(error)) => return Err(error),
            };
            let size = header.size().unwrap_or(u64::MAX);
            let behind = (at + BLOCK).saturating_add(padded(size));
            match header.kind() {
                b'x' | b'X' | b'g' | b'L' | b'K' => {
                    self.next = behind;
                    self.read_prelude(&header, size, &mut prelude)?;
                }
                _ => {
                    if let Some(entry) = self.entry(at, header, std::mem::take(&mut prelude))? {
                        return Ok(Some(entry));
                    }
                }
            }
        }
    }

    /// Reads what belongs to the next header.
    fn read_prelude(&mut self, header: &Header, size: u64, prelude: &mut Prelude) -> io::Result<()> {
        prelude.was_given = true;
        let mut data = vec![0; usize::try_from(size.min(MAX_RECORD_BYTES)).unwrap_or(0)];
        let is_whole = size <= MAX_RECORD_BYTES
            && match self.stream.fill(&mut data) {
                Ok(filled) => filled == data.len(),
                Err(ReadError::Damaged(..)) => false,
                Err(ReadError::Failed(error)) => return Err(error),
            };
        let name = || Some(data.split(|byte| *byte == 0).next().unwrap_or_default().to_vec());
        match header.kind() {
            _ if !is_whole => prelude.is_damaged = true,
            b'L' => prelude.name = name(),
            b'K' => prelude.link = name(),
            b'g' => {
                if !self.globals.add(&data) {
                    self.lose("records for all entries behind make no sense");
                }
            }
            _ => prelude.is_damaged |= !prelude.records.add(&data),
        }
        Ok(())
    }

    /// An entry from its header; `None` with a finding if it has to be left out.
    fn entry(&mut self, at: u64, header: Header, prelude: Prelude) -> io::Result<Option<Entry>> {
        let records = prelude.records.with_defaults(&self.globals);
        let of_records = |key| records.get(key).map(<[u8]>::to_vec);
        let name = of_records("GNU.sparse.name").or(prelude.name).or_else(|| of_records("path"));
        let path = name.clone().unwrap_or_else(|| header.name());
        let link = prelude.link.or_else(|| of_records("linkpath")).unwrap_or_else(|| header.link().to_vec());
        let size = records.number("size").or(header.size());
        let is_cut = name.is_none() && header.may_be_cut();
        let is_behind_gap = std::mem::take(&mut self.is_behind_gap);
        if path != b"." && path != b"./" {
            self.style.get_or_insert(path.starts_with(b"./"));
        }
        self.last.clone_from(&path);
        let mut data_at = at + BLOCK;
        let finding = |problem| TreeFinding::new(path.clone(), problem);
        let Some(size) = size else {
            self.findings.add(finding(Problem::Unsupported).because("its size makes no sense"));
            self.next = data_at;
            return Ok(None);
        };
        let mut sparse = Ok(None);
        if header.kind() == b'S' && header.is_gnu() {
            sparse = self.old_sparse(&header, &mut data_at).map(Some);
        }
        self.next = data_at.saturating_add(padded(size));
        if (b'1'..=b'6').contains(&header.kind()) && size > 0 && !self.has_data(data_at, prelude.was_given) {
            self.next = data_at;
        }
        let mut data_bytes = self.next.min(data_at.saturating_add(size)) - data_at;
        if matches!(header.kind(), 0 | b'0' | b'7') {
            sparse = self.pax_sparse(&records, (&mut data_at, &mut data_bytes));
        }
        if prelude.is_damaged {
            let why = "its name, size and other records lie in a damaged part of the archive";
            self.findings.add(finding(Problem::Damaged).because(why));
            return Ok(None);
        }
        let sparse = match sparse {
            Ok(sparse) => sparse,
            Err(ReadError::Failed(error)) => return Err(error),
            Err(ReadError::Damaged(range, error)) => {
                let why = lost(&range, &error);
                self.findings.add(finding(Problem::Damaged).because(why));
                return Ok(None);
            }
        };
        if is_behind_gap && (is_cut || !prelude.was_given && !self.is_credible(&path)?) {
            let why = "its size or name may be in records that lie in the damaged part before it";
            self.findings.add(finding(Problem::Damaged).because(why));
            return Ok(None);
        }
        if is_behind_gap && !prelude.was_given {
            self.findings.add(finding(Problem::Uncertain));
        }
        Ok(Some(Entry { data_at, data_bytes, header, link, path, records, sparse }))
    }

    /// Returns `true` if an entry that is not a file still has data: old programs write the size of a link's target.
    fn has_data(&mut self, data_at: u64, has_records: bool) -> bool {
        has_records || !matches!(self.look(data_at), Ok(Found::Header(_) | Found::Zeros | Found::End))
    }

    /// Returns `true` if an entry can be what its header says, although earlier records may be lost.
    fn is_credible(&mut self, path: &[u8]) -> io::Result<bool> {
        if path.split(|byte| *byte == b'/').any(|part| part.starts_with(b"GNUSparseFile.")) {
            return Ok(false);
        }
        match self.look(self.next) {
            Ok(found) => Ok(!matches!(found, Found::Nonsense)),
            Err(ReadError::Damaged(..)) => Ok(true),
            Err(ReadError::Failed(error)) => Err(error),
        }
    }

    /// The parts of a sparse file in the old format of GNU: in the header and in blocks behind it.
    fn old_sparse(&mut self, header: &Header, data_at: &mut u64) -> Result<Sparse, ReadError> {
        let nonsense = || damaged(0, "the parts of the sparse file make no sense");
        let (mut parts, mut has_more, size) = header.sparse().ok_or_else(nonsense)?;
        while has_more {
            self.stream.seek(*data_at).map_err(ReadError::Failed)?;
            *data_at += BLOCK;
            let mut block = [0; BLOCK_BYTES];
            self.stream.fill(&mut block)?;
            let (more, has_still_more) = more_parts(&block).ok_or_else(nonsense)?;
            parts.extend(more);
            has_more = has_still_more;
        }
        Ok(Sparse { parts, size })
    }

    /// The parts of a sparse file in one of the three pax formats of GNU.
    fn pax_sparse(
        &mut self,
        records: &Records,
        (data_at, data_bytes): (&mut u64, &mut u64),
    ) -> Result<Option<Sparse>, ReadError> {
        let nonsense = || damaged(0, "the parts of the sparse file make no sense");
        let size = records.number("GNU.sparse.realsize").or_else(|| records.number("GNU.sparse.size"));
        let Some(size) = size else { return Ok(None) };
        let parts = if records.number("GNU.sparse.major") == Some(1) {
            self.stream.seek(*data_at).map_err(ReadError::Failed)?;
            let end = *data_at + *data_bytes;
            let parts = self.listed_parts(end)?.ok_or_else(nonsense)?;
            let data = padded(self.stream.position() - *data_at) + *data_at;
            *data_bytes = end.checked_sub(data).ok_or_else(nonsense)?;
            *data_at = data;
            parts
        } else if let Some(map) = records.get("GNU.sparse.map") {
            let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(decimal).collect();
            let numbers = numbers.filter(|numbers| numbers.len().is_multiple_of(2)).ok_or_else(nonsense)?;
            numbers.chunks_exact(2).map(|part| (part[0], part[1])).collect()
        } else {
            records.sparse.clone()
        };
        Ok(Some(Sparse { parts, size }))
    }

    /// The list of parts at the begin of the data (GNU format 1.0): their number, then offset and length of each, a line each.
    fn listed_parts(&mut self, end: u64) -> Result<Option<Parts>, ReadError> {
        let Some(count) = self.line(end)? else { return Ok(None) };
        let mut parts = Vec::new();
        for _ in 0..count {
            match (self.line(end)?, self.line(end)?) {
                (Some(offset), Some(length)) => parts.push((offset, length)),
                _ => return Ok(None),
            }
        }
        Ok(Some(parts))
    }

    fn line(&mut self, end: u64) -> Result<Option<u64>, ReadError> {
        let mut digits = Vec::new();
        while digits.len() < 20 && self.stream.position() < end {
            let mut byte = [0];
            if self.stream.fill(&mut byte)? == 0 || byte == *b"\n" {
                break;
            }
            digits.push(byte[0]);
        }
        Ok(decimal(&digits))
    }

    fn lose(&mut self, why: &str) {
        self.findings.add(TreeFinding::new(self.last.clone(), Problem::EntriesLost).because(why));
    }

    fn look(&mut self, at: u64) -> Result<Found, ReadError> {
        self.stream.seek(at).map_err(ReadError::Failed)?;
        let mut block = [0; BLOCK_BYTES];
        if self.stream.fill(&mut block)? < BLOCK_BYTES {
            return Ok(Found::End);
        }
        if block == [0; BLOCK_BYTES] {
            return Ok(Found::Zeros);
        }
        Ok(Header::parse(&block).map_or(Found::Nonsense, |header| Found::Header(Box::new(header))))
    }

    /// Reports what lies behind the end mark that begins at a position.
    fn end(&mut self, at: u64) -> io::Result<()> {
        match self.zeros_from(at)? {
            None => {}
            Some(Ok(behind)) => {
                self.lose(&format!("there is more behind the end mark, at byte {behind}; left out"));
            }
            Some(Err(text)) => self.lose(&text),
        }
        Ok(())
    }

    /// `None` if there are only zeros to the end of the archive; else where something else is, or what is damaged.
    fn zeros_from(&mut self, at: u64) -> io::Result<Option<Result<u64, String>>> {
        self.stream.seek(at)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let position = self.stream.position();
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => {
                    if let Some(found) = buffer[..read].iter().position(|byte| *byte != 0) {
                        return Ok(Some(Ok(position + found as u64)));
                    }
                }
                Err(ReadError::Damaged(range, error)) => {
                    let text = lost(&range, &error);
                    return Ok(Some(Err(text)));
                }
                Err(ReadError::Failed(error)) => return Err(error),
            }
        }
    }

    /// Looks for the next header from a position on; `false` if there is none.
    fn resume(&mut self, from: u64) -> io::Result<bool> {
        let mut at = padded(from);
        loop {
            match self.look(at) {
                Ok(Found::End) => return Ok(false),
                Ok(Found::Header(header)) if header.is_plausible() => match self.follow(at)? {
                    Chain::Broken => at += BLOCK,
                    Chain::Inner(behind) => at = behind / BLOCK * BLOCK,
                    Chain::Sound => {
                        (self.next, self.is_behind_gap) = (at, true);
                        return Ok(true);
                    }
                },
                Ok(_) => at += BLOCK,
                Err(ReadError::Damaged(range, error)) => {
                    self.lose(&lost(&range, &error));
                    at = padded(range.end.max(at + 1));
                }
                Err(ReadError::Failed(error)) => return Err(error),
            }
        }
    }

    /// Follows headers from a position to the end of the archive.
    fn follow(&mut self, from: u64) -> io::Result<Chain> {
        let (mut at, mut headers, mut has_entry) = (from, 0, false);
        let mut records = Records::default();
        loop {
            let header = match self.look(at) {
                Ok(Found::Header(header)) => header,
                Ok(Found::Nonsense) if headers < CONVINCING => return Ok(Chain::Broken),
                // There is no telling what is behind.
                Ok(Found::End | Found::Nonsense) | Err(ReadError::Damaged(..)) => return Ok(Chain::Sound),
                Ok(Found::Zeros) => {
                    return Ok(match self.zeros_from(at)? {
                        Some(Ok(behind)) => Chain::Inner(behind),
                        None | Some(Err(_)) => Chain::Sound,
                    });
                }
                Err(ReadError::Failed(error)) => return Err(error),
            };
            headers += 1;
            let mut data_at = at + BLOCK;
            let size = header.size().unwrap_or(0);
            if matches!(header.kind(), b'x' | b'X') && size <= MAX_RECORD_BYTES {
                let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
                match self.stream.fill(&mut data) {
                    Ok(_) => records.add(&data),
                    Err(ReadError::Damaged(..)) => return Ok(Chain::Sound),
                    Err(ReadError::Failed(error)) => return Err(error),
                };
                at = data_at.saturating_add(padded(size));
                continue;
            }
            let size = records.number("size").unwrap_or(size);
            if header.kind() == b'S' && header.is_gnu() {
                match self.old_sparse(&header, &mut data_at) {
                    Ok(_) => {}
                    Err(ReadError::Damaged(..)) => return Ok(Chain::Sound),
                    Err(ReadError::Failed(error)) => return Err(error),
                }
            }
            let is_about_others = matches!(header.kind(), b'g' | b'L' | b'K');
            if !is_about_others && !std::mem::replace(&mut has_entry, true) && self.style == Some(true) {
                let name = records.get("path").map_or_else(|| header.name(), <[u8]>::to_vec);
                if !name.starts_with(b"./") {
                    return Ok(Chain::Broken);
                }
            }
            let has_records = records.iter().next().is_some();
            records = Records::default();
            let is_no_file = (b'1'..=b'6').contains(&header.kind()) && size > 0;
            at = if is_no_file && !self.has_data(data_at, has_records) {
                data_at
            } else {
                data_at.saturating_add(padded(size))
            };
        }
    }
}

/// A part that makes no sense counts as damaged.
fn damaged(at: u64, why: &str) -> ReadError {
    ReadError::Damaged(at..at, io::Error::new(io::ErrorKind::InvalidData, why))
}

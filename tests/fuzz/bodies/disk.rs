//! Files of local disks: local state, journals and attributes.

use std::io::Write as _;
use std::path::Path;

use larder::internal::parsers::{self, PresenceRecords};

/// Lists that are read have the same entries when they are written and read again.
pub(super) fn acl(input: &[u8]) {
    let (access, default) = input.split_at(input.len() / 2);
    for (access, default) in [(access, default), (default, access), (input, input)] {
        let Ok(written) = parsers::rewritten_acl(access, default) else { continue };
        if written.iter().all(|list| !list.is_empty()) {
            let again = parsers::rewritten_acl(&written[0], &written[1]).expect("what was written is read");
            assert_eq!(again, written);
        }
    }
}

/// A file of the cache is a chunk with its trailer, or damaged. Its checksum is put right.
pub(super) fn cache_entry(input: &[u8]) {
    let stored = &input[..input.len().saturating_sub(16)];
    let mut sealed = input.to_vec();
    if let Some(crc) = sealed.last_chunk_mut::<4>() {
        *crc = crc32fast::hash(stored).to_le_bytes();
    }
    for entry in [input, &sealed] {
        let mut file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).expect("a file");
        file.write_all(entry).expect("room in the file");
        std::io::Seek::rewind(&mut file).expect("a file");
        if let Some(chunk) = parsers::cached_chunk(&file).expect("a file") {
            assert_eq!(chunk, stored);
        }
    }
}

/// The lines of a journal name indexes below the store, or orphans there.
pub(super) fn journal(input: &[u8]) {
    let Ok(paths) = parsers::moves(input, Path::new("/dev/shm")) else { return };
    for path in paths {
        assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path:?}");
        assert!(path.ends_with(".fidx") || path.ends_with(".didx"), "{path:?}");
    }
}

/// A copy of metadata is its body behind its head, or damaged. Its checksum is put right.
pub(super) fn metadata_copy(input: &[u8]) {
    let body = input.get(12..).unwrap_or_default();
    let mut sealed = input.to_vec();
    if let Some(crc) = sealed.get_mut(8..12) {
        crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    }
    for copy in [input, &sealed] {
        if let Some(read) = parsers::copied_metadata(copy) {
            assert_eq!(read, body);
        }
    }
}

/// Whatever the files of the records contain: what is recorded is found or lost, and what is forgotten stays forgotten, also when they are opened
/// again. The checksums of records are put right.
pub(super) fn presence(input: &[u8]) {
    let Some((cut, files)) = input.split_first() else { return };
    let (log, segment) = files.split_at(files.len() * usize::from(*cut) / 256);
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    for (round, (log, segment)) in
        [(log.to_vec(), segment.to_vec()), (with_record_crcs(log), with_segment_crcs(segment))]
            .into_iter()
            .enumerate()
    {
        let place = directory.path().join(round.to_string());
        let records = PresenceRecords::open(&place, &log, &segment).expect("a disk");
        let known: [u8; 32] = std::array::from_fn(|at| files.get(at).copied().unwrap_or_default());
        let in_segment = std::array::from_fn(|at| segment.get(at).copied().unwrap_or_default());
        let _ = (records.get(known), records.get(in_segment), records.get([9; 32]));
        records.forget(known).expect("a disk");
        assert_eq!(records.get(known), None);
        for other in 0..6 {
            records.set([other; 32], 7 + u32::from(other)).expect("a disk");
            // A merge that meets damage drops everything, the new record too.
            assert!(records.get([other; 32]).is_none_or(|length| length == 7 + u32::from(other)));
        }
        records.forget(in_segment).expect("a disk");
        drop(records);
        let records = PresenceRecords::reopen(&place).expect("a disk");
        assert_eq!(records.get(in_segment), None);
        if known.iter().any(|byte| *byte > 5) {
            assert_eq!(records.get(known), None);
        }
    }
}

fn with_record_crcs(records: &[u8]) -> Vec<u8> {
    let mut records = records.to_vec();
    for record in records.chunks_exact_mut(40) {
        let crc = crc32fast::hash(&record[..36]);
        record[36..].copy_from_slice(&crc.to_le_bytes());
    }
    records
}

/// Records with the end of a segment behind them.
fn with_segment_crcs(records: &[u8]) -> Vec<u8> {
    let (records, _) = records.split_at(records.len() / 40 * 40);
    let fences: Vec<u8> = records.chunks(40 * 256).flat_map(|block| &block[..8]).copied().collect();
    let mut segment = with_record_crcs(records);
    segment.extend(&fences);
    segment.extend((records.len() as u64 / 40).to_le_bytes());
    segment.extend(u64::from(crc32fast::hash(&fences)).to_le_bytes());
    segment
}

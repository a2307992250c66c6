//! Parsers of bytes from outside that lie behind other modules, for the fuzz targets. What an encoder exists for is read and written again.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;

use crate::base64;
use crate::calendar::parse_rfc3339;
#[cfg(feature = "s3")]
use crate::error::Result;
use crate::format::Digest;
use crate::format::blob::{Blob, BlobDecoder};
use crate::format::larder::gc_candidates::GcCandidates;
#[cfg(feature = "s3")]
use crate::format::larder::lease_record::Record;
use crate::format::larder::store_record::StoreRecord;
use crate::format::name::BackupTime;
use crate::format::upid::Upid;
use crate::local::cache::file;
use crate::local::mirror;
use crate::local::presence::PresenceStore;
use crate::pxar::Acl;
use crate::tree::disk::metadata::acl;

/// The plaintext of a blob, decoded in parts.
pub fn decoded_in_parts(blob: &Blob, limit: usize) -> Option<Vec<u8>> {
    let mut plaintext = Vec::new();
    let decoded =
        BlobDecoder::new().decode_parts(blob, None, limit, |part| plaintext.extend_from_slice(part));
    decoded.ok().map(|_| plaintext)
}

/// The list of GC candidates; `None` for an empty one.
pub fn rewritten_gc_candidates(list: &[u8], epoch: u64) -> Option<Bytes> {
    let list = GcCandidates::parse(list);
    (!list.is_empty()).then(|| list.encode(epoch))
}

/// The lease of a store in a bucket.
#[cfg(feature = "s3")]
pub fn rewritten_lease(json: &[u8]) -> Option<Vec<u8>> {
    Record::parse(json).ok()?.encode().ok()
}

/// The identity of a store.
pub fn rewritten_store_record(json: &[u8]) -> Option<Vec<u8>> {
    let record = StoreRecord::parse(json).ok()?;
    let _ = (record.pack_bytes(), record.write_blocker(), record.is_being_destroyed());
    record.encode().ok()
}

/// A task id of PBS.
pub fn rewritten_upid(text: &str) -> Option<String> {
    let upid: Upid = text.parse().ok()?;
    assert!((0..=i64::from(u32::MAX)).contains(&upid.start_epoch()));
    Some(upid.to_string())
}

/// The time of a snapshot, as its number and back. RFC 3339 has more forms of the same time.
pub fn rewritten_time(text: &str) -> Option<String> {
    let time = parse_rfc3339(text)?;
    let parsed: BackupTime = text.parse().ok()?;
    assert_eq!(time, SystemTime::from(parsed), "the two parsers agree");
    Some(parsed.to_string())
}

/// Decodes base64.
pub fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    base64::decode(text).map(|bytes| bytes.to_vec())
}

/// Encodes base64.
pub fn base64_encoded(bytes: &[u8]) -> String {
    base64::encode(bytes)
}

/// The access and the default list of an access control list of the system, written again by the format of archives; empty if absent.
///
/// # Errors
/// For a malformed list.
pub fn rewritten_acl(access: &[u8], default: &[u8]) -> io::Result<[Vec<u8>; 2]> {
    let mut list = Acl::default();
    acl::add_access(access, &mut list)?;
    acl::add_default(default, &mut list)?;
    let inherited = list.inherited.as_deref().map(acl::default);
    Ok([acl::access(&list, 0o640), inherited].map(Option::unwrap_or_default))
}

/// The chunk in a file of the cache, and the trailer that it should have.
///
/// # Errors
/// If the file cannot be read.
pub fn cached_chunk(entry: &File) -> io::Result<Option<Bytes>> {
    file::read(entry, file::blocks(entry.metadata()?.len()))
}

/// The body of a copy of metadata.
pub fn copied_metadata(copy: &[u8]) -> Option<Bytes> {
    mirror::checked(&Bytes::copy_from_slice(copy))
}

/// Presence records in a directory.
#[derive(Debug)]
pub struct PresenceRecords(PresenceStore);

impl PresenceRecords {
    /// Opens records of a log and of one segment, whatever they contain. At four records, the log becomes a segment.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn open(directory: &Path, log: &[u8], segment: &[u8]) -> io::Result<Self> {
        let current = "stamp\nsegment-0";
        let crc = crc32fast::hash(current.as_bytes());
        fs::create_dir_all(directory)?;
        fs::write(directory.join("current"), format!("{current}\n{crc:08x}\n"))?;
        fs::write(directory.join("segment-0"), segment)?;
        fs::write(directory.join("log"), log)?;
        Self::reopen(directory)
    }

    /// Opens the records as they are.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn reopen(directory: &Path) -> io::Result<Self> {
        PresenceStore::open_merging_at(directory, None, "stamp", 4).map(Self)
    }

    /// The recorded length of a chunk.
    pub fn get(&self, digest: [u8; 32]) -> Option<u32> {
        self.0.get(&Digest::from_bytes(digest))
    }

    /// Records the length of a chunk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn set(&self, digest: [u8; 32], length: u32) -> io::Result<()> {
        self.0.set(Digest::from_bytes(digest), length)
    }

    /// Forgets a chunk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn forget(&self, digest: [u8; 32]) -> io::Result<()> {
        self.0.forget_all(&[Digest::from_bytes(digest)])
    }
}

/// Numbers of indexes and of orphans that the lines of a move journal name in the store with this root.
///
/// # Errors
/// For the path of an index that is not UTF-8.
pub fn moves(lines: &[u8], root: &Path) -> io::Result<Vec<String>> {
    let moves = crate::backend::fs::journal::moves_of(lines, root.to_owned())?;
    let orphans = moves.orphans.iter().map(|orphan| orphan.path.clone());
    Ok(moves.keys.iter().map(ToString::to_string).chain(orphans).collect())
}

/// Credentials in the answer of a metadata service.
///
/// # Errors
/// As the parser.
#[cfg(feature = "s3")]
pub fn credentials(answer: &[u8]) -> Result<crate::s3::Credentials> {
    crate::s3::credentials::document::parse_credentials(answer)
}

/// Plans the way to the credentials of the profile `default`, by the files of profiles; `None` without the profile.
///
/// # Errors
/// As the parsers.
#[cfg(feature = "s3")]
pub fn profile_plan(config: &str, credentials: &str) -> Option<Result<()>> {
    use crate::s3::credentials::profile::files::{Kind, Profiles};
    use crate::s3::credentials::profile::plan::Plan;
    let mut profiles = Profiles::default();
    profiles.add(Kind::Config, config).ok()?;
    profiles.add(Kind::Credentials, credentials).ok()?;
    profiles.has("default").then(|| Plan::new(&profiles, "default").map(drop))
}

/// First byte, end and size of the whole object by a `content-range`.
#[cfg(feature = "s3")]
pub fn content_range(text: &str) -> Option<[u64; 3]> {
    crate::s3::object::parse_content_range(text).map(|(first, end, size)| [first, end, size])
}

//! The one mapping between typed [`Key`]s and paths below the root of a store.
//!
//! ```text
//! .chunks/bb9f/bb9f8df6…            Key::Chunk
//! .chunks/bb9f/bb9f8df6….0.bad      Key::Quarantined
//! .gc-status                        Key::GcStatus
//! .in-use                           Key::InUse
//! .larder/cnt/vm/100/owner          Key::Enclosed, of Key::Owner
//! .larder/gc-sightings              Key::GcCandidates
//! .larder/index/3f…9a-0              Key::Segment
//! .larder/lease                     Key::Lease
//! .larder/packs/1c/3f…9a-0           Key::Pack
//! .larder/reserve-0                 Key::Reserve
//! .larder/store.json                Key::Store
//! .larder/suspects                  Key::Suspects
//! ns/a/.namespace                   Key::Namespace
//! ns/a/vm/100/owner                 Key::Owner
//! ns/a/vm/100/notes                 Key::GroupNotes
//! ns/a/vm/100/2025-07-14T14:20:02Z/index.json.blob     Key::Manifest
//! ns/a/vm/100/2025-07-14T14:20:02Z/disk.img.fidx       Key::Archive
//! ns/a/vm/100/2025-07-14T14:20:02Z/client.log.blob     Key::ClientLog
//! ns/a/vm/100/2025-07-14T14:20:02Z/.protected          Key::Protected
//! ```
//!
//! A path that the `Display` of a [`Key`] does not produce verbatim is *foreign*, and does not parse. Callers report
//! such an object, never delete it and never count it as evidence (H25, H30).
//!
//! Source: PBS datastore format, directory layout and object keys. `.larder/` is this crate's own; PBS skips it.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;
use crate::format::digest::Digest;
use crate::format::larder::pack::name::PACKS;
use crate::format::larder::segment::name::SEGMENTS;
use crate::format::name::{ArchiveKind, ArchiveName, BackupType, GroupName, Namespace, SnapshotName};
use crate::wording::text_as_json;

pub use crate::format::larder::pack::name::{PackName, SessionId};
pub use crate::format::larder::segment::name::SegmentName;

/// The name of an object in a store.
///
/// `Display` writes its path relative to the root of the store, without a leading `/`, and `FromStr` reads it. `Ord` is the byte order of
/// the paths, which is the order of every listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// An index or a blob of a snapshot.
    Archive(SnapshotName, ArchiveName),
    /// A chunk.
    Chunk(Digest),
    /// The client log of a snapshot; the manifest does not list it.
    ClientLog(SnapshotName),
    /// An object of a namespace, group or snapshot in a packed store, where PBS does not look for it.
    Enclosed(Box<Self>),
    /// The result of the last garbage collection.
    GcStatus,
    /// The notes of a group.
    GroupNotes(GroupName),
    /// The owner mark of a store in a bucket, as PBS writes it.
    InUse,
    /// The lease of a store in a bucket.
    Lease,
    /// The manifest of a snapshot. Its presence makes the snapshot a finished one.
    Manifest(SnapshotName),
    /// The marker of a namespace that exists even while it is empty; never the root. The object is empty.
    Namespace(Namespace),
    /// The owner of a group.
    Owner(GroupName),
    /// A pack: many chunks in one object.
    Pack(PackName),
    /// The marker of a snapshot that must not be deleted. The object is empty.
    Protected(SnapshotName),
    /// A quarantined chunk that was found corrupt, numbered 0 to 9.
    Quarantined(Digest, u8),
    /// The GC candidates: unreferenced chunks, and the time at which each was first seen so.
    GcCandidates,
    /// An object that is deleted to make room in a full bucket, numbered 0 and 1. Its content has no meaning.
    Reserve(u8),
    /// An index segment, which says where chunks are in packs.
    Segment(SegmentName),
    /// The identity of the store.
    Store,
    /// The suspects: chunks that were found missing or corrupt, and not good since.
    Suspects,
}

impl Key {
    /// Number of objects of the [reserve](Key::Reserve).
    pub(crate) const RESERVES: u8 = 2;

    /// The path of the object relative to the root of the store, without a leading `/`.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Archive(snapshot, name) => format!("{snapshot}/{name}"),
            Self::Chunk(digest) => chunk_path(digest),
            Self::ClientLog(snapshot) => format!("{snapshot}/{CLIENT_LOG}"),
            Self::Enclosed(key) => format!("{ENCLOSURE}{}", key.path()),
            Self::GcStatus => GC_STATUS.to_owned(),
            Self::GroupNotes(group) => format!("{group}/{NOTES}"),
            Self::InUse => IN_USE.to_owned(),
            Self::Lease => LEASE.to_owned(),
            Self::Manifest(snapshot) => format!("{snapshot}/{MANIFEST}"),
            Self::Namespace(namespace) => format!("{}{NAMESPACE}", namespace_path(namespace)),
            Self::Owner(group) => format!("{group}/{OWNER}"),
            Self::Pack(name) => name.path(),
            Self::Protected(snapshot) => format!("{snapshot}/{PROTECTED}"),
            Self::Quarantined(digest, number) => format!("{}.{number}.bad", chunk_path(digest)),
            Self::Reserve(number) => format!("{RESERVE}{number}"),
            Self::Segment(name) => name.path(),
            Self::GcCandidates => SIGHTINGS.to_owned(),
            Self::Store => STORE.to_owned(),
            Self::Suspects => SUSPECTS.to_owned(),
        }
    }

    /// The key with this [`path`](Key::path), or `None` for a foreign object.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        if let Some(chunk) = parse_chunk(path) {
            return Some(chunk);
        }
        let key = Self::parse_loosely(path)?;
        // INVARIANT: `parse` and `path` are inverse to each other, whatever the parsers of names accept.
        (key.path() == path).then_some(key)
    }

    fn parse_loosely(path: &str) -> Option<Self> {
        match path {
            GC_STATUS => return Some(Self::GcStatus),
            IN_USE => return Some(Self::InUse),
            LEASE => return Some(Self::Lease),
            SIGHTINGS => return Some(Self::GcCandidates),
            STORE => return Some(Self::Store),
            SUSPECTS => return Some(Self::Suspects),
            _ => {}
        }
        if let Some(number) = path.strip_prefix(RESERVE) {
            return number.parse().ok().filter(|number| *number < Self::RESERVES).map(Self::Reserve);
        }
        if let Some(name) = PackName::from_path(path) {
            return Some(Self::Pack(name));
        }
        if let Some(name) = SegmentName::from_path(path) {
            return Some(Self::Segment(name));
        }
        if let Some(enclosed) = path.strip_prefix(ENCLOSURE) {
            let key = Self::parse_loosely(enclosed).filter(Self::is_content)?;
            return Some(Self::Enclosed(Box::new(key)));
        }
        let (parent, file) = path.rsplit_once('/')?;
        if parent.starts_with(".chunks/") {
            return match file.split_once('.') {
                None => Some(Self::Chunk(file.parse().ok()?)),
                Some((digest, number)) => {
                    let number = number.strip_suffix(".bad")?;
                    let is_digit = number.len() == 1 && number.as_bytes()[0].is_ascii_digit();
                    is_digit.then_some(Self::Quarantined(digest.parse().ok()?, number.parse().ok()?))
                }
            };
        }
        match file {
            NAMESPACE => {
                let namespace = parse_namespace(parent)?;
                (!namespace.is_root()).then_some(Self::Namespace(namespace))
            }
            OWNER => Some(Self::Owner(parent.parse().ok()?)),
            NOTES => Some(Self::GroupNotes(parent.parse().ok()?)),
            MANIFEST => Some(Self::Manifest(parent.parse().ok()?)),
            CLIENT_LOG => Some(Self::ClientLog(parent.parse().ok()?)),
            PROTECTED => Some(Self::Protected(parent.parse().ok()?)),
            _ => Some(Self::Archive(parent.parse().ok()?, file.parse().ok()?)),
        }
    }

    /// The key without its [enclosure](Key::Enclosed).
    pub(crate) fn exposed(&self) -> &Self {
        if let Self::Enclosed(key) = self { key } else { self }
    }

    /// Returns `true` for an index: an archive that is no blob.
    pub(crate) fn is_index(&self) -> bool {
        matches!(self, Self::Archive(_, name) if name.kind() != ArchiveKind::Blob)
    }

    /// The prefix of everything in the namespace that this key marks, the marker too; `None` for the key of anything else.
    ///
    /// A backend that deletes the marker of a namespace looks there for any other object.
    pub fn marked_namespace(&self) -> Option<Prefix> {
        match self {
            Self::Namespace(namespace) => Some(Prefix::Namespace(namespace.clone())),
            Self::Enclosed(key) => key.marked_namespace().map(|prefix| Prefix::Enclosed(Box::new(prefix))),
            _ => None,
        }
    }

    /// Returns `true` if the object belongs to a namespace, group or snapshot, rather than to the store as a whole, and has its place
    /// in the layout of PBS.
    pub(crate) fn is_content(&self) -> bool {
        let is_of_the_store = matches!(
            self,
            Self::Enclosed(_)
                | Self::GcStatus
                | Self::InUse
                | Self::Lease
                | Self::Pack(_)
                | Self::Reserve(_)
                | Self::Segment(_)
                | Self::GcCandidates
                | Self::Store
                | Self::Suspects
        );
        !is_of_the_store && !matches!(self, Self::Chunk(_) | Self::Quarantined(..))
    }
}

impl FromStr for Key {
    type Err = ParseError;

    /// Errors for the path of a foreign object.
    fn from_str(path: &str) -> Result<Self, ParseError> {
        Self::parse(path).ok_or_else(|| ParseError::new("not the path of an object in a store"))
    }
}

text_as_json!(Key, PackName, Prefix, SegmentName, SessionId);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Self::Chunk(a), Self::Chunk(b)) => a.cmp(b),
            _ => self.path().cmp(&other.path()),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A set of objects with a common path prefix that ends in `/`.
///
/// `Display` writes the prefix relative to the root of the store, empty for the root namespace, and `FromStr` reads it.
/// No constructor takes a raw string, so `vm/10` never selects `vm/100`.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// All chunks, including quarantined ones.
    Chunks,
    /// A set of objects of namespaces, groups or snapshots in a packed store.
    Enclosed(Box<Self>),
    /// Everything of a group.
    Group(GroupName),
    /// All groups of one type in a namespace, without those of deeper namespaces.
    Groups(Namespace, BackupType),
    /// Everything in a namespace and below it. For the root: all namespaces, groups and snapshots of the store.
    Namespace(Namespace),
    /// Everything in the namespaces below this one, without the namespace itself.
    Namespaces(Namespace),
    /// All packs.
    Packs,
    /// The packs whose names have a hash that begins with this byte. A directory of its own.
    PacksOf(u8),
    /// All index segments.
    Segments,
    /// Everything of a snapshot.
    Snapshot(SnapshotName),
}

impl Prefix {
    /// The path relative to the root of the store: it ends in `/`, or is empty for the root namespace.
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Chunks => ".chunks/".to_owned(),
            Self::Enclosed(prefix) => format!("{ENCLOSURE}{}", prefix.path()),
            Self::Group(group) => format!("{group}/"),
            Self::Groups(namespace, backup_type) => format!("{}{backup_type}/", namespace_path(namespace)),
            Self::Namespace(namespace) => namespace_path(namespace),
            Self::Namespaces(namespace) => format!("{}ns/", namespace_path(namespace)),
            Self::Packs => PACKS.to_owned(),
            Self::PacksOf(shard) => format!("{PACKS}{shard:02x}/"),
            Self::Segments => SEGMENTS.to_owned(),
            Self::Snapshot(snapshot) => format!("{snapshot}/"),
        }
    }

    /// The prefix with this [`path`](Prefix::path), or `None`.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let prefix = Self::parse_loosely(path)?;
        // INVARIANT: `parse` and `path` are inverse to each other, whatever the parsers of names accept.
        (prefix.path() == path).then_some(prefix)
    }

    fn parse_loosely(path: &str) -> Option<Self> {
        if path == ".chunks/" {
            return Some(Self::Chunks);
        }
        if path.is_empty() {
            return Some(Self::Namespace(Namespace::root()));
        }
        match path {
            PACKS => return Some(Self::Packs),
            SEGMENTS => return Some(Self::Segments),
            _ => {}
        }
        if let Some(shard) = path.strip_prefix(PACKS) {
            return u8::from_str_radix(shard.strip_suffix('/')?, 16).ok().map(Self::PacksOf);
        }
        if let Some(enclosed) = path.strip_prefix(ENCLOSURE) {
            let prefix = Self::parse_loosely(enclosed).filter(Self::is_of_content)?;
            return Some(Self::Enclosed(Box::new(prefix)));
        }
        let path = path.strip_suffix('/')?;
        if let Ok(snapshot) = SnapshotName::from_str(path) {
            return Some(Self::Snapshot(snapshot));
        }
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        // The order matters: a namespace may be called `vm`, and then its path ends in `ns/vm`.
        if let Some(namespace) = parse_namespace(path) {
            return Some(Self::Namespace(namespace));
        }
        if let Some(namespace) = parse_namespace(parent) {
            if last == "ns" {
                return Some(Self::Namespaces(namespace));
            }
            return Some(Self::Groups(namespace, last.parse().ok()?));
        }
        Some(Self::Group(path.parse().ok()?))
    }

    /// Returns `true` for a set of objects of namespaces, groups and snapshots in the layout of PBS.
    pub(crate) fn is_of_content(&self) -> bool {
        !matches!(self, Self::Chunks | Self::Enclosed(_) | Self::Packs | Self::PacksOf(_) | Self::Segments)
    }

    /// Returns `true` if the key belongs to this set.
    pub fn contains(&self, key: &Key) -> bool {
        match self {
            Self::Namespace(namespace) if namespace.is_root() => key.is_content(),
            Self::Enclosed(prefix) => match key {
                Key::Enclosed(key) => prefix.contains(key),
                _ => false,
            },
            // Listings ask this for each chunk.
            Self::Chunks => matches!(key, Key::Chunk(_) | Key::Quarantined(..)),
            _ => key.path().starts_with(&self.path()),
        }
    }
}

impl FromStr for Prefix {
    type Err = ParseError;

    fn from_str(path: &str) -> Result<Self, ParseError> {
        Self::parse(path).ok_or_else(|| ParseError::new("not the path of a set of objects in a store"))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// Path of everything in a namespace: its directory and a `/`; empty for the root.
fn namespace_path(namespace: &Namespace) -> String {
    let directory = namespace.directory();
    if directory.is_empty() { directory } else { directory + "/" }
}

fn parse_namespace(path: &str) -> Option<Namespace> {
    let mut namespace = Namespace::root();
    if path.is_empty() {
        return Some(namespace);
    }
    let mut parts = path.split('/');
    while let Some(part) = parts.next() {
        if part != "ns" {
            return None;
        }
        namespace = namespace.child(parts.next()?).ok()?;
    }
    Some(namespace)
}

fn chunk_path(digest: &Digest) -> String {
    let name = digest.to_string();
    let mut path = String::with_capacity(CHUNKS.len() + 5 + name.len());
    path.push_str(CHUNKS);
    path.push_str(&name[..4]);
    path.push('/');
    path.push_str(&name);
    path
}

/// The key of a chunk, the most frequent kind in listings. `None` if it is another kind.
fn parse_chunk(path: &str) -> Option<Key> {
    let (directory, name) = path.strip_prefix(CHUNKS)?.split_once('/')?;
    let digest = name.parse().ok()?;
    (directory.len() == 4 && name.starts_with(directory)).then_some(Key::Chunk(digest))
}

const CHUNKS: &str = ".chunks/";

/// Path below which a packed store has its namespaces, groups and snapshots.
pub(crate) const ENCLOSURE: &str = ".larder/cnt/";

const CLIENT_LOG: &str = "client.log.blob";
const GC_STATUS: &str = ".gc-status";
const IN_USE: &str = ".in-use";
const LEASE: &str = ".larder/lease";
const MANIFEST: &str = "index.json.blob";
const NAMESPACE: &str = ".namespace";
const NOTES: &str = "notes";
const OWNER: &str = "owner";
const PROTECTED: &str = ".protected";
const RESERVE: &str = ".larder/reserve-";
const SIGHTINGS: &str = ".larder/gc-sightings";
const STORE: &str = ".larder/store.json";
const SUSPECTS: &str = ".larder/suspects";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> Vec<Key> {
        let snapshot: SnapshotName = "ns/a/ns/b/vm/100/2025-07-14T14:20:02Z".parse().unwrap();
        let root: SnapshotName = "host/x.y/2025-07-14T14:20:02Z".parse().unwrap();
        let session = SessionId::from_bytes([7; 16]);
        let mut keys = vec![
            Key::Chunk(Digest::of(b"a")),
            Key::Pack(PackName { session, n: 0 }),
            Key::Segment(SegmentName { session, n: u32::MAX }),
            Key::Quarantined(Digest::of(b"a"), 9),
            Key::GcStatus,
            Key::InUse,
            Key::Lease,
            Key::Reserve(0),
            Key::Reserve(1),
            Key::GcCandidates,
            Key::Store,
            Key::Suspects,
            Key::Namespace(snapshot.namespace().clone()),
        ];
        for snapshot in [snapshot, root] {
            keys.push(Key::Owner(snapshot.group().clone()));
            keys.push(Key::GroupNotes(snapshot.group().clone()));
            keys.push(Key::Archive(snapshot.clone(), "disk.img.fidx".parse().unwrap()));
            keys.push(Key::Manifest(snapshot.clone()));
            keys.push(Key::ClientLog(snapshot.clone()));
            keys.push(Key::Protected(snapshot));
        }
        let enclosed: Vec<_> = keys.iter().filter(|key| key.is_content()).cloned().map(Box::new).collect();
        keys.extend(enclosed.into_iter().map(Key::Enclosed));
        keys
    }

    /// Proves H25.
    #[test]
    fn every_key_is_parsed_from_its_own_path() {
        for key in keys() {
            assert_eq!(Key::parse(&key.path()), Some(key));
        }
    }

    /// Proves H25.
    #[test]
    fn a_path_that_does_not_round_trip_is_foreign() {
        let digest = Digest::of(b"a").to_string();
        for path in [
            "",
            "/",
            "owner",
            "notes",
            ".namespace",
            "/.namespace",
            ".protected",
            "ns/a",
            "ns//.namespace",
            "vm/100",
            "vm/100/other",
            "vm/100/2025-07-14T14:20:02Z",
            "vm/100/2025-07-14T14:20:02Z/../x.blob",
            "vm//owner",
            "./vm/100/owner",
            "vm/100/2025-07-14T14:20:02/index.json.blob",
            ".larder/cnt/",
            ".larder/cnt/.gc-status",
            ".larder/cnt/.larder/cnt/vm/100/owner",
            ".larder/other",
            ".larder/reserve",
            ".larder/reserve-00",
            ".larder/reserve-2",
            &format!(".chunks/0000/{digest}"),
            &format!(".chunks/{}/{}", &digest[..4], digest.to_uppercase()),
            &format!(".chunks/{}/{digest}.10.bad", &digest[..4]),
            &format!(".chunks/{}/{digest}.+.bad", &digest[..4]),
            &format!(".chunks/{}/{digest}.0.bad/.0.bad", &digest[..4]),
            &format!(".chunks/{}/{digest}.tmp_AbCdEf", &digest[..4]),
            &format!(".chunks/{}/{digest}.using", &digest[..4]),
        ] {
            assert_eq!(Key::parse(path), None, "{path}");
        }
    }

    #[test]
    fn every_prefix_is_parsed_from_its_own_path() {
        let snapshot: SnapshotName = "ns/vm/ns/ns/vm/100/2025-07-14T14:20:02Z".parse().unwrap();
        for namespace in [Namespace::root(), snapshot.namespace().clone()] {
            let group = snapshot.group().clone().in_namespace(namespace.clone());
            for prefix in [
                Prefix::Chunks,
                Prefix::Snapshot(group.snapshot(snapshot.time())),
                Prefix::Group(group),
                Prefix::Groups(namespace.clone(), BackupType::Ct),
                Prefix::Namespaces(namespace.clone()),
                Prefix::Namespace(namespace),
            ] {
                assert_eq!(Prefix::parse(&prefix.path()), Some(prefix));
            }
        }
        for path in ["vm", "lost+found/", "vm/100/x/", "ns/a/b/", ".larder/", "..//"] {
            assert_eq!(Prefix::parse(path), None, "{path}");
        }
    }

    /// Proves H28.
    #[test]
    fn a_prefix_never_selects_a_longer_name() {
        let group: GroupName = "vm/10".parse().unwrap();
        for id in ["1", "100", "10.", "10-a"] {
            let other: GroupName = format!("vm/{id}").parse().unwrap();
            assert!(!Prefix::Group(group.clone()).contains(&Key::Owner(other)));
        }
        assert!(Prefix::Group(group.clone()).contains(&Key::Owner(group)));
        assert!(!Prefix::Namespace(Namespace::root()).contains(&Key::Chunk(Digest::of(b"a"))));
    }

    /// Proves H25.
    #[test]
    fn a_slash_alone_is_no_prefix() {
        assert_eq!(Prefix::parse("/"), None);
    }

    proptest! {
        /// Proves H25.
        #[test]
        fn no_string_makes_the_path_parser_panic_or_misread(path in "[a-z0-9./:TZ_-]{0,80}|\\PC{0,40}") {
            if let Some(key) = Key::parse(&path) {
                prop_assert_eq!(key.path(), path.clone());
            }
            if let Some(prefix) = Prefix::parse(&path) {
                prop_assert_eq!(prefix.path(), path);
            }
        }
    }
}

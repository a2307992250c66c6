//! Kinds of objects and directories, and one of each kind to damage.

use std::collections::BTreeSet;

use larder::format::Digest;
use larder::format::layout::Key;
use larder_testing::gc_scene::digest;

use crate::matrix::image::{Entry, Image};
use crate::matrix::scene::{Contents, Form, NO_SNAPSHOT, SNAPSHOTS, Scene, snapshot_of, stream};

/// Labels of snapshots.
pub(crate) type Labels = BTreeSet<&'static str>;

/// A kind of object, or of directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Blob,
    Chunk,
    ChunkOfTwoGroups,
    ChunkOfStream,
    Chunks,
    ChunksPrefix,
    ClientLog,
    DynamicIndex,
    Enclosure,
    FixedIndex,
    GcCandidates,
    GcStatus,
    Group,
    GroupNotes,
    GroupType,
    InUse,
    Larder,
    Lease,
    LockDirectory,
    LockFile,
    Manifest,
    Namespace,
    NamespaceMarker,
    Namespaces,
    Owner,
    Pack,
    PackOfGarbage,
    PackPrefix,
    Packs,
    Protected,
    Quarantined,
    Reserve,
    Segment,
    Segments,
    Snapshot,
    Store,
    StoreLock,
    Suspects,
}

/// What is damaged.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Path in the image; that of a directory ends in `/`.
    pub(crate) path: String,
    /// Another good one of the kind.
    pub(crate) partner: Option<String>,
    /// A path for another one of the kind, at which nothing is.
    pub(crate) spare: Option<String>,
    /// Snapshots that need the object, and those that need the partner.
    pub(crate) users: Labels,
    pub(crate) partner_users: Labels,
}

impl Kind {
    pub(crate) const ALL: [Self; 38] = [
        Self::Blob,
        Self::Chunk,
        Self::ChunkOfTwoGroups,
        Self::ChunkOfStream,
        Self::Chunks,
        Self::ChunksPrefix,
        Self::ClientLog,
        Self::DynamicIndex,
        Self::Enclosure,
        Self::FixedIndex,
        Self::GcCandidates,
        Self::GcStatus,
        Self::Group,
        Self::GroupNotes,
        Self::GroupType,
        Self::InUse,
        Self::Larder,
        Self::Lease,
        Self::LockDirectory,
        Self::LockFile,
        Self::Manifest,
        Self::Namespace,
        Self::NamespaceMarker,
        Self::Namespaces,
        Self::Owner,
        Self::Pack,
        Self::PackOfGarbage,
        Self::PackPrefix,
        Self::Packs,
        Self::Protected,
        Self::Quarantined,
        Self::Reserve,
        Self::Segment,
        Self::Segments,
        Self::Snapshot,
        Self::Store,
        Self::StoreLock,
        Self::Suspects,
    ];

    /// One of the kind in a scene; `None` if the store has none.
    pub(crate) fn target(self, scene: &Scene) -> Option<Target> {
        let find = Find { form: scene.form, scene };
        let target = find.target(self)?;
        let is_there = |path: &String| scene.image.0.keys().any(|found| found.starts_with(path.as_str()));
        assert!(target.spare.as_ref().is_none_or(|spare| !is_there(spare)), "{self:?}: {target:?}");
        let is_whole = is_there(&target.path) && target.partner.as_ref().is_none_or(is_there);
        is_whole.then_some(target)
    }
}

struct Find<'a> {
    form: Form,
    scene: &'a Scene,
}

fn labels(all: &[&'static str]) -> Labels {
    all.iter().copied().collect()
}

fn object(path: impl Into<String>) -> Target {
    let (users, partner_users) = (Labels::new(), Labels::new());
    Target { path: path.into(), partner: None, spare: None, users, partner_users }
}

impl Target {
    fn of(mut self, users: Labels) -> Self {
        self.users = users;
        self
    }

    fn partner(mut self, path: impl Into<String>, users: Labels) -> Self {
        self.partner = Some(path.into());
        self.partner_users = users;
        self
    }

    fn spare(mut self, path: impl Into<String>) -> Self {
        self.spare = Some(path.into());
        self
    }
}

impl Find<'_> {
    fn content(&self, path: &str) -> String {
        self.form.content(path)
    }

    fn of_snapshot(&self, label: &str, file: &str) -> String {
        self.content(&format!("{}/{file}", Contents::of(label).name()))
    }

    fn in_no_snapshot(&self, file: &str) -> String {
        self.content(&format!("{}/{file}", snapshot_of("host/a", NO_SNAPSHOT)))
    }

    /// A file of the first snapshot, with that of the second one as its partner.
    fn file(&self, file: &str) -> Target {
        let one = object(self.of_snapshot("a1", file)).of(labels(&["a1"]));
        one.partner(self.of_snapshot("a2", file), labels(&["a2"]))
    }

    /// A directory with all of its snapshots.
    fn directory(&self, path: &str, users: &[&'static str]) -> Target {
        object(self.content(path)).of(labels(users))
    }

    fn users_of(digest: &Digest) -> Labels {
        let uses = |contents: &&Contents| contents.digests().contains(digest);
        SNAPSHOTS.iter().filter(uses).map(|contents| contents.label).collect()
    }

    fn chunk(&self, digest: Digest, partner: Digest, spare: Digest) -> Option<Target> {
        let path = |digest| Key::Chunk(digest).to_string();
        let found = object(path(digest)).of(Self::users_of(&digest));
        let found = found.partner(path(partner), Self::users_of(&partner)).spare(path(spare));
        (!self.form.is_packed).then_some(found)
    }

    fn users_of_pack(&self, pack: &str) -> Labels {
        let chunks = self.scene.packs.iter().filter(|(_, found)| *found == pack);
        chunks.flat_map(|(digest, _)| Self::users_of(digest)).collect()
    }

    /// The packs that a segment names: its table has their session, number and size.
    fn packs_of_segment(&self, segment: &str) -> BTreeSet<&String> {
        let bytes = self.scene.image.file(segment).unwrap();
        let names = |pack: &&String| {
            let mut row = name_of(pack);
            row.extend(u32::try_from(self.scene.image.file(pack).unwrap().len()).unwrap().to_le_bytes());
            bytes.windows(row.len()).any(|part| part == row)
        };
        self.scene.packs.values().filter(names).collect()
    }

    fn users_of_segment(&self, segment: &str) -> Labels {
        self.packs_of_segment(segment).into_iter().flat_map(|pack| self.users_of_pack(pack)).collect()
    }

    fn below(&self, prefix: &str) -> Vec<&String> {
        let image: &Image = &self.scene.image;
        let files = image.0.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        files.map(|(path, _)| path).filter(|path| path.starts_with(prefix)).collect()
    }

    #[expect(clippy::too_many_lines, reason = "a row for each kind")]
    fn target(&self, kind: Kind) -> Option<Target> {
        let pack_of = |number| self.scene.packs.get(&digest(number));
        let everything = || labels(&["a1", "a2", "b1", "n1"]);
        Some(match kind {
            Kind::Blob => self.file("c.conf.blob").spare(self.of_snapshot("a1", "e.conf.blob")),
            Kind::Chunk => self.chunk(digest(1), digest(8), digest(40))?,
            Kind::ChunkOfTwoGroups => self.chunk(digest(4), digest(2), digest(41))?,
            Kind::ChunkOfStream => {
                let of = |seed| Digest::of(&stream(seed));
                self.chunk(of(100), of(101), of(102))?
            }
            Kind::Chunks => object(".chunks/").of(everything()),
            Kind::ChunksPrefix => {
                let parent = |path: &str| format!("{}/", path.rsplit_once('/').unwrap().0);
                let mut chunk = self.chunk(digest(1), digest(8), digest(40))?;
                chunk.path = parent(&chunk.path);
                chunk.partner = chunk.partner.map(|path| parent(&path));
                chunk.spare = None;
                chunk
            }
            Kind::ClientLog => self.file("client.log.blob").spare(self.of_snapshot("b1", "client.log.blob")),
            Kind::DynamicIndex => self.file("s.bin.didx").spare(self.of_snapshot("a1", "e.bin.didx")),
            Kind::Enclosure => object(".larder/cnt/").of(everything()),
            Kind::FixedIndex => self.file("d.img.fidx").spare(self.in_no_snapshot("d.img.fidx")),
            Kind::GcCandidates => object(".larder/gc-sightings"),
            Kind::GcStatus => object(".gc-status"),
            Kind::Group => {
                let one = self.directory("host/a/", &["a1", "a2"]).spare(self.content("host/e/"));
                one.partner(self.content("host/b/"), labels(&["b1"]))
            }
            Kind::GroupNotes => object(self.content("ns/n/vm/7/notes")).spare(self.content("host/a/notes")),
            Kind::GroupType => {
                let one = self.directory("host/", &["a1", "a2", "b1"]);
                one.partner(self.content("ns/n/vm/"), labels(&["n1"])).spare(self.content("ct/"))
            }
            Kind::InUse => object(".in-use"),
            Kind::Larder => {
                object(".larder/").of(if self.form.is_packed { everything() } else { Labels::new() })
            }
            Kind::Lease => object(".larder/lease"),
            Kind::LockDirectory => object(".larder-locks/"),
            Kind::LockFile => {
                let locks = self.below(".larder-locks/");
                object(locks.first()?.as_str()).partner(locks.last()?.as_str(), Labels::new())
            }
            Kind::Manifest => self.file("index.json.blob").spare(self.in_no_snapshot("index.json.blob")),
            Kind::Namespace => self.directory("ns/n/", &["n1"]).spare(self.content("ns/e/")),
            Kind::NamespaceMarker => object(self.content("ns/n/.namespace")),
            Kind::Namespaces => self.directory("ns/", &["n1"]),
            Kind::Owner => {
                object(self.content("ns/n/vm/7/owner")).partner(self.content("host/a/owner"), Labels::new())
            }
            Kind::Pack => {
                let (one, other) = (pack_of(1)?, pack_of(8)?);
                let pack = object(one.as_str()).of(self.users_of_pack(one)).spare(format!("{one}7"));
                pack.partner(other.as_str(), self.users_of_pack(other))
            }
            Kind::PackOfGarbage => {
                let is_garbage = |path: &&&String| !self.scene.packs.values().any(|pack| pack == **path);
                object(self.below(".larder/packs/").iter().find(is_garbage)?.as_str())
            }
            Kind::PackPrefix => {
                let one = pack_of(1)?;
                object(format!("{}/", one.rsplit_once('/').unwrap().0)).of(self.users_of_pack(one))
            }
            Kind::Packs => object(".larder/packs/").of(everything()),
            Kind::Protected => {
                object(self.of_snapshot("n1", ".protected")).spare(self.of_snapshot("b1", ".protected"))
            }
            Kind::Quarantined => {
                let path = |number, copy| Key::Quarantined(digest(number), copy).to_string();
                object(path(5, 0)).partner(path(8, 0), Labels::new()).spare(path(1, 3))
            }
            Kind::Reserve => object(".larder/reserve-0"),
            Kind::Segment => {
                let naming = |number| {
                    let pack = pack_of(number)?;
                    let names = |segment: &&String| self.packs_of_segment(segment).contains(pack);
                    self.below(".larder/index/").into_iter().find(names)
                };
                let (one, other) = (naming(1)?, naming(8)?);
                let segment = object(one.as_str()).of(self.users_of_segment(one)).spare(format!("{one}7"));
                if one == other {
                    segment
                } else {
                    segment.partner(other.as_str(), self.users_of_segment(other))
                }
            }
            Kind::Segments => object(".larder/index/").of(everything()),
            Kind::Snapshot => {
                let name = |label| self.of_snapshot(label, "");
                let one = object(name("a1")).of(labels(&["a1"])).partner(name("a2"), labels(&["a2"]));
                one.spare(self.in_no_snapshot(""))
            }
            Kind::Store => object(".larder/store.json"),
            Kind::StoreLock => object(".lock"),
            Kind::Suspects => object(".larder/suspects"),
        })
    }
}

/// Session and number of a pack, as they are stored.
fn name_of(pack: &str) -> Vec<u8> {
    let (_, name) = pack.rsplit_once('/').unwrap();
    let (session, number) = name.split_once('-').unwrap();
    let byte = |at| u8::from_str_radix(&session[at..at + 2], 16).unwrap();
    let number: u32 = number.parse().unwrap();
    (0..32).step_by(2).map(byte).chain(number.to_le_bytes()).collect()
}

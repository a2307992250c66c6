//! File trees of a history: what they hold, their backup, and their restore into memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use larder::error::Result;
use larder::pxar::{FileKind, Metadata};
use larder::store::{SnapshotReader, SnapshotWriter};
use larder::tree::{LinkId, SourceEntry, TargetError, TargetFile, TreeFinding, TreeTarget};

use super::keyed::Mode;
use super::world::World;
use crate::noise;
use crate::tree::{Contents, MemoryTree, metadata};

/// The name of the archives.
const NAME: &str = "t";

/// Number of versions of a tree.
pub(crate) const VERSIONS: u8 = 8;

/// Long before the first snapshot: a file that has this time is unchanged if its metadata are.
const SECONDS: i64 = 1_600_000_000;

/// A tree of a snapshot. Each bit of the version changes a third of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub is_unified: bool,
    pub version: u8,
}

/// An entry of a tree: a directory, a file with its contents, or a link with its target.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Made {
    Directory,
    File(Bytes),
    Link(Bytes),
}

type Entries = BTreeMap<String, Made>;

impl Tree {
    /// Each file with its contents and its time.
    fn files(self) -> impl Iterator<Item = (String, Bytes, i64)> {
        (0..9_u64).map(move |number| {
            let bit = u64::from(self.version >> (number % 3) & 1);
            let directory = ["", "d/", "d/e/"][usize::try_from(number / 3).unwrap()];
            // Some have chunks of their own.
            let length = if number % 4 == 0 { 17_000 } else { 700 };
            let contents = noise(9000 + 2 * number + bit, length + usize::try_from(bit).unwrap());
            (format!("{directory}f{number}"), contents.into(), SECONDS + i64::try_from(bit).unwrap())
        })
    }

    fn source(self) -> MemoryTree {
        let tree = MemoryTree::default();
        tree.directory("d");
        tree.directory("d/e");
        for (path, contents, seconds) in self.files() {
            tree.file(&path, contents, seconds);
        }
        let link = FileKind::Symlink { target: self.target() };
        let entry = SourceEntry::new("link", link.clone(), metadata(&link, SECONDS));
        tree.add(b"d", entry, Contents::Whole(Bytes::new()));
        let file = FileKind::File { size: 4 };
        for name in ["one", "two"] {
            let entry = SourceEntry::new(name, file.clone(), metadata(&file, SECONDS));
            tree.add(b"", entry.link(LinkId { device: 1, inode: 7 }), Contents::Whole("both".into()));
        }
        tree
    }

    fn target(self) -> Bytes {
        format!("to-{}", self.version).into()
    }

    fn entries(self) -> Entries {
        let mut entries: Entries = ["", "d", "d/e"].map(|path| (path.to_owned(), Made::Directory)).into();
        entries.extend(self.files().map(|(path, contents, _)| (path, Made::File(contents))));
        entries.extend(["one", "two"].map(|name| (name.to_owned(), Made::File("both".into()))));
        entries.insert("d/link".to_owned(), Made::Link(self.target()));
        entries
    }

    /// What is wrong with the tree of a snapshot.
    pub(crate) async fn wrong_with(self, snapshot: &SnapshotReader) -> Result<Option<String>> {
        let (tree, restored) = (snapshot.tree(NAME).await?, Restored::default());
        let summary = tree.restore(&restored).await?;
        if let Some(finding) = summary.report.findings.into_iter().next() {
            // As an archive that cannot be read.
            let error = larder::Error::new(larder::ErrorKind::Corrupt, "restore a tree");
            return Err(error.because(finding.to_string()));
        }
        let is_right = *restored.0.lock().unwrap() == self.entries() && tree.is_split() != self.is_unified;
        Ok((!is_right).then(|| format!("{}: the tree differs", snapshot.name())))
    }

    /// The names of its archives.
    pub(crate) fn archives(self) -> &'static [&'static str] {
        if self.is_unified {
            &["t.pxar.didx", "catalog.pcat1.didx"]
        } else {
            &["t.mpxar.didx", "t.ppxar.didx"]
        }
    }
}

impl World {
    /// Backs a tree up, with detection of changes since the base.
    pub(crate) async fn tree(
        &self,
        backup: &SnapshotWriter,
        mode: Mode,
        base: Option<&SnapshotReader>,
        tree: Option<Tree>,
    ) -> Result<()> {
        let Some(tree) = tree else { return Ok(()) };
        let source = tree.source();
        let builder = backup.tree(NAME, &source).base_if_usable(base).chunk_bytes(64 << 10);
        let builder = if tree.is_unified { builder.unified() } else { builder };
        let summary = builder.await?;
        if let Some(base) = base {
            let of_base = self.model().mode(base.name().time());
            self.expect_base(mode, of_base, summary.base);
            self.count(format!("base of a tree {:?}", summary.base));
        }
        let (counts, opened) = (summary.counts, source.opened());
        if counts.files_reused > 0 && opened.len() as u64 + counts.files_reused > counts.files {
            self.violation(format_args!("files were opened and reused: {opened:?} {counts:?}"));
        }
        self.count(match counts.files_reused {
            0 => "tree read",
            reused if reused == counts.files => "tree reused",
            _ => "tree reused in part",
        });
        Ok(())
    }
}

/// A target in memory.
#[derive(Debug, Default)]
struct Restored(Mutex<Entries>);

type Done = std::result::Result<Vec<TreeFinding>, TargetError>;

impl Restored {
    #[expect(clippy::unnecessary_wraps, reason = "the methods of a target return it")]
    fn make(&self, path: &[u8], made: Made) -> Done {
        let path = String::from_utf8(path.to_vec()).unwrap();
        assert!(self.0.lock().unwrap().insert(path, made).is_none());
        Ok(Vec::new())
    }
}

#[async_trait]
impl TreeTarget for Restored {
    async fn directory(&self, path: &[u8], _: &Metadata) -> Done {
        self.make(path, Made::Directory)
    }

    async fn small_file(&self, path: &[u8], contents: Bytes, _: &Metadata) -> Done {
        self.make(path, Made::File(contents))
    }

    async fn file(
        &self,
        _: &[u8],
        _: u64,
        _: &Metadata,
    ) -> std::result::Result<Box<dyn TargetFile>, TargetError> {
        // No file is large.
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }

    async fn special(&self, path: &[u8], kind: &FileKind, _: &Metadata) -> Done {
        match kind {
            FileKind::Symlink { target } => self.make(path, Made::Link(target.clone())),
            _ => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        }
    }

    async fn hard_link(&self, path: &[u8], target: &[u8]) -> std::result::Result<(), TargetError> {
        let target = std::str::from_utf8(target).unwrap();
        let found = self.0.lock().unwrap().get(target).cloned();
        self.make(path, found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?).map(drop)
    }

    async fn finish_directory(&self, path: &[u8], _: &Metadata) -> Done {
        if path.is_empty() { self.make(path, Made::Directory) } else { Ok(Vec::new()) }
    }

    async fn finish(&self) -> io::Result<Vec<TreeFinding>> {
        Ok(Vec::new())
    }
}

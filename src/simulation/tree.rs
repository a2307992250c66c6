//! File trees of a history: what they hold, their backup, and their restore into memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{LazyLock, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::pxar::{FileKind, Metadata};
use crate::simulation::blocks::noise;
use crate::simulation::source::{MemorySource, metadata};
use crate::store::SnapshotReader;
use crate::tree::{LinkId, SourceEntry, TargetError, TargetFile, TreeFinding, TreeTarget};

/// The name of the archives.
pub(crate) const NAME: &str = "t";

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
    /// Each file: its directory, its name, its contents and its time.
    fn files(self) -> impl Iterator<Item = (&'static str, String, Bytes, i64)> {
        (0..9_usize).map(move |number| {
            let bit = usize::from(self.version >> (number % 3) & 1);
            let directory = ["", "d/", "d/e/"][number / 3];
            (directory, format!("f{number}"), contents(number, bit), SECONDS + bit as i64)
        })
    }

    pub(crate) fn source(self) -> MemorySource {
        let mut directories = BTreeMap::from(["", "d/", "d/e/"].map(|path| (path.to_owned(), Vec::new())));
        let mut add = |directory: &str, entry: SourceEntry, bytes: Bytes| {
            directories.entry(directory.to_owned()).or_default().push((entry, bytes));
        };
        let entry = |name: &str, kind: FileKind, seconds| {
            let metadata = metadata(&kind, seconds);
            SourceEntry::new(name.to_owned(), kind, metadata)
        };
        for (above, name) in [("", "d"), ("d/", "e")] {
            add(above, entry(name, FileKind::Directory, SECONDS), Bytes::new());
        }
        for (directory, name, bytes, seconds) in self.files() {
            let kind = FileKind::File { size: bytes.len() as u64 };
            add(directory, entry(&name, kind, seconds), bytes);
        }
        add("d/", entry("link", FileKind::Symlink { target: self.target() }, SECONDS), Bytes::new());
        for name in ["one", "two"] {
            let file = entry(name, FileKind::File { size: 4 }, SECONDS);
            add("", file.link(LinkId { device: 1, inode: 7 }), "both".into());
        }
        MemorySource::new(directories)
    }

    fn target(self) -> Bytes {
        format!("to-{}", self.version).into()
    }

    fn entries(self) -> Entries {
        let mut entries: Entries = ["", "d", "d/e"].map(|path| (path.to_owned(), Made::Directory)).into();
        entries.extend(
            self.files().map(|(above, name, bytes, _)| (format!("{above}{name}"), Made::File(bytes))),
        );
        entries.extend(["one", "two"].map(|name| (name.to_owned(), Made::File("both".into()))));
        entries.insert("d/link".to_owned(), Made::Link(self.target()));
        entries
    }

    /// The first difference between the tree of a snapshot and this one.
    pub(crate) async fn wrong_with(self, snapshot: &SnapshotReader) -> Result<Option<String>> {
        let (tree, restored) = (snapshot.tree(NAME).await?, Restored::default());
        let summary = tree.restore(&restored).await?;
        if let Some(finding) = summary.report.findings.into_iter().next() {
            // As an archive that cannot be read.
            let error = Error::new(ErrorKind::Corrupt, "restore a tree");
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

/// The contents of a file. Some are large enough for chunks of their own.
fn contents(number: usize, bit: usize) -> Bytes {
    static ALL: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
        let made = |at: usize| {
            let (number, bit) = (at / 2, at % 2);
            let length = if number.is_multiple_of(4) { 17_000 } else { 700 };
            noise(9000 + at as u64, length + bit).into()
        };
        (0..18).map(made).collect()
    });
    ALL[2 * number + bit].clone()
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

//! A store with something of everything, its state in words, and what an operation may make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use filetime::FileTime;
use futures::io::Cursor;
use larder::backend::{Backend, ListEntry, ListQuery};
use larder::chunker::FixedChunker;
use larder::crypt::EncryptionKey;
use larder::error::{Error, ErrorKind, Result};
use larder::format::Digest;
use larder::format::layout::Prefix;
use larder::format::name::{Namespace, SnapshotName};
use larder::gc::{self, GcEnd};
use larder::internal::listing::list_all;
use larder::internal::packs::packed;
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, SimRuntime};
use larder::store::{
    BackupBuilder, Datastore, Options, PackOptions, Protection, SnapshotInfo, SnapshotState, SnapshotWriter,
    WriterTarget,
};
use larder_testing::days::{DAY, at, group, space};
use larder_testing::gc_scene::{CHUNK, at_once, data};
use larder_testing::tree::MemoryTree;
use larder_testing::{noise, read_to_end};

/// A process that has the store, as far as an operation needs it.
#[derive(Clone)]
pub(crate) struct World {
    pub backend: Arc<dyn Backend>,
    /// Where files are restored to, and where local state is. It outlives the process.
    pub directory: PathBuf,
    pub has_local_state: bool,
    /// Its local state is another one.
    pub is_other_host: bool,
    pub is_packed: bool,
    pub runtime: Arc<dyn Runtime>,
}

/// Finished snapshots with their contents, owners, notes and namespaces, each in words; `None` if there is no store.
pub(crate) type State = Option<BTreeMap<String, String>>;

impl World {
    /// Opens the store.
    pub(crate) async fn open(&self) -> Result<Datastore> {
        let mut options = Options::default();
        if self.has_local_state {
            let choices = LocalOptions::default().cache_bytes(1 << 20);
            options = options.local_state(LocalState::open(&self.runtime, self.local(), choices).await?);
        }
        Datastore::open(Arc::clone(&self.backend), options).await
    }

    pub(crate) fn local(&self) -> PathBuf {
        self.directory.join(if self.is_other_host { "other" } else { "local" })
    }

    pub(crate) async fn create(&self) -> Result<Datastore> {
        let options = Options::default();
        let options = if self.is_packed { options.packed(PackOptions::default()) } else { options };
        Datastore::create(Arc::clone(&self.backend), options).await
    }

    /// Makes the store that the operations begin with.
    pub(crate) async fn make(&self) {
        let store = self.create().await.unwrap();
        for name in ["m", "n", "m/inner"] {
            store.create_namespace(&space(name)).await.unwrap();
        }
        back_up(&store, "host/old", 0, &[90, 91, 2]).await.unwrap();
        back_up(&store, "host/a", 1, &[1, 2, 3]).await.unwrap();
        back_up(&store, "host/a", 2, &[2, 3, 4]).await.unwrap();
        back_up(&store, "host/a", 3, &[4, 5]).await.unwrap();
        back_up(&store, "ns/m/host/x", 1, &[3, 6]).await.unwrap();
        back_up(&store, "ns/m/ns/inner/ct/7", 2, &[7]).await.unwrap();
        back_up_sealed(&store, 1, &[1, 8]).await.unwrap();
        back_up_tree(&store, 1).await.unwrap();
        store.set_protection(&name("host/a", 1), Protection::On).await.unwrap();
        store.set_group_notes(&group("host/a"), "of the group").await.unwrap();
        store.delete_group(&group("host/old")).await.unwrap();
        self.backend.barrier().await.unwrap();
        store.close().await.unwrap();
    }

    /// The state of the store, in which everything was read.
    pub(crate) async fn state(&self) -> State {
        let store = match Datastore::open(Arc::clone(&self.backend), Options::default()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            // A store that is half destroyed.
            Err(error) if error.kind() == ErrorKind::Conflict => return None,
            store => store.unwrap(),
        };
        let mut state = BTreeMap::new();
        let identity = if store.uuid().is_some() { "one" } else { "none" };
        state.insert("identity".to_owned(), identity.to_owned());
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            state.insert(format!("namespace {namespace}"), String::new());
            for group in store.groups(&namespace).await.unwrap() {
                let infos = store.snapshots(&group).await.unwrap();
                let finished: Vec<_> =
                    infos.into_iter().filter(|info| info.state == SnapshotState::Finished).collect();
                if finished.is_empty() {
                    continue;
                }
                let owner = store.owner(&group).await.unwrap().map(|owner| owner.to_string());
                state.insert(format!("owner of {group}"), owner.unwrap_or_default());
                let notes = store.group_notes(&group).await.unwrap().unwrap_or_default();
                state.insert(format!("notes of {group}"), notes);
                for info in finished {
                    let (contents, facts) = described(&store, &info).await;
                    state.insert(format!("snapshot {}", info.name), contents);
                    state.insert(format!("facts of {}", info.name), facts);
                    // It is stored after the manifest, which does not name it.
                    let log = match store.snapshot(&info.name).await.unwrap().client_log().await {
                        Err(error) if error.kind() == ErrorKind::KeyRequired => Some("sealed".into()),
                        log => log.unwrap(),
                    };
                    state.extend(log.map(|log| (format!("log of {}", info.name), format!("{log:?}"))));
                }
            }
        }
        Some(state)
    }

    /// Collects garbage twice, and returns all that there is then: chunks, and the paths of everything else.
    pub(crate) async fn collected(&self) -> BTreeSet<String> {
        for _ in 0..2 {
            let store = Datastore::open(Arc::clone(&self.backend), Options::default()).await.unwrap();
            collect(&store).await.unwrap();
            store.close().await.unwrap();
        }
        let mut found = BTreeSet::new();
        let seen =
            if self.is_packed { packed(Arc::clone(&self.backend)).await } else { Arc::clone(&self.backend) };
        for prefix in [Prefix::Chunks, Prefix::Namespace(Namespace::root())] {
            let listing = list_all(seen.as_ref(), &ListQuery::all(prefix)).await.unwrap();
            found.extend(listing.into_entries().iter().map(ListEntry::path).map(without_number));
        }
        found.retain(|path| !path.contains(".tmp_") && !path.ends_with(".lock"));
        found
    }

    /// Number of packs and segments.
    pub(crate) async fn packs(&self) -> (usize, usize) {
        let mut counts = [0, 0];
        for (count, prefix) in counts.iter_mut().zip([Prefix::Packs, Prefix::Segments]) {
            *count =
                list_all(self.backend.as_ref(), &ListQuery::all(prefix)).await.unwrap().into_entries().len();
        }
        (counts[0], counts[1])
    }
}

/// The path of a quarantined copy, of which there may be another after a crash.
fn without_number(path: String) -> String {
    match path.strip_suffix(".bad").and_then(|path| path.rsplit_once('.')) {
        Some((chunk, _)) => format!("{chunk}.bad"),
        None => path,
    }
}

/// What is in a snapshot, and what is known about it.
async fn described(store: &Datastore, info: &SnapshotInfo) -> (String, String) {
    let contents = match contents(store, &info.name).await {
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
            "damaged".to_owned()
        }
        contents => contents.unwrap_or_else(|error| panic!("{}: {error:?}", info.name)),
    };
    let snapshot = store.snapshot(&info.name).await.unwrap();
    let manifest = snapshot.manifest();
    let verified = manifest.verify_state().ok().flatten().map(|state| state.state);
    let facts = format!("notes {:?}, protected {}, verified {verified:?}", manifest.notes(), info.protected);
    (contents, facts)
}

async fn contents(store: &Datastore, name: &SnapshotName) -> Result<String> {
    let mut snapshot = store.snapshot(name).await?;
    if snapshot.manifest().key_fingerprint().is_ok_and(|key| key.is_some()) {
        snapshot.unlock(&key())?;
    }
    let names: Vec<_> =
        snapshot.manifest().files().iter().map(|file| file.name.as_str().to_owned()).collect();
    let mut all = Vec::new();
    for file in names {
        let bytes = if file.ends_with(".blob") {
            snapshot.blob(&file).await?.to_vec()
        } else {
            let archive = snapshot.archive(&file).await?;
            let mut target = WriterTarget::new(Cursor::new(Vec::new()));
            archive.copy_to(&mut target).await?;
            target.into_inner().into_inner()
        };
        all.extend(file.as_bytes());
        all.extend(bytes);
    }
    Ok(Digest::of(&all).to_string())
}

/// What lies between two states: of each object either of the two, and contents that both have somewhere are somewhere.
pub(crate) fn assert_between(found: &State, before: &State, after: &State) {
    let Some(found) = found else { panic!("the store is gone") };
    // A store that is made or destroyed.
    let nothing = BTreeMap::new();
    let (before, after) = (before.as_ref().unwrap_or(&nothing), after.as_ref().unwrap_or(&nothing));
    for key in before.keys().chain(after.keys()).chain(found.keys()) {
        if key == "identity" && !found.contains_key(key) {
            continue;
        }
        let (found, before, after) = (found.get(key), before.get(key), after.get(key));
        assert!(found == before || found == after, "{key} is {found:?}, not {before:?} or {after:?}");
    }
    let contents = |state: &BTreeMap<String, String>| -> BTreeSet<String> {
        let snapshots = state.iter().filter(|(key, _)| key.starts_with("snapshot "));
        snapshots.map(|(_, contents)| contents.clone()).filter(|contents| contents != "damaged").collect()
    };
    let (found, before, after) = (contents(found), contents(before), contents(after));
    let mut lost = before.intersection(&after).filter(|contents| !found.contains(*contents));
    assert_eq!(lost.next(), None, "contents that no operation removes are gone");
}

pub(crate) fn key() -> EncryptionKey {
    EncryptionKey::from_bytes(&[9; 32])
}

/// The name of the snapshot of a day.
pub(crate) fn name(of: &str, day: u64) -> SnapshotName {
    group(of).snapshot(at(day * DAY).try_into().unwrap())
}

/// Ends well, or because it was done before.
pub(crate) fn unless<T>(done: Result<T>, kind: ErrorKind) -> Result<()> {
    match done {
        Err(error) if error.kind() == kind => Ok(()),
        done => done.map(drop),
    }
}

/// A failure that only a report has.
pub(crate) fn failed(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "do all of it").because(what.to_owned())
}

/// Begins a backup, unless the snapshot is there: the first attempt may have published it, and learned only of a failure.
pub(crate) async fn begin(
    store: &Datastore,
    builder: BackupBuilder,
    name: &SnapshotName,
) -> Result<Option<SnapshotWriter>> {
    match builder.begin().await {
        Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::InvalidInput) => {
            if store.snapshot(name).await.is_ok() { Ok(None) } else { Err(error) }
        }
        begun => begun.map(Some),
    }
}

/// Backs up an image and a stream of these chunks, a blob and a log, on the snapshot of the day before, if there is one.
pub(crate) async fn back_up(store: &Datastore, of: &str, day: u64, numbers: &[u64]) -> Result<()> {
    let base = match store.snapshot(&name(of, day.saturating_sub(1))).await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        base => Some(base?),
    };
    let builder = store.backup(&group(of)).time(at(day * DAY));
    let Some(backup) = begin(store, builder, &name(of, day)).await? else { return Ok(()) };
    backup.set_notes(day.to_string());
    backup.blob("c.conf", format!("{of} {day}")).await?;
    backup.client_log(format!("log of {day}")).await?;
    let bytes = data(numbers);
    let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).chunk_bytes(CHUNK as u64);
    image.base_if_usable(base.as_ref()).await?;
    let stream = backup.stream("s.bin", Cursor::new(&bytes[..bytes.len() - 100]));
    let stream = stream.chunker(Box::new(FixedChunker::new(8192).unwrap()));
    stream.base_if_usable(base.as_ref()).await?;
    drop(base);
    backup.finish().await.map(drop)
}

/// Backs up an encrypted image, on that of the day before, if there is one.
pub(crate) async fn back_up_sealed(store: &Datastore, day: u64, numbers: &[u64]) -> Result<()> {
    let base = match store.snapshot(&name("vm/sealed", day - 1)).await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        base => {
            let mut base = base?;
            base.unlock(&key())?;
            Some(base)
        }
    };
    let builder = store.backup(&group("vm/sealed")).time(at(day * DAY)).encrypt(&key());
    let Some(backup) = begin(store, builder, &name("vm/sealed", day)).await? else { return Ok(()) };
    let bytes = data(numbers);
    let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).chunk_bytes(CHUNK as u64);
    image.base_if_usable(base.as_ref()).await?;
    drop(base);
    backup.finish().await.map(drop)
}

/// The tree of a day: most of it is the same on all days.
pub(crate) fn tree(day: u64) -> MemoryTree {
    let tree = MemoryTree::default();
    tree.directory("d");
    for number in 0..6 {
        tree.file(&format!("d/same{number}"), noise(number, 3000), 1);
    }
    tree.file("z", noise(100 + day, 2000), i64::try_from(day).unwrap());
    tree
}

pub(crate) async fn back_up_tree(store: &Datastore, day: u64) -> Result<()> {
    let base = match store.snapshot(&name("host/tree", day - 1)).await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        base => Some(base?),
    };
    let builder = store.backup(&group("host/tree")).time(at(day * DAY));
    let Some(backup) = begin(store, builder, &name("host/tree", day)).await? else { return Ok(()) };
    let tree = tree(day);
    backup.tree("root", &tree).base_if_usable(base.as_ref()).chunk_bytes(64 << 10).await?;
    drop(base);
    backup.finish().await.map(drop)
}

/// Collects all garbage, and rewrites each pack with something unused in it.
pub(crate) async fn collect(store: &Datastore) -> Result<()> {
    let report = gc::plan(store, at_once().max_unused(0)).await?.confirm().execute().await?;
    match report.end {
        GcEnd::Complete if report.failed == 0 => Ok(()),
        GcEnd::Stopped(error) => Err(error),
        _ => Err(failed(&format!("{report:?}"))),
    }
}

/// All files below a directory.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let entry = entry.unwrap();
            let list = if entry.file_type().unwrap().is_dir() { &mut directories } else { &mut files };
            list.push(entry.path());
        }
    }
    files
}

/// Reads an archive by its stream.
pub(crate) async fn stream_of(store: &Datastore, name: &SnapshotName, archive: &str) -> Result<Vec<u8>> {
    let snapshot = store.snapshot(name).await?;
    let mut archive = snapshot.archive(archive).await?;
    read_to_end(&mut archive).await.map_err(|error| Error::io(error, "read a stream"))
}

/// Copies everything in a directory, with the times of modification.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_directory(&entry.path(), &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), &target).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
        let modified = FileTime::from_last_modification_time(&entry.metadata().unwrap());
        filetime::set_symlink_file_times(&target, modified, modified).unwrap();
    }
}

/// Makes sure that two states are the same.
pub(crate) fn assert_same(found: &State, wanted: &State, when: &str) {
    let (Some(found), Some(wanted)) = (found, wanted) else {
        assert!(found == wanted, "{when}: a store is there: {}", found.is_some());
        return;
    };
    for key in found.keys().chain(wanted.keys()) {
        assert_eq!(found.get(key), wanted.get(key), "{when}: {key}");
    }
}

/// A simulated runtime that draws other identities of stores than any other: stores of one identity share what their writers use.
pub(crate) fn new_sim() -> SimRuntime {
    static MADE: AtomicU64 = AtomicU64::new(1);
    SimRuntime::new(MADE.fetch_add(1, Ordering::Relaxed))
}

//! A process that works on a store in a directory is killed at a random moment, over and over: what it acknowledged is there and whole, and
//! the next process goes on.
//!
//! The process is this test binary, run once more. It backs up changing data (images, encrypted images and trees) into several groups, and at
//! the same time restores, copies, prunes, collects garbage without a grace time, and verifies. It prints each snapshot after the backup was
//! acknowledged, and before it is deleted. `LARDER_KILLS` is the number of kills, `LARDER_FIRST_SEED` the seed, `LARDER_KILL_DIRECTORY` a
//! directory on the filesystem to use instead of one in memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use filetime::FileTime;
use futures::executor::block_on;
use futures::future::{BoxFuture, join_all};
use futures::io::Cursor;
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::crypt::EncryptionKey;
use larder::error::{ErrorKind, Result};
use larder::format::name::{GroupName, Namespace, SnapshotName};
use larder::gc::{self, GcEnd};
use larder::local::{LocalOptions, LocalState};
use larder::prune::{self, PruneOptions, PruneOutcome};
use larder::retention::{Decision, RetentionRules};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{
    Datastore, Options, PackOptions, Relocated, Scope, SnapshotReader, SnapshotState, WriterTarget,
};
use larder::verify::{self, VerifyOptions};
use larder_testing::gc_scene::at_once;
use larder_testing::noise;
use larder_testing::tree::MemoryTree;

const CHILD: &str = "LARDER_KILL_CHILD";
const NAME: &str = "kills::whatever_a_killed_process_acknowledged_is_there_and_the_next_one_goes_on";
/// The number of bytes of a block.
const BLOCK: usize = 4096;
/// Chunks are few, so that many of them come back after they were garbage.
const NUMBERS: u64 = 300;
/// The group of trees, that of encrypted images, and two of plain images.
const GROUPS: [&str; 4] = ["host/tree", "host/sealed", "vm/1", "vm/2"];
/// After so many kills everything is read, garbage is collected, and leftovers are counted.
const THOROUGH: u64 = 20;
/// The longest life of a process after it opened the store, in milliseconds.
const LONGEST: u64 = 90;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 += 1;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&noise(self.0, 8));
        u64::from_le_bytes(bytes) % end
    }
}

fn key() -> EncryptionKey {
    EncryptionKey::from_bytes(&[7; 32])
}

fn block(number: u64) -> Vec<u8> {
    noise(number + 1, BLOCK)
}

fn tree(numbers: &[u64]) -> MemoryTree {
    let tree = MemoryTree::default();
    for (at, number) in numbers.iter().enumerate() {
        tree.file(&format!("f{at}"), contents(*number), i64::try_from(*number).unwrap());
    }
    tree
}

fn contents(number: u64) -> Vec<u8> {
    noise(number + 1, usize::try_from(number * 37 % 5000).unwrap())
}

fn numbers_of(notes: &str) -> Vec<u64> {
    notes.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// Makes sure that all contents of a snapshot are those that its notes say. Returns the notes.
async fn check(mut snapshot: SnapshotReader) -> Result<String> {
    let notes = snapshot.manifest().notes().unwrap().to_owned();
    let (name, numbers) = (snapshot.name().clone(), numbers_of(&notes));
    let group = name.group().to_string();
    if group.ends_with("host/sealed") {
        snapshot.unlock(&key())?;
    }
    assert!(snapshot.blob("c.conf.blob").await? == notes, "the blob of {name}");
    if group.ends_with("host/tree") {
        let tree = snapshot.tree("t").await?;
        for (at, number) in numbers.iter().enumerate() {
            let read = tree.open(format!("f{at}")).await?.read_all().await?;
            assert!(read == contents(*number), "file {at} of {name}");
        }
        return Ok(notes);
    }
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive("d.img.fidx").await?.copy_to(&mut target).await?;
    let wanted: Vec<u8> = numbers.iter().flat_map(|number| block(*number)).collect();
    assert!(target.into_inner().into_inner() == wanted, "the image of {name}");
    Ok(notes)
}

/// Where a store is, and how it is opened.
#[derive(Clone)]
struct Place {
    is_packed: bool,
    level: SyncLevel,
    root: PathBuf,
}

impl Place {
    fn options(&self) -> FsOptions {
        FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(self.level)
    }

    async fn create(&self) {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let backend = FsBackend::create(runtime, self.root.join("store"), self.options()).await.unwrap();
        let options = Options::default();
        let options = if self.is_packed { options.packed(PackOptions::default()) } else { options };
        let store = Datastore::create(Arc::new(backend), options).await.unwrap();
        store.create_namespace(&"n".parse().unwrap()).await.unwrap();
    }

    async fn open(&self, options: Options) -> Datastore {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let backend = FsBackend::open(runtime, self.root.join("store"), self.options()).await.unwrap();
        Datastore::open(Arc::new(backend), options).await.unwrap()
    }

    /// As the process that is killed opens it: a packed one with local state.
    async fn open_to_work(&self) -> Datastore {
        if !self.is_packed {
            return self.open(Options::default()).await;
        }
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let choices = LocalOptions::default().cache_bytes(200_000);
        let local = LocalState::open(&runtime, self.root.join("local"), choices).await.unwrap();
        self.open(Options::default().local_state(local).index_bytes(0)).await
    }

    /// All files of the store, outside of those directly in its directory.
    fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut directories) = (Vec::new(), vec![self.root.join("store")]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let list = if entry.file_type().unwrap().is_dir() { &mut directories } else { &mut files };
                list.push(entry.path());
            }
        }
        files
    }
}

/// Prints a line in one piece, so that a reader finds all of it or nothing.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The work of the process that is killed. It does not end.
fn work(place: &Place, seed: u64) {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("WRONG {panic}").replace('\n', " "));
        std::process::exit(1);
    }));
    block_on(async {
        let store = place.open_to_work().await;
        say("READY");
        let mut loops: Vec<BoxFuture<'static, ()>> = Vec::new();
        for (number, group) in GROUPS.into_iter().enumerate() {
            loops.push(Box::pin(backups(store.clone(), group.parse().unwrap(), (seed << 8) + number as u64)));
        }
        loops.push(Box::pin(restores(store.clone(), (seed << 8) + 100)));
        loops.push(Box::pin(maintenance(store.clone())));
        loops.push(Box::pin(copies(store, (seed << 8) + 101)));
        let runtime = ThreadRuntime::new();
        let work = loops.into_iter().map(|work| {
            let (done, end) = futures::channel::oneshot::channel();
            runtime.spawn(Box::pin(async move {
                work.await;
                let _ = done.send(());
            }));
            end
        });
        join_all(work).await;
    });
}

/// A failure that other work at the same time explains.
fn is_expected(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Busy | ErrorKind::Conflict | ErrorKind::NotFound)
}

async fn backups(store: Datastore, group: GroupName, seed: u64) {
    let (mut dice, mut newest) = (Dice(seed << 32), 1_735_689_600);
    loop {
        match back_up(&store, &group, &mut dice, &mut newest).await {
            Ok(said) => say(&said),
            Err(error) => assert!(is_expected(error.kind()), "back up: {error:?}"),
        }
    }
}

/// Changes some of the last data of a group, and backs it up. Returns the line that says so.
async fn back_up(store: &Datastore, group: &GroupName, dice: &mut Dice, newest: &mut u64) -> Result<String> {
    let base = match &store.latest(group).await? {
        Some(name) if dice.below(4) > 0 => Some(store.snapshot(name).await?),
        _ => None,
    };
    let base = match base {
        Some(mut base) if group.id().as_str() == "sealed" => {
            base.unlock(&key())?;
            Some(base)
        }
        base => base,
    };
    let mut numbers: Vec<u64> = match &base {
        Some(base) => numbers_of(base.manifest().notes().unwrap()),
        None => (0..6).collect(),
    };
    for number in &mut numbers {
        if dice.below(3) == 0 {
            *number = dice.below(NUMBERS);
        }
    }
    // Times do not wait for one another. Those of aborted backups are not used again.
    *newest += 1;
    if let Some(last) = store.snapshots(group).await?.iter().map(|info| info.name.time().epoch()).max() {
        *newest = (*newest).max(u64::try_from(last).unwrap() + 1);
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(*newest);
    let builder = store.backup(group).time(time);
    let builder = if group.id().as_str() == "sealed" { builder.encrypt(&key()) } else { builder };
    let backup = builder.begin().await?;
    let notes: Vec<String> = numbers.iter().map(u64::to_string).collect();
    let notes = notes.join(" ");
    backup.set_notes(notes.clone());
    backup.blob("c.conf", notes.clone()).await?;
    if group.id().as_str() == "tree" {
        let tree = tree(&numbers);
        backup.tree("t", &tree).base_if_usable(base.as_ref()).chunk_bytes(64 << 10).await?;
    } else {
        let data: Vec<u8> = numbers.iter().flat_map(|number| block(*number)).collect();
        let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(BLOCK as u64);
        image.base_if_usable(base.as_ref()).await?;
    }
    drop(base);
    if dice.below(10) == 0 {
        backup.abort().await?;
        return Ok("aborted".to_owned());
    }
    let finished = backup.finish().await?;
    Ok(format!("+ {} {notes}", finished.snapshot.name()))
}

async fn restores(store: Datastore, seed: u64) {
    let mut dice = Dice(seed << 32);
    loop {
        let group = GROUPS[usize::try_from(dice.below(4)).unwrap()].parse().unwrap();
        let restore = async {
            let found = store.snapshots(&group).await?;
            let finished: Vec<_> =
                found.iter().filter(|info| info.state == SnapshotState::Finished).collect();
            let drawn = usize::try_from(dice.below(finished.len().max(1) as u64)).unwrap();
            if let Some(info) = finished.get(drawn) {
                check(store.snapshot(&info.name).await?).await?;
            }
            Ok(())
        };
        let restored: Result<()> = restore.await;
        if let Err(error) = restored {
            assert!(is_expected(error.kind()), "restore: {error:?}");
        }
    }
}

/// Prunes, collects garbage and verifies.
async fn maintenance(store: Datastore) {
    loop {
        let options = PruneOptions::default().rules(RetentionRules::default().keep_last(3));
        let mut plan = prune::plan(&store, &Scope::Namespace(Namespace::root()), options).await.unwrap();
        for snapshot in plan.groups().iter().flat_map(|group| &group.snapshots) {
            if snapshot.decision == Decision::Remove {
                say(&format!("- {}", snapshot.name));
            }
        }
        let report = plan.execute().await.unwrap();
        for snapshot in report.groups.into_iter().flat_map(|group| group.snapshots) {
            if let PruneOutcome::Failed(error) = snapshot.outcome {
                panic!("prune {}: {error:?}", snapshot.name);
            }
        }
        collect(&store).await;
        let mut plan =
            verify::plan(&store, &Scope::Store, VerifyOptions::default().key(&key())).await.unwrap();
        let report = plan.execute().await.unwrap();
        assert!(report.damaged.is_empty() && report.incomplete.is_none(), "verify: {report:?}");
    }
}

/// Copies groups into a namespace, and deletes the copies.
async fn copies(store: Datastore, seed: u64) {
    let mut dice = Dice(seed << 32);
    let space: Namespace = "n".parse().unwrap();
    loop {
        let group: GroupName = GROUPS[usize::try_from(dice.below(4)).unwrap()].parse().unwrap();
        let there = group.clone().in_namespace(space.clone());
        let turn = async {
            for info in store.snapshots(&there).await? {
                say(&format!("- {}", info.name));
            }
            store.delete_group(&there).await?;
            let done = store.copy_group(&group, &space).await?;
            for copied in done.groups.iter().flat_map(|group| &group.snapshots) {
                if matches!(copied.outcome, Relocated::Copied) {
                    say(&format!("+ {} *", there.snapshot(copied.name.time())));
                }
            }
            Ok(())
        };
        let turn: Result<()> = turn.await;
        if let Err(error) = turn {
            assert!(is_expected(error.kind()), "copy: {error:?}");
        }
    }
}

async fn collect(store: &Datastore) {
    let plan = match gc::plan(store, at_once().max_unused(0)).await {
        Err(error) if error.kind() == ErrorKind::Busy => return,
        plan => plan.unwrap(),
    };
    assert_eq!(plan.summary().missing, 0, "{:?}", plan.summary().damaged);
    let report = plan.confirm().execute().await.unwrap();
    assert!(matches!(report.end, GcEnd::Complete) && report.failed == 0, "{report:?}");
}

/// What the parent knows of the store.
struct Parent {
    dice: Dice,
    place: Place,
    /// Acknowledged snapshots with their notes, `*` if these are unknown. No deletion of them was begun.
    expected: BTreeMap<SnapshotName, String>,
    acknowledged: u64,
    leftovers: u64,
    restored: u64,
}

impl Parent {
    /// Runs the process, and kills it at a random moment.
    fn round(&mut self, seed: u64) {
        let Place { is_packed, level, root } = &self.place;
        let words = format!("{}\n{is_packed}\n{level:?}\n{seed}", root.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env(CHILD, words);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        // Some are killed while they begin.
        if self.dice.below(8) > 0 {
            for line in lines.by_ref().map_while(io::Result::ok) {
                let is_ready = line == "READY";
                said.push(line);
                if is_ready {
                    break;
                }
            }
        }
        let life = Duration::from_micros(self.dice.below(LONGEST * 1000));
        block_on(ThreadRuntime::new().sleep(life));
        child.kill().unwrap();
        child.wait().unwrap();
        said.extend(lines.map_while(io::Result::ok));
        for line in said {
            let words: Vec<_> = line.splitn(3, ' ').collect();
            match words[..] {
                ["+", name, notes] => {
                    self.acknowledged += 1;
                    self.expected.insert(name.parse().unwrap(), notes.to_owned());
                }
                ["-", name] => drop(self.expected.remove(&name.parse().unwrap())),
                ["WRONG", ..] => panic!("{line}"),
                _ => {}
            }
        }
    }

    /// Makes sure that everything acknowledged is there, and reads what is new and the newest of each group, or everything.
    async fn check(&mut self, all: bool) {
        let store = self.place.open(Options::default()).await;
        let mut found = BTreeMap::new();
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            for group in store.groups(&namespace).await.unwrap() {
                let listed = store.snapshots(&group).await.unwrap();
                let finished: Vec<_> =
                    listed.into_iter().filter(|info| info.state == SnapshotState::Finished).collect();
                let newest = finished.iter().map(|info| info.name.clone()).max();
                for info in finished {
                    let expected = self.expected.get(&info.name);
                    let is_certain = expected.is_some_and(|notes| notes != "*");
                    if is_certain && !all && Some(&info.name) != newest.as_ref() {
                        found.insert(info.name.clone(), expected.unwrap().clone());
                        continue;
                    }
                    let snapshot = store.snapshot(&info.name).await.unwrap();
                    let notes =
                        check(snapshot).await.unwrap_or_else(|error| panic!("{}: {error:?}", info.name));
                    assert!(!is_certain || expected == Some(&notes), "{} has other notes", info.name);
                    found.insert(info.name, notes);
                    self.restored += 1;
                }
            }
        }
        for name in self.expected.keys() {
            assert!(found.contains_key(name), "{name} was acknowledged, and is gone");
        }
        // What a deletion left, and what was published and not acknowledged, stays now.
        self.expected = found;
    }

    /// Garbage and leftovers do not pile up.
    async fn clean_up(&mut self) {
        let is_temporary = |path: &Path| path.to_str().unwrap().contains(".tmp_");
        let files = self.place.files();
        let days_ago = FileTime::from_unix_time(FileTime::now().unix_seconds() - 3 * 24 * 3600, 0);
        for path in files.iter().filter(|path| is_temporary(path)) {
            filetime::set_file_mtime(path, days_ago).unwrap();
            self.leftovers += 1;
        }
        let store = self.place.open(Options::default()).await;
        // Pruning removes what dead writers left, except the newest of a group, which its next writer removes.
        let options = PruneOptions::default().rules(RetentionRules::default().keep_last(1000));
        let everything = Scope::Tree(Namespace::root());
        prune::plan(&store, &everything, options).await.unwrap().execute().await.unwrap();
        for group in GROUPS {
            let group: GroupName = group.parse().unwrap();
            let newest =
                store.snapshots(&group).await.unwrap().iter().map(|info| info.name.time().epoch()).max();
            let seconds = newest.map_or(0, |newest| u64::try_from(newest).unwrap()) + 1;
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            store.backup(&group).time(time).begin().await.unwrap().abort().await.unwrap();
            let left = store.snapshots(&group).await.unwrap();
            assert!(left.iter().all(|info| info.state == SnapshotState::Finished), "{left:?}");
        }
        let (mut chunks, mut garbage) = (0, 1);
        // Packs with garbage are rewritten by one collection, and deleted by another.
        for _ in 0..4 {
            if garbage > 0 {
                collect(&store).await;
                let plan = gc::plan(&store, at_once().max_unused(0)).await.unwrap();
                (chunks, garbage) = (plan.summary().in_use.chunks, plan.summary().garbage.chunks);
            }
        }
        let files = self.place.files();
        let left = files.iter().filter(|path| is_temporary(path)).count();
        assert_eq!(left, 0, "temporary files: {files:?}");
        // A pack of which little is unused stays as it is.
        let tolerated = if self.place.is_packed { 1 + chunks / 4 } else { 0 };
        assert!(garbage <= tolerated, "{garbage} chunks of garbage beside {chunks}");
        let below =
            |part: &str| files.iter().filter(|path| path.to_str().unwrap().contains(part)).count() as u64;
        let snapshots = self.expected.len() as u64;
        if self.place.is_packed {
            let (packs, segments) = (below("/.larder/packs/"), below("/.larder/index/"));
            // Each pack has something that is needed, and segments are merged.
            assert!(
                packs <= chunks && segments <= 40,
                "{packs} packs and {segments} segments of {chunks} chunks"
            );
        } else {
            assert_eq!(below("/.chunks/"), chunks);
        }
        // Locks of snapshots, groups and manifests, and what interrupted copies left.
        let others = files.len() as u64 - below("/.chunks/");
        assert!(others <= 8 * snapshots + 60, "{others} files of {snapshots} snapshots: {files:?}");
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Proves H37.
#[test]
fn whatever_a_killed_process_acknowledged_is_there_and_the_next_one_goes_on() {
    if let Ok(words) = std::env::var(CHILD) {
        let words: Vec<_> = words.split('\n').collect();
        let level = match words[2] {
            "File" => SyncLevel::File,
            "Filesystem" => SyncLevel::Filesystem,
            _ => SyncLevel::None,
        };
        let place = Place { is_packed: words[1] == "true", level, root: words[0].into() };
        return work(&place, words[3].parse().unwrap());
    }
    let (kills, first) = (number("LARDER_KILLS", 16), number("LARDER_FIRST_SEED", 0));
    for is_packed in [false, true] {
        let scratch = match std::env::var("LARDER_KILL_DIRECTORY") {
            Ok(directory) => tempfile::tempdir_in(directory).unwrap(),
            Err(_) => larder_testing::scratch(),
        };
        let level = if first.is_multiple_of(2) { SyncLevel::None } else { SyncLevel::File };
        let place = Place { is_packed, level, root: scratch.path().to_owned() };
        block_on(place.create());
        let (dice, expected) = (Dice(first << 32), BTreeMap::new());
        let mut parent = Parent { dice, place, expected, acknowledged: 0, leftovers: 0, restored: 0 };
        for round in 1.. {
            parent.round(first << 20 | round);
            // On a slow machine the first ones may all be too early.
            let is_last = round >= kills / 2
                && (parent.acknowledged > 0 && parent.restored > 0 || round >= kills / 2 + 200);
            let is_thorough = round % THOROUGH == 0 || is_last;
            block_on(parent.check(is_thorough));
            if is_thorough {
                block_on(parent.clean_up());
                block_on(parent.check(true));
            }
            if is_last {
                break;
            }
        }
        let Parent { acknowledged, leftovers, restored, .. } = parent;
        eprintln!(
            "{} kills, packed: {is_packed}, {level:?}, seed {first}: {acknowledged} acknowledged, {restored} read, {leftovers} temporary files",
            kills / 2
        );
        assert!(acknowledged > 0 && restored > 0);
    }
}

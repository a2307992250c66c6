//! Two processes use a store in a directory at the same time: each cell of the table of operations in the guide to locking.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, PutMode, SyncLevel};
use larder::error::{Error, ErrorKind, Result};
use larder::format::layout::Key;
use larder::format::name::{Namespace, SnapshotName};
use larder::internal::record::Method;
use larder::prune::{self, PruneOptions, PruneOutcome};
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::store::{Datastore, Options, PackOptions, Protection, Scope, SnapshotState};
use larder::sync::{self, SyncGroupOutcome, SyncOptions};
use larder::verify::{self, SkipReason, VerifyOptions};
use larder_testing::gc_scene;
use larder_testing::gc_scene::{at_once, back_up, check, collect, collected, data, group, leave, reason};
use larder_testing::watched::Watched;

/// The operations, in the order of rows and columns.
const OPERATIONS: [&str; 11] =
    ["backup", "restore", "verify", "collect", "delete", "clear", "move", "copy", "sync", "notes", "protect"];

/// Row: what one process is in the middle of. Column: what another one does meanwhile. `+` means that it succeeds, `-` that it is
/// refused as `Busy`. All are about the only snapshot of one group, except `backup`, which builds on it, `clear`, which deletes its
/// group, and `sync`, which adds one to the group.
const TABLE: [(&str, &str); 11] = [
    ("backup", "-++----+-+-"),
    ("restore", "++++---+++-"),
    ("verify", "++++---+++-"),
    ("collect", "-++-++++-++"),
    ("delete", "---+----+--"),
    ("clear", "---+-------"),
    ("move", "---+-------"),
    ("copy", "++++----+--"),
    ("sync", "-++----+-+-"),
    ("notes", "++++----+-+"),
    ("protect", "---+----++-"),
];
const NAME: &str = "processes::each_pair_of_operations_in_two_processes_behaves_as_documented";
const ONLY: &str = "host/a/2023-11-14T22:13:20Z";

fn only() -> SnapshotName {
    ONLY.parse().unwrap()
}

fn options() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

async fn opened(runtime: Arc<dyn Runtime>, root: &Path) -> (Arc<Watched>, Datastore) {
    let backend: Arc<dyn Backend> = Arc::new(FsBackend::open(runtime, root, options()).await.unwrap());
    let watched = Watched::new(backend);
    let store =
        Datastore::open(Arc::<Watched>::clone(&watched) as Arc<dyn Backend>, Options::default()).await;
    (watched, store.unwrap())
}

/// A store with one snapshot, and chunks that no snapshot uses.
async fn made(root: &Path, is_packed: bool) {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let backend: Arc<dyn Backend> = Arc::new(FsBackend::create(runtime, root, options()).await.unwrap());
    let options = Options::default();
    let options = if is_packed { options.packed(PackOptions::default()) } else { options };
    let store = Datastore::create(backend, options).await.unwrap();
    store.create_namespace(&"n".parse().unwrap()).await.unwrap();
    leave(&store, &[8, 9]).await;
    let backup = store.backup(&group("host/a")).time(only().time().into()).begin().await.unwrap();
    write(&backup, &[1, 2]).await.unwrap();
    backup.finish().await.unwrap();
}

async fn write(backup: &larder::store::SnapshotWriter, numbers: &[u64]) -> Result<()> {
    backup.set_notes(serde_json::to_string(numbers).unwrap());
    let data = data(numbers);
    let image = backup.image("d.img", Cursor::new(&data), data.len() as u64);
    image.chunk_bytes(gc_scene::CHUNK as u64).await.map(drop)
}

/// Where an operation stops to wait for the other process; none for those that stop between two calls.
fn is_stop(operation: &str, method: Method, is_over: bool, keys: &[Key]) -> bool {
    let is = |wanted: Method, kind: fn(&Key) -> bool| {
        method == wanted && !is_over && keys.iter().map(exposed).any(kind)
    };
    match operation {
        "verify" => {
            is(Method::Get, |key| matches!(key, Key::Chunk(_)))
                || is(Method::GetRange, |key| matches!(key, Key::Pack(_)))
        }
        "collect" => is(Method::Get, |key| matches!(key, Key::Archive(..))),
        "delete" | "clear" | "move" => is(Method::Delete, |key| matches!(key, Key::Manifest(_))),
        "copy" | "sync" | "notes" => is(Method::Put, |key| matches!(key, Key::Manifest(_))),
        "protect" => is(Method::Put, |key| matches!(key, Key::Protected(_))),
        _ => false,
    }
}

/// The key that an object of a packed store has in a loose one.
fn exposed(key: &Key) -> &Key {
    match key {
        Key::Enclosed(key) => key,
        key => key,
    }
}

fn busy(operation: &'static str) -> Error {
    Error::new(ErrorKind::Busy, operation)
}

/// Does it from begin to end. `stop` is called in the middle of those that stop between two calls.
async fn perform(
    operation: &str,
    runtime: Arc<dyn Runtime>,
    store: &Datastore,
    stop: impl Fn(),
) -> Result<()> {
    let (only, space): (_, Namespace) = (only(), "n".parse().unwrap());
    match operation {
        "backup" => {
            let backup = store.backup(&group("host/a")).begin().await?;
            backup.set_notes("[1,2]");
            let bytes = data(&[1, 2]);
            let base = store.snapshot(&only).await?;
            let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64);
            image.chunk_bytes(gc_scene::CHUNK as u64).base(&base).await?;
            drop(base);
            stop();
            backup.finish().await.map(drop)
        }
        "restore" => {
            let snapshot = store.snapshot(&only).await?;
            stop();
            gc_scene::restored(&snapshot).await.map(drop)
        }
        "verify" => {
            let report =
                verify::plan(store, &Scope::Store, VerifyOptions::default()).await?.execute().await?;
            let is_busy = |skipped: &verify::SkippedSnapshot| skipped.reason == SkipReason::Busy;
            if report.skipped.iter().any(is_busy) { Err(busy("verify")) } else { Ok(()) }
        }
        "collect" => reason(collect(store, at_once()).await).map_or(Ok(()), Err),
        "delete" => store.delete_snapshot(&only).await,
        "clear" => store.delete_group(&group("host/a")).await.map(drop),
        "move" | "copy" => {
            let group = group("host/a");
            let done = if operation == "move" {
                store.move_group(&group, &space).await?
            } else {
                store.copy_group(&group, &space).await?
            };
            if done.is_complete() { Ok(()) } else { Err(busy("relocate")) }
        }
        "sync" => {
            let source: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime));
            let source = gc_scene::created(&source).await;
            back_up(&source, "host/a", &[1, 3]).await?;
            let report = sync::plan(&source, store, SyncOptions::default()).await?.execute().await?;
            let failed = report.groups.iter().find_map(|group| match &group.outcome {
                SyncGroupOutcome::Failed(error) => Some(error.clone()),
                _ => None,
            });
            failed.map_or(Ok(()), Err)
        }
        "notes" => store.set_notes(&only, "[1,2]").await,
        "protect" => store.set_protection(&only, Protection::On).await,
        other => panic!("{other}"),
    }
}

/// Waits in the middle of an operation until the test says something.
fn stop() {
    println!("\nHERE");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// The other process: does what it reads, line after line, and stops in the middle of it until it reads another line.
fn play() {
    let mut line = String::new();
    let mut read = move || {
        line.clear();
        let length = std::io::stdin().read_line(&mut line).unwrap();
        (length > 0).then(|| line.trim().to_owned())
    };
    while let Some(order) = read() {
        let (operation, root) = order.split_once(' ').unwrap();
        block_on(async {
            let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
            let (watched, store) = opened(Arc::clone(&runtime), Path::new(root)).await;
            let (watching, stopping) = (Arc::downgrade(&watched), operation.to_owned());
            watched.watch(move |step| {
                if is_stop(&stopping, step.method, step.is_over, &step.keys) {
                    stop();
                    // Once is enough.
                    if let Some(watched) = watching.upgrade() {
                        watched.unwatch();
                    }
                }
                Box::pin(async {})
            });
            let done = perform(operation, runtime, &store, stop).await;
            println!("\n{}", if done.is_ok() { "DONE".to_owned() } else { format!("FAILED {done:?}") });
        });
    }
}

struct Player {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Player {
    fn new() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env("LARDER_PLAYER", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, orders, answers: BufReader::new(answers) }
    }

    /// Tells it something, and waits for its answer.
    fn tell(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        for line in (&mut self.answers).lines() {
            let line = line.unwrap();
            if line == "HERE" || line == "DONE" || line.starts_with("FAILED") {
                return line;
            }
        }
        panic!("the other process is gone");
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes sure that everything that is left can be read, before and after garbage was collected.
async fn check_readable(root: &Path, note: &str) {
    let (_, store) = opened(Arc::new(ThreadRuntime::new()), root).await;
    for round in 0..2 {
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            for group in store.groups(&namespace).await.unwrap() {
                assert!(store.owner(&group).await.unwrap().is_some(), "{note}: {group}");
                for info in store.snapshots(&group).await.unwrap() {
                    assert_eq!(info.state, SnapshotState::Finished, "{note}: {}", info.name);
                    let snapshot = store.snapshot(&info.name).await.unwrap();
                    check(&snapshot).await.unwrap_or_else(|error| panic!("{note}: {} {error:?}", info.name));
                }
            }
        }
        if round == 0 {
            collected(&store, at_once()).await;
        }
    }
}

/// Proves H157.
#[test]
fn each_pair_of_operations_in_two_processes_behaves_as_documented() {
    if std::env::var_os("LARDER_PLAYER").is_some() {
        return play();
    }
    let (scratch, mut player) = (larder_testing::scratch(), Player::new());
    let mut wrong = Vec::new();
    for (row, is_packed) in (0..TABLE.len()).flat_map(|row| [(row, false), (row, true)]) {
        let (first, cells) = &TABLE[row];
        let cells: Vec<char> = cells.chars().filter(|cell| !cell.is_whitespace()).collect();
        assert_eq!((*first, cells.len()), (OPERATIONS[row], OPERATIONS.len()));
        let mut found = String::new();
        for second in OPERATIONS {
            let (root, note) = (
                scratch.path().join(format!("{first}-{second}")),
                format!("{first} × {second}, {is_packed}"),
            );
            block_on(made(&root, is_packed));
            assert_eq!(player.tell(&format!("{first} {}", root.display())), "HERE", "{note}");
            // An operation that waits for a lock waits in simulated time.
            let sim = SimRuntime::new(row as u64 + 1);
            let done = sim.block_on(async {
                let (_, store) = opened(Arc::new(sim.clone()), &root).await;
                perform(second, Arc::new(sim.clone()), &store, || {}).await
            });
            found.push(match &done {
                Ok(()) => '+',
                Err(error) if error.kind() == ErrorKind::Busy => '-',
                Err(error) => panic!("{note}: {error:?}"),
            });
            assert_eq!(player.tell("go on"), "DONE", "{note}");
            block_on(check_readable(&root, &note));
            std::fs::remove_dir_all(&root).unwrap();
        }
        if found != cells.iter().collect::<String>() {
            wrong.push(format!("{first:8} {found} packed: {is_packed}"));
        }
    }
    assert!(wrong.is_empty(), "found instead:\n{}", wrong.join("\n"));
}

/// A collection in another process refuses only operations that add references or that need proof that no writer is active.
#[test]
fn operations_without_new_references_run_beside_a_collector_in_another_process() {
    let (scratch, mut player) = (larder_testing::scratch(), Player::new());
    let root = scratch.path().join("store");
    block_on(async {
        made(&root, false).await;
        let (watched, store) = opened(Arc::new(ThreadRuntime::new()), &root).await;
        back_up(&store, "host/b", &[1, 4]).await.unwrap();
        back_up(&store, "ns/n/host/c", &[1, 5]).await.unwrap();
        let dead: SnapshotName = "host/b/2001-01-01T00:00:00Z".parse().unwrap();
        watched.put(&Key::ClientLog(dead.clone()), "x".into(), PutMode::Create).await.unwrap();
        std::fs::create_dir_all(root.join("host/d/2001-01-01T00:00:00Z")).unwrap();
        std::fs::write(root.join("host/d/owner"), "root@pam\n").unwrap();
        assert_eq!(player.tell(&format!("collect {}", root.display())), "HERE");

        let space: Namespace = "n".parse().unwrap();
        store.create_namespace(&"new".parse().unwrap()).await.unwrap();
        store.set_owner(&group("host/b"), &"me@pam".parse().unwrap()).await.unwrap();
        store.set_group_notes(&group("host/b"), "notes").await.unwrap();
        assert_eq!(store.delete_namespace(&space).await.unwrap().deleted.len(), 1);
        assert!(!store.has_namespace(&space).await.unwrap());
        // A finished snapshot goes, an unfinished one stays: its writer may be alive.
        let scope = Scope::Snapshots(vec![only(), dead.clone()]);
        let mut plan = prune::plan_deletion(&store, &scope, PruneOptions::default()).await.unwrap();
        let report = plan.execute().await.unwrap();
        let outcomes: Vec<_> = report.groups.iter().flat_map(|group| &group.snapshots).collect();
        let is_busy = |name: &SnapshotName| {
            outcomes.iter().any(|one| one.name == *name && matches!(one.outcome, PruneOutcome::Busy(_)))
        };
        assert_eq!((report.removed(), is_busy(&dead), is_busy(&only())), (1, true, false));
        // An empty directory may be that of a writer too, and keeps the owner.
        store.delete_group(&group("host/d")).await.unwrap();
        assert!(root.join("host/d/owner").is_file() && root.join("host/d/2001-01-01T00:00:00Z").is_dir());

        assert_eq!(player.tell("go on"), "DONE");
        store.delete_group(&group("host/d")).await.unwrap();
        assert!(!root.join("host/d").exists());
        let again = Scope::Snapshots(vec![dead]);
        assert_eq!(
            prune::plan_deletion(&store, &again, PruneOptions::default())
                .await
                .unwrap()
                .execute()
                .await
                .unwrap()
                .removed(),
            1
        );
        check_readable(&root, "namespaces and plans").await;
    });
}

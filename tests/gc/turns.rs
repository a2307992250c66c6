//! Two processes that take turns on a store in a bucket, both with all that they knew at the end of their last turn.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, Coordination as _};
use larder::format::Digest;
use larder::internal::packs::packed;
use larder::prune::{self, PruneOptions};
use larder::retention::RetentionRules;
use larder::store::{Datastore, Scope};
use larder_testing::fault_server::{FaultServer, Options as ServerOptions};
use larder_testing::gc_scene::{
    CHUNK, OnFailure, at_once, check, check_all, chunks, collected, data, digests, group,
};
use larder_testing::s3_store::{Opening, Process};

use crate::bucket::estrange;

const IDENTITY: &str = "store/.larder/store.json";
const DAY: u64 = 86_400;
const TURNS: u64 = 10;
/// A chunk of all snapshots.
const COMMON: u64 = 1000;

/// Two processes. The handles of one know nothing of those of the other, since the store has another identity in their turns.
struct Turns {
    identities: [Vec<u8>; 2],
    is_packed: bool,
    processes: [Process; 2],
    server: FaultServer,
}

impl Turns {
    async fn new(is_packed: bool) -> Self {
        let server = FaultServer::start(ServerOptions::default());
        let opening = || Opening::of("store").packed(is_packed);
        let first = opening().open(&server).await.unwrap();
        let mine = server.objects()[IDENTITY].clone();
        first.backend.close().await.unwrap();
        estrange(&server, 9001);
        let theirs = server.objects()[IDENTITY].clone();
        assert_ne!(mine, theirs);
        let second = opening().open(&server).await.unwrap();
        second.backend.close().await.unwrap();
        Self { identities: [mine, theirs], is_packed, processes: [first, second], server }
    }

    /// The process whose turn it is.
    fn begin(&self, turn: u64) -> &Process {
        let at = usize::try_from(turn % 2).unwrap();
        self.server.put(IDENTITY, self.identities[at].clone());
        &self.processes[at]
    }

    /// Bytes of all chunks, or of all packs.
    fn bytes(&self) -> usize {
        let is_data = |key: &str| key.contains("/.chunks/") || key.contains("/.larder/packs/");
        self.server.objects().iter().filter(|(key, _)| is_data(key)).map(|(_, bytes)| bytes.len()).sum()
    }

    /// The chunks that a process finds that knows nothing.
    async fn chunks(&self, process: &Process) -> BTreeSet<Digest> {
        let backend: Arc<dyn Backend> = Arc::clone(&process.backend) as _;
        let backend = if self.is_packed { packed(backend).await } else { backend };
        chunks(backend.as_ref()).await
    }
}

/// The chunks of the snapshot of a turn: a new one, one of the snapshot that the other process made last, and one that this process stored
/// and the other one has removed since.
fn numbers(turn: u64) -> Vec<u64> {
    let before = [1, 4].into_iter().filter_map(|ago| turn.checked_sub(ago));
    [turn, COMMON].into_iter().chain(before).collect()
}

async fn back_up(store: &Datastore, turn: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs((20_000 + turn) * DAY);
    let backup = store.backup(&group("host/a")).time(time).begin().await.unwrap();
    let numbers = numbers(turn);
    backup.set_notes(serde_json::to_string(&numbers).unwrap());
    let data = data(&numbers);
    let image = backup.image("d.img", Cursor::new(&data), data.len() as u64);
    image.chunk_bytes(CHUNK as u64).await.unwrap();
    check(&backup.finish().await.unwrap().snapshot).await.unwrap();
}

/// Keeps the last two snapshots.
async fn prune(store: &Datastore) {
    let options = PruneOptions::default().rules(RetentionRules::default().keep_last(2));
    let scope = Scope::Group(group("host/a"));
    prune::plan(store, &scope, options).await.unwrap().execute().await.unwrap();
}

/// Proves H16, H202.
#[test]
fn two_processes_that_take_turns_lose_nothing_and_store_nothing_twice() {
    for is_packed in [false, true] {
        block_on(async {
            let turns = Turns::new(is_packed).await;
            let mut stored = BTreeSet::new();
            for turn in 0..TURNS {
                let _on_failure = OnFailure(format!("packed {is_packed}, turn {turn}"));
                let process = turns.begin(turn);
                // A restore may make a process read what the other one did. Others begin with a backup.
                if turn % 3 == 0 {
                    let snapshots = usize::try_from(turn.min(2)).unwrap();
                    assert_eq!(check_all(&process.store).await, snapshots, "those of the other one");
                }
                let bytes = turns.bytes();
                back_up(&process.store, turn).await;
                let new = numbers(turn).iter().filter(|number| !stored.contains(*number)).count();
                // A pack is a little larger than its chunks.
                let grown = turns.bytes() - bytes;
                assert!((new * CHUNK..(new + 1) * CHUNK).contains(&grown), "{new} new chunks, {grown} bytes");
                prune(&process.store).await;
                let report = collected(&process.store, at_once().max_unused(0)).await;
                let live = numbers(turn).into_iter().chain(turn.checked_sub(1).map_or(vec![], numbers));
                stored = live.collect();
                assert_eq!(turns.chunks(process).await, digests(stored.iter().copied()), "{report:?}");
                assert_eq!(check_all(&process.store).await, usize::try_from((turn + 1).min(2)).unwrap());
                process.backend.close().await.unwrap();
            }
            let Turns { processes, server, .. } = turns;
            for process in processes {
                process.close().await;
            }
            // A process that begins with nothing reads everything.
            let process = Opening::of("store").open(&server).await.unwrap();
            assert_eq!(check_all(&process.store).await, 2);
            process.close().await;
        });
    }
}

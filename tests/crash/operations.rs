//! All operations of several steps.
//!
//! Each runs once more after it was interrupted, by a process that knows nothing of the first attempt, and ends in the same state.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use larder::backend::{ListEntry, ListQuery, MemoryBackend, PutMode, Removal};
use larder::error::{ErrorKind, Result};
use larder::format::layout::{Key, Prefix};
use larder::format::name::Namespace;
use larder::internal::listing::list_all;
use larder::internal::packs::packed;
use larder::prune::{self, PruneGroupOutcome, PruneOptions};
use larder::retention::RetentionRules;
use larder::store::{
    Datastore, FileSource, FileTarget, Options, Protection, Relocation, Scope, SnapshotState,
};
use larder::sync::{self, SyncOptions};
use larder::tree::{DirectorySource, DirectoryTarget, Existing};
use larder::verify::{self, VerifyOptions};
use larder_testing::days::{DAY, at, group, space};
use larder_testing::gc_scene::{CHUNK, chunk, data, digest};
use larder_testing::noise;

use crate::scene::{
    World, back_up, back_up_sealed, back_up_tree, begin, collect, failed, key, name, stream_of, unless,
};

type Step = for<'a> fn(&'a World) -> BoxFuture<'a, Result<()>>;

/// Stores that have an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum In {
    All,
    Buckets,
    Loose,
    Packed,
}

/// An operation of several steps.
#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub name: &'static str,
    /// It changes the snapshots or what is known about them.
    pub changes: bool,
    /// The store cannot be opened in the middle of it, and may be gone in the end.
    pub closes: bool,
    pub has_local_state: bool,
    pub is_in: In,
    /// Changes the scene before.
    pub prepare: Option<Step>,
    pub run: Step,
    /// Checks what is outside of the store, after it ended well or not.
    pub outside: fn(&Path, bool),
}

impl Operation {
    const fn new(name: &'static str, run: Step) -> Self {
        Self {
            name,
            changes: true,
            closes: false,
            has_local_state: false,
            is_in: In::All,
            prepare: None,
            run,
            outside: |_, _| {},
        }
    }

    const fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// It leaves the snapshots as they are.
    const fn keeps(mut self) -> Self {
        self.changes = false;
        self
    }

    const fn with_local_state(mut self) -> Self {
        self.has_local_state = true;
        self
    }

    const fn only_in(mut self, is_in: In) -> Self {
        self.is_in = is_in;
        self
    }

    const fn after(mut self, prepare: Step) -> Self {
        self.prepare = Some(prepare);
        self
    }

    const fn outside(mut self, outside: fn(&Path, bool)) -> Self {
        self.outside = outside;
        self
    }

    /// Returns `true` if stores of this form have it.
    pub(crate) fn fits(&self, is_bucket: bool, is_packed: bool) -> bool {
        match self.is_in {
            In::All => true,
            In::Buckets => is_bucket,
            In::Loose => !is_packed,
            In::Packed => is_packed,
        }
    }
}

/// Makes an operation of a store that is open.
macro_rules! on_store {
    (|$store:ident, $world:ident| $body:expr) => {
        |$world| {
            Box::pin(async move {
                let $store = $world.open().await?;
                let done: Result<()> = $body;
                done
            })
        }
    };
}

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("backup", on_store!(|store, _world| back_up(&store, "host/a", 4, &[4, 5, 9]).await)),
    Operation::new(
        "backup of a new group",
        on_store!(|store, _world| { back_up(&store, "ns/m/ns/inner/host/new", 1, &[1, 30]).await }),
    ),
    Operation::new(
        "encrypted backup",
        on_store!(|store, _world| { back_up_sealed(&store, 2, &[8, 10, 1]).await }),
    ),
    Operation::new("backup of a tree", on_store!(|store, _world| back_up_tree(&store, 2).await)),
    Operation::new("backup of files", on_store!(|store, world| back_up_files(&store, world).await))
        .after(make_files),
    Operation::new("image in any order", on_store!(|store, _world| back_up_in_any_order(&store).await)),
    Operation::new(
        "backup with local state",
        on_store!(|store, _world| { back_up(&store, "host/a", 4, &[4, 5, 9]).await }),
    )
    .with_local_state(),
    Operation::new("aborted backup", on_store!(|store, _world| abort(&store).await)).keeps(),
    Operation::new(
        "deletion of a snapshot",
        on_store!(|store, _world| {
            unless(store.delete_snapshot(&name("host/a", 2)).await, ErrorKind::NotFound)
        }),
    ),
    Operation::new(
        "deletion of a group",
        on_store!(|store, _world| {
            unless(store.delete_group(&group("ns/m/host/x")).await, ErrorKind::NotFound)
        }),
    ),
    Operation::new(
        "deletion of a namespace",
        on_store!(|store, _world| { unless(store.delete_namespace(&space("m")).await, ErrorKind::NotFound) }),
    ),
    Operation::new("prune", on_store!(|store, _world| prune(&store).await)),
    Operation::new("collection", on_store!(|store, _world| collect(&store).await)).keeps(),
    Operation::new("collection with local state", on_store!(|store, _world| collect(&store).await))
        .keeps()
        .with_local_state(),
    Operation::new("verification", on_store!(|store, _world| verify(&store).await)),
    Operation::new("quarantine", on_store!(|store, _world| verify(&store).await)).after(damage),
    Operation::new("reinstatement", on_store!(|store, _world| verify(&store).await))
        .only_in(In::Loose)
        .after(set_aside),
    Operation::new("sync", on_store!(|store, world| sync(&store, world, SyncOptions::default()).await)),
    Operation::new(
        "sync with encryption",
        on_store!(|store, world| sync(&store, world, SyncOptions::default().reencrypt(&key())).await),
    ),
    Operation::new(
        "copy of a group",
        on_store!(|store, _world| { complete(store.copy_group(&group("host/a"), &space("n")).await) }),
    ),
    Operation::new(
        "move of a group",
        on_store!(|store, _world| { complete(store.move_group(&group("host/a"), &space("n")).await) }),
    ),
    Operation::new(
        "copy of a namespace",
        on_store!(|store, _world| { complete(store.copy_namespace(&space("m"), &space("k")).await) }),
    ),
    Operation::new(
        "move of a namespace",
        on_store!(|store, _world| { complete(store.move_namespace(&space("m"), &space("n/k")).await) }),
    ),
    Operation::new(
        "notes",
        on_store!(|store, _world| {
            store.set_notes(&name("host/a", 3), "others").await?;
            store.set_group_notes(&group("host/a"), "others").await
        }),
    ),
    Operation::new(
        "protection",
        on_store!(|store, _world| {
            store.set_protection(&name("host/a", 3), Protection::On).await?;
            store.set_protection(&name("host/a", 1), Protection::Off).await
        }),
    ),
    Operation::new(
        "owner",
        on_store!(|store, _world| { store.set_owner(&group("host/a"), &"me@pam".parse().unwrap()).await }),
    ),
    Operation::new(
        "new namespaces",
        on_store!(|store, _world| {
            unless(store.create_namespace(&space("o")).await, ErrorKind::AlreadyExists)?;
            unless(store.create_namespace(&space("o/p")).await, ErrorKind::AlreadyExists)
        }),
    ),
    Operation::new("rebuild of the index", on_store!(|store, _world| rebuild(&store).await))
        .only_in(In::Packed)
        .after(lose_the_index),
    Operation::new("restore of an image", on_store!(|store, world| restore_image(&store, world).await))
        .keeps()
        .outside(check_image),
    Operation::new("restore of a tree", on_store!(|store, world| restore_tree(&store, world).await))
        .keeps()
        .outside(check_tree),
    Operation::new("restore with local state", on_store!(|store, _world| restore_stream(&store).await))
        .keeps()
        .with_local_state(),
    Operation::new("refresh of the local state", on_store!(|store, _world| store.refresh().await.map(drop)))
        .keeps()
        .only_in(In::Buckets)
        .with_local_state(),
    Operation::new("new identity", on_store!(|store, _world| store.adopt_as_new().await.map(drop))).keeps(),
    Operation::new("attachment", |world| {
        Box::pin(
            async move { Datastore::attach(Arc::clone(&world.backend), Options::default()).await.map(drop) },
        )
    })
    .only_in(In::Loose)
    .after(forget_the_identity),
    Operation::new("creation", |world| {
        Box::pin(async move {
            match world.create().await {
                // A part of it was made.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    Datastore::attach(Arc::clone(&world.backend), Options::default()).await.map(drop)
                }
                created => created.map(drop),
            }
        })
    })
    .only_in(In::Buckets)
    .after(|world| Box::pin(async move { Datastore::destroy(Arc::clone(&world.backend)).await.map(drop) }))
    .closing(),
    Operation::new("destruction", |world| {
        Box::pin(
            async move { unless(Datastore::destroy(Arc::clone(&world.backend)).await, ErrorKind::NotFound) },
        )
    })
    .closing(),
];

fn complete(done: Result<Relocation>) -> Result<()> {
    match done {
        // It was moved before.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(done) if done.is_complete() => Ok(()),
        Ok(done) => Err(failed(&format!("{done:?}"))),
    }
}

async fn abort(store: &Datastore) -> Result<()> {
    let backup = store.backup(&group("host/a")).time(at(4 * DAY)).begin().await?;
    backup.blob("c.conf", "x").await?;
    let bytes = data(&[40, 41]);
    let image = backup.image("d.img", futures::io::Cursor::new(&bytes), bytes.len() as u64);
    image.chunk_bytes(CHUNK as u64).await?;
    backup.abort().await
}

async fn back_up_in_any_order(store: &Datastore) -> Result<()> {
    let builder = store.backup(&group("vm/any")).time(at(DAY));
    let Some(backup) = begin(store, builder, &name("vm/any", 1)).await? else { return Ok(()) };
    let mut image = backup.image_writer("d.img", 3 * CHUNK as u64).chunk_bytes(CHUNK as u64).begin().await?;
    for part in [2, 0, 1] {
        image.write_at(part * CHUNK as u64, Bytes::from(chunk(50 + part))).await?;
    }
    image.finish().await?;
    backup.finish().await.map(drop)
}

/// Files to back up, beside the store.
fn make_files(world: &World) -> BoxFuture<'_, Result<()>> {
    let source = world.directory.join("source");
    fs::create_dir_all(source.join("d")).unwrap();
    fs::write(source.join("d/one"), noise(70, 9000)).unwrap();
    fs::write(source.join("two"), noise(71, 100)).unwrap();
    std::os::unix::fs::symlink("two", source.join("link")).unwrap();
    fs::write(world.directory.join("image"), data(&[60, 61])).unwrap();
    Box::pin(async { Ok(()) })
}

async fn back_up_files(store: &Datastore, world: &World) -> Result<()> {
    let builder = store.backup(&group("host/files")).time(at(DAY));
    let Some(backup) = begin(store, builder, &name("host/files", 1)).await? else { return Ok(()) };
    let source = DirectorySource::open(Arc::clone(&world.runtime), world.directory.join("source")).await?;
    let summary = backup.tree("root", &source).await?;
    if !summary.report.findings.is_empty() {
        return Err(failed(&format!("{:?}", summary.report)));
    }
    let image = FileSource::open(Arc::clone(&world.runtime), world.directory.join("image")).await?;
    backup.image_file("d.img", image).chunk_bytes(CHUNK as u64).await?;
    backup.finish().await.map(drop)
}

async fn prune(store: &Datastore) -> Result<()> {
    let options = PruneOptions::default().rules(RetentionRules::default().keep_last(1));
    let mut plan = prune::plan(store, &Scope::Tree(Namespace::root()), options).await?;
    let report = plan.execute().await?;
    let is_failed = |outcome: &PruneGroupOutcome| matches!(outcome, PruneGroupOutcome::Failed(_));
    if report.left() > 0
        || report.stopped.is_some()
        || report.groups.iter().any(|group| is_failed(&group.outcome))
    {
        return Err(failed(&format!("{report:?}")));
    }
    Ok(())
}

async fn verify(store: &Datastore) -> Result<()> {
    let report = verify::plan(store, &Scope::Store, VerifyOptions::default()).await?.execute().await?;
    let is_done = report.incomplete.is_none()
        && report.chunks.unreachable == 0
        && report.skipped.iter().all(|skipped| skipped.reason == verify::SkipReason::Unfinished)
        && report.unrepaired == 0
        && report.unrecorded.is_empty();
    if is_done { Ok(()) } else { Err(failed(&format!("{report:?}"))) }
}

/// Damages a chunk.
fn damage(world: &World) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move {
        let key = Key::Chunk(digest(3));
        if !world.is_packed {
            return world.backend.put(&key, "junk".into(), PutMode::Replace).await.map(drop);
        }
        let info = packed(Arc::clone(&world.backend)).await.head(&key).await?;
        let (pack, offset) = info.version.as_str().split_once(':').unwrap();
        let (pack, offset) = (Key::Pack(pack.parse().unwrap()), offset.parse::<usize>().unwrap());
        let mut whole = world.backend.get(&pack, u64::MAX).await?.bytes.to_vec();
        whole[offset + 20..offset + 40].fill(0);
        world.backend.put(&pack, whole.into(), PutMode::Replace).await.map(drop)
    })
}

/// Takes a chunk out of its place, as a quarantine does.
fn set_aside(world: &World) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move {
        let (key, aside) = (Key::Chunk(digest(3)), Key::Quarantined(digest(3), 0));
        let bytes = world.backend.get(&key, u64::MAX).await?.bytes;
        world.backend.put(&aside, bytes, PutMode::Create).await?;
        world.backend.delete(&[Removal::any(key)]).await?.remove(0).map(drop)
    })
}

/// Loses all segments of a packed store.
fn lose_the_index(world: &World) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move {
        let listing = list_all(world.backend.as_ref(), &ListQuery::all(Prefix::Segments)).await?;
        let segments = listing.into_entries().into_iter().filter_map(|entry| match entry {
            ListEntry::Object(info) => Some(Removal::any(info.key)),
            ListEntry::Name(key) => Some(Removal::any(key)),
            _ => None,
        });
        world.backend.delete(&segments.collect::<Vec<_>>()).await.map(drop)
    })
}

/// Makes the store one without an identity, as PBS makes them.
fn forget_the_identity(world: &World) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move { world.backend.delete(&[Removal::any(Key::Store)]).await.map(drop) })
}

async fn rebuild(store: &Datastore) -> Result<()> {
    let report = store.plan_index_rebuild().await?.execute().await?;
    if report.unreadable.is_empty() { Ok(()) } else { Err(failed(&format!("{report:?}"))) }
}

/// Transfers from another store.
async fn sync(store: &Datastore, world: &World, options: SyncOptions) -> Result<()> {
    let memory = Arc::new(MemoryBackend::new(Arc::clone(&world.runtime)));
    let source = Datastore::create(memory, Options::default()).await?;
    source.create_namespace(&space("far")).await?;
    back_up(&source, "host/b", 1, &[1, 80]).await?;
    back_up(&source, "host/b", 2, &[1, 81]).await?;
    back_up(&source, "ns/far/host/c", 1, &[82]).await?;
    let report = sync::plan(&source, store, options).await?.execute().await?;
    if report.is_complete() { Ok(()) } else { Err(failed(&format!("{report:?}"))) }
}

const IMAGE: [u64; 3] = [2, 3, 4];

async fn restore_image(store: &Datastore, world: &World) -> Result<()> {
    let path = world.directory.join("restored");
    let snapshot = store.snapshot(&name("host/a", 2)).await?;
    let archive = snapshot.archive("d.img.fidx").await?;
    let mut target = match FileTarget::create(Arc::clone(&world.runtime), &path).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        target => target?,
    };
    archive.copy_to(&mut target).await.map(drop)
}

/// A file has its name only if it is whole.
fn check_image(directory: &Path, is_done: bool) {
    let restored = fs::read(directory.join("restored"));
    assert!(restored.is_ok() || !is_done, "the restored file is missing");
    assert!(restored.is_err() || restored.unwrap() == data(&IMAGE), "the restored file differs");
}

async fn restore_tree(store: &Datastore, world: &World) -> Result<()> {
    let path = world.directory.join("tree");
    let snapshot = store.snapshot(&name("host/tree", 1)).await?;
    let target = match DirectoryTarget::create(Arc::clone(&world.runtime), &path).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            DirectoryTarget::open(Arc::clone(&world.runtime), &path).await?
        }
        target => target?,
    };
    let target = target.existing(Existing::Replace).without_flush();
    let tree = snapshot.tree("root").await?;
    let summary = tree.restore(&target).await?;
    if summary.report.findings.is_empty() { Ok(()) } else { Err(failed(&format!("{:?}", summary.report))) }
}

fn check_tree(directory: &Path, is_done: bool) {
    let path = directory.join("tree");
    for number in 0..6 {
        let restored = fs::read(path.join(format!("d/same{number}")));
        assert!(restored.is_ok() || !is_done, "a restored file is missing");
        assert!(restored.is_err() || restored.unwrap() == noise(number, 3000), "a restored file differs");
    }
}

/// Restores so that what is read stays in the local state.
async fn restore_stream(store: &Datastore) -> Result<()> {
    for info in store.snapshots(&group("host/a")).await? {
        if info.state == SnapshotState::Finished {
            stream_of(store, &info.name, "s.bin.didx").await?;
        }
    }
    Ok(())
}

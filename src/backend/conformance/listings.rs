//! Listing what is stored.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::conformance::{
    Plant, archive, begin, blob, chunk, end, entries, keys, load, must, name, namespace, notes, owner,
    quarantine, remove, store,
};
use crate::backend::{Backend, Depth, ListEntry, ListQuery};
use crate::format::Digest;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{BackupType, Namespace};

/// **Ordered**: byte order of paths, each once. `-` and `.` come before the `/` that ends a name, and digits after it.
pub(super) async fn ordered(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let mut stored = Vec::new();
    for group in ["vm/1", "vm/1-a", "vm/1.x", "vm/10", "vm/1_", "vm/2", "ct/1", "host/Z", "host/a"] {
        stored.extend([owner(group), notes(group), archive(&format!("{group}/{DAY}"), "z.img.fidx")]);
        stored.push(archive(&format!("{group}/2024-01-01T00:00:00Z"), "a.blob"));
    }
    for child in ["vm", "vm-x", "x"] {
        stored.push(Key::Namespace(namespace(&Namespace::root(), child)));
    }
    for key in stored.iter().rev() {
        store(backend, key, Bytes::new()).await;
    }
    let chunks = [chunk(1), chunk(2), Key::Quarantined(digest(1), 1), Key::Quarantined(digest(1), 0)];
    quarantine(backend, digest(1), 0, &blob("")).await;
    quarantine(backend, digest(1), 1, &blob("")).await;
    for key in &chunks[..2] {
        store(backend, key, blob("")).await;
    }
    for (mut stored, prefix) in
        [(stored, Prefix::Namespace(Namespace::root())), (chunks.to_vec(), Prefix::Chunks)]
    {
        stored.sort_by_key(Key::path);
        assert_eq!(keys(backend, &ListQuery::all(prefix)).await, stored, "ordered");
    }
    end(backend, &chunks).await;
}

/// **Complete**: a listing shows all objects below its prefix and within its bounds, and no others. Together, shards of the chunks show
/// all of them, for any bounds.
pub(super) async fn complete(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    quarantine(backend, digest(3), 0, &blob("x")).await;
    let mut chunks: Vec<Key> = (0..40).map(chunk).collect();
    for key in chunks.iter().chain([&Key::GcStatus, &Key::Store]) {
        store(backend, key, blob("x")).await;
    }
    chunks.push(Key::Quarantined(digest(3), 0));
    chunks.sort();
    let whole = ListQuery::all(Prefix::Chunks);
    assert_eq!(keys(backend, &whole).await, chunks, "complete: all chunks");
    // Bounds at objects, beside objects, and at both ends.
    let between = Key::Chunk(Digest::from_bytes([0x80; 32]));
    for cuts in [vec![], vec![&chunks[0]], vec![&chunks[40]], vec![&chunks[7], &chunks[8], &between]] {
        let cuts: BTreeSet<Key> = cuts.into_iter().cloned().collect();
        let starts = std::iter::once(None).chain(cuts.iter().cloned().map(Some));
        let ends = cuts.iter().cloned().map(Some).chain([None]);
        let mut union = Vec::new();
        for (after, until) in starts.zip(ends) {
            let shard = keys(backend, &whole.clone().between(after.clone(), until.clone())).await;
            let inside = |key: &Key| {
                after.as_ref().is_none_or(|after| key > after)
                    && until.as_ref().is_none_or(|until| key <= until)
            };
            assert!(shard.iter().all(inside), "complete: the shard from {after:?} to {until:?}");
            union.extend(shard);
        }
        assert_eq!(union, chunks, "complete: the shards make up the whole");
    }
    within_prefixes(backend).await;
    chunks.extend([Key::GcStatus, Key::Store]);
    end(backend, &chunks).await;
}

async fn within_prefixes(backend: &Arc<dyn Backend>) {
    let (one, ten) = ("ns/a/vm/1", "ns/a/vm/10");
    let a = namespace(&Namespace::root(), "a");
    let b = namespace(&a, "b");
    let mut stored = vec![Key::Namespace(a.clone()), Key::Namespace(b.clone())];
    for group in [one, ten, "ns/a/ct/1", "ns/a/ns/b/vm/1", "vm/1"] {
        stored.extend([owner(group), archive(&format!("{group}/{DAY}"), "x.blob")]);
    }
    for key in &stored {
        store(backend, key, "").await;
    }
    stored.sort();
    for prefix in [
        Prefix::Namespace(Namespace::root()),
        Prefix::Namespace(a.clone()),
        Prefix::Namespace(b.clone()),
        Prefix::Namespaces(Namespace::root()),
        Prefix::Namespaces(a.clone()),
        Prefix::Namespaces(b),
        Prefix::Groups(a.clone(), BackupType::Vm),
        Prefix::Groups(a, BackupType::Host),
        Prefix::Group(name(one)),
        Prefix::Group(name("vm/7")),
        Prefix::Snapshot(name(&format!("{ten}/{DAY}"))),
    ] {
        let below: Vec<_> = stored.iter().filter(|key| prefix.contains(key)).cloned().collect();
        let query = ListQuery::all(prefix.clone());
        assert_eq!(keys(backend, &query).await, below, "complete: below {prefix:?}");
        for (at, bound) in stored.iter().enumerate() {
            let outside = |key: &&Key| prefix.contains(key);
            let after = query.clone().between(Some(bound.clone()), None);
            let wanted: Vec<_> = stored[at + 1..].iter().filter(outside).cloned().collect();
            assert_eq!(keys(backend, &after).await, wanted, "complete: below {prefix:?} after {bound}");
            let until = query.clone().between(None, Some(bound.clone()));
            let wanted: Vec<_> = stored[..=at].iter().filter(outside).cloned().collect();
            assert_eq!(keys(backend, &until).await, wanted, "complete: below {prefix:?} until {bound}");
        }
    }
}

/// A listing of one level shows its objects and the prefixes one level deeper. Any other prefix that it shows is empty. Within bounds, it
/// shows the entries whose paths are within them.
pub(super) async fn children(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let a = namespace(&Namespace::root(), "a");
    let inner = namespace(&a, "b");
    let [one, ten] = ["ns/a/vm/1", "ns/a/vm/10"];
    let snapshot = format!("{one}/{DAY}");
    let stored =
        [Key::Namespace(a.clone()), Key::Namespace(inner.clone()), owner(one), owner(ten), notes(one)];
    let files = [archive(&snapshot, "x.blob"), Key::Manifest(name(&snapshot))];
    for key in stored.iter().chain(&files).chain([&owner("ct/1")]) {
        store(backend, key, "").await;
    }
    let groups = [Prefix::Group(name(one)), Prefix::Group(name(ten))];
    let below_a = [Prefix::Namespaces(a.clone()), Prefix::Groups(a.clone(), BackupType::Vm)];
    let root = Namespace::root();
    let below_root = [Prefix::Groups(root.clone(), BackupType::Ct), Prefix::Namespaces(root.clone())];
    let of_group = [notes(one), owner(one)];
    for (prefix, objects, prefixes) in [
        (Prefix::Namespace(root.clone()), &[][..], &below_root[..]),
        (Prefix::Namespaces(root), &[], &[Prefix::Namespace(a.clone())]),
        (Prefix::Namespace(a.clone()), &stored[..1], &below_a),
        (Prefix::Namespaces(a.clone()), &[], &[Prefix::Namespace(inner)]),
        (Prefix::Groups(a, BackupType::Vm), &[], &groups),
        (groups[0].clone(), &of_group, &[Prefix::Snapshot(name(&snapshot))]),
        (Prefix::Snapshot(name(&snapshot)), &[files[1].clone(), files[0].clone()], &[]),
    ] {
        let (mut found, mut deeper) = (Vec::new(), Vec::new());
        for entry in entries(backend, &ListQuery::children(prefix.clone())).await {
            match entry {
                ListEntry::Object(info) => found.push(info.key),
                ListEntry::Prefix(prefix) => deeper.push(prefix),
                other @ (ListEntry::Foreign(_) | ListEntry::Name(_) | ListEntry::Unreadable(_)) => {
                    panic!("children: {other:?}, which the suite neither stored nor queried")
                }
            }
        }
        found.sort();
        let mut objects = objects.to_vec();
        objects.sort();
        assert_eq!(found, objects, "children: the objects directly below {prefix:?}");
        for wanted in prefixes {
            assert!(deeper.contains(wanted), "children: {wanted:?} is not shown below {prefix:?}");
        }
        for more in deeper.into_iter().filter(|found| !prefixes.contains(found)) {
            let inside = keys(backend, &ListQuery::all(more.clone())).await;
            assert!(inside.is_empty(), "children: {more:?} is not one level below {prefix:?}");
        }
        for bound in stored.iter().chain(&files) {
            children_within(backend, &prefix, &stored[0], bound).await;
        }
    }
    end(backend, &[]).await;
}

async fn children_within(backend: &Arc<dyn Backend>, prefix: &Prefix, first: &Key, bound: &Key) {
    let whole = ListQuery::children(prefix.clone());
    let paths = |entries: Vec<ListEntry>| entries.iter().map(ListEntry::path).collect::<Vec<_>>();
    let all = paths(entries(backend, &whole).await);
    for (after, until) in [(Some(bound), None), (None, Some(bound)), (Some(first), Some(bound))] {
        let part = whole.clone().between(after.cloned(), until.cloned());
        let within: Vec<_> = all.iter().filter(|path| part.covers(path)).cloned().collect();
        assert_eq!(paths(entries(backend, &part).await), within, "children: within bounds of {part:?}");
    }
}

/// **Complete**, over several pages: stores this number of chunks and of groups, and lists them page by page. Fails if all of them fit on
/// one page, since that would prove nothing.
pub(super) async fn paging(backend: &Arc<dyn Backend>, objects: u32) {
    begin(backend).await;
    let chunks: Vec<Key> = (0..objects).map(chunk).collect();
    let groups: Vec<Key> = (0..objects).map(|number| owner(&format!("vm/{number}"))).collect();
    for key in chunks.iter().chain(&groups) {
        store(backend, key, blob("")).await;
    }
    let root = Prefix::Namespace(Namespace::root());
    let vms = Prefix::Groups(Namespace::root(), BackupType::Vm);
    for (query, wanted) in [
        (ListQuery::all(Prefix::Chunks), &chunks),
        (ListQuery::all(root), &groups),
        (ListQuery::children(vms), &groups),
    ] {
        let (mut found, mut pages, mut cursor) = (Vec::new(), 0, None);
        loop {
            let page = must(backend.list(&query, cursor.as_ref()).await, "complete: a page");
            found.extend(page.entries.iter().map(ListEntry::path));
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            assert!(pages <= 2 * objects, "complete: the listing of {query:?} never ends");
        }
        assert!(pages > 1, "complete: {objects} objects are not enough for a second page");
        let mut wanted: Vec<String> = match query.depth {
            Depth::All => wanted.iter().map(Key::path).collect(),
            Depth::Children => (0..objects).map(|number| format!("vm/{number}/")).collect(),
        };
        wanted.sort_unstable();
        assert!(found == wanted, "complete: {} of {objects} over {pages} pages", found.len());
    }
    remove(backend, &groups).await;
    end(backend, &chunks).await;
}

/// **Foreign is reported**: listings show files that `plant` stores at paths of no key as foreign, and the backend leaves them alone.
///
/// `plant` stores a few bytes at a path, without the backend. These files remain, so this case is the last one on a store.
pub(super) async fn foreign_is_reported(backend: &Arc<dyn Backend>, plant: &Plant<'_>) {
    begin(backend).await;
    let (group, snapshot) = ("vm/100", format!("vm/100/{DAY}"));
    let stored = [chunk(1), owner(group), archive(&snapshot, "x.blob")];
    for key in &stored {
        store(backend, key, "x").await;
    }
    let beside = stored[0].path();
    let of_chunks = [format!("{beside}.10.bad"), format!("{beside}.tmp_AbCdEf")];
    let of_groups = [
        format!("{snapshot}/x.blob.tmp"),
        "vm/100/Notes".to_owned(),
        "vm/no group".to_owned(),
        "vm/x".to_owned(),
    ];
    for path in of_chunks.iter().chain(&of_groups) {
        plant(path.clone()).await;
    }
    let root = Prefix::Namespace(Namespace::root());
    for round in 0..2 {
        for (prefix, planted) in [(Prefix::Chunks, &of_chunks[..]), (root.clone(), &of_groups[..])] {
            let found = entries(backend, &ListQuery::all(prefix.clone())).await;
            let (mut foreign, mut objects) = (Vec::new(), Vec::new());
            for entry in found {
                match entry {
                    ListEntry::Foreign(path) => foreign.push(path),
                    other => objects.push(other.path()),
                }
            }
            let mut planted = planted.to_vec();
            planted.sort_unstable();
            assert_eq!(foreign, planted, "foreign is reported: below {prefix:?}");
            let wanted = stored.iter().filter(|key| round == 0 && prefix.contains(key));
            let mut wanted: Vec<_> = wanted.map(Key::path).collect();
            wanted.sort_unstable();
            assert_eq!(objects, wanted, "foreign is reported: the objects below {prefix:?}");
        }
        if round == 0 {
            for key in &stored {
                assert_eq!(load(backend, key).await.bytes, "x", "foreign is reported: {key}");
            }
            remove(backend, &stored).await;
        }
    }
}

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_le_bytes())
}

const DAY: &str = "2025-07-14T14:20:02Z";

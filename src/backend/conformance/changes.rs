//! Changes by one task at a time.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::conformance::{
    archive, begin, blob, chunk, end, entries, holds, is_absent, keys, load, must, namespace, notes, owner,
    quarantine, refused, remove, store,
};
use crate::backend::{Backend, Deleted, ListEntry, ListQuery, PutMode, Removal, Touched, Version};
use crate::error::ErrorKind;
use crate::format::Digest;
use crate::format::layout::{Key, Prefix};
use crate::format::name::Namespace;

/// **Create never replaces**: `Create` stores a new object and never replaces one. A backend that cannot promise that refuses both.
pub(super) async fn create_never_replaces(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let marker = Key::Namespace(namespace(&Namespace::root(), "a"));
    for (key, first, second) in
        [(chunk(1), "12 old bytes", "12 new bytes"), (notes("vm/1"), "", "new"), (marker, "", "")]
    {
        let what = format!("create never replaces: {key}");
        let create =
            |bytes: &'static str| backend.put(&key, Bytes::from_static(bytes.as_bytes()), PutMode::Create);
        let old = if backend.capabilities().conditional_put {
            must(create(first).await, &what)
        } else {
            refused(create(first).await, ErrorKind::Unsupported, &what);
            is_absent(backend, &key, &what).await;
            store(backend, &key, first).await
        };
        let kind = taken(backend);
        for _ in 0..2 {
            refused(create(second).await, kind, &what);
            holds(backend, &key, first.as_bytes(), &old, &what).await;
        }
        remove(backend, std::slice::from_ref(&key)).await;
        if backend.capabilities().conditional_put {
            let again = must(create(second).await, "create never replaces: what was deleted may be created");
            holds(backend, &key, second.as_bytes(), &again, &what).await;
            remove(backend, &[key]).await;
        }
    }
    end(backend, &[]).await;
}

/// Versions differ between contents, are the same in all results, and restrict `IfMatch` and deletions with a version.
pub(super) async fn versions(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let key = notes("vm/1");
    let mut seen = HashSet::new();
    for number in 0..64_u8 {
        // Equal sizes in quick succession: a version must not consist of size or time alone.
        assert!(
            seen.insert(store(backend, &key, vec![number; 8]).await),
            "versions: that of another content"
        );
    }
    let stale = store(backend, &key, "stale").await;
    let fresh = store(backend, &key, "fresh").await;
    holds(backend, &key, b"fresh", &fresh, "versions").await;
    let listed = entries(backend, &ListQuery::all(Prefix::Namespace(Namespace::root()))).await;
    let shown = listed.into_iter().any(|entry| match entry {
        ListEntry::Object(info) => info.key == key && info.version == fresh,
        _ => false,
    });
    assert!(shown, "versions: a listing shows the one that `put` returned");
    if backend.capabilities().conditional_put {
        replace_if_match(backend, &key, &stale, &fresh).await;
    } else {
        for version in [&stale, &fresh] {
            let put = backend.put(&key, Bytes::new(), PutMode::IfMatch(version.clone())).await;
            refused(put, ErrorKind::Unsupported, "versions: `IfMatch`");
        }
        holds(backend, &key, b"fresh", &fresh, "versions: refusing changes nothing").await;
    }
    delete_if_match(backend, &key, &stale).await;
    end(backend, &[]).await;
}

async fn replace_if_match(backend: &Arc<dyn Backend>, key: &Key, stale: &Version, fresh: &Version) {
    let replace = |key: &Key, bytes: &'static str, version: &Version| {
        let (key, mode) = (key.clone(), PutMode::IfMatch(version.clone()));
        async move { backend.put(&key, Bytes::from_static(bytes.as_bytes()), mode).await }
    };
    let what = "versions: `IfMatch`";
    refused(replace(key, "x", stale).await, ErrorKind::Conflict, what);
    holds(backend, key, b"fresh", fresh, what).await;
    let newer = must(replace(key, "newer", fresh).await, what);
    assert_ne!(newer, *fresh, "{what}");
    refused(replace(key, "x", fresh).await, ErrorKind::Conflict, what);
    holds(backend, key, b"newer", &newer, what).await;
    let absent = notes("vm/2");
    refused(replace(&absent, "x", &newer).await, ErrorKind::Conflict, "versions: `IfMatch` of nothing");
    is_absent(backend, &absent, "versions: `IfMatch` of nothing").await;
    let marker = Key::Namespace(namespace(&Namespace::root(), "a"));
    refused(replace(&marker, "", &newer).await, ErrorKind::Conflict, "versions: `IfMatch` of no namespace");
    is_absent(backend, &marker, "versions: `IfMatch` of no namespace").await;
    let version = store(backend, &marker, "").await;
    refused(replace(&marker, "", &newer).await, ErrorKind::Conflict, "versions: of another namespace");
    must(replace(&marker, "", &version).await, "versions: of this namespace");
}

async fn delete_if_match(backend: &Arc<dyn Backend>, key: &Key, stale: &Version) {
    let what = "versions: a deletion that names one";
    let fresh = load(backend, key).await.info.version;
    let named = |version: &Version| Removal { key: key.clone(), version: Some(version.clone()) };
    let delete = |version: &Version| {
        let removals = [named(version)];
        async move { must(backend.delete(&removals).await, what).remove(0) }
    };
    if backend.capabilities().conditional_delete {
        refused(delete(stale).await, ErrorKind::Conflict, what);
        assert_eq!(load(backend, key).await.info.version, fresh, "{what}");
        assert_ne!(must(delete(&fresh).await, what), Deleted::Absent, "{what}");
        is_absent(backend, key, what).await;
        assert_ne!(must(delete(&fresh).await, what), Deleted::Removed, "{what}");
    } else {
        for version in [stale, &fresh] {
            refused(delete(version).await, ErrorKind::Unsupported, what);
        }
        assert_eq!(load(backend, key).await.info.version, fresh, "{what}");
    }
}

/// Each deletion has a result, in order. A failure does not prevent the other deletions.
pub(super) async fn deletes(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    assert_eq!(must(backend.delete(&[]).await, "delete: nothing").len(), 0);
    let full = namespace(&Namespace::root(), "full");
    let stay = [Key::Namespace(full), owner("ns/full/vm/1"), chunk(9), owner("vm/10")];
    let go = [chunk(1), owner("vm/1"), archive("vm/1/2025-07-14T14:20:02Z", "a.blob"), Key::GcStatus];
    for key in stay.iter().chain(&go) {
        store(backend, key, content(key)).await;
    }
    // In reverse order, the results would differ.
    let asked = [&go[0], &go[1], &chunk(2), &stay[0], &go[2], &go[3], &owner("vm/3")];
    let removals: Vec<_> = asked.into_iter().cloned().map(Removal::any).collect();
    let results = must(backend.delete(&removals).await, "delete: several");
    let results: Vec<_> = results.into_iter().map(|result| result.map_err(|error| error.kind())).collect();
    let (removed, absent) = (Ok(Deleted::Removed), Ok(Deleted::Absent));
    let wanted = [removed, removed, absent, Err(ErrorKind::Conflict), removed, removed, absent];
    let agree = results.iter().zip(wanted).all(|(result, wanted)| match result {
        Ok(Deleted::Unknown | Deleted::InDoubt) => wanted.is_ok(),
        result => *result == wanted,
    });
    assert!(
        agree && results.len() == wanted.len(),
        "delete: the results in the order of the objects: {results:?}"
    );
    for key in &go {
        is_absent(backend, key, "delete: what was deleted").await;
    }
    for key in &stay {
        must(backend.head(key).await, "delete: what was not meant");
    }
    end(backend, &stay[2..3]).await;
}

/// The shortest content of an object with this key.
fn content(key: &Key) -> Bytes {
    if matches!(key, Key::Chunk(_)) { blob("") } else { Bytes::new() }
}

/// A copy has the bytes of the original, follows the rules of `put`, and remains when the original is deleted. A quarantined copy has the
/// bytes of its chunk.
pub(super) async fn copies(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let digest = Digest::of(&1_u32.to_le_bytes());
    let version = quarantine(backend, digest, 0, &blob("bad")).await;
    let quarantined = Key::Quarantined(digest, 0);
    holds(backend, &quarantined, &blob("bad"), &version, "copy: quarantined").await;
    is_absent(backend, &Key::Chunk(digest), "copy: the chunk is not there any more").await;
    remove(backend, &[quarantined]).await;
    let (from, to) = (notes("vm/1"), notes("vm/2"));
    let original = store(backend, &from, "original").await;
    if backend.capabilities().conditional_put {
        let made = must(backend.copy(&from, &to, PutMode::Create).await, "copy: to where nothing is");
        holds(backend, &to, b"original", &made, "copy").await;
        remove(backend, std::slice::from_ref(&to)).await;
    }
    let taken = taken(backend);
    let old = store(backend, &to, "other").await;
    refused(backend.copy(&from, &to, PutMode::Create).await, taken, "copy: `Create` over another");
    holds(backend, &to, b"other", &old, "copy: `Create` over another").await;
    let replaced = must(backend.copy(&from, &to, PutMode::Replace).await, "copy: over another");
    holds(backend, &to, b"original", &replaced, "copy: over another").await;
    holds(backend, &from, b"original", &original, "copy: the original stays").await;
    let stale = backend.copy(&from, &to, PutMode::IfMatch(old)).await;
    let kind = if taken == ErrorKind::Unsupported { taken } else { ErrorKind::Conflict };
    refused(stale, kind, "copy: over a newer version");
    must(backend.copy(&from, &from, PutMode::Replace).await, "copy: onto itself");
    assert_eq!(load(backend, &from).await.bytes, "original", "copy: onto itself");
    remove(backend, &[from]).await;
    holds(backend, &to, b"original", &replaced, "copy: it lives on").await;
    end(backend, &[]).await;
}

/// A touch describes the objects in order, does not change them, and never makes a time of last use earlier.
pub(super) async fn touches(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    assert_eq!(must(backend.touch(&[]).await, "touch: nothing"), []);
    let marker = Key::Namespace(namespace(&Namespace::root(), "a"));
    let present = [chunk(1), owner("vm/1"), marker];
    for key in &present {
        store(backend, key, content(key)).await;
    }
    let asked = [present[0].clone(), chunk(2), present[1].clone(), notes("vm/1"), present[2].clone()];
    let touched = must(backend.touch(&asked).await, "touch: several");
    assert_eq!(touched.len(), asked.len(), "touch: a result for each object");
    for (key, touched) in asked.iter().zip(touched) {
        let info = match (present.contains(key), touched) {
            (_, Touched::Unknown) | (false, Touched::Absent) => continue,
            (true, Touched::Present(info)) => info,
            (_, wrong) => panic!("touch: {key} is {wrong:?}"),
        };
        let head = must(backend.head(key).await, "touch: what is there");
        assert_eq!((&info.key, info.size), (key, content(key).len() as u64), "touch: what it says");
        assert_eq!(info.version, head.version, "touch: the version of {key} stays");
        assert!(head.last_used >= info.last_used, "touch: {key} looks older afterwards");
    }
    end(backend, &present[..1]).await;
}

/// A namespace exists as long as its marker. The marker can be deleted only when the namespace is empty, and no other object goes with it.
pub(super) async fn namespaces(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let root = Namespace::root();
    let outer = namespace(&root, "a");
    let [inner, similar] = [namespace(&outer, "a"), namespace(&root, "a-b")];
    let markers = [outer.clone(), inner.clone(), similar].map(Key::Namespace);
    for marker in &markers {
        let version = store(backend, marker, Bytes::new()).await;
        holds(backend, marker, b"", &version, "namespaces").await;
        let version = store(backend, marker, Bytes::new()).await;
        holds(backend, marker, b"", &version, "namespaces: stored again").await;
    }
    let (group, all) = (owner("ns/a/ns/a/vm/1"), ListQuery::all(Prefix::Namespaces(root)));
    store(backend, &group, "x").await;
    let [outer, inner, similar] = markers;
    let order = [&similar, &outer, &inner, &group].map(Clone::clone);
    assert_eq!(keys(backend, &all).await, order, "namespaces: their markers are listed");
    for full in [&outer, &inner] {
        let refusal = must(backend.delete(&[Removal::any(full.clone())]).await, "namespaces").remove(0);
        refused(refusal, ErrorKind::Conflict, "namespaces: one that is not empty");
    }
    assert_eq!(keys(backend, &all).await, order, "namespaces: refusing deletes nothing");
    remove(backend, &[group]).await;
    assert_eq!(keys(backend, &all).await, order[..3], "namespaces: one that is empty stays");
    if backend.capabilities().conditional_delete {
        let version = Some(Version::new("of something else"));
        let removal = Removal { key: inner.clone(), version };
        let refusal = must(backend.delete(&[removal]).await, "namespaces").remove(0);
        refused(refusal, ErrorKind::Conflict, "namespaces: of another version");
    }
    remove(backend, std::slice::from_ref(&inner)).await;
    assert_eq!(keys(backend, &all).await, order[..2], "namespaces: the one within is gone, and no other");
    is_absent(backend, &inner, "namespaces: deleted").await;
    remove(backend, &[outer]).await;
    assert_eq!(keys(backend, &all).await, [similar], "namespaces: those with a similar name stay");
    end(backend, &[]).await;
}

/// **Durable**, as far as a test without a crash shows it: a barrier succeeds after each kind of change, and undoes none.
pub(super) async fn durable(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    must(backend.barrier().await, "durable: a barrier over nothing");
    let manifest = archive("vm/1/2025-07-14T14:20:02Z", "a.blob");
    let versions = [store(backend, &chunk(1), blob("a")).await, store(backend, &manifest, "b").await];
    must(backend.barrier().await, "durable: a barrier over objects");
    let copied = must(backend.copy(&chunk(1), &chunk(2), PutMode::Replace).await, "durable");
    remove(backend, std::slice::from_ref(&manifest)).await;
    must(backend.barrier().await, "durable: a barrier over a copy and a deletion");
    must(backend.barrier().await, "durable: a second barrier");
    holds(backend, &chunk(1), &blob("a"), &versions[0], "durable").await;
    holds(backend, &chunk(2), &blob("a"), &copied, "durable").await;
    is_absent(backend, &manifest, "durable: what was deleted").await;
    end(backend, &[chunk(1), chunk(2)]).await;
}

/// The error kind of `Create` for an existing object.
fn taken(backend: &Arc<dyn Backend>) -> ErrorKind {
    if backend.capabilities().conditional_put { ErrorKind::AlreadyExists } else { ErrorKind::Unsupported }
}

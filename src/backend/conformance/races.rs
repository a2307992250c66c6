//! Many tasks at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{FutureExt as _, join_all};

use crate::backend::conformance::{
    archive, begin, chunk, end, holds, is_absent, load, must, namespace, notes, refused, remove, spawned,
    store,
};
use crate::backend::{Backend, Deleted, PutMode, Removal, Version};
use crate::error::{ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::Namespace;

/// One view of an object: its version, its size, and some of its bytes.
type Sight = (Version, u64, Bytes);

/// **Atomic**: a reader beside several writers sees the whole content of one of them, never none and never a mixture, with the version of
/// that content.
pub(super) async fn atomic(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let key = notes("vm/1");
    let first = (store(backend, &key, vec![9; 97]).await, 97, Bytes::from(vec![9; 97]));
    let writers = (0..3).map(|byte| spawned(backend, write(Arc::clone(backend), key.clone(), byte)));
    let readers = (0..3).map(|_| spawned(backend, read(Arc::clone(backend), key.clone())));
    let (written, read) = futures::future::join(join_all(writers), join_all(readers)).await;
    let mut contents: HashMap<Version, Bytes> = HashMap::from([(first.0, first.2)]);
    for sights in written {
        for (version, _, bytes) in must(sights, "atomic: a put among others") {
            assert!(contents.insert(version, bytes).is_none(), "atomic: two contents have one version");
        }
    }
    for sights in read {
        let sights = must(sights, "atomic: a read among puts");
        assert!(!sights.is_empty(), "atomic: nothing was read");
        for (version, size, bytes) in sights {
            let Some(content) = contents.get(&version) else {
                panic!("atomic: no writer stored version {version:?}");
            };
            assert_eq!(size, content.len() as u64, "atomic: the size belongs to another content");
            assert!(content.starts_with(&bytes), "atomic: the bytes belong to another content");
            assert!(bytes.len() == 1 || bytes.len() == content.len(), "atomic: some bytes are missing");
        }
    }
    end(backend, &[]).await;
}

async fn write(backend: Arc<dyn Backend>, key: Key, byte: u8) -> Result<Vec<Sight>> {
    let mut sights = Vec::new();
    for length in 1..=30 {
        let bytes = Bytes::from(vec![byte; length * 997]);
        let version = backend.put(&key, bytes.clone(), PutMode::Replace).await?;
        sights.push((version, bytes.len() as u64, bytes));
    }
    Ok(sights)
}

async fn read(backend: Arc<dyn Backend>, key: Key) -> Result<Vec<Sight>> {
    let mut sights = Vec::new();
    for _ in 0..30 {
        let whole = backend.get(&key, u64::MAX).await?;
        sights.push((whole.info.version, whole.info.size, whole.bytes));
        let part = backend.get_range(&key, 0..1).await?;
        sights.push((part.info.version, part.info.size, part.bytes));
    }
    Ok(sights)
}

/// **Create never replaces**, also when many writers create at once: exactly one succeeds, and its content is stored.
pub(super) async fn one_creator_wins(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    if !backend.capabilities().conditional_put {
        let refusal = backend.put(&chunk(1), Bytes::new(), PutMode::Create).await;
        refused(refusal, ErrorKind::Unsupported, "create never replaces");
        is_absent(backend, &chunk(1), "create never replaces: refused").await;
        return;
    }
    let marker = Key::Namespace(namespace(&Namespace::root(), "a"));
    for key in [chunk(1), notes("vm/1"), marker] {
        for _ in 0..5 {
            let won = race(backend, &key, &PutMode::Create, ErrorKind::AlreadyExists).await;
            let bytes = if matches!(key, Key::Namespace(_)) { Bytes::new() } else { won.1 };
            holds(backend, &key, &bytes, &won.0, "create never replaces: the winner").await;
            remove(backend, std::slice::from_ref(&key)).await;
        }
    }
    end(backend, &[]).await;
}

/// Of many writers that replace the same version, exactly one succeeds. Marks that many writers append this way are all stored once.
pub(super) async fn one_version_wins(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let key = notes("vm/1");
    let mut version = store(backend, &key, "0").await;
    if !backend.capabilities().conditional_put {
        let refusal = backend.put(&key, Bytes::new(), PutMode::IfMatch(version.clone())).await;
        refused(refusal, ErrorKind::Unsupported, "versions: `IfMatch`");
        holds(backend, &key, b"0", &version, "versions: refused").await;
        return end(backend, &[]).await;
    }
    for _ in 0..5 {
        let won = race(backend, &key, &PutMode::IfMatch(version), ErrorKind::Conflict).await;
        holds(backend, &key, &won.1, &won.0, "versions: the winner").await;
        version = won.0;
    }
    store(backend, &key, "").await;
    let writers = (0..4).map(|writer| spawned(backend, mark(Arc::clone(backend), key.clone(), writer)));
    for marked in join_all(writers).await {
        must(marked, "versions: marking");
    }
    let marked = load(backend, &key).await.bytes;
    let marks: BTreeSet<_> = marked.split(|byte| *byte == b';').collect();
    assert_eq!((marked.len(), marks.len()), (20 * 4, 20 + 1), "versions: a mark was lost, or is there twice");
    end(backend, &[]).await;
}

/// Runs many puts at once, and returns the content of the one that succeeded.
async fn race(backend: &Arc<dyn Backend>, key: &Key, mode: &PutMode, losing: ErrorKind) -> (Version, Bytes) {
    let racers = (0..8_u8).map(|number| {
        let (store, key, mode) = (Arc::clone(backend), key.clone(), mode.clone());
        // A marker is empty. Any other content names its writer and the replaced version, since equal contents may have equal versions.
        let length = if matches!(key, Key::Namespace(_)) { 0 } else { 1000 };
        let mut bytes = vec![number; length];
        if let PutMode::IfMatch(version) = &mode {
            bytes.extend_from_slice(version.as_str().as_bytes());
        }
        let bytes = Bytes::from(bytes);
        spawned(backend, async move { (store.put(&key, bytes.clone(), mode).await, bytes) })
    });
    let mut won = Vec::new();
    for (result, bytes) in join_all(racers).await {
        match result {
            Ok(version) => won.push((version, bytes)),
            // A server may answer a race with an error of its own, whose effect is unknown.
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            Err(error) => assert_eq!(error.kind(), losing, "{mode:?}: one that lost: {error:?}"),
        }
    }
    assert_eq!(won.len(), 1, "{mode:?} of {key}: so many won");
    won.remove(0)
}

/// A put or delete with a version has no effect after another change of the object, also one without a version. The suite runs this case by
/// name only, since not every server can promise it: Ceph loses an unconditional put or deletion that races with a conditional put.
pub(super) async fn conditions_see_every_change(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let key = notes("vm/1");
    if !backend.capabilities().conditional_put {
        return;
    }
    for round in 0..20 {
        let version = store(backend, &key, vec![b'0'; 1 + round]).await;
        let known = PutMode::IfMatch(version);
        let put = |bytes: &'static str, mode: &PutMode| {
            let (backend, key, mode) = (Arc::clone(backend), key.clone(), mode.clone());
            async move { backend.put(&key, Bytes::from_static(bytes.as_bytes()), mode).await.map(drop) }
        };
        let delete = {
            let (backend, removal) = (Arc::clone(backend), Removal::any(key.clone()));
            async move {
                for result in backend.delete(&[removal]).await? {
                    result?;
                }
                Ok(())
            }
        };
        let conditional = || spawned(backend, put("on a condition", &known));
        let mut others = vec![conditional(), conditional()];
        let unconditional = if round % 2 == 0 {
            spawned(backend, put("always", &PutMode::Replace)).boxed()
        } else {
            spawned(backend, delete).boxed()
        };
        others.extend([conditional(), conditional()]);
        let (unconditional, others) = futures::future::join(unconditional, join_all(others)).await;
        must(unconditional, "versions: what names none");
        for other in others {
            if let Err(error) = other {
                assert_eq!(error.kind(), ErrorKind::Conflict, "versions: one that lost: {error:?}");
            }
        }
        // In any order, the change with a version is not the last one.
        if round % 2 == 0 {
            assert_eq!(load(backend, &key).await.bytes, "always", "versions: a change was not seen");
        } else {
            is_absent(backend, &key, "versions: a deletion was not seen").await;
        }
    }
    end(backend, &[]).await;
}

/// Appends five marks to the object, one after the other. After a lost answer, a read decides if the mark is stored.
async fn mark(backend: Arc<dyn Backend>, key: Key, writer: usize) -> Result<()> {
    for number in 0..5 {
        let mark = format!("{writer}.{number};");
        loop {
            let read = backend.get(&key, 1000).await?;
            if read.bytes.windows(mark.len()).any(|part| part == mark.as_bytes()) {
                break;
            }
            let next = [&read.bytes[..], mark.as_bytes()].concat();
            match backend.put(&key, next.into(), PutMode::IfMatch(read.info.version)).await {
                Ok(_) => break,
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Tasks that put, read and delete objects of one snapshot do not disturb each other, although they may delete its last object.
pub(super) async fn directories_come_and_go(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let tasks = (0..8).map(|number| {
        let key = archive("vm/1/2025-07-14T14:20:02Z", &format!("{number}.blob"));
        spawned(backend, come_and_go(Arc::clone(backend), key))
    });
    for rounds in join_all(tasks).await {
        assert_eq!(must(rounds, "put: while others delete beside it"), 20, "deletes: all were there");
    }
    begin(backend).await;
}

/// Returns the number of deletions that found the object.
async fn come_and_go(backend: Arc<dyn Backend>, key: Key) -> Result<usize> {
    let mut removed = 0;
    for _ in 0..20 {
        backend.put(&key, Bytes::from_static(b"x"), PutMode::Replace).await?;
        backend.get(&key, 1).await?;
        for result in backend.delete(&[Removal::any(key.clone())]).await? {
            removed += usize::from(result? != Deleted::Absent);
        }
    }
    Ok(removed)
}

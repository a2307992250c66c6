//! Reading what was stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::conformance::{
    archive, begin, blob, chunk, end, holds, is_absent, load, must, name, namespace, notes, owner,
    quarantine, refused, remove, remove_replaced, store,
};
use crate::backend::{Backend, Deleted, PutMode, Removal, Touched};
use crate::error::ErrorKind;
use crate::format::Digest;
use crate::format::layout::Key;
use crate::format::name::Namespace;

/// **Read your writes**: objects of every kind and of many sizes are read as they were stored last.
pub(super) async fn read_your_writes(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let (outer, snapshot) = (namespace(&Namespace::root(), "a"), "ns/a/ns/vm/vm/100/2025-07-14T14:20:02Z");
    let inner = namespace(&outer, "vm");
    for marker in [Key::Namespace(outer), Key::Namespace(inner)] {
        let version = store(backend, &marker, Bytes::new()).await;
        holds(backend, &marker, b"", &version, "read your writes").await;
    }
    let others = [chunk(1), Key::GcStatus, Key::Store];
    let of_groups = [
        owner("ns/a/ns/vm/vm/100"),
        notes("ns/a/ns/vm/vm/100"),
        archive(snapshot, "drive-scsi0.img.fidx"),
        archive(snapshot, "qemu-server.conf.blob"),
        Key::Manifest(name(snapshot)),
        Key::ClientLog(name(snapshot)),
        Key::Protected(name(snapshot)),
        owner("host/x.y-z_0"),
    ];
    for key in others.iter().chain(&of_groups) {
        let least = if matches!(key, Key::Chunk(_)) { blob("").len() } else { 0 };
        for length in [0, 1, 4096, 70_001, 3].map(|length| least.max(length)) {
            let bytes = counting(length);
            let version = store(backend, key, bytes.clone()).await;
            holds(backend, key, &bytes, &version, "read your writes").await;
        }
    }
    for length in [12, 4096, 70_001] {
        let (digest, bytes) = (Digest::of(b"bad"), counting(length));
        let (key, version) = (Key::Quarantined(digest, 0), quarantine(backend, digest, 0, &bytes).await);
        holds(backend, &key, &bytes, &version, "read your writes").await;
        remove(backend, &[key]).await;
    }
    let large = counting(5 << 20);
    let version = store(backend, &others[0], large.clone()).await;
    holds(backend, &others[0], &large, &version, "read your writes: 5 MiB").await;
    end(backend, &others).await;
    remove_replaced(backend, &others[0]).await;
}

/// **Absent is certain**: an absent object is `NotFound` or [`Touched::Absent`], also beside objects with similar names.
pub(super) async fn absent_is_certain(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let absent = [
        chunk(2),
        Key::Quarantined(Digest::of(&1_u32.to_le_bytes()), 0),
        notes("vm/100"),
        owner("vm/10"),
        owner("vm/1000"),
        archive("vm/100/2025-07-14T14:20:02Z", "a.blob"),
        Key::Manifest(name("vm/100/2025-07-14T14:20:03Z")),
        Key::Namespace(namespace(&Namespace::root(), "vm")),
        Key::GcStatus,
    ];
    let present = [chunk(1), owner("vm/100"), archive("vm/100/2025-07-14T14:20:02Z", "a.blob.fidx")];
    for round in ["in an empty store", "beside others"] {
        for key in &absent {
            let what = format!("absent is certain: {key} {round}");
            is_absent(backend, key, &what).await;
            refused(backend.get_range(key, 0..1).await, ErrorKind::NotFound, &what);
            let copied = backend.copy(key, &notes("vm/7"), PutMode::Replace).await;
            refused(copied, ErrorKind::NotFound, &what);
            is_absent(backend, &notes("vm/7"), "absent is certain: the copy of nothing").await;
            let touched = must(backend.touch(std::slice::from_ref(key)).await, &what);
            assert!(matches!(touched[..], [Touched::Absent | Touched::Unknown]), "{what}: {touched:?}");
            let deleted = must(backend.delete(&[Removal::any(key.clone())]).await, &what).remove(0);
            let deleted = must(deleted, &what);
            assert_ne!(deleted, Deleted::Removed, "{what}");
            is_absent(backend, key, &what).await;
        }
        for key in &present {
            store(backend, key, blob("x")).await;
        }
    }
    for key in &present {
        assert_eq!(load(backend, key).await.bytes, blob("x"), "absent is certain: {key} was not meant");
    }
    end(backend, &present[..1]).await;
}

/// **Limited**: an object of the size of the limit is read, and a larger one refused as `Corrupt`.
pub(super) async fn limited(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let (chunk, notes) = (chunk(1), notes("vm/1"));
    for (key, size) in [(&notes, 0), (&notes, 1), (&notes, 5000), (&chunk, 12), (&chunk, 5000)] {
        store(backend, key, vec![7; size]).await;
        let size = size as u64;
        for limit in [size, size + 1, u64::MAX] {
            let read = must(backend.get(key, limit).await, "limited: within the limit");
            assert_eq!(read.bytes.len() as u64, size, "limited: within the limit");
        }
        for limit in (0..size).step_by(999).chain(size.checked_sub(1)) {
            refused(backend.get(key, limit).await, ErrorKind::Corrupt, "limited: beyond the limit");
        }
        assert_eq!(load(backend, key).await.info.size, size, "limited: refusing changes nothing");
    }
    remove_replaced(backend, &chunk).await;
    end(backend, &[chunk]).await;
}

/// A range has exactly the requested bytes, or is `InvalidInput`. The description is that of the whole object.
pub(super) async fn ranges(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let bytes = counting(10_000);
    let (key, empty) = (chunk(1), notes("vm/1"));
    let version = store(backend, &key, bytes.clone()).await;
    store(backend, &empty, Bytes::new()).await;
    for range in [0..1, 0..10_000, 9_999..10_000, 1..9_999, 4_095..4_097_usize] {
        let asked = range.start as u64..range.end as u64;
        let part = must(backend.get_range(&key, asked).await, "ranges: inside");
        assert!(part.bytes == bytes[range.clone()], "ranges: the bytes {range:?}");
        let info = &part.info;
        assert_eq!((&info.key, info.size, &info.version), (&key, 10_000, &version), "ranges: of the whole");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "it must be refused")]
    let outside = [0..0, 5..5, 10_000..10_000, 5..4, 9_999..10_001, 10_000..10_001, 0..u64::MAX];
    for range in outside.into_iter().chain(std::iter::once(u64::MAX - 1..u64::MAX)) {
        let what = format!("ranges: {range:?} of 10000 bytes");
        refused(backend.get_range(&key, range).await, ErrorKind::InvalidInput, &what);
    }
    refused(backend.get_range(&empty, 0..1).await, ErrorKind::InvalidInput, "ranges: of an empty object");
    let marker = Key::Namespace(namespace(&Namespace::root(), "a"));
    store(backend, &marker, Bytes::new()).await;
    refused(backend.get_range(&marker, 0..1).await, ErrorKind::InvalidInput, "ranges: of a namespace");
    end(backend, &[key]).await;
}

/// Bytes that count from 0 to 250, over and over.
fn counting(length: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..=250).collect();
    let mut bytes = period.repeat(length / period.len() + 1);
    bytes.truncate(length);
    bytes
}

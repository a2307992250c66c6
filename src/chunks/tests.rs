use std::future::Future;
use std::io::Write as _;
use std::ops::Range;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::executor::block_on;
use futures::future::poll_fn;

use super::*;
use crate::backend::fault::{Action, FaultBackend, Rule};
use crate::backend::record::Method;
use crate::backend::{
    Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListPage, ListQuery, LockGuard,
    LockMode, LockScope, MemoryBackend, Object, ObjectInfo, PendingMoves, PutMode, Removal, Touched, Version,
};
use crate::chunks::codecs::{Codecs, Examined, PART_BYTES, Seal};
use crate::chunks::encoded::StoredChunk;
use crate::chunks::suspects::SuspectList;
use crate::format::blob::BlobKind;
use crate::format::larder::pack::PackClass;
use crate::format::layout::Key;
use crate::local::LocalOptions;
use crate::rt::{Runtime, ThreadRuntime};

/// Memory that says as little without a request as a bucket, and that only this process may change.
#[derive(Debug)]
struct Remote(MemoryBackend, Capabilities);

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Remote {
    fn capabilities(&self) -> &Capabilities {
        &self.1
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        None
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        self.0.get(key, limit).await
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.0.get_range(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.0.head(key).await
    }
    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        self.0.put(key, object, mode).await
    }
    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        self.0.delete(removals).await
    }
    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        self.0.list(query, cursor).await
    }
    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        Ok(vec![Touched::Unknown; keys.len()])
    }
    async fn barrier(&self) -> Result<()> {
        self.0.barrier().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for Remote {
    async fn clock(&self) -> Result<SystemTime> {
        self.0.coordination().clock().await
    }
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.0.coordination().runtime()
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        self.0.coordination().lock(scope, mode).await
    }

    async fn check_owned(&self) -> Result<()> {
        Ok(())
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        Some(LeaseTerm { continues: None, epoch: 1, since: 1, in_doubt: false })
    }

    async fn begin_term(&self) -> Result<()> {
        Ok(())
    }

    fn in_doubt(&self, _: &Key) -> Option<Duration> {
        None
    }

    async fn record_moves(&self, _: &[Key]) -> Result<()> {
        Ok(())
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        Ok(None)
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.0.coordination().close().await
    }
}

const PLAINTEXT: &[u8] = b"plaintext";

struct Place {
    backend: Arc<FaultBackend>,
    chunks: ChunkStore,
    digest: Digest,
    directory: tempfile::TempDir,
}

impl Place {
    async fn new() -> Self {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let memory = MemoryBackend::new(Arc::clone(&runtime));
        let capabilities = Capabilities { cheap_presence: false, ..memory.capabilities().clone() };
        let remote = Remote(memory, capabilities);
        let backend = Arc::new(FaultBackend::new(Arc::new(remote)));
        let directory = larder_testing::scratch();
        let local = LocalState::open(&runtime, directory.path(), LocalOptions::default()).await.unwrap();
        let passed: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&backend);
        let chunks = ChunkStore::new((Arc::clone(&passed), passed), None, Some(local), 1, 0, None);
        Self { backend, chunks, digest: Digest::of(PLAINTEXT), directory }
    }

    fn writer(&self) -> Arc<WriterPins> {
        self.chunks.pins().writer(CachePolicy::Populate, None, Arc::default())
    }

    /// Stores the chunk, and makes sure that it is pinned wherever that waits for something, and when it is over.
    async fn put(&self, writer: &WriterPins, provenance: Provenance) -> Result<Stored> {
        let plaintext = Bytes::from_static(PLAINTEXT);
        self.pinned(self.chunks.put(writer, self.digest, (plaintext.into(), PackClass::Data), provenance))
            .await
    }

    async fn pinned<T>(&self, work: impl Future<Output = T>) -> T {
        let (mut work, mut waits) = (pin!(work), 0);
        let done = poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            assert!(self.chunks.pins().is_pinned(&self.digest), "after {waits} waits");
            waits += u32::from(polled.is_pending());
            polled
        });
        done.await
    }

    fn forget_records(&self) {
        *self.chunks.fetcher.presence.opened.lock().unwrap() = None;
        assert!(self.directory.path().exists());
    }
}

/// Proves H1, H2.
#[test]
fn a_writer_that_learns_of_a_chunk_holds_a_pin_on_it() {
    block_on(async {
        let place = Place::new().await;
        // So that each step waits.
        for method in [Method::Touch, Method::Put, Method::Head, Method::Get] {
            place.backend.add(Rule::on(method, Action::Delay(std::time::Duration::from_millis(5))));
        }
        place.chunks.open_presence(&"a".repeat(32)).await.unwrap();
        let size = |stored| match stored {
            Stored::Duplicate(size) | Stored::New(size) => size,
            Stored::Known => 0,
        };
        // Stored, then known to the same writer, then by its record, by a base, and by the answer to a put.
        let first = place.writer();
        let new = place.put(&first, Provenance::Unknown).await.unwrap();
        assert_eq!(new, Stored::New(size(new)));
        assert_eq!(place.put(&first, Provenance::Unknown).await.unwrap(), Stored::Known);
        drop(first);
        let mut ways = Vec::new();
        for way in 0..4 {
            assert!(!place.chunks.pins().is_pinned(&place.digest), "way {way}: a pin goes with its writer");
            let writer = place.writer();
            ways.push(match way {
                0 => place.put(&writer, Provenance::Unknown).await.unwrap(),
                1 => place.put(&writer, Provenance::Base).await.unwrap(),
                2 => {
                    place.pinned(place.chunks.reuse(&writer, &[place.digest])).await.unwrap();
                    Stored::Known
                }
                _ => {
                    place.forget_records();
                    place.put(&writer, Provenance::Unknown).await.unwrap()
                }
            });
            assert!(writer.is_confirmed(&place.digest), "way {way}");
        }
        let duplicate = Stored::Duplicate(size(new));
        assert_eq!(ways, [duplicate, Stored::Known, Stored::Known, duplicate]);
        assert!(!place.chunks.pins().is_pinned(&place.digest));
    });
}

/// Proves H1.
#[test]
fn a_chunk_whose_put_failed_stays_pinned_and_is_not_confirmed() {
    block_on(async {
        let place = Place::new().await;
        for failure in [ErrorKind::Denied, ErrorKind::Unavailable] {
            place.backend.clear();
            place.backend.add(Rule::on(Method::Put, Action::FailAfter(failure)).first(1));
            let writer = place.writer();
            assert!(place.put(&writer, Provenance::Unknown).await.is_err());
            assert!(!writer.is_confirmed(&place.digest));
            assert!(place.chunks.pins().is_pinned(&place.digest), "it may be there, or come yet");
            // A second try compares what the first one left.
            assert!(matches!(place.put(&writer, Provenance::Unknown).await.unwrap(), Stored::Duplicate(_)));
            place.backend.delete(&[Removal::any(Key::Chunk(place.digest))]).await.unwrap().remove(0).unwrap();
        }
    });
}

/// A good chunk of a foreign encoder, with a window that is too large to be decoded in parts.
#[test]
fn a_chunk_with_a_large_window_passes_its_checks_and_is_read() {
    for length in [1000, 2 * PART_BYTES] {
        let plaintext = vec![7; length];
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&plaintext).unwrap();
        let payload = encoder.finish().unwrap();
        let crc = crc32fast::hash(&payload).to_le_bytes();
        let encoded = Bytes::from([&BlobKind::Zstd.magic()[..], &crc, &payload].concat());
        let (codecs, digest) = (Codecs::new(1, 0), Digest::of(&plaintext));
        assert_eq!(codecs.inspect(encoded.clone(), digest, length).unwrap(), BlobKind::Zstd);
        let expected = length as u64;
        assert_eq!(codecs.examine(encoded.clone(), digest, expected, None).unwrap(), Examined::Digest);
        let list = codecs.decode_list(&encoded, digest, length, None).unwrap();
        assert!(list.iter().collect::<Vec<_>>().concat() == plaintext);
        assert!(codecs.examine(encoded, Digest::of(b"other"), expected, None).is_err());
    }
}

#[test]
fn a_long_chunk_is_decoded_into_parts_of_one_size() {
    let codecs = Codecs::new(1, 16 << 20);
    let any_key = EncryptionKey::from_bytes(&[7; 32]);
    let mut state = 7_u32;
    let noise = (0..3 * PART_BYTES + 77).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    });
    // Contents that cannot be compressed, and others.
    let contents = [noise.collect::<Vec<_>>(), b"abcdefgh".repeat(3 * PART_BYTES / 8 + 10)];
    for length in [PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 3 * PART_BYTES + 77] {
        for plaintext in contents.iter().map(|all| all[..length].to_vec()) {
            for key in [None, Some(&any_key)] {
                let digest = Digest::of_chunk(&plaintext, key);
                let seal = key.map(|key| Seal { key: key.clone(), nonce: [3; 16] });
                let encoded = codecs.encode(Bytes::from(plaintext.clone()).into(), seal.as_ref()).unwrap();
                let decode =
                    |encoded: &Bytes, digest, length| codecs.decode_list(encoded, digest, length, key);
                let list = decode(&encoded, digest, length).unwrap();
                assert!(list.iter().eq(plaintext.chunks(PART_BYTES)), "{length} bytes");
                let mut bad = encoded.to_vec();
                *bad.last_mut().unwrap() ^= 1;
                for refused in [
                    decode(&bad.into(), digest, length),
                    decode(&encoded.slice(..encoded.len() - 1), digest, length),
                    decode(&encoded, Digest::of(b"other"), length),
                    decode(&encoded, digest, length - 1),
                    decode(&encoded, digest, length + 1),
                ] {
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt, "{length} bytes");
                }
                let (other, expected) = if key.is_some() {
                    (None, ErrorKind::KeyRequired)
                } else {
                    (Some(&any_key), ErrorKind::Corrupt)
                };
                let refused = codecs.decode_list(&encoded, digest, length, other).unwrap_err();
                assert_eq!(refused.kind(), expected);
            }
        }
    }
}

/// Proves H162.
#[test]
fn writers_of_one_chunk_store_it_once() {
    block_on(async {
        let place = Place::new().await;
        place.backend.add(Rule::on(Method::Put, Action::Delay(std::time::Duration::from_millis(20))));
        let writers: Vec<_> = (0..20).map(|_| place.writer()).collect();
        let plaintext = Bytes::from_static(PLAINTEXT);
        place.chunks.open_presence(&"a".repeat(32)).await.unwrap();
        let put = writers.iter().map(|writer| {
            place.chunks.put(
                writer,
                place.digest,
                (plaintext.clone().into(), PackClass::Data),
                Provenance::Unknown,
            )
        });
        let stored = futures::future::try_join_all(put).await.unwrap();
        let new = stored.iter().filter(|stored| matches!(stored, Stored::New(_))).count();
        let known = stored.iter().filter(|stored| matches!(stored, Stored::Duplicate(_))).count();
        assert_eq!((new, known, place.backend.fired()), (1, 19, 1));
    });
}

/// The plaintext as one chunk that is stored, and a chunk of so many bytes that only a key could read.
async fn plain(place: &Place) -> StoredChunk {
    let blob = place.chunks.encode(&Bytes::from_static(PLAINTEXT), None).await.unwrap();
    stored(place, blob).await.unwrap()
}

fn sealed(kind: BlobKind, payload: &[u8]) -> Bytes {
    let checksum = crc32fast::hash(payload).to_le_bytes();
    [&kind.magic()[..], &checksum, &[0; 32], payload].concat().into()
}

/// What another store would hand over that has these bytes.
async fn stored(place: &Place, blob: Bytes) -> Result<StoredChunk> {
    let other = MemoryBackend::new(Arc::clone(place.backend.runtime()));
    other.put(&Key::Chunk(place.digest), blob, PutMode::Create).await.unwrap();
    let other: Arc<dyn Backend> = Arc::new(other);
    let other = ChunkStore::new((Arc::clone(&other), other), None, None, 1, 0, None);
    other.get_stored(place.digest, PLAINTEXT.len() as u64).await
}

/// Proves H1, H2.
#[test]
fn a_chunk_of_another_store_is_pinned_before_and_after_it_is_stored() {
    block_on(async {
        let place = Place::new().await;
        for method in [Method::Touch, Method::Put, Method::Head, Method::Get] {
            place.backend.add(Rule::on(method, Action::Delay(std::time::Duration::from_millis(5))));
        }
        place.chunks.open_presence(&"a".repeat(32)).await.unwrap();
        for way in 0..5 {
            let writer = place.writer();
            assert!(!place.chunks.pins().is_pinned(&place.digest), "way {way}");
            let chunk = plain(&place).await;
            let size = chunk.stored_bytes();
            match way {
                0 | 1 => {
                    let wanted = if way == 0 { Stored::New(size) } else { Stored::Duplicate(size) };
                    let put =
                        place.chunks.put_stored(&writer, (chunk, PackClass::Data), ExistingCheck::ByLength);
                    assert_eq!(place.pinned(put).await.unwrap(), wanted);
                }
                2 | 3 => {
                    let reference = if way == 2 { ReuseSource::Base } else { ReuseSource::Copy };
                    assert!(
                        place
                            .pinned(place.chunks.reuse_if_present(&writer, place.digest, reference))
                            .await
                            .unwrap()
                    );
                }
                _ => {
                    place.forget_records();
                    place.backend.delete(&[Removal::any(Key::Chunk(place.digest))]).await.unwrap();
                    let taken = place.chunks.reuse_if_present(&writer, place.digest, ReuseSource::Copy);
                    assert!(!place.pinned(taken).await.unwrap(), "what is gone is not taken over");
                    assert!(!writer.is_confirmed(&place.digest));
                    continue;
                }
            }
            assert!(writer.is_confirmed(&place.digest), "way {way}");
        }
    });
}

/// Proves H101.
#[test]
fn only_what_was_checked_comes_out_of_another_store() {
    block_on(async {
        let place = Place::new().await;
        let good = place.chunks.encode(&Bytes::from_static(PLAINTEXT), None).await.unwrap();
        let other = place.chunks.encode(&Bytes::from_static(b"something"), None).await.unwrap();
        let mut flipped = sealed(BlobKind::Encrypted, PLAINTEXT).to_vec();
        flipped[50] ^= 1;
        for bad in
            [other, good.slice(..14), "nothing".into(), flipped.into(), sealed(BlobKind::Encrypted, b"x")]
        {
            assert_eq!(stored(&place, bad).await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert!(!stored(&place, good).await.unwrap().is_encrypted());
        assert!(stored(&place, sealed(BlobKind::Encrypted, PLAINTEXT)).await.unwrap().is_encrypted());
        assert!(stored(&place, sealed(BlobKind::EncryptedZstd, b"x")).await.unwrap().is_encrypted());
    });
}

/// Proves H24, H101, H179.
#[test]
fn an_existing_chunk_stays_unless_it_is_proven_bad() {
    block_on(async {
        let place = Place::new().await;
        let good = place.chunks.encode(&Bytes::from_static(PLAINTEXT), None).await.unwrap();
        let mut compressed = zstd::bulk::compress(PLAINTEXT, 3).unwrap();
        let checksum = crc32fast::hash(&compressed).to_le_bytes();
        compressed.splice(..0, [&BlobKind::Zstd.magic()[..], &checksum].concat());
        let alike = [&good[..good.len() - 1], b"?"].concat();
        let (raw, packed) =
            (sealed(BlobKind::Encrypted, PLAINTEXT), sealed(BlobKind::EncryptedZstd, b"pack"));
        let mut broken = packed.to_vec();
        *broken.last_mut().unwrap() ^= 1;
        let same_length = [&BlobKind::Plain.magic()[..], &raw[8..]].concat();
        let longer = sealed(BlobKind::Encrypted, b"longer than it is");
        let (keep, replace, refuse) = (Some(false), Some(true), None);
        let (length, read) = (ExistingCheck::ByLength, ExistingCheck::Read);
        let cases: [(&str, Bytes, Bytes, ExistingCheck, Option<bool>); 14] = [
            ("as long", good.clone(), alike.clone().into(), length, keep),
            ("as long, but bad", good.clone(), alike.into(), read, replace),
            ("as long and good", good.clone(), good.clone(), read, keep),
            ("good in another form", good.clone(), compressed.into(), length, keep),
            ("cut off", good.clone(), good.slice(..15), length, replace),
            ("empty", good.clone(), Bytes::new(), length, replace),
            ("encrypted under a plain digest", good.clone(), raw.clone(), length, replace),
            ("plain under an encrypted digest", raw.clone(), good.clone(), length, refuse),
            ("plain and as long", raw.clone(), same_length.into(), length, refuse),
            ("encrypted in another form", raw.clone(), packed.clone(), length, keep),
            ("encrypted and broken", raw.clone(), broken.clone().into(), length, replace),
            ("encrypted, as long, broken", packed.clone(), broken.into(), read, replace),
            ("encrypted and of another length", raw.clone(), longer, length, refuse),
            ("empty before encrypted", raw, Bytes::new(), length, replace),
        ];
        let key = Key::Chunk(place.digest);
        for (what, offered, present, check, wanted) in cases {
            place.backend.put(&key, present.clone(), PutMode::Replace).await.unwrap();
            let chunk = stored(&place, offered.clone()).await.unwrap();
            let put = place.chunks.put_stored(&place.writer(), (chunk, PackClass::Data), check).await;
            let left = place.backend.get(&key, 1 << 20).await.unwrap().bytes;
            match wanted {
                Some(false) => assert!(matches!(put, Ok(Stored::Duplicate(_))), "{what}: {put:?}"),
                Some(true) => assert!(matches!(put, Ok(Stored::New(_))), "{what}: {put:?}"),
                None => assert_eq!(put.unwrap_err().kind(), ErrorKind::Conflict, "{what}"),
            }
            assert_eq!(left, if wanted == Some(true) { offered } else { present }, "{what}");
        }
    });
}

/// Proves H99.
#[test]
fn the_record_of_a_suspect_chunk_is_ignored() {
    block_on(async {
        let ways: [(&str, bool, Option<ExistingCheck>); 3] = [
            ("a backup of a listed chunk", true, None),
            ("a sync of a listed chunk", true, Some(ExistingCheck::ByLength)),
            ("a sync that replaces a bad snapshot", false, Some(ExistingCheck::Read)),
        ];
        for (what, is_listed, check) in ways {
            let place = Place::new().await;
            place.chunks.open_presence(&"a".repeat(32)).await.unwrap();
            // There is a record, and the pin of another writer speaks for it.
            let witness = place.writer();
            place.put(&witness, Provenance::Unknown).await.unwrap();
            let key = Key::Chunk(place.digest);
            let good = place.backend.get(&key, 1 << 20).await.unwrap().bytes;
            let bad = [&good[..good.len() - 1], b"?"].concat();
            place.backend.put(&key, bad.into(), PutMode::Replace).await.unwrap();
            if is_listed {
                let listed = SuspectList::Read([place.digest].into(), None);
                place.chunks.set_suspect_list(listed, None);
            }
            let writer = place.writer();
            let stored = match check {
                None => place.put(&writer, Provenance::Unknown).await,
                Some(check) => {
                    place.chunks.put_stored(&writer, (plain(&place).await, PackClass::Data), check).await
                }
            };
            assert!(matches!(stored, Ok(Stored::New(_))), "{what}: {stored:?}");
            assert_eq!(place.backend.get(&key, 1 << 20).await.unwrap().bytes, good, "{what}");
        }
    });
}

/// Proves D9.
#[test]
fn a_locked_base_confirms_a_chunk_without_a_request_and_a_copy_of_the_store_does_not() {
    block_on(async {
        let place = Place::new().await;
        place.put(&place.writer(), Provenance::Unknown).await.unwrap();
        place.backend.add(Rule::on(Method::Head, Action::FailBefore(ErrorKind::Unavailable)));
        let base = place.writer();
        assert!(place.chunks.reuse_if_present(&base, place.digest, ReuseSource::Base).await.unwrap());
        assert!(base.is_confirmed(&place.digest));
        let twin = place.writer();
        let taken = place.chunks.reuse_if_present(&twin, place.digest, ReuseSource::Copy).await;
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(!twin.is_confirmed(&place.digest));
        assert_eq!(place.backend.fired(), 1);
    });
}

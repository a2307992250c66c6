//! Encrypted and signed snapshots.

use std::sync::{Arc, Mutex};

use futures::io::Cursor;
use larder::backend::{Backend, MemoryBackend, PutMode};
use larder::crypt::EncryptionKey;
use larder::error::{Error, ErrorKind};
use larder::format::layout::Key;
use larder::format::name::GroupName;
use larder::internal::blob::{Blob, encode_plain};
use larder::internal::index;
use larder::rt::ThreadRuntime;
use larder::store::{
    ArchiveEvent, BaseUse, Datastore, DirtyMap, Options, SnapshotReader, SnapshotWriter, WriterTarget,
};
use larder::verify::{self, ObjectFault, Repair, VerifyOptions, VerifyReport};
use larder_testing::keys::id_key;
use larder_testing::noise;
use larder_testing::places::everywhere;

const CHUNK: usize = 4 << 10;

fn key(seed: u8) -> EncryptionKey {
    EncryptionKey::from_bytes(&[seed; 32])
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

/// Use of a key by a backup.
#[derive(Clone, Copy, Debug)]
enum Mode<'a> {
    Encrypt(&'a EncryptionKey),
    Plain,
    Sign(&'a EncryptionKey),
}

impl Mode<'_> {
    /// Begins a backup of a group.
    async fn begin(self, store: &Datastore, name: &str) -> SnapshotWriter {
        let backup = store.backup(&group(name));
        let backup = match self {
            Self::Encrypt(key) => backup.encrypt(key),
            Self::Plain => backup,
            Self::Sign(key) => backup.sign(key),
        };
        backup.begin().await.unwrap()
    }
}

/// A snapshot with an image, a stream, a blob and a log of the same data.
async fn back_up(store: &Datastore, name: &str, mode: Mode<'_>, data: &[u8]) -> SnapshotReader {
    let backup = mode.begin(store, name).await;
    let size = data.len() as u64;
    backup.image("d.img", Cursor::new(data), size).chunk_bytes(CHUNK as u64).await.unwrap();
    backup.stream("s.bin", Cursor::new(data)).await.unwrap();
    backup.blob("c.conf", data[..1000].to_vec()).await.unwrap();
    backup.blob("rsa-encrypted.key", b"for the master key".to_vec()).await.unwrap();
    backup.client_log(data[..500].to_vec()).await.unwrap();
    backup.finish().await.unwrap().snapshot
}

/// Data with a hole, a part that compresses and a part that does not.
fn data() -> Vec<u8> {
    let mut data = noise(1, 8 * CHUNK);
    data[CHUNK..3 * CHUNK].fill(0);
    data[4 * CHUNK..5 * CHUNK].fill(b'x');
    data.truncate(8 * CHUNK - 1000);
    data
}

/// Restores an archive, as far as it comes.
async fn restored(snapshot: &SnapshotReader, archive: &str) -> (Vec<u8>, Result<u64, Error>) {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    let archive = match snapshot.archive(archive).await {
        Ok(archive) => archive,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let result = archive.copy_to(&mut target).await;
    (target.into_inner().into_inner(), result)
}

async fn check_whole(snapshot: &SnapshotReader, data: &[u8]) {
    for archive in ["d.img", "s.bin"] {
        let (bytes, result) = restored(snapshot, archive).await;
        assert_eq!(result.unwrap(), data.len() as u64);
        assert!(bytes == data, "{archive}");
    }
    assert!(snapshot.blob("c.conf").await.unwrap() == data[..1000]);
    assert!(snapshot.client_log().await.unwrap().unwrap() == data[..500]);
}

/// Places of the chunks of an archive.
async fn chunk_paths(snapshot: &SnapshotReader, archive: &str) -> Vec<String> {
    let archive = snapshot.archive(archive).await.unwrap();
    let index = index::of_archive(&archive);
    let digests = (0..index.len()).map(|number| index.digest(number).unwrap().to_string());
    digests.map(|digest| format!(".chunks/{}/{digest}", &digest[..4])).collect()
}

/// All levels of an error in one text.
fn text(error: &Error) -> String {
    let mut levels = vec![error.to_string()];
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        levels.push(error.to_string());
        cause = error.source();
    }
    levels.join(": ")
}

async fn verified(store: &Datastore, options: VerifyOptions) -> VerifyReport {
    verify::plan(store, &larder::store::Scope::Store, options).await.unwrap().execute().await.unwrap()
}

#[test]
fn an_encrypted_snapshot_is_read_with_its_key_only() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data, ours) = (place.store().await, data(), key(1));
            let finished = back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
            check_whole(&finished, &data).await;

            let mut snapshot = store.snapshot(finished.name()).await.unwrap();
            for archive in ["d.img", "s.bin"] {
                assert_eq!(restored(&snapshot, archive).await.1.unwrap_err().kind(), ErrorKind::KeyRequired);
            }
            let refused = [snapshot.blob("c.conf").await.map(drop), snapshot.client_log().await.map(drop)];
            for refused in refused {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::KeyRequired);
            }
            // It is needed when the key is lost.
            assert_eq!(&snapshot.blob("rsa-encrypted.key").await.unwrap()[..], b"for the master key");
            let wrong = snapshot.unlock(&key(2)).unwrap_err();
            assert_eq!(wrong.kind(), ErrorKind::WrongKey);
            assert!(text(&wrong).contains(&ours.fingerprint().to_string()), "{}", text(&wrong));
            assert_eq!(restored(&snapshot, "d.img").await.1.unwrap_err().kind(), ErrorKind::KeyRequired);
            snapshot.unlock(&ours).unwrap();
            check_whole(&snapshot, &data).await;
            assert!(snapshot.manifest().files().iter().all(|file| file.crypt_mode.as_str() == "encrypt"));

            for path in chunk_paths(&snapshot, "d.img").await {
                let stored = place.read(&path).await.unwrap();
                assert!(Blob::parse(stored).unwrap().kind().is_encrypted(), "{path}");
            }
        })
    });
}

#[test]
fn a_signed_snapshot_is_plain_and_its_signature_is_checked() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data, ours) = (place.store().await, data(), key(1));
            let name = back_up(&store, "host/a", Mode::Sign(&ours), &data).await.name().clone();
            let mut snapshot = store.snapshot(&name).await.unwrap();
            check_whole(&snapshot, &data).await;
            assert_eq!(snapshot.unlock(&key(2)).unwrap_err().kind(), ErrorKind::WrongKey);
            snapshot.unlock(&ours).unwrap();
            check_whole(&snapshot, &data).await;

            let plain = back_up(&store, "host/b", Mode::Plain, &data).await;
            let mut plain = store.snapshot(plain.name()).await.unwrap();
            assert_eq!(plain.unlock(&ours).unwrap_err().kind(), ErrorKind::WrongKey, "it proves nothing");
            check_whole(&plain, &data).await;
        })
    });
}

/// Proves H101.
#[test]
fn chunks_are_shared_under_one_key_and_with_no_other() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data) = (place.store().await, data());
            let (first, second) = (key(1), key(2));
            let mut paths = Vec::new();
            for (name, mode) in [
                ("host/p", Mode::Plain),
                ("host/a", Mode::Encrypt(&first)),
                ("host/b", Mode::Encrypt(&second)),
            ] {
                let snapshot = back_up(&store, name, mode, &data).await;
                let found = chunk_paths(&snapshot, "d.img").await;
                assert!(paths.iter().all(|path| !found.contains(path)), "{name}");
                paths.extend(found);
            }
            let backup = store.backup(&group("host/c")).encrypt(&first).begin().await.unwrap();
            let image = backup.image("d.img", Cursor::new(&data), data.len() as u64);
            image.chunk_bytes(CHUNK as u64).await.unwrap();
            assert_eq!(backup.stats().chunks_new, 0);
            backup.abort().await.unwrap();
        })
    });
}

/// Proves H179.
#[test]
fn a_base_has_the_key_and_the_mode_of_the_backup() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data) = (place.store().await, data());
            let (ours, other) = (key(1), key(2));
            let modes = [
                Mode::Plain,
                Mode::Encrypt(&ours),
                Mode::Encrypt(&other),
                Mode::Sign(&ours),
                Mode::Sign(&other),
            ];
            let mut bases = Vec::new();
            for (number, mode) in modes.into_iter().enumerate() {
                bases.push(back_up(&store, &format!("host/{number}"), mode, &data).await);
            }
            for (number, mode) in modes.into_iter().enumerate() {
                for (of_base, base) in bases.iter().enumerate() {
                    let backup = mode.begin(&store, "host/new").await;
                    let size = data.len() as u64;
                    let image =
                        |name: &str| backup.image(name, Cursor::new(&data), size).chunk_bytes(CHUNK as u64);
                    let dirty =
                        image("d.img").base_if_usable(Some(base)).dirty(DirtyMap::new()).await.unwrap();
                    let wanted = match (number == of_base, mode, modes[of_base]) {
                        (true, ..) => BaseUse::Used,
                        (false, Mode::Plain, Mode::Encrypt(_)) => BaseUse::Encrypted,
                        _ => BaseUse::OtherKey,
                    };
                    assert_eq!(dirty.base, wanted, "{mode:?} on {:?}", modes[of_base]);
                    let reused = if number == of_base { 8 } else { 0 };
                    assert_eq!(backup.stats().chunks_reused, reused);
                    let kind = match backup.stream("s.bin", Cursor::new(&data)).base(base).await {
                        Ok(_) => None,
                        Err(error) => Some(error.kind()),
                    };
                    let wanted = match wanted {
                        BaseUse::Encrypted => Some(ErrorKind::KeyRequired),
                        BaseUse::OtherKey => Some(ErrorKind::WrongKey),
                        _ => None,
                    };
                    assert_eq!(kind, wanted);
                    backup.abort().await.unwrap();
                }
            }
        })
    });
}

#[test]
fn an_incremental_encrypted_image_is_that_of_its_parts() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, mut data, ours) = (place.store().await, data(), key(1));
            let base = back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
            let backup = store.backup(&group("host/a")).encrypt(&ours).begin().await.unwrap();
            let image = backup.image_writer("d.img", data.len() as u64).base(&base);
            let mut image = image.chunk_bytes(CHUNK as u64).begin().await.unwrap();
            data[CHUNK + 5..CHUNK + 25].fill(7);
            image.write_at(CHUNK as u64 + 5, data[CHUNK + 5..CHUNK + 25].to_vec().into()).await.unwrap();
            image.finish().await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            let (bytes, result) = restored(&snapshot, "d.img").await;
            result.unwrap();
            assert!(bytes == data);
        })
    });
}

/// A part of a manifest, a change to it, and the kind of the error that it causes.
type Change<'a> = (&'a str, Box<dyn Fn(&str) -> String + Send + Sync + 'a>, ErrorKind);

#[test]
fn a_changed_manifest_is_not_authentic() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data, ours) = (place.store().await, data(), key(1));
            let snapshot = back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
            let (name, size) = (snapshot.name().clone(), data.len());
            drop(snapshot);
            let path = format!("{name}/index.json.blob");
            let whole = place.read(&path).await.unwrap();
            let line = |text: &str, key: &str| {
                text.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("{key}")).to_owned()
            };
            let without_signature =
                |text: &str| text.replace(&line(text, "\"signature\""), "  \"signature\": null,");
            let without_key = |text: &str| {
                let text = without_signature(text);
                text.replace(&line(&text, "key-fingerprint"), "    \"x\": 1")
            };
            let changes: [Change<'_>; 5] = [
                ("size", Box::new(move |text| text.replace(&size.to_string(), "7")), ErrorKind::Corrupt),
                ("name", Box::new(|text| text.replace("d.img.fidx", "e.img.fidx")), ErrorKind::Corrupt),
                ("mode", Box::new(|text| text.replace("\"encrypt\"", "\"none\"")), ErrorKind::Corrupt),
                ("signature", Box::new(without_signature), ErrorKind::Corrupt),
                ("signature and key", Box::new(without_key), ErrorKind::WrongKey),
            ];
            for (what, change, kind) in changes {
                place.change_manifest(&name, change).await;
                let reopened = place.opened().await;
                let mut snapshot = reopened.snapshot(&name).await.unwrap();
                assert_eq!(snapshot.unlock(&ours).unwrap_err().kind(), kind, "{what}");
                if kind == ErrorKind::Corrupt {
                    let report = verified(&reopened, VerifyOptions::default().key(&ours)).await;
                    assert_eq!(report.damaged[0].manifest, Some(ObjectFault::Signature), "{what}");
                }
                drop(snapshot);
                place.write(&path, whole.clone()).await;
            }
            // Notes are not signed.
            store.set_notes(&name, "a note").await.unwrap();
            let mut snapshot = store.snapshot(&name).await.unwrap();
            snapshot.unlock(&ours).unwrap();
            check_whole(&snapshot, &data).await;
        })
    });
}

/// Gives a chunk a correct checksum.
fn with_checksum(mut blob: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&blob[44..]);
    blob[8..12].copy_from_slice(&checksum.to_le_bytes());
    blob
}

/// A change to the first of two chunks, and a part of the message of the error that it causes.
type Damage = (fn(&[u8], &[u8]) -> Vec<u8>, &'static str);

const DAMAGE: [Damage; 7] = [
    // Payload, with a correct checksum.
    (
        |chunk, _| {
            let mut chunk = chunk.to_vec();
            *chunk.last_mut().unwrap() ^= 1;
            with_checksum(chunk)
        },
        "authentication tag",
    ),
    // Nonce of another chunk.
    (|chunk, other| [&chunk[..12], &other[12..28], &chunk[28..]].concat(), "authentication tag"),
    // Tag.
    (|chunk, _| [&chunk[..28], &[chunk[28] ^ 1], &chunk[29..]].concat(), "authentication tag"),
    // Another chunk of the same key.
    (|_, other| other.to_vec(), "another digest"),
    // Truncated payload and truncated header.
    (|chunk, _| chunk[..chunk.len() - 1].to_vec(), "checksum"),
    (|chunk, _| chunk[..40].to_vec(), "bytes instead of"),
    // A plain chunk.
    (
        |_, _| {
            let mut plain = Vec::new();
            encode_plain(&noise(1, CHUNK), &mut plain).unwrap();
            plain
        },
        "not encrypted",
    ),
];

/// Proves H101.
#[test]
fn a_changed_chunk_never_reaches_the_target_and_the_next_backup_heals_it() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data, ours) = (place.store().await, data(), key(1));
            let snapshot = back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
            let paths = chunk_paths(&snapshot, "d.img").await;
            // Two chunks of noise: the first, and one behind the hole.
            let (first, other) = (place.read(&paths[0]).await.unwrap(), place.read(&paths[5]).await.unwrap());
            for (change, wanted) in DAMAGE {
                let changed = change(&other, &first);
                // In a pack, other bytes fill the place of a longer chunk.
                let fits = !place.is_packed() || changed.len() == other.len();
                place.write(&paths[5], changed).await;
                let (bytes, result) = restored(&snapshot, "d.img").await;
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{wanted}");
                assert!(!fits || text(&error).contains(wanted), "{wanted}: {}", text(&error));
                assert!(bytes.len() <= 5 * CHUNK && bytes[..] == data[..bytes.len()], "{wanted}");

                back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
                let (bytes, result) = restored(&snapshot, "d.img").await;
                assert!(result.is_ok() && bytes == data, "healed: {wanted}");
            }
        })
    });
}

/// Proves H100.
#[test]
fn verification_with_the_key_finds_what_a_checksum_does_not() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data, ours) = (place.store().await, data(), key(1));
            let snapshot = back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
            let path = chunk_paths(&snapshot, "d.img").await.swap_remove(5);
            let with_key = || VerifyOptions::default().key(&key(9)).key(&ours);

            let report = verified(&store, with_key()).await;
            assert!(report.is_clean() && report.chunks.checksum == 0 && report.chunks.digest > 0);
            let report = verified(&store, VerifyOptions::default()).await;
            assert!(report.is_clean() && report.chunks.checksum > 0 && report.chunks.digest == 0);

            // Neither the nonce nor the tag is under the checksum.
            let mut chunk = place.read(&path).await.unwrap().to_vec();
            chunk[20] ^= 1;
            place.write(&path, chunk).await;
            assert!(verified(&store, VerifyOptions::default().repair(Repair::Report)).await.is_clean());
            let report = verified(&store, with_key()).await;
            assert_eq!((report.chunks.corrupt, report.quarantined), (1, 1));
            assert_eq!(report.damaged.len(), 1);
            assert_eq!(place.read(&path).await, None);

            back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
            assert!(verified(&store, with_key()).await.is_clean());
            check_whole(&snapshot, &data).await;
        })
    });
}

/// Proves H100.
///
/// The nonce of an encrypted chunk is not under its checksum. A run without the key must not undo what one with the key found.
#[test]
fn a_checksum_clears_no_suspect() {
    futures::executor::block_on(async {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
        let store = Datastore::create(Arc::clone(&memory), Options::default()).await.unwrap();
        let (data, ours) = (data(), key(1));
        let snapshot = back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
        let chunk: Key = chunk_paths(&snapshot, "d.img").await.swap_remove(5).parse().unwrap();
        let mut bytes = memory.get(&chunk, 1 << 20).await.unwrap().bytes.to_vec();
        bytes[20] ^= 1;
        memory.put(&chunk, bytes.into(), PutMode::Replace).await.unwrap();
        let options = || VerifyOptions::default().repair(Repair::Report);
        assert_eq!(verified(&store, options().key(&ours)).await.chunks.corrupt, 1);
        assert!(verified(&store, options()).await.is_clean());
        back_up(&store, "host/a", Mode::Encrypt(&ours), &data).await;
        check_whole(&snapshot, &data).await;
    });
}

#[test]
fn no_output_of_a_run_contains_the_key() {
    everywhere(|place| {
        Box::pin(async move {
            let (store, data) = (place.store().await, data());
            let secret: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7 + 13).unwrap());
            let ours = EncryptionKey::from_bytes(&secret);
            let mut output = vec![format!("{ours:?}")];
            let events = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&events);
            let observer = move |event: &ArchiveEvent| seen.lock().unwrap().push(format!("{event:?}"));
            let builder = store.backup(&group("host/a")).encrypt(&ours).observer(Arc::new(observer));
            output.push(format!("{builder:?}"));
            let backup = builder.begin().await.unwrap();
            let stream = backup.stream("s.bin", Cursor::new(&data));
            output.push(format!("{stream:?}"));
            output.push(format!("{:?}", stream.await.unwrap()));
            output.push(format!("{backup:?}"));
            let finished = backup.finish().await.unwrap();
            output.push(format!("{finished:?} {store:?}"));
            let mut snapshot = store.snapshot(finished.snapshot.name()).await.unwrap();
            let error = snapshot.unlock(&key(3)).unwrap_err();
            output.push(format!("{error:?} {}", text(&error)));
            snapshot.unlock(&ours).unwrap();
            output.push(format!("{snapshot:?} {:?}", snapshot.archive("s.bin").await.unwrap()));
            let options = VerifyOptions::default().key(&ours);
            output.push(format!("{options:?}"));
            output.push(format!("{:?}", verified(&store, options).await));

            assert!(!events.lock().unwrap().is_empty());
            output.append(&mut events.lock().unwrap());

            let hex =
                |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
            let list = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
            let id_key = id_key(&secret);
            for text in output {
                for part in [&secret[..8], &id_key[..8]] {
                    let list = list(part);
                    let hex = hex(part);
                    let upper = hex.to_uppercase();
                    for form in [hex, upper, list.join(", "), list.join(","), list.join(",\n")] {
                        assert!(!text.contains(&form), "{text}");
                    }
                }
            }
        })
    });
}

#[test]
fn the_handle_of_a_key_is_cheap_to_share() {
    let ours = Arc::new(key(1));
    assert_eq!(*ours, key(1));
    assert_ne!(*ours, key(2));
    assert_eq!(ours.expose_bytes(), &[1; 32]);
}

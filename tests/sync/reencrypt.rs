//! Snapshots that get another key on their way.

use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, Cursor};
use larder::backend::PutMode;
use larder::crypt::EncryptionKey;
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::format::manifest::CryptMode;
use larder::format::name::{GroupName, SnapshotName};
use larder::internal::blob::{BlobEncoder, DEFAULT_ZSTD_LEVEL};
use larder::internal::{index, manifest};
use larder::store::{Datastore, SnapshotReader};
use larder::sync::{self, SyncConflict, SyncEvent, SyncOptions, SyncOutcome, SyncReport, SyncSkip};
use larder::verify::{self, VerifyOptions};
use larder_testing::places::{self, Place, everywhere};
use larder_testing::{fixture, noise};

use crate::basic::{Pair, memory};

const CHUNK: usize = 4096;

fn key(seed: u8) -> EncryptionKey {
    EncryptionKey::from_bytes(&[seed; 32])
}

fn group() -> GroupName {
    "host/a".parse().unwrap()
}

/// A snapshot with an image, a stream, a blob, the encrypted key and a log.
async fn back_up(store: &Datastore, key: Option<&EncryptionKey>, data: &[u8]) -> SnapshotName {
    let backup = store.backup(&group());
    let backup = match key {
        Some(key) => backup.encrypt(key),
        None => backup,
    };
    let backup = backup.begin().await.unwrap();
    backup.image("d.img", Cursor::new(data), data.len() as u64).chunk_bytes(CHUNK as u64).await.unwrap();
    backup.stream("s.bin", Cursor::new(data)).await.unwrap();
    backup.blob("c.conf", data[..100].to_vec()).await.unwrap();
    backup.blob("rsa-encrypted.key", b"for the master key".to_vec()).await.unwrap();
    backup.client_log(data[..50].to_vec()).await.unwrap();
    backup.set_notes("notes");
    backup.finish().await.unwrap().snapshot.name().clone()
}

async fn contents(snapshot: &SnapshotReader, archive: &str) -> Vec<u8> {
    let mut data = Vec::new();
    snapshot.archive(archive).await.unwrap().read_to_end(&mut data).await.unwrap();
    data
}

async fn check(store: &Datastore, name: &SnapshotName, key: &EncryptionKey, data: &[u8]) {
    let mut snapshot = store.snapshot(name).await.unwrap();
    snapshot.unlock(key).unwrap();
    assert!(contents(&snapshot, "d.img").await == data && contents(&snapshot, "s.bin").await == data);
    assert!(snapshot.blob("c.conf").await.unwrap() == data[..100]);
    assert!(snapshot.client_log().await.unwrap().unwrap() == data[..50]);
    assert_eq!(snapshot.blob("rsa-encrypted.key").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(snapshot.manifest().notes(), Some("notes"));
    assert!(snapshot.manifest().files().iter().all(|file| file.crypt_mode == CryptMode::Encrypt));
    let options = VerifyOptions::default().key(key);
    let report = verify::plan(store, &larder::store::Scope::Store, options).await.unwrap().execute().await;
    let report = report.unwrap();
    assert!(report.is_clean() && report.chunks.checksum == 0, "{report:?}");
}

async fn synced(source: &Datastore, target: &Datastore, options: SyncOptions) -> SyncReport {
    sync::plan(source, target, options).await.unwrap().execute().await.unwrap()
}

fn outcomes(report: &SyncReport) -> Vec<SyncOutcome> {
    report.groups.iter().flat_map(|group| &group.snapshots).map(|it| it.outcome.clone()).collect()
}

fn sent(outcome: &SyncOutcome) -> (u64, u64) {
    let SyncOutcome::Done(stats) = outcome else { panic!("{outcome:?}") };
    (stats.chunks_sent, stats.chunks_reused)
}

#[test]
fn plain_and_encrypted_snapshots_get_the_key_of_the_target() {
    everywhere(|place: Arc<Place>| {
        Box::pin(async move {
            let (old, new) = (key(1), key(2));
            for from in [None, Some(&old)] {
                let (source, target) = (place.store().await, place.store().await);
                let mut data = noise(1, 6 * CHUNK);
                data[CHUNK..3 * CHUNK].fill(0);
                let first = back_up(&source, from, &data).await;
                let options = || SyncOptions::default().reencrypt(&new).source_key(&old);
                let report = synced(&source, &target, options()).await;
                // Two chunks of zeros are one, and the stream is a chunk of its own.
                assert_eq!(sent(&outcomes(&report)[0]), (6, 0));
                check(&target, &first, &new, &data).await;
                // Nothing changed: not a chunk is read.
                let again = synced(&source, &target, options()).await;
                assert!(matches!(outcomes(&again)[..], [SyncOutcome::Skipped(SyncSkip::UpToDate)]));

                data[5 * CHUNK] ^= 1;
                let second = back_up(&source, from, &data).await;
                let report = synced(&source, &target, options()).await;
                let done = outcomes(&report);
                assert!(matches!(done[0], SyncOutcome::Skipped(_)), "{:?}", done[0]);
                assert_eq!(sent(&done[1]), (2, 4), "one chunk and the stream changed");
                check(&target, &second, &new, &data).await;

                source.set_notes(&second, "other notes").await.unwrap();
                let report = synced(&source, &target, options()).await;
                assert_eq!(sent(outcomes(&report).last().unwrap()), (0, 0));
                let mut snapshot = target.snapshot(&second).await.unwrap();
                snapshot.unlock(&new).unwrap();
                assert_eq!(snapshot.manifest().notes(), Some("other notes"));
                assert!(contents(&snapshot, "d.img").await == data);
            }
        })
    });
}

#[test]
fn two_snapshots_of_one_run_send_a_chunk_once() {
    let pair = block_on(pair());
    block_on(async {
        let (new, mut data) = (key(2), noise(1, 4 * CHUNK));
        back_up(&pair.source, None, &data).await;
        data[0] ^= 1;
        back_up(&pair.source, None, &data).await;
        let report = synced(&pair.source, &pair.target, SyncOptions::default().reencrypt(&new)).await;
        let done = outcomes(&report);
        assert_eq!((sent(&done[0]), sent(&done[1])), ((5, 0), (2, 3)));
    });
}

/// Nothing but the manifest says that the snapshot is damaged, as after a verification by another program.
#[test]
fn a_damaged_result_is_made_again_and_each_of_its_chunks_is_checked() {
    everywhere(|place: Arc<Place>| {
        Box::pin(async move {
            let (new, data) = (key(2), noise(1, 4 * CHUNK));
            let (source, target) = (place.store().await, place.store().await);
            let name = back_up(&source, None, &data).await;
            synced(&source, &target, SyncOptions::default().reencrypt(&new)).await;
            let path = {
                let mut snapshot = target.snapshot(&name).await.unwrap();
                snapshot.unlock(&new).unwrap();
                let archive = snapshot.archive("d.img").await.unwrap();
                let digest = index::of_archive(&archive).digest(2).unwrap().to_string();
                format!(".chunks/{}/{digest}", &digest[..4])
            };
            // The nonce, which no checksum covers.
            let mut chunk = place.read(&path).await.unwrap().to_vec();
            chunk[15] ^= 1;
            place.write(&path, chunk).await;
            let state = r#""state": "failed", "upid": "UPID:node1:00001234:0000ABCD:00000000:6878F2C0:verify:store1:root@pam:""#;
            let failed = format!(r#""unprotected": {{ "verify_state": {{ {state} }},"#);
            place.change_manifest(&name, |json| json.replace(r#""unprotected": {"#, &failed)).await;

            let options = || SyncOptions::default().reencrypt(&new);
            let report = synced(&source, &target, options()).await;
            assert!(matches!(outcomes(&report)[..], [SyncOutcome::Skipped(SyncSkip::Damaged)]));
            let report = synced(&source, &target, options().resync_corrupt()).await;
            assert!(matches!(outcomes(&report)[..], [SyncOutcome::Done(_)]), "{report:?}");
            check(&target, &name, &new, &data).await;
        })
    });
}

/// PBS limits the stored length of a blob, and not that of its contents.
#[test]
fn a_blob_whose_contents_are_longer_than_a_manifest_may_be_gets_the_key() {
    let pair = block_on(pair());
    block_on(async {
        let (new, long) = (key(2), vec![7; 17 << 20]);
        let backup = pair.source.backup(&group()).begin().await.unwrap();
        let short = backup.blob("c.conf", "short").await.unwrap();
        let name = backup.finish().await.unwrap().snapshot.name().clone();
        let mut stored = Vec::new();
        BlobEncoder::new(DEFAULT_ZSTD_LEVEL).unwrap().encode(&long, &mut stored).unwrap();
        let checksum = (short.checksum.to_string(), Digest::of(&stored).to_string());
        // A plain blob has a header of 12 bytes.
        let size = |bytes: usize| format!("\"size\": {bytes}");
        let size = (size(12 + 5), size(stored.len()));
        let change = |json: &str| json.replace(&checksum.0, &checksum.1).replace(&size.0, &size.1);
        places::change_manifest(pair.from.as_ref(), &name, change).await;
        let place = Key::from_str(&format!("{name}/c.conf.blob")).unwrap();
        pair.from.put(&place, stored.into(), PutMode::Replace).await.unwrap();

        let report = synced(&pair.source, &pair.target, SyncOptions::default().reencrypt(&new)).await;
        assert!(matches!(outcomes(&report)[..], [SyncOutcome::Done(_)]), "{report:?}");
        let mut snapshot = pair.target.snapshot(&name).await.unwrap();
        snapshot.unlock(&new).unwrap();
        assert!(snapshot.blob("c.conf").await.unwrap() == long);
    });
}

#[test]
fn snapshots_that_have_the_key_keep_their_bytes() {
    let pair = block_on(pair());
    block_on(async {
        let (ours, data) = (key(1), noise(1, 3 * CHUNK));
        let name = back_up(&pair.source, Some(&ours), &data).await;
        synced(&pair.source, &pair.target, SyncOptions::default().reencrypt(&ours)).await;
        let (from, to) =
            (pair.source.snapshot(&name).await.unwrap(), pair.target.snapshot(&name).await.unwrap());
        assert_eq!(manifest::signature(from.manifest()), manifest::signature(to.manifest()));
        assert_eq!(&to.blob("rsa-encrypted.key").await.unwrap()[..], b"for the master key");
    });
}

#[test]
fn a_snapshot_without_its_key_fails_and_the_target_stays_empty() {
    let pair = block_on(pair());
    block_on(async {
        let (ours, new, data) = (key(1), key(2), noise(1, 3 * CHUNK));
        let name = back_up(&pair.source, Some(&ours), &data).await;
        let options = SyncOptions::default().reencrypt(&new).source_key(&key(3));
        let report = synced(&pair.source, &pair.target, options).await;
        let [SyncOutcome::Failed(error)] = &outcomes(&report)[..] else { panic!("{report:?}") };
        assert_eq!(error.kind(), ErrorKind::KeyRequired);
        assert!(pair.target.snapshot_info(&name).await.is_err());
    });
}

/// Proves H52.
#[test]
fn nothing_takes_the_place_of_a_snapshot_that_another_change_made() {
    let pair = block_on(pair());
    block_on(async {
        let (first, second, data) = (key(1), key(2), noise(1, 3 * CHUNK));
        let name = back_up(&pair.source, None, &data).await;
        synced(&pair.source, &pair.target, SyncOptions::default().reencrypt(&first)).await;
        for (options, conflict) in [
            (SyncOptions::default().reencrypt(&second), SyncConflict::Key),
            (SyncOptions::default(), SyncConflict::Encryption),
            (SyncOptions::default().resync_corrupt(), SyncConflict::Encryption),
        ] {
            let report = synced(&pair.source, &pair.target, options).await;
            let [SyncOutcome::Conflict(found)] = outcomes(&report)[..] else { panic!("{report:?}") };
            assert_eq!(found, conflict);
        }
        check(&pair.target, &name, &first, &data).await;
    });
}

/// The plan is aborted after each chunk in turn, and a later execution completes it.
#[test]
fn an_aborted_change_is_resumed() {
    for chunks in 1..=4 {
        let pair = block_on(pair());
        block_on(async {
            let (new, data) = (key(2), noise(1, 4 * CHUNK));
            let name = back_up(&pair.source, None, &data).await;
            let flag = Arc::new(AtomicBool::new(false));
            let (left, raised) = (AtomicUsize::new(chunks), Arc::clone(&flag));
            let observer = move |event: &SyncEvent| {
                if matches!(event, SyncEvent::ChunkSent { .. }) && left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    raised.store(true, Ordering::SeqCst);
                }
            };
            let options = SyncOptions::default().reencrypt(&new).concurrency(1).abort(Arc::clone(&flag));
            let options = options.observer(Arc::new(observer));
            let mut plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
            let report = plan.execute().await.unwrap();
            assert!(report.is_aborted && pair.target.snapshot_info(&name).await.is_err());
            flag.store(false, Ordering::SeqCst);
            let report = plan.execute().await.unwrap();
            assert!(matches!(outcomes(&report)[..], [SyncOutcome::Done(_)]), "{report:?}");
            drop(plan);
            check(&pair.target, &name, &new, &data).await;
        });
    }
}

/// Keys of PBS are replaced in the store that it wrote.
#[test]
fn every_snapshot_of_pbs_gets_a_new_key() {
    let directory = larder_testing::scratch();
    fixture::unpack("store", directory.path());
    let new = key(9);
    block_on(async {
        let runtime = crate::basic::threads();
        let options = larder::backend::FsOptions::default()
            .prefix_directories(larder::backend::PrefixDirectories::OnDemand);
        let path = directory.path().join("store");
        let from = larder::backend::FsBackend::open(Arc::clone(&runtime), path, options).await.unwrap();
        let pair = Pair::on(Arc::new(from), memory(&runtime)).await;
        let expected = fixture::expected();
        let options = SyncOptions::default().reencrypt(&new);
        let options = fixture::keys().iter().fold(options, SyncOptions::source_key);
        // Groups of other owners are left alone.
        let report = synced(&pair.source, &pair.target, options).await;
        let done = outcomes(&report);
        assert!(done.len() >= 14, "{}", done.len());
        let mut checked = 0;
        for snapshot in fixture::snapshots(&expected) {
            if snapshot["owner"] != "root@pam" {
                continue;
            }
            let mut restored = pair.target.snapshot(&fixture::name_of(snapshot)).await.unwrap();
            restored.unlock(&new).unwrap();
            for (name, file) in fixture::files(snapshot).filter(|(name, _)| *name != "rsa-encrypted.key.blob")
            {
                let bytes = match name {
                    "client.log.blob" => restored.client_log().await.unwrap().unwrap().to_vec(),
                    blob if blob.ends_with(".blob") => restored.blob(blob).await.unwrap().to_vec(),
                    archive => contents(&restored, archive).await,
                };
                assert_eq!(file["plaintext-sha256"], Digest::of(&bytes).to_string(), "{name}");
                checked += 1;
            }
        }
        assert!(checked >= 40, "{checked}");
    });
}

async fn pair() -> Pair {
    let runtime = crate::basic::threads();
    Pair::on(memory(&runtime), memory(&runtime)).await
}

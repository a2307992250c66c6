//! A datastore that PBS wrote: it is read, listed and extended, and what we write from the same inputs is the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::manifest::VerifyResult;
use larder::format::name::{ArchiveName, GroupName, Namespace};
use larder::internal::index::IndexReader;
use larder::internal::manifest;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, SnapshotReader, SnapshotState, WriterTarget};
use larder_testing::fixture::{self, files, name_of, snapshots};
use larder_testing::read_to_end;
use serde_json::Value;

fn options() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

/// The store that PBS wrote, unpacked and opened.
fn open(directory: &Path) -> Datastore {
    fixture::unpack("store", directory);
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    block_on(async {
        let backend = FsBackend::open(runtime, directory.join("store"), options()).await.unwrap();
        Datastore::open(Arc::new(backend), Options::default()).await.unwrap()
    })
}

fn is_digest_of(bytes: &[u8], file: &Value) -> bool {
    file["plaintext-size"] == bytes.len() && file["plaintext-sha256"] == Digest::of(bytes).to_string()
}

async fn restore(snapshot: &SnapshotReader, archive: &str) -> Vec<u8> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive(archive).await.unwrap().copy_to(&mut target).await.unwrap();
    target.into_inner().into_inner()
}

#[test]
fn listings_of_a_pbs_store_match_its_own() {
    let directory = larder_testing::scratch();
    let (store, expected) = (open(directory.path()), fixture::expected());
    block_on(async {
        assert_eq!(store.uuid(), None);
        let found = store.namespaces(&Namespace::root()).await.unwrap();
        let mut found: Vec<_> = found.iter().map(ToString::to_string).collect();
        let mut names: Vec<_> = expected["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        found.sort_unstable();
        names.sort_unstable();
        assert_eq!(found, names);
        let mut groups: BTreeMap<GroupName, Vec<&Value>> = BTreeMap::new();
        for snapshot in snapshots(&expected) {
            groups.entry(name_of(snapshot).group().clone()).or_default().push(snapshot);
        }
        let mut found = Vec::new();
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            found.extend(store.groups(&namespace).await.unwrap());
        }
        found.sort();
        assert_eq!(found, groups.keys().cloned().collect::<Vec<_>>());
        for (group, expected) in &groups {
            assert_eq!(store.owner(group).await.unwrap().unwrap().to_string(), expected[0]["owner"]);
            assert_eq!(
                store.group_notes(group).await.unwrap().as_deref(),
                expected[0]["group-notes"].as_str()
            );
            let infos = store.snapshots(group).await.unwrap();
            assert_eq!(infos.len(), expected.len());
            for (info, expected) in infos.iter().zip(expected) {
                assert_eq!(info.name, name_of(expected));
                assert_eq!(
                    (info.state, expected["finished"].as_bool()),
                    (SnapshotState::Finished, Some(true))
                );
                assert_eq!(Some(info.protected), expected["protected"].as_bool());
                let mut names: Vec<_> = info.files.iter().map(|file| file.name.to_string()).collect();
                names.push("index.json.blob".to_owned());
                names.extend(info.has_client_log.then(|| "client.log.blob".to_owned()));
                names.sort_unstable();
                assert_eq!(Value::from(names), expected["dir-files"]);
            }
        }
    });
}

#[test]
fn manifests_of_a_pbs_store_are_read_completely() {
    let directory = larder_testing::scratch();
    let (store, expected) = (open(directory.path()), fixture::expected());
    let mut verified = 0;
    for expected in snapshots(&expected) {
        let snapshot = block_on(store.snapshot(&name_of(expected))).unwrap();
        let manifest = snapshot.manifest();
        let json: Value = serde_json::from_slice(&manifest.to_json()).unwrap();
        assert_eq!(json["backup-time"], expected["time"]);
        assert_eq!(manifest.notes(), expected["notes"].as_str());
        assert_eq!(
            manifest::signature(manifest).map(|digest| digest.to_string()).as_deref(),
            expected["signature"].as_str()
        );
        let fingerprint = manifest.key_fingerprint().unwrap().map(|fingerprint| fingerprint.to_string());
        assert_eq!(fingerprint.as_deref(), expected["key-fingerprint"].as_str());
        let state = manifest.verify_state().unwrap();
        verified += usize::from(state.is_some());
        let state = state.map(|state| (state.upid.to_string(), state.state == VerifyResult::Ok));
        let wanted = expected["verify"].as_object();
        let wanted = wanted.map(|state| (state["upid"].as_str().unwrap().to_owned(), state["state"] == "ok"));
        assert_eq!(state, wanted);
        let listed: Vec<_> = files(expected).filter(|(name, _)| *name != "client.log.blob").collect();
        assert_eq!(manifest.files().len(), listed.len());
        for (name, file) in listed {
            let entry = manifest.file(&name.parse().unwrap()).unwrap();
            assert_eq!(entry.size, file["size"]);
            assert_eq!(entry.checksum.to_string(), file["csum"]);
            assert_eq!(entry.crypt_mode.as_str(), file["crypt-mode"]);
        }
    }
    assert!(verified > 0);
}

#[test]
fn indexes_of_a_pbs_store_are_read_completely() {
    let directory = larder_testing::scratch();
    drop(open(directory.path()));
    let expected = fixture::expected();
    let mut indexes = 0;
    for expected in snapshots(&expected) {
        for (name, file) in files(expected).filter(|(name, _)| name.ends_with("idx")) {
            let path = directory.path().join("store").join(name_of(expected).to_string()).join(name);
            let kind = name.parse::<ArchiveName>().unwrap().kind();
            let index = IndexReader::parse(kind, std::fs::read(path).unwrap().into()).unwrap();
            let header = &file["header"];
            let uuid = index.header().uuid.map(|byte| format!("{byte:02x}")).concat();
            assert_eq!(uuid, header["uuid"]);
            assert_eq!(index.header().created.to_string(), header["ctime"]);
            assert_eq!(index.header().checksum.to_string(), header["header_csum"]);
            assert_eq!(index.checksum().to_string(), header["computed_csum"]);
            assert_eq!(index.size().to_string(), header["size"]);
            assert_eq!(index.len().to_string(), header["count"]);
            if let IndexReader::Fixed(index) = &index {
                assert_eq!(format!("Some({})", index.chunk_size()), header["chunk_size"]);
            }
            let chunks: Vec<_> = index
                .iter()
                .map(|chunk| serde_json::json!([chunk.offset + chunk.len, chunk.digest.to_string()]))
                .collect();
            assert_eq!(Value::from(chunks), file["chunks"], "{name}");
            indexes += 1;
        }
    }
    assert_eq!(indexes, 27);
}

/// Restores everything, or without keys everything that is not encrypted; how many archives and how many were refused.
async fn check_contents(store: &Datastore, expected: &Value, with_keys: bool) -> (usize, usize) {
    let (mut restored, mut refused) = (0, 0);
    let keys = fixture::keys();
    // The last one is the second in another file.
    let keys = &keys[..2];
    for expected in snapshots(expected) {
        let mut snapshot = store.snapshot(&name_of(expected)).await.unwrap();
        if with_keys && let Some(fingerprint) = snapshot.manifest().key_fingerprint().unwrap() {
            let (wanted, others): (Vec<_>, _) = keys.iter().partition(|key| key.fingerprint() == fingerprint);
            for other in others {
                assert_eq!(snapshot.unlock(other).unwrap_err().kind(), ErrorKind::WrongKey);
            }
            snapshot.unlock(wanted[0]).unwrap();
        }
        for (name, file) in files(expected) {
            let result = if name == "client.log.blob" {
                snapshot.client_log().await.map(|log| log.unwrap().to_vec())
            } else if name.ends_with(".blob") {
                snapshot.blob(name).await.map(|blob| blob.to_vec())
            } else {
                match snapshot.archive(name).await {
                    Err(error) => Err(error),
                    Ok(mut archive) => {
                        let read = read_to_end(&mut archive).await.unwrap();
                        assert!(restore(&snapshot, name).await == read);
                        Ok(read)
                    }
                }
            };
            if file["decrypt-key"].is_string() && !with_keys {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::KeyRequired, "{name}");
                refused += 1;
            } else {
                assert!(is_digest_of(&result.unwrap(), file), "{name} of {}", snapshot.name());
                restored += 1;
            }
        }
    }
    (restored, refused)
}

#[test]
fn every_unencrypted_archive_of_a_pbs_store_is_restored() {
    let directory = larder_testing::scratch();
    let store = open(directory.path());
    let (restored, refused) = block_on(check_contents(&store, &fixture::expected(), false));
    assert!(restored >= 35 && refused >= 11, "{restored} {refused}");
}

#[test]
fn every_archive_of_a_pbs_store_is_restored_with_its_key() {
    let directory = larder_testing::scratch();
    let store = open(directory.path());
    let (restored, refused) = block_on(check_contents(&store, &fixture::expected(), true));
    assert!(restored >= 46 && refused == 0, "{restored} {refused}");
}

#[test]
fn a_backup_adds_a_snapshot_to_a_pbs_store() {
    let directory = larder_testing::scratch();
    let store = open(directory.path());
    block_on(async {
        let group: GroupName = "host/beta".parse().unwrap();
        let base = store.snapshot(&store.latest(&group).await.unwrap().unwrap()).await.unwrap();
        let mut data = restore(&base, "stream.raw.didx").await;
        data.extend(b"more");
        let backup = store.backup(&group).begin().await.unwrap();
        backup.stream("stream.raw", Cursor::new(&data)).base(&base).await.unwrap();
        let added = backup.finish().await.unwrap().snapshot;
        assert!(restore(&added, "stream.raw.didx").await == data);
        assert_eq!(store.latest(&group).await.unwrap().as_ref(), Some(added.name()));
        check_contents(&store, &fixture::expected(), false).await;
    });
}

/// Our own store with the images and blobs of one of the snapshots of PBS.
#[test]
fn the_same_inputs_produce_the_same_store_as_pbs() {
    let directory = larder_testing::scratch();
    fixture::unpack("inputs", directory.path());
    fixture::unpack("store", directory.path());
    let inputs = directory.path().join("inputs");
    let expected = fixture::expected();
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let (ours, theirs) = block_on(async {
        let ours =
            FsBackend::create(Arc::clone(&runtime), directory.path().join("ours"), options()).await.unwrap();
        let theirs = FsBackend::open(runtime, directory.path().join("store"), options()).await.unwrap();
        let ours = Datastore::create(Arc::new(ours), Options::default()).await.unwrap();
        (ours, Datastore::open(Arc::new(theirs), Options::default()).await.unwrap())
    });
    let mut rebuilt = 0;
    for expected in snapshots(&expected) {
        let only_images =
            files(expected).all(|(name, file)| !name.ends_with(".didx") && !file["decrypt-key"].is_string());
        if !only_images || expected["ns"] != "" {
            continue;
        }
        let name = name_of(expected);
        block_on(async {
            let backup = ours.backup(name.group()).time(name.time().into()).begin().await.unwrap();
            for (archive, file) in files(expected) {
                let data = std::fs::read(inputs.join(file["input"].as_str().unwrap())).unwrap();
                match archive {
                    "client.log.blob" => backup.client_log(data).await.unwrap(),
                    blob if blob.ends_with(".blob") => drop(backup.blob(blob, data).await.unwrap()),
                    image => drop(backup.image(image, Cursor::new(&data), data.len() as u64).await.unwrap()),
                }
            }
            let ours = backup.finish().await.unwrap().snapshot;
            let theirs = theirs.snapshot(&name).await.unwrap();
            assert_eq!(
                String::from_utf8(manifest::canonical_json(ours.manifest())).unwrap(),
                String::from_utf8(manifest::canonical_json(theirs.manifest())).unwrap()
            );
        });
        for (archive, _) in files(expected).filter(|(archive, _)| archive.ends_with(".fidx")) {
            let read = |store: &str| {
                std::fs::read(directory.path().join(store).join(name.to_string()).join(archive)).unwrap()
            };
            let (mut ours, mut theirs) = (read("ours"), read("store"));
            for index in [&mut ours, &mut theirs] {
                // The uuid and the time of creation.
                index[8..32].fill(0);
            }
            assert!(ours == theirs, "{archive} of {name}");
        }
        rebuilt += 1;
    }
    assert_eq!(rebuilt, 3);
}

/// Proves H179.
///
/// Nothing of a plain backup may come from an encrypted archive.
#[test]
fn an_encrypted_archive_is_refused_as_a_base() {
    let directory = larder_testing::scratch();
    let store = open(directory.path());
    let mut refused = 0;
    block_on(async {
        for expected in snapshots(&fixture::expected()) {
            let base = store.snapshot(&name_of(expected)).await.unwrap();
            let is_encrypted = |(_, file): &(&str, &Value)| file["decrypt-key"].is_string();
            for (name, _) in files(expected).filter(is_encrypted) {
                let Some((archive, kind)) = name.rsplit_once('.') else { unreachable!("{name}") };
                let backup = store.backup(base.name().group()).begin().await.unwrap();
                let data = Cursor::new(vec![1; 1 << 20]);
                let begun = match kind {
                    "didx" => backup.stream(archive, data).base(&base).await,
                    "fidx" => backup.image(archive, data, 1 << 20).base(&base).await,
                    _ => continue,
                };
                assert_eq!(begun.unwrap_err().kind(), ErrorKind::KeyRequired, "{name}");
                backup.abort().await.unwrap();
                refused += 1;
            }
        }
    });
    assert!(refused >= 4, "{refused}");
}

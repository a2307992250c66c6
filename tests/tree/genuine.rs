//! Archives and catalogs that the archiver of PBS wrote: every entry, byte and attribute is read as the system reported it for the tree, in each way
//! of reading; and what is encoded again is the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, AsyncSeekExt as _, Cursor};
use larder::ThreadRuntime;
use larder::backend::{FsBackend, FsOptions, SyncLevel};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::name::Namespace;
use larder::pxar::{
    Acl, AclEntry, CatalogDirectory, CatalogKind, CatalogReader, CatalogWriter, DefaultAcl, Encoder,
    EntryContents, FileKind, PAYLOAD_END, PAYLOAD_START, PayloadOrigin, PayloadReference, payload_header,
};
use larder::store::{Datastore, Options, SnapshotReader, WriterTarget};
use larder::tree::{Tree, TreeEntry, TreeStep};
use larder_testing::fixture;
use serde_json::Value;

/// Opens a store of the fixtures.
pub(crate) async fn open(directory: &Path) -> Datastore {
    let options = FsOptions::default().sync_level(SyncLevel::None);
    let backend =
        FsBackend::open(Arc::new(ThreadRuntime::new()), directory.join("store"), options).await.unwrap();
    Datastore::open(Arc::new(backend), Options::default()).await.unwrap()
}

/// An archive of the fixture with its expected entries.
struct Archive {
    entries: BTreeMap<Vec<u8>, Value>,
    facts: Value,
    snapshot: SnapshotReader,
    tree: Tree,
}

async fn archives(store: &Datastore) -> Vec<Archive> {
    let expected = fixture::expected_trees();
    let all = expected["archives"].as_array().unwrap();
    let mut archives = Vec::new();
    for facts in all {
        let source = match facts["entries-of"].as_array() {
            None => facts,
            Some(of) => {
                all.iter().find(|other| other["snapshot"] == of[0] && other["archive"] == of[1]).unwrap()
            }
        };
        let entries = source["entries"].as_array().unwrap().iter();
        let entries = entries.map(|entry| (bytes_of(&entry["path"])[1..].to_vec(), entry.clone())).collect();
        let snapshot = store.snapshot(&facts["snapshot"].as_str().unwrap().parse().unwrap()).await.unwrap();
        let tree = snapshot.tree(facts["archive"].as_str().unwrap()).await.unwrap();
        archives.push(Archive { entries, facts: facts.clone(), snapshot, tree });
    }
    assert_eq!(archives.len(), 8);
    archives
}

/// Bytes that are text or, if they are not UTF-8, hexadecimal digits.
fn bytes_of(value: &Value) -> Vec<u8> {
    match (value.as_str(), value["hex"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (_, Some(hex)) => {
            let digits = hex.as_bytes().chunks(2);
            digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
        }
        _ => panic!("{value}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The metadata of an entry in the form of the expectation. For a hard link, `target` is the file that it leads to.
fn check(expected: &Value, entry: &TreeEntry, target: &TreeEntry) {
    let stat = target.metadata.stat;
    let path = entry.path.escape_ascii().to_string();
    assert_eq!(expected["mode"], format!("{:06o}", stat.mode), "{path}");
    assert_eq!(expected["uid"], stat.uid, "{path}");
    assert_eq!(expected["gid"], stat.gid, "{path}");
    assert_eq!(expected["mtime"], stat.mtime.seconds, "{path}");
    assert_eq!(expected["nanos"], stat.mtime.nanoseconds, "{path}");
    assert_eq!(expected["projid"].as_u64(), target.metadata.project, "{path}");
    assert_eq!(
        expected["fcaps"].as_str().map(str::to_owned),
        target.metadata.capabilities.as_ref().map(|value| hex(value))
    );
    // The archive has the order of the kernel.
    let mut xattrs: Vec<_> =
        target.metadata.xattrs.iter().map(|xattr| (xattr.name.to_vec(), hex(&xattr.value))).collect();
    xattrs.sort_unstable();
    let listed = expected["xattrs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let listed: Vec<_> =
        listed.iter().map(|pair| (bytes_of(&pair[0]), pair[1].as_str().unwrap().to_owned())).collect();
    assert_eq!(xattrs, listed, "{path}");
    let flags = [
        ("append", 0x1_0000),
        ("noatime", 0x2_0000),
        ("nodump", 0x10_0000),
        ("immutable", 0x40_0000),
        ("sync", 0x80_0000),
        ("projinherit", 0x200_0000),
    ];
    let known = expected["attributes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bits: u64 = known.iter().map(|name| flags.iter().find(|flag| *name == flag.0).unwrap().1).sum();
    // Attributes of directories that the expectation leaves out are those of the file system itself.
    assert_eq!(stat.flags, bits, "{path}");
    assert_eq!(expected["acl"], access_list(&target.metadata.acl, stat.mode), "{path}");
    assert_eq!(expected["default-acl"], default_list(target.metadata.acl.inherited.as_deref()), "{path}");
    let kind = match &target.kind {
        FileKind::BlockDevice(device) | FileKind::CharDevice(device) => {
            assert_eq!(expected["device"], serde_json::json!([device.major, device.minor]));
            if matches!(target.kind, FileKind::BlockDevice(_)) { "block" } else { "char" }
        }
        FileKind::Directory => "directory",
        FileKind::Fifo => "fifo",
        FileKind::File { size } => {
            assert_eq!(expected["size"], *size, "{path}");
            "file"
        }
        FileKind::Socket => "socket",
        FileKind::Symlink { target } => {
            assert_eq!(bytes_of(&expected["target"]), target[..], "{path}");
            "symlink"
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(expected["kind"], kind, "{path}");
    if let FileKind::HardLink { target: named } = &entry.kind {
        assert_eq!(bytes_of(&expected["hardlink-of"])[1..], named[..], "{path}");
        assert_eq!(target.path, named);
    } else {
        assert!(expected["hardlink-of"].is_null(), "{path}");
    }
}

fn rows(tag: &str, entries: &[AclEntry]) -> Vec<Value> {
    entries.iter().map(|entry| serde_json::json!([tag, entry.id, entry.permissions])).collect()
}

/// An access list as the system has it.
fn access_list(acl: &Acl, mode: u32) -> Value {
    if acl.users.is_empty() && acl.groups.is_empty() && acl.group_object.is_none() {
        return Value::Null;
    }
    let bits = |shift: u32| u64::from(mode >> shift & 7);
    let one = |tag: &str, permissions: u64| vec![serde_json::json!([tag, null, permissions])];
    [
        one("user_obj", bits(6)),
        rows("user", &acl.users),
        one("group_obj", acl.group_object.unwrap_or(bits(3))),
        rows("group", &acl.groups),
        one("mask", bits(3)),
        one("other", bits(0)),
    ]
    .concat()
    .into()
}

fn default_list(list: Option<&DefaultAcl>) -> Value {
    let Some(list) = list else { return Value::Null };
    let one = |tag: &str, permissions: Option<u64>| -> Vec<Value> {
        permissions.iter().map(|permissions| serde_json::json!([tag, null, permissions])).collect()
    };
    [
        one("user_obj", list.user_object),
        rows("user", &list.users),
        one("group_obj", list.group_object),
        rows("group", &list.groups),
        one("mask", list.mask),
        one("other", list.other),
    ]
    .concat()
    .into()
}

async fn check_contents(tree: &Tree, expected: &Value, entry: &TreeEntry) {
    if expected["kind"] == "file" {
        let contents = tree.open_entry(entry).await.unwrap().read_all().await.unwrap();
        assert_eq!(expected["sha256"], Digest::of(&contents).to_string(), "{entry}");
    }
}

/// The results of a walk.
pub(crate) async fn walked(tree: &Tree) -> Vec<TreeStep> {
    let (mut walk, mut steps) = (tree.walk(), Vec::new());
    while let Some(step) = walk.next().await.unwrap() {
        steps.push(step);
    }
    steps
}

#[test]
fn walks_of_genuine_archives_yield_every_entry_byte_and_attribute() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack_trees(directory.path());
    block_on(async {
        for mut archive in archives(&open(directory.path()).await).await {
            let mut open = Vec::new();
            for step in walked(&archive.tree).await {
                match step {
                    TreeStep::Entry(entry) => {
                        let expected = archive.entries.remove(&entry.path[..]).unwrap();
                        let target = archive.tree.target(&entry).await.unwrap();
                        check(&expected, &entry, &target);
                        check_contents(&archive.tree, &expected, &entry).await;
                        if entry.kind == FileKind::Directory {
                            open.push(entry.path.clone());
                        }
                    }
                    TreeStep::DirectoryEnd(path) => assert_eq!(open.pop(), Some(path)),
                    step => panic!("{step:?}"),
                }
            }
            assert!(open.is_empty() && archive.entries.is_empty(), "{:?}", archive.entries.keys());
        }
    });
}

#[test]
fn listings_and_lookups_of_genuine_archives_find_every_entry() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack_trees(directory.path());
    block_on(async {
        for mut archive in archives(&open(directory.path()).await).await {
            let root = archive.tree.entry("/").await.unwrap();
            check(&archive.entries.remove(&b""[..]).unwrap(), &root, &root);
            let mut open = vec![root];
            while let Some(directory) = open.pop() {
                let mut listing = archive.tree.read_dir(&directory.path).await.unwrap();
                let mut count = 0;
                while let Some(entry) = listing.next().await {
                    let entry = entry.unwrap();
                    count += 1;
                    let expected = archive.entries.remove(&entry.path[..]).unwrap();
                    check(&expected, &entry, &archive.tree.target(&entry).await.unwrap());
                    let found = archive.tree.entry([b"/", &entry.path[..]].concat()).await.unwrap();
                    assert_eq!(found, entry);
                    if entry.kind == FileKind::Directory {
                        open.push(entry);
                    }
                }
                assert_eq!(count, listing.len());
            }
            assert!(archive.entries.is_empty(), "{:?}", archive.entries.keys());
            for missing in ["nothing", "nothing/below", "aa-link-before/below"] {
                let error = archive.tree.entry(missing).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{missing}");
            }
            assert_eq!(archive.tree.entry("a/../b").await.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    });
}

/// Writes the tree again, and returns the archive and, in split form, the payload.
async fn encode_again(tree: &Tree) -> (Vec<u8>, Vec<u8>) {
    let root = tree.entry("").await.unwrap();
    let mut encoder = if tree.is_split() {
        let patterns: Vec<_> = tree
            .recorded_excludes()
            .await
            .unwrap()
            .split(|byte| *byte == b'\n')
            .map(Bytes::copy_from_slice)
            .collect();
        let prelude = larder::pxar::exclude_prelude(&patterns[..patterns.len() - 1]).unwrap();
        Encoder::split(&root.metadata, &prelude).unwrap()
    } else {
        Encoder::unified(&root.metadata).unwrap()
    };
    let mut payload = PAYLOAD_START.to_vec();
    let mut positions = BTreeMap::new();
    for step in walked(tree).await {
        match step {
            TreeStep::Entry(entry) if entry.path.is_empty() => {}
            TreeStep::DirectoryEnd(path) if path.is_empty() => {}
            TreeStep::DirectoryEnd(_) => encoder.leave().unwrap(),
            TreeStep::Entry(entry) => {
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap();
                match (&entry.kind, entry.contents) {
                    (FileKind::Directory, _) => encoder.enter(name, &entry.metadata).unwrap(),
                    (FileKind::File { size }, contents) => {
                        let bytes = tree.open_entry(&entry).await.unwrap().read_all().await.unwrap();
                        let position = if let EntryContents::Payload { .. } = contents {
                            let offset = payload.len() as u64;
                            payload.extend_from_slice(&payload_header(*size).unwrap());
                            payload.extend_from_slice(&bytes);
                            let contents =
                                PayloadReference { offset, origin: PayloadOrigin::Written, size: *size };
                            encoder.file_reference(name, &entry.metadata, contents).unwrap()
                        } else {
                            let position = encoder.file(name, &entry.metadata, *size).unwrap();
                            encoder.contents(&bytes).unwrap();
                            position
                        };
                        positions.insert(entry.path.clone(), position);
                    }
                    (FileKind::HardLink { target }, _) => {
                        encoder.hard_link(name, target, positions[target]).unwrap();
                    }
                    (kind, _) => encoder.special(name, &entry.metadata, kind).unwrap(),
                }
            }
            step => panic!("{step:?}"),
        }
    }
    payload.extend_from_slice(&PAYLOAD_END);
    (encoder.finish().unwrap().to_vec(), payload)
}

#[test]
fn genuine_archives_are_encoded_again_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack_trees(directory.path());
    block_on(async {
        for archive in archives(&open(directory.path()).await).await {
            if archive.facts["injected-chunks"].is_u64() {
                continue; // Without re-use, the offsets would be others.
            }
            let (encoded, payload) = encode_again(&archive.tree).await;
            for (name, facts) in archive.facts["streams"].as_object().unwrap() {
                let bytes = match &name[name.find('.').unwrap()..] {
                    ".ppxar.didx" => &payload,
                    ".mpxar.didx" | ".pxar.didx" => &encoded,
                    _ => continue,
                };
                assert_eq!(facts["size"], bytes.len(), "{name}");
                assert_eq!(facts["sha256"], Digest::of(bytes).to_string(), "{name}");
            }
        }
    });
}

/// Writes an archive of a catalog again, and compares it with the tree.
async fn catalog_again(
    catalog: &CatalogReader,
    root: CatalogDirectory,
    tree: &Tree,
    out: &mut CatalogWriter,
) {
    let mut open = vec![(Vec::new(), catalog.entries(root).unwrap().into_iter())];
    while let Some((parent, entries)) = open.last_mut() {
        let Some(entry) = entries.next() else {
            out.leave().unwrap();
            open.pop();
            continue;
        };
        let separator = if parent.is_empty() { &b""[..] } else { b"/" };
        let path = [&parent[..], separator, &entry.name].concat();
        let found = tree.entry(&path).await.unwrap();
        match (entry.kind, &found.kind) {
            (CatalogKind::Directory(inner), FileKind::Directory) => {
                let entries = catalog.entries(inner).unwrap();
                assert_eq!(tree.read_dir(&path).await.unwrap().len(), entries.len());
                out.enter(&entry.name).unwrap();
                open.push((path, entries.into_iter()));
                continue;
            }
            (CatalogKind::File { mtime, size }, FileKind::File { size: found_size }) => {
                assert_eq!((mtime, size), (found.metadata.stat.mtime.seconds, *found_size));
            }
            (CatalogKind::BlockDevice, FileKind::BlockDevice(_))
            | (CatalogKind::CharDevice, FileKind::CharDevice(_))
            | (CatalogKind::Fifo, FileKind::Fifo)
            | (CatalogKind::HardLink, FileKind::HardLink { .. })
            | (CatalogKind::Socket, FileKind::Socket)
            | (CatalogKind::Symlink, FileKind::Symlink { .. }) => {}
            (listed, found) => panic!("{listed:?} {found:?}"),
        }
        out.entry(&entry.name, &found.kind, found.metadata.stat.mtime.seconds).unwrap();
    }
}

#[test]
fn genuine_catalogs_list_what_the_archives_hold_and_are_written_again_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack_trees(directory.path());
    block_on(async {
        let mut count = 0;
        for archive in archives(&open(directory.path()).await).await {
            if archive.facts["catalog"].is_null() {
                continue;
            }
            let mut target = WriterTarget::new(Cursor::new(Vec::new()));
            archive.snapshot.archive("catalog.pcat1").await.unwrap().copy_to(&mut target).await.unwrap();
            let genuine = target.into_inner().into_inner();
            let catalog = CatalogReader::parse(genuine.clone()).unwrap();
            let mut again = CatalogWriter::new();
            for root in catalog.entries(catalog.root()).unwrap() {
                assert_eq!(archive.facts["archive"], String::from_utf8_lossy(&root.name).as_ref());
                let CatalogKind::Directory(directory) = root.kind else { panic!() };
                again.enter(&root.name).unwrap();
                catalog_again(&catalog, directory, &archive.tree, &mut again).await;
            }
            assert_eq!(again.finish().unwrap(), genuine);
            count += 1;
        }
        assert_eq!(count, 3);
    });
}

#[test]
fn files_are_read_by_range_and_as_streams_and_found_by_pattern() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack_trees(directory.path());
    block_on(async {
        for archive in archives(&open(directory.path()).await).await {
            let Some(large) = archive.entries.values().max_by_key(|entry| entry["size"].as_u64()) else {
                panic!()
            };
            if large["kind"] != "file" {
                continue;
            }
            let path = bytes_of(&large["path"]);
            let mut file = archive.tree.open(&path).await.unwrap();
            let whole = file.read_all().await.unwrap();
            assert_eq!(whole.len() as u64, file.size());
            let middle = file.size() / 2;
            let at = usize::try_from(middle).unwrap();
            let part = file.read_at(middle, 100).await.unwrap();
            assert!(!part.is_empty() && whole[at..].starts_with(&part));
            assert!(file.read_at(file.size(), 1).await.unwrap().is_empty());
            let mut read = Vec::new();
            file.seek(std::io::SeekFrom::Start(middle)).await.unwrap();
            file.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, whole[at..]);
            file.seek(std::io::SeekFrom::Start(0)).await.unwrap();
            let mut read = Vec::new();
            loop {
                let chunk = file.next_chunk().await.unwrap();
                if chunk.is_empty() {
                    break;
                }
                read.extend_from_slice(&chunk);
            }
            assert_eq!(read, whole);

            let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
            let mut found = archive.tree.find(name).unwrap();
            let mut paths = Vec::new();
            while let Some(TreeStep::Entry(entry)) = found.next().await.unwrap() {
                paths.push(entry.path.to_vec());
            }
            assert!(paths.contains(&path[1..].to_vec()), "{paths:?}");

            // A walk through a part of the tree is that part of the whole walk.
            let whole = walked(&archive.tree).await;
            for entry in archive.tree.read_dir("").await.unwrap().len().min(1)..2 {
                let mut listing = archive.tree.read_dir("").await.unwrap();
                let mut top = listing.next().await.unwrap().unwrap();
                for _ in 0..entry {
                    top = listing.next().await.unwrap().unwrap();
                }
                let mut walk = archive.tree.walk_from(&top.path).await.unwrap();
                let mut steps = Vec::new();
                while let Some(step) = walk.next().await.unwrap() {
                    steps.push(step);
                }
                let start = whole.iter().position(|step| *step == steps[0]).unwrap();
                assert_eq!(steps, whole[start..start + steps.len()]);
            }
        }
    });
}

#[test]
fn trees_open_by_any_of_their_names() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack_trees(directory.path());
    block_on(async {
        let store = open(directory.path()).await;
        let rich = Namespace::root();
        assert_eq!(store.groups(&rich).await.unwrap().len(), 3);
        let unified = store.snapshot(&"host/rich/2024-01-01T10:00:00Z".parse().unwrap()).await.unwrap();
        let split = store.snapshot(&"host/rich/2024-01-02T10:00:00Z".parse().unwrap()).await.unwrap();
        for name in ["rich", "rich.pxar", "rich.pxar.didx"] {
            assert!(!unified.tree(name).await.unwrap().is_split());
            assert!(split.tree(name).await.unwrap().is_split());
        }
        for name in ["rich.mpxar", "rich.ppxar.didx"] {
            assert!(split.tree(name).await.unwrap().is_split());
        }
        assert_eq!(unified.tree("other").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(unified.tree("catalog.pcat1").await.unwrap_err().kind(), ErrorKind::InvalidInput);
        for (snapshot, excludes) in [
            ("host/rich-excl/2024-01-01T10:01:40Z", "*.tmp\n/cli-only\ncache/\n"),
            ("host/rich-excl/2024-01-01T10:03:20Z", "*.tmp\n/cli-only\ncache/\n"),
            ("host/rich/2024-01-01T10:00:00Z", ""),
            ("host/rich/2024-01-02T10:00:00Z", ""),
        ] {
            let snapshot = store.snapshot(&snapshot.parse().unwrap()).await.unwrap();
            let name = if excludes.is_empty() { "rich" } else { "excl" };
            assert_eq!(snapshot.tree(name).await.unwrap().recorded_excludes().await.unwrap(), excludes);
        }
    });
}

#[test]
fn archives_of_an_older_store_are_read_and_encoded_again_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    fixture::unpack("store", directory.path());
    let expected = fixture::expected();
    block_on(async {
        let store = open(directory.path()).await;
        let mut trees = 0;
        for snapshot in fixture::snapshots(&expected) {
            let files: BTreeMap<_, _> = fixture::files(snapshot).collect();
            if !files.keys().any(|name| name.ends_with("pxar.didx")) {
                continue;
            }
            let reader = store.snapshot(&fixture::name_of(snapshot)).await.unwrap();
            let tree = reader.tree("root").await.unwrap();
            let (archive, payload) = encode_again(&tree).await;
            for (name, bytes) in
                [("root.pxar.didx", &archive), ("root.mpxar.didx", &archive), ("root.ppxar.didx", &payload)]
            {
                if let Some(file) = files.get(name) {
                    assert_eq!(file["plaintext-sha256"], Digest::of(bytes).to_string(), "{name}");
                }
            }
            trees += 1;
        }
        assert_eq!(trees, 3);
    });
}

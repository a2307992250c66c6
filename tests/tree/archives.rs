//! Reading back what a backup of a tree wrote.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::io::AsyncReadExt as _;
use larder::pxar::{ArchiveEntry, ArchivePart, Decoder, EntryContents, FileKind, Metadata};
use larder::store::SnapshotReader;
use larder::tree::{FileContents, LinkId, SourceEntry, TreeSource};
use larder_testing::read_to_end;
use larder_testing::tree::{Contents, MemoryTree};

/// Entries by path: kind, metadata and contents. A hard link has those of its target.
pub(crate) type Entries = BTreeMap<Vec<u8>, (FileKind, Metadata, Bytes)>;

/// The bytes of an archive.
pub(crate) async fn read(snapshot: &SnapshotReader, name: &str) -> Bytes {
    read_to_end(&mut snapshot.archive(name).await.unwrap()).await.unwrap().into()
}

/// The entries of an archive in one stream or in two, with the contents of its files.
pub(crate) fn decoded(entries: &Bytes, payload: Option<&Bytes>) -> Vec<(ArchiveEntry, Bytes)> {
    let mut decoder = Decoder::new();
    decoder.feed(entries.clone());
    let mut found = Vec::new();
    loop {
        match decoder.next_part().unwrap() {
            ArchivePart::Entry(entry) => {
                let contents = match (&entry.kind, entry.contents) {
                    (FileKind::File { size }, EntryContents::Archive { position }) => {
                        entries.slice(position as usize..(position + size) as usize)
                    }
                    (FileKind::File { size }, EntryContents::Payload { offset }) => {
                        let offset = offset as usize;
                        let payload = payload.unwrap();
                        assert_eq!(
                            payload[offset..offset + 16],
                            larder::pxar::payload_header(*size).unwrap()
                        );
                        payload.slice(offset + 16..offset + 16 + *size as usize)
                    }
                    _ => Bytes::new(),
                };
                found.push((*entry, contents));
                decoder.skip_contents();
            }
            ArchivePart::DirectoryEnd => {}
            ArchivePart::End => return found,
            part => panic!("{part:?}"),
        }
    }
}

/// The tree with a name in a snapshot, in either form.
pub(crate) async fn restored(snapshot: &SnapshotReader, name: &str) -> Entries {
    let split = format!("{name}.mpxar.didx");
    let entries = if snapshot.manifest().files().iter().any(|file| file.name.as_str() == split) {
        let payload = read(snapshot, &format!("{name}.ppxar.didx")).await;
        decoded(&read(snapshot, &split).await, Some(&payload))
    } else {
        decoded(&read(snapshot, &format!("{name}.pxar.didx")).await, None)
    };
    let mut found = Entries::new();
    for (entry, contents) in entries {
        let value = match &entry.kind {
            FileKind::HardLink { target } => found[&target[..]].clone(),
            kind => (kind.clone(), entry.metadata, contents),
        };
        found.insert(entry.path.to_vec(), value);
    }
    found
}

/// A source with the entries of an archive.
pub(crate) fn as_source(entries: &[(ArchiveEntry, Bytes)], excludes: Vec<Bytes>) -> MemoryTree {
    let tree = MemoryTree::new(entries[0].0.metadata.clone(), excludes);
    let mut links = BTreeMap::new();
    for (entry, _) in entries {
        if let EntryContents::Of { position } = entry.contents {
            links.insert(position, LinkId { device: 1, inode: position });
        }
    }
    let by_position: BTreeMap<_, _> = entries.iter().map(|found| (found.0.position, found)).collect();
    for (entry, contents) in &entries[1..] {
        let at = entry.path.iter().rposition(|byte| *byte == b'/');
        let (above, name) =
            at.map_or((&b""[..], &entry.path[..]), |at| (&entry.path[..at], &entry.path[at + 1..]));
        if name == b".pxarexclude-cli" {
            continue;
        }
        let position =
            if let EntryContents::Of { position } = entry.contents { position } else { entry.position };
        let (target, _) = by_position[&position];
        let mut source = SourceEntry::new(name.to_vec(), target.kind.clone(), target.metadata.clone());
        source.link = links.get(&position).copied();
        let contents =
            if position == entry.position { contents.clone() } else { by_position[&position].1.clone() };
        tree.add(above, source, Contents::Whole(contents));
    }
    tree
}

/// Everything in a source.
pub(crate) async fn contents_of(tree: &MemoryTree) -> Entries {
    let root = tree.root().await.unwrap();
    let mut found = Entries::from([(Vec::new(), (FileKind::Directory, root.metadata, Bytes::new()))]);
    let mut waiting = vec![(Vec::new(), root.directory)];
    while let Some((path, directory)) = waiting.pop() {
        for entry in directory.list().await.unwrap().entries {
            let mut path = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            let mut contents = Bytes::new();
            match entry.kind {
                FileKind::Directory => {
                    waiting.push((path.clone(), directory.open_directory(&entry).await.unwrap()));
                }
                FileKind::File { .. } => {
                    contents = match directory.open_file(&entry).await.unwrap() {
                        FileContents::Whole(bytes) => bytes,
                        FileContents::Stream(mut stream) => {
                            let mut bytes = Vec::new();
                            stream.read_to_end(&mut bytes).await.unwrap();
                            bytes.into()
                        }
                        other => panic!("{other:?}"),
                    }
                }
                _ => {}
            }
            found.insert(path, (entry.kind, entry.metadata, contents));
        }
    }
    tree.opened();
    found
}

/// Fails with the path of the first difference.
pub(crate) fn same_tree(found: &Entries, expected: &Entries) {
    for (path, value) in expected {
        let name = String::from_utf8_lossy(path);
        let there = found.get(path).unwrap_or_else(|| panic!("{name} is missing"));
        assert!((&there.0, &there.1) == (&value.0, &value.1), "{name}: {:?} {:?}", there.0, there.1);
        assert!(there.2 == value.2, "the contents of {name} differ");
    }
    assert_eq!(found.len(), expected.len());
}

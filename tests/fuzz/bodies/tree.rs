//! Archives of trees.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::io::Cursor;
use larder::backend::MemoryBackend;
use larder::error::{ErrorKind, Result};
use larder::pxar::{
    ArchivePart, CatalogDirectory, CatalogEntry, CatalogKind, CatalogReader, CatalogWriter, Decoder, Device,
    Encoder, EntryContents, FileKind, TreeEncodeError,
};
use larder::rt::SimRuntime;
use larder::store::{Datastore, Options};
use larder::tree::{EntryKind, Excludes, Tree, TreeStep};

/// A catalog is refused, or each of its directories is read once, and it is the same when it is written again.
pub(super) fn catalog(input: &[u8]) {
    let Ok(catalog) = CatalogReader::parse(input.to_vec()) else { return };
    let (mut open, mut blocks) = (vec![catalog.root()], 0);
    while let Some(directory) = open.pop() {
        blocks += 1;
        assert!(blocks <= input.len());
        for entry in catalog.entries(directory).unwrap_or_default() {
            if let CatalogKind::Directory(directory) = entry.kind {
                open.push(directory);
            }
        }
    }
    let (mut listed, mut writer) = (Vec::new(), CatalogWriter::new());
    if list(&catalog, catalog.root(), 0, &mut listed, &mut writer).is_none() {
        return;
    }
    let written = writer.finish().expect("each directory is left");
    let again = CatalogReader::parse(written).expect("what was written is read");
    let mut listed_again = Vec::new();
    list(&again, again.root(), 0, &mut listed_again, &mut CatalogWriter::new());
    assert_eq!(listed, listed_again);
}

/// Lists a whole catalog, directories before what is in them, with depth, name and kind of each entry, and writes the same. `None` if a part
/// cannot be read, or the writer refuses it.
fn list(
    catalog: &CatalogReader,
    directory: CatalogDirectory,
    depth: usize,
    listed: &mut Vec<(usize, Bytes, String)>,
    writer: &mut CatalogWriter,
) -> Option<()> {
    for CatalogEntry { kind, name, .. } in catalog.entries(directory).ok()? {
        let (device, link) = (Device { major: 0, minor: 0 }, Bytes::from_static(b"a"));
        let (file, mtime) = match kind {
            CatalogKind::Directory(directory) => {
                listed.push((depth, name.clone(), "directory".to_owned()));
                writer.enter(&name).ok()?;
                list(catalog, directory, depth + 1, listed, writer)?;
                writer.leave().ok()?;
                continue;
            }
            CatalogKind::BlockDevice => (FileKind::BlockDevice(device), 0),
            CatalogKind::CharDevice => (FileKind::CharDevice(device), 0),
            CatalogKind::Fifo => (FileKind::Fifo, 0),
            CatalogKind::File { mtime, size } => (FileKind::File { size }, mtime),
            CatalogKind::HardLink => (FileKind::HardLink { target: link }, 0),
            CatalogKind::Socket => (FileKind::Socket, 0),
            _ => (FileKind::Symlink { target: link }, 0),
        };
        listed.push((depth, name.clone(), format!("{kind:?}")));
        writer.entry(&name, &file, mtime).ok()?;
    }
    Some(())
}

/// Patterns decide about a path as the last one of them that matches. The first line of the input is the path.
pub(super) fn excludes(input: &[u8]) {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return };
    let (path, lines) = (&input[..end], &input[end + 1..]);
    let mut list = Excludes::default();
    if list.push_lines(lines).is_err() {
        assert_eq!(list, Excludes::default(), "then none is added");
        return;
    }
    for kind in [EntryKind::Directory, EntryKind::Other] {
        let mut decided = false;
        for line in lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let mut pattern = Excludes::default();
            let (is_include, body) = line.strip_prefix(b"!").map_or((false, line), |body| (true, body));
            // Without the mark, a body may begin with another one.
            if body.starts_with(b"!") || pattern.push(body).is_err() {
                return;
            }
            if pattern.excludes(path, kind) {
                decided = !is_include;
            }
        }
        assert_eq!(list.excludes(path, kind), decided);
    }
}

/// The table of a directory is refused, or its children lie in the directory.
pub(super) fn goodbye(input: &[u8]) {
    let Ok(children) = larder::internal::pxar::root_children(input) else { return };
    assert!(children.is_sorted_by(|one, next| one < next));
    assert!(children.iter().all(|child| *child > 0 && *child < input.len() as u64));
}

/// An archive is refused, or its parts are those of a tree; in pieces, and encoded again, it is the same.
pub(super) fn pxar(input: &[u8]) {
    let whole = parts(input, input.len().max(1));
    // Bytes behind the end show only if they are fed.
    let of_tree = |parts: &[ArchivePart]| parts.iter().take_while(|part| **part != ArchivePart::End).count();
    let in_pieces = parts(input, 3);
    assert_eq!(whole[..of_tree(&whole)], in_pieces[..of_tree(&in_pieces)]);
    let mut depth = 0;
    for part in whole {
        match part {
            ArchivePart::Entry(entry) if entry.kind == FileKind::Directory => depth += 1,
            ArchivePart::DirectoryEnd => depth -= 1,
            ArchivePart::End => assert_eq!(depth, 0),
            _ => assert!(depth > 0),
        }
    }
    check_encoder(input);
}

/// The parts of an archive that is fed in pieces, past the contents.
fn parts(input: &[u8], piece: usize) -> Vec<ArchivePart> {
    let (mut decoder, mut parts) = (Decoder::new(), Vec::new());
    loop {
        match decoder.next_part() {
            Ok(ArchivePart::NeedsBytes) => {
                let start = usize::try_from(decoder.position()).unwrap_or(usize::MAX);
                let Some(rest) = input.get(start..).filter(|rest| !rest.is_empty()) else { return parts };
                decoder.feed(Bytes::copy_from_slice(&rest[..piece.min(rest.len())]));
            }
            Ok(part) => {
                decoder.skip_contents();
                let is_end = part == ArchivePart::End;
                parts.push(part);
                if is_end {
                    return parts;
                }
            }
            Err(_) => return parts,
        }
    }
}

/// Parts of an archive that do not depend on positions: entries, and contents.
#[derive(Debug, PartialEq)]
enum Part {
    Contents(Vec<u8>),
    End,
    Entry(Bytes, FileKind, Box<larder::pxar::Metadata>),
}

/// The parts of a whole unified archive, and the archive that an encoder makes of them, if it accepts them.
fn encoded_again(input: &[u8]) -> Option<(Vec<Part>, Option<Bytes>)> {
    let (mut decoder, mut parts, mut encoder) = (Decoder::new(), Vec::new(), None);
    decoder.feed(Bytes::copy_from_slice(input));
    let mut positions = HashMap::new();
    loop {
        let part = decoder.next_part().ok()?;
        if decoder.is_split() {
            return None;
        }
        match part {
            ArchivePart::Contents(bytes) => {
                encoder = step(encoder, |encoder| encoder.contents(&bytes));
                match parts.last_mut() {
                    Some(Part::Contents(before)) => before.extend(bytes),
                    _ => parts.push(Part::Contents(bytes.to_vec())),
                }
            }
            ArchivePart::DirectoryEnd => {
                parts.push(Part::End);
                if encoder.as_ref().is_some_and(|encoder: &Encoder| encoder.depth() > 1) {
                    encoder = step(encoder, Encoder::leave);
                }
            }
            ArchivePart::End => {
                return Some((parts, encoder.and_then(|encoder| encoder.finish().ok())));
            }
            ArchivePart::Entry(entry) => {
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
                if entry.path.is_empty() {
                    encoder = Encoder::unified(&entry.metadata).ok();
                } else {
                    let position = encoder.as_ref().map_or(0, Encoder::position);
                    positions.insert(entry.position, position);
                    encoder = step(encoder, |encoder| match (&entry.kind, &entry.contents) {
                        (FileKind::Directory, _) => encoder.enter(&name, &entry.metadata),
                        (FileKind::File { size }, _) => encoder.file(&name, &entry.metadata, *size).map(drop),
                        (FileKind::HardLink { target }, EntryContents::Of { position }) => {
                            let position = positions.get(position).copied().unwrap_or_default();
                            encoder.hard_link(&name, target, position)
                        }
                        (kind, _) => encoder.special(&name, &entry.metadata, kind),
                    });
                }
                parts.push(Part::Entry(entry.path, entry.kind, Box::new(entry.metadata)));
            }
            _ => return None,
        }
    }
}

/// The encoder after a step, or none once it refused one.
fn step(
    encoder: Option<Encoder>,
    step: impl FnOnce(&mut Encoder) -> std::result::Result<(), TreeEncodeError>,
) -> Option<Encoder> {
    let mut encoder = encoder?;
    step(&mut encoder).ok().map(|()| encoder)
}

fn check_encoder(input: &[u8]) {
    let Some((parts, Some(archive))) = encoded_again(input) else { return };
    let (parts_again, archive_again) = encoded_again(&archive).expect("what was encoded is decoded");
    assert_eq!(parts_again, parts);
    assert_eq!(archive_again, Some(archive));
}

/// Each way to read a tree from a store ends, leads to plain paths, and finds what a decoder finds. The last two bytes of the input say how
/// many before them are the payload of an archive in two parts.
pub(super) fn tree(input: &[u8]) {
    let Some((archive, length)) = input.split_last_chunk::<2>() else { return };
    let (entries, payload) =
        archive.split_at(archive.len() - usize::from(u16::from_le_bytes(*length)).min(archive.len()));
    if entries.is_empty() {
        // No store has such an archive.
        return;
    }
    let runtime = SimRuntime::new(0);
    let for_body = runtime.clone();
    runtime.block_on(async move {
        let backend = MemoryBackend::new(Arc::new(for_body));
        let store = Datastore::create(Arc::new(backend), Options::default()).await.expect("memory");
        let backup = store.backup(&"host/a".parse().expect("a name")).begin().await.expect("memory");
        let name = if payload.is_empty() { "a.pxar" } else { "a.mpxar" };
        backup.stream(name, Cursor::new(entries)).await.expect("memory");
        if !payload.is_empty() {
            backup.stream("a.ppxar", Cursor::new(payload)).await.expect("memory");
        }
        let snapshot = backup.finish().await.expect("memory").snapshot;
        let Ok(tree) = snapshot.tree("a.pxar").await else { return };
        let walked = walked(&tree, input.len()).await;
        if let Some(paths) = walked {
            assert_eq!(decoded(entries), Some(paths), "the walk and the decoder differ");
        }
        looked_up(&tree, input.len()).await;
        let _ = tree.recorded_excludes().await;
        let mut tar = Vec::new();
        if let Err(error) = tree.to_tar("", Cursor::new(&mut tar)).await {
            check_error(Err::<(), _>(error));
        }
        assert!(tar.len() <= (input.len() + 2) * 5000, "{}", tar.len());
    });
}

fn check_error<T>(result: Result<T>) -> Option<T> {
    let is_expected = |kind| {
        matches!(
            kind,
            ErrorKind::Corrupt | ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::Unsupported
        )
    };
    match result {
        Err(error) => {
            assert!(is_expected(error.kind()), "{error:?}");
            None
        }
        Ok(found) => Some(found),
    }
}

fn check_path(path: &[u8]) {
    let is_plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    assert!(path.is_empty() || path.split(|byte| *byte == b'/').all(is_plain), "{path:?}");
}

/// The paths that a decoder finds, if the archive is whole.
fn decoded(entries: &[u8]) -> Option<Vec<Bytes>> {
    let (mut decoder, mut paths) = (Decoder::new(), Vec::new());
    decoder.feed(Bytes::copy_from_slice(entries));
    loop {
        match decoder.next_part().ok()? {
            ArchivePart::Entry(entry) => paths.push(entry.path),
            ArchivePart::End => return Some(paths),
            ArchivePart::NeedsBytes => return None,
            _ => {}
        }
    }
}

/// The paths of a walk, if nothing is lost.
async fn walked(tree: &Tree, limit: usize) -> Option<Vec<Bytes>> {
    let (mut walk, mut paths, mut is_whole) = (tree.walk(), Vec::new(), true);
    for step in 0.. {
        assert!(step <= 2 * limit, "the walk has no end");
        match check_error(walk.next().await) {
            Some(None) => return is_whole.then_some(paths),
            Some(Some(TreeStep::Entry(entry))) => {
                check_path(&entry.path);
                paths.push(entry.path);
            }
            Some(Some(TreeStep::Lost(_))) => is_whole = false,
            Some(Some(_)) => {}
            None => return None,
        }
    }
    None
}

/// Lists every directory by its table, and reads files.
async fn looked_up(tree: &Tree, limit: usize) {
    let (mut directories, mut count) = (vec![Bytes::new()], 0);
    while let Some(directory) = directories.pop() {
        let Some(mut entries) = check_error(tree.read_dir(&directory).await) else { continue };
        while let Some(entry) = entries.next().await {
            count += 1;
            assert!(count <= limit, "the listings have no end");
            let Some(entry) = check_error(entry) else { continue };
            check_path(&entry.path);
            match entry.kind {
                FileKind::Directory if entry.path.split(|byte| *byte == b'/').count() <= 20 => {
                    directories.push(entry.path);
                }
                FileKind::File { .. } | FileKind::HardLink { .. } => {
                    if let Some(file) = check_error(tree.open_entry(&entry).await) {
                        check_error(file.read_at(0, limit).await);
                    }
                }
                _ => {}
            }
        }
    }
}

use proptest::prelude::*;

use super::*;
use crate::pxar::encode::{EXCLUDE_FILE, Encoder, PayloadOrigin, PayloadReference, TreeEncodeError};
use crate::pxar::kind::Device;
use crate::pxar::metadata::{Acl, AclEntry, DefaultAcl, Mtime, Stat, Xattr};

fn of_mode(mode: u32) -> Metadata {
    let mtime = Mtime { seconds: -2, nanoseconds: 999_999_999 };
    Metadata::new(Stat { flags: 1 << 20, gid: 7, mode, mtime, uid: 1 << 31 })
}

/// Metadata with every attribute.
fn rich(mode: u32) -> Metadata {
    let entry = |id, permissions| AclEntry { id, permissions };
    let inherited = DefaultAcl {
        group_object: Some(5),
        groups: vec![entry(3, 1)],
        mask: None,
        other: Some(0),
        user_object: Some(7),
        users: vec![entry(4, 2), entry(5, 2)],
    };
    Metadata {
        acl: Acl {
            groups: vec![entry(1, 4)],
            group_object: Some(6),
            inherited: Some(inherited.into()),
            users: vec![entry(2, 7)],
        },
        capabilities: Some(Bytes::from_static(b"\x01\0\0\x02")),
        project: Some(42),
        xattrs: vec![
            Xattr { name: "user.z".into(), value: Bytes::new() },
            Xattr { name: "user.a".into(), value: Bytes::from_static(b"\0x\0") },
        ],
        ..of_mode(mode)
    }
}

/// An archive with every kind of entry.
fn archive(form: ArchiveForm) -> Vec<u8> {
    let root = rich(0o040_755);
    let mut encoder = match form {
        ArchiveForm::Split => Encoder::split(&root, b"{}").unwrap(),
        ArchiveForm::Unified => Encoder::unified(&root).unwrap(),
    };
    let mut offset = 16;
    let mut file = |encoder: &mut Encoder, name: &[u8], metadata: &Metadata, contents: &[u8]| {
        let size = contents.len() as u64;
        if form == ArchiveForm::Split {
            let reference = PayloadReference { offset, origin: PayloadOrigin::Written, size };
            offset += 16 + size;
            return encoder.file_reference(name, metadata, reference).unwrap();
        }
        let position = encoder.file(name, metadata, size).unwrap();
        encoder.contents(contents).unwrap();
        position
    };
    let position = file(&mut encoder, b"a", &rich(0o104_644), b"contents");
    encoder.enter(b"b", &of_mode(0o041_777)).unwrap();
    let target = FileKind::Symlink { target: "/nowhere".into() };
    encoder.special(b"a\xff", &of_mode(0o120_777), &target).unwrap();
    encoder.hard_link(b"b", b"a", position).unwrap();
    let device = Device { major: 8, minor: 1 << 19 };
    encoder.special(b"c", &of_mode(0o060_660), &FileKind::BlockDevice(device)).unwrap();
    encoder.special(b"d", &of_mode(0o020_660), &FileKind::CharDevice(device)).unwrap();
    encoder.enter(b"e", &of_mode(0o040_700)).unwrap();
    encoder.leave().unwrap();
    encoder.special(b"f", &of_mode(0o140_600), &FileKind::Socket).unwrap();
    encoder.leave().unwrap();
    encoder.special(b"c", &of_mode(0o010_600), &FileKind::Fifo).unwrap();
    file(&mut encoder, EXCLUDE_FILE, &of_mode(0o100_600), b"");
    encoder.finish().unwrap().to_vec()
}

/// Decodes an archive fed in pieces, with its contents or past them, and encodes what it has.
fn again(archive: &[u8], piece: usize, skips: bool) -> Result<Vec<u8>, TreeDecodeError> {
    let mut decoder = Decoder::new();
    let mut encoder: Option<Encoder> = None;
    let mut out = Vec::new();
    loop {
        match (decoder.next_part()?, &mut encoder) {
            (ArchivePart::NeedsBytes, _) => {
                let start = usize::try_from(decoder.position()).unwrap();
                let Some(rest) = archive.get(start..).filter(|rest| !rest.is_empty()) else {
                    return Err(TreeDecodeError::new(TreeFault::Truncated, decoder.position()));
                };
                decoder.feed(Bytes::copy_from_slice(&rest[..piece.min(rest.len())]));
            }
            (ArchivePart::Entry(root), None) => {
                encoder = Some(if decoder.is_split() {
                    Encoder::split(&root.metadata, decoder.prelude().map_or(&[][..], |prelude| prelude))
                        .unwrap()
                } else {
                    Encoder::unified(&root.metadata).unwrap()
                });
            }
            (ArchivePart::Entry(entry), Some(encoder)) => {
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap();
                match (&entry.kind, entry.contents) {
                    (FileKind::Directory, _) => encoder.enter(name, &entry.metadata).unwrap(),
                    (FileKind::File { size }, EntryContents::Payload { offset }) => {
                        let contents =
                            PayloadReference { offset, origin: PayloadOrigin::Written, size: *size };
                        encoder.file_reference(name, &entry.metadata, contents).unwrap();
                    }
                    (FileKind::File { size }, EntryContents::Archive { position }) => {
                        encoder.file(name, &entry.metadata, *size).unwrap();
                        if skips {
                            let start = usize::try_from(position).unwrap();
                            let end = start + usize::try_from(*size).unwrap();
                            encoder.contents(&archive[start..end]).unwrap();
                            decoder.skip_contents();
                        }
                    }
                    (FileKind::HardLink { target }, EntryContents::Of { position }) => {
                        encoder.hard_link(name, target, position).unwrap();
                    }
                    (kind, _) => encoder.special(name, &entry.metadata, kind).unwrap(),
                }
                out.extend_from_slice(&encoder.take());
            }
            (ArchivePart::Contents(bytes), Some(encoder)) => encoder.contents(&bytes).unwrap(),
            (ArchivePart::DirectoryEnd, Some(encoder)) if encoder.depth() > 1 => encoder.leave().unwrap(),
            (ArchivePart::DirectoryEnd, Some(_)) => {
                out.extend_from_slice(&encoder.take().unwrap().finish().unwrap());
            }
            (ArchivePart::End, _) => {
                assert_eq!(decoder.position(), archive.len() as u64);
                return Ok(out);
            }
            (part, None) => panic!("{part:?} before the root"),
        }
    }
}

#[test]
fn what_was_decoded_encodes_to_the_same_bytes() {
    for form in [ArchiveForm::Split, ArchiveForm::Unified] {
        let archive = archive(form);
        for (piece, skips) in [(1, false), (7, true), (100, false), (usize::MAX, true), (usize::MAX, false)] {
            assert_eq!(again(&archive, piece, skips).unwrap(), archive, "{form:?} {piece}");
        }
    }
}

#[test]
fn an_archive_that_ends_early_is_no_archive() {
    let archive = archive(ArchiveForm::Unified);
    // The table of the root is skipped, so what is cut off there shows in the position alone.
    let table = 16 + 24 * 5;
    for end in 0..archive.len() - table {
        assert_eq!(
            again(&archive[..end], usize::MAX, false).unwrap_err().fault,
            TreeFault::Truncated,
            "{end}"
        );
    }
    let longer = [&archive[..], b"x"].concat();
    assert_eq!(again(&longer, usize::MAX, false).unwrap_err().fault, TreeFault::Trailing);
}

/// The fault of an archive of a root and these items.
fn fault_of(items: &[(u64, &[u8])]) -> TreeFault {
    let mut archive = archive(ArchiveForm::Unified)[..0].to_vec();
    let root = [&0o040_755_u64.to_le_bytes()[..], &[0; 32]].concat();
    for (kind, content) in [(item::ENTRY, &root[..])].iter().chain(items) {
        archive.extend_from_slice(&item::header(*kind, 16 + content.len() as u64));
        archive.extend_from_slice(content);
    }
    let mut decoder = Decoder::new();
    decoder.feed(archive.into());
    loop {
        match decoder.next_part() {
            Ok(ArchivePart::NeedsBytes | ArchivePart::End) => return TreeFault::Truncated,
            Ok(_) => decoder.skip_contents(),
            Err(error) => return error.fault,
        }
    }
}

/// Proves H194.
#[test]
fn malformed_entries_are_refused() {
    let entry = |mode: u64| [&mode.to_le_bytes()[..], &[0; 32]].concat();
    let (file, fifo, link) = (entry(0o100_644), entry(0o010_644), entry(0o120_777));
    let name: (u64, &[u8]) = (item::FILENAME, b"a\0");
    let (file, fifo, link) = ((item::ENTRY, &file[..]), (item::ENTRY, &fifo[..]), (item::ENTRY, &link[..]));
    for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"a\0\0", b"ab", b"a", b""] {
        let expected = if bad.len() < 2 { TreeFault::Content } else { TreeFault::Name };
        assert_eq!(fault_of(&[(item::FILENAME, bad), file]), expected, "{bad:?}");
    }
    assert_eq!(fault_of(&[(item::FILENAME, &[b'a'; 4098])]), TreeFault::Content);
    assert_eq!(fault_of(&[name, file, (item::SYMLINK, b"a\0")]), TreeFault::Kind);
    assert_eq!(fault_of(&[name, link, (item::SYMLINK, b"\0\0")]), TreeFault::Content);
    assert_eq!(fault_of(&[name, link, (item::SYMLINK, b"ab")]), TreeFault::Content);
    assert_eq!(fault_of(&[name, fifo, (item::PAYLOAD, b"")]), TreeFault::Kind);
    assert_eq!(fault_of(&[name, file, name]), TreeFault::Kind);
    assert_eq!(fault_of(&[name, file, (item::PAYLOAD_REF, &[16; 16])]), TreeFault::Item);
    assert_eq!(fault_of(&[name, file, (item::HARDLINK, b"\x01\0\0\0\0\0\0\0a\0")]), TreeFault::Item);
    assert_eq!(fault_of(&[name, (item::ENTRY, &[0; 39])]), TreeFault::Content);
    assert_eq!(fault_of(&[name, (1, b"")]), TreeFault::Item);
    assert_eq!(fault_of(&[name, (item::ENTRY, &entry(0o1_100_644))]), TreeFault::Kind);
    let mut late = entry(0o100_644);
    late[32..36].copy_from_slice(&1_000_000_000_u32.to_le_bytes());
    assert_eq!(fault_of(&[name, (item::ENTRY, &late)]), TreeFault::Content);
    for target in [&b"/a\0"[..], b"../a\0", b"a//b\0", b"a/\0", b"a", b"\0"] {
        let far = [&u64::MAX.to_le_bytes()[..], b"a\0"].concat();
        assert_eq!(fault_of(&[name, (item::HARDLINK, &far)]), TreeFault::Link);
        let link = [&1_u64.to_le_bytes()[..], target].concat();
        let expected = if target.len() < 2 { TreeFault::Content } else { TreeFault::Link };
        assert_eq!(fault_of(&[name, (item::HARDLINK, &link)]), expected, "{target:?}");
    }
    for twice in
        [(item::ACL_GROUP_OBJ, 8), (item::ACL_DEFAULT, 32), (item::FCAPS, 3), (item::QUOTA_PROJID, 8)]
    {
        let item = (twice.0, &[0; 32][..twice.1]);
        assert_eq!(fault_of(&[name, file, item, item]), TreeFault::DuplicateAttribute);
        assert_eq!(
            fault_of(&[name, file, item, (item::XATTR, b"a\0"), (item::XATTR, b"a\0")]),
            TreeFault::Truncated
        );
    }
    assert_eq!(fault_of(&[name, file, (item::XATTR, b"no")]), TreeFault::Content);
    assert_eq!(fault_of(&[name, file, (item::ACL_USER, b"")]), TreeFault::Content);
    let empty = (item::PAYLOAD, &b""[..]);
    assert_eq!(
        fault_of(&[name, file, empty, (item::FILENAME, b"b\0"), file, empty, name, file, empty]),
        TreeFault::DuplicateName
    );
    assert_eq!(fault_of(&[name, file, empty, (item::GOODBYE, &[0; 24])]), TreeFault::Content);
    assert_eq!(fault_of(&[(item::GOODBYE, &[0; 23])]), TreeFault::Content);
}

#[test]
fn a_start_of_another_kind_is_refused() {
    let fault = |bytes: Vec<u8>| {
        let mut decoder = Decoder::new();
        decoder.feed(bytes.into());
        decoder.next_part().unwrap_err().fault
    };
    assert_eq!(fault(vec![0; 16]), TreeFault::Content);
    assert_eq!(fault([&[1; 8][..], &[20, 0, 0, 0, 0, 0, 0, 0]].concat()), TreeFault::Magic);
    let version =
        |version: u64| [&item::header(item::FORMAT_VERSION, 24)[..], &version.to_le_bytes()].concat();
    assert_eq!(fault(version(3)), TreeFault::Version);
    assert_eq!(fault(version(0)), TreeFault::Version);
    let prelude = |size| [version(2), item::header(item::PRELUDE, size).to_vec()].concat();
    assert_eq!(fault(prelude(16 + (1 << 20) + 1)), TreeFault::Content);
    assert_eq!(fault([version(2), version(2)].concat()), TreeFault::Item);
}

/// Proves H194.
#[test]
fn depth_and_length_of_paths_are_limited() {
    let directory = of_mode(0o040_755);
    let deep = |levels: usize, name: &[u8]| {
        let mut encoder = Encoder::unified(&directory).unwrap();
        (0..levels).for_each(|_| encoder.enter(name, &directory).unwrap());
        (0..levels).for_each(|_| encoder.leave().unwrap());
        again(&encoder.finish().unwrap(), usize::MAX, false).map(drop).map_err(|error| error.fault)
    };
    assert_eq!(deep(1023, b"a"), Ok(()));
    assert_eq!(deep(1024, b"a"), Err(TreeFault::Depth));
    assert_eq!(deep(15, &[b'a'; 4096]), Ok(()));
    assert_eq!(deep(16, &[b'a'; 4096]), Err(TreeFault::Depth));
}

#[test]
fn old_entries_have_their_time_in_nanoseconds() {
    let old: Vec<u8> =
        [0o040_755_u64, 0, 5 << 32 | 4, 1_500_000_001].iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut archive = item::header(item::ENTRY_V1, 48).to_vec();
    archive.extend_from_slice(&old);
    archive.extend_from_slice(&item::header(item::GOODBYE, 40));
    let mut decoder = Decoder::new();
    decoder.feed(archive.into());
    let ArchivePart::Entry(root) = decoder.next_part().unwrap() else { panic!() };
    let mtime = Mtime { seconds: 1, nanoseconds: 500_000_001 };
    assert_eq!(root.metadata.stat, Stat { flags: 0, gid: 5, mode: 0o040_755, mtime, uid: 4 });
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        split: bool,
        at in 0..600_usize,
    ) {
        let mut decoder = Decoder::new();
        decoder.feed(bytes.clone().into());
        while let Ok(part) = decoder.next_part() {
            if matches!(part, ArchivePart::End | ArchivePart::NeedsBytes) {
                break;
            }
        }
        // Damage in an archive.
        let mut archive = archive(if split { ArchiveForm::Split } else { ArchiveForm::Unified });
        for (old, new) in archive.iter_mut().skip(at).zip(bytes.iter().take(8)) {
            *old ^= new;
        }
        let mut decoder = Decoder::new();
        decoder.feed(archive.into());
        while let Ok(part) = decoder.next_part() {
            if matches!(part, ArchivePart::End | ArchivePart::NeedsBytes) {
                break;
            }
        }
    }
}

/// Proves H194.
#[test]
fn the_number_of_attributes_of_an_entry_is_limited() {
    let tiny = |count: usize| {
        let mut metadata = of_mode(0o100_644);
        metadata.xattrs = vec![Xattr { name: "u".into(), value: Bytes::new() }; count];
        metadata
    };
    let mut encoder = Encoder::unified(&of_mode(0o040_755)).unwrap();
    let error = encoder.file(b"b", &tiny(item::MAX_XATTRS + 1), 0).unwrap_err();
    assert_eq!(error, TreeEncodeError::Length("the metadata"));
    encoder.file(b"b", &tiny(item::MAX_XATTRS), 0).unwrap();
    let archive = encoder.finish().unwrap();
    assert_eq!(again(&archive, usize::MAX, true).unwrap(), archive);
    let attribute = [&item::header(item::XATTR, 18)[..], b"u\0"].concat();
    let at = archive.windows(18).position(|bytes| bytes == attribute).unwrap();
    let more = [&archive[..at], &attribute, &archive[at..]].concat();
    assert_eq!(again(&more, usize::MAX, true).unwrap_err().fault, TreeFault::Bounds);
}

use super::*;
use crate::pxar::kind::Device;
use crate::pxar::metadata::{Mtime, Stat, Xattr};

fn of_mode(mode: u32) -> Metadata {
    let mtime = Mtime { seconds: 1_700_000_000, nanoseconds: 0 };
    Metadata::new(Stat { mode, mtime, ..Stat::default() })
}

fn directory() -> Metadata {
    of_mode(0o040_755)
}

fn file() -> Metadata {
    of_mode(0o100_644)
}

#[rustfmt::skip]
const UNIFIED: [u64; 26] = [
    0xefac_88e5_7464_95d5, 0x3800_0000_0000_0000, 0xed41_0000_0000_0000, 0,
    0, 0x00f1_5365_0000_0000, 0, 0xb317_3906_2111_7016,
    0x1200_0000_0000_0000, 0x6100_efac_88e5_7464, 0x95d5_3800_0000_0000, 0x0000_a481_0000_0000,
    0, 0, 0x0000_00f1_5365_0000, 0,
    0x0000_251a_7c0b_1b7a, 0x1428_1200_0000_0000, 0x0000_6869_1d73_d542, 0xa64f_ec2f_4000_0000,
    0x0000_0000_cf7b_2c7c, 0x06e9_260c_5c00_0000, 0x0000_0000_5c00_0000, 0x0000_0000_5515_3e75,
    0x5bed_5eef_9400_0000, 0x0000_0000_4000_0000,
];

#[rustfmt::skip]
const SPLIT: [u64; 31] = [
    0x0da4_16df_756c_0f73, 0x1800_0000_0000_0000, 0x0200_0000_0000_0000, 0xefac_88e5_7464_95d5,
    0x3800_0000_0000_0000, 0xed41_0000_0000_0000, 0, 0,
    0x00f1_5365_0000_0000, 0, 0xb317_3906_2111_7016, 0x1200_0000_0000_0000,
    0x6100_efac_88e5_7464, 0x95d5_3800_0000_0000, 0x0000_a481_0000_0000, 0,
    0, 0x0000_00f1_5365_0000, 0, 0x0000_7e97_bac4_6b3d,
    0x9d41_2000_0000_0000, 0x0000_1000_0000_0000, 0x0000_0200_0000_0000, 0x0000_1d73_d542_a64f,
    0xec2f_4000_0000_0000, 0x0000_cf7b_2c7c_06e9, 0x260c_6a00_0000_0000, 0x0000_6c00_0000_0000,
    0x0000_5515_3e75_5bed, 0x5eef_ba00_0000_0000, 0x0000_4000_0000_0000,
];

/// The bytes in the order in which the specification prints them.
fn bytes_of(words: &[u64], rest: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<_> = words.iter().flat_map(|word| word.swap_bytes().to_le_bytes()).collect();
    bytes.extend_from_slice(rest);
    bytes
}

#[test]
fn the_smallest_unified_archive_has_the_bytes_of_the_specification() {
    let mut encoder = Encoder::unified(&directory()).unwrap();
    assert_eq!(encoder.file(b"a", &file(), 2), Ok(56));
    encoder.contents(b"hi").unwrap();
    let expected = bytes_of(&UNIFIED, &[0; 4]);
    assert_eq!(encoder.finish().unwrap(), expected);

    let mut encoder = Encoder::unified(&directory()).unwrap();
    encoder.file(b"a", &file(), 2).unwrap();
    let mut archive = encoder.take().to_vec();
    encoder.contents_elsewhere(2).unwrap();
    archive.extend_from_slice(b"hi");
    archive.extend_from_slice(&encoder.finish().unwrap());
    assert_eq!(archive, expected);
}

#[test]
fn the_smallest_split_archive_has_the_bytes_of_the_specification() {
    let mut encoder = Encoder::split(&directory(), &[]).unwrap();
    let contents = PayloadReference { offset: 16, origin: PayloadOrigin::Written, size: 2 };
    encoder.file_reference(b"a", &file(), contents).unwrap();
    assert_eq!(encoder.finish().unwrap(), bytes_of(&SPLIT, &[0, 0]));
    let payload = [&PAYLOAD_START[..], &payload_header(2).unwrap(), b"hi", &PAYLOAD_END].concat();
    let words = [
        0xd24e_4a19_c268_4c83,
        0x1000_0000_0000_0000,
        0x251a_7c0b_1b7a_1428,
        0x1200_0000_0000_0000,
        0x6869_b581_4c98_8bb7,
        0x726c_1000_0000_0000,
    ];
    assert_eq!(payload, bytes_of(&words, &[0, 0]));
}

#[test]
fn rows_of_reused_files_do_not_count_their_contents() {
    let encode = |origin| {
        let mut encoder = Encoder::split(&directory(), &[]).unwrap();
        encoder.file_reference(b"a", &file(), PayloadReference { offset: 16, origin, size: 1000 }).unwrap();
        let archive = encoder.finish().unwrap();
        u64::from_le_bytes(archive[archive.len() - 32..][..8].try_into().unwrap())
    };
    assert_eq!((encode(PayloadOrigin::Reused), encode(PayloadOrigin::Written)), (106, 1106));
}

#[test]
fn an_encoder_refuses_what_the_format_cannot_hold_and_goes_on() {
    let mut encoder = Encoder::unified(&directory()).unwrap();
    let fifo = of_mode(0o010_644);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 4097]] {
        assert_eq!(encoder.special(name, &fifo, &FileKind::Fifo), Err(TreeEncodeError::Name));
    }
    let link = |target: &'static [u8]| FileKind::Symlink { target: Bytes::from_static(target) };
    let link_mode = of_mode(0o120_777);
    assert_eq!(encoder.special(b"b", &link_mode, &link(b"")), Err(TreeEncodeError::LinkTarget));
    assert_eq!(encoder.special(b"b", &link_mode, &link(b"a\0b")), Err(TreeEncodeError::LinkTarget));
    assert_eq!(encoder.special(b"b", &fifo, &link(b"a")), Err(TreeEncodeError::Kind));
    assert_eq!(encoder.special(b"b", &directory(), &FileKind::Directory), Err(TreeEncodeError::Kind));
    assert_eq!(encoder.file(b"b", &file(), u64::MAX), Err(TreeEncodeError::Length("a file")));
    assert_eq!(encoder.file(b"b", &file(), u64::MAX - 16), Err(TreeEncodeError::Length("the archive")));
    assert_eq!(encoder.leave(), Err(TreeEncodeError::Nesting));
    assert_eq!(encoder.position(), 56);

    let position = encoder.file(b"b", &file(), 1).unwrap();
    assert_eq!(encoder.enter(b"c", &directory()), Err(TreeEncodeError::ContentsMissing { missing: 1 }));
    assert_eq!(encoder.contents(b"xy"), Err(TreeEncodeError::ContentsTooLong));
    encoder.contents(b"x").unwrap();
    for name in [&b"a"[..], b"b"] {
        assert_eq!(encoder.enter(name, &directory()), Err(TreeEncodeError::Order));
    }
    encoder.enter(b"c", &directory()).unwrap();
    let device = FileKind::CharDevice(Device { major: 1, minor: 3 });
    encoder.special(b"a", &of_mode(0o020_666), &device).unwrap();
    for target in [&b"/b"[..], b"", b"../b", b"b/"] {
        assert_eq!(encoder.hard_link(b"b", target, position), Err(TreeEncodeError::LinkTarget));
    }
    assert_eq!(encoder.hard_link(b"b", b"b", encoder.position()), Err(TreeEncodeError::LinkTarget));
    encoder.hard_link(b"b", b"b", position).unwrap();
    encoder.leave().unwrap();
    encoder.file(EXCLUDE_FILE, &of_mode(0o100_600), 0).unwrap();
    assert_eq!(encoder.file(b"d", &file(), 0), Err(TreeEncodeError::Order));
    encoder.finish().unwrap();
}

#[test]
fn an_encoder_refuses_a_head_that_no_decoder_reads() {
    let value = Bytes::from(vec![1; 65_536]);
    let xattr = |number| Xattr { name: format!("user.{number:03}").into(), value: value.clone() };
    let with = |count, of: Metadata| Metadata { xattrs: (0..count).map(xattr).collect(), ..of };
    let mut encoder = Encoder::unified(&directory()).unwrap();
    let refused = Err(TreeEncodeError::Length("the metadata"));
    assert_eq!(encoder.enter(b"a", &with(256, directory())), refused);
    assert_eq!(encoder.enter(b"a", &with(255, directory())), Ok(()));
    assert!(Encoder::unified(&with(256, directory())).is_err());
}

#[test]
fn offsets_in_the_payload_stream_grow() {
    let mut encoder = Encoder::split(&directory(), b"{}").unwrap();
    let at = |offset| PayloadReference { offset, origin: PayloadOrigin::Written, size: 0 };
    assert_eq!(encoder.file_reference(b"a", &file(), at(15)), Err(TreeEncodeError::PayloadOffset));
    encoder.file_reference(b"a", &file(), at(16)).unwrap();
    assert_eq!(encoder.file_reference(b"b", &file(), at(16)), Err(TreeEncodeError::PayloadOffset));
    encoder.file_reference(b"b", &file(), at(32)).unwrap();
    assert_eq!(encoder.file(b"c", &file(), 0), Err(TreeEncodeError::Form));
}

#[test]
fn exclude_patterns_are_lines_or_json() {
    let patterns = ["*.tmp", "!keep\"é"].map(|pattern| Bytes::from_static(pattern.as_bytes()));
    assert_eq!(exclude_lines(&patterns), "*.tmp\n!keep\"é\n".as_bytes());
    let prelude = r#"{"exclude-patterns":"*.tmp\n!keep\"é\n"}"#;
    assert_eq!(exclude_prelude(&patterns).unwrap(), prelude.as_bytes());
    assert!(exclude_prelude(&[]).unwrap().is_empty() && exclude_lines(&[]).is_empty());
    assert_eq!(exclude_prelude(&[Bytes::from_static(b"\xff")]), Err(TreeEncodeError::Prelude));
}

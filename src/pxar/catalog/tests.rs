use proptest::prelude::*;

use super::read::Cursor;
use super::write::{push_signed, push_unsigned};
use super::*;
use crate::pxar::fault::{TreeDecodeError, TreeFault};
use crate::pxar::kind::FileKind;

const SMALLEST: [u8; 43] =
    *b"\x91\xfd\x60\xf9\xc4\x67\x58\xd5\x0a\x01\x66\x01\x61\x02\x80\xe2\xcf\xaa\x06\x0f\x01\x64\x0b\
    \x72\x2e\x70\x78\x61\x72\x2e\x64\x69\x64\x78\x0b\x13\0\0\0\0\0\0\0";

fn smallest() -> Vec<u8> {
    let mut catalog = CatalogWriter::new();
    catalog.enter(b"r.pxar.didx").unwrap();
    catalog.entry(b"a", &FileKind::File { size: 2 }, 1_700_000_000).unwrap();
    catalog.leave().unwrap();
    catalog.finish().unwrap().to_vec()
}

#[test]
fn the_smallest_catalog_has_the_bytes_of_the_specification() {
    assert_eq!(smallest(), SMALLEST);
    let catalog = CatalogReader::parse(SMALLEST.to_vec()).unwrap();
    let archives = catalog.entries(catalog.root()).unwrap();
    let [CatalogEntry { kind: CatalogKind::Directory(directory), name }] = &archives[..] else { panic!() };
    assert_eq!(name, "r.pxar.didx");
    let kind = CatalogKind::File { mtime: 1_700_000_000, size: 2 };
    assert_eq!(catalog.entries(*directory).unwrap(), [CatalogEntry { kind, name: "a".into() }]);
}

#[test]
fn numbers_have_the_bytes_of_the_specification() {
    let least = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x81, 0];
    for (number, bytes) in [
        (0, &[0][..]),
        (127, &[0x7f]),
        (128, &[0x80, 1]),
        (-1, &[0x81, 0]),
        (-64, &[0xc0, 0]),
        (-128, &[0x80, 0x81, 0]),
        (i64::MIN, &least),
    ] {
        let mut out = Vec::new();
        push_signed(number, &mut out);
        assert_eq!(out, bytes);
        assert_eq!(Cursor { at: 0, bytes }.signed(), Ok(number));
    }
    let mut wide = [0x80; 11];
    for (bytes, fault) in [
        (&[0x80, 0x80][..], TreeFault::Truncated),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], TreeFault::Number),
        (&[0x80; 11], TreeFault::Number),
    ] {
        assert_eq!(Cursor { at: 0, bytes }.unsigned().unwrap_err().fault, fault);
    }
    wide[9] = 0x82;
    wide[10] = 0;
    assert_eq!(Cursor { at: 0, bytes: &wide }.signed().unwrap_err().fault, TreeFault::Number);
}

#[test]
fn malformed_catalogs_are_refused() {
    let fault = |bytes: &[u8]| -> TreeFault {
        let all = || -> Result<(), TreeDecodeError> { visit(bytes) };
        all().unwrap_err().fault
    };
    let changed = |at: usize, byte: u8| {
        let mut bytes = SMALLEST;
        bytes[at] = byte;
        bytes
    };
    assert_eq!(fault(&SMALLEST[..17]), TreeFault::Truncated);
    assert_eq!(fault(&changed(0, 0)), TreeFault::Magic);
    assert_eq!(fault(&changed(35, 34)), TreeFault::Bounds); // the root beyond the end
    assert_eq!(fault(&changed(35, 7)), TreeFault::Bounds); // the root in the magic
    assert_eq!(fault(&changed(34, 0)), TreeFault::Bounds); // a directory that contains itself
    assert_eq!(fault(&changed(34, 12)), TreeFault::Bounds); // a directory in the magic
    assert_eq!(fault(&changed(20, 6)), TreeFault::Bounds); // more entries than bytes
    assert_eq!(fault(&changed(20, 0)), TreeFault::Trailing);
    assert_eq!(fault(&changed(10, b'x')), TreeFault::Item);
    assert_eq!(fault(&changed(12, b'/')), TreeFault::Name);
    assert_eq!(fault(&changed(8, 11)), TreeFault::Bounds); // a child block that reaches into its parent

    let mut twice = CatalogWriter::new();
    twice.enter(b"x").unwrap();
    for name in [b"b", b"a", b"b"] {
        twice.entry(name, &FileKind::Fifo, 0).unwrap();
    }
    twice.leave().unwrap();
    assert_eq!(fault(&twice.finish().unwrap()), TreeFault::DuplicateName);
}

/// Decodes everything. No block is visited twice.
fn visit(bytes: &[u8]) -> Result<(), TreeDecodeError> {
    let catalog = CatalogReader::parse(bytes.to_vec())?;
    let (mut open, mut blocks) = (vec![catalog.root()], 0);
    while let Some(directory) = open.pop() {
        blocks += 1;
        assert!(blocks <= bytes.len());
        for entry in catalog.entries(directory)? {
            if let CatalogKind::Directory(directory) = entry.kind {
                open.push(directory);
            }
        }
    }
    Ok(())
}

/// Proves H194.
#[test]
fn directories_share_no_block() {
    // Two directories in the root, which lead to the same empty one.
    let shared = b"\x91\xfd\x60\xf9\xc4\x67\x58\xd5\x01\0\x09\x02d\x01a\x02d\x01b\x02\x0a\0\0\0\0\0\0\0";
    assert_eq!(visit(shared).unwrap_err().fault, TreeFault::Bounds);
    // The second begins within the first, whose last bytes it lists again.
    let within = b"\x91\xfd\x60\xf9\xc4\x67\x58\xd5\x08\x02p\x02\x04\x01p\x01x\x09\x02d\x01a\x09d\x01b\x05\x11\0\0\0\0\0\0\0";
    assert_eq!(visit(within).unwrap_err().fault, TreeFault::Bounds);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), root in 0..200_u64) {
        let _ = visit(&bytes);
        let catalog = [&MAGIC[..], &bytes, &root.to_le_bytes()].concat();
        let _ = visit(&catalog);
    }

    #[test]
    fn numbers_survive(number: i64, unsigned: u64) {
        let mut bytes = Vec::new();
        push_signed(number, &mut bytes);
        push_unsigned(unsigned, &mut bytes);
        let mut cursor = Cursor { at: 0, bytes: &bytes };
        prop_assert_eq!(cursor.signed(), Ok(number));
        prop_assert_eq!(cursor.unsigned(), Ok(unsigned));
        prop_assert_eq!(cursor.at, bytes.len());
    }
}

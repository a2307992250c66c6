//! Archives that no honest program writes, byte by byte from the description of the format.

use std::hash::Hasher as _;

const VERSION: u64 = 0x730f_6c75_df16_a40d;
const PRELUDE: u64 = 0xe309_d79d_9f7b_771b;
const ENTRY: u64 = 0xd595_6474_e588_acef;
const FILENAME: u64 = 0x1670_1121_0639_17b3;
const SYMLINK: u64 = 0x27f9_71e7_dbf5_dc5f;
const HARDLINK: u64 = 0x5126_9c84_22bd_7275;
const DEVICE: u64 = 0x9fc9_e906_586d_5ce9;
const XATTR: u64 = 0x0dab_0229_b57d_cd03;
const PAYLOAD: u64 = 0x2814_7a1b_0b7c_1a25;
const REFERENCE: u64 = 0x419d_3d6b_c4ba_977e;
const GOODBYE: u64 = 0x2fec_4fa6_42d5_731d;
const TAIL: u64 = 0xef5e_ed5b_753e_1555;
const PAYLOAD_BEGIN: u64 = 0x834c_68c2_194a_4ed2;
const PAYLOAD_END: u64 = 0x6c72_b78b_984c_81b5;

const DIRECTORY: u64 = 0o040_755;
const FILE: u64 = 0o100_644;
const LINK: u64 = 0o120_777;
const PIPE: u64 = 0o010_644;

/// Required result of reading a hostile archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An error, at the latest where the mistake is.
    Refused,
    /// An error or an end; bounded in both cases.
    Ends,
}

/// A hostile archive.
#[derive(Debug)]
pub(crate) struct Hostile {
    /// For all that is read in the order of the archive.
    pub(crate) in_order: Verdict,
    /// For lookups in every directory, by the tables.
    pub(crate) by_tables: Verdict,
    pub(crate) entries: Vec<u8>,
    pub(crate) name: String,
    pub(crate) payload: Option<Vec<u8>>,
}

/// A row of a table: hash, offset, size.
type Row = [u64; 3];

/// Writes what it is told, mistakes included.
pub(crate) struct Raw {
    bytes: Vec<u8>,
    open: Vec<Open>,
    payload: Option<Vec<u8>>,
}

struct Open {
    entry: u64,
    name: Vec<u8>,
    position: u64,
    /// Hash, position and size of each child.
    rows: Vec<Row>,
}

fn item(kind: u64, content: &[u8]) -> Vec<u8> {
    claiming(kind, 16 + content.len() as u64, content)
}

/// An item whose header gives another size.
fn claiming(kind: u64, size: u64, content: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), content].concat()
}

fn entry(mode: u64) -> Vec<u8> {
    let mut content = [0; 40];
    content[..8].copy_from_slice(&mode.to_le_bytes());
    item(ENTRY, &content)
}

fn terminated(text: &[u8]) -> Vec<u8> {
    [text, &[0]].concat()
}

fn hash(name: &[u8]) -> u64 {
    #[expect(deprecated, reason = "it is SipHash-2-4, with keys")]
    let mut hasher = std::hash::SipHasher::new_with_keys(0x83ac_3f1c_fbb4_50db, 0xaa4f_1b68_7936_9fbd);
    hasher.write(name);
    hasher.finish()
}

/// Sorted rows as a complete search tree.
fn in_tree_order(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_unstable();
    let mut ordered = vec![[0; 3]; rows.len()];
    let (mut above, mut node) = (Vec::new(), 0);
    for row in rows {
        while node < ordered.len() {
            above.push(node);
            node = 2 * node + 1;
        }
        let at = above.pop().unwrap();
        ordered[at] = row;
        node = 2 * at + 2;
    }
    ordered
}

impl Raw {
    fn new(payload: Option<Vec<u8>>) -> Self {
        let mut raw = Self { bytes: Vec::new(), open: Vec::new(), payload };
        if raw.payload.is_some() {
            raw.raw(&item(VERSION, &2_u64.to_le_bytes()));
        }
        raw.open.push(Open { entry: 0, name: Vec::new(), position: 0, rows: Vec::new() });
        raw.raw(&entry(DIRECTORY));
        raw
    }

    fn unified() -> Self {
        Self::new(None)
    }

    fn split() -> Self {
        Self::new(Some(item(PAYLOAD_BEGIN, &[])))
    }

    fn position(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// An entry with this name and these items.
    fn child(&mut self, name: &[u8], items: &[Vec<u8>]) -> &mut Self {
        let position = self.position();
        self.raw(&item(FILENAME, &terminated(name))).raw(&items.concat());
        let row = [hash(name), position, self.position() - position];
        self.open.last_mut().unwrap().rows.push(row);
        self
    }

    fn file(&mut self, name: &[u8], contents: &[u8]) -> &mut Self {
        let closing = match &mut self.payload {
            None => item(PAYLOAD, contents),
            Some(payload) => {
                let at = payload.len() as u64;
                payload.extend_from_slice(&item(PAYLOAD, contents));
                reference(at, contents.len() as u64)
            }
        };
        self.child(name, &[entry(FILE), closing])
    }

    fn symlink(&mut self, name: &[u8], target: &[u8]) -> &mut Self {
        self.child(name, &[entry(LINK), item(SYMLINK, &terminated(target))])
    }

    fn hard_link(&mut self, name: &[u8], distance: u64, target: &[u8]) -> &mut Self {
        let content = [&distance.to_le_bytes()[..], &terminated(target)].concat();
        self.child(name, &[item(HARDLINK, &content)])
    }

    fn enter(&mut self, name: &[u8]) -> &mut Self {
        let position = self.position();
        self.raw(&item(FILENAME, &terminated(name)));
        self.open.push(Open { entry: self.position(), name: name.to_vec(), position, rows: Vec::new() });
        self.raw(&entry(DIRECTORY))
    }

    fn leave(&mut self) -> &mut Self {
        self.leave_with(|_, _| {})
    }

    /// Ends a directory, with a change of its table: the rows, and the last row.
    fn leave_with(&mut self, change: impl FnOnce(&mut Vec<Row>, &mut Row)) -> &mut Self {
        let open = self.open.pop().unwrap();
        let at = self.position();
        let rows: Vec<Row> = open.rows.iter().map(|[hash, child, size]| [*hash, at - child, *size]).collect();
        let mut rows = in_tree_order(rows);
        let mut tail = [TAIL, at - open.entry, 16 + 24 * (rows.len() as u64 + 1)];
        change(&mut rows, &mut tail);
        let content: Vec<u8> =
            rows.iter().chain([&tail]).flatten().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(&item(GOODBYE, &content));
        if let Some(parent) = self.open.last_mut() {
            let row = [hash(&open.name), open.position, self.bytes.len() as u64 - open.position];
            parent.rows.push(row);
        }
        self
    }

    fn finish(mut self, name: String, (in_order, by_tables): (Verdict, Verdict)) -> Hostile {
        while !self.open.is_empty() {
            self.leave();
        }
        if let Some(payload) = &mut self.payload {
            payload.extend_from_slice(&item(PAYLOAD_END, &[]));
        }
        Hostile { in_order, by_tables, entries: self.bytes, name, payload: self.payload }
    }
}

fn reference(offset: u64, size: u64) -> Vec<u8> {
    item(REFERENCE, &[offset.to_le_bytes(), size.to_le_bytes()].concat())
}

/// Wrong for every reader.
const ALWAYS: (Verdict, Verdict) = (Verdict::Refused, Verdict::Refused);
/// Wrong only where it is read in order.
const IN_ORDER: (Verdict, Verdict) = (Verdict::Refused, Verdict::Ends);
/// Wrong only in the tables.
const IN_TABLES: (Verdict, Verdict) = (Verdict::Ends, Verdict::Refused);
/// Wrong where a hard link is followed.
const LINKS: (Verdict, Verdict) = (Verdict::Ends, Verdict::Refused);
/// Strange, and perhaps accepted.
const PERHAPS: (Verdict, Verdict) = (Verdict::Ends, Verdict::Ends);

fn made(
    name: impl Into<String>,
    verdicts: (Verdict, Verdict),
    mut raw: Raw,
    make: impl FnOnce(&mut Raw),
) -> Hostile {
    make(&mut raw);
    raw.finish(name.into(), verdicts)
}

fn unified(name: impl Into<String>, verdicts: (Verdict, Verdict), make: impl FnOnce(&mut Raw)) -> Hostile {
    made(name, verdicts, Raw::unified(), make)
}

fn split(name: impl Into<String>, verdicts: (Verdict, Verdict), make: impl FnOnce(&mut Raw)) -> Hostile {
    made(name, verdicts, Raw::split(), make)
}

/// All of them. `outside` is the absolute path of a file that no reader may touch, and `../outside` leads to it too.
pub(crate) fn all(outside: &str) -> Vec<Hostile> {
    let mut all = names();
    all.extend(tables());
    all.extend(sizes());
    all.extend(payloads());
    all.extend(links(outside));
    all.extend(bombs());
    all.extend(structure());
    all
}

fn names() -> Vec<Hostile> {
    let mut all = Vec::new();
    let long = vec![b'x'; 5000];
    let bad: [&[u8]; 11] =
        [b"", b".", b"..", b"/", b"/outside", b"a/b", b"../outside", b"./a", b"a/", b"a\0b", &long];
    for name in bad {
        let shown = String::from_utf8_lossy(&name[..name.len().min(10)]).into_owned();
        all.push(unified(format!("a file {shown:?}"), ALWAYS, |raw| {
            raw.file(name, b"evil");
        }));
        all.push(split(format!("a file {shown:?}, split"), ALWAYS, |raw| {
            raw.file(name, b"evil");
        }));
        all.push(unified(format!("a directory {shown:?}"), ALWAYS, |raw| {
            raw.enter(name).file(b"outside", b"evil").leave();
        }));
        all.push(unified(format!("a symbolic link {shown:?}"), ALWAYS, |raw| {
            raw.symlink(name, b"a");
        }));
    }
    all.push(unified("a name without an end", ALWAYS, |raw| {
        let position = raw.position();
        raw.raw(&[item(FILENAME, b"name"), entry(FILE), item(PAYLOAD, b"")].concat());
        let row = [hash(b"name"), position, raw.position() - position];
        raw.open[0].rows.push(row);
    }));
    all.push(unified("two files of one name", IN_ORDER, |raw| {
        raw.file(b"a", b"one").file(b"a", b"two");
    }));
    all.push(unified("two files of one name, far apart", IN_ORDER, |raw| {
        raw.file(b"a", b"one").file(b"b", b"").file(b"c", b"").file(b"a", b"two");
    }));
    all
}

fn tables() -> Vec<Hostile> {
    let mut all = Vec::new();
    for offset in [0, 1, 24, 56, 1 << 20, 1 << 63, u64::MAX] {
        all.push(unified(format!("a row with the offset {offset}"), IN_TABLES, |raw| {
            raw.file(b"a", b"a").leave_with(|rows, _| rows[0][1] = offset);
        }));
        all.push(unified(format!("a directory that begins {offset} before its end"), IN_TABLES, |raw| {
            raw.enter(b"d").file(b"a", b"a").leave_with(|_, tail| tail[1] = offset);
        }));
    }
    for size in [0, 1, 16, 24, 39, 41, 63, 88, 1 << 20, 1 << 63, u64::MAX - 15, u64::MAX] {
        all.push(unified(format!("a table that says it has {size} bytes"), IN_TABLES, |raw| {
            raw.enter(b"d").file(b"a", b"a").leave_with(|_, tail| tail[2] = size);
        }));
    }
    all.push(unified("a directory whose table is that of its parent", IN_TABLES, |raw| {
        // The row of the child reaches to the end of the archive, so that the child contains itself.
        raw.enter(b"d").leave().leave_with(|rows, tail| rows[0][2] = rows[0][1] + tail[2]);
    }));
    all.push(unified("a directory in itself, by its own table", IN_TABLES, |raw| {
        raw.enter(b"d").enter(b"e").leave().leave_with(|rows, _| {
            // `e` is `d` once more: 18 bytes of name and an entry of 56 bytes before it.
            rows[0] = [hash(b"d"), rows[0][1] + 74, rows[0][2] + 74 + 64];
        });
    }));
    all.push(unified("rows with one child a hundred times", IN_TABLES, |raw| {
        raw.enter(b"d").file(b"a", b"a").leave_with(|rows, tail| {
            let row = rows[0];
            rows.resize(100, row);
            tail[2] += 99 * 24;
        });
    }));
    all.push(unified("children that overlap, level upon level", IN_TABLES, |raw| {
        // By the tables there are 8 ^ 30 entries.
        for level in 0..30 {
            raw.enter(format!("{level}").as_bytes());
        }
        for _ in 0..30 {
            raw.leave_with(|rows, tail| {
                if let Some(row) = rows.first().copied() {
                    rows.resize(8, row);
                    tail[2] += 7 * 24;
                }
            });
        }
    }));
    all.push(unified("a table without its last row", IN_TABLES, |raw| {
        raw.file(b"a", b"a").leave_with(|_, tail| tail[0] = hash(b"b"));
    }));
    all.push(unified("a table with fewer rows than children", IN_ORDER, |raw| {
        raw.file(b"a", b"a").file(b"b", b"").leave_with(|rows, tail| {
            rows.pop();
            tail[2] -= 24;
        });
    }));
    all.push(unified("hashes of other names", IN_TABLES, |raw| {
        raw.file(b"a", b"a").leave_with(|rows, _| rows[0][0] ^= 1);
    }));
    all
}

fn sizes() -> Vec<Hostile> {
    let mut all = Vec::new();
    let kinds = [
        ("name", FILENAME),
        ("entry", ENTRY),
        ("attribute", XATTR),
        ("link", SYMLINK),
        ("contents", PAYLOAD),
        ("device", DEVICE),
        ("hard link", HARDLINK),
        ("table", GOODBYE),
        ("prelude", PRELUDE),
        ("unknown item", 0x0123_4567_89ab_cdef),
    ];
    for size in [0, 1, 15, 1 << 20, 1 << 40, 1 << 63, u64::MAX - 16, u64::MAX] {
        for (what, kind) in kinds {
            all.push(unified(format!("a {what} of {size} bytes in the root"), IN_ORDER, |raw| {
                raw.raw(&claiming(kind, size, b"some"));
            }));
            let verdicts = if kind == GOODBYE || kind == FILENAME { IN_ORDER } else { ALWAYS };
            all.push(unified(format!("a {what} of {size} bytes in a file"), verdicts, |raw| {
                raw.child(b"a", &[entry(FILE), claiming(kind, size, b"some")]).file(b"b", b"");
            }));
        }
    }
    all
}

fn payloads() -> Vec<Hostile> {
    let mut all = Vec::new();
    for (offset, size) in [
        (0, 0),
        (15, 1),
        (17, 4),
        (16, 5),
        (16, 3),
        (40, 4),
        (1 << 40, 4),
        (16, u64::MAX),
        (u64::MAX, 4),
        (u64::MAX - 15, 16),
    ] {
        // The entries alone are in order: whoever reads contents must notice.
        all.push(split(format!("contents of {size} bytes at {offset}"), PERHAPS, |raw| {
            raw.file(b"a", b"true");
            raw.child(b"b", &[entry(FILE), reference(offset, size)]);
        }));
    }
    all.push(split("contents within, in a split archive", PERHAPS, |raw| {
        raw.child(b"a", &[entry(FILE), item(PAYLOAD, b"evil")]);
    }));
    all.push(unified("contents elsewhere, in a unified archive", ALWAYS, |raw| {
        raw.child(b"a", &[entry(FILE), reference(16, 4)]);
    }));
    all
}

fn links(outside: &str) -> Vec<Hostile> {
    let above = outside.rsplit_once('/').unwrap().0.as_bytes();
    let mut all = vec![
        unified("a link to a directory, and a directory of its name", IN_ORDER, |raw| {
            raw.symlink(b"x", above).enter(b"x").file(b"outside", b"evil").leave();
        }),
        unified("a link to a file, and a file of its name", IN_ORDER, |raw| {
            raw.symlink(b"x", outside.as_bytes()).file(b"x", b"evil");
        }),
        unified("a file of the name of a link, before it", IN_ORDER, |raw| {
            raw.file(b"x", b"evil").symlink(b"x", outside.as_bytes());
        }),
        unified("a hard link through a symbolic link", LINKS, |raw| {
            raw.file(b"a", b"a").symlink(b"x", above);
            let distance = raw.position() - 74;
            raw.hard_link(b"y", distance, b"x/outside");
        }),
    ];
    let targets: [&[u8]; 9] =
        [outside.as_bytes(), b"../outside", b"d/../../outside", b"", b".", b"/a", b"a/", b"./a", b"a\0b"];
    for target in targets {
        let shown = String::from_utf8_lossy(target.rsplit(|byte| *byte == b'/').next().unwrap()).into_owned();
        all.push(unified(format!("a hard link to {shown:?}, of {} bytes", target.len()), ALWAYS, |raw| {
            raw.file(b"a", b"a");
            let distance = raw.position() - 56;
            raw.hard_link(b"b", distance, target);
        }));
    }
    all.extend(hard_links(outside));
    all
}

fn hard_links(outside: &str) -> Vec<Hostile> {
    let mut all = Vec::new();
    for (what, distance) in [
        ("itself", 0),
        ("something later", u64::MAX - 100),
        ("before the start", 1 << 40),
        ("the middle of an item", 3),
    ] {
        all.push(unified(format!("a hard link to {what}"), LINKS, |raw| {
            raw.file(b"a", b"a").hard_link(b"b", distance, b"a").file(b"c", b"");
        }));
    }
    all.push(unified("a hard link to a directory", LINKS, |raw| {
        let target = raw.position();
        raw.enter(b"a").leave();
        let distance = raw.position() - target;
        raw.hard_link(b"b", distance, b"a");
    }));
    all.push(unified("a hard link to a symbolic link", LINKS, |raw| {
        let target = raw.position();
        raw.symlink(b"a", outside.as_bytes());
        let distance = raw.position() - target;
        raw.hard_link(b"b", distance, b"a");
    }));
    all.push(unified("a hard link to a hard link", LINKS, |raw| {
        let file = raw.position();
        raw.file(b"a", b"a");
        let link = raw.position();
        raw.hard_link(b"b", link - file, b"a");
        let distance = raw.position() - link;
        raw.hard_link(b"c", distance, b"b");
    }));
    all.push(unified("a hard link with the path of another file", PERHAPS, |raw| {
        let first = raw.position();
        raw.file(b"a", b"a").file(b"b", b"b");
        let distance = raw.position() - first;
        raw.hard_link(b"c", distance, b"b");
    }));
    all.push(unified("a symbolic link to nothing", ALWAYS, |raw| {
        raw.symlink(b"a", b"");
    }));
    all.push(unified("a symbolic link with an end within", ALWAYS, |raw| {
        raw.symlink(b"a", b"b\0c");
    }));
    all
}

fn bombs() -> Vec<Hostile> {
    let deep = |raw: &mut Raw, name: &[u8], levels: usize| {
        for _ in 0..levels {
            raw.enter(name);
        }
    };
    vec![
        unified("3,000 levels", IN_ORDER, |raw| deep(raw, b"d", 3000)),
        unified("1,000 levels of long names", PERHAPS, |raw| deep(raw, &[b'n'; 255], 1000)),
        unified("5,000 entries", PERHAPS, |raw| {
            for number in 0..5000 {
                raw.child(format!("{number:05}").as_bytes(), &[entry(PIPE)]);
            }
        }),
        unified("a file with 300 attributes of 64 KiB", PERHAPS, |raw| {
            let value = vec![7; 65_000];
            let mut items = vec![entry(FILE)];
            for number in 0..300 {
                items.push(item(XATTR, &[format!("user.{number}\0").as_bytes(), &value].concat()));
            }
            items.push(item(PAYLOAD, b""));
            raw.child(b"a", &items);
        }),
    ]
}

fn structure() -> Vec<Hostile> {
    let mut all = vec![
        unified("a directory that is not left", PERHAPS, |raw| {
            raw.enter(b"d").file(b"a", b"a");
            raw.open.clear();
        }),
        unified("an entry after the end", IN_ORDER, |raw| {
            raw.file(b"a", b"a").leave();
            raw.raw(&item(FILENAME, b"b\0"));
        }),
        unified("an end too many", ALWAYS, |raw| {
            raw.enter(b"d").leave().leave();
            raw.raw(&item(GOODBYE, &[0; 24]));
        }),
        unified("a link with contents", ALWAYS, |raw| {
            raw.child(b"a", &[entry(LINK), item(PAYLOAD, b"evil")]);
        }),
        unified("a file with a target", ALWAYS, |raw| {
            raw.child(b"a", &[entry(FILE), item(SYMLINK, b"b\0")]);
        }),
        unified("a directory with contents", ALWAYS, |raw| {
            raw.child(b"a", &[entry(DIRECTORY), item(PAYLOAD, b"evil")]);
        }),
        unified("a mode of more than 16 bits", ALWAYS, |raw| {
            raw.child(b"a", &[entry(FILE | 1 << 40), item(PAYLOAD, b"")]);
        }),
        unified("a kind that does not exist", ALWAYS, |raw| {
            raw.child(b"a", &[entry(0o150_644), item(PAYLOAD, b"")]);
        }),
        unified("an attribute without an end of its name", ALWAYS, |raw| {
            raw.child(b"a", &[entry(FILE), item(XATTR, b"user.x"), item(PAYLOAD, b"")]);
        }),
    ];
    for version in [0, 3, u64::MAX] {
        let mut strange = split(format!("version {version}"), ALWAYS, |raw| {
            raw.file(b"a", b"a");
        });
        strange.entries[16..24].copy_from_slice(&version.to_le_bytes());
        all.push(strange);
    }
    let whole = unified("", PERHAPS, |raw| {
        raw.enter(b"d").file(b"a", b"contents").symlink(b"l", b"a").leave();
    });
    for length in 1..whole.entries.len() {
        let entries = whole.entries[..length].to_vec();
        let name = format!("the first {length} bytes");
        all.push(Hostile {
            in_order: Verdict::Refused,
            by_tables: Verdict::Refused,
            entries,
            name,
            payload: None,
        });
    }
    all
}

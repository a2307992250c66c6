use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::error::ParseError;

const SAFE: &str = "[A-Za-z0-9_][A-Za-z0-9._\\-]{0,40}";

fn parse<T: FromStr<Err = ParseError>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text:?} {error}"))
}

fn fault<T: FromStr<Err = ParseError> + Debug>(text: &str) -> NameFault {
    fault_in(&text.parse::<T>().expect_err(text))
}

fn fault_in(error: &ParseError) -> NameFault {
    let faults = [
        NameFault::Character,
        NameFault::Empty,
        NameFault::Extension,
        NameFault::Form,
        NameFault::Range,
        NameFault::Reserved,
        NameFault::TooDeep,
        NameFault::TooLong,
    ];
    faults.into_iter().find(|fault| error.to_string().ends_with(&format!(": {fault}"))).unwrap()
}

fn hostile() -> Vec<String> {
    let texts = [
        "..",
        ".",
        "/",
        "//",
        "/a",
        "a/",
        "../a",
        "a/..",
        "a/../b",
        "a/./b",
        "a//b",
        "\\",
        "a\\b",
        "C:\\a",
        "C:",
        "\0",
        "a\0",
        "a\n",
        "\na",
        "a\r\n",
        "a ",
        " a",
        "a\t",
        "-",
        "-a",
        ".a",
        "~",
        "a%2f",
        "%2e%2e",
        "é",
        "e\u{301}",
        "a\u{202e}",
        "\u{ff0e}\u{ff0e}",
        "１",
        "ａ",
        "a*",
        "a?",
        "a:b",
        "a|b",
        "$a",
        "a;b",
        "\u{7f}",
        "\u{feff}a",
    ];
    let mut all: Vec<_> = texts.iter().map(ToString::to_string).collect();
    all.extend(["a".repeat(256), "a".repeat(1 << 20), "../".repeat(1000), "\u{10ffff}".repeat(64)]);
    all
}

fn refuses<T: FromStr<Err = ParseError> + Debug>(prefix: &str, suffix: &str) {
    for text in hostile() {
        let text = format!("{prefix}{text}{suffix}");
        assert!(text.parse::<T>().is_err(), "{text:?}");
    }
}

/// Proves H85, H176.
#[test]
fn hostile_texts_are_refused_as_names() {
    refuses::<BackupId>("", "");
    refuses::<Namespace>("", "");
    refuses::<Namespace>("a/", "");
    refuses::<BackupType>("", "");
    refuses::<BackupTime>("", "");
    refuses::<BackupTime>("2025-07-14T14:20:02Z", "");
    refuses::<ArchiveName>("", "");
    refuses::<GroupName>("", "");
    refuses::<GroupName>("host/", "");
    refuses::<GroupName>("ns/", "/host/alpha");
    refuses::<SnapshotName>("", "");
    refuses::<SnapshotName>("host/", "/2025-07-14T14:20:02Z");
    refuses::<SnapshotName>("host/alpha/", "");
    refuses::<AuthId>("", "");
    refuses::<ArchiveName>("", "/x.blob");
    // 256 bytes are too long for a directory entry, but not for an auth id.
    for text in hostile().iter().filter(|text| text.len() > 1024 || !text.starts_with("aaa")) {
        assert!(text.parse::<AuthId>().is_err(), "{text:?}");
        assert!(format!("root@{text}").parse::<AuthId>().is_err(), "{text:?}");
        assert!(format!("root@pam!{text}").parse::<AuthId>().is_err(), "{text:?}");
    }
    for empty in [fault::<BackupId>(""), fault::<ArchiveName>("")] {
        assert_eq!(empty, NameFault::Empty);
    }
    assert!("".parse::<GroupName>().is_err());
    assert!("".parse::<SnapshotName>().is_err());
    assert!("".parse::<AuthId>().is_err());
}

#[test]
fn the_length_of_an_id_is_limited_by_directory_entries() {
    assert_eq!(parse::<BackupId>(&"a".repeat(255)).as_str().len(), 255);
    assert_eq!(fault::<BackupId>(&"a".repeat(256)), NameFault::TooLong);
}

#[test]
fn a_namespace_has_at_most_seven_components_and_256_bytes() {
    assert_eq!(parse::<Namespace>("a/b/c/d/e/f/g").depth(), 7);
    assert_eq!(fault::<Namespace>("a/b/c/d/e/f/g/h"), NameFault::TooDeep);
    assert_eq!(parse::<Namespace>(&"a".repeat(255)).depth(), 1);
    assert_eq!(fault::<Namespace>(&"a".repeat(256)), NameFault::TooLong);
    let long = "a".repeat(127);
    assert_eq!(parse::<Namespace>(&format!("{long}/{long}b")).to_string().len(), 256);
    assert_eq!(fault::<Namespace>(&format!("{long}/{long}bc")), NameFault::TooLong);
}

#[test]
fn a_namespace_knows_its_relatives() {
    let both: Namespace = parse("a/b");
    assert_eq!(both.directory(), "ns/a/ns/b");
    assert_eq!(both.parent(), Some(parse("a")));
    assert_eq!(both.parent().and_then(|a| a.parent()), Some(Namespace::root()));
    assert_eq!(Namespace::root().parent(), None);
    assert_eq!(Namespace::root().components().count(), 0);
    assert_eq!(Namespace::root().to_string() + &Namespace::root().directory(), "");
    assert_eq!(both.components().collect::<Vec<_>>(), ["a", "b"]);
}

/// Proves H28.
#[test]
fn containment_compares_whole_components() {
    let names = ["", "1", "10", "100", "100.", "100-a", "100/a", "100-a/b"].map(parse::<Namespace>);
    let inside = |outer: &str| {
        let outer: Namespace = parse(outer);
        names.iter().filter(|it| outer.contains(it)).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(inside("100"), ["100", "100/a"]);
    assert_eq!(inside("1"), ["1"]);
    assert_eq!(inside("100-a"), ["100-a", "100-a/b"]);
    assert_eq!(inside("").len(), names.len());
}

#[test]
fn a_namespace_sorts_directly_before_its_children() {
    let mut names = ["b", "a-b", "a", "", "a/c", "a.b/c"].map(parse::<Namespace>);
    names.sort();
    assert_eq!(names.map(|it| it.to_string()), ["", "a", "a/c", "a-b", "a.b/c", "b"]);
}

#[test]
fn groups_sort_by_namespace_type_and_number() {
    let sorted = [
        "ct/2",
        "host/7",
        "host/007",
        "host/10",
        "host/18446744073709551615",
        "host/1.0",
        "host/18446744073709551616",
        "host/a",
        "vm/1",
        "ns/a/ct/1",
        "ns/a/ns/b/ct/1",
    ];
    let mut groups: Vec<GroupName> = sorted.iter().rev().map(|text| parse(text)).collect();
    groups.sort();
    let texts: Vec<_> = groups.iter().map(ToString::to_string).collect();
    // 7 and 007 are equal numbers: their bytes decide.
    let mut expected = sorted.map(str::to_owned);
    expected.swap(1, 2);
    assert_eq!(texts, expected);
}

#[test]
fn paths_of_groups_and_snapshots_are_parsed_strictly() {
    let snapshot: SnapshotName = parse("ns/ns/ns/host/vm/100/2025-07-14T14:20:02Z");
    assert_eq!(snapshot.namespace().to_string(), "ns/host");
    assert_eq!(snapshot.group().backup_type(), BackupType::Vm);
    assert_eq!(snapshot.group().id().as_str(), "100");
    assert_eq!(snapshot.time().epoch(), 1_752_502_802);
    let moved = snapshot.group().clone().in_namespace(Namespace::root());
    assert_eq!(moved.snapshot(snapshot.time()).to_string(), "vm/100/2025-07-14T14:20:02Z");
    for text in
        ["host", "host/", "/host/a", "host/a/", "ns/a", "ns/a/host", "ns/host/a", "HOST/a", "ns//host/a"]
    {
        assert!(text.parse::<GroupName>().is_err(), "{text}");
    }
    for text in ["host/a", "host/2025-07-14T14:20:02Z", "a/host/a/2025-07-14T14:20:02Z"] {
        assert!(text.parse::<SnapshotName>().is_err(), "{text}");
    }
}

/// Proves H53.
#[test]
fn times_have_one_spelling_of_fixed_width() {
    for (epoch, text) in [
        (1, "1970-01-01T00:00:01Z"),
        (1_709_164_800, "2024-02-29T00:00:00Z"),
        (1_752_502_802, "2025-07-14T14:20:02Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
    ] {
        assert_eq!(BackupTime::from_epoch(epoch).map(|it| it.to_string()).as_deref(), Ok(text));
        assert_eq!(parse::<BackupTime>(text).epoch(), epoch);
    }
    for epoch in [0, -1, 253_402_300_800, i64::MAX, i64::MIN] {
        assert_eq!(BackupTime::from_epoch(epoch).map_err(|error| fault_in(&error)), Err(NameFault::Range));
    }
    for text in [
        "1970-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2025-00-01T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "2025-04-31T00:00:00Z",
        "2025-04-00T00:00:00Z",
        "2025-04-01T24:00:00Z",
        "2025-04-01T00:60:00Z",
        "2016-12-31T23:59:60Z",
    ] {
        assert_eq!(fault::<BackupTime>(text), NameFault::Range, "{text}");
    }
    for text in [
        "2025-07-14t14:20:02Z",
        "2025-07-14T14:20:02z",
        "2025-07-14 14:20:02Z",
        "2025-07-14T14:20:02",
        "2025-07-14T14:20:02Z\n",
        "2025-07-14T14:20:02.5Z",
        "2025-07-14T14:20:02+00:00",
        "+025-07-14T14:20:02Z",
        "2025-7-14T14:20:02Z",
        "12025-07-14T14:20:02Z",
    ] {
        assert!(text.parse::<BackupTime>().is_err(), "{text}");
    }
}

#[test]
fn system_times_lose_only_their_fraction() {
    let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
    assert_eq!(BackupTime::try_from(at(1_999)), BackupTime::from_epoch(1));
    assert!(BackupTime::try_from(at(999)).is_err());
    assert!(BackupTime::try_from(UNIX_EPOCH - Duration::from_secs(1)).is_err());
    assert_eq!(SystemTime::from(BackupTime::MIN), at(1_000));
    assert_eq!(BackupTime::try_from(SystemTime::from(BackupTime::MAX)), Ok(BackupTime::MAX));
}

#[test]
fn the_extension_determines_the_kind_of_an_archive() {
    let disk: ArchiveName = parse("disk.img.fidx");
    assert_eq!((disk.kind(), disk.stem()), (ArchiveKind::Fixed, "disk.img"));
    assert_eq!(parse::<ArchiveName>("a.didx").kind(), ArchiveKind::Dynamic);
    assert_eq!(parse::<ArchiveName>("a.fidx.blob").kind(), ArchiveKind::Blob);
    for text in ["a", "a.FIDX", "fidx", "a.tmp_fidx", "a.fidx.tmp", "owner", "notes"] {
        assert_eq!(fault::<ArchiveName>(text), NameFault::Extension, "{text}");
    }
    for text in [".fidx", ".protected", ".blob"] {
        assert_eq!(fault::<ArchiveName>(text), NameFault::Character, "{text}");
    }
    for text in ["index.json.blob", "client.log.blob"] {
        assert_eq!(fault::<ArchiveName>(text), NameFault::Reserved);
        assert!(ArchiveName::implicit(text).is_err());
    }
    assert!(ArchiveName::implicit("index.json").is_err());
    assert!(ArchiveName::with_kind("client.log", ArchiveKind::Blob).is_err());
}

#[test]
fn long_archive_names_can_be_read_but_not_created() {
    let longest: ArchiveName = parse(&format!("{}.blob", "a".repeat(250)));
    assert_eq!(longest.check_new().map_err(|error| fault_in(&error)), Err(NameFault::TooLong));
    assert_eq!(fault::<ArchiveName>(&format!("{}.blob", "a".repeat(251))), NameFault::TooLong);
    assert_eq!(parse::<ArchiveName>(&format!("{}.blob", "a".repeat(195))).check_new(), Ok(()));
}

#[test]
fn short_archive_names_have_the_meaning_of_pbs_clients() {
    for (name, full) in [
        ("root.pxar", "root.pxar.didx"),
        ("root.mpxar", "root.mpxar.didx"),
        ("root.ppxar", "root.ppxar.didx"),
        ("catalog.pcat1", "catalog.pcat1.didx"),
        ("disk.img", "disk.img.fidx"),
        ("qemu-server.conf", "qemu-server.conf.blob"),
        ("a.json", "a.json.blob"),
        ("rsa-encrypted.key", "rsa-encrypted.key.blob"),
        ("a.log", "a.log.blob"),
        ("disk.img.fidx", "disk.img.fidx"),
        ("odd.didx", "odd.didx"),
    ] {
        assert_eq!(ArchiveName::implicit(name), full.parse(), "{name}");
    }
    for name in ["", "img", ".img", "a.txt", "../a.img", "a"] {
        assert!(ArchiveName::implicit(name).is_err(), "{name}");
    }
    assert_eq!(ArchiveName::with_kind("disk.img", ArchiveKind::Fixed), "disk.img.fidx".parse());
    assert_eq!(ArchiveName::with_kind("disk.img.fidx", ArchiveKind::Fixed), "disk.img.fidx".parse());
    let wrong = ArchiveName::with_kind("disk.img.fidx", ArchiveKind::Blob).unwrap_err();
    assert_eq!(wrong.to_string(), "an archive of this kind ends in .blob, not in .fidx");
}

#[test]
fn auth_ids_have_a_user_a_realm_and_an_optional_token() {
    let token: AuthId = parse("jo!e@x@pbs!nightly.1");
    assert_eq!((token.user(), token.token()), ("jo!e@x@pbs", Some("nightly.1")));
    assert_eq!(AuthId::root(), parse("root@pam"));
    assert_eq!((AuthId::root().user(), AuthId::root().token()), ("root@pam", None));
    assert_eq!(parse::<AuthId>("jürgen@pam").to_string(), "jürgen@pam");
    for text in ["@pam", "root@", "root", "root@pam!", "root@pam!a!b", "a b@pam", "a:b@pam"] {
        assert!(text.parse::<AuthId>().is_err(), "{text}");
    }
    for text in ["a/b@pam", "a\u{7f}@pam", "a\u{a0}@pam", "root@pam\n", "root@pam ", " root@pam", "root@-"] {
        assert!(text.parse::<AuthId>().is_err(), "{text}");
    }
}

#[test]
fn only_the_user_itself_may_use_groups_owned_by_its_tokens() {
    let [user, token, other, stranger] =
        ["joe@pbs", "joe@pbs!a", "joe@pbs!b", "ann@pbs"].map(parse::<AuthId>);
    assert!(user.may_access(&user) && token.may_access(&token) && user.may_access(&token));
    assert!(!token.may_access(&user) && !token.may_access(&other));
    assert!(!stranger.may_access(&user) && !stranger.may_access(&token) && !user.may_access(&stranger));
}

fn same<T: FromStr<Err = ParseError> + Display + PartialEq + Debug>(text: &str) {
    assert_eq!(parse::<T>(text).to_string(), text);
}

/// Whatever is accepted is written back as it was read.
fn lossless<T: FromStr<Err = ParseError> + Display>(text: &str) {
    if let Ok(name) = text.parse::<T>() {
        assert_eq!(name.to_string(), text);
    }
}

proptest! {
    #[test]
    fn names_are_read_as_they_are_written(id in SAFE, realm in SAFE, namespace in prop::collection::vec(SAFE, 0..=6),
        kind in 0..3_usize, extension in 0..3_usize, epoch in 1..=253_402_300_799_i64, user in "[a-zé@!._+-]{1,20}") {
        let short = namespace.iter().map(|it| &it[..it.len().min(36)]).collect::<Vec<_>>();
        same::<BackupId>(&id);
        same::<Namespace>(&short.join("/"));
        same::<AuthId>(&format!("{user}@{realm}"));
        same::<AuthId>(&format!("{user}@{realm}!{id}"));
        same::<ArchiveName>(&format!("{id}{}", ArchiveKind::ALL[extension].extension()));
        let group = GroupName::new(parse(&short.join("/")), BackupType::ALL[kind], parse(&id));
        let snapshot = group.snapshot(BackupTime::from_epoch(epoch).unwrap());
        prop_assert_eq!(parse::<GroupName>(&group.to_string()), group);
        prop_assert_eq!(parse::<SnapshotName>(&snapshot.to_string()), snapshot);
    }

    #[test]
    fn no_text_makes_a_name_parser_panic_or_change_it(any in ".*", near in "(ns/|host/|vm/|[a-c.]{0,3}/|[0-9TZ:-]|@|!|\\.blob){0,8}") {
        for text in [any, near] {
            lossless::<ArchiveName>(&text);
            lossless::<AuthId>(&text);
            lossless::<BackupId>(&text);
            lossless::<BackupTime>(&text);
            lossless::<BackupType>(&text);
            lossless::<GroupName>(&text);
            lossless::<Namespace>(&text);
            lossless::<SnapshotName>(&text);
            let _ = ArchiveName::implicit(&text);
            let _ = Namespace::root().child(&text);
        }
    }

    #[test]
    fn the_order_of_ids_is_total_and_agrees_with_equality(a in "[0-9a]{1,3}", b in "[0-9a]{1,3}", c in "[0-9a]{1,3}") {
        let [a, b, c] = [a, b, c].map(|it| parse::<BackupId>(&it));
        prop_assert_eq!(a.cmp(&b).is_eq(), a == b);
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        prop_assert!(!(a <= b && b <= c) || a <= c);
    }

    #[test]
    fn the_order_of_times_is_that_of_their_texts(a in 1..=253_402_300_799_i64, b in 1..=253_402_300_799_i64) {
        let [a, b] = [a, b].map(|it| BackupTime::from_epoch(it).unwrap());
        prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
    }
}

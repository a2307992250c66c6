use std::error::Error as _;

use proptest::prelude::*;

use super::*;
use crate::crypt::{EncryptionKey, KeyFingerprint};
use crate::error::ErrorKind;
use crate::format::name::AuthId;
use crate::format::upid::Upid;

/// Written by PBS 4.2.3.
const BY_PBS: &str = r#"{
  "backup-id": "200",
  "backup-time": 1700086409,
  "backup-type": "ct",
  "files": [
    {
      "crypt-mode": "sign-only",
      "csum": "fb857d0df1f69d1031e23a1f21c6229fa4637d3cf47cc24046b5dcca0353cd19",
      "filename": "root.raw.didx",
      "size": 205601
    },
    {
      "crypt-mode": "sign-only",
      "csum": "5c45516ea26d4c32f7e3f4c55524c2598b90821db16e68d7340e2d55f4857eed",
      "filename": "pct.conf.blob",
      "size": 953
    }
  ],
  "signature": "a8ed4f543848c1821729ab5f1fbc10b67069953f753a7a258434eaafdeeadef1",
  "unprotected": {
    "chunk_upload_stats": {
      "compressed_size": 63474,
      "count": 2,
      "duplicates": 0,
      "size": 175948
    },
    "key-fingerprint": "52:5a:fa:70:b3:de:09:67:93:9d:e2:7f:50:00:a4:24:22:0a:f0:6e:f5:57:db:4e:b0:33:8b:22:63:60:51:c2",
    "notes": "first\nsecond line: ünïcödé",
    "verify_state": {
      "state": "ok",
      "upid": "UPID:vm:000073D8:00057516:00000000:6B043380:verify:fix\\x2dA:root@pam:"
    }
  }
}"#;

fn by_pbs() -> Manifest {
    Manifest::parse(BY_PBS.as_bytes()).unwrap()
}

fn empty() -> Manifest {
    Manifest::new(BackupType::Host, "elsa".parse().unwrap(), BackupTime::from_epoch(1_593_179_765).unwrap())
}

fn file(name: &str, mode: CryptMode) -> ManifestFile {
    ManifestFile::new(name.parse().unwrap(), mode, 200, Digest::of(name.as_bytes())).unwrap()
}

#[test]
fn a_pbs_manifest_is_read_and_written_back_byte_for_byte() {
    let manifest = by_pbs();
    assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), BY_PBS);
    assert_eq!((manifest.backup_type(), manifest.id().as_str()), (BackupType::Ct, "200"));
    assert_eq!(manifest.time().epoch(), 1_700_086_409);
    let conf = manifest.file(&"pct.conf.blob".parse().unwrap()).unwrap();
    assert_eq!((conf.size, conf.crypt_mode), (953, CryptMode::SignOnly));
    assert_eq!(conf.checksum.to_string(), "5c45516ea26d4c32f7e3f4c55524c2598b90821db16e68d7340e2d55f4857eed");
    assert!(manifest.signature().is_some());
    assert_eq!(manifest.notes(), Some("first\nsecond line: ünïcödé"));
    assert_eq!(manifest.verify_state().unwrap().unwrap().state, VerifyResult::Ok);
    assert_eq!(manifest.verify_state().unwrap().unwrap().upid.start_epoch(), 0x6B04_3380);
    assert_eq!(manifest.key_fingerprint().unwrap().unwrap().as_bytes()[31], 0xc2);
    let stats = UploadStats { count: 2, size: 175_948, compressed_size: 63_474, duplicates: 0 };
    assert_eq!(manifest.chunk_upload_stats(), Some(stats));
}

#[test]
fn a_manifest_is_built_as_pbs_writes_it() {
    let theirs = by_pbs();
    let mut ours = Manifest::new(theirs.backup_type(), theirs.id().clone(), theirs.time());
    for file in theirs.files() {
        let (name, mode) = (file.name.clone(), file.crypt_mode);
        ours.add_file(ManifestFile::new(name, mode, file.size, file.checksum).unwrap()).unwrap();
    }
    ours.set_signature(theirs.signature());
    ours.set_notes(theirs.notes());
    ours.set_key_fingerprint(theirs.key_fingerprint().unwrap());
    ours.set_chunk_upload_stats(theirs.chunk_upload_stats());
    ours.set_verify_state(theirs.verify_state().unwrap().as_ref());
    assert_eq!(String::from_utf8(ours.to_json()).unwrap(), BY_PBS);
    let unsigned = "{\n  \"backup-id\": \"elsa\",\n  \"backup-time\": 1593179765,\n  \"backup-type\": \"host\",\n  \
        \"files\": [],\n  \"signature\": null,\n  \"unprotected\": {}\n}";
    assert_eq!(String::from_utf8(empty().to_json()).unwrap(), unsigned);
}

/// Proves H178.
#[test]
fn the_canonical_form_matches_the_published_vector() {
    let mut manifest = empty();
    let names = [("test1.img.fidx", CryptMode::Encrypt, 1), ("abc.blob", CryptMode::None, 2)];
    for (name, mode, byte) in names {
        let checksum = Digest::from_bytes([byte; 32]);
        manifest.add_file(ManifestFile::new(name.parse().unwrap(), mode, 200, checksum).unwrap()).unwrap();
    }
    manifest.set_notes(Some("not signed"));
    manifest.set_signature(Some(Digest::of(b"")));
    let (ones, twos) = ("01".repeat(32), "02".repeat(32));
    let expected = format!(
        r#"{{"backup-id":"elsa","backup-time":1593179765,"backup-type":"host","files":[{{"crypt-mode":"encrypt","csum":"{ones}","filename":"test1.img.fidx","size":200}},{{"crypt-mode":"none","csum":"{twos}","filename":"abc.blob","size":200}}]}}"#
    );
    assert_eq!(String::from_utf8(manifest.canonical_json()).unwrap(), expected);
}

/// Proves H178.
#[test]
fn unknown_keys_are_kept_but_not_signed() {
    let text = BY_PBS
        .replace("\"backup-id\"", "\"a\": [1, {\"z\": null}],\n\"backup-id\"")
        .replacen("\"size\": 953", "\"size\": 953, \"extra\": \"kept\"", 1)
        .replace("\"notes\"", "\"mine\": {\"x\": 1.5, \"big\": 18446744073709551615},\n\"notes\"");
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    let written = String::from_utf8(manifest.to_json()).unwrap();
    assert_eq!(Manifest::parse(written.as_bytes()).as_ref(), Ok(&manifest));
    for kept in
        ["\"a\": [", "\"z\": null", "\"extra\": \"kept\"", "\"x\": 1.5", "\"big\": 18446744073709551615"]
    {
        assert!(written.contains(kept), "{kept}");
    }
    assert_eq!(manifest.canonical_json(), by_pbs().canonical_json());
    assert_eq!(manifest.unprotected("mine").as_deref(), Some(r#"{"big":18446744073709551615,"x":1.5}"#));
}

#[test]
fn manifests_of_early_versions_are_read() {
    let csum = Digest::of(b"");
    let text = format!(
        r#"{{"backup-type":"vm","backup-id":"1","backup-time":1,"files":[{{"filename":"a.img.fidx","size":0,"csum":"{csum}"}}]}}"#
    );
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(manifest.files()[0].crypt_mode, CryptMode::None);
    assert_eq!(manifest.signature(), None);
    assert_eq!(manifest.unprotected_keys().count(), 0);
    assert!(String::from_utf8(manifest.canonical_json()).unwrap().contains(r#""crypt-mode":"none""#));
}

/// Proves H178.
#[test]
fn malformed_manifests_are_refused() {
    let broken = |from: &str, to: &str| {
        let text = BY_PBS.replacen(from, to, 1);
        assert_ne!(text, BY_PBS, "{from}");
        Manifest::parse(text.as_bytes()).expect_err(to)
    };
    let field = |name| ManifestError::Field { name };
    assert_eq!(broken("\"ct\"", "\"xx\""), field("backup-type"));
    assert_eq!(broken("\"backup-type\"", "\"type\""), field("backup-type"));
    assert_eq!(broken("\"200\"", "200"), field("backup-id"));
    assert_eq!(broken("\"200\"", "\"../x\""), field("backup-id"));
    for time in ["0", "-1", "1.0", "1e3", "\"1\"", "253402300800", "9223372036854775808", "null"] {
        assert_eq!(broken("1700086409", time), field("backup-time"), "{time}");
    }
    for name in
        ["../a.blob", "/a.blob", "a\\\\b.blob", "a", "index.json.blob", "client.log.blob", "a.blob\\n", ""]
    {
        assert_eq!(broken("root.raw.didx", name), field("filename"), "{name}");
    }
    for size in ["-1", "1.5", "\"1\"", "9223372036854775808", "18446744073709551616", "null"] {
        assert_eq!(broken("205601", size), field("size"), "{size}");
    }
    assert_eq!(broken("sign-only", "signed"), field("crypt-mode"));
    assert_eq!(broken("\"sign-only\"", "null"), field("crypt-mode"));
    assert_eq!(broken("fb857d", "FB857D"), field("csum"));
    assert_eq!(broken("a8ed4f", "A8ED4F"), field("signature"));
    assert_eq!(broken("\"unprotected\": {", "\"unprotected\": null, \"x\": {"), field("unprotected"));
    assert_eq!(broken("\"files\": [", "\"files\": [1,"), field("files"));
    assert_eq!(broken("\"files\": [", "\"files\": {}, \"x\": ["), field("files"));
    assert_eq!(broken("pct.conf.blob", "root.raw.didx"), ManifestError::DuplicateFile);
    assert_eq!(broken("\"csum\"", "\"size\": 1, \"csum\""), ManifestError::DuplicateKey);
    assert_eq!(broken("\"count\"", "\"size\": 1, \"count\""), ManifestError::DuplicateKey);
    assert_eq!(broken("\"files\"", "\"backup-id\": \"200\", \"files\""), ManifestError::DuplicateKey);
    assert_eq!(Manifest::parse(b"[]"), Err(field("manifest")));
    assert!(matches!(Manifest::parse(b""), Err(ManifestError::Syntax { .. })));
    assert!(matches!(Manifest::parse(format!("{BY_PBS}x").as_bytes()), Err(ManifestError::Syntax { .. })));
    let deep = format!("{{\"a\":{}", "[".repeat(1 << 20));
    assert!(matches!(Manifest::parse(deep.as_bytes()), Err(ManifestError::Syntax { .. })));
}

/// The key that scrypt derives from `test`, without a salt, at the cost that PBS uses.
fn key_of_pbs() -> EncryptionKey {
    let digits = "28cdb1a3bef39396c3860e00d448fe7a0efd8244486ab6feb30457681d31597e";
    EncryptionKey::from_bytes(digits.parse::<Digest>().unwrap().as_bytes())
}

/// The example of the specification.
#[test]
fn a_signature_is_the_one_pbs_computes() {
    let mut manifest = empty();
    for (name, mode, byte) in [("test1.img.fidx", CryptMode::Encrypt, 1), ("abc.blob", CryptMode::None, 2)] {
        let checksum = Digest::from_bytes([byte; 32]);
        manifest.add_file(ManifestFile::new(name.parse().unwrap(), mode, 200, checksum).unwrap()).unwrap();
    }
    let canonical = format!(
        r#"{{"backup-id":"elsa","backup-time":1593179765,"backup-type":"host","files":[{{"crypt-mode":"encrypt","csum":"{}","filename":"test1.img.fidx","size":200}},{{"crypt-mode":"none","csum":"{}","filename":"abc.blob","size":200}}]}}"#,
        "01".repeat(32),
        "02".repeat(32),
    );
    assert_eq!(String::from_utf8(manifest.canonical_json()).unwrap(), canonical);
    manifest.sign(&key_of_pbs());
    let signature = "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9";
    assert_eq!(manifest.signature().unwrap().to_string(), signature);
    manifest.authenticate(&key_of_pbs()).unwrap();

    manifest.set_notes(Some("not signed"));
    let mut reread = Manifest::parse(&manifest.to_json()).unwrap();
    reread.authenticate(&key_of_pbs()).unwrap();
    let other = EncryptionKey::from_bytes(&[1; 32]);
    assert_eq!(reread.authenticate(&other).unwrap_err().kind(), ErrorKind::WrongKey);
    reread.set_signature(Some(Digest::from_bytes([0; 32])));
    assert_eq!(reread.authenticate(&key_of_pbs()).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn every_changed_digit_of_what_is_signed_is_noticed() {
    let mut manifest = by_pbs();
    manifest.sign(&key_of_pbs());
    let signed = String::from_utf8(manifest.to_json()).unwrap();
    for (from, to) in [
        ("\"200\"", "\"201\""),
        ("1700086409", "1700086408"),
        ("\"ct\"", "\"vm\""),
        ("sign-only", "none"),
        ("205601", "205602"),
        ("root.raw", "boot.raw"),
        ("fb857d", "fb857c"),
    ] {
        let changed = signed.replacen(from, to, 1);
        assert_ne!(changed, signed, "{from}");
        let changed = Manifest::parse(changed.as_bytes()).unwrap();
        assert_eq!(changed.authenticate(&key_of_pbs()).unwrap_err().kind(), ErrorKind::Corrupt, "{to}");
    }
}

#[test]
fn a_file_is_added_once_and_leaves_the_manifest_unsigned() {
    let mut manifest = by_pbs();
    let twice = file("pct.conf.blob", CryptMode::None);
    assert_eq!(manifest.add_file(twice), Err(ManifestError::DuplicateFile));
    assert!(manifest.signature().is_some());
    assert_eq!(manifest.add_file(file("b.blob", CryptMode::None)), Ok(()));
    assert_eq!(manifest.signature(), None);
    let too_big = ManifestFile::new("a.blob".parse().unwrap(), CryptMode::None, 1 << 63, Digest::of(b""));
    assert_eq!(too_big, Err(ManifestError::Field { name: "size" }));
}

#[test]
fn the_unprotected_part_is_set_read_and_removed() {
    let mut manifest = empty();
    let upid: Upid = Upid::builder("verify", manifest.time(), &AuthId::root()).build().unwrap();
    let state = VerifyState::new(upid, VerifyResult::Failed);
    manifest.set_verify_state(Some(&state));
    assert_eq!(manifest.verify_state().unwrap(), Some(state));
    manifest.set_key_fingerprint(Some(KeyFingerprint::from_bytes([7; 32])));
    assert_eq!(manifest.key_fingerprint().unwrap(), Some(KeyFingerprint::from_bytes([7; 32])));
    manifest.set_notes(Some(""));
    assert_eq!(manifest.notes(), Some(""));
    manifest.set_chunk_upload_stats(Some(UploadStats::default()));
    assert_eq!(manifest.chunk_upload_stats(), Some(UploadStats::default()));
    manifest.set_unprotected("mine", Some(" [1, 2] ")).unwrap();
    assert_eq!(manifest.unprotected("mine").as_deref(), Some("[1,2]"));
    assert!(manifest.set_unprotected("mine", Some("{\"a\":1,\"a\":2}")).is_err());
    assert_eq!(manifest.unprotected("mine").as_deref(), Some("[1,2]"));
    assert_eq!(manifest.unprotected_keys().count(), 5);
    manifest.set_verify_state(None);
    manifest.set_key_fingerprint(None);
    manifest.set_notes(None);
    manifest.set_chunk_upload_stats(None);
    manifest.set_unprotected("mine", None).unwrap();
    assert_eq!(manifest, empty());
}

#[test]
fn an_unreadable_verify_state_is_an_error_and_unreadable_notes_are_absent() {
    let field = |name| ManifestError::Field { name };
    let mut manifest = empty();
    for state in ["null", "{}", "\"ok\"", r#"{"state":"ok"}"#, r#"{"state":"ok","upid":"UPID:a"}"#] {
        manifest.set_unprotected("verify_state", Some(state)).unwrap();
        let error = manifest.verify_state().unwrap_err();
        let why = error.source().unwrap().to_string();
        assert_eq!((error.kind(), why), (ErrorKind::Corrupt, field("verify_state").to_string()), "{state}");
    }
    manifest.set_unprotected("key-fingerprint", Some("\"52:5A\"")).unwrap();
    assert!(manifest.key_fingerprint().is_err());
    manifest.set_unprotected("notes", Some("1")).unwrap();
    assert_eq!(manifest.notes(), None);
    manifest.set_unprotected("chunk_upload_stats", Some(r#"{"count":1}"#)).unwrap();
    assert_eq!(manifest.chunk_upload_stats(), None);
}

proptest! {
    #[test]
    fn manifests_are_read_as_they_are_written(names in prop::collection::btree_set("[a-z]{1,8}", 0..8),
        sizes in prop::collection::vec(0..1_u64 << 63, 8), notes: Option<String>, signature: Option<[u8; 32]>) {
        let mut manifest = empty();
        for (name, size) in names.iter().zip(sizes) {
            let name: ArchiveName = format!("{name}.didx").parse().unwrap();
            let checksum = Digest::of(name.as_str().as_bytes());
            manifest.add_file(ManifestFile::new(name, CryptMode::Encrypt, size, checksum).unwrap()).unwrap();
        }
        manifest.set_notes(notes.as_deref());
        manifest.set_signature(signature.map(Digest::from_bytes));
        prop_assert_eq!(Manifest::parse(&manifest.to_json()), Ok(manifest));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0..BY_PBS.len(), byte: u8) {
        let _ = Manifest::parse(&bytes);
        let mut damaged = BY_PBS.as_bytes().to_vec();
        damaged[at] = byte;
        if let Ok(manifest) = Manifest::parse(&damaged) {
            let _ = (manifest.verify_state(), manifest.key_fingerprint(), manifest.chunk_upload_stats());
            prop_assert_eq!(Manifest::parse(&manifest.to_json()), Ok(manifest));
        }
    }
}

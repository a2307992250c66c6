use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Files that PBS 4.2.3 wrote, and their passphrases.
const PLAIN: &str = r#"{"kdf":null,"created":"2026-11-23T12:37:07+00:00","modified":"2026-11-23T12:37:07+00:00","data":"EREREREREREREREREREREaWlpaWlpaWlpaWlpaWlpaU=","fingerprint":"52:5a:fa:70:b3:de:09:67:93:9d:e2:7f:50:00:a4:24:22:0a:f0:6e:f5:57:db:4e:b0:33:8b:22:63:60:51:c2"}"#;
const PBKDF2: &str = r#"{"kdf":{"PBKDF2":{"iter":65535,"salt":"rMwXjOKkS4FmWvdib//ODrtfy5legjWFs+V5XkethZQ="}},"created":"2026-11-23T12:37:07+00:00","modified":"2026-11-23T12:37:07+00:00","data":"Z8ObV7gVh3YGbWYQWskghWGsi8VKxFJ4dWB7YwMv1pL0Y8cSSKB2GMcNiZJXkoivO6vRNrrOd7LbQZiogP4C2A==","fingerprint":"7d:14:0d:b2:f4:15:50:11:b9:7d:70:10:49:7a:6c:c4:38:c4:04:0a:3a:43:9c:ef:51:fa:c4:57:16:f9:df:31"}"#;
const SCRYPT: &str = r#"{"kdf":{"Scrypt":{"n":65536,"r":8,"p":1,"salt":"YPD+yANTxzssy+FIuIXI8RrfBUSfu934JMR9QQgPqfc="}},"created":"2026-11-23T12:37:07+00:00","modified":"2026-11-23T12:37:07+00:00","data":"Ebk59xY2BSkCysqpzHjDp0lIx1soQLCZjDlY8oa2KgWbE+a68KLwTS91LvkjtRXWlq6KV4bYWop4f8k4rWdVNg==","fingerprint":"7d:14:0d:b2:f4:15:50:11:b9:7d:70:10:49:7a:6c:c4:38:c4:04:0a:3a:43:9c:ef:51:fa:c4:57:16:f9:df:31","hint":"animal and number"}"#;
const PBKDF2_PASSPHRASE: &[u8] = b"another-passphrase";
const SCRYPT_PASSPHRASE: &[u8] = b"correct horse 42";
/// The key in the two protected files.
const PROTECTED_KEY: [u8; 32] = [
    0x2f, 0x76, 0xc9, 0xa0, 0xbe, 0xf6, 0xfd, 0x10, 0x99, 0x78, 0x23, 0x36, 0x45, 0x00, 0xc9, 0xf2, 0x0f,
    0x8e, 0x22, 0xa6, 0x4e, 0xde, 0x20, 0xbb, 0xc4, 0x5b, 0xcb, 0x87, 0x71, 0x76, 0x26, 0x9e,
];
/// A derivation that takes no time.
const QUICK: Kdf = Kdf::Scrypt { n: 2, r: 1, p: 1 };

fn parse(json: &str) -> Result<KeyFile, KeyError> {
    KeyFile::parse(json.as_bytes())
}

fn seconds(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Not random at all.
fn counter() -> impl FnMut(&mut [u8]) {
    let mut next = 0;
    move |bytes: &mut [u8]| {
        for byte in bytes {
            *byte = next;
            next += 1;
        }
    }
}

#[test]
fn key_files_of_pbs_are_read_unlocked_and_written_byte_for_byte() {
    let plain_key = [[0x11; 16], [0xa5; 16]].concat();
    for (json, passphrase, kdf, hint, key) in [
        (PLAIN, None, None, None, plain_key.as_slice()),
        (PBKDF2, Some(PBKDF2_PASSPHRASE), Some(Kdf::Pbkdf2 { iterations: 65535 }), None, &PROTECTED_KEY),
        (SCRYPT, Some(SCRYPT_PASSPHRASE), Some(Kdf::default()), Some("animal and number"), &PROTECTED_KEY),
    ] {
        let file = parse(json).unwrap();
        assert_eq!((file.kdf(), file.hint.as_deref()), (kdf, hint));
        assert_eq!((file.created(), file.modified()), (seconds(1_795_437_427), seconds(1_795_437_427)));
        assert_eq!(&*file.to_json(), json);
        let unlocked = file.unlock(passphrase).unwrap();
        assert_eq!(unlocked.expose_bytes(), key);
        assert_eq!(file.fingerprint(), Some(unlocked.fingerprint()));
    }
}

/// Salt and nonce are known, so every byte is.
#[test]
fn new_key_files_have_the_bytes_of_their_form() {
    let key = EncryptionKey::from_bytes(&PROTECTED_KEY);
    let (created, changed) = (seconds(1_795_437_427), seconds(1_795_437_428));
    let file = KeyFile::new(&key, created);
    let plain = r#"{"kdf":null,"created":"2026-11-23T12:37:07+00:00","modified":"2026-11-23T12:37:07+00:00","data":"L3bJoL72/RCZeCM2RQDJ8g+OIqZO3iC7xFvLh3F2Jp4=","fingerprint":"7d:14:0d:b2:f4:15:50:11:b9:7d:70:10:49:7a:6c:c4:38:c4:04:0a:3a:43:9c:ef:51:fa:c4:57:16:f9:df:31"}"#;
    assert_eq!(&*file.to_json(), plain);
    let protect = |kdf| file.protect(&key, b"passphrase", kdf, changed, counter()).unwrap().to_json();
    let pbkdf2 = r#"{"kdf":{"PBKDF2":{"iter":3,"salt":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}},"created":"2026-11-23T12:37:07+00:00","modified":"2026-11-23T12:37:08+00:00","data":"ICEiIyQlJicoKSorLC0uLydfDPpm9A+7kQLzb8/zxQfS06M0rsj7d6Y8GMXUdj4afpiMwbFMGpu3na43NwSE2A==","fingerprint":"7d:14:0d:b2:f4:15:50:11:b9:7d:70:10:49:7a:6c:c4:38:c4:04:0a:3a:43:9c:ef:51:fa:c4:57:16:f9:df:31"}"#;
    assert_eq!(&*protect(Kdf::Pbkdf2 { iterations: 3 }), pbkdf2);
    let scrypt = r#"{"kdf":{"Scrypt":{"n":2,"r":1,"p":1,"salt":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}},"created":"2026-11-23T12:37:07+00:00","modified":"2026-11-23T12:37:08+00:00","data":"ICEiIyQlJicoKSorLC0uL+soYO6Ktlam8bgRqUnbUa3wd7QTQldyXsLL59EU7imYsmycsjoBIMOIsuhMkVHf8g==","fingerprint":"7d:14:0d:b2:f4:15:50:11:b9:7d:70:10:49:7a:6c:c4:38:c4:04:0a:3a:43:9c:ef:51:fa:c4:57:16:f9:df:31"}"#;
    assert_eq!(&*protect(QUICK), scrypt);
}

#[test]
fn each_failed_unlock_has_an_error_of_its_own() {
    let file = parse(PBKDF2).unwrap();
    let unlock = |json: &str| parse(json).and_then(|file| file.unlock(Some(PBKDF2_PASSPHRASE))).map(|_| ());
    assert_eq!(file.unlock(None), Err(KeyError::NoPassphrase));
    assert_eq!(file.unlock(Some(b"1234")), Err(KeyError::ShortPassphrase));
    assert_eq!(file.unlock(Some(b"another-passphrasE")), Err(KeyError::WrongPassphrase));
    assert_eq!(unlock(&PBKDF2.replace("\"Z8Ob", "\"Z8Oc")), Err(KeyError::WrongPassphrase), "the nonce");
    assert_eq!(unlock(&PBKDF2.replace("2A==", "2w==")), Err(KeyError::WrongPassphrase), "the encrypted key");
    assert_eq!(unlock(&PBKDF2.replace("65535", "65534")), Err(KeyError::WrongPassphrase));
    assert_eq!(unlock(&PBKDF2.replace("7d:14", "7d:15")), Err(KeyError::OtherFingerprint));
    assert_eq!(unlock(&PBKDF2.replace("65535", "10000001")), Err(KeyError::TooCostly));
    assert_eq!(unlock(&PBKDF2.replace("PBKDF2", "Argon2")), Err(KeyError::UnsupportedKdf));
    assert_eq!(unlock(&PBKDF2.replace("65535", "65535,\"prf\":\"x\"")), Err(KeyError::UnsupportedKdf));
    assert_eq!(
        parse(&PLAIN.replace("aWlpaU=", "aWlpaQ=")).unwrap().unlock(None),
        Err(KeyError::OtherFingerprint)
    );
    let other = EncryptionKey::from_bytes(&[1; 32]);
    let protected = file.protect(&other, b"passphrase", QUICK, seconds(1), counter());
    assert_eq!(protected.map(|_| ()), Err(KeyError::OtherFingerprint));
    assert_eq!(file.unprotect(&other, seconds(1)).map(|_| ()), Err(KeyError::OtherFingerprint));
}

#[test]
fn a_damaged_key_file_is_refused() {
    let long = format!("{PLAIN}{}", " ".repeat(MAX_KEY_FILE_BYTES));
    let repeated = PLAIN.replace("{\"kdf", "{\"data\":\"\",\"kdf");
    let without = |field: &str| PLAIN.replace(&format!("\"{field}\""), "\"other\"");
    for json in [
        "",
        "null",
        "[]",
        "{}",
        &PLAIN[..PLAIN.len() - 1],
        &PLAIN.replace("EREREREREREREREREREREaWl", "EREREREREREREREREREREaW"),
        &PLAIN.replace("ERERERER", "ERER"),
        &PLAIN.replace("12:37:07+00:00", "12:37:07"),
        &PLAIN.replace("52:5a", "52:5"),
        &PLAIN.replace("52:5a", "52:5é"),
        &PBKDF2.replace("\"iter\"", "\"n\""),
        &PBKDF2.replace("65535", "-1"),
        &PBKDF2.replace("65535", "0"),
        &PBKDF2.replace("Z8ObV7gV", ""),
        &PBKDF2.replace("\"salt\":\"", "\"salt\":\"?"),
        &SCRYPT.replace("65536", "65535"),
        &SCRYPT.replace("\"animal and number\"", "7"),
        &long,
        &repeated,
        &without("created"),
        &without("modified"),
        &without("data"),
    ] {
        assert!(matches!(parse(json), Err(KeyError::Damaged(_))), "{json:.100}");
    }
}

#[test]
fn other_spellings_of_a_key_file_are_read() {
    let spaced = PLAIN.replace(',', " ,\n ").replace("\":", "\" : ");
    let no_colons = PLAIN.replace("52:5a:fa", "525AFA").replace(":b3:de", "b3de");
    let escaped = PBKDF2.replace("dib//OD", "dib\\/\\/OD");
    let nulls = PLAIN.replace("\"}", "\",\"hint\":null}");
    for (json, written) in [(&spaced, PLAIN), (&no_colons, PLAIN), (&escaped, PBKDF2), (&nulls, PLAIN)] {
        assert_eq!(&*parse(json).unwrap().to_json(), written);
    }
    let bare = PLAIN.replace("\"kdf\":null,", "");
    let bare = format!("{}}}", &bare[..bare.find(",\"fingerprint").unwrap()]);
    let file = parse(&bare).unwrap();
    assert_eq!(file.fingerprint(), None);
    assert_eq!(file.unlock(Some(b"ignored")).unwrap().expose_bytes()[0], 0x11);
}

#[test]
fn a_change_of_the_passphrase_keeps_everything_else() {
    let json = SCRYPT
        .replace("\"kdf\"", "\"x\":[1, {\"y\":1.50}],\"kdf\"")
        .replace("07+00:00\",\"mod", "07+02:00\",\"mod");
    let file = parse(&json).unwrap();
    let key = EncryptionKey::from_bytes(&PROTECTED_KEY);
    let changed = file.protect(&key, b"new passphrase", QUICK, seconds(1_800_000_000), counter()).unwrap();
    let text = changed.to_json();
    assert!(text.contains(r#""created":"2026-11-23T12:37:07+02:00","modified":"2027-01-15T08:00:00+00:00""#));
    assert!(text.ends_with(r#","hint":"animal and number","x":[1, {"y":1.50}]}"#), "{}", &*text);
    assert_eq!(parse(&text).unwrap().unlock(Some(b"new passphrase")), Ok(key.clone()));
    assert_eq!(changed.unlock(Some(SCRYPT_PASSPHRASE)), Err(KeyError::WrongPassphrase));
    let open = changed.unprotect(&key, seconds(1_800_000_001)).unwrap();
    assert_eq!((open.kdf(), open.hint.as_deref()), (None, Some("animal and number")));
    assert_eq!(open.unlock(None), Ok(key));
}

#[test]
fn no_secret_of_a_key_file_is_shown() {
    let file = parse(PLAIN).unwrap();
    let shown = format!("{file:?} {:?} {:?}", file.to_json(), file.unlock(None));
    for secret in ["EREREREREREREREREREREaWl", "17, 17", "1111", "165, 165", "a5a5", "animal"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let shown = format!("{:?}", parse(SCRYPT).unwrap());
    assert!(!shown.contains("Ebk59") && !shown.contains("animal"), "{shown}");
}

fn any_kdf() -> impl Strategy<Value = Option<Kdf>> {
    let scrypt = (1..5_u32, 1..4_u32, 1..3_u32).prop_map(|(log_n, r, p)| Kdf::Scrypt { n: 1 << log_n, r, p });
    let pbkdf2 = (1..9_u32).prop_map(|iterations| Kdf::Pbkdf2 { iterations });
    prop::option::of(prop_oneof![scrypt, pbkdf2])
}

proptest! {
    #[test]
    fn a_key_file_is_read_as_it_is_written(
        bytes: [u8; 32],
        kdf in any_kdf(),
        hint in prop::option::of(".*"),
        passphrase in prop::collection::vec(any::<u8>(), 5..40),
        seed: u64,
        unknown in prop::option::of("[a-z]{0,3}"),
    ) {
        let key = EncryptionKey::from_bytes(&bytes);
        let mut file = KeyFile::new(&key, seconds(seed >> 30));
        file.hint = hint;
        if let Some(kdf) = kdf {
            let random = |bytes: &mut [u8]| bytes.fill(seed.to_le_bytes()[0]);
            file = file.protect(&key, &passphrase, kdf, seconds(seed >> 29), random).unwrap();
        }
        let mut json = file.to_json().to_owned();
        if let Some(name) = unknown {
            json.insert_str(json.len() - 1, &format!(",\"unknown{name}\":[\"é\\n\", 1e2]"));
        }
        let read = parse(&json).unwrap();
        prop_assert_eq!(&*read.to_json(), &json);
        prop_assert_eq!((read.kdf(), &read.hint), (kdf, &file.hint));
        prop_assert_eq!((read.created(), read.modified()), (file.created(), file.modified()));
        prop_assert_eq!(read.unlock(kdf.map(|_| passphrase.as_slice())), Ok(key));
    }

    #[test]
    fn no_changed_key_file_panics(at in 0..SCRYPT.len(), byte: u8, cut in 0..SCRYPT.len()) {
        for json in [PLAIN, SCRYPT] {
            let mut json = json.as_bytes().to_vec();
            if let Some(changed) = json.get_mut(at) {
                *changed = byte;
            }
            let _ = KeyFile::parse(&json);
            let _ = KeyFile::parse(&json[..json.len().min(cut)]);
        }
    }
}

//! Files of keys.

use larder::crypt::{EncryptionKey, KeyError, KeyFile};
use larder::keys::{MasterKey, MasterPrivateKey};

/// A key file that is read is the same when it is written and read again. Without a passphrase only an unprotected one gives its key.
pub(super) fn key_file(input: &[u8]) {
    let Ok(file) = KeyFile::parse(input) else { return };
    let written = file.to_json();
    let again = KeyFile::parse(written.as_bytes()).expect("what was written is read");
    assert_eq!(*again.to_json(), *written);
    match file.unlock(None) {
        Ok(key) => {
            assert!(file.kdf().is_none() && file.fingerprint().is_none_or(|it| it == key.fingerprint()));
        }
        Err(KeyError::NoPassphrase) => assert!(file.kdf().is_some()),
        Err(error) => assert_eq!(error, KeyError::OtherFingerprint),
    }
}

/// A master key is read or refused. One that is read encrypts a key file, if it is long enough.
pub(super) fn master_key(input: &[u8]) {
    let _ = MasterPrivateKey::parse(input);
    if let Ok(key) = MasterKey::parse(input) {
        let file = KeyFile::new(&EncryptionKey::from_bytes(&[7; 32]), std::time::SystemTime::UNIX_EPOCH);
        if let Ok(encrypted) = key.encrypt(&file) {
            assert!((256..=1024).contains(&encrypted.len()));
        }
    }
}

/// A key that is read from paper is read from its own print too.
pub(super) fn paper_key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = EncryptionKey::from_paper(text) {
        let again = EncryptionKey::from_paper(&key.to_paper()).expect("what was printed is read");
        assert_eq!(again.expose_bytes(), key.expose_bytes());
    }
    if let Some(bytes) = input.first_chunk() {
        let key = EncryptionKey::from_bytes(bytes);
        let again = EncryptionKey::from_paper(&key.to_paper()).expect("what was printed is read");
        assert_eq!(again.expose_bytes(), bytes);
    }
}

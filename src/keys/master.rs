//! Master keys: RSA keys that recover encryption keys.
//!
//! A backup may carry its encryption key, encrypted for a master key, as the file `rsa-encrypted.key.blob`. Its contents are one block of RSA with
//! the padding of PKCS #1 v1.5, whose plaintext is a key file without a passphrase.
//!
//! | key | forms that are read |
//! |---|---|
//! | public | `SubjectPublicKeyInfo` (`BEGIN PUBLIC KEY`), PKCS #1 (`BEGIN RSA PUBLIC KEY`) |
//! | private | PKCS #8 (`BEGIN PRIVATE KEY`), PKCS #1 (`BEGIN RSA PRIVATE KEY`) |
//!
//! Each is read as PEM or as DER. Source: PBS datastore format, keys; RFC 8017 §7.2 and A.1, RFC 5208 §5, RFC 5280 §4.1, RFC 7468.
//!
//! An attacker who can have many chosen blocks decrypted, and learns how that failed, can break this padding. A recovery is made by a person with
//! the private key at hand, and no part of it answers over a network.

use aws_lc_rs::rsa::{
    Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use zeroize::Zeroizing;

use crate::base64;
use crate::crypt::KeyFile;
use crate::error::{Error, ErrorKind, Result};

const ENCRYPT: &str = "encrypt for the master key";
const READ_PUBLIC: &str = "read the public master key";
const READ_PRIVATE: &str = "read the private master key";
const RECOVER: &str = "recover the encryption key";

/// The algorithm `rsaEncryption` with its empty parameters, in DER.
const RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// The public part of a master key. It encrypts, and does not decrypt.
#[derive(Debug)]
pub struct MasterKey(Pkcs1PublicEncryptingKey);

impl MasterKey {
    /// Reads an RSA public key of 2048 to 8192 bits, as PEM or DER: `SubjectPublicKeyInfo` or PKCS #1.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let der = der_of(text, READ_PUBLIC)?;
        let wrapped = || {
            let bits = der_element(BIT_STRING, &[&[0], &der]);
            PublicEncryptingKey::from_der(&der_element(SEQUENCE, &[RSA, &bits]))
        };
        let key = PublicEncryptingKey::from_der(&der).or_else(|_| wrapped());
        let key = key.ok().and_then(|key| Pkcs1PublicEncryptingKey::new(key).ok());
        key.map(Self).ok_or_else(|| not_rsa(READ_PUBLIC))
    }

    /// Encrypts a key file without a passphrase: the contents of `rsa-encrypted.key.blob`. PBS makes them from a new [`KeyFile::new`].
    ///
    /// A key file has 255 bytes, plus those of a hint and of unknown fields. A key of 2048 bits encrypts 245 bytes, which is too little, one of
    /// 3072 bits 373, and one of 4096 bits, the size that PBS makes, 501. The padding is drawn from the operating system, not from a runtime.
    ///
    /// # Errors
    /// `InvalidInput` if a passphrase protects the file; `Unsupported` if the file is too long for the key; `Internal` if the encryption fails.
    pub fn encrypt(&self, file: &KeyFile) -> Result<Vec<u8>> {
        if file.kdf().is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, ENCRYPT).because("the key file has a passphrase"));
        }
        let (json, limit) = (file.to_json(), self.0.max_plaintext_size());
        if json.len() > limit {
            let why = format!("the key file has {} bytes, and the master key encrypts {limit}", json.len());
            return Err(Error::new(ErrorKind::Unsupported, ENCRYPT).because(why));
        }
        let mut block = vec![0; self.0.ciphertext_size()];
        let encrypted = self.0.encrypt(json.as_bytes(), &mut block);
        let length = encrypted.map_err(|_| Error::new(ErrorKind::Internal, ENCRYPT))?.len();
        block.truncate(length);
        Ok(block)
    }
}

/// The private part of a master key. `Debug` does not show it.
#[derive(Debug)]
pub struct MasterPrivateKey(Pkcs1PrivateDecryptingKey);

impl MasterPrivateKey {
    /// Reads an RSA private key of 2048 to 8192 bits, as PEM or DER: PKCS #8 or PKCS #1.
    ///
    /// A key with a passphrase, as PBS makes it, has to be decrypted before: `openssl pkey -in master-private.pem -out plain.pem`.
    ///
    /// # Errors
    /// `Unsupported` for a key with a passphrase; `InvalidInput` for anything else.
    pub fn parse(text: &[u8]) -> Result<Self> {
        if contains(text, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(text, b"Proc-Type: 4,ENCRYPTED") {
            let error = Error::new(ErrorKind::Unsupported, READ_PRIVATE);
            return Err(error.because("it has a passphrase; `openssl pkey` removes it"));
        }
        let der = der_of(text, READ_PRIVATE)?;
        let wrapped = || {
            let octets = Zeroizing::new(der_element(OCTET_STRING, &[&der]));
            let version = [0x02, 0x01, 0x00];
            let pkcs8 = Zeroizing::new(der_element(SEQUENCE, &[&version, RSA, &octets]));
            PrivateDecryptingKey::from_pkcs8(&pkcs8)
        };
        let key = PrivateDecryptingKey::from_pkcs8(&der).or_else(|_| wrapped());
        let key = key.ok().and_then(|key| Pkcs1PrivateDecryptingKey::new(key).ok());
        key.map(Self).ok_or_else(|| not_rsa(READ_PRIVATE))
    }

    /// Decrypts the contents of `rsa-encrypted.key.blob`. [`KeyFile::unlock`] without a passphrase gives the key then.
    ///
    /// # Errors
    /// `WrongKey` if it was encrypted for another master key, or was changed since; the two look the same. `Corrupt` if the decrypted
    /// text is no key file, with a [`KeyError`](crate::crypt::KeyError) as its source.
    pub fn recover(&self, encrypted: &[u8]) -> Result<KeyFile> {
        let mut block = Zeroizing::new(vec![0; self.0.min_output_size()]);
        let json = self.0.decrypt(encrypted, &mut block).map_err(|_| {
            let error = Error::new(ErrorKind::WrongKey, RECOVER);
            error.because("it was encrypted for another master key, or was changed since")
        })?;
        KeyFile::parse(json).map_err(|error| Error::new(error.kind(), RECOVER).because(error))
    }
}

fn not_rsa(action: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, action)
        .because("it is not an RSA key of 2048 to 8192 bits in PEM or DER")
}

/// The DER in the first section of a PEM text, or the input if it is none.
fn der_of(text: &[u8], action: &'static str) -> Result<Zeroizing<Vec<u8>>> {
    const BEGIN: &str = "-----BEGIN ";
    const DASHES: &str = "-----";
    if !contains(text, BEGIN.as_bytes()) {
        return Ok(Zeroizing::new(text.to_vec()));
    }
    let section = || {
        let (_, begun) = std::str::from_utf8(text).ok()?.split_once(BEGIN)?;
        let (label, begun) = begun.split_once(DASHES)?;
        let (body, _) = begun.split_once(&format!("{DASHES}END {label}{DASHES}"))?;
        let mut digits = Zeroizing::new(Vec::with_capacity(body.len()));
        digits.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        base64::decode(&digits)
    };
    section().ok_or_else(|| not_rsa(action))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// An element of DER, in one allocation.
fn der_element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let digits: Vec<u8> = length.to_le_bytes().into_iter().rev().skip_while(|digit| *digit == 0).collect();
    let mut element = Vec::with_capacity(2 + digits.len() + length);
    element.push(tag);
    if length >= 0x80 {
        element.push(0x80 | u8::try_from(digits.len()).unwrap_or_default());
    }
    element.extend(digits);
    for part in parts {
        element.extend_from_slice(part);
    }
    element
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::crypt::{EncryptionKey, Kdf, KeyError};

    fn data(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pbs-4.2.3/keys").join(name)).unwrap()
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let text = base64::encode(der);
        let lines: Vec<_> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("a comment\n-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    fn file() -> KeyFile {
        KeyFile::new(
            &EncryptionKey::from_bytes(&[7; 32]),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30),
        )
    }

    #[test]
    fn a_key_is_recovered_with_a_master_key_in_any_form() {
        let (private, public) = (data("master-private.der"), data("master-public.der"));
        let octets = der_element(OCTET_STRING, &[&private]);
        let pkcs8 = der_element(SEQUENCE, &[b"\x02\x01\x00", RSA, &octets]);
        // Behind the header, the algorithm, and the header of the bit string.
        let pkcs1_public = &public[24..];
        let publics = [
            public.clone(),
            pkcs1_public.to_vec(),
            pem("PUBLIC KEY", &public).into(),
            pem("RSA PUBLIC KEY", pkcs1_public).replace('\n', "\r\n").into(),
        ];
        let privates = [
            private.clone(),
            pkcs8.clone(),
            pem("RSA PRIVATE KEY", &private).into(),
            pem("PRIVATE KEY", &pkcs8).into(),
        ];
        for (public, private) in publics.iter().zip(&privates) {
            let block = MasterKey::parse(public).unwrap().encrypt(&file()).unwrap();
            assert_eq!(block.len(), 512);
            let recovered = MasterPrivateKey::parse(private).unwrap().recover(&block).unwrap();
            assert_eq!(*recovered.to_json(), *file().to_json());
        }
    }

    #[test]
    fn a_failed_recovery_has_the_error_of_its_cause() {
        let public = MasterKey::parse(&data("master-public.der")).unwrap();
        let private = MasterPrivateKey::parse(&data("master-private.der")).unwrap();
        let mut block = public.encrypt(&file()).unwrap();
        block[100] ^= 1;
        for block in [&block[..], &block[1..], b""] {
            let error = private.recover(block).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongKey);
        }
        let mut other = [0; 512];
        public.0.encrypt(b"{}", &mut other).unwrap();
        let error = private.recover(&other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<KeyError>());
        assert_eq!(source, Some(&KeyError::Damaged("data is missing")));
    }

    #[test]
    fn only_a_short_file_without_a_passphrase_is_encrypted() {
        let public = MasterKey::parse(&data("master-public.der")).unwrap();
        let kdf = Kdf::Pbkdf2 { iterations: 1 };
        let key = EncryptionKey::from_bytes(&[7; 32]);
        let protected =
            file().protect(&key, b"passphrase", kdf, SystemTime::UNIX_EPOCH, |it| it.fill(1)).unwrap();
        assert_eq!(public.encrypt(&protected).unwrap_err().kind(), ErrorKind::InvalidInput);
        let mut long = file();
        long.hint = Some("a".repeat(300));
        assert_eq!(public.encrypt(&long).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn other_texts_are_no_master_keys_and_none_is_shown() {
        let (private, public) = (data("master-private.der"), data("master-public.der"));
        let encrypted = pem("ENCRYPTED PRIVATE KEY", &private);
        assert_eq!(MasterPrivateKey::parse(encrypted.as_bytes()).unwrap_err().kind(), ErrorKind::Unsupported);
        let cut = pem("PUBLIC KEY", &public).replace("-----END", "");
        for text in [&b""[..], b"{}", &private[..100], &public[..549], cut.as_bytes()] {
            assert_eq!(MasterPrivateKey::parse(text).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(MasterKey::parse(text).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let shown = format!("{:?}", MasterPrivateKey::parse(&private).unwrap());
        assert!(shown.len() < 120, "{shown}");
    }
}

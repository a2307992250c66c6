//! Key files.
//!
//! A key file is a JSON object. [`KeyFile::to_json`] writes it as PBS does: without white space, in the order of this table.
//!
//! | field | value |
//! |---|---|
//! | `kdf` | `null`, `{"Scrypt":{"n":…,"r":…,"p":…,"salt":…}}` or `{"PBKDF2":{"iter":…,"salt":…}}`, salts in base64 |
//! | `created`, `modified` | RFC 3339 to the second, with a numeric offset |
//! | `data` | base64 of the bytes of the second table |
//! | `fingerprint` | of the key, optional |
//! | `hint` | at the passphrase, optional |
//!
//! | `kdf` | `data` |
//! |---|---|
//! | `null` | the 32 bytes of the key |
//! | a function | nonce (16 bytes), authentication tag (16 bytes), encrypted key (32 bytes) |
//!
//! Unknown fields follow, as the text that was read. A reader accepts any order and white space, and `Z` as an offset.
//!
//! The encrypted key is authenticated, the other fields are not: a change of `hint`, of a date or of an unknown field is not noticed. A changed
//! `kdf` makes another key, which the tag refuses, and a changed `fingerprint` does not fit the key.
//!
//! Source: PBS datastore format, keys.

use std::fmt;
use std::time::SystemTime;

use zeroize::Zeroizing;

use crate::base64;
use crate::crypt::errors::KeyError;
use crate::crypt::json_fields::{JsonFields, JsonValue, quoted};
use crate::crypt::kdf::{Kdf, SALT_BYTES};
use crate::crypt::key_time::KeyTime;
use crate::crypt::secret_text::SecretText;
use crate::crypt::{EncryptionKey, KeyFingerprint, NONCE_BYTES, TAG_BYTES};

/// Maximum length of a key file: 64 KiB.
pub(crate) const MAX_KEY_FILE_BYTES: usize = 64 << 10;

const KEY_BYTES: usize = 32;
const HEADER_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// The contents of a key file: a key, protected by a passphrase or as it is.
///
/// A value has no I/O; the module `keys` reads and creates files. `Debug` shows neither the key nor the hint.
///
/// # Example
/// ```
/// use std::time::SystemTime;
///
/// use larder::crypt::{EncryptionKey, Kdf, KeyError, KeyFile};
///
/// # let random = |bytes: &mut [u8]| bytes.fill(7);
/// let key = EncryptionKey::from_bytes(&[42; 32]); // in a program: larder::keys::generate
/// let mut file = KeyFile::new(&key, SystemTime::now());
/// file.hint = Some("the usual one".into());
/// let kdf = Kdf::Scrypt { n: 1024, r: 8, p: 1 }; // in a program: Kdf::default()
/// let file = file.protect(&key, b"correct horse", kdf, SystemTime::now(), random)?;
///
/// let read = KeyFile::parse(file.to_json().as_bytes())?;
/// assert_eq!(read.unlock(Some(b"correct horse"))?, key);
/// assert_eq!(read.unlock(Some(b"wrong horse")), Err(KeyError::WrongPassphrase));
/// assert_eq!(read.unlock(None), Err(KeyError::NoPassphrase));
/// # Ok::<_, KeyError>(())
/// ```
#[derive(Clone)]
pub struct KeyFile {
    created: KeyTime,
    data: Data,
    fingerprint: Option<KeyFingerprint>,
    /// A text that reminds of the passphrase. It is stored unencrypted.
    pub hint: Option<String>,
    modified: KeyTime,
    /// Unknown fields, each with a comma before it.
    others: String,
}

/// The key in its stored form.
#[derive(Clone)]
enum Data {
    Plain(Zeroizing<[u8; KEY_BYTES]>),
    Protected {
        encrypted: [u8; KEY_BYTES],
        kdf: Kdf,
        nonce: [u8; NONCE_BYTES],
        salt: Vec<u8>,
        tag: [u8; TAG_BYTES],
    },
}

impl KeyFile {
    /// A file of a key without a passphrase.
    pub fn new(key: &EncryptionKey, created: SystemTime) -> Self {
        let created = KeyTime::at(created);
        Self {
            modified: created.clone(),
            created,
            data: Data::Plain(Zeroizing::new(*key.expose_bytes())),
            fingerprint: Some(key.fingerprint()),
            hint: None,
            others: String::new(),
        }
    }

    /// Reads a key file. The key itself is not used yet, so a wrong fingerprint is not noticed.
    ///
    /// # Errors
    /// `Damaged`, also for more than 64 KiB; `UnsupportedKdf`; `TooCostly` if the key derivation would exceed a limit of [`Kdf`].
    pub fn parse(json: &[u8]) -> Result<Self, KeyError> {
        if json.len() > MAX_KEY_FILE_BYTES {
            return Err(KeyError::Damaged("it is longer than 64 KiB"));
        }
        let mut fields = JsonFields::parse(json)?;
        let kdf = fields.take("kdf");
        let data = required(fields.take("data"), "data is missing")?;
        let data = decode(data, "data is not base64")?;
        let data = match kdf {
            None => Data::Plain(Zeroizing::new(array(&data)?)),
            Some(kdf) => parse_protected(kdf, &data)?,
        };
        let mut date = |name, flaw| {
            let text = required(fields.take(name), flaw)?.as_plain_str();
            KeyTime::parse(text.ok_or(KeyError::Damaged("a date is not one of RFC 3339"))?)
        };
        let (created, modified) =
            (date("created", "created is missing")?, date("modified", "modified is missing")?);
        let fingerprint = fields.take("fingerprint").map(parse_fingerprint).transpose()?;
        let hint =
            fields.take("hint").map(|hint| hint.to_text().ok_or(KeyError::Damaged("hint is not a text")));
        Ok(Self { created, data, fingerprint, hint: hint.transpose()?, modified, others: fields.to_text() })
    }

    /// The file, as PBS writes it. Anyone can use the key in it if the file is not protected.
    pub fn to_json(&self) -> SecretText {
        let (kdf, data) = match &self.data {
            Data::Plain(key) => ("null".to_owned(), Zeroizing::new(base64::encode(&**key))),
            Data::Protected { encrypted, kdf, nonce, salt, tag } => {
                (kdf_json(*kdf, salt), Zeroizing::new(base64::encode(&[&nonce[..], tag, encrypted].concat())))
            }
        };
        let (created, modified) = (self.created.as_str(), self.modified.as_str());
        let before = format!(r#"{{"kdf":{kdf},"created":"{created}","modified":"{modified}","data":""#);
        let fingerprint = self.fingerprint.map(|it| format!(r#","fingerprint":"{it}""#)).unwrap_or_default();
        let hint = self.hint.as_deref().map(|it| format!(r#","hint":{}"#, quoted(it))).unwrap_or_default();
        SecretText::of_parts(&[&before, &data, "\"", &fingerprint, &hint, &self.others, "}"])
    }

    /// The key. A file without protection needs no passphrase, and ignores one.
    ///
    /// Takes the time and memory of the [`Kdf`]; `keys::unlock` does that off the executor.
    ///
    /// # Errors
    /// `NoPassphrase`; `ShortPassphrase` for fewer than 5 bytes; `WrongPassphrase`; `OtherFingerprint` if the file records another key.
    pub fn unlock(&self, passphrase: Option<&[u8]>) -> Result<EncryptionKey, KeyError> {
        let key = match &self.data {
            Data::Plain(key) => EncryptionKey::from_bytes(key),
            Data::Protected { encrypted, kdf, nonce, salt, tag } => {
                let wrapping = kdf.derive(passphrase.ok_or(KeyError::NoPassphrase)?, salt)?;
                let mut key = Zeroizing::new(*encrypted);
                let opened = EncryptionKey::from_bytes(&wrapping).open(nonce, tag, key.as_mut_slice());
                opened.map_err(|_| KeyError::WrongPassphrase)?;
                EncryptionKey::from_bytes(&key)
            }
        };
        self.check(&key)?;
        Ok(key)
    }

    /// The same file under a passphrase, instead of the earlier one if it has one. Creation time, hint and unknown fields are kept.
    ///
    /// `random` fills a buffer with bytes that cannot be predicted: a new salt of 32 bytes and a nonce of 16.
    ///
    /// # Errors
    /// `ShortPassphrase` for fewer than 5 bytes; `Damaged` or `TooCostly` for parameters beyond the limits of [`Kdf`]; `OtherFingerprint`
    /// if the file is of another key.
    pub fn protect(
        &self,
        key: &EncryptionKey,
        passphrase: &[u8],
        kdf: Kdf,
        modified: SystemTime,
        mut random: impl FnMut(&mut [u8]),
    ) -> Result<Self, KeyError> {
        let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
        random(&mut salt);
        random(&mut nonce);
        self.protect_with(key, passphrase, kdf, modified, (salt, nonce))
    }

    /// As [`protect`](Self::protect), with a salt and a nonce that were drawn before.
    pub(crate) fn protect_with(
        &self,
        key: &EncryptionKey,
        passphrase: &[u8],
        kdf: Kdf,
        modified: SystemTime,
        (salt, nonce): ([u8; SALT_BYTES], [u8; NONCE_BYTES]),
    ) -> Result<Self, KeyError> {
        self.check(key)?;
        let wrapping = kdf.derive(passphrase, &salt)?;
        let mut encrypted = Zeroizing::new(*key.expose_bytes());
        let tag = EncryptionKey::from_bytes(&wrapping).seal(&nonce, encrypted.as_mut_slice());
        Ok(self.with_data(
            Data::Protected { encrypted: *encrypted, kdf, nonce, salt: salt.to_vec(), tag },
            key,
            modified,
        ))
    }

    /// The same file without a passphrase. Creation time, hint and unknown fields are kept.
    ///
    /// # Errors
    /// `OtherFingerprint` if the file is of another key.
    pub fn unprotect(&self, key: &EncryptionKey, modified: SystemTime) -> Result<Self, KeyError> {
        self.check(key)?;
        Ok(self.with_data(Data::Plain(Zeroizing::new(*key.expose_bytes())), key, modified))
    }

    /// The recorded creation time.
    pub fn created(&self) -> SystemTime {
        self.created.time()
    }

    /// The recorded time of the last change of the passphrase.
    pub fn modified(&self) -> SystemTime {
        self.modified.time()
    }

    /// The recorded fingerprint. Files of old versions of PBS have none.
    pub fn fingerprint(&self) -> Option<KeyFingerprint> {
        self.fingerprint
    }

    /// The key derivation function; `None` if no passphrase protects the key.
    pub fn kdf(&self) -> Option<Kdf> {
        match self.data {
            Data::Plain(_) => None,
            Data::Protected { kdf, .. } => Some(kdf),
        }
    }

    fn with_data(&self, data: Data, key: &EncryptionKey, modified: SystemTime) -> Self {
        let (fingerprint, modified) = (Some(key.fingerprint()), KeyTime::at(modified));
        let (created, hint, others) = (self.created.clone(), self.hint.clone(), self.others.clone());
        Self { created, data, fingerprint, hint, modified, others }
    }

    fn check(&self, key: &EncryptionKey) -> Result<(), KeyError> {
        match self.fingerprint {
            Some(fingerprint) if fingerprint != key.fingerprint() => Err(KeyError::OtherFingerprint),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile")
            .field("created", &self.created.as_str())
            .field("fingerprint", &self.fingerprint)
            .field("kdf", &self.kdf())
            .field("modified", &self.modified.as_str())
            .finish_non_exhaustive()
    }
}

fn required<'a>(value: Option<JsonValue<'a>>, flaw: &'static str) -> Result<JsonValue<'a>, KeyError> {
    value.ok_or(KeyError::Damaged(flaw))
}

/// Bytes in base64. Some writers of JSON escape the slash.
fn decode(value: JsonValue<'_>, flaw: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if let Some(text) = value.as_plain_str() {
        return base64::decode(text.as_bytes()).ok_or(KeyError::Damaged(flaw));
    }
    let inner = value.as_bytes().strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
    let mut rest = inner.ok_or(KeyError::Damaged(flaw))?;
    let mut text = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let [byte, after @ ..] = rest {
        if !rest.starts_with(br"\/") {
            text.push(*byte);
        }
        rest = after;
    }
    base64::decode(&text).ok_or(KeyError::Damaged(flaw))
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], KeyError> {
    bytes.try_into().map_err(|_| KeyError::Damaged("data has the wrong length"))
}

fn parse_protected(kdf: JsonValue<'_>, data: &[u8]) -> Result<Data, KeyError> {
    let (kdf, salt) = parse_kdf(kdf)?;
    let data: [u8; HEADER_BYTES + KEY_BYTES] = array(data)?;
    let (header, encrypted) = data.split_at(HEADER_BYTES);
    let (nonce, tag) = header.split_at(NONCE_BYTES);
    Ok(Data::Protected { encrypted: array(encrypted)?, kdf, nonce: array(nonce)?, salt, tag: array(tag)? })
}

fn parse_kdf(json: JsonValue<'_>) -> Result<(Kdf, Vec<u8>), KeyError> {
    const NO_SALT: &str = "the salt of the key derivation is missing or not base64";
    let (name, parameters) =
        JsonFields::parse(json.as_bytes())?.into_only().ok_or(KeyError::UnsupportedKdf)?;
    if name != "Scrypt" && name != "PBKDF2" {
        return Err(KeyError::UnsupportedKdf);
    }
    let mut parameters = JsonFields::parse(parameters.as_bytes())?;
    let salt = decode(required(parameters.take("salt"), NO_SALT)?, NO_SALT)?.to_vec();
    let mut number = |name| {
        let number = parameters.take(name).and_then(JsonValue::to_number);
        number.ok_or(KeyError::Damaged("a parameter of the key derivation is missing or not a number"))
    };
    let small = |number: u64| u32::try_from(number).map_err(|_| KeyError::TooCostly);
    let kdf = if name == "Scrypt" {
        Kdf::Scrypt { n: number("n")?, r: small(number("r")?)?, p: small(number("p")?)? }
    } else {
        Kdf::Pbkdf2 { iterations: small(number("iter")?)? }
    };
    if !parameters.is_empty() {
        // It may change the derived key.
        return Err(KeyError::UnsupportedKdf);
    }
    kdf.check()?;
    Ok((kdf, salt))
}

fn kdf_json(kdf: Kdf, salt: &[u8]) -> String {
    let salt = base64::encode(salt);
    match kdf {
        Kdf::Pbkdf2 { iterations } => format!(r#"{{"PBKDF2":{{"iter":{iterations},"salt":"{salt}"}}}}"#),
        Kdf::Scrypt { n, r, p } => format!(r#"{{"Scrypt":{{"n":{n},"r":{r},"p":{p},"salt":"{salt}"}}}}"#),
    }
}

/// PBS reads a fingerprint with or without colons, in either case.
fn parse_fingerprint(value: JsonValue<'_>) -> Result<KeyFingerprint, KeyError> {
    const FLAW: KeyError = KeyError::Damaged("fingerprint is not one");
    let text = value.as_plain_str().filter(|text| text.is_ascii()).ok_or(FLAW)?;
    let digits = text.replace(':', "").to_ascii_lowercase();
    let pairs: Vec<_> =
        digits.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok()).collect();
    pairs.join(":").parse().map_err(|_| FLAW)
}

#[cfg(test)]
mod tests;

//! The manifest: the archives of a snapshot, with their checksums. A snapshot with a manifest is finished.
//!
//! JSON text in a plain blob, `index.json.blob`:
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `backup-type` | string | `ct`, `host` or `vm` |
//! | `backup-id` | string | [`BackupId`] |
//! | `backup-time` | integer | seconds since 1970-01-01T00:00:00Z |
//! | `files` | array | objects with `filename`, `crypt-mode` (missing: `none`), `size`, `csum` |
//! | `signature` | string or null | 64 hexadecimal digits; null or missing: not signed |
//! | `unprotected` | object | what the signature does not cover; missing: empty |
//!
//! Parsing is strict: a duplicate key, a value of the wrong type, an invalid or duplicate file name is an
//! error (H178). Unknown keys are kept and written back. PBS drops them whenever it rewrites a manifest,
//! except in `unprotected`: put data of your own there.
//!
//! Source: PBS datastore format §6.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind};
use crate::format::digest::Digest;
use crate::format::json::{Json, JsonError, Object};
use crate::format::name::{ArchiveName, BackupId, BackupTime, BackupType};
use crate::wording::{Size, fields_as_json, word_as_json};

mod unprotected;

pub(crate) use unprotected::UploadStats;
pub use unprotected::{VerifyResult, VerifyState};

/// Maximum bytes of a manifest, both stored and as JSON.
pub(crate) const MANIFEST_BYTES: u64 = 16 << 20;

/// The manifest of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    backup_type: BackupType,
    id: BackupId,
    time: BackupTime,
    files: Vec<ManifestFile>,
    signature: Option<Digest>,
    unprotected: Object,
    unknown: Object,
}

impl Manifest {
    /// A manifest without files for the snapshot of that type, id and time.
    #[must_use]
    pub(crate) const fn new(backup_type: BackupType, id: BackupId, time: BackupTime) -> Self {
        Self {
            backup_type,
            id,
            time,
            files: Vec::new(),
            signature: None,
            unprotected: Object::new(),
            unknown: Object::new(),
        }
    }

    /// Parses the JSON text of a manifest.
    ///
    /// # Errors
    /// If it is not JSON, or not a valid manifest.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let Json::Object(mut top) = Json::parse(json)? else {
            return Err(ManifestError::Field { name: "manifest" });
        };
        let backup_type = parse_text(&mut top, "backup-type")?;
        let id = parse_text(&mut top, "backup-id")?;
        let time = field("backup-time", top.remove("backup-time").and_then(|it| it.as_size()))?;
        let time =
            field("backup-time", i64::try_from(time).ok().and_then(|it| BackupTime::from_epoch(it).ok()))?;
        let Some(Json::Array(entries)) = top.remove("files") else {
            return Err(ManifestError::Field { name: "files" });
        };
        let files = entries.into_iter().map(ManifestFile::parse).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if !files.iter().all(|file| names.insert(&file.name)) {
            return Err(ManifestError::DuplicateFile);
        }
        let signature = match top.remove("signature") {
            None | Some(Json::Null) => None,
            Some(text) => Some(field("signature", text.as_str().and_then(|it| it.parse().ok()))?),
        };
        let unprotected = match top.remove("unprotected") {
            None => Object::new(),
            Some(Json::Object(object)) => object,
            Some(_) => return Err(ManifestError::Field { name: "unprotected" }),
        };
        Ok(Self { backup_type, id, time, files, signature, unprotected, unknown: top })
    }

    /// The JSON text, as PBS writes it: two spaces per level, keys in byte order, no newline at the end.
    pub fn to_json(&self) -> Vec<u8> {
        let mut top = self.unknown.clone();
        let files = self.files.iter().map(|file| Json::Object(file.to_object(file.unknown.clone())));
        self.add_signed(&mut top, files.collect());
        let signature = self.signature.map_or(Json::Null, |it| Json::from(it.to_string()));
        top.insert("signature".to_owned(), signature);
        top.insert("unprotected".to_owned(), Json::Object(self.unprotected.clone()));
        Json::Object(top).pretty().into_bytes()
    }

    /// The signed bytes: the fields that PBS knows except `signature` and `unprotected`, keys in
    /// byte order, no white space.
    ///
    /// Unknown keys are left out because PBS forgets them before it checks a signature; a missing `crypt-mode` is written.
    /// Source: PBS datastore format §6.5.
    pub(crate) fn canonical_json(&self) -> Vec<u8> {
        let mut top = Object::new();
        let files = self.files.iter().map(|file| Json::Object(file.to_object(Object::new())));
        self.add_signed(&mut top, files.collect());
        Json::Object(top).compact().into_bytes()
    }

    fn add_signed(&self, top: &mut Object, files: Vec<Json>) {
        top.insert("backup-type".to_owned(), Json::from(self.backup_type.as_str()));
        top.insert("backup-id".to_owned(), Json::from(self.id.as_str()));
        top.insert("backup-time".to_owned(), Json::from(self.time.epoch().cast_unsigned()));
        top.insert("files".to_owned(), Json::Array(files));
    }

    /// Type of the backup.
    pub(crate) const fn backup_type(&self) -> BackupType {
        self.backup_type
    }

    /// Id of the backed-up host, guest or container.
    pub(crate) const fn id(&self) -> &BackupId {
        &self.id
    }

    /// Time of the snapshot.
    pub(crate) const fn time(&self) -> BackupTime {
        self.time
    }

    /// The archives, in the order in which they were added. Their names are unique.
    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// The entry of one archive.
    pub fn file(&self, name: &ArchiveName) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.name == *name)
    }

    /// Appends an archive. Removes the signature, which does not cover it.
    ///
    /// # Errors
    /// [`ManifestError::DuplicateFile`] if the manifest has a file of that name already.
    pub(crate) fn add_file(&mut self, file: ManifestFile) -> Result<(), ManifestError> {
        if self.file(&file.name).is_some() {
            return Err(ManifestError::DuplicateFile);
        }
        self.files.push(file);
        self.signature = None;
        Ok(())
    }

    /// Signs the manifest, and names the key in it.
    pub(crate) fn sign(&mut self, key: &EncryptionKey) {
        self.set_key_fingerprint(Some(key.fingerprint()));
        self.signature = Some(Digest::from_bytes(key.sign(&self.canonical_json())));
    }

    /// Checks that this key made the manifest. The signature covers names, sizes, checksums and modes of the archives, but neither notes nor
    /// the result of a verification.
    ///
    /// # Errors
    /// `WrongKey` if the manifest names another key, or none and is not signed; `Corrupt` if the signature is missing or does not match.
    pub fn authenticate(&self, key: &EncryptionKey) -> Result<(), Error> {
        let failed = |kind| Error::new(kind, "authenticate the manifest");
        let wanted = self.key_fingerprint()?;
        if let Some(other) = wanted.filter(|wanted| *wanted != key.fingerprint()) {
            return Err(failed(ErrorKind::WrongKey).because(format!("its key is {other}")));
        }
        mutated!("manifest-without-a-signature" => if self.signature.is_none() { return Ok(()) });
        let Some(signature) = &self.signature else {
            return Err(match wanted {
                Some(_) => failed(ErrorKind::Corrupt).because("it names a key, and has no signature"),
                None => failed(ErrorKind::WrongKey).because("it was made without a key"),
            });
        };
        key.check_signature(&self.canonical_json(), signature.as_bytes()).map_err(|_| {
            failed(ErrorKind::Corrupt)
                .because("the signature does not match: it was changed after it was signed")
        })
    }

    /// The signature: HMAC-SHA-256 of [`canonical_json`](Self::canonical_json), written as digests are. `None` if the
    /// manifest is not signed.
    pub(crate) const fn signature(&self) -> Option<Digest> {
        self.signature
    }

    /// Replaces or removes the signature.
    #[cfg(test)]
    pub(crate) fn set_signature(&mut self, signature: Option<Digest>) {
        self.signature = signature;
    }
}

/// One archive in a manifest.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub struct ManifestFile {
    /// The name of the archive.
    pub name: ArchiveName,
    /// How the content is protected: plain, encrypted or signed only.
    pub crypt_mode: CryptMode,
    /// Its size in bytes: of an image, the size of the image; of a stream, the end of the last chunk; of a blob, the length of the stored
    /// file with its header.
    pub size: u64,
    /// Its checksum: of an image or a stream, the checksum of the index; of a blob, the SHA-256 of the stored file.
    pub checksum: Digest,
    unknown: Object,
}

impl fmt::Display for ManifestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, Size(self.size))?;
        match self.crypt_mode {
            CryptMode::Encrypt => f.write_str(", encrypted"),
            CryptMode::None => Ok(()),
            CryptMode::SignOnly => f.write_str(", signed"),
        }
    }
}

fields_as_json!(ManifestFile, file => {
    name: file.name,
    crypt_mode: file.crypt_mode,
    size: file.size,
    checksum: file.checksum,
});

impl ManifestFile {
    /// An entry for the archive `name`.
    ///
    /// # Errors
    /// If `size` is 2^63 or more, which no reader accepts.
    pub(crate) fn new(
        name: ArchiveName,
        crypt_mode: CryptMode,
        size: u64,
        checksum: Digest,
    ) -> Result<Self, ManifestError> {
        field("size", i64::try_from(size).ok())?;
        Ok(Self { name, crypt_mode, size, checksum, unknown: Object::new() })
    }

    fn parse(entry: Json) -> Result<Self, ManifestError> {
        let Json::Object(mut entry) = entry else {
            return Err(ManifestError::Field { name: "files" });
        };
        let name = parse_text(&mut entry, "filename")?;
        let crypt_mode = match entry.remove("crypt-mode") {
            None => CryptMode::None,
            Some(mode) => field("crypt-mode", mode.as_str().and_then(CryptMode::parse))?,
        };
        let size = field("size", entry.remove("size").and_then(|it| it.as_size()))?;
        let checksum = parse_text(&mut entry, "csum")?;
        Ok(Self { name, crypt_mode, size, checksum, unknown: entry })
    }

    fn to_object(&self, mut object: Object) -> Object {
        object.insert("filename".to_owned(), Json::from(self.name.as_str()));
        object.insert("crypt-mode".to_owned(), Json::from(self.crypt_mode.as_str()));
        object.insert("size".to_owned(), Json::from(self.size));
        object.insert("csum".to_owned(), Json::from(self.checksum.to_string()));
        object
    }
}

/// Use of the backup key for an archive. The format defines exactly these three, so the enum is
/// exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CryptMode {
    /// The content is encrypted and the manifest is signed.
    Encrypt,
    /// Neither encrypted nor signed.
    None,
    /// The content is plain, and the manifest is signed.
    SignOnly,
}

impl fmt::Display for CryptMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

word_as_json!(CryptMode, as_str);

impl CryptMode {
    /// The mode as text: `encrypt`, `none` or `sign-only`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::None => "none",
            Self::SignOnly => "sign-only",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Encrypt, Self::None, Self::SignOnly].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// Reason why bytes are not a manifest, or a file cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum ManifestError {
    /// Two archives have the same name.
    #[error("two archives have the same name")]
    DuplicateFile,
    /// A JSON object contains a key twice.
    #[error("a key stands twice in an object")]
    DuplicateKey,
    /// A field is missing, has the wrong type, or an invalid value.
    #[error("`{name}` is missing or not valid")]
    Field {
        /// Its key.
        name: &'static str,
    },
    /// The text is not JSON in UTF-8, or nested deeper than 128 levels.
    #[error("not JSON (line {line}, column {column})")]
    Syntax {
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, in bytes from 1.
        column: usize,
    },
}

impl From<JsonError> for ManifestError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::DuplicateKey => Self::DuplicateKey,
            JsonError::Syntax { line, column } => Self::Syntax { line, column },
        }
    }
}

fn field<T>(name: &'static str, value: Option<T>) -> Result<T, ManifestError> {
    value.ok_or(ManifestError::Field { name })
}

fn parse_text<T: std::str::FromStr>(object: &mut Object, name: &'static str) -> Result<T, ManifestError> {
    field(name, object.remove(name).and_then(|it| it.as_str()?.parse().ok()))
}

#[cfg(test)]
mod tests;

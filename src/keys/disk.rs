//! Reading, creating and replacing key files (H189).
//!
//! | state | under the name | beside it | a crash leaves |
//! |---|---|---|---|
//! | created | the old file, or nothing | `NAME.new-<16 digits>` for its owner alone, growing | both, or the first |
//! | flushed | the same | the whole new file | both |
//! | renamed | the whole new file | nothing | this, or after a power cut what `flushed` leaves |
//! | directory flushed | the whole new file | nothing | this |
//!
//! A failure removes the temporary file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::crypt::key_file::MAX_KEY_FILE_BYTES;
use crate::crypt::{KeyError, KeyFile, SecretText};
use crate::error::{Error, ErrorKind, Result};
use crate::rename;

pub(super) const CREATE: &str = "create the key file";
pub(super) const READ: &str = "read the key file";
pub(super) const REPLACE: &str = "replace the key file";

pub(super) fn read(path: &Path) -> Result<KeyFile> {
    let bytes = read_bytes(path).map_err(|error| Error::io(error, READ).on(path.display()))?;
    KeyFile::parse(&bytes).map_err(|error| refused(error, READ, path))
}

/// Reads at most one byte more than a key file may have, into memory that does not move.
fn read_bytes(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = MAX_KEY_FILE_BYTES + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    File::open(path)?.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn create(path: &Path, json: &SecretText, random: [u8; 8]) -> Result<()> {
    // The rename alone decides if the name is free.
    let created =
        std::path::absolute(path).and_then(|path| publish(&path, json, random, rename::to_free_name));
    created.map_err(|error| Error::io(error, CREATE).on(path.display()))
}

pub(super) fn replace(path: &Path, old: &SecretText, new: &SecretText, random: [u8; 8]) -> Result<()> {
    let failed = |error| Error::io(error, REPLACE).on(path.display());
    let target = path.canonicalize().map_err(failed)?;
    if *read(&target)?.to_json() != **old {
        return Err(Error::new(ErrorKind::Conflict, REPLACE).on(path.display()));
    }
    publish(&target, new, random, |from, to| fs::rename(from, to)).map_err(failed)
}

/// Refuses a replacement that would lose a key.
pub(super) fn check_same_key(path: &Path, old: &KeyFile, new: &KeyFile) -> Result<()> {
    match (old.fingerprint(), new.fingerprint()) {
        (Some(old), Some(new)) if old == new => Ok(()),
        _ => {
            let error = Error::new(ErrorKind::InvalidInput, REPLACE).on(path.display());
            Err(error.because(KeyError::OtherFingerprint))
        }
    }
}

/// Writes a file under a temporary name and renames it. `path` is absolute.
fn publish(
    path: &Path,
    json: &SecretText,
    random: [u8; 8],
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary_name(path, random)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let temporary = Temporary(temporary);
    file.write_all(json.as_bytes())?;
    file.sync_all()?;
    rename(&temporary.0, path)?;
    rename::flush_directory(path.parent().unwrap_or(Path::new("/")), &file)
}

fn temporary_name(path: &Path, random: [u8; 8]) -> io::Result<PathBuf> {
    let is_directory = path.as_os_str().as_bytes().ends_with(b"/");
    let name = path.file_name().filter(|_| !is_directory);
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names a directory"))?;
    let mut name = name.to_owned();
    name.push(format!(".new-{:016x}", u64::from_le_bytes(random)));
    Ok(path.with_file_name(name))
}

/// A temporary file, which is removed when this is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is none.
        let _ = fs::remove_file(&self.0);
    }
}

fn refused(error: KeyError, action: &'static str, path: &Path) -> Error {
    Error::new(error.kind(), action).on(path.display()).because(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::time::SystemTime;

    use super::*;
    use crate::crypt::EncryptionKey;

    fn file(byte: u8) -> KeyFile {
        KeyFile::new(&EncryptionKey::from_bytes(&[byte; 32]), SystemTime::UNIX_EPOCH)
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Proves H189.
    #[test]
    fn a_key_file_is_for_its_owner_alone_and_never_overwrites_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        create(&path, &file(1).to_json(), [1; 8]).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(*read(&path).unwrap().to_json(), *file(1).to_json());
        let link = directory.path().join("link");
        symlink("nowhere", &link).unwrap();
        for taken in [&path, &link] {
            let error = create(taken, &file(2).to_json(), [2; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        }
        assert_eq!(*read(&path).unwrap().to_json(), *file(1).to_json());
        assert_eq!(names(directory.path()), ["key", "link"]);
    }

    /// Proves H189.
    ///
    /// Both see that the name is free; the rename decides.
    #[test]
    fn a_name_that_is_taken_meanwhile_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let late = |from: &Path, to: &Path| {
            assert_eq!(from.metadata().unwrap().mode() & 0o7777, 0o600);
            create(to, &file(1).to_json(), [1; 8]).unwrap();
            rename::to_free_name(from, to)
        };
        let error = publish(&path, &file(2).to_json(), [2; 8], late).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(*read(&path).unwrap().to_json(), *file(1).to_json());
        assert_eq!(names(directory.path()), ["key"]);
    }

    /// Proves H189.
    #[test]
    fn nothing_has_the_name_before_the_file_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let json = file(1).to_json();
        let crashed = |from: &Path, to: &Path| {
            assert!(!to.exists());
            assert_eq!(fs::read_to_string(from).unwrap(), *json);
            Err(io::ErrorKind::Interrupted.into())
        };
        publish(&path, &json, [1; 8], crashed).unwrap_err();
        assert!(names(directory.path()).is_empty());
    }

    /// Proves H189.
    #[test]
    fn a_key_file_is_replaced_by_one_with_the_same_key_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let link = directory.path().join("link");
        symlink("key", &link).unwrap();
        let mut hinted = file(1);
        hinted.hint = Some("none".into());
        create(&path, &file(1).to_json(), [1; 8]).unwrap();
        assert_eq!(check_same_key(&path, &file(1), &file(2)).unwrap_err().kind(), ErrorKind::InvalidInput);
        let stale = replace(&path, &hinted.to_json(), &file(1).to_json(), [2; 8]).unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Conflict);
        replace(&link, &file(1).to_json(), &hinted.to_json(), [3; 8]).unwrap();
        assert_eq!(read(&path).unwrap().hint, Some("none".to_owned()));
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(names(directory.path()), ["key", "link"]);
    }

    #[test]
    fn a_file_that_is_no_key_file_has_the_error_of_its_flaw() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let large = file(1).to_json().to_owned() + &" ".repeat(MAX_KEY_FILE_BYTES);
        let costly = r#"{"kdf":{"Scrypt":{"n":1099511627776,"r":8,"p":1,"salt":""}},"data":""}"#;
        for (text, kind) in
            [("secret", ErrorKind::Corrupt), (&large, ErrorKind::Corrupt), (costly, ErrorKind::Unsupported)]
        {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert_eq!((error.kind(), error.subject()), (kind, path.to_str()));
            assert!(!format!("{error:?}").contains("secret"));
        }
    }
}

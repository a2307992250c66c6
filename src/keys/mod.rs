//! Encryption keys in files, and everything else about keys that needs I/O, randomness or time.
//!
//! [`crypt`](mod@crate::crypt) has the values: [`EncryptionKey`], and [`KeyFile`] for the contents of a key file. The functions of this module
//! take the services they need from a [`Runtime`]. `manual::encryption` is the guide to the use of keys.
//!
//! # Example
//! ```
//! use larder::ThreadRuntime;
//! use larder::crypt::{Kdf, KeyFile};
//! use larder::keys;
//! use larder::rt::Runtime as _;
//!
//! # fn main() -> larder::Result<()> {
//! # let scratch = tempfile::tempdir().unwrap();
//! # let path = scratch.path().join("backup.key");
//! # futures::executor::block_on(async {
//! let runtime = ThreadRuntime::new();
//! let key = keys::generate(&runtime);
//! let file = KeyFile::new(&key, runtime.now());
//! let file = keys::protect(&runtime, &file, &key, b"a long passphrase", Kdf::default()).await?;
//! keys::create(&runtime, &path, &file).await?; // fails if the file exists
//!
//! let file = keys::read(&runtime, &path).await?;
//! let key = keys::unlock(&runtime, &file, Some(b"a long passphrase")).await?;
//! assert_eq!(file.fingerprint(), Some(key.fingerprint()));
//! # Ok(()) })
//! # }
//! ```
//!
//! # Derivations
//! [`protect`] and [`unlock`] derive a key from a passphrase as a blocking job of the runtime: with the default [`Kdf`] a tenth of a second
//! and 64 MiB of memory, at the limits of [`Kdf`] a minute and 1025 MiB. Dropping the future returns at once. The job
//! cannot be stopped; it runs to its end, and what it derived is erased. The memory in which scrypt worked is freed without being erased.

mod disk;
#[cfg(feature = "master-key")]
mod master;

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::crypt::kdf::SALT_BYTES;
use crate::crypt::{EncryptionKey, Kdf, KeyFile, NONCE_BYTES};
use crate::error::Result;
use crate::rt::Runtime;

#[cfg(feature = "master-key")]
pub use master::{MasterKey, MasterPrivateKey};

/// Draws a new key from the randomness of the runtime. The key of a simulated runtime is not a secret.
pub fn generate(runtime: &dyn Runtime) -> EncryptionKey {
    let mut bytes = Zeroizing::new([0; 32]);
    runtime.fill_random(bytes.as_mut_slice());
    EncryptionKey::from_bytes(&bytes)
}

/// Reads a key file of at most 64 KiB. Its permissions are not checked.
///
/// # Errors
/// `NotFound`; `Denied`; `Corrupt` if it is not a key file; `Unsupported` if its key derivation is unknown or too costly; `Unavailable` if
/// the disk fails. The [source](std::error::Error::source) of the middle two is a [`KeyError`](crate::crypt::KeyError).
pub async fn read(runtime: &dyn Runtime, path: impl Into<PathBuf>) -> Result<KeyFile> {
    let path = path.into();
    runtime.run_blocking(disk::READ, move || disk::read(&path)).await
}

/// Creates a key file with mode 0600. Nothing is ever overwritten.
///
/// The contents are flushed under a temporary name before they get theirs, so the file is whole whenever it exists. A crash may leave a file
/// `NAME.new-<16 digits>` beside it, with the same mode and perhaps with the key. On a filesystem with neither hard links nor a rename that refuses
/// to replace, a crash may leave an empty file of that name.
///
/// # Errors
/// `AlreadyExists` if the name is taken, by a link too; `NotFound` without the directory; `Denied`, `Full` or `Unavailable`.
///
/// # Cancel safety
/// The file is created even if the future is dropped.
pub async fn create(runtime: &dyn Runtime, path: impl Into<PathBuf>, file: &KeyFile) -> Result<()> {
    let (path, json, random) = (path.into(), file.to_json(), random(runtime));
    runtime.run_blocking(disk::CREATE, move || disk::create(&path, &json, random)).await
}

/// Replaces a key file by another one with the same key, such as one with a new passphrase. The mode is 0600 then; a symbolic link stays, and
/// its target is replaced. A crash leaves the old file or the new one, and perhaps a temporary one as [`create`].
///
/// `old` is what [`read`] returned. A change of the file since then is noticed, except in the instant of the replacement.
///
/// # Errors
/// `InvalidInput` if `old` and `new` record different keys, or one of them none; `Conflict` if the file is no longer `old`; otherwise as
/// [`read`] and [`create`].
///
/// # Cancel safety
/// The file is replaced even if the future is dropped.
pub async fn replace(
    runtime: &dyn Runtime,
    path: impl Into<PathBuf>,
    old: &KeyFile,
    new: &KeyFile,
) -> Result<()> {
    let path = path.into();
    disk::check_same_key(&path, old, new)?;
    let (old, new, random) = (old.to_json(), new.to_json(), random(runtime));
    runtime.run_blocking(disk::REPLACE, move || disk::replace(&path, &old, &new, random)).await
}

/// Unlocks a key file as [`KeyFile::unlock`] does, without blocking the executor.
///
/// # Errors
/// `KeyRequired` without a passphrase if one is needed; `WrongKey` for a wrong one; `InvalidInput` for one of fewer than 5 bytes; `Corrupt` if the file records
/// another fingerprint. The [source](std::error::Error::source) is a [`KeyError`](crate::crypt::KeyError).
///
/// # Cancel safety
/// The derivation runs to its end even if the future is dropped; the key is erased then.
pub async fn unlock(
    runtime: &dyn Runtime,
    file: &KeyFile,
    passphrase: Option<&[u8]>,
) -> Result<EncryptionKey> {
    let file = file.clone();
    let passphrase = passphrase.map(|bytes| Zeroizing::new(bytes.to_vec()));
    let unlock = move || Ok(file.unlock(passphrase.as_ref().map(|bytes| bytes.as_slice()))?);
    runtime.run_blocking("unlock the key", unlock).await
}

/// Protects a key file as [`KeyFile::protect`] does, without blocking the executor. Salt, nonce and time come from the runtime.
///
/// # Errors
/// `InvalidInput` for a passphrase of fewer than 5 bytes; `Corrupt` for a file of another key and for parameters without a meaning;
/// `Unsupported` for a too costly derivation. The [source](std::error::Error::source) is a [`KeyError`](crate::crypt::KeyError).
///
/// # Cancel safety
/// The derivation runs to its end even if the future is dropped; its result is erased then.
pub async fn protect(
    runtime: &dyn Runtime,
    file: &KeyFile,
    key: &EncryptionKey,
    passphrase: &[u8],
    kdf: Kdf,
) -> Result<KeyFile> {
    let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
    runtime.fill_random(&mut salt);
    runtime.fill_random(&mut nonce);
    let (file, key, now) = (file.clone(), key.clone(), runtime.now());
    let passphrase = Zeroizing::new(passphrase.to_vec());
    let protect = move || Ok(file.protect_with(&key, &passphrase, kdf, now, (salt, nonce))?);
    runtime.run_blocking("protect the key", protect).await
}

/// For the names of temporary files.
fn random(runtime: &dyn Runtime) -> [u8; 8] {
    let mut random = [0; 8];
    runtime.fill_random(&mut random);
    random
}

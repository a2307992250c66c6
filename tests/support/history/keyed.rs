//! Keys of the snapshots of a history, and the rules that hold with each.

use std::sync::LazyLock;

use larder::crypt::EncryptionKey;
use larder::error::{Error, ErrorKind, Result};
use larder::format::Digest;
use larder::format::name::SnapshotName;
use larder::internal::blob::{Blob, BlobDecoder, PlaintextSize};
use larder::store::{BackupBuilder, BaseUse, Datastore, SnapshotReader, WriterTarget};
use larder::sync::{self, SyncOptions, SyncOutcome};
use larder::verify::VerifyOptions;
use sha2::Digest as _;

use super::make::wrong_with;
use super::model::{BLOCK, block};
use super::world::World;
use crate::keys::id_key;

/// Number of keys that snapshots may have.
pub(crate) const KEYS: u8 = 2;

/// Use of a key by a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Encrypt(u8),
    Plain,
    Sign(u8),
}

/// The modes of a history. Some are more frequent than others.
pub(crate) const MODES: [Mode; 7] = [
    Mode::Plain,
    Mode::Plain,
    Mode::Plain,
    Mode::Encrypt(0),
    Mode::Encrypt(1),
    Mode::Encrypt(0),
    Mode::Sign(1),
];

impl Mode {
    /// The key, if there is one.
    pub(crate) fn key(self) -> Option<EncryptionKey> {
        match self {
            Self::Encrypt(number) | Self::Sign(number) => Some(key(number)),
            Self::Plain => None,
        }
    }

    /// The key under which the chunks are encrypted.
    pub(crate) fn chunk_key(self) -> Option<u8> {
        if let Self::Encrypt(number) = self { Some(number) } else { None }
    }

    pub(crate) fn of(self, backup: BackupBuilder) -> BackupBuilder {
        match self {
            Self::Encrypt(number) => backup.encrypt(&key(number)),
            Self::Plain => backup,
            Self::Sign(number) => backup.sign(&key(number)),
        }
    }
}

pub(crate) fn key(number: u8) -> EncryptionKey {
    // An unoptimised build takes a while to derive them.
    static DERIVED: LazyLock<Vec<EncryptionKey>> =
        LazyLock::new(|| (0..KEYS).map(|number| EncryptionKey::from_bytes(&secret(number))).collect());
    // Others are wrong ones.
    DERIVED.get(usize::from(number)).cloned().unwrap_or_else(|| EncryptionKey::from_bytes(&secret(number)))
}

fn secret(number: u8) -> [u8; 32] {
    [number + 1; 32]
}

/// A chunk: the number of its block, and of the key under which it is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chunk {
    pub block: u8,
    pub key: Option<u8>,
}

impl Chunk {
    /// The digest by its definition, without the code under test.
    pub(crate) fn digest(self) -> Digest {
        let mut hash = sha2::Sha256::new_with_prefix(block(self.block));
        if let Some(number) = self.key {
            hash.update(id_key(&secret(number)));
        }
        Digest::from(<[u8; 32]>::from(hash.finalize()))
    }

    /// Returns `true` if a stored chunk is good.
    pub(crate) fn is_whole(self, stored: &bytes::Bytes, pristine: &bytes::Bytes) -> bool {
        // A nonce is drawn for each time that it is stored.
        let Some(number) = self.key else { return stored == pristine };
        let Ok(blob) = Blob::parse(stored.clone()) else { return false };
        let mut plain = Vec::new();
        let limit = PlaintextSize::AtMost(BLOCK);
        let decrypted = BlobDecoder::new().decrypt(&blob, &key(number), &mut plain, limit);
        decrypted.is_ok() && plain == block(self.block)
    }
}

/// Every key.
pub(crate) fn with_all_keys(options: VerifyOptions) -> VerifyOptions {
    (0..KEYS).fold(options, |options, number| options.key(&key(number)))
}

impl World {
    /// Opens a snapshot with its key. No other opens it, and without one nothing encrypted is read.
    pub(crate) async fn open(
        &self,
        store: &Datastore,
        name: &SnapshotName,
        mode: Mode,
    ) -> Result<SnapshotReader> {
        let mut snapshot = store.snapshot(name).await?;
        let right = mode.key();
        for number in 0..=KEYS {
            let other = key(number);
            if right.as_ref() == Some(&other) {
                continue;
            }
            let refused = snapshot.unlock(&other).err().map(|error| error.kind());
            if refused != Some(ErrorKind::WrongKey) {
                self.violation(format_args!("{name}, {mode:?}: key {number} is refused as {refused:?}"));
            }
        }
        if mode.chunk_key().is_some() && self.one_in(3) {
            match read_without_key(&snapshot).await {
                Err(error) if error.kind() == ErrorKind::KeyRequired => self.count("read without key"),
                Err(error) => self.log(format_args!("  {name} without a key: {error}")),
                Ok(()) => self.violation(format_args!("{name}, {mode:?} was read without a key")),
            }
        }
        if let Some(key) = right {
            snapshot.unlock(&key)?;
        }
        Ok(snapshot)
    }

    /// A base counts only with the same key in the same mode.
    pub(crate) fn expect_base(&self, mode: Mode, of_base: Mode, used: BaseUse) {
        self.count(format!("base {used:?}"));
        if used == BaseUse::Used && mode != of_base {
            self.violation(format_args!("{mode:?} was built on {of_base:?}"));
        }
    }

    /// Gives everything a third key on its way into a new store.
    pub(crate) async fn reencrypt(&self, new: &Datastore) {
        let source = self.store(0);
        let (finished, _) = self.listed(0).await;
        let mut options = SyncOptions::default().reencrypt(&key(KEYS));
        for number in 0..KEYS {
            options = options.source_key(&key(number));
        }
        let report = sync::plan(&source, new, options).await.unwrap().execute().await.unwrap();
        for snapshot in report.snapshots() {
            if !matches!(snapshot.outcome, SyncOutcome::Done(_)) {
                self.violation(format_args!("{} got no other key: {:?}", snapshot.target, snapshot.outcome));
            }
        }
        for name in finished.keys() {
            let contents = self.model().contents(name.time());
            let restored = match self.open(new, name, Mode::Encrypt(KEYS)).await {
                Ok(snapshot) => wrong_with(&snapshot, &contents).await,
                Err(error) => Err(error),
            };
            match restored {
                Ok(None) => self.count("reencrypted"),
                wrong => self.violation(format_args!("{name} with another key: {wrong:?}")),
            }
        }
    }
}

async fn read_without_key(snapshot: &SnapshotReader) -> Result<(), Error> {
    let archive = snapshot.manifest().files().iter().find(|file| file.name.as_str() != "c.conf.blob");
    match archive {
        Some(file) => {
            let mut target = WriterTarget::new(futures::io::Cursor::new(Vec::new()));
            snapshot.archive(file.name.as_str()).await?.copy_to(&mut target).await.map(drop)
        }
        None => snapshot.blob("c.conf.blob").await.map(drop),
    }
}

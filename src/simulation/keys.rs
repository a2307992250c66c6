//! Keys of the snapshots of a history, and the rules that hold with each.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Digest as _;

use crate::crypt::EncryptionKey;
use crate::format::Digest;
use crate::format::blob::{Blob, BlobDecoder, PlaintextSize};
use crate::simulation::blocks::{BLOCK, BLOCKS, block};
use crate::store::BackupBuilder;
use crate::verify::VerifyOptions;

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
    // It takes a while to derive them. The last is a wrong one.
    static DERIVED: LazyLock<Vec<EncryptionKey>> =
        LazyLock::new(|| (0..=KEYS).map(|number| EncryptionKey::from_bytes(&secret(number))).collect());
    DERIVED[usize::from(number)].clone()
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
        static ALL: LazyLock<BTreeMap<Chunk, Digest>> =
            LazyLock::new(|| Chunk::all().map(|chunk| (chunk, chunk.computed())).collect());
        ALL[&self]
    }

    /// Every chunk of images and streams.
    fn all() -> impl Iterator<Item = Self> {
        let keys = || std::iter::once(None).chain((0..KEYS).map(Some));
        keys().flat_map(|key| (0..BLOCKS).map(move |block| Self { block, key }))
    }

    fn computed(self) -> Digest {
        let mut hash = sha2::Sha256::new_with_prefix(block(self.block));
        if let Some(number) = self.key {
            hash.update(id_key(&secret(number)));
        }
        Digest::from(<[u8; 32]>::from(hash.finalize()))
    }

    /// Returns `true` if a stored chunk is good.
    pub(crate) fn is_whole(self, stored: &bytes::Bytes) -> bool {
        let Ok(blob) = Blob::parse(stored.clone()) else { return false };
        let (mut decoder, mut plain, limit) = (BlobDecoder::new(), Vec::new(), PlaintextSize::AtMost(BLOCK));
        let decoded = match self.key {
            Some(number) => decoder.decrypt(&blob, &key(number), &mut plain, limit),
            None => decoder.decode(&blob, &mut plain, limit),
        };
        decoded.is_ok() && blob.check_crc().is_ok() && plain == block(self.block)
    }
}

/// Every key.
pub(crate) fn with_all_keys(options: VerifyOptions) -> VerifyOptions {
    (0..KEYS).fold(options, |options, number| options.key(&key(number)))
}

/// The id key by its definition: PBKDF2 with HMAC-SHA-256 and ten iterations.
fn id_key(secret: &[u8; 32]) -> [u8; 32] {
    let mac = |message: &[u8]| -> [u8; 32] {
        let mac: Hmac<sha2::Sha256> = Hmac::new_from_slice(secret).unwrap();
        mac.chain_update(message).finalize().into_bytes().into()
    };
    let mut round = mac(b"_id_key\0\0\0\x01");
    let mut derived = round;
    for _ in 1..10 {
        round = mac(&round);
        for (byte, other) in derived.iter_mut().zip(round) {
            *byte ^= other;
        }
    }
    derived
}

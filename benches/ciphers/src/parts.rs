//! GCM from its two halves.

use aes::Aes256;
use aes_gcm::KeyInit as _;
use cipher::{Array, BlockCipherEncrypt as _, InnerIvInit as _, StreamCipherCore as _};
use ctr::CtrCore;
use ctr::flavors::Ctr32BE;
use ghash::GHash;
use ghash::universal_hash::UniversalHash as _;

use crate::Gcm;
use crate::rust::{Block, hash_key};

/// Adds the keystream that begins with a block. Its last 32 bits count, and wrap.
pub(crate) trait Ctr {
    fn apply(&self, from: [u8; 16], data: &mut [u8]);
}

/// GHASH of data, padded with zeros, and of the block with the lengths.
pub(crate) trait Hash {
    fn hash(&self, data: &[u8], lengths: [u8; 16]) -> [u8; 16];
}

/// Counter block of a nonce: GHASH(nonce ‖ 0 ‖ 128).
pub(crate) fn counter_block(mut hash: GHash, nonce: &[u8; 16]) -> [u8; 16] {
    hash.update(&[(*nonce).into(), 128_u128.to_be_bytes().into()]);
    hash.finalize().into()
}

pub(crate) fn xor(one: [u8; 16], other: [u8; 16]) -> [u8; 16] {
    (u128::from_ne_bytes(one) ^ u128::from_ne_bytes(other)).to_ne_bytes()
}

/// The block with the lengths, in bits: no associated data.
fn lengths(data: &[u8]) -> [u8; 16] {
    (data.len() as u128 * 8).to_be_bytes()
}

/// Encrypts all, then hashes all.
pub(crate) struct Parts<C, H> {
    aes: Aes256,
    ctr: C,
    ghash: GHash,
    hash: H,
}

impl<C: Ctr, H: Hash> Parts<C, H> {
    pub(crate) fn new(key: &[u8; 32], ctr: C, hash: H) -> Self {
        Self { aes: Aes256::new(key.into()), ctr, ghash: GHash::new(&hash_key(key)), hash }
    }

    fn tag(&self, counter_block: [u8; 16], data: &[u8]) -> [u8; 16] {
        let mut mask = counter_block.into();
        self.aes.encrypt_block(&mut mask);
        xor(self.hash.hash(data, lengths(data)), mask.into())
    }

    fn apply(&self, mut counter_block: [u8; 16], data: &mut [u8]) {
        let counter = counter_block.last_chunk_mut().expect("4 bytes");
        *counter = u32::from_be_bytes(*counter).wrapping_add(1).to_be_bytes();
        self.ctr.apply(counter_block, data);
    }
}

impl<C: Ctr, H: Hash> Gcm for Parts<C, H> {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        let counter_block = counter_block(self.ghash.clone(), nonce);
        self.apply(counter_block, data);
        self.tag(counter_block, data)
    }

    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool {
        let counter_block = counter_block(self.ghash.clone(), nonce);
        let authentic = self.tag(counter_block, data) == *tag;
        if authentic {
            self.apply(counter_block, data);
        }
        authentic
    }
}

/// Encrypts and hashes so many KiB in turn, which stay in the cache. Opening hashes all before it decrypts.
pub(crate) struct Together<const KIB: usize> {
    aes: Aes256,
    ghash: GHash,
}

impl<const KIB: usize> Together<KIB> {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self { aes: Aes256::new(key.into()), ghash: GHash::new(&hash_key(key)) }
    }

    fn start(&self, nonce: &[u8; 16]) -> (CtrCore<&Aes256, Ctr32BE>, [u8; 16]) {
        let from = counter_block(self.ghash.clone(), nonce);
        let mut ctr = CtrCore::<_, Ctr32BE>::inner_iv_init(&self.aes, &from.into());
        let mut mask = Block::default();
        ctr.write_keystream_block(&mut mask);
        (ctr, mask.into())
    }
}

impl<const KIB: usize> Gcm for Together<KIB> {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        let (mut ctr, mask) = self.start(nonce);
        let (mut hash, lengths) = (self.ghash.clone(), lengths(data));
        let (blocks, tail) = Array::slice_as_chunks_mut(data);
        for blocks in blocks.chunks_mut(KIB << 6) {
            ctr.apply_keystream_blocks(blocks);
            hash.update(blocks);
        }
        ctr.apply_keystream_partial((&mut *tail).into());
        hash.update_padded(tail);
        hash.update(&[lengths.into()]);
        xor(hash.finalize().into(), mask)
    }

    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool {
        let (ctr, mask) = self.start(nonce);
        let mut hash = self.ghash.clone();
        hash.update_padded(data);
        hash.update(&[lengths(data).into()]);
        let authentic = xor(hash.finalize().into(), mask) == *tag;
        if authentic {
            ctr.apply_keystream_partial(data.into());
        }
        authentic
    }
}

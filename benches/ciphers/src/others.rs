//! Cryptography in C and assembler: `ring`, `aws-lc-rs` and `graviola`.
//!
//! None of them takes nonces of 16 bytes. Two of their functions are halves of what is wanted. AES-CTR of `aws-lc-rs` takes any
//! counter block, but counts 128 bits. GMAC, which is GCM over associated data alone, yields GHASH: with a nonce of 12 bytes its tag
//! is G(data ‖ L) ⊕ E(N), where the block L has the length in the field of the associated data. Wanted is G(data ‖ L'), with
//! the length in the other field. GHASH is linear, so (L ⊕ L')·H ⊕ E(N) has to be added.

use aes::Aes256;
use aes_gcm::KeyInit as _;
use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use cipher::BlockCipherEncrypt as _;
use ghash::GHash;
use ghash::universal_hash::UniversalHash as _;

use crate::parts::{Ctr, Hash, Parts, xor};
use crate::rust::{Block, Nothing, RustCtr, RustHash, hash_key};
use crate::{Gcm, Way};

pub(crate) fn ways(key: &[u8; 32]) -> Vec<Way> {
    let ctr = || AwsCtr::new(key);
    let (aws, ring) = (|| ByGmac::new(key, Aws::new(key)), || ByGmac::new(key, Ring::new(key)));
    vec![
        Way::new("CTR and GMAC of `aws-lc-rs`", Parts::new(key, ctr(), aws())),
        Way::new("CTR of `aws-lc-rs`, `ghash`", Parts::new(key, ctr(), RustHash::new(key))),
        Way::new("CTR of `aws-lc-rs`, GMAC of `ring`", Parts::new(key, ctr(), ring())),
        Way::new("`aes` and `ctr`, GMAC of `aws-lc-rs`", Parts::new(key, RustCtr::new(key), aws())),
        Way::new("`aes` and `ctr`, GMAC of `ring`", Parts::new(key, RustCtr::new(key), ring())),
        Way::part("CTR alone: `aws-lc-rs`", Parts::new(key, ctr(), Nothing)),
        Way::part("GHASH alone: GMAC of `aws-lc-rs`", Parts::new(key, Nothing, aws())),
        Way::part("GHASH alone: GMAC of `ring`", Parts::new(key, Nothing, ring())),
        Way::part("nonce of 12 bytes: `ring`", Ring::new(key)),
        Way::part("nonce of 12 bytes: `aws-lc-rs`", Aws::new(key)),
        Way::part("nonce of 12 bytes: `graviola`", Graviola(graviola::aead::AesGcm::new(key))),
    ]
}

struct AwsCtr(EncryptingKey);

impl AwsCtr {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundCipherKey::new(&AES_256, key).expect("32 bytes");
        Self(EncryptingKey::ctr(key).expect("a mode of AES"))
    }
}

impl Ctr for AwsCtr {
    fn apply(&self, from: [u8; 16], data: &mut [u8]) {
        let counter = u32::from_be_bytes(*from.last_chunk().expect("4 bytes"));
        let bytes_before_wrap = ((1_u64 << 32) - u64::from(counter)) * 16;
        let at = usize::try_from(bytes_before_wrap).unwrap_or(usize::MAX).min(data.len());
        let (first, second) = data.split_at_mut(at);
        let mut wrapped = from;
        wrapped[12..].fill(0);
        for (from, part) in [(from, first), (wrapped, second)] {
            if !part.is_empty() {
                let context = EncryptionContext::Iv128(FixedLength::from(from));
                self.0.less_safe_encrypt(part, context).expect("any length");
            }
        }
    }
}

/// GCM with the nonce of 12 zero bytes over associated data.
trait Gmac {
    fn tag(&self, data: &[u8]) -> [u8; 16];
}

struct ByGmac<M> {
    gmac: M,
    hash: GHash,
    mask: [u8; 16],
}

impl<M: Gmac> ByGmac<M> {
    fn new(key: &[u8; 32], gmac: M) -> Self {
        let mut mask: Block = 1_u128.to_be_bytes().into();
        Aes256::new(key.into()).encrypt_block(&mut mask);
        Self { gmac, hash: GHash::new(&hash_key(key)), mask: mask.into() }
    }
}

impl<M: Gmac> Hash for ByGmac<M> {
    fn hash(&self, data: &[u8], lengths: [u8; 16]) -> [u8; 16] {
        let mut hash = self.hash.clone();
        let of_gmac = (data.len() as u128 * 8) << 64;
        hash.update(&[xor(lengths, of_gmac.to_be_bytes()).into()]);
        xor(self.gmac.tag(data), xor(hash.finalize().into(), self.mask))
    }
}

fn short(nonce: &[u8; 16]) -> [u8; 12] {
    *nonce.first_chunk().expect("12 bytes")
}

struct Aws(aws_lc_rs::aead::LessSafeKey);

impl Aws {
    fn new(key: &[u8; 32]) -> Self {
        use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes")))
    }

    fn seal(&self, nonce: [u8; 12], associated: &[u8], data: &mut [u8]) -> [u8; 16] {
        use aws_lc_rs::aead::{Aad, Nonce};
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(associated), data).expect("short");
        tag.as_ref().try_into().expect("16 bytes")
    }
}

impl Gmac for Aws {
    fn tag(&self, data: &[u8]) -> [u8; 16] {
        self.seal([0; 12], data, &mut [])
    }
}

impl Gcm for Aws {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        Self::seal(self, short(nonce), &[], data)
    }

    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool {
        use aws_lc_rs::aead::{Aad, Nonce};
        let nonce = Nonce::assume_unique_for_key(short(nonce));
        self.0.open_in_place_separate_tag(nonce, Aad::empty(), tag, data).is_ok()
    }
}

struct Ring(ring::aead::LessSafeKey);

impl Ring {
    fn new(key: &[u8; 32]) -> Self {
        use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes")))
    }

    fn seal(&self, nonce: [u8; 12], associated: &[u8], data: &mut [u8]) -> [u8; 16] {
        use ring::aead::{Aad, Nonce};
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(associated), data).expect("short");
        tag.as_ref().try_into().expect("16 bytes")
    }
}

impl Gmac for Ring {
    fn tag(&self, data: &[u8]) -> [u8; 16] {
        self.seal([0; 12], data, &mut [])
    }
}

impl Gcm for Ring {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        Self::seal(self, short(nonce), &[], data)
    }

    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool {
        use ring::aead::{Aad, Nonce};
        let nonce = Nonce::assume_unique_for_key(short(nonce));
        self.0.open_in_place_separate_tag(nonce, Aad::empty(), (*tag).into(), data, 0..).is_ok()
    }
}

struct Graviola(graviola::aead::AesGcm);

impl Gcm for Graviola {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        let mut tag = [0; 16];
        self.0.encrypt(&short(nonce), &[], data, &mut tag);
        tag
    }

    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool {
        self.0.decrypt(&short(nonce), &[], data, tag).is_ok()
    }
}

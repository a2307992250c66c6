//! The cipher against OpenSSL, and against the standard bit by bit.

#![expect(clippy::big_endian_bytes, reason = "GCM numbers the bits of a block from the first byte")]

use aes_gcm::aes::cipher::BlockCipherEncrypt as _;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::crypt::hex;

const NONCE: [u8; 16] = *b"@ABCDEFGHIJKLMNO";

fn key() -> [u8; 32] {
    std::array::from_fn(|at| u8::try_from(at).unwrap())
}

fn plaintext(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((at * 7 + 3) % 256).unwrap()).collect()
}

fn seal(nonce: &[u8; 16], plaintext: &[u8]) -> (Vec<u8>, [u8; 16]) {
    let mut data = plaintext.to_vec();
    let tag = Cipher::new(&key()).seal(nonce, &mut data);
    (data, tag)
}

/// GCM as the standard writes it down, bit by bit. Numbers are big-endian: the highest bit is the coefficient of x⁰.
struct Standard {
    aes: Aes256,
    h: u128,
}

impl Standard {
    fn new(key: &[u8; 32]) -> Self {
        let aes = Aes256::new(key.into());
        let h = Self::block(&aes, 0);
        Self { aes, h }
    }

    fn block(aes: &Aes256, block: u128) -> u128 {
        let mut block = block.to_be_bytes().into();
        aes.encrypt_block(&mut block);
        u128::from_be_bytes(block.into())
    }

    fn product(x: u128, y: u128) -> u128 {
        let (mut sum, mut term) = (0, y);
        for bit in (0..128).rev() {
            sum ^= if x >> bit & 1 == 1 { term } else { 0 };
            term = term >> 1 ^ if term & 1 == 1 { 0xe1 << 120 } else { 0 };
        }
        sum
    }

    fn hash(&self, blocks: impl Iterator<Item = u128>) -> u128 {
        blocks.fold(0, |sum, block| Self::product(sum ^ block, self.h))
    }

    fn counter_block(&self, nonce: &[u8; 16]) -> u128 {
        self.hash([u128::from_be_bytes(*nonce), 128].into_iter())
    }

    /// The nonce of a counter block.
    fn nonce(&self, counter_block: u128) -> [u8; 16] {
        let (mut inverse, mut power) = (1 << 127, self.h);
        for _ in 1..128 {
            power = Self::product(power, power);
            inverse = Self::product(inverse, power);
        }
        Self::product(Self::product(counter_block, inverse) ^ 128, inverse).to_be_bytes()
    }

    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        let first = self.counter_block(nonce);
        let (prefix, mut counter) = (first >> 32 << 32, u32::try_from(first & 0xffff_ffff).unwrap());
        let mut blocks = Vec::new();
        for piece in data.chunks_mut(16) {
            counter = counter.wrapping_add(1);
            let stream = Self::block(&self.aes, prefix | u128::from(counter)).to_be_bytes();
            piece.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
            let mut padded = [0; 16];
            padded[..piece.len()].copy_from_slice(piece);
            blocks.push(u128::from_be_bytes(padded));
        }
        blocks.push(data.len() as u128 * 8);
        (self.hash(blocks.into_iter()) ^ Self::block(&self.aes, first)).to_be_bytes()
    }
}

/// Made with OpenSSL, through the package `cryptography` of Python.
#[test]
fn ciphertext_and_tag_are_those_of_openssl() {
    for (bytes, ciphertext, tag) in [
        (0, "", "e005ab16f21278ef8d01c30bbb758a83"),
        (1, "36", "cd6e743bb5955ab906bd27345261bbb8"),
        (16, "368807c383797a3fa2492aa5c93283ce", "c99255c9f0e127d4addb0cf7cbe6c4ec"),
        (
            67,
            "368807c383797a3fa2492aa5c93283ce0930965ed0c8a5590beb606a369dd00a\
             1bbccf104c819c16bb8c54757cd7131e2c5479175d5fea6a81bc451f39ce0b360b00a8",
            "604d8025afee055cd210ebecb54c1326",
        ),
    ] {
        let (data, made) = seal(&NONCE, &plaintext(bytes));
        assert_eq!((hex(&data).as_str(), hex(&made).as_str()), (ciphertext, tag), "{bytes} bytes");
    }
    let (data, tag) = seal(&NONCE, &plaintext(1 << 20));
    let digest = "44b7210d75aac2bdeb388858807dd07cc2a4e38fad52ab5ea5b259b15b0616a7";
    assert_eq!(hex(&Sha256::digest(&data)), digest);
    assert_eq!(hex(&tag), "b919c7100f9be7421242a4e9c035a5f7");
}

/// Made with OpenSSL. The counter block of the nonce ends in `fffffffe`.
#[test]
fn the_counter_wraps_at_32_bits_as_in_openssl() {
    let counter_block = 0x0011_2233_4455_6677_8899_aabb_ffff_fffe;
    let nonce = Standard::new(&key()).nonce(counter_block);
    assert_eq!(hex(&nonce), "8db93b7232bdcaee187da59ac570d0c2");
    let (data, tag) = seal(&nonce, &plaintext(67));
    let ciphertext = "c255a3b6b090e150c55577ef52fbe61dedc9a43313112449f6abe7d132003bf0\
                      4c60c995e0741ecee7160299575517db89dc91db2011369ae3f259bcdd223781fac862";
    assert_eq!(hex(&data), ciphertext);
    assert_eq!(hex(&tag), "7e083ee5eb602f76fe1b438506e4e524");
}

#[test]
fn a_change_of_any_bit_is_unauthentic_and_leaves_the_data_encrypted() {
    let cipher = Cipher::new(&key());
    let (sealed, tag) = seal(&NONCE, &plaintext(67));
    let fails = |cipher: &Cipher, nonce: &[u8; 16], tag: &[u8; 16], data: &[u8]| {
        let mut copy = data.to_vec();
        assert_eq!(cipher.open(nonce, tag, &mut copy), Err(Unauthentic));
        assert!(copy == data, "changed");
    };
    for bit in 0..sealed.len() * 8 {
        let mut data = sealed.clone();
        data[bit / 8] ^= 1 << (bit % 8);
        fails(&cipher, &NONCE, &tag, &data);
    }
    for bit in 0..128 {
        let (mut nonce, mut other) = (NONCE, tag);
        nonce[bit / 8] ^= 1 << (bit % 8);
        other[bit / 8] ^= 1 << (bit % 8);
        fails(&cipher, &nonce, &tag, &sealed);
        fails(&cipher, &NONCE, &other, &sealed);
    }
    for bit in 0..256 {
        let mut key = key();
        key[bit / 8] ^= 1 << (bit % 8);
        fails(&Cipher::new(&key), &NONCE, &tag, &sealed);
    }
    for bytes in 0..sealed.len() {
        fails(&cipher, &NONCE, &tag, &sealed[..bytes]);
    }
    let longer = [&sealed[..], &[0]].concat();
    fails(&cipher, &NONCE, &tag, &longer);
    let mut data = sealed.clone();
    assert_eq!(cipher.open(&NONCE, &tag, &mut data), Ok(()));
    assert_eq!(data, plaintext(67));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_is_sealed_as_the_standard_says_and_opens(
        key: [u8; 32],
        nonce: [u8; 16],
        message in prop::collection::vec(any::<u8>(), 0..2500),
    ) {
        let (cipher, standard) = (Cipher::new(&key), Standard::new(&key));
        let (mut own, mut other) = (message.clone(), message.clone());
        let tag = cipher.seal(&nonce, &mut own);
        prop_assert_eq!(standard.seal(&nonce, &mut other), tag);
        prop_assert_eq!(&own, &other);
        prop_assert_eq!(cipher.open(&nonce, &tag, &mut own), Ok(()));
        prop_assert_eq!(own, message);
    }

    #[test]
    fn the_counter_wraps_anywhere_in_a_message(
        key: [u8; 32],
        prefix: u128,
        blocks_before in 0_u32..130,
        message in prop::collection::vec(any::<u8>(), 0..2500),
    ) {
        let (cipher, standard) = (Cipher::new(&key), Standard::new(&key));
        let nonce = standard.nonce(prefix >> 32 << 32 | u128::from(u32::MAX - blocks_before));
        let (mut own, mut other) = (message.clone(), message.clone());
        let tag = cipher.seal(&nonce, &mut own);
        prop_assert_eq!(standard.seal(&nonce, &mut other), tag);
        prop_assert_eq!(&own, &other);
        prop_assert_eq!(cipher.open(&nonce, &tag, &mut own), Ok(()));
        prop_assert_eq!(own, message);
    }
}

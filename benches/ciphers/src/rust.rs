//! Pure Rust: the crate `aes-gcm`, and constructions on its parts.

use aes::Aes256;
use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::consts::U16;
use aes_gcm::{AesGcm, KeyInit as _};
use cipher::{
    Array, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt as _, BlockSizeUser,
    InnerIvInit as _, ParBlocks, StreamCipherCore as _,
};
use ctr::CtrCore;
use ctr::flavors::Ctr32BE;
use ghash::GHash;
use ghash::universal_hash::UniversalHash as _;
use polyval::Polyval;

use crate::parts::{Ctr, Hash, Parts, Together};
use crate::{Gcm, Way};

pub(crate) type Block = Array<u8, U16>;

pub(crate) fn ways(key: &[u8; 32]) -> Vec<Way> {
    let two_lanes = || TwoLanes::new(key);
    vec![
        Way::new("`aes-gcm`", Plain(AesGcm::new(key.into()))),
        Way::new("`aes`, `ctr` and `ghash`, 16 KiB in turn", Together::<16>::new(key)),
        Way::new("`aes`, `ctr` and `ghash`, 64 KiB in turn", Together::<64>::new(key)),
        Way::new(
            "`aes` with a counter of its own, `ghash`",
            Parts::new(key, OwnCounter::new(key), RustHash::new(key)),
        ),
        Way::new(
            "`aes`, `ctr`, `polyval` on two halves at once",
            Parts::new(key, RustCtr::new(key), two_lanes()),
        ),
        Way::part("CTR alone: `aes` and `ctr`", Parts::new(key, RustCtr::new(key), Nothing)),
        Way::part(
            "CTR alone: `aes` with a counter of its own",
            Parts::new(key, OwnCounter::new(key), Nothing),
        ),
        Way::part("GHASH alone: `ghash`", Parts::new(key, Nothing, RustHash::new(key))),
        Way::part("GHASH alone: `polyval` on two halves at once", Parts::new(key, Nothing, two_lanes())),
    ]
}

struct Plain(AesGcm<Aes256, U16>);

impl Gcm for Plain {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16] {
        self.0.encrypt_inout_detached(nonce.into(), &[], data.into()).expect("short").into()
    }

    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool {
        self.0.decrypt_inout_detached(nonce.into(), &[], data.into(), tag.into()).is_ok()
    }
}

/// Does nothing, to measure the other half.
pub(crate) struct Nothing;

impl Ctr for Nothing {
    fn apply(&self, _: [u8; 16], _: &mut [u8]) {}
}

impl Hash for Nothing {
    fn hash(&self, _: &[u8], _: [u8; 16]) -> [u8; 16] {
        [0; 16]
    }
}

/// The crates `aes` and `ctr`.
pub(crate) struct RustCtr(Aes256);

impl RustCtr {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(Aes256::new(key.into()))
    }
}

impl Ctr for RustCtr {
    fn apply(&self, from: [u8; 16], data: &mut [u8]) {
        CtrCore::<_, Ctr32BE>::inner_iv_init(&self.0, &from.into()).apply_keystream_partial(data.into());
    }
}

/// Counts within the backend of the crate `aes`, so that the compiler may use the instructions of the backend.
struct OwnCounter(Aes256);

impl OwnCounter {
    fn new(key: &[u8; 32]) -> Self {
        Self(Aes256::new(key.into()))
    }
}

impl Ctr for OwnCounter {
    fn apply(&self, from: [u8; 16], data: &mut [u8]) {
        let from = u128::from_be_bytes(from);
        let (prefix, counter) = (from >> 32 << 32, u32::try_from(from & 0xffff_ffff).expect("32 bits"));
        self.0.encrypt_with_backend(Run { prefix, counter, data });
    }
}

struct Run<'a> {
    prefix: u128,
    counter: u32,
    data: &'a mut [u8],
}

impl Run<'_> {
    #[inline(always)]
    fn next(&mut self) -> Block {
        let block = self.prefix | u128::from(self.counter);
        self.counter = self.counter.wrapping_add(1);
        block.to_be_bytes().into()
    }
}

impl BlockSizeUser for Run<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Run<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(mut self, backend: &B) {
        let (blocks, tail) = Array::<u8, U16>::slice_as_chunks_mut(std::mem::take(&mut self.data));
        let (groups, rest) = ParBlocks::<B>::slice_as_chunks_mut(blocks);
        let mut stream = ParBlocks::<B>::default();
        for group in groups {
            stream.iter_mut().for_each(|block| *block = self.next());
            backend.encrypt_par_blocks((&mut stream).into());
            let bytes = Array::slice_as_flattened_mut(group).iter_mut();
            bytes.zip(Array::slice_as_flattened(&stream)).for_each(|(byte, key)| *byte ^= key);
        }
        for piece in rest.iter_mut().map(|block| &mut block[..]).chain([tail]) {
            let mut block = self.next();
            backend.encrypt_block((&mut block).into());
            piece.iter_mut().zip(block).for_each(|(byte, key)| *byte ^= key);
        }
    }
}

/// The crate `ghash`.
pub(crate) struct RustHash(GHash);

impl RustHash {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(GHash::new(&hash_key(key)))
    }
}

impl Hash for RustHash {
    fn hash(&self, data: &[u8], lengths: [u8; 16]) -> [u8; 16] {
        let mut hash = self.0.clone();
        hash.update_padded(data);
        hash.update(&[lengths.into()]);
        hash.finalize().into()
    }
}

/// Two sums at once, over the halves of 16 KiB each, so that one does not wait for the other.
struct TwoLanes {
    empty: Polyval,
    /// Multiplies by the key as often as a lane has blocks.
    power: Polyval,
}

const LANE: usize = 8 << 10;

impl TwoLanes {
    fn new(key: &[u8; 32]) -> Self {
        // RFC 8452 appendix A: GHASH of H is POLYVAL of mulX(H), with the bytes of all blocks reversed.
        let h = u128::from_be_bytes(hash_key(key).into());
        let carry = h >> 127;
        let h: Block = (h << 1 ^ carry ^ carry << 127 ^ carry << 126 ^ carry << 121).to_le_bytes().into();
        let empty = Polyval::new(&h);
        let mut power = empty.clone();
        power.update(&[h]);
        (2..LANE / 16).for_each(|_| power.update(&[Block::default()]));
        Self { empty, power: Polyval::new(&power.finalize()) }
    }

    /// What follows on a sum: the sum goes into the first block.
    fn after(&self, sum: Block, blocks: impl Iterator<Item = Block>) -> Block {
        let mut polyval = self.empty.clone();
        let mut sum = Some(sum);
        for block in blocks {
            polyval.update(&[xor(block, &sum.take().unwrap_or_default())]);
        }
        sum.unwrap_or_else(|| polyval.finalize())
    }
}

fn xor(mut block: Block, other: &Block) -> Block {
    block.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
    block
}

fn reversed(block: &[u8; 16]) -> Block {
    u128::from_be_bytes(*block).to_le_bytes().into()
}

fn four_reversed(four: &[u8; 64]) -> [Block; 4] {
    let blocks: &[[u8; 16]] = four.as_chunks().0;
    [reversed(&blocks[0]), reversed(&blocks[1]), reversed(&blocks[2]), reversed(&blocks[3])]
}

impl Hash for TwoLanes {
    fn hash(&self, data: &[u8], lengths: [u8; 16]) -> [u8; 16] {
        let mut sum = Block::default();
        let (pieces, rest) = data.as_chunks::<{ 2 * LANE }>();
        for piece in pieces {
            let (mut first, mut second) = (self.empty.clone(), self.empty.clone());
            let (left, right) = piece.split_at(LANE);
            for (left, right) in left.as_chunks().0.iter().zip(right.as_chunks().0) {
                let mut blocks = four_reversed(left);
                blocks[0] = xor(blocks[0], &std::mem::take(&mut sum));
                first.update(&blocks);
                second.update(&four_reversed(right));
            }
            let mut moved = self.power.clone();
            moved.update(&[first.finalize()]);
            sum = xor(moved.finalize(), &second.finalize());
        }
        let (blocks, tail) = rest.as_chunks::<16>();
        let mut padded = [0; 16];
        padded[..tail.len()].copy_from_slice(tail);
        let last = (!tail.is_empty()).then_some(padded);
        let blocks = blocks.iter().chain(&last).chain([&lengths]).map(reversed);
        reversed(&self.after(sum, blocks).into()).into()
    }
}

/// The key of GHASH.
pub(crate) fn hash_key(key: &[u8; 32]) -> Block {
    let mut h = Block::default();
    Aes256::new(key.into()).encrypt_block(&mut h);
    h
}

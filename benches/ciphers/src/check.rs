//! Every way gives the answers of the crate `aes-gcm`.

use ghash::GHash;

use crate::parts::counter_block;
use crate::rust::hash_key;
use crate::{random, ways};

const MIB: usize = 1 << 20;

/// A nonce whose counter wraps within 900 KiB.
fn wrapping_nonce(key: &[u8; 32]) -> [u8; 16] {
    let hash = GHash::new(&hash_key(key));
    loop {
        let nonce = random();
        let counter_block = counter_block(hash.clone(), &nonce);
        if counter_block[12..] > (u32::MAX - 57_600).to_be_bytes()[..] {
            return nonce;
        }
    }
}

pub(crate) fn run() {
    let key: [u8; 32] = random();
    let ways: Vec<_> = ways(&key).into_iter().filter(|way| way.is_whole).collect();
    let mut cases: Vec<_> = (0..=1000).map(|bytes| (bytes, random())).collect();
    cases.extend([65_535, 65_536, 65_537, MIB, MIB + 5].map(|bytes| (bytes, random())));
    cases.extend([MIB, MIB + 7, MIB + 16].map(|bytes| (bytes, wrapping_nonce(&key))));
    for (bytes, nonce) in cases {
        let mut data = vec![0; bytes];
        getrandom::fill(&mut data).expect("randomness");
        let mut sealed = data.clone();
        let tag = ways[0].gcm.seal(&nonce, &mut sealed);
        for way in &ways {
            let mut own = data.clone();
            assert_eq!(way.gcm.seal(&nonce, &mut own), tag, "{}: tag of {bytes} bytes", way.name);
            assert!(own == sealed, "{}: ciphertext of {bytes} bytes", way.name);
            assert!(way.gcm.open(&nonce, &tag, &mut own), "{}: {bytes} bytes are authentic", way.name);
            assert!(own == data, "{}: plaintext of {bytes} bytes", way.name);
        }
    }
}

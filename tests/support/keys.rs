//! Values of encryption keys, computed by their definitions.

use hmac::{Hmac, KeyInit as _, Mac as _};

/// The id key: PBKDF2 with HMAC-SHA-256 and ten iterations.
pub fn id_key(secret: &[u8; 32]) -> [u8; 32] {
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

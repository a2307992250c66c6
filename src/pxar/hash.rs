//! The hash of names in lookup tables: SipHash-2-4 with a fixed key.
//!
//! Source: J.-P. Aumasson, D. J. Bernstein, "`SipHash`: a fast short-input PRF", 2012.

const KEY: [u64; 2] = [0x83ac_3f1c_fbb4_50db, 0xaa4f_1b68_7936_9fbd];

/// Hash of a name, by which tables of directories are sorted.
pub(super) fn name_hash(name: &[u8]) -> u64 {
    let mut state = State([
        KEY[0] ^ 0x736f_6d65_7073_6575,
        KEY[1] ^ 0x646f_7261_6e64_6f6d,
        KEY[0] ^ 0x6c79_6765_6e65_7261,
        KEY[1] ^ 0x7465_6462_7974_6573,
    ]);
    let (words, rest) = name.as_chunks::<8>();
    for word in words {
        state.absorb(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The highest byte is the length modulo 256.
    state.absorb(u64::from_le_bytes(last) | (name.len() as u64) << 56);
    state.finish()
}

struct State([u64; 4]);

impl State {
    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.rounds(2);
        self.0[0] ^= word;
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        self.rounds(4);
        self.0.iter().fold(0, |hash, word| hash ^ word)
    }

    fn rounds(&mut self, count: usize) {
        let [mut a, mut b, mut c, mut d] = self.0;
        for _ in 0..count {
            a = a.wrapping_add(b);
            c = c.wrapping_add(d);
            b = b.rotate_left(13) ^ a;
            d = d.rotate_left(16) ^ c;
            a = a.rotate_left(32);
            c = c.wrapping_add(b);
            a = a.wrapping_add(d);
            b = b.rotate_left(17) ^ c;
            d = d.rotate_left(21) ^ a;
            c = c.rotate_left(32);
        }
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pxar::item;

    #[test]
    fn names_have_the_hashes_of_genuine_archives() {
        let long = [b'x'; 255];
        for (name, hash) in [
            (&b""[..], 0x7661_4015_f8d1_bb6c),
            (b"a", 0x0c26_e906_7c2c_7bcf),
            (b"empty", 0x9c7b_d2e4_b3b6_0004),
            (b"link", 0x04fe_0b2e_cf0f_c0ef),
            (b"added.txt", 0xb6d1_ef6c_5fd4_76e4),
            (b".pxarexclude-cli", 0x0469_75ce_672e_09eb),
            (b"\xff\xfe", 0xd40f_34bd_0209_240a),
            (&long, 0x9b04_66be_3c83_8e3e),
        ] {
            assert_eq!(name_hash(name), hash, "{name:?}");
        }
    }

    #[test]
    fn types_of_items_are_the_hashes_of_their_labels() {
        for (label, item) in [
            ("VERSION", item::FORMAT_VERSION),
            ("PRELUDE", item::PRELUDE),
            ("ENTRY_V2", item::ENTRY),
            ("ENTRY", item::ENTRY_V1),
            ("FILENAME", item::FILENAME),
            ("SYMLINK", item::SYMLINK),
            ("HARDLINK", item::HARDLINK),
            ("DEVICE", item::DEVICE),
            ("XATTR", item::XATTR),
            ("ACL_USER", item::ACL_USER),
            ("ACL_GROUP", item::ACL_GROUP),
            ("ACL_GROUP_OBJ", item::ACL_GROUP_OBJ),
            ("ACL_DEFAULT", item::ACL_DEFAULT),
            ("ACL_DEFAULT_USER", item::ACL_DEFAULT_USER),
            ("ACL_DEFAULT_GROUP", item::ACL_DEFAULT_GROUP),
            ("FCAPS", item::FCAPS),
            ("QUOTA_PROJID", item::QUOTA_PROJID),
            ("PXAR_PAYLOAD", item::PAYLOAD),
            ("PXAR_PAYLOAD_REF", item::PAYLOAD_REF),
            ("GOODBYE", item::GOODBYE),
            ("PXAR_GOODBYE_TAIL_MARKER", item::GOODBYE_TAIL),
            ("PXAR_PAYLOAD_START_MARKER", item::PAYLOAD_START),
            ("PXAR_PAYLOAD_TAIL_MARKER", item::PAYLOAD_TAIL),
        ] {
            assert_eq!(name_hash(format!("__PROXMOX_FORMAT_{label}__").as_bytes()), item, "{label}");
        }
    }
}

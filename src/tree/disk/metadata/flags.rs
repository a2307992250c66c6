//! Attribute flags: those of the format and those of the system.
//!
//! Source: pxar format, flags of an entry; Linux `include/uapi/linux/fs.h`.

const APPEND: u64 = 0x1_0000;
const IMMUTABLE: u64 = 0x40_0000;

/// Each flag of the format with the one of the system.
const FLAGS: [(u64, u32); 10] = [
    (APPEND, 0x20),
    (0x2_0000, 0x80),          // no atime
    (0x4_0000, 0x04),          // compress
    (0x8_0000, 0x80_0000),     // no copy-on-write
    (0x10_0000, 0x40),         // no dump
    (0x20_0000, 0x1_0000),     // dirsync
    (IMMUTABLE, 0x10),         //
    (0x80_0000, 0x08),         // sync
    (0x100_0000, 0x400),       // no compress
    (0x200_0000, 0x2000_0000), // project inherit
];

/// The flags of the format for those of the system.
pub(super) fn to_format(system: u32) -> u64 {
    FLAGS.iter().filter(|(_, bit)| system & bit != 0).map(|(flag, _)| flag).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_system_have_their_value_in_the_format() {
        assert_eq!(to_format(0), 0);
        assert_eq!(to_format(0x10 | 0x20 | 0x8_0000), IMMUTABLE | APPEND, "extents have no flag");
        let all: u32 = FLAGS.iter().map(|(_, bit)| bit).sum();
        assert_eq!(to_format(all), 0x3ff_0000);
    }
}

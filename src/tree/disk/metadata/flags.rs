//! Attribute flags: those of the format and those of the system.
//!
//! Source: pxar format, flags of an entry; Linux `include/uapi/linux/fs.h`.

/// Flags of the format after which nothing else of an object can be changed.
pub(in crate::tree::disk) const SEALING: u64 = APPEND | IMMUTABLE;

/// Flags that change how contents are stored, and so are set before them.
pub(in crate::tree::disk) const EARLY: u64 = 0x2_0000 | 0x4_0000 | 0x8_0000 | 0x100_0000 | 0x200_0000;

/// All flags that the system knows.
pub(in crate::tree::disk) const KNOWN: u64 = 0x3ff_0000;

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

/// The flags of the system for those of the format.
#[cfg(target_os = "linux")]
pub(super) fn to_system(format: u64) -> u32 {
    FLAGS.iter().filter(|(flag, _)| format & flag != 0).map(|(_, bit)| bit).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_system_have_their_value_in_the_format() {
        assert_eq!(to_format(0), 0);
        assert_eq!(to_format(0x10 | 0x20 | 0x8_0000), IMMUTABLE | APPEND, "extents have no flag");
        let all: u32 = FLAGS.iter().map(|(_, bit)| bit).sum();
        assert_eq!((to_format(all), to_system(KNOWN)), (KNOWN, all));
        assert_eq!((to_system(IMMUTABLE | 0x2000), to_system(SEALING & EARLY)), (0x10, 0));
    }
}

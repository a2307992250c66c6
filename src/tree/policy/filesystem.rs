//! Virtual filesystems.

/// Returns `true` if a filesystem has no stored contents, such as `proc` and `sysfs`. `magic` is `f_type` of `statfs` on Linux.
///
/// A backup of a tree does not enter such a filesystem. Filesystems that hold data of programs, such as `tmpfs`, do not
/// count. Source: Linux `include/uapi/linux/magic.h`.
pub fn is_virtual_filesystem(magic: u32) -> bool {
    matches!(
        magic,
        0x0000_1cd1 // devpts
            | 0x0000_9fa0 // proc
            | 0x0027_e0eb // cgroup
            | 0x1980_0202 // mqueue
            | 0x4249_4e4d // binfmt_misc
            | 0x4341_5d53 // smackfs
            | 0x6165_676c // pstore
            | 0x6265_6570 // configfs
            | 0x6265_6572 // sysfs
            | 0x6367_7270 // cgroup2
            | 0x6462_6720 // debugfs
            | 0x6573_5543 // fusectl
            | 0x6759_6969 // rpc_pipefs
            | 0x6e66_7364 // nfsd
            | 0x7363_6673 // securityfs
            | 0x7472_6163 // tracefs
            | 0x9584_58f6 // hugetlbfs
            | 0xcafe_4a11 // bpf
            | 0xde5e_81e4 // efivarfs
            | 0xf97c_ff8c // selinuxfs
    )
}

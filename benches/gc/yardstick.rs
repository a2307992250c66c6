//! The same work as PBS does it: one thread, one `utimensat` for each distinct digest, one `lstat` for each chunk.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder::format::Digest;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::Outcome;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) in_use: u64,
    pub(crate) in_use_bytes: u64,
    pub(crate) unused: u64,
}

pub(crate) fn collect(store: &Path) -> Outcome<Counted> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?;
    // Times on the disk are as coarse as the clock tick.
    std::thread::sleep(Duration::from_millis(10));
    mark(store)?;
    sweep(store, began)
}

fn mark(store: &Path) -> Outcome<()> {
    let chunks = store.join(".chunks");
    let group = store.join("vm/100");
    let mut snapshots: Vec<_> = fs::read_dir(&group)?.collect::<Result<Vec<_>, _>>()?;
    snapshots.retain(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    snapshots.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    let mut touched: HashSet<[u8; 32]> = HashSet::new();
    let now = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    for snapshot in snapshots {
        let index = fs::read(snapshot.path().join("disk.img.fidx"))?;
        let (digests, _) = index[4096..].as_chunks::<32>();
        for digest in digests {
            if touched.insert(*digest) {
                let name = Digest::from(*digest).to_string();
                let path = format!("{}/{}/{name}", chunks.display(), &name[..4]);
                rustix::fs::utimensat(CWD, path, &now, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    Ok(())
}

fn sweep(store: &Path, began: Duration) -> Outcome<Counted> {
    let mut counted = Counted { in_use: 0, in_use_bytes: 0, unused: 0 };
    for number in 0..=u16::MAX {
        let directory = store.join(format!(".chunks/{number:04x}"));
        for entry in fs::read_dir(directory)? {
            // By the descriptor of the directory.
            let metadata = entry?.metadata()?;
            let (seconds, fraction) = (metadata.atime(), metadata.atime_nsec());
            let used = Duration::new(u64::try_from(seconds)?, u32::try_from(fraction)?);
            if used < began {
                counted.unused += 1;
            } else {
                counted.in_use += 1;
                counted.in_use_bytes += metadata.len();
            }
        }
    }
    Ok(counted)
}

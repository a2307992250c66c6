//! Creating and opening a store in a directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;

use crate::backend::fs::disk::{Contents, Replacing};
use crate::backend::fs::lock_files::LockDirectory;
use crate::backend::fs::objects::Inner;
use crate::backend::fs::open_packs::OpenPacks;
use crate::backend::fs::{FsOptions, LOCK_FILE, PrefixDirectories};
use crate::buffers::Buffers;
use crate::error::{Error, ErrorKind, Result};

pub(super) fn open(root: &Path, options: &FsOptions) -> Result<Inner> {
    let missing = |error: io::Error| {
        let is_no_store = error.kind() == io::ErrorKind::NotFound && root.is_dir();
        let error = at_root(error, "open the store in", root);
        if is_no_store { error.because("the directory is not a store: it has no .chunks") } else { error }
    };
    let chunks = fs::symlink_metadata(root.join(CHUNKS)).map_err(missing)?;
    if chunks.is_symlink() {
        return Err(Error::new(ErrorKind::Unsupported, "open the store in")
            .on(root.display())
            .because(".chunks is a link, and links in a store are not followed"));
    }
    if !chunks.is_dir() {
        return Err(missing(io::ErrorKind::NotFound.into()));
    }
    let inherited =
        (nix::unistd::geteuid().is_root() && chunks.uid() != 0).then(|| (chunks.uid(), chunks.gid()));
    let owner = options.owner.or(inherited);
    let lock_directory = LockDirectory {
        is_own: options.lock_directory.is_none(),
        owner,
        path: options.lock_directory.clone().unwrap_or_else(|| root.join(LOCK_DIRECTORY)),
        free_space: options.free_space.clone(),
        root: root.to_owned(),
        store: (chunks.dev(), chunks.ino()),
    };
    let disk = options.disk(root, inherited).locking_creation(lock_directory.path.join(CREATION_LOCK));
    Ok(Inner {
        buffers: Buffers::new(KEPT_BYTES),
        disk: disk.watching(&chunks).map_err(missing)?,
        doubtful: AtomicBool::new(false),
        flushes: Mutex::default(),
        lock_directory,
        flushing: AtomicBool::new(false),
        open_packs: OpenPacks::default(),
        sync_level: options.sync_level,
        unflushed: AtomicU64::new(0),
        unsynced: Mutex::default(),
    })
}

/// Makes the layout. The directories of chunks are made under another name first, so that the store exists only when it is whole.
pub(super) fn create(root: &Path, options: &FsOptions) -> Result<()> {
    let failed = |error| at_root(error, "create a store in", root);
    match DirBuilder::new().mode(0o755).create(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => check_unused(root)?,
    }
    let disk = options.disk(root, None);
    let lay_out = || {
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        if let Some((uid, gid)) = options.owner {
            std::os::unix::fs::lchown(root, Some(uid), Some(gid))?;
        }
        if fs::symlink_metadata(root.join(LOCK_FILE)).is_err() {
            disk.write_new(LOCK_FILE, Contents::Bytes(&Bytes::new()))?;
        }
        // An earlier attempt may have left a directory with such a name.
        let mut numbers = 0..;
        let building = loop {
            let building =
                format!("{CHUNKS}.tmp_{}_{}", std::process::id(), numbers.next().unwrap_or(u32::MAX));
            match disk.make_directory(&building, 0o750) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => break made.map(|()| building)?,
            }
        };
        if options.prefix_directories == PrefixDirectories::AtOnce {
            disk.make_directories(&building, (0..=0xffff).map(|prefix| format!("{prefix:04x}")), 0o750)?;
        }
        disk.rename(&building, CHUNKS, Replacing::Intended)?;
        disk.sync_filesystems()
    };
    lay_out().map_err(failed)
}

fn check_unused(root: &Path) -> Result<()> {
    let failed = |error| at_root(error, "create a store in", root);
    if fs::symlink_metadata(root.join(CHUNKS)).is_ok() {
        return Err(Error::new(ErrorKind::AlreadyExists, "create a store in").on(root.display()));
    }
    for entry in fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") && name != "lost+found" {
            return Err(Error::new(ErrorKind::InvalidInput, "create a store in")
                .on(root.display())
                .because(format!("the directory is not empty: it holds {}", name.display())));
        }
    }
    Ok(())
}

/// An error about the directory of a store. A file in its place is a mistake of the caller, unlike one in the place of an inner directory.
fn at_root(error: io::Error, action: &'static str, root: &Path) -> Error {
    let error = match error.kind() {
        io::ErrorKind::NotADirectory => Error::new(ErrorKind::InvalidInput, action).because(error),
        _ => Error::io(error, action),
    };
    error.on(root.display())
}

/// Returns `true` if other hosts may not see the locks of the filesystem (H79).
pub(super) fn on_network(root: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::statfs;
        let local = [
            statfs::BTRFS_SUPER_MAGIC,
            statfs::EXT4_SUPER_MAGIC,
            statfs::OVERLAYFS_SUPER_MAGIC,
            statfs::TMPFS_MAGIC,
            statfs::XFS_SUPER_MAGIC,
            // ZFS and F2FS, for which `nix` has no names.
            statfs::FsType(0x2fc1_2fc1),
            statfs::FsType(0xf2f5_2010),
        ];
        // An unknown filesystem counts as remote: a wrong answer then costs garbage collection, and the other wrong answer costs data.
        !statfs::statfs(root).is_ok_and(|found| local.contains(&found.filesystem_type()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = root;
        true
    }
}

/// Bytes of buffers that are kept for later reads: those of several chunks, each of which is soon decoded.
const KEPT_BYTES: usize = 24 << 20;
const CHUNKS: &str = ".chunks";
/// The name of the file in the lock directory.
const CREATION_LOCK: &str = "create";
const LOCK_DIRECTORY: &str = ".larder-locks";

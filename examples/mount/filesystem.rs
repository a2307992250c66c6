//! A file system that the kernel asks for what is in an archive.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyXattr, Request, Session, SessionACL,
};
use futures::executor::block_on;
use larder::error::{Error, ErrorKind};
use larder::pxar::{Device, FileKind, Metadata, Mtime, Stat};
use larder::store::ArchiveReader;
use larder::tree::{Tree, TreeEntry, TreeFile};

use super::cli::{self, Outcome};

/// A snapshot never changes, so the kernel may cache every answer.
const FOR_EVER: Duration = Duration::from_hours(24);
const BLOCK_BYTES: u32 = 512;
/// Requests that are served at a time.
const THREADS: usize = 4;

/// The contents of the mount.
#[derive(Debug)]
pub(super) enum Contents {
    /// A directory with one file.
    Archive(ArchiveReader),
    Tree(Tree),
}

/// The file system.
#[derive(Debug)]
pub(super) struct ReadOnly {
    contents: Contents,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    nodes: Mutex<HashMap<u64, Node>>,
}

/// An object that the kernel knows.
#[derive(Debug)]
struct Node {
    entry: Arc<Entry>,
    /// Number of answers with this object that the kernel has not forgotten.
    lookups: u64,
}

/// An object of the archive: hard links are the files that they lead to.
#[derive(Debug)]
struct Entry {
    kind: FileKind,
    metadata: Metadata,
    number: u64,
    path: Bytes,
    /// The entry of a tree.
    source: Option<TreeEntry>,
}

/// Something that is open.
#[derive(Debug)]
enum Handle {
    Archive,
    Directory(Vec<(u64, FileType, Bytes)>),
    File(TreeFile),
}

impl Entry {
    fn of(entry: TreeEntry) -> Self {
        // Positions identify entries; 1 is the number of the root.
        let TreeEntry { kind, metadata, path, position, .. } = entry.clone();
        Self { kind, metadata, number: position + 1, path, source: Some(entry) }
    }

    fn file_type(&self) -> FileType {
        match self.kind {
            FileKind::BlockDevice(_) => FileType::BlockDevice,
            FileKind::CharDevice(_) => FileType::CharDevice,
            FileKind::Directory => FileType::Directory,
            FileKind::Fifo => FileType::NamedPipe,
            FileKind::Socket => FileType::Socket,
            FileKind::Symlink { .. } => FileType::Symlink,
            _ => FileType::RegularFile,
        }
    }

    fn attributes(&self) -> FileAttr {
        let stat = &self.metadata.stat;
        let size = match &self.kind {
            FileKind::File { size } => *size,
            FileKind::Symlink { target } => target.len() as u64,
            _ => 0,
        };
        let rdev = match self.kind {
            FileKind::BlockDevice(Device { major, minor })
            | FileKind::CharDevice(Device { major, minor }) => {
                u32::try_from(major << 8 | minor & 0xff | (minor & !0xff) << 12).unwrap_or(0)
            }
            _ => 0,
        };
        let time = time_of(stat.mtime);
        FileAttr {
            ino: INodeNo(self.number),
            size,
            blocks: size.div_ceil(u64::from(BLOCK_BYTES)),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: self.file_type(),
            perm: u16::try_from(stat.permissions()).unwrap_or(0),
            nlink: if self.kind == FileKind::Directory { 2 } else { 1 },
            uid: stat.uid,
            gid: stat.gid,
            rdev,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    fn attribute(&self, name: &OsStr) -> Option<Bytes> {
        if name == "security.capability" {
            return self.metadata.capabilities.clone();
        }
        let found = self.metadata.xattrs.iter().find(|xattr| xattr.name == name.as_bytes());
        found.map(|xattr| xattr.value.clone())
    }
}

fn time_of(mtime: Mtime) -> SystemTime {
    let whole = Duration::from_secs(mtime.seconds.unsigned_abs());
    let begin = if mtime.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let time = begin.and_then(|begin| begin.checked_add(Duration::from_nanos(mtime.nanoseconds.into())));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The number for the kernel; what it does not explain is printed.
fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::InvalidInput => Errno::EINVAL,
        _ => {
            eprintln!("{}", cli::told(error));
            Errno::EIO
        }
    }
}

impl ReadOnly {
    /// `seconds` is the time of the snapshot, which an archive that is no tree gets.
    pub(super) async fn new(contents: Contents, seconds: i64) -> Outcome<Self> {
        let root = match &contents {
            Contents::Tree(tree) => Entry::of(tree.entry("").await?),
            Contents::Archive(_) => made_up(FileKind::Directory, 0o040_555, 1, "", seconds),
        };
        let mut nodes = HashMap::from([(1, Node { entry: Arc::new(root), lookups: 1 })]);
        if let Contents::Archive(archive) = &contents {
            let name = archive.name().stem().to_owned();
            let file = made_up(FileKind::File { size: archive.size() }, 0o100_444, 2, &name, seconds);
            nodes.insert(2, Node { entry: Arc::new(file), lookups: 1 });
        }
        let (handles, nodes) = (Mutex::default(), Mutex::new(nodes));
        Ok(Self { contents, handles, next_handle: AtomicU64::new(1), nodes })
    }

    pub(super) fn mount(self, mountpoint: impl AsRef<Path>, allow_other: bool) -> io::Result<Session<Self>> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
            MountOption::FSName("larder".to_owned()),
            MountOption::Subtype("larder".to_owned()),
        ];
        config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(THREADS);
        Session::new(self, mountpoint, &config)
    }

    fn node(&self, number: INodeNo) -> Result<Arc<Entry>, Errno> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&number.0).map(|node| Arc::clone(&node.entry)).ok_or(Errno::ESTALE)
    }

    /// Counts an answer to the kernel with this object.
    fn told(&self, entry: Entry) -> FileAttr {
        let attributes = entry.attributes();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes.entry(entry.number).or_insert(Node { entry: Arc::new(entry), lookups: 0 });
        node.lookups += 1;
        attributes
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let parent = self.node(parent)?;
        let tree = match &self.contents {
            Contents::Tree(tree) => tree,
            Contents::Archive(_) => {
                let file = self.node(INodeNo(2))?;
                return if file.path == name.as_bytes() { Ok(file.attributes()) } else { Err(Errno::ENOENT) };
            }
        };
        let path = [&parent.path, &b"/"[..], name.as_bytes()].concat();
        let found = block_on(async {
            let entry = tree.entry(path).await?;
            tree.target(&entry).await
        });
        Ok(self.told(Entry::of(found.map_err(|error| errno(&error))?)))
    }

    fn opened(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(handle));
        FileHandle(number)
    }

    fn handle(&self, handle: FileHandle) -> Result<Arc<Handle>, Errno> {
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn close(&self, handle: FileHandle) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
    }

    fn open_directory(&self, number: INodeNo) -> Result<FileHandle, Errno> {
        let directory = self.node(number)?;
        let mut listed = vec![
            (directory.number, FileType::Directory, Bytes::from_static(b".")),
            (1, FileType::Directory, Bytes::from_static(b"..")),
        ];
        match &self.contents {
            Contents::Archive(_) => {
                let file = self.node(INodeNo(2))?;
                listed.push((file.number, FileType::RegularFile, file.path.clone()));
            }
            Contents::Tree(tree) => block_on(async {
                let mut entries = tree.read_dir(&directory.path).await.map_err(|error| errno(&error))?;
                while let Some(entry) = entries.next().await {
                    match entry {
                        Ok(entry) => {
                            let name = Bytes::copy_from_slice(entry.file_name().as_bytes());
                            let entry = Entry::of(entry);
                            listed.push((entry.number, entry.file_type(), name));
                        }
                        // The others can be read.
                        Err(error) => eprintln!("{}", cli::told(&error)),
                    }
                }
                Ok::<_, Errno>(())
            })?,
        }
        Ok(self.opened(Handle::Directory(listed)))
    }

    fn open_file(&self, number: INodeNo) -> Result<FileHandle, Errno> {
        let file = self.node(number)?;
        let handle = match (&self.contents, &file.source) {
            (Contents::Tree(tree), Some(entry)) => {
                Handle::File(block_on(tree.open_entry(entry)).map_err(|error| errno(&error))?)
            }
            _ => Handle::Archive,
        };
        Ok(self.opened(handle))
    }

    /// All that is asked for, or what there is before the end.
    fn bytes(&self, handle: FileHandle, offset: u64, length: u32) -> Result<Vec<u8>, Errno> {
        let handle = self.handle(handle)?;
        let mut bytes = Vec::with_capacity(length as usize);
        while bytes.len() < length as usize {
            let (at, rest) = (offset + bytes.len() as u64, length as usize - bytes.len());
            let read = match (&*handle, &self.contents) {
                (Handle::File(file), _) => block_on(file.read_at(at, rest)),
                (Handle::Archive, Contents::Archive(archive)) => block_on(archive.read_at(at, rest)),
                _ => return Err(Errno::EISDIR),
            };
            let read = read.map_err(|error| errno(&error))?;
            if read.is_empty() {
                break;
            }
            bytes.extend_from_slice(&read);
        }
        Ok(bytes)
    }
}

/// An object that no archive describes.
fn made_up(kind: FileKind, mode: u32, number: u64, name: &str, seconds: i64) -> Entry {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let stat = Stat { mode, mtime: Mtime { seconds, nanoseconds: 0 }, uid, gid, ..Stat::default() };
    let path = Bytes::copy_from_slice(name.as_bytes());
    Entry { kind, metadata: Metadata::new(stat), number, path, source: None }
}

fn answer_attribute(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for ReadOnly {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_archive = matches!(self.contents, Contents::Archive(_));
        if number.0 == 1 || is_archive {
            return;
        }
        if let Some(node) = nodes.get_mut(&number.0) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                nodes.remove(&number.0);
            }
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(number) {
            Ok(entry) => reply.attr(&FOR_EVER, &entry.attributes()),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.node(number).map(|entry| entry.kind.clone()) {
            Ok(FileKind::Symlink { target }) => reply.data(&target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(number) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.bytes(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.close(handle);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_directory(number) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.handle(handle).as_deref() {
            Ok(Handle::Directory(listed)) => {
                let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
                for (at, (number, kind, name)) in listed.iter().enumerate().skip(skipped) {
                    if reply.add(INodeNo(*number), at as u64 + 1, *kind, OsStr::from_bytes(name)) {
                        break;
                    }
                }
                reply.ok();
            }
            Ok(_) => reply.error(Errno::ENOTDIR),
            Err(error) => reply.error(*error),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.close(handle);
        reply.ok();
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.node(number).map(|entry| entry.attribute(name)) {
            Ok(Some(value)) => answer_attribute(&value, size, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(error) => reply.error(error),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.node(number) {
            Ok(entry) => {
                let mut names: Vec<&[u8]> = entry.metadata.xattrs.iter().map(|xattr| &*xattr.name).collect();
                if entry.metadata.capabilities.is_some() {
                    names.push(b"security.capability");
                }
                let list = names.iter().flat_map(|name| [*name, b"\0"]).collect::<Vec<_>>().concat();
                answer_attribute(&list, size, reply);
            }
            Err(error) => reply.error(error),
        }
    }
}

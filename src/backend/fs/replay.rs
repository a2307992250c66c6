//! The state of a disk after a crash in the middle of the changes of a backend.
//!
//! A [`DiskRecord`] has every change in order. [`DiskRecord::replay`] builds, in an empty directory, the state of the disk if the machine
//! had stopped after a number of them, by the rule that a filesystem keeps only flushed data:
//!
//! * the bytes of a file are kept once the file or the filesystem was flushed after they were written;
//! * a name in a directory, or its absence, is kept once that directory or the filesystem was flushed after it changed;
//! * each name and the bytes of each file that were not flushed may be kept or lost independently, as a [`Loss`] decides.
//!
//! A store may lie on several filesystems: [`DiskRecord::with_mounts`] names their mount points. A flush of one of them does not flush the
//! others, and a rename from one to another fails. [`DiskRecord::fail`] simulates a filesystem that lacks a call.
//!
//! A test that stops after each change in turn, with each loss, has tried every crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::backend::fs::disk_op::DiskCall;

pub use crate::backend::fs::disk_op::DiskOp;

/// The fate of data that was not flushed.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is lost.
    Everything,
    /// Nothing is lost: the process died, but not the machine.
    Nothing,
    /// Names are kept, and the bytes of files are lost, as on a filesystem with delayed allocation.
    OnlyBytes,
    /// Each name and each file is kept or lost as the seed decides.
    Some(u64),
}

/// A call to the system that can be made to [fail](DiskRecord::fail).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailingCall {
    /// Flushing a filesystem.
    Flush,
    /// Making a hard link.
    Link,
    /// A rename without replacing.
    RenameWithoutReplacing,
    /// Setting the access time alone.
    SetAccessTime,
    /// Setting both times to now.
    SetTimes,
}

/// The changes made to a disk, in order.
#[derive(Debug, Default)]
pub struct DiskRecord {
    failing: Mutex<BTreeMap<FailingCall, i32>>,
    looks: AtomicU64,
    mounts: Vec<String>,
    ops: Mutex<Vec<DiskOp>>,
}

impl DiskRecord {
    /// The record of a store in which other filesystems are mounted at these directories, which may be made later.
    pub fn with_mounts<P: Into<String>>(mounts: impl IntoIterator<Item = P>) -> Self {
        Self { mounts: mounts.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// A record of the same changes, which goes on by itself.
    #[must_use]
    pub fn copy(&self) -> Self {
        self.first(self.len())
    }

    /// A record of the first of these changes.
    #[must_use]
    pub fn first(&self, steps: usize) -> Self {
        let ops = self.lock().iter().take(steps).cloned().collect();
        Self { mounts: self.mounts.clone(), ops: Mutex::new(ops), ..Self::default() }
    }

    /// Lets a call fail from now on with this error number of the system.
    pub fn fail(&self, call: FailingCall, errno: i32) {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).insert(call, errno);
    }

    /// Lets a call succeed again.
    pub fn mend(&self, call: FailingCall) {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
    }

    /// The number of the mount of a directory; `None` for the filesystem of the store itself.
    pub(super) fn mount_of(&self, path: &str) -> Option<usize> {
        mount_of(&self.mounts, path)
    }

    /// The error that the test set for a call.
    pub(super) fn error_of(&self, call: DiskCall<'_>) -> Option<io::Error> {
        let call = match call {
            DiskCall::Rename { from, to } => {
                let crosses = self.mount_of(parent(from)) != self.mount_of(parent(to));
                return crosses.then(|| nix::errno::Errno::EXDEV.into());
            }
            DiskCall::Flush => FailingCall::Flush,
            DiskCall::Link => FailingCall::Link,
            DiskCall::RenameWithoutReplacing => FailingCall::RenameWithoutReplacing,
            DiskCall::SetAccessTime => FailingCall::SetAccessTime,
            DiskCall::SetTimes => FailingCall::SetTimes,
        };
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.get(&call).map(|errno| io::Error::from_raw_os_error(*errno))
    }

    /// The changes so far.
    pub fn ops(&self) -> Vec<DiskOp> {
        self.lock().clone()
    }

    /// The number of lookups of paths so far. A listing looks up its directories and the files that it describes, each once.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    pub(super) fn look(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of changes so far.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns `true` if the record has no changes.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Builds, in the empty directory `into`, the state after a crash that follows the first `steps` changes.
    ///
    /// # Errors
    /// Any failure to write to that directory.
    pub fn replay(&self, steps: usize, loss: Loss, into: &Path) -> io::Result<()> {
        let mut model = Model { mounts: self.mounts.clone(), ..Model::default() };
        for op in self.lock().iter().take(steps) {
            model.apply(op);
        }
        model.crash(loss).write_to(into)
    }

    pub(super) fn push(&self, op: DiskOp) {
        self.lock().push(op);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<DiskOp>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk with a page cache.
#[derive(Debug, Default)]
struct Model {
    files: Vec<Contents>,
    mounts: Vec<String>,
    /// The tree that programs see, by path.
    seen: BTreeMap<String, Node>,
    /// The tree on the disk, by path; an entry without its directory cannot be reached.
    stored: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
struct Contents {
    bytes: Bytes,
    flushed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

impl Model {
    fn apply(&mut self, op: &DiskOp) {
        match op {
            DiskOp::MakeDirectory { path } => {
                self.seen.insert(path.clone(), Node::Directory);
            }
            DiskOp::RemoveDirectory { path } | DiskOp::RemoveFile { path } => {
                self.seen.remove(path);
            }
            DiskOp::Rename { from, to } => {
                let below = format!("{from}/");
                let moved: Vec<_> = self
                    .seen
                    .iter()
                    .filter(|(path, _)| *path == from || path.starts_with(&below))
                    .map(|(path, node)| (path.clone(), *node))
                    .collect();
                for (path, node) in moved {
                    self.seen.remove(&path);
                    self.seen.insert(format!("{to}{}", &path[from.len()..]), node);
                }
            }
            DiskOp::SyncDirectory { path } => {
                self.stored.retain(|at, _| parent(at) != path);
                let entries = self.seen.iter().filter(|(at, _)| parent(at) == path);
                self.stored.extend(entries.map(|(at, node)| (at.clone(), *node)));
            }
            DiskOp::SyncFile { path } => {
                if let Some(Node::File(file)) = self.seen.get(path) {
                    self.files[*file].flushed = true;
                }
            }
            DiskOp::SyncFilesystem { path } => {
                let (mounts, flushed) = (&self.mounts, mount_of(&self.mounts, path));
                let is_on_it = |at: &str| mount_of(mounts, parent(at)) == flushed;
                self.stored.retain(|at, _| !is_on_it(at));
                for (at, node) in self.seen.iter().filter(|(at, _)| is_on_it(at)) {
                    self.stored.insert(at.clone(), *node);
                    if let Node::File(file) = node {
                        self.files[*file].flushed = true;
                    }
                }
            }
            DiskOp::Write { path, bytes } => {
                self.files.push(Contents { bytes: bytes.clone(), flushed: false });
                self.seen.insert(path.clone(), Node::File(self.files.len() - 1));
            }
        }
    }

    fn crash(mut self, loss: Loss) -> Self {
        let mut coin = match loss {
            Loss::Some(seed) => seed,
            _ => 0,
        };
        let mut keep_name = || match loss {
            Loss::Everything => false,
            Loss::Nothing | Loss::OnlyBytes => true,
            Loss::Some(_) => flip(&mut coin),
        };
        let changed: Vec<String> = self
            .seen
            .keys()
            .chain(self.stored.keys())
            .filter(|path| self.seen.get(*path) != self.stored.get(*path))
            .cloned()
            .collect();
        for path in changed {
            if keep_name() {
                match self.seen.get(&path) {
                    Some(node) => self.stored.insert(path, *node),
                    None => self.stored.remove(&path),
                };
            }
        }
        for file in self.files.iter_mut().filter(|file| !file.flushed) {
            let keep = match loss {
                Loss::Nothing => true,
                Loss::Everything | Loss::OnlyBytes => false,
                Loss::Some(_) => flip(&mut coin),
            };
            if !keep {
                file.bytes = Bytes::new();
            }
        }
        self
    }

    fn write_to(&self, root: &Path) -> io::Result<()> {
        for (path, node) in &self.stored {
            let reachable =
                path.match_indices('/').all(|(at, _)| self.stored.get(&path[..at]) == Some(&Node::Directory));
            match node {
                _ if !reachable => {}
                Node::Directory => fs::create_dir(root.join(path))?,
                Node::File(file) => fs::write(root.join(path), &self.files[*file].bytes)?,
            }
        }
        Ok(())
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn mount_of(mounts: &[String], path: &str) -> Option<usize> {
    let is_below =
        |mount: &str| path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let covering = mounts.iter().enumerate().filter(|(_, mount)| is_below(mount));
    covering.max_by_key(|(_, mount)| mount.len()).map(|(number, _)| number)
}

/// A step of splitmix64, of which one bit is used.
fn flip(state: &mut u64) -> bool {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(ops: &[DiskOp], loss: Loss) -> BTreeMap<String, Bytes> {
        let mut model = Model::default();
        for op in ops {
            model.apply(op);
        }
        let directory = larder_testing::scratch();
        let model = model.crash(loss);
        model.write_to(directory.path()).unwrap();
        let files = model.stored.keys().filter(|path| directory.path().join(path).is_file());
        files.map(|path| (path.clone(), fs::read(directory.path().join(path)).unwrap().into())).collect()
    }

    fn write(path: &str) -> DiskOp {
        DiskOp::Write { path: path.to_owned(), bytes: Bytes::from_static(b"x") }
    }

    fn rename(from: &str, to: &str) -> DiskOp {
        DiskOp::Rename { from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn only_flushed_writes_survive_a_crash() {
        let ops = [write("t"), DiskOp::SyncFile { path: "t".to_owned() }, rename("t", "f")];
        assert!(left(&ops, Loss::Everything).is_empty());
        assert_eq!(left(&ops, Loss::OnlyBytes)["f"], "x");
        let flushed = [&ops[..], &[DiskOp::SyncDirectory { path: String::new() }]].concat();
        assert_eq!(left(&flushed, Loss::Everything)["f"], "x");
    }

    #[test]
    fn a_flush_of_one_filesystem_does_not_flush_another() {
        let ops = [DiskOp::MakeDirectory { path: "m".to_owned() }, write("m/f"), write("g")];
        for (path, kept) in [("", "g"), ("m", "m/f")] {
            let directory = larder_testing::scratch();
            let record = DiskRecord::with_mounts(["m"]);
            ops.iter().cloned().for_each(|op| record.push(op));
            // The mount point lies on the outer one.
            record.push(DiskOp::SyncDirectory { path: String::new() });
            record.push(DiskOp::SyncFilesystem { path: path.to_owned() });
            record.replay(record.len(), Loss::Everything, directory.path()).unwrap();
            let is_whole = |path| fs::read(directory.path().join(path)).is_ok_and(|bytes| bytes == b"x");
            assert_eq!(["g", "m/f"].map(is_whole), ["g", "m/f"].map(|file| file == kept), "{path}");
        }
    }

    #[test]
    fn a_name_can_survive_without_its_bytes() {
        let ops = [write("t"), rename("t", "f")];
        assert_eq!(left(&ops, Loss::OnlyBytes)["f"], "");
        assert_eq!(left(&ops, Loss::Nothing)["f"], "x");
    }
}

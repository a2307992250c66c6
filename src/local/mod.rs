//! Local state: copies and records of a remote store on a local disk. All of it can be deleted at any time, at the price of requests
//! and time (H74).
//!
//! | path | contents |
//! |---|---|
//! | `lock` | locked while a process uses the directory (H71) |
//! | `instance` | 32 hexadecimal digits, drawn once (H90) |
//! | `store` | the identity of the store that the directory belongs to (H91) |
//! | `probe` | the result of the last probe of the server, as JSON |
//! | `chunks/` | copies of chunks |
//! | `mirror/` | copies of metadata |
//! | `presence/` | records of the chunks in the store |
//! | `segments/` | copies of the large segments of a packed store |
//!
//! Local state is never proof of the contents of the store. A copy is used only for a version that the store itself has shown.

pub(crate) mod cache;
pub(crate) mod mirror;
pub(crate) mod presence;
mod private;
pub(crate) mod segments;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
pub use crate::local::cache::CacheCounts;
use crate::local::cache::ChunkCache;
use crate::local::mirror::{CopyName, Mirror};
use crate::local::presence::PresenceStore;
use crate::local::segments::SegmentFiles;
use crate::locked_file::LockedFile;
use crate::rt::Runtime;

/// Maximum time for which `open` waits for the lock.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// Options of local state.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct LocalOptions {
    cache_bytes: u64,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { cache_bytes: 4 << 30 }
    }
}

impl LocalOptions {
    /// Maximum bytes of disk for copies of chunks; default: 4 GiB, 0 for none. The least recently used copies are removed first, and
    /// copies that were read only once before others.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }
}

/// A directory for one store, used by this process alone.
#[derive(Debug)]
pub struct LocalState {
    directory: PathBuf,
    instance: String,
    pub(crate) chunks: Option<ChunkCache>,
    pub(crate) mirror: Mirror,
    /// The records of the term with this epoch.
    presence: Mutex<Option<(u64, Arc<PresenceStore>)>>,
    /// `None` if they cannot be opened.
    pub(crate) segments: Option<Arc<SegmentFiles>>,
    /// Dropped last, when the files are closed.
    _lock: LockedFile,
}

impl LocalState {
    /// Opens the local state in a directory, or creates it. It is locked until the last handle is dropped. Only its owner can read the
    /// files in it, whatever the umask.
    ///
    /// # Errors
    /// `Busy` if a process uses it already, this one included, after half a second in which jobs of a closed store may end; `Unavailable` or `Full` if the disk fails.
    pub async fn open(
        runtime: &Arc<dyn Runtime>,
        directory: impl Into<PathBuf>,
        options: LocalOptions,
    ) -> Result<Arc<Self>> {
        let directory = directory.into();
        let mut random = [0; 16];
        runtime.fill_random(&mut random);
        let instance = format!("{:032x}", u128::from_le_bytes(random));
        let is_in_use = |error: &Error| error.kind() == ErrorKind::Busy;
        let open = || {
            let (directory, instance) = (directory.clone(), instance.clone());
            let open = move || Self::open_blocking(directory, instance, options);
            runtime.run_blocking("open local state", open)
        };
        runtime.retry_for(LOCK_WAIT, is_in_use, open).await
    }

    fn open_blocking(directory: PathBuf, drawn: String, options: LocalOptions) -> Result<Arc<Self>> {
        let failed = |error: io::Error| failure(error, &directory);
        private::make_directory(&directory).map_err(failed)?;
        let lock =
            private::options().create(true).append(true).open(directory.join("lock")).map_err(failed)?;
        let busy = |why: &'static str| {
            Error::new(ErrorKind::Busy, "open local state").on(directory.display()).because(why)
        };
        let lock = LockedFile::lock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == Errno::WOULDBLOCK { busy("it is in use") } else { failed(error.into()) }
        })?;
        // Another process may lock a new file instead.
        if lock.metadata().map_err(failed)?.nlink() == 0 {
            return Err(busy("it was deleted meanwhile"));
        }
        let instance = match private::read_text(&directory.join("instance")) {
            Ok(found) if is_identity(&found) => found,
            _ => {
                replace(&directory, "instance", &drawn).map_err(failed)?;
                drawn
            }
        };
        let mirror = Mirror::open(&directory.join("mirror")).map_err(failed)?;
        let budget = options.cache_bytes;
        // A cache that cannot be opened is none (H63).
        let chunks = (budget > 0).then(|| ChunkCache::open(&directory.join("chunks"), budget).ok()).flatten();
        let segments = SegmentFiles::open(&directory.join("segments")).ok().map(Arc::new);
        Ok(Arc::new(Self {
            chunks,
            directory,
            instance,
            mirror,
            presence: Mutex::default(),
            segments,
            _lock: lock,
        }))
    }

    /// Statistics of the chunk cache since the state was opened; `None` without a cache.
    pub fn cache_counts(&self) -> Option<CacheCounts> {
        self.chunks.as_ref().map(ChunkCache::counts)
    }

    /// Unique text of this local state, for `Ownership::instance` of a backend in a bucket. A copy of the directory has the same text.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Keeps a copy of metadata.
    pub(crate) fn keep_copy(&self, name: &CopyName, body: &[u8]) -> io::Result<()> {
        match self.mirror.put(name, body) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // Metadata comes first (H64).
                let Some(chunks) = &self.chunks else { return Err(error) };
                chunks.yield_bytes(body.len() as u64 + (1 << 20));
                self.mirror.put(name, body)
            }
            put => put,
        }
    }

    /// The result of a probe that [`keep_probe`](Self::keep_probe) kept. Blocks.
    #[cfg(feature = "s3")]
    pub(crate) fn kept_probe(&self) -> Option<String> {
        private::read_text(&self.directory.join("probe")).ok()
    }

    /// Keeps the result of a probe of the server. Blocks.
    #[cfg(feature = "s3")]
    pub(crate) fn keep_probe(&self, text: &str) -> io::Result<()> {
        replace(&self.directory, "probe", text)
    }

    /// Presence records of the store with this identity, for a lease term. Records of other terms than the one that this
    /// continues are dropped, because another process may have removed chunks since. `None` if the disk fails. Blocks.
    pub(crate) fn presence(
        &self,
        identity: &str,
        epoch: u64,
        continues: Option<u64>,
    ) -> Option<Arc<PresenceStore>> {
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, records)) = presence.as_ref().filter(|(of, _)| *of == epoch) {
            return Some(Arc::clone(records));
        }
        let stamp = |epoch| format!("{identity} {epoch}");
        if let Some((of, records)) = presence.take()
            && (Some(of) == continues || mutated!("records-of-another-term-are-taken-over"))
            && records.restamp(&stamp(epoch)).is_ok()
        {
            *presence = Some((epoch, Arc::clone(&records)));
            return Some(records);
        }
        let valid = continues.map(stamp);
        let opened = PresenceStore::open(&self.directory.join("presence"), valid.as_deref(), &stamp(epoch));
        *presence = opened.ok().map(|records| (epoch, Arc::new(records)));
        presence.as_ref().map(|(_, records)| Arc::clone(records))
    }

    /// Binds the directory to the store with this identity, permanently.
    pub(crate) fn bind(&self, identity: &str) -> Result<()> {
        match private::read_text(&self.directory.join("store")) {
            Ok(found) if found == identity => Ok(()),
            Ok(found) if is_identity(&found) && !mutated!("local-state-of-another-store") => {
                let error = Error::new(ErrorKind::Conflict, "use local state").on(self.directory.display());
                Err(error.because(format!("it is of the store {found}, not of {identity}")))
            }
            _ => replace(&self.directory, "store", identity).map_err(|error| failure(error, &self.directory)),
        }
    }
}

fn is_identity(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Replaces a small file atomically.
fn replace(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file = private::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

fn failure(error: io::Error, directory: &Path) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "use local state").on(directory.display()).because(error)
}

#[cfg(test)]
mod tests {
    use std::fs::DirBuilder;
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

    use futures::executor::block_on;

    use super::*;
    use crate::format::Digest;
    use crate::rt::ThreadRuntime;

    /// Jobs of a closed store may hold it for a moment.
    #[test]
    fn an_opening_waits_for_the_end_of_an_earlier_one() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let directory = larder_testing::scratch();
        let open = || LocalState::open(&runtime, directory.path().join("x"), LocalOptions::default());
        let first = block_on(open()).unwrap();
        let later = Arc::clone(&runtime);
        runtime.spawn(Box::pin(async move {
            later.sleep(Duration::from_millis(20)).await;
            drop(first);
        }));
        block_on(open()).unwrap();
    }

    /// Proves H71.
    #[test]
    fn two_openings_never_share_a_local_state_directory() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let directory = larder_testing::scratch();
        let open =
            || block_on(LocalState::open(&runtime, directory.path().join("x"), LocalOptions::default()));
        let first = open().unwrap();
        assert_eq!(open().unwrap_err().kind(), ErrorKind::Busy);
        let instance = first.instance().to_owned();
        drop(first);
        let second = open().unwrap();
        assert_eq!(second.instance(), instance, "it is kept");
        second.bind(&"a".repeat(32)).unwrap();
        drop(second);
        let third = open().unwrap();
        assert_eq!(third.bind(&"b".repeat(32)).unwrap_err().kind(), ErrorKind::Conflict, "h91");
        third.bind(&"a".repeat(32)).unwrap();
        fs::write(directory.path().join("x/instance"), "").unwrap();
        drop(third);
        assert_ne!(open().unwrap().instance(), instance, "h45: an empty one is damaged, not empty");
    }

    /// Proves H182.
    ///
    /// Everything in it is readable by its owner only, even if the directory existed before.
    #[test]
    fn no_other_user_reads_local_state() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let scratch = larder_testing::scratch();
        let (given, made) = (scratch.path().join("given"), scratch.path().join("made"));
        DirBuilder::new().mode(0o755).create(&given).unwrap();
        for directory in [&given, &made] {
            let options = LocalOptions::default().cache_bytes(1 << 20);
            let state = block_on(LocalState::open(&runtime, directory.clone(), options)).unwrap();
            state.bind(&"a".repeat(32)).unwrap();
            state.keep_copy(&CopyName::new("vm/1/notes", "1"), b"secret").unwrap();
            state.chunks.as_ref().unwrap().insert(&Digest::of(b"chunk"), b"chunk");
            let records = state.presence("a", 1, None).unwrap();
            records.set(Digest::of(b"chunk"), 5).unwrap();
            drop((state, records));
            let modes = modes_below(directory);
            assert!(modes.len() >= 10, "{modes:?}");
            let others: Vec<_> = modes.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
            assert!(others.is_empty(), "{others:?}");
        }
        assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(given.metadata().unwrap().mode() & 0o777, 0o755, "that of the caller is left alone");
    }

    fn modes_below(directory: &Path) -> Vec<(PathBuf, u32)> {
        let mut modes = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            modes.push((path.clone(), path.metadata().unwrap().mode() & 0o777));
            if path.is_dir() {
                modes.extend(modes_below(&path));
            }
        }
        modes
    }
}

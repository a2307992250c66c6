//! Key files on disk, and keys of PBS.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::executor::block_on;
use futures::future::{BoxFuture, FutureExt as _};
use larder::ThreadRuntime;
use larder::crypt::{EncryptionKey, Kdf, KeyError, KeyFile};
use larder::error::{Error, ErrorKind};
use larder::keys;
use larder::rt::{BlockingJob, Connection, Runtime};

/// The key files of the datastore that PBS wrote, with their passphrases.
const FILES: [(&str, Option<&[u8]>); 3] = [
    ("key1.json", None),
    ("key2-pbkdf2.json", Some(b"another-passphrase")),
    ("key2-scrypt.json", Some(b"correct horse 42")),
];

fn key_of_pbs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pbs-4.2.3/keys").join(name)
}

fn cause(error: &Error) -> Option<KeyError> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref()).copied()
}

/// A runtime that keeps its blocking jobs until they are called for.
#[derive(Default)]
struct Held {
    inner: ThreadRuntime,
    jobs: Mutex<Vec<BlockingJob>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

#[async_trait]
impl Runtime for Held {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inner.spawn(task);
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        self.jobs.lock().unwrap().push(job);
    }

    async fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration).await;
    }

    fn now(&self) -> SystemTime {
        self.inner.now()
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn fill_random(&self, buffer: &mut [u8]) {
        self.inner.fill_random(buffer);
    }

    fn parallelism(&self) -> NonZeroUsize {
        self.inner.parallelism()
    }

    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        self.inner.connect(host, port).await
    }
}

#[test]
fn the_key_files_of_pbs_are_read_and_unlocked() {
    let runtime = ThreadRuntime::new();
    let directory = larder_testing::scratch();
    for (name, passphrase) in FILES {
        block_on(async {
            let file = keys::read(&runtime, key_of_pbs(name)).await.unwrap();
            let key = keys::unlock(&runtime, &file, passphrase).await.unwrap();
            assert_eq!(file.fingerprint(), Some(key.fingerprint()), "{name}");
            let copy = directory.path().join(name);
            keys::create(&runtime, &copy, &file).await.unwrap();
            assert_eq!(fs::read(copy).unwrap(), fs::read(key_of_pbs(name)).unwrap(), "{name}");
            if passphrase.is_some() {
                let wrong = keys::unlock(&runtime, &file, Some(b"something else")).await.unwrap_err();
                assert_eq!(
                    (wrong.kind(), cause(&wrong)),
                    (ErrorKind::WrongKey, Some(KeyError::WrongPassphrase))
                );
                let none = keys::unlock(&runtime, &file, None).await.unwrap_err();
                assert_eq!(
                    (none.kind(), cause(&none)),
                    (ErrorKind::KeyRequired, Some(KeyError::NoPassphrase))
                );
            }
        });
    }
}

#[test]
fn a_new_key_is_kept_and_its_passphrase_is_changed() {
    let runtime = ThreadRuntime::new();
    let directory = larder_testing::scratch();
    let path = directory.path().join("backup.key");
    let kdf = Kdf::Scrypt { n: 16, r: 1, p: 1 };
    block_on(async {
        let key = keys::generate(&runtime);
        assert_ne!(key, keys::generate(&runtime));
        let plain = KeyFile::new(&key, runtime.now());
        let first = keys::protect(&runtime, &plain, &key, b"first passphrase", kdf).await.unwrap();
        keys::create(&runtime, &path, &first).await.unwrap();
        let second = keys::create(&runtime, &path, &plain).await.unwrap_err();
        assert_eq!(second.kind(), ErrorKind::AlreadyExists);
        let read = keys::read(&runtime, &path).await.unwrap();
        let changed = keys::protect(&runtime, &read, &key, b"second passphrase", kdf).await.unwrap();
        keys::replace(&runtime, &path, &read, &changed).await.unwrap();
        let stale = keys::replace(&runtime, &path, &read, &changed).await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Conflict);
        let read = keys::read(&runtime, &path).await.unwrap();
        assert_eq!(keys::unlock(&runtime, &read, Some(b"second passphrase")).await.unwrap(), key);
        assert_eq!(read.created(), plain.created());
        let other = KeyFile::new(&keys::generate(&runtime), runtime.now());
        let lost = keys::replace(&runtime, &path, &read, &other).await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::InvalidInput);
        let short = keys::protect(&runtime, &read, &key, b"1234", kdf).await.unwrap_err();
        assert_eq!(cause(&short), Some(KeyError::ShortPassphrase));
    });
}

/// Proves H190.
///
/// The executor only waits: nothing is derived until the job runs, and a dropped future waits for no job.
#[test]
fn a_key_is_derived_by_a_job_and_a_dropped_future_waits_for_none() {
    let runtime = Held::default();
    let key = EncryptionKey::from_bytes(&[1; 32]);
    let plain = KeyFile::new(&key, SystemTime::UNIX_EPOCH);
    let random = |bytes: &mut [u8]| bytes.fill(9);
    let kdf = Kdf::Pbkdf2 { iterations: 1 };
    let file = plain.protect(&key, b"passphrase", kdf, SystemTime::UNIX_EPOCH, random).unwrap();
    let jobs = || std::mem::take(&mut *runtime.jobs.lock().unwrap());
    let mut unlock = Box::pin(keys::unlock(&runtime, &file, Some(b"passphrase")));
    assert!(unlock.as_mut().now_or_never().is_none());
    for job in jobs() {
        job();
    }
    assert_eq!(unlock.now_or_never().unwrap().unwrap(), key);
    let mut dropped = Box::pin(keys::unlock(&runtime, &file, Some(b"passphrase")));
    assert!(dropped.as_mut().now_or_never().is_none());
    drop(dropped);
    let mut dropped = Box::pin(keys::protect(&runtime, &plain, &key, b"passphrase", kdf));
    assert!(dropped.as_mut().now_or_never().is_none());
    drop(dropped);
    let left = jobs();
    assert_eq!(left.len(), 2);
    for job in left {
        job();
    }
}

#[cfg(feature = "master-key")]
#[test]
fn the_key_in_a_snapshot_of_pbs_is_recovered_with_the_master_key() {
    use larder::internal::blob::Blob;
    use larder::keys::MasterPrivateKey;

    let directory = larder_testing::scratch();
    larder_testing::fixture::unpack("store", directory.path());
    let path = "store/ns/tenant/host/alpha/2023-11-15T22:13:20Z/rsa-encrypted.key.blob";
    let blob = Blob::parse(fs::read(directory.path().join(path)).unwrap().into()).unwrap();
    blob.check_crc().unwrap();
    let master = MasterPrivateKey::parse(&fs::read(key_of_pbs("master-private.der")).unwrap()).unwrap();
    let recovered = master.recover(&blob.payload()).unwrap();
    let key = recovered.unlock(None).unwrap();
    let file = KeyFile::parse(&fs::read(key_of_pbs("key1.json")).unwrap()).unwrap();
    assert_eq!(file.unlock(None).unwrap(), key);
    assert_eq!(recovered.hint, None);
    // Only the dates differ.
    let dates = ("12:37:07", "12:37:19");
    assert_eq!(recovered.to_json().replace(dates.1, dates.0), *file.to_json());
}

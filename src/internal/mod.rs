//! Entry point for the tests, benches and fuzz targets of this crate. Not covered by semver.

/// Data blobs.
pub mod blob {
    pub use crate::format::blob::*;
}

/// Division of streams.
pub mod chunker {
    /// Returns `true` if all bytes are zero.
    pub fn is_zero(data: &[u8]) -> bool {
        crate::chunker::is_zero(data)
    }
}

/// Indexes with chunks of any size.
pub mod dynamic_index {
    pub use crate::format::dynamic_index::*;
}

/// A backend that fails on request.
#[cfg(feature = "testing")]
pub mod fault {
    pub use crate::backend::fault::*;
}

/// Indexes with chunks of one size.
pub mod fixed_index {
    pub use crate::format::fixed_index::*;
}

/// Indexes of both kinds.
pub mod index {
    use crate::store::ArchiveReader;

    pub use crate::format::index::*;

    /// The index behind an open archive.
    pub fn of_archive(archive: &ArchiveReader) -> &IndexReader {
        archive.index()
    }
}

/// A bucket in virtual time.
#[cfg(all(feature = "s3", feature = "testing"))]
pub mod sim_bucket {
    pub use crate::simulation::bucket::{SimBucket, Weather, Wire};
}

/// Whole listings.
pub mod listing {
    use crate::backend::MemoryBackend;

    pub use crate::backend::list::{Listing, Pager, list_all};

    /// A backend whose pages are as short as a test needs them.
    pub trait ShortPages {
        /// Maximum number of entries on a page of a listing, at least 1; default: 1000.
        #[must_use]
        fn page_entries(self, page_entries: usize) -> Self;
    }

    impl ShortPages for MemoryBackend {
        fn page_entries(self, page_entries: usize) -> Self {
            self.pages_of(page_entries)
        }
    }
}

/// Changes of manifests, which otherwise only a backup and its verification make.
pub mod manifest {
    use crate::crypt::KeyFingerprint;
    use crate::error::{Error, ErrorKind, Result};
    use crate::format::Digest;
    use crate::format::manifest::VerifyResult;
    use crate::format::manifest::{CryptMode, Manifest, ManifestFile, VerifyState};
    use crate::format::name::{ArchiveName, SnapshotName};
    use crate::format::upid::Upid;

    fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(ErrorKind::InvalidInput, "make a manifest").because(error)
    }

    /// A manifest without files.
    pub fn of_snapshot(snapshot: &SnapshotName) -> Manifest {
        let group = snapshot.group();
        Manifest::new(group.backup_type(), group.id().clone(), snapshot.time())
    }

    /// The entry of a file.
    ///
    /// # Errors
    /// As for the manifest.
    pub fn file(
        name: ArchiveName,
        crypt_mode: CryptMode,
        size: u64,
        checksum: Digest,
    ) -> Result<ManifestFile> {
        ManifestFile::new(name, crypt_mode, size, checksum).map_err(invalid)
    }

    /// Parses the JSON text of a manifest.
    ///
    /// # Errors
    /// If it is not JSON, or not a valid manifest.
    pub fn parse(json: &[u8]) -> Result<Manifest> {
        Manifest::parse(json).map_err(invalid)
    }

    /// The signed bytes of a manifest.
    pub fn canonical_json(manifest: &Manifest) -> Vec<u8> {
        manifest.canonical_json()
    }

    /// The signature of a manifest.
    pub fn signature(manifest: &Manifest) -> Option<Digest> {
        manifest.signature()
    }

    /// Number of chunks that a backup counts as new in its manifest.
    pub fn counted_chunks(manifest: &Manifest) -> Option<u64> {
        manifest.chunk_upload_stats().map(|stats| stats.count)
    }

    /// Adds a file.
    ///
    /// # Errors
    /// As for the manifest.
    pub fn add_file(manifest: &mut Manifest, file: ManifestFile) -> Result<()> {
        manifest.add_file(file).map_err(invalid)
    }

    /// Records a verification.
    pub fn set_verify_state(manifest: &mut Manifest, upid: Upid, state: VerifyResult) {
        manifest.set_verify_state(Some(&VerifyState::new(upid, state)));
    }

    /// Records the key of the encryption.
    pub fn set_key_fingerprint(manifest: &mut Manifest, fingerprint: KeyFingerprint) {
        manifest.set_key_fingerprint(Some(fingerprint));
    }
}

pub mod packs;
pub mod parsers;

/// Tables of directories in archives of trees.
pub mod pxar {
    use crate::pxar::TreeDecodeError;
    use crate::pxar::goodbye::{Table, TableSpan};

    /// Positions of the entries in the root of an archive, by its table.
    ///
    /// # Errors
    /// For a malformed table.
    pub fn root_children(archive: &[u8]) -> Result<Vec<u64>, TreeDecodeError> {
        let row = archive.last_chunk().copied().unwrap_or_default();
        let span = TableSpan::parse(row, 0, archive.len() as u64)?;
        let start = usize::try_from(span.table).unwrap_or(usize::MAX);
        let table = Table::parse(archive.get(start..).unwrap_or_default(), span)?;
        Ok((0..table.len()).filter_map(|index| table.child(index)).map(|child| child.position).collect())
    }
}

/// A backend that records its calls.
#[cfg(feature = "testing")]
pub mod record {
    pub use crate::backend::record::*;
}

/// The record of a disk and its state after a crash.
#[cfg(feature = "testing")]
pub mod replay {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use crate::backend::FsOptions;

    pub use crate::backend::fs::replay::*;

    /// A disk under test.
    pub trait DiskUnderTest {
        /// Records every change to the disk.
        #[must_use]
        fn record(self, record: Arc<DiskRecord>) -> Self;
        /// Fails every call that makes a file or a directory as on a full disk, while this is `true`.
        #[must_use]
        fn full(self, is_full: Arc<AtomicBool>) -> Self;
    }

    impl DiskUnderTest for FsOptions {
        fn record(self, record: Arc<DiskRecord>) -> Self {
            self.recorded(record)
        }

        fn full(self, is_full: Arc<AtomicBool>) -> Self {
            self.filled(is_full)
        }
    }
}

/// The requests of the S3 client.
#[cfg(feature = "s3")]
pub mod s3 {
    use crate::http::HttpClient;
    use crate::s3::S3Client;

    pub use crate::s3::client::{BucketClient, ClockOffset};
    pub use crate::s3::list::{ListRequest, ListedPage};
    pub use crate::s3::object::{Condition, Deletion, Head};
    pub use crate::s3::sign::PresignedMethod;

    /// Number of connections that a transport has opened.
    pub fn opened_connections(transport: &HttpClient) -> u64 {
        transport.status().opened
    }

    /// Reaches the requests of a client.
    pub trait Requests {
        /// The client of the bucket.
        fn raw(&self) -> &BucketClient;
    }

    impl Requests for S3Client {
        fn raw(&self) -> &BucketClient {
            self.requests()
        }
    }
}

/// The tools of the simulated runtime.
#[cfg(feature = "testing")]
pub mod sim {
    use std::io;
    use std::time::Duration;

    use crate::rt::SimRuntime;

    pub use crate::rt::sim::SimListener;

    /// Reaches the tools of a simulated runtime.
    pub trait Simulation {
        /// Accepts connections to a port, for any host name.
        ///
        /// # Errors
        /// `AddrInUse` while another listener accepts connections to it.
        fn listen(&self, port: u16) -> io::Result<SimListener>;
        /// Runs everything that is ready, without advancing time.
        fn run_until_idle(&self);
        /// Sets the wall clock back. The monotonic clock is unaffected.
        fn set_clock_back(&self, by: Duration);
        /// Sets the wall clock forward. The monotonic clock is unaffected.
        fn set_clock_forward(&self, by: Duration);
        /// Number of scheduling decisions so far.
        fn steps(&self) -> u64;
        /// Suspends the host for this time: wall clock and monotonic clock advance, timers do not.
        fn suspend(&self, time: Duration);
        /// A hash of the schedule; differs between two schedules with high probability.
        fn trace(&self) -> u64;
    }

    impl Simulation for SimRuntime {
        fn listen(&self, port: u16) -> io::Result<SimListener> {
            self.listen(port)
        }

        fn run_until_idle(&self) {
            self.run_until_idle();
        }

        fn set_clock_back(&self, by: Duration) {
            self.set_clock_back(by);
        }

        fn set_clock_forward(&self, by: Duration) {
            self.set_clock_forward(by);
        }

        fn steps(&self) -> u64 {
            self.steps()
        }

        fn suspend(&self, time: Duration) {
            self.suspend(time);
        }

        fn trace(&self) -> u64 {
            self.trace()
        }
    }
}

/// Status files.
pub mod status {
    use crate::error::ParseError;
    use crate::format::name::AuthId;
    use crate::format::status::{self, GcStatus};

    /// Parses the file of an owner.
    ///
    /// # Errors
    /// For anything else.
    pub fn decode_owner(file: &[u8]) -> Result<AuthId, ParseError> {
        status::decode_owner(file)
    }

    /// The file of an owner.
    pub fn encode_owner(owner: &AuthId) -> Vec<u8> {
        status::encode_owner(owner)
    }

    /// The file of the last garbage collection.
    pub fn encode_gc_status(status: &GcStatus) -> Vec<u8> {
        status.to_json()
    }

    /// Parses the file of the last garbage collection.
    pub fn parse_gc_status(json: &[u8]) -> Option<GcStatus> {
        GcStatus::parse(json).ok()
    }
}

/// The list of suspects.
pub mod suspects {
    pub use crate::format::larder::suspects::*;
}

/// The messages between client and S3 server.
pub mod wire {
    pub use crate::wire::*;

    #[cfg(feature = "s3")]
    use crate::wire::http_body::{BodyError, Framing};
    #[cfg(feature = "s3")]
    use crate::wire::http_head::ResponseHead;

    /// How the end of the body of a response is found.
    ///
    /// # Errors
    /// For a head that does not say.
    #[cfg(feature = "s3")]
    pub fn framing_of(method: &str, head: &ResponseHead) -> Result<Framing, BodyError> {
        Framing::of(method, head)
    }

    /// Returns `true` if the connection can carry another request after this answer.
    #[cfg(feature = "s3")]
    pub fn keeps_connection(head: &ResponseHead) -> bool {
        head.keeps_connection()
    }
}

/// Backups of trees with the numbers of the clients of PBS, and reading of trees within little memory.
pub mod tree {
    use crate::error::Result;
    use crate::store::SnapshotReader;
    use crate::tree::{ReadLimits, Tree, TreeBuilder};

    /// Opens a tree whose caches keep one chunk and one table, and whose walks keep tables of open directories up to this number of bytes.
    ///
    /// # Errors
    /// As for [`SnapshotReader::tree`].
    pub async fn open_within(snapshot: &SnapshotReader, name: &str, held_tables: usize) -> Result<Tree> {
        snapshot.tree_within(name, ReadLimits { chunks: 1, held_tables, tables: 1 }).await
    }

    /// A backup that reuses the same chunks as a client of PBS.
    pub trait StockReuse {
        /// Takes the numbers of the clients of PBS.
        #[must_use]
        fn reuse_as_stock_clients(self) -> Self;
    }

    impl StockReuse for TreeBuilder<'_> {
        fn reuse_as_stock_clients(self) -> Self {
            self.with_stock_policy()
        }
    }
}

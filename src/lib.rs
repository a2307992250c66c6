//! The store engine for deduplicating backups: it reads and writes the datastores of Proxmox Backup Server (PBS) byte for
//! byte, from any Rust program and on any async runtime.
//!
//! larder is a library. A server, a scheduler, a user interface and configuration files belong to the
//! program that links it. It never exits the process, never panics on input, starts no runtime of its own and prints nothing; it logs and measures only
//! with the features for that.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//!
//! use futures::io::Cursor;
//! use larder::{Datastore, FileTarget, FsBackend, FsOptions, Options, PrefixDirectories, ThreadRuntime};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let (path, restored) = (scratch.path().join("store"), scratch.path().join("restored.img"));
//! # let disk = vec![7; 1 << 20];
//! # let (disk, size) = (Cursor::new(disk), 1 << 20);
//! # futures::executor::block_on(async {
//! let runtime = Arc::new(ThreadRuntime::new());
//! let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
//! let backend = FsBackend::create(runtime.clone(), path, options).await?;
//! let store = Datastore::create(Arc::new(backend), Options::default()).await?;
//!
//! let backup = store.backup(&"vm/100".parse()?).begin().await?; // invisible until it is finished
//! backup.image("disk.img", disk, size).await?;
//! backup.blob("vm.conf", "cores: 4").await?;
//! let snapshot = backup.finish().await?.snapshot; // the only way to publish
//!
//! let archive = snapshot.archive("disk.img.fidx").await?;
//! archive.copy_to(&mut FileTarget::create(runtime, restored).await?).await?;
//! # Ok(()) })
//! # }
//! ```
//!
//! # The main types
//! | type | purpose |
//! |---|---|
//! | [`open()`], [`OpenOptions`] | a store by its address: a directory, or `s3://BUCKET/STORE` |
//! | [`Datastore`] | an open store: listings, owners, notes, backups and restores |
//! | [`SnapshotWriter`](store::SnapshotWriter) | a backup in progress: streams, images, blobs, trees of files |
//! | [`SnapshotReader`](store::SnapshotReader) | a finished snapshot, with its archives as [`ArchiveReader`](store::ArchiveReader)s |
//! | [`Tree`](tree::Tree), [`DirectorySource`](tree::DirectorySource), [`DirectoryTarget`](tree::DirectoryTarget) | a tree of files in a snapshot, and directories to back up and to restore into |
//! | [`GcPlan`](gc::GcPlan), [`PrunePlan`](prune::PrunePlan), [`SyncPlan`](sync::SyncPlan), [`VerifyPlan`](verify::VerifyPlan) | maintenance: inspect the plan, execute it, read the report |
//! | [`Backend`](backend::Backend) | object storage: [`FsBackend`], [`MemoryBackend`](backend::MemoryBackend), `S3Backend`, `ObjectStoreBackend`, or your own |
//! | [`Runtime`](rt::Runtime) | the async runtime: threads, Tokio, smol, simulated, or your own |
//! | [`EncryptionKey`](crypt::EncryptionKey), [`KeyFile`](crypt::KeyFile) | keys for encrypted and signed backups; [`keys`] has them in files |
//! | [`Chunker`](chunker::Chunker) | division of streams into chunks |
//! | [`Error`] | a failure, with an [`ErrorKind`] that says how to react |
//!
//! [`format`](mod@format) has the stored bytes and names alone, without I/O; [`retention`] decides which snapshots to
//! keep, and [`prune`] removes the others. [`tree`] backs directory trees up, browses
//! and restores them; [`pxar`] has their archives alone, without I/O.
//! Whole programs are in the [cookbook](manual::cookbook): an agent, a directory as a tar stream, a nightly job, bitmaps, progress, signals, errors.
//! Guides to the format, locks, maintenance, [encryption](manual::encryption), runtimes, S3 and [backends of your own](manual::backend) are in the [`manual`], with a
//! [glossary](manual::glossary).
//!
//! Codes such as H17 or D4 in descriptions of modules are hazards and decisions of `docs/` in the repository.
//!
//! # Features
//! | feature | default | adds |
//! |---|---|---|
//! | `tokio` | yes | `rt::TokioRuntime` |
//! | `s3` | yes | the S3 client and [`backend`]`::S3Backend` |
//! | `tls` | yes | TLS for the S3 client, with cryptography by `ring` |
//! | `aws-lc-rs` | no | TLS for the S3 client, with cryptography by `aws-lc-rs`; it is the default if both are compiled in. Without `tls` no `ring` is in the dependency tree |
//! | `rustls-0_23` | no | `http::TlsOptions::client_config`, which takes a configuration of `rustls` 0.23 |
//! | `master-key` | no | `keys::MasterKey`: RSA keys that recover lost encryption keys, with cryptography by `aws-lc-rs` |
//! | `webpki-roots` | no | the root certificates of Mozilla, for `http::TlsOptions::root_store` |
//! | `object_store` | no | [`backend`]`::ObjectStoreBackend`, on any client of the crate `object_store` (Azure, Google Cloud Storage, …) |
//! | `smol` | no | `rt::SmolRuntime` |
//! | `serde` | no | `Serialize` for reports, plans, statistics, listings and events; see [observability](manual::observability) |
//! | `tracing` | no | spans and events of the crate `tracing` |
//! | `metrics` | no | counters, gauges and histograms of the facade crate `metrics` |
//! | `testing` | no | `rt::SimRuntime`, the conformance suite for backends, and [histories](manual) in which a seed decides everything (`simulation`); not covered by semver |
//!
//! Without default features no `tokio` is in the dependency tree, no TLS and no S3.
//!
//! # Cancel safety
//! Any future may be dropped at any time. The operation then happens completely or not at all: a snapshot is published as a whole
//! or never, an object is the old one or the new one. The next backup of the same group or the next garbage collection removes
//! invisible leftovers. Methods document details where they matter.
//!
//! # Stability
//! Stored bytes are those of PBS and do not change. The interface follows semantic versioning; error texts, the wording
//! of reports and log lines, and everything under `testing` are not part of it. Names of spans, fields and metrics are, as
//! [observability](manual::observability) lists them. Unix only; tested on Linux.

#![warn(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exhaustive_enums
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic"))]

#[macro_use]
mod mutation;

pub mod backend;
mod base64;
mod buffers;
mod calendar;
pub mod chunker;
mod chunks;
pub mod crypt;
mod digest_set;
pub mod error;
pub mod format;
pub mod gc;
mod holes;
#[cfg(feature = "s3")]
pub mod http;
#[doc(hidden)]
pub mod internal;
pub mod keys;
pub mod local;
mod locked_file;
pub mod manual;
mod observer;
mod open;
mod packs;
pub mod prune;
pub mod pxar;
mod rename;
pub mod retention;
pub mod rt;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "testing")]
pub mod simulation;
pub mod store;
pub mod sync;
#[cfg_attr(
    not(all(feature = "s3", feature = "tracing", feature = "metrics")),
    allow(dead_code, reason = "some events come from the S3 client alone, or have no listener")
)]
mod trace;
pub mod tree;
pub mod verify;
mod wire;
mod wording;

pub use backend::{FsBackend, FsOptions, PrefixDirectories};
pub use error::{Error, ErrorKind, Result};
pub use observer::Observer;
pub use open::{OpenOptions, StoreUrl, open};
pub use rt::ThreadRuntime;
pub use store::{Datastore, FileTarget, Options};

// Compiles the code in README.md.
#[cfg(all(doctest, feature = "s3"))]
#[doc = include_str!("../README.md")]
struct Readme;

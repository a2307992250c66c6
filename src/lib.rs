//! The store engine for deduplicating backups: it reads and writes the datastores of Proxmox Backup Server (PBS) byte for
//! byte, from any Rust program and on any async runtime.
//!
//! larder is a library. It has no server, no scheduler, no user interface and no configuration file; those belong to the
//! program that links it. It never exits the process, never panics on input, starts no runtime of its own and prints nothing.
//!
//! # An example
//! ```
//! use std::sync::Arc;
//!
//! use futures::io::Cursor;
//! use larder::backend::{FsBackend, FsOptions, PrefixDirectories};
//! use larder::rt::ThreadRuntime;
//! use larder::store::{Datastore, FileTarget, Options};
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
//! let backup = store.backup(&"vm/100".parse()?).begin().await?; // nobody sees it yet
//! backup.image("disk.img", disk, size).await?;
//! backup.blob("vm.conf", "cores: 4").await?;
//! let snapshot = backup.finish().await?; // the only way to publish
//!
//! let archive = snapshot.archive("disk.img.fidx").await?;
//! archive.copy_to(&mut FileTarget::create(runtime, restored).await?).await?;
//! # Ok(()) })
//! # }
//! ```
//!
//! # The main types
//! | type | what it is |
//! |---|---|
//! | [`Datastore`](store::Datastore) | an open store: listings, owners, notes, and the ways in and out |
//! | [`SnapshotWriter`](store::SnapshotWriter) | a backup while it is written: streams, images, blobs |
//! | [`SnapshotReader`](store::SnapshotReader) | a finished snapshot, with its archives as [`ArchiveReader`](store::ArchiveReader)s |
//! | [`GcPlan`](gc::GcPlan), [`PrunePlan`](prune::PrunePlan), [`SyncPlan`](sync::SyncPlan), [`VerifyPlan`](verify::VerifyPlan) | upkeep: what it would do or cost, to look at; executed, each leaves a report |
//! | [`Backend`](backend::Backend) | where objects are kept: [`FsBackend`](backend::FsBackend), [`MemoryBackend`](backend::MemoryBackend), or yours |
//! | [`Runtime`](rt::Runtime) | what it needs of an async runtime: threads, Tokio, smol, simulated, or yours |
//! | [`Chunker`](chunker::Chunker) | where streams are cut |
//! | [`Error`](error::Error) | what went wrong, and by its [`ErrorKind`](error::ErrorKind) what to do about it |
//!
//! [`format`](mod@format) has the bytes and names by themselves, without any input or output; [`retention`] says which snapshots to
//! keep, and [`prune`] removes the others. [`tree`] has the exclude patterns and the reports of backups and restores of directory
//! trees.
//! Guides to the format, locks, maintenance, runtimes and S3 are in the [`manual`], with a [glossary](manual::glossary).
//!
//! # Features
//! | feature | default | adds |
//! |---|---|---|
//! | `tokio` | yes | `rt::TokioRuntime` |
//! | `s3` | yes | the S3 client, [`backend`]`::S3Backend`, and what they stand on |
//! | `tls` | yes | TLS for the S3 client |
//! | `smol` | no | `rt::SmolRuntime` |
//! | `testing` | no | `rt::SimRuntime`, the conformance suite and the recording and fault-injecting backends; not covered by semver |
//!
//! Without default features no `tokio` is in the dependency tree, no TLS and no S3.
//!
//! # Cancel safety
//! Any future may be dropped at any time. What it had begun then happens entirely or not at all: a snapshot is published whole
//! or never, an object is the old one or the new one. What is left behind where nobody sees it is removed by the next backup
//! of the same group, or with the garbage. Each method says more where there is more to say.
//!
//! # Stability
//! Stored bytes are those of PBS and do not change. The interface follows semantic versioning; error texts, log output and
//! everything under `testing` are not part of it. Unix only; tested on Linux.

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

pub mod backend;
mod buffers;
pub mod chunker;
mod chunks;
mod digest_set;
pub mod error;
pub mod format;
pub mod gc;
#[cfg(feature = "s3")]
pub mod http;
pub mod local;
pub mod manual;
pub mod prune;
mod rename;
pub mod retention;
pub mod rt;
#[cfg(feature = "s3")]
pub mod s3;
pub mod store;
pub mod sync;
pub mod tree;
pub mod verify;
#[cfg(feature = "s3")]
pub mod wire;

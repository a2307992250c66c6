//! Stores by their addresses.
//!
//! # Opening a store in a bucket
//! | step | requests | left by an interruption |
//! |---|---|---|
//! | local state, if it is wanted | none | nothing: its lock ends with the process |
//! | result of the last probe: from local state, if it is of this bucket and not old | none | |
//! | otherwise probe, and keep the result in local state | about 33 | some objects below `.larder/`, which the next probe replaces |
//! | open, create, attach or destroy | see [`Datastore`] | see [`Datastore`] |
//!
//! If the last step fails, the lease is released.

#[cfg(feature = "s3")]
mod bucket;
mod url;

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "s3")]
use crate::backend::Ownership;
use crate::backend::{Backend, FsBackend, FsOptions, PrefixDirectories};
use crate::error::Result;
#[cfg(not(feature = "s3"))]
use crate::error::{Error, ErrorKind};
#[cfg(feature = "s3")]
use crate::http::HttpOptions;
use crate::local::{LocalOptions, LocalState};
#[cfg(feature = "s3")]
use crate::open::bucket::BucketOptions;
use crate::open::url::Place;
#[cfg(feature = "tokio")]
use crate::rt::TokioRuntime;
use crate::rt::{Runtime, ThreadRuntime};
#[cfg(feature = "s3")]
use crate::s3::{CredentialProvider, Risk, S3Options};
use crate::store::{Datastore, Destruction, Options};

pub use url::StoreUrl;

/// Opens the store at an [address](StoreUrl) with default [options](OpenOptions): a directory such as `/backup/store`, or
/// `s3://BUCKET/STORE?region=REGION&endpoint=URL`.
///
/// A program that opens a store in a bucket more than once keeps local state: [`OpenOptions::local_state`] saves most requests.
///
/// # Errors
/// As for [`OpenOptions::open`].
pub async fn open(url: &str) -> Result<Datastore> {
    OpenOptions::default().open(&url.parse()?).await
}

/// Options to open a store by its address.
///
/// ```no_run
/// # async fn open() -> larder::Result<()> {
/// use larder::OpenOptions;
/// use larder::local::LocalOptions;
///
/// let options = OpenOptions::default().local_state("/var/lib/agent/store", LocalOptions::default());
/// let store = options.open(&"s3://backups/host-1?region=eu-central-1".parse()?).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct OpenOptions {
    #[cfg(feature = "s3")]
    bucket: BucketOptions,
    directory: FsOptions,
    local: Option<(PathBuf, LocalOptions)>,
    runtime: Option<Arc<dyn Runtime>>,
    store: Options,
}

impl OpenOptions {
    /// The runtime; default: the Tokio runtime of the calling task with the feature `tokio`, and outside of Tokio a [`ThreadRuntime`] of
    /// its own.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Keeps local state in a directory, for this store alone; default: none. It holds copies and records that save requests,
    /// and the result of the probe of the server for a week. A process that opens the store with the local state of a dead one takes over its
    /// lease without waiting. One process, and one handle of it, at a time uses the directory: others are `Busy`. So a restore beside a running
    /// backup has a directory of its own, or none. The local state of another store is refused as `Conflict`.
    pub fn local_state(mut self, directory: impl Into<PathBuf>, options: LocalOptions) -> Self {
        self.local = Some((directory.into(), options));
        self
    }

    /// Options of the store; default: [`Options::default`]. [`local_state`](Self::local_state) replaces the local state in them.
    pub fn store(mut self, options: Options) -> Self {
        self.store = options;
        self
    }

    /// Options of a store in a directory; default: [`FsOptions::default`].
    pub fn directory(mut self, options: FsOptions) -> Self {
        self.directory = options;
        self
    }

    /// Source of credentials for a bucket; default: [`DefaultCredentials`](crate::s3::DefaultCredentials), the chain of the AWS SDKs.
    #[cfg(feature = "s3")]
    pub fn credentials(mut self, provider: Arc<dyn CredentialProvider>) -> Self {
        self.bucket.credentials = Some(provider);
        self
    }

    /// Options of the HTTP client for a bucket: TLS, proxy, plaintext; default: [`HttpOptions::default`] with the proxy of the environment.
    #[cfg(feature = "s3")]
    pub fn http(mut self, options: HttpOptions) -> Self {
        self.bucket.http = Some(options);
        self
    }

    /// Changes the options of the S3 client, such as timeouts, retries, rate limits and storage class; default: no change.
    #[cfg(feature = "s3")]
    pub fn s3(mut self, change: impl Fn(S3Options) -> S3Options + Send + Sync + 'static) -> Self {
        self.bucket.change = bucket::Change(Arc::new(change));
        self
    }

    /// The owner of a store in a bucket; default: [`Ownership::default`], with the instance of the local state.
    #[cfg(feature = "s3")]
    pub fn ownership(mut self, ownership: Ownership) -> Self {
        self.bucket.ownership = ownership;
        self
    }

    /// Accepts a risk of a bucket, which is otherwise an error. May be called for several.
    #[cfg(feature = "s3")]
    pub fn accept_risk(mut self, risk: Risk) -> Self {
        self.bucket.accepted.push(risk);
        self
    }

    /// Opens a store in a bucket without a probe of the server, for programs that only read: nothing is written, and credentials that
    /// may only read are enough. The server is then treated as one without conditional puts, even if it has them.
    #[cfg(feature = "s3")]
    pub fn no_probe(mut self) -> Self {
        self.bucket.is_probed = false;
        self
    }

    /// Opens a store, as [`Datastore::open`].
    ///
    /// # Errors
    /// As for [`Datastore::open`], including `NotFound` if there is no store. `InvalidInput` for an address or options that
    /// cannot be used; `Unsupported` for a bucket with a risk that is not accepted, or without the feature `s3`; `Busy` if the local state is in use; `Conflict` if it
    /// belongs to another store; `Denied` without credentials or rights; `Unavailable` if the server does not answer at all within 30 seconds.
    ///
    /// # Cancel safety
    /// A dropped future may leave objects of the probe, which the next one replaces.
    pub async fn open(&self, url: &StoreUrl) -> Result<Datastore> {
        self.with(url, Start::Existing, Datastore::open).await
    }

    /// Creates a store, as [`Datastore::create`], and opens it. There is no option to create a store that is missing: a mistyped address would make
    /// a new store, and the next backup would store everything again.
    ///
    /// # Errors
    /// As for [`Datastore::create`], including `AlreadyExists`, and as for [`open`](Self::open).
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing or an empty store.
    pub async fn create(&self, url: &StoreUrl) -> Result<Datastore> {
        self.with(url, Start::New, Datastore::create).await
    }

    /// Opens a store in order to change it, as [`Datastore::attach`].
    ///
    /// # Errors
    /// As for [`Datastore::attach`] and [`open`](Self::open).
    ///
    /// # Cancel safety
    /// As for [`open`](Self::open).
    pub async fn attach(&self, url: &StoreUrl) -> Result<Datastore> {
        self.with(url, Start::Existing, Datastore::attach).await
    }

    /// Deletes a whole store with its data, as [`Datastore::destroy`]. The directory of a store stays, and so does its local state.
    ///
    /// # Errors
    /// As for [`Datastore::destroy`] and [`open`](Self::open).
    pub async fn destroy(&self, url: &StoreUrl) -> Result<Destruction> {
        self.with(url, Start::Existing, |backend, _| Datastore::destroy(backend)).await
    }

    async fn with<T, F>(
        &self,
        url: &StoreUrl,
        start: Start,
        work: impl FnOnce(Arc<dyn Backend>, Options) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let done = self.at(url, start, work).await;
        done.map_err(|error| if error.subject().is_some() { error } else { error.on(url) })
    }

    async fn at<T, F>(
        &self,
        url: &StoreUrl,
        start: Start,
        work: impl FnOnce(Arc<dyn Backend>, Options) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let runtime = self.runtime.clone().unwrap_or_else(default_runtime);
        let mut options = self.store.clone();
        let mut local = None;
        if let Some((directory, of)) = &self.local {
            let state = LocalState::open(&runtime, directory, *of).await?;
            options = options.local_state(Arc::clone(&state));
            local = Some(state);
        }
        match &url.place {
            Place::Directory(path) => {
                let backend = match start {
                    Start::Existing => FsBackend::open(runtime, path, self.directory.clone()).await?,
                    Start::New => {
                        let mut directory = self.directory.clone();
                        if options.is_packed() {
                            // It has no chunks in files of their own.
                            directory = directory.prefix_directories(PrefixDirectories::OnDemand);
                        }
                        FsBackend::create(runtime, path, directory).await?
                    }
                };
                work(Arc::new(backend), options).await
            }
            #[cfg(feature = "s3")]
            Place::Bucket(place) => {
                let work = |backend| work(backend, options);
                self.bucket.with(place, &runtime, local.as_ref(), work).await
            }
            #[cfg(not(feature = "s3"))]
            Place::Bucket(place) => {
                drop(local);
                let error = Error::new(ErrorKind::Unsupported, "open the store").on(place);
                Err(error.because("this program was built without the feature `s3` of larder"))
            }
        }
    }
}

/// The state of the place that the operation expects.
#[derive(Clone, Copy, Debug)]
enum Start {
    Existing,
    New,
}

fn default_runtime() -> Arc<dyn Runtime> {
    #[cfg(feature = "tokio")]
    if let Ok(runtime) = TokioRuntime::current() {
        return Arc::new(runtime);
    }
    Arc::new(ThreadRuntime::new())
}

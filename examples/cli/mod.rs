//! What the command-line examples share: where the store is, how failures are told, progress, and tar streams.

#![allow(dead_code, reason = "no example uses all of it")]

#[cfg(feature = "tls")]
pub(crate) mod s3;
pub(crate) mod tar_stream;

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
#[cfg(feature = "tls")]
use larder::backend::S3Backend;
use larder::backend::{Backend, FsBackend, FsOptions, SyncLevel};
use larder::error::{Error, ErrorKind};
use larder::format::name::Namespace;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Event, Observer, Options};

/// Why a command ends early.
pub(crate) enum Failure {
    /// What was asked for makes no sense; nothing was changed.
    Input(String),
    /// It was tried and did not work.
    Work(String),
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// Input that makes no sense.
pub(crate) fn input(why: impl Display) -> Failure {
    Failure::Input(why.to_string())
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::AlreadyExists => Self::Input(text),
            _ => Self::Work(text),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Work(error.to_string())
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        input(error)
    }
}

/// Runs a command and turns what it answers into an exit status: 2 for bad input, 1 for failed work.
pub(crate) fn run(usage: &str, command: impl FnOnce(lexopt::Parser) -> Outcome<()>) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{usage}");
        return ExitCode::SUCCESS;
    }
    match command(lexopt::Parser::from_args(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Input(why)) => {
            eprintln!("{}", one_line(&why));
            ExitCode::from(2)
        }
        Err(Failure::Work(why)) => {
            eprintln!("{}", one_line(&why));
            ExitCode::FAILURE
        }
    }
}

/// The next argument: an option with its dashes, or a plain word.
pub(crate) fn next(parser: &mut lexopt::Parser) -> Outcome<Option<String>> {
    use lexopt::Arg;
    Ok(match parser.next()? {
        None => None,
        Some(Arg::Long(name)) => Some(format!("--{name}")),
        Some(Arg::Short(name)) => return Err(input(format!("-{name}: there is no such option"))),
        Some(Arg::Value(word)) => {
            Some(word.into_string().map_err(|word| input(format!("{} is not UTF-8", word.display())))?)
        }
    })
}

/// The value of the option before.
pub(crate) fn value(parser: &mut lexopt::Parser) -> Outcome<String> {
    let value = parser.value()?;
    value.into_string().map_err(|word| input(format!("{} is not UTF-8", word.display())))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where the store is and how it is opened. The one place that understands `--store`.
#[derive(Default)]
pub(crate) struct StoreArguments {
    create: bool,
    lock_directory: Option<PathBuf>,
    namespace: Namespace,
    #[cfg(feature = "tls")]
    s3: s3::S3Arguments,
    store: Option<String>,
    sync_level: SyncLevel,
}

pub(crate) const STORE_USAGE: &str = "\
  --store DIR          the datastore; s3://BUCKET/STORE for one in a bucket (see s3_check --help for its options)
  --ns A/B             the namespace; default: the root
  --sync-level LEVEL   none, file or filesystem; default: filesystem
  --lock-dir DIR       lock files of a PBS that uses the same store";

impl StoreArguments {
    /// Takes an option, with its value, if it is one about the store.
    pub(crate) fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--store" => self.store = Some(value(parser)?),
            "--ns" => {
                self.namespace = value(parser)?.parse().map_err(|error| input(format!("--ns: {error}")))?;
            }
            "--lock-dir" => self.lock_directory = Some(value(parser)?.into()),
            "--sync-level" => {
                self.sync_level = match value(parser)?.as_str() {
                    "none" => SyncLevel::None,
                    "file" => SyncLevel::File,
                    "filesystem" => SyncLevel::Filesystem,
                    other => {
                        return Err(input(format!(
                            "--sync-level: {other:?} is not none, file or filesystem"
                        )));
                    }
                }
            }
            #[cfg(feature = "tls")]
            _ => return self.s3.take(option, parser),
            #[cfg(not(feature = "tls"))]
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes the store when it is opened, if there is none.
    pub(crate) fn or_create(&mut self) {
        self.create = true;
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Opens the store, or makes it if that was asked for and there is none.
    pub(crate) async fn open(&self, runtime: &Arc<dyn Runtime>) -> Outcome<Datastore> {
        let place = self.store.clone().ok_or_else(|| input("--store is missing"))?;
        match place.split_once("://") {
            None => self.open_directory(&place, runtime).await,
            #[cfg(feature = "tls")]
            Some(("s3", address)) => self.open_bucket(address, runtime).await,
            Some((scheme, _)) => Err(input(format!("--store: {scheme}:// is not supported"))),
        }
    }

    /// Opens a store in a bucket, after it was found out what the server can do.
    #[cfg(feature = "tls")]
    async fn open_bucket(&self, address: &str, runtime: &Arc<dyn Runtime>) -> Outcome<Datastore> {
        let (arguments, name) = self.s3.at(address)?;
        let client = arguments.client(runtime)?;
        let found = client.probe(&format!("{name}/")).await?;
        let backend: Arc<dyn Backend> =
            Arc::new(S3Backend::new(Arc::clone(runtime), client, &name, found, &[])?);
        match Datastore::open(Arc::clone(&backend), Options::default()).await {
            Err(error) if error.kind() == ErrorKind::NotFound && self.create => {
                Ok(Datastore::create(backend, Options::default()).await?)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(input(format!("there is no datastore at s3://{address}")))
            }
            opened => Ok(opened?),
        }
    }

    async fn open_directory(&self, place: &str, runtime: &Arc<dyn Runtime>) -> Outcome<Datastore> {
        let mut options = FsOptions::default().sync_level(self.sync_level);
        if let Some(directory) = &self.lock_directory {
            options = options.lock_directory(directory);
        }
        let opened = FsBackend::open(Arc::clone(runtime), place, options.clone()).await;
        let (backend, made) = match opened {
            Err(error) if error.kind() == ErrorKind::NotFound && self.create => {
                (FsBackend::create(Arc::clone(runtime), place, options).await?, true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(input(format!("there is no datastore in {place}")));
            }
            opened => (opened?, false),
        };
        let backend: Arc<dyn Backend> = Arc::new(backend);
        Ok(if made {
            Datastore::create(backend, Options::default()).await?
        } else {
            Datastore::open(backend, Options::default()).await?
        })
    }
}

pub(crate) fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

/// A progress bar on standard error, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(crate) fn new(wanted: bool) -> Arc<Self> {
        let style = ProgressStyle::with_template("{msg:20} {bytes:>12} {bytes_per_sec:>14} {elapsed}");
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Arc::new(Self(bar))
    }
}

impl Observer for Progress {
    fn on_event(&self, event: &Event<'_>) {
        let Some(bar) = &self.0 else { return };
        match event {
            Event::ArchiveStarted { archive, size } => {
                bar.reset();
                bar.set_message(archive.to_string());
                bar.set_length(size.unwrap_or_default());
            }
            Event::ChunkKnown { size, .. }
            | Event::ChunkRestored { size, .. }
            | Event::ChunkReused { size, .. }
            | Event::ChunkStored { size, .. } => bar.inc(*size),
            Event::ArchiveFinished { .. } => bar.finish(),
            _ => {}
        }
    }
}

//! Shared parts of the command-line examples: the location of the store, error messages, progress, and tar streams.

#![allow(dead_code, reason = "no example uses all of it")]

#[macro_use]
pub(crate) mod streams;

pub(crate) mod pipes;

pub(crate) mod findings;
pub(crate) mod keys;
#[cfg(feature = "tls")]
pub(crate) mod s3;
pub(crate) mod signals;
pub(crate) mod source;
pub(crate) mod tar_stream;
pub(crate) mod tree_backup;
pub(crate) mod tree_restore;
pub(crate) mod trees;

use std::fmt::{self, Display};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use larder::Observer;
#[cfg(feature = "tls")]
use larder::backend::S3Backend;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::error::{Error, ErrorKind};
use larder::format::layout::Key;
use larder::format::name::{GroupName, Namespace, SnapshotName};
#[cfg(feature = "tls")]
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, ThreadRuntime};
#[cfg(feature = "tls")]
use larder::s3::S3Capabilities;
use larder::store::{ArchiveEvent, Datastore, Options, PackOptions};
use nix::unistd::{Group, User};
use serde_json::{Value, json};

/// Why a command ends early.
pub(crate) enum Failure {
    /// It was done, except for parts that are named already.
    Incomplete,
    /// Invalid arguments; nothing was changed.
    Input(String),
    /// An error of the library.
    Library(ErrorKind, String),
    /// It was tried and did not work.
    Work(String),
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// Input that makes no sense.
pub(crate) fn input(why: impl Display) -> Failure {
    Failure::Input(why.to_string())
}

/// An error with its causes.
pub(crate) fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Refusals of the library that an option of the examples lifts, by a part of their text.
const LIFTED_BY: [(&str, &str); 5] = [
    ("and none was given", "--passphrase-env names a variable with it"),
    ("set `Ownership::take_over`", "--take-over takes it over"),
    ("set `Ownership::reuse`", "--reuse uses it again"),
    ("its locks do not reach them", "--only-process says that there are none"),
    ("unless plaintext is allowed", "--allow-plaintext allows it"),
];

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut text = told(&error);
        if let Some((_, option)) = LIFTED_BY.iter().find(|(part, _)| text.contains(part)) {
            text = format!("{text}; {option}");
        }
        let is_of_store = error.subject().is_some_and(|subject| subject.parse::<Key>().is_ok());
        if error.kind() == ErrorKind::Full && is_of_store {
            text += "; `maintain gc` makes room: it removes chunks that no snapshot needs a day after their last use, \
                or at once with --grace 0 --confirm";
        }
        Self::Library(error.kind(), text)
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

/// The object for programs about a failure. `kind` is the word of the library for its error, if it is one of the library.
pub(crate) fn error_json(kind: Option<ErrorKind>, message: &str, status: u8) -> Value {
    json!({ "kind": kind.map(ErrorKind::as_str), "message": message, "status": status })
}

/// Runs a command and turns what it answers into an exit status: 2 for bad input, 1 for failed work and for output that could not
/// be written, 130 or 143 if a signal ended it. The message goes to standard error; with `--json`, an object about it goes to standard
/// output too, unless the command has written one.
pub(crate) fn run(usage: &str, command: impl FnOnce(lexopt::Parser) -> Outcome<()>) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let is_json = arguments.iter().any(|argument| argument == "--json");
    let done = if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{usage}");
        Ok(())
    } else {
        let watching = signals::watch().map_err(Failure::from);
        watching.and_then(|()| command(lexopt::Parser::from_args(arguments)))
    };
    let (mut status, kind, why) = match done {
        Ok(()) => (0, None, None),
        Err(Failure::Incomplete) => (1, None, None),
        Err(Failure::Input(why)) => (2, Some(ErrorKind::InvalidInput), Some(why)),
        Err(Failure::Library(kind, why)) => (status_of(kind), Some(kind), Some(why)),
        Err(Failure::Work(why)) => (1, None, Some(why)),
    };
    if let Some(signal) = signals::caught().filter(|_| status != 0) {
        status = signals::status(signal);
    }
    if let Some(why) = why {
        let why = one_line(&why);
        if is_json && !streams::is_used() {
            println!("{}", json!({ "error": error_json(kind, &why, status) }));
        }
        eprintln!("{why}");
    }
    if let Some(error) = streams::end() {
        eprintln!("standard output: {error}");
        status = if status == 0 { 1 } else { status };
    }
    ExitCode::from(status)
}

/// 2 for what is up to the caller, 1 for the rest.
fn status_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::AlreadyExists
        | ErrorKind::InvalidInput
        | ErrorKind::KeyRequired
        | ErrorKind::NotFound
        | ErrorKind::WrongKey => 2,
        _ => 1,
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

/// A snapshot that an argument names.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// The newest finished one of a group, named TYPE/ID/latest.
    Latest(GroupName),
    Snapshot(SnapshotName),
}

impl Wanted {
    pub(crate) fn in_namespace(self, namespace: &Namespace) -> Self {
        match self {
            Self::Latest(group) => Self::Latest(group.in_namespace(namespace.clone())),
            Self::Snapshot(snapshot) => {
                let group = snapshot.group().clone().in_namespace(namespace.clone());
                Self::Snapshot(group.snapshot(snapshot.time()))
            }
        }
    }

    pub(crate) fn group(&self) -> &GroupName {
        match self {
            Self::Latest(group) => group,
            Self::Snapshot(snapshot) => snapshot.group(),
        }
    }

    /// The name, once the store is open.
    pub(crate) async fn name(&self, store: &Datastore) -> Outcome<SnapshotName> {
        match self {
            Self::Latest(group) => {
                store.latest(group).await?.ok_or_else(|| input(format!("{group} has no finished snapshot")))
            }
            Self::Snapshot(snapshot) => Ok(snapshot.clone()),
        }
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix("/latest") {
            Some(group) => group.parse().map(Self::Latest),
            None => text.parse().map(Self::Snapshot),
        }
        .map_err(|error| format!("{error}; TYPE/ID/latest is the newest"))
    }
}

impl Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest(group) => write!(f, "{group}/latest"),
            Self::Snapshot(snapshot) => write!(f, "{snapshot}"),
        }
    }
}

/// The value of the option before, as something else than text.
pub(crate) fn parsed<T: FromStr<Err: Display>>(option: &str, parser: &mut lexopt::Parser) -> Outcome<T> {
    let text = value(parser)?;
    text.parse().map_err(|error| input(format!("{option} {text}: {error}")))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A user and a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) gid: u32,
    pub(crate) uid: u32,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let number = |name: &str| name.parse::<u32>().ok();
        let found = match number(user) {
            Some(uid) => User::from_uid(uid.into()),
            None => User::from_name(user),
        };
        let found = found.map_err(|error| error.to_string())?;
        let uid = number(user).or(found.as_ref().map(|found| found.uid.as_raw()));
        let uid = uid.ok_or_else(|| format!("there is no user {user} on this host"))?;
        let gid = match group {
            None => found.map(|found| found.gid.as_raw()),
            Some(group) => match number(group) {
                Some(gid) => Some(gid),
                None => Group::from_name(group)
                    .map_err(|error| error.to_string())?
                    .map(|found| found.gid.as_raw()),
            },
        };
        let gid = gid.ok_or_else(|| match group {
            None => format!("the group of user {user} is not known; USER:GROUP names one"),
            Some(group) => format!("there is no group {group} on this host"),
        })?;
        Ok(Self { gid, uid })
    }
}

/// Access that a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read. In a bucket nothing is written then, not even to find out what the server can do.
    Read,
    /// Change something.
    Write,
}

/// A store that is open.
pub(crate) struct Opened {
    #[cfg(feature = "tls")]
    client: Option<larder::s3::S3Client>,
    pub(crate) store: Datastore,
}

impl Opened {
    /// Gives back what is held, and says what was asked of a server, if there is one.
    pub(crate) async fn close(self) -> Outcome<Option<Value>> {
        #[cfg(feature = "tls")]
        let of_packs = self.store.pack_requests();
        self.store.close().await?;
        #[cfg(feature = "tls")]
        return Ok(self.client.map(|client| {
            let mut requests = s3::requests(&client.stats());
            if let Some(of_packs) = of_packs {
                requests["of_packs"] = json!({
                    "lists": of_packs.lists,
                    "pack_deletes": of_packs.pack_deletes,
                    "pack_gets": of_packs.pack_gets,
                    "pack_puts": of_packs.pack_puts,
                    "segment_deletes": of_packs.segment_deletes,
                    "segment_gets": of_packs.segment_gets,
                    "segment_puts": of_packs.segment_puts,
                });
            }
            requests
        }));
        #[cfg(not(feature = "tls"))]
        Ok(None)
    }
}

/// One line about the requests that were made, for people.
pub(crate) fn tell_requests(requests: Option<&Value>) {
    let Some(counts) = requests.and_then(Value::as_object) else { return };
    let line = |counts: &serde_json::Map<String, Value>| {
        let numbers = counts.iter().filter(|(_, count)| count.is_number());
        let parts: Vec<_> =
            numbers.map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
        parts.join(", ")
    };
    eprintln!("requests: {}", line(counts));
    if let Some(of_packs) = counts.get("of_packs").and_then(Value::as_object) {
        eprintln!("among them, for packs and segments: {}", line(of_packs));
    }
}

/// `--create` and `--packed`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Creation {
    is_wanted: bool,
    packs: Option<PackOptions>,
}

impl Creation {
    /// Takes an option if it is one about the creation of the store.
    pub(crate) fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--create" => self.is_wanted = true,
            "--packed" => {
                let mut packs = PackOptions::default();
                if let Some(text) = parser.optional_value() {
                    let mebibytes = text.to_str().and_then(|text| text.parse().ok());
                    let mebibytes = mebibytes.filter(|mebibytes| (8..=128).contains(mebibytes));
                    let wrong = || input(format!("--packed={}: 8 to 128 MiB are wanted", text.display()));
                    packs = packs.target_mebibytes(mebibytes.ok_or_else(wrong)?);
                }
                self.packs = Some(packs);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Refuses `--packed` alone.
    pub(crate) fn check(self) -> Outcome<()> {
        if self.packs.is_some() && !self.is_wanted {
            return Err(input("--packed is the form of a new store: it needs --create"));
        }
        Ok(())
    }
}

/// Where the store is and how it is opened. The one place that understands `--store`.
#[derive(Default)]
pub(crate) struct StoreArguments {
    pub(crate) cache: Option<PathBuf>,
    creation: Creation,
    lock_directory: Option<PathBuf>,
    namespace: Namespace,
    #[cfg(feature = "tls")]
    s3: s3::S3Arguments,
    store: Option<String>,
    store_owner: Option<Owner>,
    sync_level: SyncLevel,
}

pub(crate) const JSON_USAGE: &str = "  --json               one JSON object on standard output; of a failure, it has error with kind, message and status, unless the
                       report itself names what failed";

pub(crate) const CREATE_USAGE: &str = "  --create             make the store if there is none
  --packed[=MIB]       with --create: make a packed store, with many chunks in one object of so many MiB; default: 32. PBS cannot read it";

pub(crate) const STORE_USAGE: &str = "  --store DIR          the datastore; s3://BUCKET/STORE for one in a bucket (see s3_check --help for its options)
  --cache DIR          a directory for copies of what is in a bucket; without it, there are more requests
  --take-over          use a bucket that another host or a PBS marked as its own
  --reuse              use a bucket that has data and belongs to nobody
  --host NAME          the name in the mark of a bucket; default: larder
  --ns A/B             the namespace; default: the root
  --sync-level LEVEL   none, file or filesystem; default: filesystem
  --lock-dir DIR       lock files of a PBS that uses the same store
  --store-owner USER[:GROUP]
                       whom new files of a store in a directory belong to; a PBS wants backup. Default: whom the store belongs to";

impl StoreArguments {
    /// Takes an option, with its value, if it is one about the store.
    pub(crate) fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--store" => self.store = Some(value(parser)?),
            "--ns" => {
                self.namespace = value(parser)?.parse().map_err(|error| input(format!("--ns: {error}")))?;
            }
            "--cache" => self.cache = Some(value(parser)?.into()),
            "--store-owner" => self.store_owner = Some(parsed(option, parser)?),
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

    /// Makes the store when it is opened, if there is none and `--create` was given.
    pub(crate) fn or_create(&mut self, creation: Creation) {
        self.creation = creation;
    }

    /// Options of a store that is made.
    fn form(&self, options: Options) -> Options {
        self.creation.packs.into_iter().fold(options, Options::packed)
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn place(&self) -> Option<&str> {
        self.store.as_deref()
    }

    /// Uses the server of another store, unless one is given.
    #[cfg(feature = "tls")]
    pub(crate) fn same_server(&mut self, other: &Self) {
        self.s3.same_server(&other.s3);
    }

    /// Opens the store, works on it, and closes it whatever became of the work. Returns what was asked of a server too.
    pub(crate) async fn with<T>(
        &self,
        runtime: &Arc<dyn Runtime>,
        access: Access,
        work: impl AsyncFnOnce(Datastore) -> Outcome<T>,
    ) -> Outcome<(T, Option<Value>)> {
        let opened = self.open(runtime, access).await?;
        let done = work(opened.store.clone()).await;
        // Also after a failure, so that other processes need not wait until the lease expires.
        let requests = opened.close().await;
        Ok((done?, requests?))
    }

    /// Opens the store, or makes it if that was asked for and there is none.
    pub(crate) async fn open(&self, runtime: &Arc<dyn Runtime>, access: Access) -> Outcome<Opened> {
        #[cfg(not(feature = "tls"))]
        let _ = access;
        let place = self.store.clone().ok_or_else(|| input("--store is missing"))?;
        signals::hold()?;
        match place.split_once("://") {
            None => Ok(Opened {
                #[cfg(feature = "tls")]
                client: None,
                store: self.open_directory(&place, runtime).await?,
            }),
            #[cfg(feature = "tls")]
            Some(("s3", address)) => self.open_bucket(address, runtime, access).await,
            Some((scheme, _)) => Err(input(format!("--store: {scheme}:// is not supported"))),
        }
    }

    /// Opens a store in a bucket. A command that changes it probes the server first, or uses the cached result.
    #[cfg(feature = "tls")]
    async fn open_bucket(
        &self,
        address: &str,
        runtime: &Arc<dyn Runtime>,
        access: Access,
    ) -> Outcome<Opened> {
        let (arguments, name) = self.s3.at(address)?;
        let client = arguments.client(runtime)?;
        let mut ownership = arguments.ownership.clone();
        let mut options = Options::default();
        if let Some(directory) = &self.cache {
            let local = LocalState::open(runtime, directory, LocalOptions::default()).await?;
            ownership = ownership.instance(local.instance());
            options = options.local_state(local);
        }
        let first_contact = arguments.first_contact(&client, runtime)?;
        let found = match access {
            Access::Read => S3Capabilities::default(),
            Access::Write => {
                let found = arguments.capabilities(&client, &name, self.cache.as_deref());
                first_contact.within(found).await?
            }
        };
        let accepted = arguments.accepted(&found)?;
        let backend = S3Backend::new(Arc::clone(runtime), client.clone(), &name, found, accepted)?;
        let backend: Arc<dyn Backend> = Arc::new(backend.ownership(ownership));
        match first_contact.within(self.open_or_create(&backend, options, access)).await {
            Ok(store) => Ok(Opened { client: Some(client), store }),
            Err(failure) => {
                // Nobody else need wait until the lease expires.
                backend.close().await?;
                Err(failure)
            }
        }
    }

    #[cfg(feature = "tls")]
    async fn open_or_create(
        &self,
        backend: &Arc<dyn Backend>,
        options: Options,
        access: Access,
    ) -> Outcome<Datastore> {
        match Datastore::open(Arc::clone(backend), options.clone()).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            Ok(store) => Ok(store),
            Err(_) if self.creation.is_wanted && access == Access::Write => {
                Ok(Datastore::create(Arc::clone(backend), self.form(options)).await?)
            }
            Err(_) => {
                let why = "there is no datastore at this address".to_owned();
                Err(Failure::Library(ErrorKind::NotFound, why))
            }
        }
    }

    async fn open_directory(&self, place: &str, runtime: &Arc<dyn Runtime>) -> Outcome<Datastore> {
        let mut options = FsOptions::default().sync_level(self.sync_level);
        if let Some(directory) = &self.lock_directory {
            options = options.lock_directory(directory);
        }
        if let Some(Owner { gid, uid }) = self.store_owner {
            options = options.owner(uid, gid);
        }
        let opened = FsBackend::open(Arc::clone(runtime), place, options.clone()).await;
        let (backend, made) = match opened {
            Err(error) if error.kind() == ErrorKind::NotFound && self.creation.is_wanted => {
                if self.creation.packs.is_some() {
                    // It will have no chunks in files of their own.
                    options = options.prefix_directories(PrefixDirectories::OnDemand);
                }
                (FsBackend::create(Arc::clone(runtime), place, options).await?, true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let why = format!("there is no datastore in {place}");
                return Err(Failure::Library(ErrorKind::NotFound, why));
            }
            opened => (opened?, false),
        };
        let backend: Arc<dyn Backend> = Arc::new(backend);
        Ok(if made {
            Datastore::create(backend, self.form(Options::default())).await?
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

impl Observer<ArchiveEvent> for Progress {
    fn on_event(&self, event: &ArchiveEvent) {
        let Some(bar) = &self.0 else { return };
        match event {
            ArchiveEvent::ArchiveStarted { archive, size } => {
                bar.reset();
                bar.set_message(archive.to_string());
                bar.set_length(size.unwrap_or_default());
            }
            ArchiveEvent::ChunkKnown { size, .. }
            | ArchiveEvent::ChunkRestored { size, .. }
            | ArchiveEvent::ChunkReused { size, .. }
            | ArchiveEvent::ChunkStored { size, .. } => bar.inc(*size),
            ArchiveEvent::ArchiveFinished { .. } => bar.finish(),
            _ => {}
        }
    }
}

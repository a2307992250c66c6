//! The server in a process of its own, and stores on it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder::backend::{Backend, Ownership, S3Backend};
use larder::error::ErrorKind;
use larder::http::{HttpClient, HttpOptions};
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Credentials, S3Capabilities, S3Client, S3Options, StaticCredentials, Support};
use larder::store::{Datastore, Options, PackOptions};

use crate::Outcome;

/// How long an answer takes to come.
pub(crate) const DELAY: Duration = Duration::from_millis(30);
/// Bytes a second in each direction.
pub(crate) const RATE: u64 = 60_000_000;
/// How often the lease of a store is renewed.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// The name of the store.
pub(crate) const STORE: &str = "store";

/// A server that is running. It ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    endpoint: String,
    found: S3Capabilities,
    /// None once it is to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one that is near still, and finds out what it can do.
    pub(crate) async fn start() -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("server").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("no output")?);
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let port = line.trim().strip_prefix("ready ").ok_or("the server did not start")?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let found = S3Capabilities::default();
        let mut server = Self { child, endpoint, found, input, output };
        server.found = client(&server.endpoint)?.1.probe(&format!("{STORE}/")).await?;
        let found = &server.found;
        let objects = [found.ranges, found.listing, found.copy, found.create_only_put, found.conditional_put];
        let others = [found.multi_delete, found.conditional_delete, found.checks_bodies];
        let is_whole = objects.iter().chain(&others).all(|support| *support == Support::Yes);
        if !is_whole || !server.found.risks().is_empty() {
            return Err(format!("the server lacks something: {:?}", server.found).into());
        }
        Ok(server)
    }

    fn tell(&mut self, command: &str) -> Outcome<String> {
        writeln!(self.input.as_mut().ok_or("the server has ended")?, "{command}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    /// From here on it is as far away as it is to be.
    pub(crate) fn go_away(&mut self) -> Outcome<()> {
        self.tell(&format!("delay {}", DELAY.as_millis()))?;
        self.tell(&format!("rate {RATE}")).map(drop)
    }

    /// From here on its answers are late; the link has no limit.
    pub(crate) fn be_slow(&mut self) -> Outcome<()> {
        self.tell(&format!("delay {}", DELAY.as_millis())).map(drop)
    }

    /// Gives the store so many chunks.
    pub(crate) fn fill(&mut self, count: u64) -> Outcome<()> {
        self.tell(&format!("fill {STORE} {count}")).map(drop)
    }

    /// What was asked of it since this was called last.
    pub(crate) fn requests(&mut self) -> Outcome<Requests> {
        Ok(Requests(serde_json::from_str(&self.tell("requests")?)?))
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn found(&self) -> &S3Capabilities {
        &self.found
    }

    /// The store, or another of that name, for a process that begins.
    pub(crate) fn backend(&self, store: &str) -> Outcome<Arc<dyn Backend>> {
        backend(&self.endpoint, &self.found, store, Ownership::default())
    }

    /// A process that begins, with local state if a directory is given.
    pub(crate) async fn process(&self, directory: Option<&Path>) -> Outcome<Process> {
        Process::begin(&self.endpoint, &self.found, directory).await
    }

    /// As [`process`](Self::process), with a store of this form.
    pub(crate) async fn form(&self, form: Form, directory: Option<&Path>) -> Outcome<Process> {
        Process::begin_with(&self.endpoint, &self.found, directory, form).await
    }

    /// Gives the store so many packs of this size, named by the session and numbers.
    pub(crate) fn fill_packs(&mut self, paths: &[String], bytes: usize) -> Outcome<()> {
        for path in paths {
            self.tell(&format!("pack {STORE}/{path} {bytes}"))?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// How many requests there were, by method and kind of object.
#[derive(Debug)]
pub(crate) struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// All but renewals of the lease.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum::<u64>() - self.heartbeats()
    }

    pub(crate) fn heartbeats(&self) -> u64 {
        self.of("PUT lease")
    }

    pub(crate) fn of(&self, class: &str) -> u64 {
        self.0.get(class).copied().unwrap_or_default()
    }

    /// Those about chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.0.iter().filter(|(class, _)| class.ends_with(" chunk")).map(|(_, count)| count).sum()
    }

    pub(crate) fn text(&self) -> String {
        let texts: Vec<_> = self.0.iter().map(|(class, count)| format!("{count} {class}")).collect();
        texts.join(", ")
    }
}

/// How many renewals of the lease there may be in this time.
pub(crate) fn heartbeats_in(time: Duration) -> u64 {
    time.as_secs() / HEARTBEAT.as_secs() + 1
}

/// Form of a new store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Loose,
    Packed,
}

impl Form {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loose => "loose",
            Self::Packed => "packed",
        }
    }
}

/// What a process has that has opened a store.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) store: Datastore,
}

impl Process {
    /// Opens the store, or makes it if it is absent.
    pub(crate) async fn begin(
        endpoint: &str,
        found: &S3Capabilities,
        directory: Option<&Path>,
    ) -> Outcome<Self> {
        Self::begin_with(endpoint, found, directory, Form::Loose).await
    }

    async fn begin_with(
        endpoint: &str,
        found: &S3Capabilities,
        directory: Option<&Path>,
        form: Form,
    ) -> Outcome<Self> {
        let (mut options, mut ownership) = (Options::default(), Ownership::default());
        if form == Form::Packed {
            options = options.packed(PackOptions::default());
        }
        if let Some(directory) = directory {
            let runtime = runtime();
            let state = LocalState::open(&runtime, directory, LocalOptions::default()).await?;
            ownership = ownership.instance(state.instance());
            // As little memory as local state allows.
            options = options.local_state(state).index_bytes(8 << 20);
        }
        let backend = backend(endpoint, found, STORE, ownership)?;
        let store = match Datastore::open(Arc::clone(&backend), options.clone()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Datastore::create(backend, options).await?,
            opened => opened?,
        };
        Ok(Self { store })
    }

    /// Takes the lease of the store, which belongs to the opening.
    pub(crate) async fn take_lease(&self) -> Outcome<()> {
        let backup = self.store.backup(&"vm/9".parse()?).begin().await?;
        Ok(backup.abort().await?)
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        Ok(self.store.close().await?)
    }
}

pub(crate) fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

fn client(endpoint: &str) -> Outcome<(Arc<dyn Runtime>, S3Client)> {
    let runtime = runtime();
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), HttpOptions::default())?);
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    let options = S3Options::new(endpoint, "bucket").credentials(credentials);
    let client = S3Client::new(Arc::clone(&runtime), http, options)?;
    Ok((runtime, client))
}

fn backend(
    endpoint: &str,
    found: &S3Capabilities,
    store: &str,
    ownership: Ownership,
) -> Outcome<Arc<dyn Backend>> {
    let (runtime, client) = client(endpoint)?;
    let backend = S3Backend::new(runtime, client, store, found.clone(), &[])?;
    Ok(Arc::new(backend.ownership(ownership)))
}

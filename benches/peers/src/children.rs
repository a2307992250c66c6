//! The other processes: servers and measurements, all of them this program again.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use crate::measure::{Measured, Order, Task};
use crate::peers::{Outcome, Peer};

/// How the way to the server is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Link {
    pub(crate) delay: Duration,
    /// Bytes a second in each direction; 0: as fast as it goes.
    pub(crate) rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scheme {
    Plain,
    Tls,
}

impl Scheme {
    pub(crate) const ALL: [Self; 2] = [Self::Plain, Self::Tls];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
        }
    }
}

/// A running server. It ends with this value.
pub(crate) struct Server {
    ca: Option<PathBuf>,
    child: Child,
    endpoint: String,
    input: Option<ChildStdin>,
    said: Option<JoinHandle<Vec<String>>>,
}

impl Server {
    /// Starts one. The root certificate of TLS goes into `directory`.
    pub(crate) fn start(scheme: Scheme, link: Link, directory: &Path) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["server", "--rate", &link.rate.to_string()]);
        command.args(["--delay-ms", &link.delay.as_millis().to_string()]);
        let ca = (scheme == Scheme::Tls).then(|| directory.join("root.pem"));
        if let Some(ca) = &ca {
            command.arg("--tls").arg(ca);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("no output")?);
        let mut output = BufReader::new(output);
        let mut first = String::new();
        output.read_line(&mut first)?;
        let port = first.trim().strip_prefix("ready ").ok_or("the server did not start")?;
        let protocol = if scheme == Scheme::Tls { "https" } else { "http" };
        let endpoint = format!("{protocol}://127.0.0.1:{port}");
        let said = std::thread::spawn(move || output.lines().map_while(Result::ok).collect());
        Ok(Self { ca, child, endpoint, input, said: Some(said) })
    }

    /// Measures against this server.
    pub(crate) fn measure(&self, peer: Peer, task: Task) -> Outcome<Measured> {
        let ca = self.ca.as_ref().map(|ca| ca.display().to_string());
        let order = Order { ca, endpoint: self.endpoint.clone(), peer, task };
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("measure").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().ok_or("no input")?;
        input.write_all(&serde_json::to_vec(&order)?)?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{} failed", peer.name()).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Ends it. What it said of how the clients send.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.end();
        self.said.take().and_then(|said| said.join().ok()).unwrap_or_default()
    }

    fn end(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

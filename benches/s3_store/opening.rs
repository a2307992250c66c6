//! Opening a store of very many chunks, by a process that begins.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use larder::s3::S3Capabilities;

use crate::data::{back_up, stored};
use crate::far::{Process, Server};
use crate::random::random;
use crate::report::{Report, Target};
use crate::server::bucket::filler;
use crate::{Outcome, Plan};

/// How many chunks the store has beside those that are backed up.
const COUNT: u64 = 1_000_000;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(1);
/// How much more memory it may take.
const LIMIT_MIB: f64 = 150.0;
/// What is backed up to see whether the records count.
const CHUNK: usize = 64 << 10;
const BYTES: usize = 16 * CHUNK;

pub(crate) fn run(_: &Plan, report: &mut Report) -> Outcome<()> {
    let scratch = tempfile::tempdir()?;
    let local = scratch.path().join("local");
    let mut server = block_on(Server::start())?;
    let chunks = stored(&data(), CHUNK)?;
    block_on(async {
        let first = server.process(Some(&local)).await?;
        back_up(&first.store, &data(), CHUNK, None).await?;
        first.end().await
    })?;
    server.fill(COUNT)?;
    let ours = chunks.iter().map(|(digest, _)| *digest);
    let length = u32::try_from(chunks[0].1.len())?;
    crate::records::replace(&local, (0..COUNT).map(filler).chain(ours), length)?;
    server.go_away()?;
    let found = scratch.path().join("server.json");
    fs::write(&found, server.found().to_json())?;
    for (what, local) in [("records of all", Some(&local)), ("no local state", None)] {
        let (opened, begun, done) = child_run(&mut server, &found, local)?;
        let name = format!("a million chunks, {what}");
        let limit = Target::Below(LIMIT.as_secs_f64());
        report.add(&format!("{name}: until it is open"), opened.as_secs_f64(), "s", limit);
        report.add(&format!("{name}: until a backup can begin"), begun.as_secs_f64(), "s", limit);
        *report.add(&format!("{name}: memory"), done.mib, "MiB", Target::Below(LIMIT_MIB)) = done.requests;
        if local.is_some() {
            report.count(&format!("{name}: about chunks"), done.chunks, Some(0));
        }
    }
    Ok(())
}

fn data() -> Vec<u8> {
    random(5 << 20, BYTES)
}

/// What a child did after it began a backup.
pub(crate) struct Done {
    /// Requests about chunks.
    chunks: u64,
    pub(crate) mib: f64,
    pub(crate) requests: String,
}

/// Has another process open the store and back up what is there already.
pub(crate) fn child_run(
    server: &mut Server,
    found: &Path,
    local: Option<&PathBuf>,
) -> Outcome<(Duration, Duration, Done)> {
    server.requests()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("open").arg(server.endpoint()).arg(found).args(local);
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    let mut next = |wanted: &str| {
        line.clear();
        output.read_line(&mut line)?;
        let value = line.trim().strip_prefix(wanted).ok_or("the process that opens the store failed")?;
        Outcome::Ok((start.elapsed(), value.trim().to_owned()))
    };
    let (opened, _) = next("opened")?;
    let (begun, _) = next("begun")?;
    let (_, mib) = next("grew by")?;
    child.wait()?;
    let requests = server.requests()?;
    let done = Done { chunks: requests.chunks(), mib: mib.parse()?, requests: requests.text() };
    Ok((opened, begun, done))
}

/// The process that opens the store: the address, the file that says what the server can do, and the directory of local state.
pub(crate) fn child(arguments: &[String]) -> Outcome<()> {
    let [endpoint, found, local @ ..] = arguments else { return Err("too little to open".into()) };
    let before = peak_mib()?;
    let found = S3Capabilities::from_json(&fs::read_to_string(found)?)?;
    block_on(async {
        let process = Process::begin(endpoint, &found, local.first().map(Path::new)).await?;
        println!("opened");
        process.take_lease().await?;
        println!("begun");
        if !local.is_empty() {
            back_up(&process.store, &data(), CHUNK, None).await?;
        }
        println!("grew by {}", peak_mib()? - before);
        process.end().await
    })
}

/// The most memory that this process had, in MiB.
fn peak_mib() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

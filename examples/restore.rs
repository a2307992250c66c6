//! Restores an archive of a snapshot to a file, to standard output or, from a tar stream, into a directory.
//! Run with: cargo run --release --example restore -- --store DIR SNAPSHOT ARCHIVE TARGET

mod cli;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;

use cli::{Access, Failure, Outcome, Progress, StoreArguments, input, tar_stream};
use futures::executor::block_on;
use futures::io::{AllowStdIo, AsyncReadExt as _};
use larder::format::name::SnapshotName;
use larder::rt::Runtime;
use larder::store::{ArchiveReader, Datastore, FileTarget, WriterTarget};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: restore --store DIR [options] SNAPSHOT ARCHIVE TARGET

  SNAPSHOT             such as host/name/2025-07-14T14:20:02Z
  ARCHIVE              the full file name, such as drive-scsi0.img.fidx
  TARGET               a new file; - for standard output; ending in / for a
                       new or empty directory into which a tar is unpacked

{}
  --json               one JSON object on standard output, if it is not the target",
        cli::STORE_USAGE
    )
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let mut store = StoreArguments::default();
    let (mut names, mut as_json) = (Vec::new(), false);
    while let Some(argument) = cli::next(&mut parser)? {
        if argument == "--json" {
            as_json = true;
        } else if !argument.starts_with("--") {
            names.push(argument);
        } else if !store.take(&argument, &mut parser)? {
            return Err(input(format!("{argument}: there is no such option")));
        }
    }
    let [snapshot, archive, target] = names.as_slice() else {
        return Err(input("SNAPSHOT, ARCHIVE and TARGET are wanted"));
    };
    let name: SnapshotName = snapshot.parse().map_err(|error| input(format!("{snapshot}: {error}")))?;
    let name = name.group().clone().in_namespace(store.namespace().clone()).snapshot(name.time());
    if target.ends_with('/') && !archive.ends_with(".tar.didx") {
        return Err(input(format!("{archive}: only a .tar.didx can be unpacked into a directory")));
    }
    let runtime = cli::runtime();
    let opened = block_on(store.open(&runtime, Access::Read))?;
    let reader = block_on(restore(&opened.store, &runtime, &name, archive, target))?;
    if let Some(reader) = reader {
        tar_stream::unpack::unpack(Blocking(reader), target.as_ref())
            .map_err(|error| Failure::Work(format!("{target}: {error}")))?;
    }
    let requests = block_on(opened.close())?;
    if as_json && target != "-" {
        println!(
            "{}",
            serde_json::json!({ "snapshot": name.to_string(), "archive": archive, "requests": requests })
        );
    } else {
        cli::tell_requests(requests.as_ref());
    }
    Ok(())
}

/// Restores, but for a tar stream that is to be unpacked: its reader is returned.
async fn restore(
    store: &Datastore,
    runtime: &Arc<dyn Runtime>,
    name: &SnapshotName,
    archive: &str,
    target: &str,
) -> Outcome<Option<ArchiveReader>> {
    let snapshot = store.snapshot(name).await?;
    if archive.ends_with(".blob") {
        let data = match archive {
            "client.log.blob" => {
                snapshot.client_log().await?.ok_or_else(|| input("there is no client log"))?
            }
            archive => snapshot.blob(archive).await?,
        };
        write_all(target, &data)?;
        return Ok(None);
    }
    let reader = snapshot.archive(archive).await?.observer(Progress::new(target != "-"));
    if target.ends_with('/') {
        return Ok(Some(reader));
    }
    if target == "-" {
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        reader.copy_to(&mut WriterTarget::new(AllowStdIo::new(output))).await?;
    } else {
        reader.copy_to(&mut FileTarget::create(Arc::clone(runtime), target).await?).await?;
    }
    Ok(None)
}

fn write_all(target: &str, data: &[u8]) -> Outcome<()> {
    if target == "-" {
        return Ok(io::Write::write_all(&mut io::stdout().lock(), data)?);
    }
    let mut file = std::fs::File::create_new(target).map_err(|error| input(format!("{target}: {error}")))?;
    Ok(io::Write::write_all(&mut file, data)?)
}

/// An archive for code that reads without async.
struct Blocking(ArchiveReader);

impl io::Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self.0.read(buffer))
    }
}

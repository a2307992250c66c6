//! Restores an archive of a snapshot to a file, to standard output or, from a tar stream, into a directory.
//! Run with: cargo run --release --example restore -- --store DIR SNAPSHOT ARCHIVE TARGET

mod cli;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use cli::{Failure, Outcome, Progress, StoreArguments, input, tar_stream};
use futures::executor::block_on;
use futures::io::{AllowStdIo, AsyncReadExt as _};
use larder::format::name::SnapshotName;
use larder::store::{ArchiveReader, FileTarget, WriterTarget};

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

{}",
        cli::STORE_USAGE
    )
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let mut store = StoreArguments::default();
    let mut names = Vec::new();
    while let Some(argument) = cli::next(&mut parser)? {
        if !argument.starts_with("--") {
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
    let reader = block_on(async {
        let store = store.open(&runtime).await?;
        let snapshot = store.snapshot(&name).await?;
        if archive.ends_with(".blob") {
            let data = match archive.as_str() {
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
            reader.copy_to(&mut FileTarget::create(runtime.clone(), target).await?).await?;
        }
        Ok::<_, Failure>(None)
    })?;
    match reader {
        None => Ok(()),
        Some(reader) => tar_stream::unpack(Blocking(reader), target.as_ref())
            .map_err(|error| Failure::Work(format!("{target}: {error}"))),
    }
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

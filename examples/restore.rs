//! Restores an archive of a snapshot to a file, to standard output or, from a tar stream, into a directory.
//! Run with: cargo run --release --example restore -- --store DIR SNAPSHOT ARCHIVE TARGET

#[macro_use]
mod cli;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use cli::signals::interruptible;
use cli::{Access, Failure, Outcome, Progress, StoreArguments, input, tar_stream};
use futures::executor::block_on;
use futures::io::{AllowStdIo, AsyncReadExt as _};
use larder::error::ErrorKind;
use larder::format::name::SnapshotName;
use larder::rt::Runtime;
use larder::store::{ArchiveReader, Datastore, FileTarget, RestoreTarget, WriterTarget};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: restore --store DIR [options] SNAPSHOT ARCHIVE TARGET

  SNAPSHOT             such as host/name/2025-07-14T14:20:02Z
  ARCHIVE              the full file name, such as drive-scsi0.img.fidx
  TARGET               a new file, which has its name when it is whole; - for
                       standard output; ending in / for a new or empty
                       directory into which a tar is unpacked

{}
  --overwrite          TARGET is a file that exists: it is overwritten in
                       place and becomes the archive
  --device             TARGET is a block device, not in use and no smaller
                       than the archive: it is overwritten from its start,
                       and keeps what lies behind the end of the archive
  --json               one JSON object on standard output, if it is not the target",
        cli::STORE_USAGE
    )
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let mut store = StoreArguments::default();
    let (mut names, mut as_json, mut kind) = (Vec::new(), false, TargetKind::New);
    while let Some(argument) = cli::next(&mut parser)? {
        if argument == "--json" {
            as_json = true;
        } else if argument == "--overwrite" {
            kind = TargetKind::File;
        } else if argument == "--device" {
            kind = TargetKind::Device;
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
    kind.check(target)?;
    let runtime = cli::runtime();
    let opened = block_on(store.open(&runtime, Access::Read))?;
    let reader = block_on(interruptible(restore(&opened.store, &runtime, &name, archive, (target, kind))))?;
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
    (target, kind): (&str, TargetKind),
) -> Outcome<Option<ArchiveReader>> {
    let snapshot = store.snapshot(name).await?;
    if archive.ends_with(".blob") {
        let data = match archive {
            "client.log.blob" => {
                snapshot.client_log().await?.ok_or_else(|| input("there is no client log"))?
            }
            archive => snapshot.blob(archive).await?,
        };
        let mut target = kind.open(runtime, target).await?;
        write_blob(target.as_mut(), data).await?;
        return Ok(None);
    }
    let reader = snapshot.archive(archive).await?.observer(Progress::new(target != "-"));
    if target.ends_with('/') {
        return Ok(Some(reader));
    }
    reader.copy_to(kind.open(runtime, target).await?.as_mut()).await?;
    Ok(None)
}

async fn write_blob(target: &mut dyn RestoreTarget, data: Bytes) -> io::Result<()> {
    target.begin(data.len() as u64).await?;
    target.write_at(0, data).await?;
    target.finish().await
}

/// What stands at the path of a target before the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetKind {
    /// A block device, to be overwritten.
    Device,
    /// A file, to be overwritten.
    File,
    /// Nothing, or an empty directory.
    New,
}

impl TargetKind {
    /// Refuses a target that is not of the kind that was named: a typing error must not cost a disk.
    fn check(self, target: &str) -> Outcome<()> {
        if self == Self::New {
            return Ok(());
        }
        if target == "-" || target.ends_with('/') {
            return Err(input("--overwrite and --device want a file or a device"));
        }
        let metadata = std::fs::metadata(target).map_err(|error| input(format!("{target}: {error}")))?;
        match self {
            Self::Device if !metadata.file_type().is_block_device() => {
                Err(input(format!("{target}: it is no block device")))
            }
            Self::File if !metadata.is_file() => {
                Err(input(format!("{target}: it is no file; --device takes a block device")))
            }
            _ => Ok(()),
        }
    }

    async fn open(self, runtime: &Arc<dyn Runtime>, target: &str) -> Outcome<Box<dyn RestoreTarget>> {
        if target == "-" {
            let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            return Ok(Box::new(WriterTarget::new(AllowStdIo::new(output))));
        }
        let runtime = Arc::clone(runtime);
        Ok(match self {
            Self::Device => Box::new(FileTarget::open(runtime, target).await?),
            Self::File => Box::new(FileTarget::open(runtime, target).await?.truncate()),
            Self::New => match FileTarget::create(runtime, target).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(input(format!(
                        "{target}: it exists; --overwrite takes a file, --device a block device"
                    )));
                }
                created => Box::new(created?),
            },
        })
    }
}

/// An archive for code that reads without async.
struct Blocking(ArchiveReader);

impl io::Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = async { Ok(self.0.read(buffer).await) };
        match block_on(interruptible(read)) {
            Ok(read) => read,
            Err(_) => Err(io::Error::other("a signal ended it")),
        }
    }
}

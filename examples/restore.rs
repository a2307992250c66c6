//! Restores an archive of a snapshot to a file, to standard output or, from a file archive or a tar stream, into a directory.
//! Run with: cargo run --release --example restore -- --store DIR SNAPSHOT ARCHIVE TARGET

#[macro_use]
mod cli;

use std::fs::File;
use std::io::{self, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use cli::findings::{self, Findings};
use cli::keys::KeyArguments;
use cli::signals::interruptible;
use cli::tar_stream::unpack;
use cli::tar_stream::unpack::attributes::Owners;
use cli::tar_stream::unpack::source::{ReadError, Source};
use cli::tree_restore::{self, TreeOptions};
use cli::{Access, Failure, Outcome, Progress, StoreArguments, Wanted, input, pipes, trees};
use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, AsyncSeekExt as _};
use larder::crypt::EncryptionKey;
use larder::error::{Error, ErrorKind};
use larder::format::name::SnapshotName;
use larder::rt::Runtime;
use larder::store::{ArchiveReader, Datastore, FileTarget, RestoreTarget, WriterTarget};
use larder::tree::Tree;

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: restore --store DIR [options] SNAPSHOT ARCHIVE TARGET

  SNAPSHOT             such as host/name/2025-07-14T14:20:02Z; host/name/latest
                       is the newest of the group
  ARCHIVE              the full file name, such as drive-scsi0.img.fidx
  TARGET               a new file, which has its name when it is whole; - for
                       standard output; ending in / for a new or empty
                       directory into which a file archive such as
                       root.pxar is restored, or a .tar.didx unpacked

{}
{}
  --overwrite          TARGET is a file that exists: it is overwritten in
                       place and becomes the archive
  --device             TARGET is a block device, not in use and no smaller
                       than the archive: it is overwritten from its start,
                       and keeps what lies behind the end of the archive
  --path PATH          of a file archive: only this path, with everything
                       below it; may be repeated; with * ? [a-z] it is a
                       pattern, as for backup --exclude. One path and a TARGET
                       without / at its end: the contents of this file
  --existing WHAT      of a file archive, for a directory that is not empty:
                       keep or replace entries that have the same names
  --privileged         of a file archive: restore set-user-ID bits,
                       capabilities, trusted attributes and devices too
  --no-same-owner      what is unpacked belongs to the user who runs this
  --json               one JSON object on standard output, if it is not the
                       target; of a failure, it has error with kind, message
                       and status

All that can be unpacked is unpacked. Everything else is named, a line each, and in the list of --json: entries of
unknown kinds, attributes that cannot be set, names that exist, files that lie in damaged chunks. The exit status is
1 then.",
        cli::STORE_USAGE,
        cli::keys::KEY_USAGE
    )
}

#[derive(Default)]
struct Arguments {
    as_json: bool,
    key: KeyArguments,
    kind: TargetKind,
    names: Vec<String>,
    store: StoreArguments,
    tree: TreeOptions,
}

fn parse(mut parser: lexopt::Parser) -> Outcome<Arguments> {
    let mut arguments = Arguments::default();
    let Arguments { as_json, key, kind, names, store, tree } = &mut arguments;
    while let Some(argument) = cli::next(&mut parser)? {
        match argument.as_str() {
            "--device" => *kind = TargetKind::Device,
            "--existing" => tree.existing = Some(cli::parsed("--existing", &mut parser)?),
            "--json" => *as_json = true,
            "--no-same-owner" => tree.no_owners = true,
            "--overwrite" => *kind = TargetKind::File,
            "--path" => tree.paths.push(cli::value(&mut parser)?),
            "--privileged" => tree.privileges = true,
            option if option.starts_with("--") => {
                if !store.take(option, &mut parser)? && !key.take(option, &mut parser)? {
                    return Err(input(format!("{option}: there is no such option")));
                }
            }
            _ => names.push(argument),
        }
    }
    Ok(arguments)
}

fn command(parser: lexopt::Parser) -> Outcome<()> {
    let Arguments { as_json, key, kind, names, store, tree } = parse(parser)?;
    let [snapshot, archive, target] = names.as_slice() else {
        return Err(input("SNAPSHOT, ARCHIVE and TARGET are wanted"));
    };
    if target == "-" {
        cli::streams::reserve();
    }
    let wanted: Wanted = snapshot.parse().map_err(|error| input(format!("{snapshot}: {error}")))?;
    let wanted = wanted.in_namespace(store.namespace());
    let is_tree = trees::is_tree(archive);
    if target.ends_with('/') && !archive.ends_with(".tar.didx") && !is_tree {
        let why = "only a .pxar or a .tar.didx can be restored into a directory";
        return Err(input(format!("{archive}: {why}")));
    }
    if !is_tree && (!tree.paths.is_empty() || tree.existing.is_some() || tree.privileges) {
        return Err(input(format!("{archive}: --path, --existing and --privileged are for file archives")));
    }
    kind.check(target)?;
    let runtime = cli::runtime();
    let key = block_on(key.key(runtime.as_ref()))?;
    let opened = block_on(store.open(&runtime, Access::Read))?;
    let findings = Findings::new(archive);
    let restore = async {
        let name = wanted.name(&opened.store).await?;
        if is_tree && (target.ends_with('/') || !tree.paths.is_empty()) {
            let snapshot = trees::open_snapshot(&opened.store, &name, key.as_ref()).await?;
            let archive = snapshot.tree(archive).await?;
            restore_tree(&runtime, &archive, (target, kind), (&tree, &findings)).await?;
            return Ok((name, None));
        }
        let reader = restore(&opened.store, &runtime, (&name, key.as_ref()), archive, (target, kind)).await?;
        Ok((name, reader))
    };
    let (name, reader) = block_on(interruptible(restore))?;
    if let Some(reader) = reader {
        let owners = if tree.no_owners { Owners::Own } else { Owners::Same };
        unpack::unpack(Blocking(reader), target.as_ref(), owners, &findings).map_err(|error| {
            let text = format!("{target}: {error}");
            if error.kind() == io::ErrorKind::AlreadyExists { input(text) } else { Failure::Work(text) }
        })?;
    }
    let requests = block_on(opened.close())?;
    let is_shown_as_json = as_json && target != "-";
    conclude(&name, archive, findings, requests.as_ref(), is_shown_as_json)
}

/// Prints the result.
fn conclude(
    name: &SnapshotName,
    archive: &str,
    findings: Findings,
    requests: Option<&serde_json::Value>,
    as_json: bool,
) -> Outcome<()> {
    let report = findings.report();
    if as_json {
        println!(
            "{}",
            serde_json::json!({
                "snapshot": name.to_string(),
                "archive": archive,
                "complete": report.is_complete(),
                "findings": findings::json(&[findings]),
                "findings_beyond": report.beyond,
                "requests": requests,
            })
        );
    } else {
        cli::tell_requests(requests);
    }
    if report.is_complete() { Ok(()) } else { Err(Failure::Incomplete) }
}

/// Restores a tree into a directory, or one file of it to anywhere.
async fn restore_tree(
    runtime: &Arc<dyn Runtime>,
    tree: &Tree,
    (target, kind): (&str, TargetKind),
    (options, findings): (&TreeOptions, &Findings),
) -> Outcome<()> {
    if target.ends_with('/') {
        return tree_restore::into_directory(runtime, tree, target, options, findings).await;
    }
    match tree_restore::single_path(options)? {
        None => Err(input("a path is wanted")),
        Some(path) => {
            // Before the target is made.
            tree.open(&path).await?;
            tree_restore::copy_file(tree, &path, kind.open(runtime, target).await?.as_mut()).await
        }
    }
}

/// Restores. For a tar stream that is to be unpacked, returns its reader instead.
async fn restore(
    store: &Datastore,
    runtime: &Arc<dyn Runtime>,
    (name, key): (&SnapshotName, Option<&EncryptionKey>),
    archive: &str,
    (target, kind): (&str, TargetKind),
) -> Outcome<Option<ArchiveReader>> {
    let snapshot = trees::open_snapshot(store, name, key).await?;
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

/// The object at the path of a target before the restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TargetKind {
    /// A block device, to be overwritten.
    Device,
    /// A file, to be overwritten.
    File,
    /// Nothing, or an empty directory.
    #[default]
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
            return Ok(Box::new(WriterTarget::new(pipes::Writer::new(output))));
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

impl Source for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let position = block_on(self.0.seek(SeekFrom::Current(0))).map_err(ReadError::Failed)?;
        let error = match block_on(interruptible(async { Ok(self.0.read(buffer).await) })) {
            Ok(Ok(read)) => return Ok(read),
            Ok(Err(error)) => error,
            Err(_) => return Err(ReadError::Failed(io::Error::other("a signal ended it"))),
        };
        let of_store = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
        let text = of_store.map_or_else(|| error.to_string(), cli::told);
        match self.0.chunk_range(position) {
            Some(range) if of_store.is_some_and(is_damage) => {
                Err(ReadError::Damaged(range, io::Error::other(text)))
            }
            _ => Err(ReadError::Failed(io::Error::other(text))),
        }
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        block_on(self.0.seek(SeekFrom::Start(position))).map(drop)
    }
}

/// Returns `true` if an error is about one chunk, which others need not share: damage, or a disk that cannot read it.
fn is_damage(error: &Error) -> bool {
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let cannot_read = |cause: &(dyn std::error::Error + 'static)| {
        let number = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        number == Some(rustix::io::Errno::IO.raw_os_error())
    };
    error.kind() == ErrorKind::Corrupt || causes.any(cannot_read)
}

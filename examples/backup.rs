//! Backs up directories, images and files as one snapshot.
//! Run with: cargo run --release --example backup -- --store DIR --create root.tar:DIR disk.img:FILE

#[macro_use]
mod cli;

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cli::findings::{self, Findings};
use cli::keys::KeyArguments;
use cli::signals::interruptible;
use cli::source::{self, Opened};
use cli::tar_stream::pack::contents::change;
use cli::tar_stream::pack::{self, FileId};
use cli::tree_backup::{self, ChangeDetection};
use cli::{Access, Creation, Failure, Outcome, Progress, StoreArguments, input};
use futures::executor::block_on;
use futures::io::{AllowStdIo, AsyncRead, AsyncReadExt as _};
use larder::crypt::EncryptionKey;
use larder::format::name::{ArchiveKind, ArchiveName, AuthId, GroupName, SnapshotName};
use larder::store::{BackupStats, Datastore, SnapshotReader, SnapshotWriter};
use larder::tree::{Problem, TreeFinding};

/// A blob, which the log is, may have a little more.
const MAX_LOG_BYTES: usize = 15 << 20;

/// More than a blob may have, so that the store refuses it.
const MAX_BLOB_READ: u64 = 17 << 20;

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: backup --store DIR [options] ARCHIVE:PATH ...

  NAME.pxar:DIRECTORY  a file archive of the directory, stored as NAME.mpxar.didx and NAME.ppxar.didx, or NAME.pxar.didx:
                       its files can be listed, opened, restored and mounted singly
  NAME.tar:DIRECTORY   a tar stream of the directory, stored as NAME.tar.didx
  NAME.img:FILE        an image, stored as NAME.img.fidx
  NAME.bin:FILE        a stream, stored as NAME.bin.didx
  NAME.conf:FILE       a small file, stored as NAME.conf.blob

Each source is opened once. A pipe or another stream can be a .bin or a .conf; an .img needs a file or a block device.

{}
{}
  --group TYPE/ID      the group; default: host/ and the name of this host
  --time RFC3339       the time of the snapshot, such as 2025-07-14T14:20:02Z; default: now
  --owner AUTHID       on whose behalf; default: root@pam
  --notes TEXT         notes of the snapshot
  --no-cache           keep no copies of new chunks in the directory of --cache
{}
  --sign               sign with the key, and encrypt nothing; without it, --keyfile encrypts and signs
  --no-base            do not build on the previous snapshot of the group
  --change-detection MODE
                       of a .pxar: metadata (the default) does not open files whose metadata and size are those of the
                       previous snapshot; data reads every file; legacy reads every file, and writes the older form
                       with a catalog
  --exclude PATTERN    leave matching paths out of directories; may be repeated, the last match wins:
                       /a from the root only, a/ directories only, * ? [a-z] within a name, ** across names, !a includes again
  --exclude-from FILE  patterns, one a line; # begins a comment
  --one-file-system    store directories on other filesystems empty
  --include-dev DIR    with --one-file-system, store what is on the filesystem of DIR all the same; may be repeated
  --strict             fail, without a snapshot, if anything cannot be read or changes meanwhile; without it, the rest is
                       backed up, each such file is named, and the exit status is 1
{}",
        cli::STORE_USAGE,
        cli::CREATE_USAGE,
        cli::keys::KEY_USAGE,
        cli::JSON_USAGE
    )
}

/// Use of the key.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Protection {
    #[default]
    Encrypt,
    Sign,
}

#[derive(Default)]
struct Arguments {
    detection: ChangeDetection,
    directories: pack::Options,
    group: Option<String>,
    json: bool,
    key: KeyArguments,
    no_base: bool,
    no_cache: bool,
    notes: Option<String>,
    owner: Option<AuthId>,
    protection: Protection,
    sources: Vec<Source>,
    store: StoreArguments,
    time: Option<SystemTime>,
}

/// Something to back up, checked as far as it can be before anything is written.
struct Source {
    archive: ArchiveName,
    opened: Opened,
    path: PathBuf,
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let mut arguments = parse(&mut parser)?;
    let sources = std::mem::take(&mut arguments.sources);
    refuse_own(&arguments, &sources)?;
    let group = group(&arguments)?;
    let runtime = cli::runtime();
    let start = runtime.monotonic();
    let progress = Progress::new(!arguments.json);
    let key = block_on(arguments.key.key(runtime.as_ref()))?;
    if arguments.protection == Protection::Sign && key.is_none() {
        return Err(input("--sign needs --keyfile"));
    }
    let back_up =
        async |store: Datastore| back_up(&store, (&arguments, key.as_ref()), sources, &group, progress).await;
    let (done, requests) = block_on(arguments.store.with(&runtime, Access::Write, back_up))?;
    let seconds = runtime.monotonic().saturating_sub(start).as_secs_f64();
    let losses = findings::losses(&done.found);
    let Done { found, snapshot, stats } = done;
    if arguments.json {
        let report = serde_json::json!({
            "snapshot": snapshot.to_string(),
            "complete": losses == 0,
            "findings": findings::json(&found),
            "bytes_read": stats.bytes_read,
            "bytes_written": stats.bytes_written,
            "chunks_known": stats.chunks_known,
            "chunks_new": stats.chunks_new,
            "seconds": seconds,
            "requests": requests,
        });
        println!("{report}");
    } else {
        println!(
            "{snapshot}: read {} bytes, wrote {}; {} chunks new, {} known; {seconds:.1} s",
            stats.bytes_read, stats.bytes_written, stats.chunks_new, stats.chunks_known
        );
        if losses > 0 {
            println!("incomplete; entries that were left out or stored in part: {losses}");
        }
        cli::tell_requests(requests.as_ref());
    }
    if losses > 0 { Err(Failure::Incomplete) } else { Ok(()) }
}

/// A backup that was made.
struct Done {
    found: Vec<Findings>,
    snapshot: SnapshotName,
    stats: BackupStats,
}

/// Makes the snapshot. A failure or a signal leaves nothing of it but chunks.
async fn back_up(
    store: &Datastore,
    (arguments, key): (&Arguments, Option<&EncryptionKey>),
    sources: Vec<Source>,
    group: &GroupName,
    progress: Arc<Progress>,
) -> Outcome<Done> {
    let begun = async {
        let base = match store.latest(group).await? {
            Some(latest) if !arguments.no_base => {
                // One that cannot be built on is no reason to make no backup.
                store.snapshot(&latest).await.ok()
            }
            _ => None,
        };
        let mut backup = store.backup(group).observer(progress);
        backup = match (key, arguments.protection) {
            (Some(key), Protection::Encrypt) => backup.encrypt(key),
            (Some(key), Protection::Sign) => backup.sign(key),
            (None, _) => backup,
        };
        if arguments.no_cache {
            backup = backup.no_cache();
        }
        if let Some(time) = arguments.time {
            backup = backup.time(time);
        }
        if let Some(owner) = arguments.owner.clone() {
            backup = backup.owner(owner);
        }
        Ok((base, backup.begin().await?))
    };
    let (base, writer) = interruptible(begun).await?;
    let mut options = arguments.directories.clone();
    let (own, ids): (Vec<_>, _) = own_directories(arguments).into_iter().unzip();
    options.own = ids;
    let mut found = Vec::new();
    let written = interruptible(async {
        for source in sources {
            let findings = Findings::new(source.archive.as_str());
            found.push(findings.clone());
            let trees = (&options, arguments.detection, &own[..]);
            write(&writer, source, base.as_ref(), trees, findings).await?;
        }
        record(&writer, &found, arguments.notes.as_deref()).await
    });
    if let Err(failure) = written.await {
        // Reports the failure; the next backup removes what the abort leaves.
        let _ = writer.abort().await;
        return Err(failure);
    }
    let stats = writer.stats();
    // From here on a signal is too late.
    let snapshot = writer.finish().await?.snapshot.name().clone();
    Ok(Done { found, snapshot, stats })
}

/// Stores the findings with the snapshot: all of them in the client log, and a line in the notes if something is missing.
async fn record(writer: &SnapshotWriter, found: &[Findings], notes: Option<&str>) -> Outcome<()> {
    let log = findings::log(found, MAX_LOG_BYTES);
    if !log.is_empty() {
        writer.client_log(log).await?;
    }
    let losses = findings::losses(found);
    let incomplete = (losses > 0).then(|| {
        format!(
            "Incomplete; entries that were left out or stored in part: {losses}. The client log names them."
        )
    });
    let notes: Vec<_> = notes.into_iter().chain(incomplete.as_deref()).collect();
    if !notes.is_empty() {
        writer.set_notes(notes.join("\n\n"));
    }
    Ok(())
}

async fn write(
    writer: &SnapshotWriter,
    source: Source,
    base: Option<&SnapshotReader>,
    trees: (&pack::Options, ChangeDetection, &[PathBuf]),
    findings: Findings,
) -> Outcome<()> {
    let Source { archive, opened, path } = source;
    let directories = trees.0;
    let failed = |error| Failure::Work(format!("{}: {error}", path.display()));
    let file = match opened {
        Opened::Tree(tree) => {
            return tree_backup::write(writer, (archive.as_str(), tree), base, trees, findings).await;
        }
        Opened::Directory(root) => {
            let tree = pack::of_directory(root, directories.clone(), findings);
            return write_stream(writer, &archive, tree, base).await;
        }
        Opened::Stream(stream) if archive.kind() == ArchiveKind::Blob => {
            let mut data = Vec::new();
            source::of_stream(stream).take(MAX_BLOB_READ).read_to_end(&mut data).await.map_err(failed)?;
            writer.blob(archive.as_str(), data).await?;
            return Ok(());
        }
        Opened::Stream(stream) => {
            return write_stream(writer, &archive, source::of_stream(stream), base).await;
        }
        Opened::File(file) => file,
    };
    let before = file.metadata().map_err(failed)?;
    let mut kept = file.try_clone().map_err(failed)?;
    match archive.kind() {
        ArchiveKind::Blob => {
            let mut data = Vec::new();
            file.take(MAX_BLOB_READ).read_to_end(&mut data).map_err(failed)?;
            writer.blob(archive.as_str(), data).await?;
        }
        ArchiveKind::Dynamic => write_stream(writer, &archive, AllowStdIo::new(file), base).await?,
        ArchiveKind::Fixed => {
            let size = source::size(&mut kept).map_err(failed)?;
            writer.image(archive.as_str(), AllowStdIo::new(file), size).base_if_usable(base).await?;
        }
    }
    let after = kept.metadata().map_err(failed)?;
    // A device has neither a length nor a modification time. Bytes by which a file grew were read as well.
    if before.is_file() && change(&before, &after).is_some() {
        let finding = TreeFinding::new(path.into_os_string().into_encoded_bytes(), Problem::Changed);
        if directories.strict {
            return Err(Failure::Work(finding.to_string()));
        }
        findings.add(finding);
    }
    Ok(())
}

async fn write_stream(
    writer: &SnapshotWriter,
    archive: &ArchiveName,
    from: impl AsyncRead + Send + Unpin,
    base: Option<&SnapshotReader>,
) -> Outcome<()> {
    writer.stream(archive.as_str(), from).base_if_usable(base).await?;
    Ok(())
}

/// The existing directories of the store and of its local state.
fn own_directories(arguments: &Arguments) -> Vec<(PathBuf, FileId)> {
    let place = arguments.store.place().filter(|place| !place.contains("://")).map(PathBuf::from);
    let chunks = place.as_ref().map(|place| place.join(".chunks"));
    let id = |path: PathBuf| fs::metadata(&path).map(|metadata| (path, pack::id_of(&metadata))).ok();
    place.into_iter().chain(chunks).chain(arguments.store.cache.clone()).filter_map(id).collect()
}

/// A store is never backed up into itself.
fn refuse_own(arguments: &Arguments, sources: &[Source]) -> Outcome<()> {
    let own = own_directories(arguments);
    for source in sources {
        if let Opened::Tree(tree) = &source.opened {
            for (path, _) in &own {
                block_on(tree.clone().own_directory(path))?;
            }
        }
        let Opened::Directory(root) = &source.opened else { continue };
        let above: HashSet<_> = root.ancestry()?.into_iter().collect();
        if let Some((path, _)) = own.iter().find(|(_, id)| above.contains(id)) {
            let (source, path) = (source.path.display(), path.display());
            return Err(input(format!(
                "{source}: it lies in {path}, which belongs to the store of this backup"
            )));
        }
    }
    Ok(())
}

fn parse(parser: &mut lexopt::Parser) -> Outcome<Arguments> {
    let mut arguments = Arguments::default();
    let mut creation = Creation::default();
    while let Some(argument) = cli::next(parser)? {
        match argument.as_str() {
            "--change-detection" => {
                arguments.detection = cli::parsed("--change-detection", parser)?;
            }
            "--exclude" => {
                let pattern = cli::value(parser)?;
                let pushed = arguments.directories.excludes.push(&pattern);
                pushed.map_err(|error| input(format!("--exclude {pattern}: {error}")))?;
            }
            "--exclude-from" => exclude_from(&mut arguments.directories, &cli::value(parser)?)?,
            "--group" => arguments.group = Some(cli::value(parser)?),
            "--include-dev" => {
                let path = PathBuf::from(cli::value(parser)?);
                let failed =
                    |why: &dyn std::fmt::Display| input(format!("--include-dev {}: {why}", path.display()));
                let found = fs::metadata(&path).map_err(|error| failed(&error))?;
                if !found.is_dir() {
                    return Err(failed(&"it is no directory"));
                }
                arguments.directories.included.push((path, found.dev()));
            }
            "--json" => arguments.json = true,
            "--no-cache" => arguments.no_cache = true,
            "--no-base" => arguments.no_base = true,
            "--notes" => arguments.notes = Some(cli::value(parser)?),
            "--one-file-system" => arguments.directories.one_file_system = true,
            "--owner" => arguments.owner = Some(cli::value(parser)?.parse().map_err(input)?),
            "--sign" => arguments.protection = Protection::Sign,
            "--strict" => arguments.directories.strict = true,
            "--time" => {
                let text = cli::value(parser)?;
                let wrong = |_| {
                    let forms = "2025-07-14T14:20:02Z or 2025-07-14T16:20:02+02:00";
                    input(format!("--time {text}: not a time such as {forms}"))
                };
                let time: jiff::Timestamp = text.parse().map_err(wrong)?;
                let seconds = u64::try_from(time.as_second())
                    .map_err(|_| input(format!("--time {text}: before 1970")))?;
                arguments.time = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            }
            option if option.starts_with("--") => {
                let is_known = creation.take(option, parser)?
                    || arguments.store.take(option, parser)?
                    || arguments.key.take(option, parser)?;
                if !is_known {
                    return Err(input(format!("{option}: there is no such option")));
                }
            }
            source => arguments.sources.push(parse_source(source)?),
        }
    }
    creation.check()?;
    arguments.store.or_create(creation);
    if arguments.sources.is_empty() {
        return Err(input("nothing to back up: no ARCHIVE:PATH was given"));
    }
    Ok(arguments)
}

fn parse_source(text: &str) -> Outcome<Source> {
    let failed = |why: &str| input(format!("{text}: {why}"));
    let (name, path) = text.split_once(':').ok_or_else(|| failed("ARCHIVE:PATH is wanted"))?;
    let stem = name.trim_end_matches(".didx");
    let full = match stem.rsplit_once('.') {
        Some((_, "tar" | "bin" | "pxar")) => format!("{stem}.didx"),
        _ => name.to_owned(),
    };
    let archive = ArchiveName::implicit(&full).map_err(|error| match name.rsplit_once('.') {
        Some((_, "bin" | "conf" | "img" | "pxar" | "tar")) => failed(&error.to_string()),
        _ => failed("the name of an archive ends in .pxar or .tar for a directory, .img for an image, .bin for a stream or .conf for a small file"),
    })?;
    let opened = source::open(Path::new(path), &archive).map_err(|error| failed(&error.to_string()))?;
    Ok(Source { archive, opened, path: PathBuf::from(path) })
}

fn exclude_from(directories: &mut pack::Options, path: &str) -> Outcome<()> {
    let failed = |error: &dyn std::fmt::Display| input(format!("--exclude-from {path}: {error}"));
    let text = fs::read(path).map_err(|error| failed(&error))?;
    directories.excludes.push_lines(&text).map_err(|error| failed(&error))
}

fn group(arguments: &Arguments) -> Outcome<GroupName> {
    let text = if let Some(group) = &arguments.group {
        group.clone()
    } else {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("host/{}", if host.trim().is_empty() { "localhost" } else { host.trim() })
    };
    let group: GroupName = text.parse().map_err(|error| input(format!("--group {text}: {error}")))?;
    Ok(group.in_namespace(arguments.store.namespace().clone()))
}

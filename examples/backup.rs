//! Backs up directories, images and files as one snapshot.
//! Run with: cargo run --release --example backup -- --store DIR --create root.tar:DIR disk.img:FILE

#[macro_use]
mod cli;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cli::signals::interruptible;
use cli::{Access, Failure, Outcome, Progress, StoreArguments, input, tar_stream};
use futures::executor::block_on;
use futures::io::AllowStdIo;
use larder::format::manifest::{CryptMode, VerifyResult};
use larder::format::name::{ArchiveKind, ArchiveName, AuthId, GroupName, SnapshotName};
use larder::store::{BackupStats, Datastore, SnapshotReader, SnapshotWriter};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: backup --store DIR [options] ARCHIVE:PATH ...

  NAME.tar:DIRECTORY   a tar stream of the directory, stored as NAME.tar.didx
  NAME.img:FILE        an image, stored as NAME.img.fidx
  NAME.bin:FILE        a stream, stored as NAME.bin.didx
  NAME.conf:FILE       a small file, stored as NAME.conf.blob

{}
  --create             make the store if there is none
  --group TYPE/ID      the group; default: host/ and the name of this host
  --time RFC3339       the time of the snapshot; default: now
  --owner AUTHID       on whose behalf; default: root@pam
  --notes TEXT         notes of the snapshot
  --no-cache           keep no copies of new chunks in the directory of --cache
  --no-base            do not build on the previous snapshot of the group
  --json               one JSON object on standard output",
        cli::STORE_USAGE
    )
}

#[derive(Default)]
struct Arguments {
    group: Option<String>,
    json: bool,
    no_base: bool,
    no_cache: bool,
    notes: Option<String>,
    owner: Option<AuthId>,
    sources: Vec<Source>,
    store: StoreArguments,
    time: Option<SystemTime>,
}

/// Something to back up, checked as far as it can be before anything is written.
struct Source {
    archive: ArchiveName,
    path: PathBuf,
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let arguments = parse(&mut parser)?;
    let group = group(&arguments)?;
    let runtime = cli::runtime();
    let start = runtime.monotonic();
    let progress = Progress::new(!arguments.json);
    let back_up = async |store: Datastore| back_up(&store, &arguments, &group, progress).await;
    let ((snapshot, stats), requests) = block_on(arguments.store.with(&runtime, Access::Write, back_up))?;
    let seconds = runtime.monotonic().saturating_sub(start).as_secs_f64();
    if arguments.json {
        let report = serde_json::json!({
            "snapshot": snapshot.to_string(),
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
        cli::tell_requests(requests.as_ref());
    }
    Ok(())
}

/// Makes the snapshot. A failure or a signal leaves nothing of it but chunks.
async fn back_up(
    store: &Datastore,
    arguments: &Arguments,
    group: &GroupName,
    progress: Arc<Progress>,
) -> Outcome<(SnapshotName, BackupStats)> {
    let begun = async {
        let base = match store.latest(group).await? {
            Some(latest) if !arguments.no_base => {
                // One that cannot be built on is no reason to make no backup.
                store.snapshot(&latest).await.ok().filter(is_usable)
            }
            _ => None,
        };
        let mut backup = store.backup(group).observer(progress);
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
    if let Some(notes) = &arguments.notes {
        writer.set_notes(notes.clone());
    }
    let written = interruptible(async {
        for source in &arguments.sources {
            write(&writer, source, base.as_ref()).await?;
        }
        Ok(())
    });
    if let Err(failure) = written.await {
        // What it came to is the failure; what abort leaves, the next backup removes.
        let _ = writer.abort().await;
        return Err(failure);
    }
    let stats = writer.stats();
    // From here on a signal is too late.
    Ok((writer.finish().await?.name().clone(), stats))
}

async fn write(writer: &SnapshotWriter, source: &Source, base: Option<&SnapshotReader>) -> Outcome<()> {
    let Source { archive, path } = source;
    let base = base.filter(|base| base.manifest().file(archive).is_some());
    let failed = |error| Failure::Work(format!("{}: {error}", path.display()));
    if archive.stem().ends_with(".tar") {
        let stream = writer.stream(archive.as_str(), tar_stream::pack::of_directory(path.clone()));
        match base {
            Some(base) => stream.base(base).await?,
            None => stream.await?,
        };
        return Ok(());
    }
    match archive.kind() {
        ArchiveKind::Blob => {
            let data = std::fs::read(path).map_err(failed)?;
            writer.blob(archive.as_str(), data).await?;
        }
        ArchiveKind::Dynamic => {
            let stream = writer.stream(archive.as_str(), AllowStdIo::new(File::open(path).map_err(failed)?));
            match base {
                Some(base) => stream.base(base).await?,
                None => stream.await?,
            };
        }
        ArchiveKind::Fixed => {
            let mut file = File::open(path).map_err(failed)?;
            // The length of a block device is where its end is.
            let size = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
            std::io::Seek::rewind(&mut file)?;
            let image = writer.image(archive.as_str(), AllowStdIo::new(file), size);
            match base {
                Some(base) => image.base(base).await?,
                None => image.await?,
            };
        }
    }
    Ok(())
}

fn parse(parser: &mut lexopt::Parser) -> Outcome<Arguments> {
    let mut arguments = Arguments::default();
    while let Some(argument) = cli::next(parser)? {
        match argument.as_str() {
            "--create" => arguments.store.or_create(),
            "--group" => arguments.group = Some(cli::value(parser)?),
            "--json" => arguments.json = true,
            "--no-cache" => arguments.no_cache = true,
            "--no-base" => arguments.no_base = true,
            "--notes" => arguments.notes = Some(cli::value(parser)?),
            "--owner" => arguments.owner = Some(cli::value(parser)?.parse().map_err(input)?),
            "--time" => {
                let text = cli::value(parser)?;
                let time: jiff::Timestamp =
                    text.parse().map_err(|error| input(format!("--time {text}: {error}")))?;
                let seconds = u64::try_from(time.as_second())
                    .map_err(|_| input(format!("--time {text}: before 1970")))?;
                arguments.time = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            }
            option if option.starts_with("--") => {
                if !arguments.store.take(option, parser)? {
                    return Err(input(format!("{option}: there is no such option")));
                }
            }
            source => arguments.sources.push(parse_source(source)?),
        }
    }
    if arguments.sources.is_empty() {
        return Err(input("nothing to back up: no ARCHIVE:PATH was given"));
    }
    Ok(arguments)
}

/// Whether a new snapshot can build on it.
fn is_usable(base: &SnapshotReader) -> bool {
    let manifest = base.manifest();
    let is_plain = manifest.files().iter().all(|file| file.crypt_mode() != CryptMode::Encrypt);
    // A state that cannot be read counts as a failure, as it does in PBS.
    let verified =
        manifest.verify_state().map(|state| state.is_none_or(|state| state.state == VerifyResult::Ok));
    is_plain && verified.unwrap_or(false)
}

fn parse_source(text: &str) -> Outcome<Source> {
    let failed = |why: &str| input(format!("{text}: {why}"));
    let (name, path) = text.split_once(':').ok_or_else(|| failed("ARCHIVE:PATH is wanted"))?;
    let stem = name.trim_end_matches(".didx");
    let archive = match stem.rsplit_once('.') {
        Some((_, "tar" | "bin")) => ArchiveName::with_kind(stem, ArchiveKind::Dynamic),
        _ => ArchiveName::implicit(name),
    };
    let archive = archive.map_err(|error| failed(&error.to_string()))?;
    let metadata = std::fs::metadata(path).map_err(|error| failed(&error.to_string()))?;
    let wants_directory = archive.stem().ends_with(".tar");
    if metadata.is_dir() != wants_directory {
        let why = if wants_directory { "the path is not a directory" } else { "the path is a directory" };
        return Err(failed(why));
    }
    File::open(path).map_err(|error| failed(&error.to_string()))?;
    Ok(Source { archive, path: Path::new(path).to_owned() })
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

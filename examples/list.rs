//! Lists the snapshots of a store with their files, or the entries of a tree in a snapshot.
//! Run with: cargo run --release --example list -- --store DIR

#[macro_use]
mod cli;

use std::process::ExitCode;

use cli::keys::KeyArguments;
use cli::signals::interruptible;
use cli::{Access, Failure, Outcome, StoreArguments, Wanted, input, trees};
use futures::executor::block_on;
use larder::crypt::EncryptionKey;
use larder::error::{Error, ErrorKind};
use larder::format::manifest::VerifyResult;
use larder::format::name::Namespace;
use larder::pxar::FileKind;
use larder::store::{Datastore, SnapshotInfo, SnapshotState};
use larder::tree::{TreeEntry, TreeStep};
use serde_json::{Value, json};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: list --store DIR [options]
       list --store DIR --tree [--recursive] [options] SNAPSHOT ARCHIVE [PATH]

  --tree               the entries of a directory in a file archive such as root.pxar, without reading contents; PATH is
                       a path in it, by default its root. SNAPSHOT is such as host/name/2025-07-14T14:20:02Z or
                       host/name/latest
  --recursive          and everything below it
{}
{}
{}

With a key, snapshots that name it are authentic or not: the signature covers names, sizes and checksums of the files.
Without --ns all namespaces are listed.",
        cli::STORE_USAGE,
        cli::keys::KEY_USAGE,
        cli::JSON_USAGE
    )
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let (mut store, mut as_json, mut one) = (StoreArguments::default(), false, false);
    let (mut key, mut names, mut listing) = (KeyArguments::default(), Vec::new(), None);
    while let Some(argument) = cli::next(&mut parser)? {
        one |= argument == "--ns";
        match argument.as_str() {
            "--json" => as_json = true,
            "--tree" => listing = listing.or(Some(Listing::Directory)),
            "--recursive" => listing = Some(Listing::Everything),
            option if option.starts_with("--") => {
                if !store.take(option, &mut parser)? && !key.take(option, &mut parser)? {
                    return Err(input(format!("{option}: there is no such option")));
                }
            }
            _ => names.push(argument),
        }
    }
    if let Some(listing) = listing {
        return list_tree(&store, &key, &names, (listing, as_json));
    }
    if let [name, ..] = names.as_slice() {
        return Err(input(format!("{name}: --tree lists what is in a snapshot")));
    }
    let runtime = cli::runtime();
    let top = store.namespace();
    let key = block_on(key.key(runtime.as_ref()))?;
    let list = async |store: Datastore| interruptible(list(&store, top, one, key.as_ref())).await;
    let (snapshots, requests) = block_on(store.with(&runtime, Access::Read, list))?;
    let is_unread = |snapshot: &&Value| snapshot["error"].is_string();
    let unread: Vec<_> = snapshots.iter().filter(is_unread).map(full_name).collect();
    let failed = || format!("these snapshots could not be read: {}", unread.join(", "));
    if as_json {
        let mut report = json!({ "snapshots": snapshots, "requests": requests });
        if !unread.is_empty() {
            report["error"] = cli::error_json(None, &failed(), 1);
        }
        println!("{report}");
    } else {
        snapshots.iter().for_each(print);
        cli::tell_requests(requests.as_ref());
    }
    if unread.is_empty() {
        return Ok(());
    }
    Err(Failure::Work(failed()))
}

/// The part of a tree to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    Directory,
    Everything,
}

/// Lists entries of a tree. Names damaged ones, and lists the rest.
fn list_tree(
    store: &StoreArguments,
    key: &KeyArguments,
    names: &[String],
    (listing, as_json): (Listing, bool),
) -> Outcome<()> {
    let (snapshot, archive, path) = match names {
        [snapshot, archive] => (snapshot, archive, ""),
        [snapshot, archive, path] => (snapshot, archive, path.as_str()),
        _ => return Err(input("--tree wants SNAPSHOT, ARCHIVE and perhaps PATH")),
    };
    let wanted: Wanted = snapshot.parse().map_err(|error| input(format!("{snapshot}: {error}")))?;
    let (wanted, path) = (wanted.in_namespace(store.namespace()), trees::path_of(path)?);
    let runtime = cli::runtime();
    let key = block_on(key.key(runtime.as_ref()))?;
    let mut entries = Vec::new();
    let mut damaged = 0_u64;
    let mut take = |entry: larder::Result<TreeEntry>| match entry {
        Ok(entry) if as_json => entries.push(json!(entry)),
        Ok(entry) => println!("{entry}"),
        Err(error) => {
            damaged += 1;
            eprintln!("{}", cli::told(&error));
        }
    };
    let list = async |store: Datastore| {
        interruptible(async {
            let name = wanted.name(&store).await?;
            let snapshot = trees::open_snapshot(&store, &name, key.as_ref()).await?;
            let tree = snapshot.tree(archive).await?;
            let top = tree.entry(&path).await?;
            if top.kind != FileKind::Directory {
                take(Ok(top));
            } else if listing == Listing::Directory {
                let mut directory = tree.read_dir(&path).await?;
                while let Some(entry) = directory.next().await {
                    take(entry);
                }
            } else {
                let mut walk = tree.walk_from(&path).await?;
                while let Some(step) = walk.next().await? {
                    match step {
                        TreeStep::Entry(entry) => take(Ok(*entry)),
                        TreeStep::Lost(finding) => {
                            take(Err(Error::new(ErrorKind::Corrupt, "read").on(finding)));
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        })
        .await
    };
    let ((), requests) = block_on(store.with(&runtime, Access::Read, list))?;
    if as_json {
        println!("{}", json!({ "entries": entries, "damaged": damaged, "requests": requests }));
    } else {
        cli::tell_requests(requests.as_ref());
    }
    if damaged == 0 { Ok(()) } else { Err(Failure::Incomplete) }
}

fn full_name(snapshot: &Value) -> String {
    let text = |key: &str| snapshot[key].as_str().unwrap_or_default();
    format!("[{}] {}", text("ns"), text("snapshot"))
}

/// Describes all snapshots of one namespace, or of those below it too.
async fn list(
    store: &Datastore,
    top: &Namespace,
    one: bool,
    key: Option<&EncryptionKey>,
) -> Outcome<Vec<Value>> {
    if !store.has_namespace(top).await? {
        return Err(input(format!("there is no namespace {top}")));
    }
    let namespaces = if one { vec![top.clone()] } else { store.namespaces(top).await? };
    let mut snapshots = Vec::new();
    for namespace in namespaces {
        for group in store.groups(&namespace).await? {
            let owner = store.owner(&group).await.ok().flatten().map(|owner| owner.to_string());
            for info in store.snapshots(&group).await? {
                snapshots.push(describe(store, &info, owner.as_deref(), key).await?);
            }
        }
    }
    Ok(snapshots)
}

async fn describe(
    store: &Datastore,
    info: &SnapshotInfo,
    owner: Option<&str>,
    key: Option<&EncryptionKey>,
) -> Outcome<Value> {
    let group = info.name.group();
    let snapshot = format!("{}/{}/{}", group.backup_type(), group.id(), info.name.time());
    let mut described = json!({
        "ns": info.name.namespace().to_string(),
        "snapshot": snapshot,
        "owner": owner,
        "protected": info.protected,
        "finished": info.state == SnapshotState::Finished,
        "client-log": info.has_client_log,
    });
    if info.state == SnapshotState::Unfinished {
        return Ok(described);
    }
    if let Some(unreadable) = info.unreadable.first() {
        described["error"] = unreadable.to_string().into();
        return Ok(described);
    }
    match store.snapshot(&info.name).await {
        // Deleted since it was listed.
        Err(error) if error.kind() == ErrorKind::NotFound => described["finished"] = false.into(),
        Err(error) => described["error"] = cli::told(&error).into(),
        Ok(opened) => {
            let manifest = opened.manifest();
            let files = manifest.files().iter().map(|file| {
                json!({
                    "filename": file.name.to_string(),
                    "crypt-mode": file.crypt_mode.as_str(),
                    "size": file.size,
                    "csum": file.checksum.to_string(),
                })
            });
            described["files"] = files.collect();
            let fingerprint = manifest.key_fingerprint().ok().flatten();
            described["key-fingerprint"] = fingerprint.map(|fingerprint| fingerprint.to_string()).into();
            let named = key.filter(|key| Some(key.fingerprint()) == fingerprint);
            described["authentic"] = named.map(|key| manifest.authenticate(key).is_ok()).into();
            described["notes"] = manifest.notes().into();
            let verified = manifest.verify_state().ok().flatten();
            described["verify"] = verified
                .map(|verified| if verified.state == VerifyResult::Ok { "ok" } else { "failed" })
                .into();
        }
    }
    Ok(described)
}

fn print(snapshot: &Value) {
    let text = |key: &str| snapshot[key].as_str().unwrap_or_default().to_owned();
    let marks = [
        (snapshot["protected"] == true).then_some("protected"),
        (snapshot["finished"] == false).then_some(if snapshot["error"].is_null() {
            "unfinished"
        } else {
            "unreadable"
        }),
        snapshot["error"].as_str(),
        snapshot["verify"].as_str(),
        snapshot["authentic"].as_bool().map(|is| if is { "authentic" } else { "not authentic" }),
    ];
    let marks: Vec<_> = marks.into_iter().flatten().collect();
    println!("[{}] {} {} {}", text("ns"), text("snapshot"), text("owner"), marks.join(", "));
    for file in snapshot["files"].as_array().into_iter().flatten() {
        let (name, size, csum) = (&file["filename"], &file["size"], &file["csum"]);
        println!(
            "    {:>14} {} {}",
            size,
            csum.as_str().unwrap_or_default(),
            name.as_str().unwrap_or_default()
        );
    }
    if let Some(notes) = snapshot["notes"].as_str() {
        notes.lines().for_each(|line| println!("    | {line}"));
    }
}

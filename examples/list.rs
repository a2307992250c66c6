//! Lists the snapshots of a store with their files.
//! Run with: cargo run --release --example list -- --store DIR

#[macro_use]
mod cli;

use std::process::ExitCode;

use cli::keys::KeyArguments;
use cli::signals::interruptible;
use cli::{Access, Failure, Outcome, StoreArguments, input};
use futures::executor::block_on;
use larder::crypt::EncryptionKey;
use larder::error::ErrorKind;
use larder::format::manifest::VerifyResult;
use larder::format::name::Namespace;
use larder::store::{Datastore, SnapshotInfo, SnapshotState};
use serde_json::{Value, json};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: list --store DIR [options]

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
    let mut key = KeyArguments::default();
    while let Some(argument) = cli::next(&mut parser)? {
        one |= argument == "--ns";
        match argument.as_str() {
            "--json" => as_json = true,
            option => {
                if !store.take(option, &mut parser)? && !key.take(option, &mut parser)? {
                    return Err(input(format!("{option}: there is no such option")));
                }
            }
        }
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

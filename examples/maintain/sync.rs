//! `sync`: brings the snapshots of another store into this one.

use std::num::{NonZeroU64, NonZeroUsize};

use futures::future::{BoxFuture, FutureExt as _};
use larder::format::name::AuthId;
use larder::store::Datastore;
use larder::sync::{
    self, Resync, SyncCandidates, SyncConflict, SyncGroupOutcome, SyncOptions, SyncOutcome, SyncPlan,
    SyncReport, SyncSkip, SyncStep,
};
use serde_json::{Value, json};

use crate::cli::keys::KeyArguments;
use crate::cli::{self, Access, Creation, Outcome, StoreArguments, input, signals};
use crate::output::{Output, about, bytes, count};
use crate::{Asked, Command, Place};

pub(crate) const USAGE: &str = "\
sync --from STORE      bring the snapshots of another store into this one
  --from-OPTION        any option about a store, for the other one: --from-ns, --from-cache, --from-endpoint and so on;
                       it is on the same server unless there is a --from-endpoint
  --create             make this store if there is none; with --dry-run it has to be there
  --packed[=MIB]       with --create: make a packed store, with many chunks in one object of so many MiB; default: 32
  --all-missing        also snapshots that are older than the newest one here
  --transfer-last N    only the newest N of each group
  --remove-vanished    remove here what the other store does not have any more
  --bandwidth BYTES    how many bytes a second are brought over at most
  --owner AUTHID       on whose behalf; default: root@pam. Groups of others are left alone
  --keyfile FILE       encrypt every snapshot on its way with this key, and sign it; default: snapshots stay as they are
  --passphrase-env VAR the environment variable with the passphrase of the key file
  --from-keyfile FILE, --from-passphrase-env VAR
                       the key of snapshots at the other store that have another one";

#[derive(Default)]
pub(crate) struct Sync {
    creation: Creation,
    from: StoreArguments,
    from_key: KeyArguments,
    key: KeyArguments,
    options: SyncOptions,
}

impl Command for Sync {
    fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        let options = self.options.clone();
        self.options = match option {
            "--from" => return self.from.take("--store", parser),
            "--from-keyfile" | "--from-passphrase-env" => {
                return self.from_key.take(&option.replacen("from-", "", 1), parser);
            }
            "--keyfile" | "--passphrase-env" => return self.key.take(option, parser),
            "--create" | "--packed" => return self.creation.take(option, parser),
            "--all-missing" => options.candidates(SyncCandidates::AllMissing),
            "--bandwidth" => options.bytes_per_second(cli::parsed::<NonZeroU64>(option, parser)?),
            "--owner" => options.owner(cli::parsed::<AuthId>(option, parser)?),
            "--remove-vanished" => options.remove_vanished(),
            "--transfer-last" => options.transfer_last(cli::parsed::<NonZeroUsize>(option, parser)?),
            _ => {
                let Some(option) = option.strip_prefix("--from-").filter(|option| *option != "store") else {
                    return Ok(false);
                };
                return self.from.take(&format!("--{option}"), parser);
            }
        };
        Ok(true)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        if self.from.place().is_none() {
            return Err(input("sync: --from is missing"));
        }
        if self.from.place() == asked.store.place() && self.from.namespace() == asked.store.namespace() {
            return Err(input("sync: both are the same store and namespace"));
        }
        self.creation.check()?;
        if !asked.dry_run {
            asked.store.or_create(self.creation);
        }
        #[cfg(feature = "tls")]
        self.from.same_server(&asked.store);
        asked.no_words()
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            if self.from.place() == at.asked.store.place() {
                // Opened once, so that nothing need be transferred.
                return self.sync(at.store, at, output).await;
            }
            let from = self.from.open(at.runtime, Access::Read).await?;
            let done = self.sync(&from.store, at, output).await;
            at.bar.end();
            let closed = from.close().await;
            done?;
            let requests = closed?;
            if let Some(requests) = &requests {
                output.say("of the store that was read from:");
                output.say_requests(requests);
            }
            output.set("from_requests", requests);
            Ok(())
        }
        .boxed()
    }
}

impl Sync {
    async fn sync(&self, from: &Datastore, at: &Place<'_>, output: &mut Output) -> Outcome<()> {
        let mut options = self.options.clone().observer(at.bar.clone()).abort(signals::flag());
        let key = self.key.key(at.runtime.as_ref()).await?;
        match (&key, self.from_key.key(at.runtime.as_ref()).await?) {
            (None, Some(_)) => return Err(input("sync: --from-keyfile needs --keyfile, the new key")),
            (Some(key), from) => {
                options = options.reencrypt(key);
                options = from.iter().fold(options, SyncOptions::source_key);
            }
            (None, None) => {}
        }
        let options = options
            .source_namespace(self.from.namespace().clone())
            .target_namespace(at.asked.store.namespace().clone());
        at.bar.begin("looking at both stores", None);
        let mut plan = sync::plan(from, at.store, options).await?;
        at.bar.end();
        output.set("executed", !at.asked.dry_run);
        if at.asked.dry_run {
            tell_plan(&plan, output);
            return Ok(());
        }
        at.bar.begin(
            "",
            Some(plan.snapshots().filter(|one| !matches!(one.step, SyncStep::Skip(_))).count() as u64),
        );
        let report = plan.execute().await?;
        at.bar.end();
        tell_report(&report, output);
        Ok(())
    }
}

fn tell_plan(plan: &SyncPlan, output: &mut Output) {
    let names: Vec<_> = plan.new_namespaces().iter().map(ToString::to_string).collect();
    for name in &names {
        output.say(format!("namespace {name}: would be made"));
    }
    output.set("new_namespaces", names);
    let mut listed = Vec::new();
    for group in plan.groups() {
        if let Some(owner) = &group.foreign_owner {
            output.say(format!("group {}: left alone, it belongs to {owner}", group.target));
            output.trouble(format!("{} belongs to {owner} here", group.target));
            continue;
        }
        for snapshot in &group.snapshots {
            let said = step(snapshot.step);
            output.say(format!("{}: {said}", snapshot.target));
            listed.push(about(&snapshot.target, "step", said));
            if let SyncStep::Conflict(_) = snapshot.step {
                output.trouble(format!("{} {said}", snapshot.target));
            }
        }
    }
    output.set("snapshots", listed);
    let vanished = plan.vanished();
    for snapshot in &vanished.snapshots {
        output.say(format!("{snapshot}: would be removed, it vanished from the other store"));
    }
    for snapshot in &vanished.protected {
        output.say(format!("{snapshot}: vanished from the other store, but stays, it is protected"));
    }
    for namespace in &vanished.namespaces {
        output.say(format!("namespace {namespace}: would be removed if nothing is left in it"));
    }
    let text =
        |names: &[_]| names.iter().map(larder::format::name::SnapshotName::to_string).collect::<Vec<_>>();
    let namespaces: Vec<_> = vanished.namespaces.iter().map(ToString::to_string).collect();
    let vanished = json!({
        "snapshots": text(&vanished.snapshots),
        "protected": text(&vanished.protected),
        "namespaces": namespaces,
    });
    output.set("vanished", vanished);
    let transfers = plan.snapshots().filter(|one| one.step == SyncStep::Transfer).count() as u64;
    let renewals = plan.snapshots().filter(|one| matches!(one.step, SyncStep::Resync(_))).count();
    let removals = plan.vanished().snapshots.len();
    let transfers = count(transfers, "snapshot");
    output.say(format!("{transfers} would be brought over, {renewals} renewed, {removals} removed"));
}

fn tell_report(report: &SyncReport, output: &mut Output) {
    let made: Vec<_> = report.new_namespaces.iter().map(ToString::to_string).collect();
    for name in &made {
        output.say(format!("namespace {name}: made"));
    }
    output.set("new_namespaces", made);
    let mut done = 0;
    let mut listed = Vec::new();
    for group in &report.groups {
        let whole = match &group.outcome {
            SyncGroupOutcome::Failed(error) => Some(format!("could not be begun: {}", cli::told(error))),
            SyncGroupOutcome::Foreign(owner) => Some(format!("left alone, it belongs to {owner}")),
            SyncGroupOutcome::NotReached => Some("not come to".to_owned()),
            _ => None,
        };
        if let Some(whole) = whole {
            output.say(format!("group {}: {whole}", group.target));
        }
        for snapshot in &group.snapshots {
            done += u64::from(matches!(snapshot.outcome, SyncOutcome::Done(_)));
            let said = became(&snapshot.outcome);
            output.say(format!("{}: {said}", snapshot.target));
            listed.push(about(&snapshot.target, "outcome", &said));
        }
    }
    output.set("snapshots", listed);
    tell_removed(report, output);
    let stats = report.stats();
    output.set("done", done);
    output.set("bytes_sent", stats.bytes_sent);
    output.set("chunks_reused", stats.chunks_reused);
    output.set("chunks_sent", stats.chunks_sent);
    output.say(format!(
        "{} brought over or renewed, {} removed: {} sent, {}; {} reused",
        count(done, "snapshot"),
        report.removed.len(),
        count(stats.chunks_sent, "chunk"),
        bytes(stats.bytes_sent),
        stats.chunks_reused,
    ));
    if !report.is_complete() {
        output.trouble("not everything was brought over or removed");
    }
}

fn tell_removed(report: &SyncReport, output: &mut Output) {
    let removed: Vec<_> = report.removed.iter().map(ToString::to_string).collect();
    let namespaces: Vec<_> =
        report.removed_namespaces.iter().map(|name| format!("namespace {name}")).collect();
    let protected: Vec<_> = report.protected.iter().map(ToString::to_string).collect();
    removed.iter().chain(&namespaces).for_each(|name| output.say(format!("{name}: removed")));
    for name in &protected {
        output.say(format!("{name}: vanished, but stays, it is protected"));
    }
    let failed: Vec<Value> = report
        .unremoved
        .iter()
        .map(|(name, error)| json!({ "name": name, "error": cli::told(error) }))
        .collect();
    for (name, error) in &report.unremoved {
        output.say(format!("{name}: could not be removed: {}", cli::told(error)));
    }
    output.set("removed", removed);
    output.set(
        "removed_namespaces",
        report.removed_namespaces.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    output.set("protected", protected);
    output.set("unremoved", failed);
}

fn step(step: SyncStep) -> &'static str {
    match step {
        SyncStep::Conflict(conflict) => conflict_text(conflict),
        SyncStep::Resync(Resync::Everything) => "would be brought over again, all of it",
        SyncStep::Resync(Resync::Log) => "its client log would be brought over",
        SyncStep::Resync(Resync::Manifest) => "notes and state of verification would be brought over",
        SyncStep::Skip(skip) => skip_text(skip),
        SyncStep::Transfer => "would be brought over",
        _ => "something else would be done",
    }
}

fn became(outcome: &SyncOutcome) -> String {
    match outcome {
        SyncOutcome::Conflict(conflict) => conflict_text(*conflict).to_owned(),
        SyncOutcome::Done(stats) => {
            let sent = count(stats.chunks_sent, "chunk");
            format!("brought over, {sent} sent, {}", bytes(stats.bytes_sent))
        }
        SyncOutcome::Failed(error) => format!("failed: {}", cli::told(error)),
        SyncOutcome::NotReached => "not come to".to_owned(),
        SyncOutcome::Skipped(skip) => skip_text(*skip).to_owned(),
        SyncOutcome::SourceGone => "was deleted in the other store meanwhile".to_owned(),
        _ => "something else became of it".to_owned(),
    }
}

fn conflict_text(conflict: SyncConflict) -> &'static str {
    match conflict {
        SyncConflict::Content => "is another one here, with other content; it stays",
        SyncConflict::Encryption => "is another one here, encrypted or signed in another way; it stays",
        SyncConflict::Key => "is another one here, with another key or signature; it stays",
        _ => "is another one here; it stays",
    }
}

fn skip_text(skip: SyncSkip) -> &'static str {
    match skip {
        SyncSkip::Damaged => "is here, but damaged, and stays",
        SyncSkip::NotAmongLast => "is not among the last ones",
        SyncSkip::NotEncrypted => "is not encrypted",
        SyncSkip::NotVerified => "is not verified",
        SyncSkip::Older => "is not here, but a newer one is",
        SyncSkip::Present => "is here, not compared",
        SyncSkip::Unfinished => "is unfinished in the other store",
        SyncSkip::UpToDate => "is here as it is there",
        _ => "is passed over",
    }
}

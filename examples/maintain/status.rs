//! `status`: what is in the store, and what the last garbage collection found.

use futures::future::{BoxFuture, FutureExt as _};
use larder::format::name::BackupTime;
use larder::format::status::{GcPackStatus, GcStatus};
use larder::format::upid::Upid;
use larder::gc::{self, GcOptions, PackPlan};
use larder::store::{PackUsage, SnapshotState};
use serde_json::{Value, json};

use crate::cli::{Access, Outcome, input};
use crate::gc::tell_packs;
use crate::output::{Output, bytes, count};
use crate::{Asked, Command, Ending, LAST_RUN, Place};

pub(crate) const USAGE: &str = "\
status                 how much is stored, as the last gc found it, what the last run asked of a server if there is a --cache, and the
                       groups, or those of --ns, with their snapshots
  --fresh              look again, as gc would, and remove nothing
  --only-process       in a bucket, with --fresh: no other process uses the store";

#[derive(Default)]
pub(crate) struct Status {
    fresh: bool,
    only_process: bool,
}

/// Sizes and counts.
struct Amounts {
    chunks: u64,
    logical: u64,
    stored: u64,
}

impl Command for Status {
    fn take(&mut self, option: &str, _: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--fresh" => self.fresh = true,
            "--only-process" => self.only_process = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        asked.no_words()
    }

    fn access(&self, _: &Asked) -> Access {
        // Looking at the chunks locks the store.
        if self.fresh { Access::Write } else { Access::Read }
    }

    fn ending(&self) -> Ending {
        Ending::AtOnce
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        self.look(at, output).boxed()
    }
}

impl Status {
    async fn look(&self, at: &Place<'_>, output: &mut Output) -> Outcome<()> {
        let top = at.asked.store.namespace();
        if !at.store.has_namespace(top).await? {
            return Err(input(format!("there is no namespace {top}")));
        }
        let last = at.store.gc_status().await?;
        if self.fresh {
            let (amounts, packs) = self.fresh_amounts(at).await?;
            tell_amounts(&amounts, "now", output);
            tell_packs(packs.as_ref(), output);
        } else if let Some(last) = &last {
            let amounts =
                Amounts { chunks: last.disk_chunks, logical: last.index_data_bytes, stored: last.disk_bytes };
            tell_amounts(&amounts, "at the last gc", output);
        } else {
            output.say("how much is stored is not known: no gc left its result; --fresh looks");
        }
        if !self.fresh
            && let Some(usage) = at.store.pack_usage()
        {
            tell_usage(usage, last.as_ref().and_then(|last| last.packs), output);
        }
        tell_last(last.as_ref(), output);
        tell_cost(at, output);
        tell_groups(at, output).await
    }

    async fn fresh_amounts(&self, at: &Place<'_>) -> Outcome<(Amounts, Option<PackPlan>)> {
        at.bar.begin("reading indexes", None);
        let mut options = GcOptions::default().observer(at.bar.clone());
        if self.only_process {
            options = options.only_process();
        }
        let plan = gc::plan(at.store, options).await?;
        at.bar.end();
        let in_use = plan.summary().in_use;
        let amounts =
            Amounts { chunks: in_use.chunks, logical: plan.summary().archive_bytes, stored: in_use.bytes };
        Ok((amounts, plan.summary().packs))
    }
}

fn tell_amounts(amounts: &Amounts, when: &str, output: &mut Output) {
    let Amounts { chunks, logical, stored } = *amounts;
    // For people; a quotient needs no 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let factor = (stored > 0).then(|| logical as f64 / stored as f64);
    output.set("as_of", when);
    output.set("logical_bytes", logical);
    output.set("stored_bytes", stored);
    output.set("chunks", chunks);
    output.set("factor", factor);
    let factor = factor.map_or_else(String::new, |factor| format!(", a factor of {factor:.2}"));
    let (logical, stored) = (bytes(logical), bytes(stored));
    output.say(format!(
        "the store {when}: {logical}, stored in {} of {stored}{factor}",
        count(chunks, "chunk")
    ));
}

/// Packs and segments as the index names them, and the waste as the last gc left it.
fn tell_usage(usage: PackUsage, last: Option<GcPackStatus>, output: &mut Output) {
    let unused = last.map_or_else(
        || "how much of it is unused is not known".to_owned(),
        |last| format!("{} unused at the last gc", bytes(last.unused_bytes)),
    );
    output.say(format!("packs: {usage}; {unused}"));
    output.set(
        "packs",
        json!({
            "all": { "packs": usage.packs, "bytes": usage.bytes },
            "metadata": { "packs": usage.metadata_packs, "bytes": usage.metadata_bytes },
            "segments": usage.segments,
            "unused_bytes": last.map(|last| last.unused_bytes),
        }),
    );
}

fn tell_last(last: Option<&GcStatus>, output: &mut Output) {
    output.set("last_gc", last.map(last_json));
    let Some(last) = last else { return };
    let when = started(last).map_or_else(|| "at an unknown time".to_owned(), |time| time.to_string());
    output.say(format!(
        "last gc, {when}: removed {}, {}; {} waiting, {}; {} put aside as corrupt",
        count(last.removed_chunks, "chunk"),
        bytes(last.removed_bytes),
        last.pending_chunks,
        bytes(last.pending_bytes),
        last.still_bad,
    ));
}

/// Requests of the last run, if it had a directory to record them in.
fn tell_cost(at: &Place<'_>, output: &mut Output) {
    let kept = at.asked.store.cache.as_ref().and_then(|cache| std::fs::read(cache.join(LAST_RUN)).ok());
    let run: Option<Value> = kept.and_then(|run| serde_json::from_slice(&run).ok());
    output.set("last_run", run.clone());
    if let Some(run) = run {
        output.say(format!("last run, {}:", run["command"].as_str().unwrap_or_default()));
        output.say_requests(&run["requests"]);
    }
}

fn last_json(last: &GcStatus) -> Value {
    json!({
        "upid": last.upid,
        "index-file-count": last.index_file_count,
        "index-data-bytes": last.index_data_bytes,
        "disk-bytes": last.disk_bytes,
        "disk-chunks": last.disk_chunks,
        "removed-bytes": last.removed_bytes,
        "removed-chunks": last.removed_chunks,
        "pending-bytes": last.pending_bytes,
        "pending-chunks": last.pending_chunks,
        "removed-bad": last.removed_bad,
        "still-bad": last.still_bad,
        "started": started(last).map(|time| time.to_string()),
    })
}

/// When the last garbage collection began, if it left that.
fn started(last: &GcStatus) -> Option<BackupTime> {
    let task: Upid = last.upid.as_ref()?.parse().ok()?;
    BackupTime::try_from(task.start_epoch()).ok()
}

async fn tell_groups(at: &Place<'_>, output: &mut Output) -> Outcome<()> {
    let top = at.asked.store.namespace().clone();
    let namespaces = at.store.namespaces(&top).await?;
    let (mut listed, mut all) = (Vec::new(), 0);
    for namespace in namespaces {
        for group in at.store.groups(&namespace).await? {
            let snapshots = at.store.snapshots(&group).await?;
            let finished = || snapshots.iter().filter(|info| info.state == SnapshotState::Finished);
            let newest = finished().map(|info| info.name.time()).max().map(|time| time.to_string());
            let unfinished = snapshots.len() - finished().count();
            let protected = snapshots.iter().filter(|info| info.protected).count();
            all += finished().count() as u64;
            let newest_text =
                newest.as_deref().map_or_else(String::new, |newest| format!(", newest {newest}"));
            output.say(format!(
                "{group}: {} finished{newest_text}; {unfinished} unfinished, {protected} protected",
                finished().count(),
            ));
            listed.push(json!({
                "group": group.to_string(),
                "finished": finished().count(),
                "unfinished": unfinished,
                "protected": protected,
                "newest": newest,
            }));
        }
    }
    output.say(format!("{} in {}", count(all, "snapshot"), count(listed.len() as u64, "group")));
    output.set("snapshots", all);
    output.set("groups", listed);
    Ok(())
}

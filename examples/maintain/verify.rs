//! `verify`: checks that the stored data is present and correct.

use std::fmt::Display;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use larder::store::Scope;
use larder::verify::{
    self, ArchiveDamage, Incomplete, ObjectFault, Recording, Repair, Sample, SkipReason, SnapshotDamage,
    VerifyMode, VerifyOptions, VerifyReport,
};
use serde_json::{Value, json};

use crate::cli::keys::KeyArguments;
use crate::cli::{self, Access, Outcome, input, signals};
use crate::output::{Output, about, bytes, count};
use crate::{Asked, Command, Named, Place, Target};

pub(crate) const USAGE: &str = "\
verify [SNAPSHOT|GROUP]
                       look whether what is stored is good; default: all of it, or of --ns and below
  --mode MODE          full reads everything; presence only lists; sample reads some; default: full
  --bytes N            how many bytes a sample reads at most
  --requests N         how many requests a sample makes at most
  --rotation N         where a sample begins; what the last one printed
  --outdated-after DAYS
                       in a full run, read what was not verified for so long
  --keyfile FILE       check what this key encrypted or signed with it: signatures, and every encrypted chunk that is read
  --passphrase-env VAR the environment variable with the passphrase of the key file
  --report-only        change nothing: no chunk is quarantined, no result recorded";

#[derive(Default)]
pub(crate) struct Verify {
    key: KeyArguments,
    mode: Option<String>,
    outdated_after: Option<Duration>,
    report_only: bool,
    sample: Sample,
    sample_options: Vec<String>,
    target: Option<Target>,
}

impl Command for Verify {
    fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--mode" => self.mode = Some(cli::value(parser)?),
            "--bytes" => self.sample = self.sample.bytes(cli::parsed(option, parser)?),
            "--requests" => self.sample = self.sample.requests(cli::parsed(option, parser)?),
            "--rotation" => self.sample = self.sample.rotation(cli::parsed(option, parser)?),
            "--outdated-after" => {
                let days: u64 = cli::parsed(option, parser)?;
                self.outdated_after = Some(Duration::from_secs(days.saturating_mul(86_400)));
            }
            "--report-only" => self.report_only = true,
            _ => return self.key.take(option, parser),
        }
        if matches!(option, "--bytes" | "--requests" | "--rotation") {
            self.sample_options.push(option.to_owned());
        }
        Ok(true)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        let mode = self.mode.as_deref().unwrap_or("full");
        match (mode, self.sample_options.first()) {
            ("sample", _) if !self.sample_options.iter().any(|option| option != "--rotation") => {
                return Err(input("a sample needs --bytes or --requests"));
            }
            ("full" | "presence" | "sample", None) | ("sample", _) => {}
            ("full" | "presence", Some(option)) => {
                return Err(input(format!("{option} goes with --mode sample")));
            }
            (other, _) => return Err(input(format!("--mode: {other:?} is not full, presence or sample"))),
        }
        if self.outdated_after.is_some() && mode != "full" {
            return Err(input("--outdated-after goes with --mode full"));
        }
        self.target = Some(match (asked.named()?, asked.namespace()) {
            (Some(Named::Group(group)), _) => Target::Scope(Scope::Group(group)),
            (Some(Named::Snapshot(snapshot)), _) => Target::Snapshot(snapshot),
            (None, Some(namespace)) => Target::Scope(Scope::Tree(namespace.clone())),
            (None, None) => Target::Scope(Scope::Store),
        });
        Ok(())
    }

    fn access(&self, asked: &Asked) -> Access {
        if asked.dry_run || self.report_only { Access::Read } else { Access::Write }
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        self.verify(at, output).boxed()
    }
}

impl Verify {
    async fn verify(&self, at: &Place<'_>, output: &mut Output) -> Outcome<()> {
        let scope = match &self.target {
            Some(target) => target.scope(at.store).await?,
            None => Scope::Store,
        };
        // A missing scope would report no damage.
        match &scope {
            Scope::Group(group) if !at.store.groups(group.namespace()).await?.contains(group) => {
                return Err(input(format!("there is no group {group}")));
            }
            Scope::Tree(namespace) if !at.store.has_namespace(namespace).await? => {
                return Err(input(format!("there is no namespace {namespace}")));
            }
            _ => {}
        }
        let options = match self.key.key(at.runtime.as_ref()).await? {
            Some(key) => self.options(at).key(&key),
            None => self.options(at),
        };
        let mut plan = verify::plan(at.store, &scope, options).await?;
        let estimate = *plan.estimate();
        output.say(format!(
            "at most: {}, {}, {} to read, {}",
            count(estimate.snapshots, "snapshot"),
            count(estimate.chunks, "chunk"),
            bytes(estimate.bytes),
            count(estimate.requests, "request"),
        ));
        let estimate_json = json!({
            "snapshots": estimate.snapshots,
            "chunks": estimate.chunks,
            "references": estimate.references,
            "bytes": estimate.bytes,
            "requests": estimate.requests,
        });
        output.set("estimate", estimate_json);
        output.set("executed", !at.asked.dry_run);
        if at.asked.dry_run {
            let snapshots: Vec<_> = plan.snapshots().map(ToString::to_string).collect();
            for snapshot in &snapshots {
                output.say(format!("would verify {snapshot}"));
            }
            output.set("snapshots", snapshots);
            return Ok(());
        }
        at.bar.begin("verifying", Some(estimate.chunks));
        let report = plan.execute().await?;
        at.bar.end();
        tell(&report, output);
        tell_damage(&report, output);
        Ok(())
    }

    fn options(&self, at: &Place<'_>) -> VerifyOptions {
        let mode = match self.mode.as_deref() {
            Some("presence") => VerifyMode::Presence,
            Some("sample") => VerifyMode::Sample(self.sample),
            _ => VerifyMode::Full,
        };
        let mut options = VerifyOptions::default().mode(mode);
        options = options.observer(at.bar.clone()).abort(signals::flag());
        if self.report_only {
            options = options.repair(Repair::Report).recording(Recording::Off);
        }
        if let Some(time) = self.outdated_after {
            options = options.skip_verified_within(time);
        }
        options
    }
}

/// The checks made, and the repairs.
fn tell(report: &VerifyReport, output: &mut Output) {
    let chunks = report.chunks;
    let states = [
        (chunks.digest, "good", "digest"),
        (chunks.checksum, "good as far as the checksum of encrypted data tells", "checksum"),
        (chunks.presence, "there, not read", "presence"),
        (chunks.corrupt, "corrupt", "corrupt"),
        (chunks.missing, "missing", "missing"),
        (chunks.unreachable, "not known, since they could not be read", "unreachable"),
    ];
    for (number, what, _) in states.iter().filter(|(number, ..)| *number > 0) {
        output.say(format!("{}: {what}", count(*number, "chunk")));
    }
    let counts: serde_json::Map<_, _> =
        states.iter().map(|(number, _, key)| ((*key).to_owned(), Value::from(*number))).collect();
    output.set("chunks", counts);
    let done = [
        ("quarantined", report.quarantined, "corrupt chunks quarantined"),
        ("reinstated", report.reinstated, "missing chunks reinstated"),
        ("unrepaired", report.unrepaired, "chunks that could not be quarantined or reinstated"),
        ("unsteady", report.unsteady, "objects that were bad when read once and good when read again"),
        ("unrecorded", report.unrecorded.len() as u64, "manifests in which the result could not be recorded"),
    ];
    for (key, number, what) in done {
        output.set(key, number);
        if number > 0 {
            output.say(format!("{what}: {number}"));
        }
    }
    let verified_before = |reason: SkipReason| reason == SkipReason::VerifiedBefore;
    for skipped in report.skipped.iter().filter(|skipped| !verified_before(skipped.reason)) {
        output.say(format!("skipped: {}: {}", skipped.name, skip_reason(skipped.reason)));
    }
    let recent = report.skipped.iter().filter(|skipped| verified_before(skipped.reason)).count() as u64;
    if recent > 0 {
        output.say(format!("not read, since verified not long ago: {}", count(recent, "snapshot")));
    }
    let skipped = report.skipped.iter().map(|one| about(&one.name, "reason", &skip_reason(one.reason)));
    output.set("skipped", skipped.collect::<Vec<_>>());
    output.set("sound", report.sound);
    output.set("bytes", report.bytes);
    output.set("requests_to_read", report.requests);
    output.set("next_rotation", report.next_rotation);
    if let Some(next) = report.next_rotation {
        output.say(format!("the next sample begins with --rotation {next}"));
    }
    output.say(format!("read {} in {}", bytes(report.bytes), count(report.requests, "request")));
    output.say(format!("sound: {}", count(report.sound, "snapshot")));
}

/// The defects.
fn tell_damage(report: &VerifyReport, output: &mut Output) {
    for damaged in &report.damaged {
        output.say(format!("damaged: {}", damaged.name));
        if let Some(fault) = damaged.manifest {
            output.say(format!("  the manifest is {}", fault_text(fault)));
        }
        for archive in &damaged.archives {
            output.say(format!("  {}: {}", archive.name, archive_faults(archive)));
        }
    }
    output.set("damaged", report.damaged.iter().map(damaged_json).collect::<Vec<_>>());
    for log in &report.damaged_logs {
        output.say(format!("the client log of {log} is damaged"));
    }
    for unreadable in &report.unreadable {
        output.trouble(format!("cannot read {unreadable}"));
    }
    output.set("unreadable", report.unreadable.iter().map(ToString::to_string).collect::<Vec<_>>());
    let logs: Vec<_> = report.damaged_logs.iter().map(ToString::to_string).collect();
    output.set("damaged_logs", logs);
    let incomplete = report.incomplete.map(|incomplete| match incomplete {
        Incomplete::Aborted => "it was aborted",
        Incomplete::Budget => "the sample may read no more",
        Incomplete::Unreachable => "something could not be read",
    });
    output.set("incomplete", incomplete);
    if report.is_suspicion_damaged {
        output.say("the list of suspect chunks is damaged: nothing is quarantined; it can be deleted when nothing uses the store");
    }
    if !report.damaged.is_empty() {
        output.trouble(format!("{} damaged", are(report.damaged.len(), "snapshot")));
    }
    let bad = report.chunks.corrupt + report.chunks.missing;
    if report.damaged.is_empty() && bad > 0 {
        let bad = count(bad, "chunk");
        output
            .trouble(format!("corrupt or missing: {bad}, and which snapshots that hurts was not found out"));
    }
    if !report.damaged_logs.is_empty() {
        output.trouble(format!("{} damaged", are(report.damaged_logs.len(), "client log")));
    }
    if let Some(why) = incomplete {
        output.trouble(format!("not everything was checked: {why}"));
    } else if report.damaged.is_empty()
        && report.damaged_logs.is_empty()
        && report.unreadable.is_empty()
        && !report.is_clean()
    {
        output.trouble("not everything was checked: some snapshots are in use or could not be read");
    }
    if report.unrepaired > 0 || !report.unrecorded.is_empty() {
        output.trouble("not all that was found could be acted on or written down");
    }
}

fn are(number: usize, what: &str) -> String {
    format!("{} {}", count(number as u64, what), if number == 1 { "is" } else { "are" })
}

fn archive_faults(archive: &ArchiveDamage) -> String {
    let counts = [
        (archive.corrupt, "corrupt chunk"),
        (archive.missing, "missing chunk"),
        (archive.misfits, "chunk that is not what the index says"),
    ];
    let mut faults: Vec<_> = archive.fault.map(|fault| fault_text(fault).to_owned()).into_iter().collect();
    for (number, what) in counts.into_iter().filter(|(number, _)| *number > 0) {
        faults.push(match what.split_once(' ') {
            Some(("chunk", that)) => format!("{} {that}", count(number, "chunk")),
            _ => count(number, what),
        });
    }
    faults.join(", ")
}

fn damaged_json(damaged: &SnapshotDamage) -> Value {
    let archives = damaged.archives.iter().map(|archive| {
        json!({
            "name": archive.name.to_string(),
            "fault": archive.fault.map(fault_text),
            "corrupt": archive.corrupt,
            "missing": archive.missing,
            "misfits": archive.misfits,
            "digests": archive.digests.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    json!({
        "snapshot": damaged.name.to_string(),
        "manifest": damaged.manifest.map(fault_text),
        "archives": archives.collect::<Vec<_>>(),
    })
}

fn fault_text(fault: ObjectFault) -> &'static str {
    match fault {
        ObjectFault::Corrupt => "corrupt",
        ObjectFault::Missing => "missing",
        ObjectFault::Signature => "not authentic",
    }
}

fn skip_reason(reason: SkipReason) -> String {
    let text: &dyn Display = match &reason {
        SkipReason::Busy => &"it is being written or deleted",
        SkipReason::Unfinished => &"it is unfinished",
        SkipReason::Unreachable(kind) => return format!("its manifest could not be read: {kind:?}"),
        SkipReason::Vanished => &"it was deleted meanwhile",
        SkipReason::VerifiedBefore => &"it was verified not long ago",
        _ => &"for another reason",
    };
    text.to_string()
}

//! `prune` and `forget`: remove snapshots, by rules or by name. Their chunks stay until garbage is collected.

use std::path::Path;

use futures::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use larder::error::Error;
use larder::format::name::BackupTime;
use larder::prune::{
    self, PruneGroupOutcome, PruneOptions, PruneOutcome, PrunePlan, PruneReport, PruneSnapshot, PruneStop,
};
use larder::retention::{Decision, RetentionRules};
use larder::store::{Scope, SnapshotState};
use serde_json::json;

use crate::cli::{self, Outcome, input, signals};
use crate::output::{Output, about, count};
use crate::{Asked, Command, Named, Place, Target};

pub(crate) const USAGE: &str = "\
prune [GROUP]          remove the snapshots that no rule keeps; default: of all groups, or of those of --ns and below
  --keep-last N        keep the newest N; also --keep-hourly, --keep-daily, --keep-weekly, --keep-monthly, --keep-yearly
  --time-zone NAME     where hours, days and so on begin, such as Europe/Vienna; default: the time zone of this host, as in PBS
  --utc-offset OFFSET  the same, as +HH:MM or -HH:MM all the year round

forget SNAPSHOT|GROUP  remove it, but for what is protected; without either: all that is in --ns and below";

#[derive(Default)]
pub(crate) struct Prune {
    rules: RetentionRules,
    scope: Option<Scope>,
    time_zone: Option<TimeZone>,
}

impl Command for Prune {
    fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        let keep = match option {
            "--keep-last" => RetentionRules::keep_last,
            "--keep-hourly" => RetentionRules::keep_hourly,
            "--keep-daily" => RetentionRules::keep_daily,
            "--keep-weekly" => RetentionRules::keep_weekly,
            "--keep-monthly" => RetentionRules::keep_monthly,
            "--keep-yearly" => RetentionRules::keep_yearly,
            "--utc-offset" => {
                self.time_zone = Some(utc_offset(&cli::value(parser)?)?);
                return Ok(true);
            }
            "--time-zone" => {
                let name = cli::value(parser)?;
                let found = TimeZone::get(&name);
                self.time_zone = Some(found.map_err(|error| input(format!("--time-zone {name}: {error}")))?);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.rules = keep(std::mem::take(&mut self.rules), cli::parsed(option, parser)?);
        Ok(true)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        if self.rules == RetentionRules::default() {
            return Err(input("prune: what is to be kept? --keep-last N or another rule is wanted"));
        }
        if self.time_zone.is_none() {
            self.time_zone = Some(local_time_zone()?);
        }
        self.scope = Some(match asked.named()? {
            Some(Named::Group(group)) => Scope::Group(group),
            Some(Named::Snapshot(snapshot)) => {
                return Err(input(format!("prune: {snapshot} is a snapshot; forget removes one")));
            }
            None => Scope::Tree(asked.store.namespace().clone()),
        });
        Ok(())
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let time_zone = self.time_zone.clone().unwrap_or(TimeZone::UTC);
            // An offset for each snapshot, of its own time: summer time has another one.
            let offset = move |time: BackupTime| {
                let time = Timestamp::from_second(time.epoch()).unwrap_or_default();
                time_zone.to_offset(time).seconds()
            };
            let options = PruneOptions::default().rules(self.rules).utc_offset(offset);
            let Some(scope) = &self.scope else { return Ok(()) };
            let options = options.observer(at.bar.clone()).abort(signals::flag());
            carry_out(prune::plan(at.store, scope, options).await?, at, output).await
        }
        .boxed()
    }
}

#[derive(Default)]
pub(crate) struct Forget {
    target: Option<Target>,
}

impl Command for Forget {
    fn take(&mut self, _: &str, _: &mut lexopt::Parser) -> Outcome<bool> {
        Ok(false)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        self.target = Some(match (asked.named()?, asked.namespace()) {
            (Some(Named::Group(group)), _) => Target::Scope(Scope::Group(group)),
            (Some(Named::Snapshot(snapshot)), _) => Target::Snapshot(snapshot),
            (None, Some(namespace)) if !namespace.is_root() => Target::Scope(Scope::Tree(namespace.clone())),
            (None, _) => return Err(input("forget: a snapshot, a group or --ns is wanted")),
        });
        Ok(())
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let Some(target) = &self.target else { return Ok(()) };
            let scope = target.scope(at.store).await?;
            let options = PruneOptions::default().observer(at.bar.clone()).abort(signals::flag());
            let plan = prune::plan_deletion(at.store, &scope, options).await?;
            let protected = plan.counts().protected;
            carry_out(plan, at, output).await?;
            if protected > 0 && !at.asked.dry_run {
                output.trouble(format!("protected, and stays: {}", count(protected, "snapshot")));
            }
            Ok(())
        }
        .boxed()
    }
}

async fn carry_out(mut plan: PrunePlan, at: &Place<'_>, output: &mut Output) -> Outcome<()> {
    let counts = plan.counts();
    let plan_json = json!({
        "keep": counts.keep,
        "keep_partial": counts.keep_partial,
        "protected": counts.protected,
        "remove": counts.remove,
    });
    output.set("plan", plan_json);
    output.set("executed", !at.asked.dry_run);
    if at.asked.dry_run {
        tell_plan(&plan, output);
        return Ok(());
    }
    let total = plan.groups().iter().map(|group| group.snapshots.len() as u64).sum();
    at.bar.begin("removing", Some(total));
    let report = plan.execute().await?;
    at.bar.end();
    tell_report(&report, output);
    Ok(())
}

fn tell_plan(plan: &PrunePlan, output: &mut Output) {
    let mut listed = Vec::new();
    for snapshot in plan.groups().iter().flat_map(|group| &group.snapshots) {
        let said = match snapshot.decision {
            Decision::Remove => "would go",
            other => kept(other),
        };
        let state = match snapshot.state {
            SnapshotState::Finished => "",
            SnapshotState::Unfinished => " (unfinished)",
            SnapshotState::Unreadable => " (unreadable)",
        };
        output.say(format!("{}{state}: {said}", snapshot.name));
        listed.push(about(&snapshot.name, "outcome", said));
    }
    output.set("snapshots", listed);
    let namespaces = plan.namespaces().iter().map(|one| &one.namespace);
    let namespaces: Vec<_> =
        namespaces.filter(|namespace| !namespace.is_root()).map(ToString::to_string).collect();
    for namespace in &namespaces {
        output.say(format!("namespace {namespace}: would go if nothing is left in it"));
    }
    output.set("namespaces", namespaces);
    let counts = plan.counts();
    let stay = counts.keep + counts.keep_partial + counts.protected;
    output.say(format!("{} would go, {stay} would stay", count(counts.remove, "snapshot")));
}

fn tell_report(report: &PruneReport, output: &mut Output) {
    let (mut listed, mut kept_count) = (Vec::new(), 0);
    for snapshot in report.groups.iter().flat_map(|group| &group.snapshots) {
        let said = became(snapshot);
        output.say(format!("{}: {said}", snapshot.name));
        kept_count += u64::from(matches!(snapshot.outcome, PruneOutcome::Kept | PruneOutcome::Protected));
        listed.push(about(&snapshot.name, "outcome", &said));
    }
    output.set("snapshots", listed);
    let mut gone = Vec::new();
    let mut of_groups = |name: String, outcome: &PruneGroupOutcome| match outcome {
        PruneGroupOutcome::Removed => {
            output.say(format!("{name}: gone"));
            gone.push(name);
        }
        PruneGroupOutcome::Failed(error) => {
            output.say(format!("{name}: {}", cli::told(error)));
            output.trouble(format!("{name} could not be removed"));
        }
        _ => {}
    };
    for group in &report.groups {
        of_groups(format!("group {}", group.group), &group.outcome);
    }
    for namespace in &report.namespaces {
        of_groups(format!("namespace {}", namespace.namespace), &namespace.outcome);
    }
    output.set("gone", gone);
    output.set("removed", report.removed());
    output.set("left", report.left());
    let removed = count(report.removed(), "snapshot");
    output.say(format!("{removed} removed, {kept_count} kept; gc removes chunks that nothing uses any more"));
    if report.left() > 0 {
        output.trouble(format!("{} could not be removed yet", count(report.left(), "snapshot")));
    }
    match &report.stopped {
        None => {}
        Some(PruneStop::Lost(error)) => output.trouble(cli::told(error)),
        Some(_) => output.trouble("it ended early"),
    }
}

fn kept(decision: Decision) -> &'static str {
    match decision {
        Decision::Protected => "stays, it is protected",
        Decision::KeepPartial => "stays, it is unfinished and the newest",
        Decision::Keep | Decision::Remove => "stays",
    }
}

fn became(snapshot: &PruneSnapshot) -> String {
    let with = |what: &str, error: &Error| format!("{what}: {}", cli::told(error));
    match &snapshot.outcome {
        PruneOutcome::Busy(error) => with("stays, it is in use", error),
        PruneOutcome::Changed => "stays, it changed meanwhile".to_owned(),
        PruneOutcome::Failed(error) => with("could not be removed", error),
        PruneOutcome::Gone => "was gone already".to_owned(),
        PruneOutcome::Kept => kept(snapshot.decision).to_owned(),
        PruneOutcome::NotReached => "not come to".to_owned(),
        PruneOutcome::Protected => "stays, it is protected".to_owned(),
        PruneOutcome::Removed => "removed".to_owned(),
        _ => "something else became of it".to_owned(),
    }
}

/// The time zone of this host: UTC where none is set, as for all other programs.
fn local_time_zone() -> Outcome<TimeZone> {
    let is_set = std::env::var_os("TZ").is_some() || Path::new("/etc/localtime").exists();
    match TimeZone::try_system() {
        Err(error) if is_set => {
            Err(input(format!("prune: {error}; --time-zone NAME says which time zone is meant")))
        }
        found => Ok(found.unwrap_or(TimeZone::UTC)),
    }
}

/// The time zone with one offset from UTC.
fn utc_offset(text: &str) -> Outcome<TimeZone> {
    let wrong = || input(format!("--utc-offset: {text:?} is not +HH:MM or -HH:MM"));
    let sign = match text.chars().next() {
        Some('+') => 1,
        Some('-') => -1,
        _ => return Err(wrong()),
    };
    let (hours, minutes) = text[1..].split_once(':').ok_or_else(wrong)?;
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return Err(wrong());
    }
    let (hours, minutes): (i32, i32) =
        (hours.parse().map_err(|_| wrong())?, minutes.parse().map_err(|_| wrong())?);
    if hours > 23 || minutes > 59 {
        return Err(wrong());
    }
    let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).map_err(|_| wrong())?;
    Ok(TimeZone::fixed(offset))
}

//! `gc`: finds chunks that no snapshot needs, and removes them.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use larder::format::name::BackupTime;
use larder::format::upid::Upid;
use larder::gc::{
    self, Amount, ChunkTally, GcEnd, GcOptions, GcPlan, GcReport, LeftPacks, PackAction, PackPlan, PackTally,
    Prices, SafetyLimit, Sizes,
};
use serde_json::{Value, json};

use crate::cli::{self, Access, Outcome, input, signals};
use crate::output::{Output, bytes, count};
use crate::{Asked, Command, Place};

pub(crate) const USAGE: &str = "\
gc                     remove chunks that nothing uses
  --grace SECONDS      how long they stay after they were last used; default: 24 hours and 5 minutes
  --listing-lag SECS   in a bucket: how long a listing may not show what was stored; default: an hour
  --clock-was-set-back
                       garbage that is dated more than a week ahead of the clock of the store counts as old
  --one-sighting       in a bucket: remove them when they are seen for the first time
  --only-process       in a bucket: no other process uses the store
  --max-unused PERCENT in a packed store: unused bytes above which packs are rewritten; default: 5
  --max-repack-mib MIB in a packed store: at most this much is copied; default: no limit
  --keep-packs-days N  in a packed store: younger packs stay; default: 0
  --prices LIST        in a packed store: say what each action costs, by the prices of the provider, such as
                       puts=0.005,gets=0.0004,read=0.09,month=0.023,days=30 for 1,000 puts, 1,000 gets, a GB read, a GB stored for
                       a month, and the days that a deleted object is billed for at least; what is not named costs nothing
  --confirm            go on though more would go than is usual
  --unused-sizes       look at the sizes of unused chunks only, which is faster; what status shows is not brought up to date";

#[derive(Default)]
pub(crate) struct Gc {
    confirm: bool,
    options: GcOptions,
    unused_sizes: bool,
}

impl Command for Gc {
    fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        let options = self.options.clone();
        match option {
            "--confirm" => self.confirm = true,
            "--grace" => self.options = options.grace(Duration::from_secs(cli::parsed(option, parser)?)),
            "--listing-lag" => {
                self.options = options.listing_lag(Duration::from_secs(cli::parsed(option, parser)?));
            }
            "--keep-packs-days" => {
                let days: u32 = cli::parsed(option, parser)?;
                self.options = options.keep_packs(Duration::from_hours(24) * days);
            }
            "--max-repack-mib" => {
                let mebibytes: u32 = cli::parsed(option, parser)?;
                self.options = options.max_repack_bytes(u64::from(mebibytes) << 20);
            }
            "--max-unused" => self.options = options.max_unused(cli::parsed(option, parser)?),
            "--prices" => {
                let list: String = cli::parsed(option, parser)?;
                self.options = options.prices(prices(&list)?);
            }
            "--clock-was-set-back" => self.options = options.clock_was_set_back(),
            "--one-sighting" => self.options = options.consistent_listings(),
            "--only-process" => self.options = options.only_process(),
            "--unused-sizes" => {
                self.options = options.sizes(Sizes::Unused);
                self.unused_sizes = true;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        if asked.named_namespace {
            return Err(input("--ns: chunks belong to no namespace"));
        }
        asked.no_words()
    }

    fn access(&self, _: &Asked) -> Access {
        // Looking locks the store, too.
        Access::Write
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        self.collect(at, output).boxed()
    }
}

impl Gc {
    async fn collect(&self, at: &Place<'_>, output: &mut Output) -> Outcome<()> {
        at.bar.begin("reading indexes", None);
        let mut options = self.options.clone().observer(at.bar.clone()).abort(signals::flag());
        if let Some(task) = task(at) {
            options = options.task(task);
        }
        let plan = gc::plan(at.store, options).await?;
        at.bar.end();
        self.tell_plan(&plan, output);
        let safety_limit =
            plan.safety_limit().filter(|_| !self.confirm).map(|safety_limit| match safety_limit {
                SafetyLimit::NoSnapshots => {
                    format!(
                        "there is no snapshot, and all {} would go",
                        count(plan.summary().garbage.chunks, "chunk")
                    )
                }
                SafetyLimit::Share(most) => {
                    format!(
                        "{} would go, more than {most} percent",
                        count(plan.summary().garbage.chunks, "chunk")
                    )
                }
                _ => "more would go than is usual".to_owned(),
            });
        output.set("brake", safety_limit.clone());
        output.set("executed", !at.asked.dry_run && safety_limit.is_none());
        match safety_limit {
            Some(why) if at.asked.dry_run => output.say(format!("would need --confirm: {why}")),
            Some(why) => {
                output.trouble(format!("nothing was removed: {why}; --confirm says that it is meant"));
            }
            None if at.asked.dry_run => {}
            None => {
                at.bar.begin("removing", Some(plan.summary().garbage.chunks));
                let mut plan = if self.confirm { plan.confirm() } else { plan };
                let report = plan.execute().await?;
                at.bar.end();
                self.tell_report(&report, output);
            }
        }
        Ok(())
    }

    fn tell_plan(&self, plan: &GcPlan, output: &mut Output) {
        let summary = plan.summary();
        let (indexes, logical) = (summary.indexes, summary.archive_bytes);
        output.set("indexes", indexes);
        output.set("logical_bytes", logical);
        output.say(format!("indexes: {indexes}, which stand for {}", bytes(logical)));
        let in_use = plan.summary().in_use;
        output.set(
            "in_use",
            if self.unused_sizes { json!({ "chunks": in_use.chunks }) } else { tally(in_use) },
        );
        let size = if self.unused_sizes { String::new() } else { format!(", {}", bytes(in_use.bytes)) };
        output.say(format!("in use:  {}{size}", count(in_use.chunks, "chunk")));
        let (garbage, waiting, (aside, quarantined_garbage)) =
            (summary.garbage, summary.waiting, (summary.quarantined, summary.quarantined_garbage));
        for (key, tally_of) in [("garbage", garbage), ("waiting", waiting)] {
            output.set(key, tally(tally_of));
        }
        output.set("put_aside", tally(aside));
        output.set("put_aside_garbage", tally(quarantined_garbage));
        output.say(format!("garbage: {}", text(garbage)));
        let why = if waiting.chunks > 0 { "; unused, but too young or seen for the first time" } else { "" };
        output.say(format!("waiting: {}{why}", text(waiting)));
        tell_packs(summary.packs.as_ref(), output);
        if aside.chunks > 0 {
            let (all, go) = (text(aside), quarantined_garbage.chunks);
            output.say(format!("put aside as corrupt: {all}; {go} of them can go"));
        }
        let (damaged, damaged_count) = (&summary.damaged, summary.damaged_count);
        output.set("missing", plan.summary().missing);
        output.set("damaged_count", damaged_count);
        let named =
            damaged.iter().map(|one| json!({ "snapshot": one.name.to_string(), "missing": one.missing }));
        output.set("damaged", named.collect::<Vec<_>>());
        if plan.summary().missing > 0 {
            output.say(format!("missing: {}", count(plan.summary().missing, "chunk")));
            for one in damaged {
                output.say(format!("  damaged: {} names {}", one.name, count(one.missing, "missing chunk")));
            }
            let snapshots = count(damaged_count, "snapshot");
            output.trouble(format!("missing: {}, in {snapshots}", count(plan.summary().missing, "chunk")));
        }
        let (foreign, foreign_count) = (summary.foreign.clone(), summary.foreign_count);
        output.set("foreign_count", foreign_count);
        if foreign_count > 0 {
            output.say(format!("foreign: {}, which stay", count(foreign_count, "path")));
            for path in &foreign {
                output.say(format!("  {}", path.escape_debug()));
            }
        }
        output.set("foreign", foreign);
    }

    fn tell_report(&self, report: &GcReport, output: &mut Output) {
        let end = match &report.end {
            GcEnd::Aborted => "aborted".to_owned(),
            GcEnd::Complete => "complete".to_owned(),
            GcEnd::Stopped(error) => format!("stopped: {}", cli::told(error)),
            _ => "ended".to_owned(),
        };
        output.say(format!("removed: {}", text(report.removed)));
        if report.removed_quarantined.chunks > 0 {
            output.say(format!("removed of those put aside: {}", text(report.removed_quarantined)));
        }
        let stayed = [("absent", report.absent), ("busy", report.busy), ("pinned", report.pinned)];
        for (what, number) in stayed.into_iter().chain([("failed", report.failed)]) {
            if number > 0 {
                output.say(format!("{what}: {}", count(number, "chunk")));
            }
        }
        if report.leftovers > 0 {
            output.say(format!("parts of puts that never ended, removed: {}", report.leftovers));
        }
        let refused = report.leftovers_refused.as_ref().map(cli::told);
        if let Some(refused) = &refused {
            output.say(format!("parts of puts that never ended were not looked for: {refused}"));
        }
        let failures =
            report.failures.iter().map(|failure| format!("{:?}: {}", failure.key, cli::told(&failure.error)));
        let failures: Vec<_> = failures.collect();
        for failure in &failures {
            output.say(format!("  {failure}"));
        }
        if report.failed > 0 {
            output.trouble(format!(
                "{} could not be removed, or that is not known",
                count(report.failed, "object")
            ));
        }
        if !matches!(report.end, GcEnd::Complete) {
            output.trouble(&end);
        } else if let Some(remark) = report.remarks.first() {
            output.say(format!("its result was not written down: {remark}"));
        } else if !report.status_written && !self.unused_sizes {
            output.trouble("its result could not be written down");
        }
        let report = json!({
            "removed": tally(report.removed),
            "removed_put_aside": tally(report.removed_quarantined),
            "absent": report.absent,
            "busy": report.busy,
            "pinned": report.pinned,
            "leftovers": report.leftovers,
            "leftovers_refused": refused,
            "failed": report.failed,
            "failures": failures,
            "waiting": tally(report.waiting),
            "status_written": report.status_written,
            "end": end,
        });
        output.set("report", report);
    }
}

/// Prints the plan for the packs of a packed store.
pub(crate) fn tell_packs(packs: Option<&PackPlan>, output: &mut Output) {
    let Some(packs) = packs else { return };
    output.say(format!("packs:   {packs}"));
    for (name, action) in [("delete", packs.delete), ("rewrite", packs.repack), ("merge", packs.merge)] {
        if action.packs > 0 {
            output.say(format!("  {name}: {action}"));
        }
    }
    if packs.leave != LeftPacks::default() {
        output.say(format!("  leave: {}", packs.leave));
    }
    let left = packs.leave;
    output.set(
        "packs",
        json!({
            "all": pack_tally(packs.packs),
            "unused_bytes": packs.unused_bytes,
            "delete": pack_action(packs.delete),
            "repack": pack_action(packs.repack),
            "merge": pack_action(packs.merge),
            "leave": {
                "in_use": pack_tally(left.in_use),
                "kept": pack_tally(left.kept),
                "limited": pack_tally(left.limited),
                "quarantined": pack_tally(left.quarantined),
                "small": pack_tally(left.small),
                "soon_again": pack_tally(left.soon_again),
                "tolerated": pack_tally(left.tolerated),
                "unsettled": pack_tally(left.unsettled),
            },
            "copied_bytes": packs.copied_bytes,
            "segments": packs.segments,
        }),
    );
}

fn pack_tally(tally: PackTally) -> Value {
    json!({ "packs": tally.packs, "bytes": tally.bytes })
}

fn pack_action(action: PackAction) -> Value {
    let cost = action.cost.map(|cost| {
        json!({
            "early_deletion": cost.early_deletion.to_string(),
            "once": cost.once.to_string(),
            "saved_monthly": cost.saved_monthly.to_string(),
        })
    });
    json!({
        "packs": action.packs,
        "bytes": action.bytes,
        "read_bytes": action.read_bytes,
        "written_bytes": action.written_bytes,
        "freed_bytes": action.freed_bytes,
        "gets": action.gets,
        "puts": action.puts,
        "deletes": action.deletes,
        "cost": cost,
    })
}

/// Prices such as `puts=0.005,gets=0.0004`.
fn prices(text: &str) -> Outcome<Prices> {
    let mut prices = Prices::default();
    for part in text.split(',') {
        let (name, value) =
            part.split_once('=').ok_or_else(|| input(format!("--prices: {part} is not NAME=AMOUNT")))?;
        let amount = || -> Outcome<Amount> {
            value.parse().map_err(|error| input(format!("--prices: {name}: {error}")))
        };
        prices = match name {
            "puts" => prices.thousand_puts(amount()?),
            "gets" => prices.thousand_gets(amount()?),
            "read" => prices.gigabyte_read(amount()?),
            "month" => prices.gigabyte_month(amount()?),
            "days" => {
                let days =
                    value.parse().map_err(|_| input(format!("--prices: {value} is no number of days")))?;
                prices.minimum_days(days)
            }
            _ => return Err(input(format!("--prices: there is no {name}; see --help"))),
        };
    }
    Ok(prices)
}

/// The task that PBS, and status, will see.
fn task(at: &Place<'_>) -> Option<Upid> {
    let start = BackupTime::try_from(at.runtime.now()).ok()?;
    let (pid, start) = (std::process::id(), start.epoch());
    let task =
        format!("UPID:localhost:{pid:08X}:00000000:00000000:{start:08X}:garbage_collection:store:root@pam:");
    task.parse().ok()
}

fn tally(tally: ChunkTally) -> Value {
    json!({ "chunks": tally.chunks, "bytes": tally.bytes })
}

fn text(tally: ChunkTally) -> String {
    format!("{}, {}", count(tally.chunks, "chunk"), bytes(tally.bytes))
}

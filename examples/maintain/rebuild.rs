//! `rebuild-index`: rebuilds the index of a packed store from its packs.

use futures::future::{BoxFuture, FutureExt as _};
use serde_json::json;

use crate::cli::{self, Access, Outcome};
use crate::output::{Output, count};
use crate::{Asked, Command, Place};

pub(crate) const USAGE: &str = "\
rebuild-index          in a packed store: add the packs that the index lacks, and replace what is damaged of it";

#[derive(Default)]
pub(crate) struct Rebuild;

impl Command for Rebuild {
    fn take(&mut self, _: &str, _: &mut lexopt::Parser) -> Outcome<bool> {
        Ok(false)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        asked.no_words()
    }

    fn access(&self, _: &Asked) -> Access {
        // Looking locks the store, too.
        Access::Write
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let mut plan = at.store.plan_index_rebuild().await?;
            let summary = plan.summary();
            output.set(
                "index",
                json!({
                    "damaged": summary.damaged,
                    "missing": summary.missing,
                    "packs": summary.packs,
                    "unnamed": summary.unnamed,
                    "unnamed_bytes": summary.unnamed_bytes,
                }),
            );
            output.say(summary);
            if at.asked.dry_run {
                return Ok(());
            }
            let report = plan.execute().await?;
            output.say(format!(
                "added: {} in {}",
                count(report.chunks, "chunk"),
                count(report.packs, "pack")
            ));
            if report.scanned > 0 {
                output.say(format!("without a good directory: {}", count(report.scanned, "pack")));
            }
            let unreadable = report
                .unreadable
                .iter()
                .map(|pack| json!({ "pack": pack.key.to_string(), "error": cli::told(&pack.error) }));
            output.set(
                "report",
                json!({
                    "chunks": report.chunks,
                    "packs": report.packs,
                    "scanned": report.scanned,
                    "unreadable": unreadable.collect::<Vec<_>>(),
                }),
            );
            for pack in &report.unreadable {
                output.trouble(pack);
            }
            Ok(())
        }
        .boxed()
    }
}

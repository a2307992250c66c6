//! `adopt`: a copy of a store becomes a store of its own.

use futures::future::{BoxFuture, FutureExt as _};

use crate::cli::Outcome;
use crate::output::Output;
use crate::{Asked, Command, Ending, Place};

pub(crate) const USAGE: &str = "\
adopt                  give a copy of a store an identity of its own, so that it can be synced with its original";

#[derive(Default)]
pub(crate) struct Adopt;

impl Command for Adopt {
    fn take(&mut self, _: &str, _: &mut lexopt::Parser) -> Outcome<bool> {
        Ok(false)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        asked.no_words()
    }

    fn ending(&self) -> Ending {
        Ending::AtOnce
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let before = at.store.uuid().unwrap_or("none").to_owned();
            if at.asked.dry_run {
                output.say(format!("the identity {before} would be replaced"));
                return Ok(());
            }
            let identity = at.store.adopt_as_new().await?;
            output.say(format!("the store has the identity {identity} now; it was {before}"));
            output.set("identity", identity);
            Ok(())
        }
        .boxed()
    }
}

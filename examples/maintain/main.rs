//! Looks after a store: garbage, damage, what is kept, copies elsewhere.
//! Run with: cargo run --release --example maintain -- --store DIR status

#[macro_use]
#[path = "../cli/mod.rs"]
mod cli;
mod adopt;
mod chown;
mod gc;
mod output;
mod progress;
mod prune;
mod rebuild;
mod relocate;
mod status;
mod sync;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;

use cli::signals::{interruptible, stepwise};
use cli::{Access, Failure, Outcome, StoreArguments, Wanted, input};
use futures::executor::block_on;
use futures::future::BoxFuture;
use larder::format::name::{GroupName, Namespace};
use larder::rt::Runtime;
use larder::store::{Datastore, Scope};
use output::Output;
use progress::Bar;
use serde_json::json;

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: maintain --store DIR [options] COMMAND [options]

{}

{}

{}

{}

{}

{}

{}

{}

{}

with all of them:
{}
  --dry-run            say what would be done, and do nothing
{}

Exit status: 0 if all went well, 1 if something failed or damage was found, 2 if what was asked for makes no sense, 130 or 143 if
SIGINT or SIGTERM ended it.",
        status::USAGE,
        gc::USAGE,
        verify::USAGE,
        prune::USAGE,
        sync::USAGE,
        relocate::USAGE,
        adopt::USAGE,
        rebuild::USAGE,
        chown::USAGE,
        cli::STORE_USAGE,
        cli::JSON_USAGE,
    )
}

/// The file beside local state that says what the last run asked of a server.
const LAST_RUN: &str = "last-run.json";

/// One of the commands, with its options.
trait Command {
    /// Takes an option, with its value, if it is one of this command.
    fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool>;

    /// Takes what is no option, once all options were taken, and looks whether it all makes sense.
    fn check(&mut self, asked: &mut Asked) -> Outcome<()>;

    /// Access that a command needs: it changes the store, unless a dry run is asked for.
    fn access(&self, asked: &Asked) -> Access {
        if asked.dry_run { Access::Read } else { Access::Write }
    }

    /// How it ends when a signal comes.
    fn ending(&self) -> Ending {
        Ending::AfterAStep
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>>;
}

/// How a command ends when a signal comes.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// By itself, since it looks at the [flag](cli::signals::flag) between two steps.
    AfterAStep,
    /// It is dropped.
    AtOnce,
}

/// Options common to all commands.
#[derive(Default)]
struct Asked {
    dry_run: bool,
    json: bool,
    /// The name of the command.
    name: String,
    /// `true` if a namespace was named.
    named_namespace: bool,
    store: StoreArguments,
    words: Vec<String>,
}

/// Where a command is carried out.
struct Place<'a> {
    asked: &'a Asked,
    bar: Arc<Bar>,
    runtime: &'a Arc<dyn Runtime>,
    store: &'a Datastore,
}

/// The object that an argument names.
enum Named {
    Group(GroupName),
    Snapshot(Wanted),
}

impl Asked {
    /// The namespace, if one was named.
    fn namespace(&self) -> Option<&Namespace> {
        self.named_namespace.then(|| self.store.namespace())
    }

    /// The group or snapshot that was named, if one was; there must not be two.
    fn named(&self) -> Outcome<Option<Named>> {
        let word = match self.words.as_slice() {
            [] => return Ok(None),
            [word] => word,
            [_, second, ..] => {
                return Err(input(format!("{second}: there is one group or snapshot too many")));
            }
        };
        let named = match (word.parse::<Wanted>(), word.parse::<GroupName>()) {
            (Ok(snapshot), _) => Named::Snapshot(snapshot),
            (_, Ok(group)) => Named::Group(group),
            _ => {
                return Err(input(format!(
                    "{word} is neither a group TYPE/ID nor a snapshot TYPE/ID/TIME, with a time such as 2025-07-14T14:20:02Z or latest"
                )));
            }
        };
        let place = match &named {
            Named::Group(group) => group.namespace(),
            Named::Snapshot(snapshot) => snapshot.group().namespace(),
        };
        match self.namespace() {
            Some(namespace) if place.is_root() => Ok(Some(named.in_namespace(namespace))),
            Some(namespace) if place != namespace => Err(input(format!("{word} is not in --ns {namespace}"))),
            _ => Ok(Some(named)),
        }
    }

    /// Fails if there are words.
    fn no_words(&self) -> Outcome<()> {
        self.words.first().map_or(Ok(()), |word| Err(input(format!("{word}: there is no such argument"))))
    }
}

/// The target of a command.
enum Target {
    Scope(Scope),
    Snapshot(Wanted),
}

impl Target {
    /// The scope, once the store is open.
    async fn scope(&self, store: &Datastore) -> Outcome<Scope> {
        match self {
            Self::Scope(scope) => Ok(scope.clone()),
            Self::Snapshot(snapshot) => Ok(Scope::Snapshots(vec![snapshot.name(store).await?])),
        }
    }
}

impl Named {
    fn in_namespace(self, namespace: &Namespace) -> Self {
        match self {
            Self::Group(group) => Self::Group(group.in_namespace(namespace.clone())),
            Self::Snapshot(snapshot) => Self::Snapshot(snapshot.in_namespace(namespace)),
        }
    }
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let (asked, command) = parse(&mut parser)?;
    let runtime = cli::runtime();
    let mut output = Output::new(asked.json);
    let requests = block_on(async {
        let opened = asked.store.open(&runtime, command.access(&asked)).await?;
        let store = opened.store.clone();
        let at = Place { asked: &asked, bar: Bar::new(), runtime: &runtime, store: &store };
        let run = command.run(&at, &mut output);
        let done = match command.ending() {
            Ending::AtOnce => interruptible(run).await,
            Ending::AfterAStep => stepwise(&runtime, run).await,
        };
        at.bar.end();
        drop(store);
        // Also after a failure, so that other processes need not wait until the lease expires.
        let requests = opened.close().await;
        done?;
        requests
    })?;
    if let (Some(directory), Some(requests)) = (&asked.store.cache, &requests)
        && asked.name != "status"
    {
        let run = json!({ "command": asked.name, "requests": requests });
        std::fs::write(directory.join(LAST_RUN), run.to_string())?;
    }
    output.end(requests.as_ref()).map_or(Ok(()), |why| Err(Failure::Work(why)))
}

fn parse(parser: &mut lexopt::Parser) -> Outcome<(Asked, Box<dyn Command>)> {
    let (mut asked, mut command) = (Asked::default(), None);
    while let Some(argument) = cli::next(parser)? {
        asked.named_namespace |= argument == "--ns";
        match (argument.as_str(), &mut command) {
            ("--dry-run", _) => asked.dry_run = true,
            ("--json", _) => asked.json = true,
            (option, command) if option.starts_with("--") => {
                let is_of_command = command
                    .as_mut()
                    .map_or(Ok(false), |command: &mut Box<dyn Command>| command.take(option, parser))?;
                if !is_of_command && !asked.store.take(option, parser)? {
                    return Err(input(match command {
                        Some(_) => format!("{option}: there is no such option of this command"),
                        None => format!("{option}: options of a command come after it"),
                    }));
                }
            }
            (name, None) => {
                command = Some(by_name(name)?);
                name.clone_into(&mut asked.name);
            }
            (_, Some(_)) => asked.words.push(argument),
        }
    }
    let mut command = command.ok_or_else(|| input("what is to be done? See --help"))?;
    command.check(&mut asked)?;
    Ok((asked, command))
}

fn by_name(name: &str) -> Outcome<Box<dyn Command>> {
    Ok(match name {
        "adopt" => Box::new(adopt::Adopt),
        "chown" => Box::new(chown::Chown::default()),
        "copy" => Box::new(relocate::Relocate::copy()),
        "forget" => Box::new(prune::Forget::default()),
        "gc" => Box::new(gc::Gc::default()),
        "move" => Box::new(relocate::Relocate::r#move()),
        "prune" => Box::new(prune::Prune::default()),
        "rebuild-index" => Box::new(rebuild::Rebuild),
        "status" => Box::new(status::Status::default()),
        "sync" => Box::new(sync::Sync::default()),
        "verify" => Box::new(verify::Verify::default()),
        _ => return Err(input(format!("{name}: there is no such command; see --help"))),
    })
}

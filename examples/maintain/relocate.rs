//! `copy` and `move`: bring a group, or a namespace, elsewhere within the store.

use futures::future::{BoxFuture, FutureExt as _};
use larder::error::Error;
use larder::format::name::{GroupName, Namespace};
use larder::store::{Datastore, Relocated, Relocation, SnapshotInfo, SnapshotState};

use crate::cli::{self, Outcome, input};
use crate::output::{Output, about, count};
use crate::{Asked, Command, Ending, Named, Place};

pub(crate) const USAGE: &str = "\
copy|move GROUP        bring a group into another namespace
copy|move --ns A       bring a namespace, with all that is in it, to another name
  --to NS              the namespace, or the new name; '' is the root
  --create-ns          make the namespace if there is none";

pub(crate) struct Relocate {
    create_ns: bool,
    is_move: bool,
    to: Option<Namespace>,
    what: Option<What>,
}

enum What {
    Group(GroupName),
    Namespace(Namespace),
}

impl Relocate {
    pub(crate) fn copy() -> Self {
        Self { create_ns: false, is_move: false, to: None, what: None }
    }

    pub(crate) fn r#move() -> Self {
        Self { is_move: true, ..Self::copy() }
    }

    fn verb(&self) -> &'static str {
        if self.is_move { "move" } else { "copy" }
    }

    fn done(&self) -> &'static str {
        if self.is_move { "moved" } else { "copied" }
    }
}

impl Command for Relocate {
    fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--create-ns" => self.create_ns = true,
            "--to" => self.to = Some(cli::parsed(option, parser)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&mut self, asked: &mut Asked) -> Outcome<()> {
        let verb = self.verb();
        if self.to.is_none() {
            return Err(input(format!("{verb}: --to is missing")));
        }
        self.what = Some(match (asked.named()?, asked.namespace()) {
            (Some(Named::Group(group)), _) => What::Group(group),
            (Some(Named::Snapshot(snapshot)), _) => {
                return Err(input(format!("{verb}: {snapshot} is a snapshot; a group is wanted")));
            }
            (None, Some(namespace)) => What::Namespace(namespace.clone()),
            (None, None) => return Err(input(format!("{verb}: a group or --ns is wanted"))),
        });
        Ok(())
    }

    fn ending(&self) -> Ending {
        Ending::AtOnce
    }

    fn run<'a>(&'a self, at: &'a Place<'a>, output: &'a mut Output) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let (Some(what), Some(to)) = (&self.what, &self.to) else { return Ok(()) };
            output.set("executed", !at.asked.dry_run);
            self.look(what, to, at, output).await?;
            if !at.asked.dry_run {
                let done = self.execute(what, to, at).await?;
                at.bar.end();
                self.tell(&done, output);
            }
            Ok(())
        }
        .boxed()
    }
}

impl Relocate {
    /// Looks whether it makes sense, and says what would be done, if that is all.
    async fn look(&self, what: &What, to: &Namespace, at: &Place<'_>, output: &mut Output) -> Outcome<()> {
        let pairs = pairs(what, to, at.store).await?;
        if let Some(needed) = what.needed(to).filter(|needed| !needed.is_root())
            && !at.store.has_namespace(&needed).await?
        {
            if !self.create_ns {
                return Err(input(format!("there is no namespace {needed}; --create-ns makes it")));
            }
            if at.asked.dry_run {
                output.say(format!("namespace {needed}: would be made"));
            }
        }
        if at.asked.dry_run { self.tell_plan(&pairs, at.store, output).await } else { Ok(()) }
    }

    /// The planned steps, as far as names show them.
    async fn tell_plan(
        &self,
        pairs: &[(GroupName, GroupName)],
        store: &Datastore,
        output: &mut Output,
    ) -> Outcome<()> {
        let (mut listed, mut wanted) = (Vec::new(), 0);
        for (from, target) in pairs {
            let finished = |info: &SnapshotInfo| info.state == SnapshotState::Finished;
            let mut there = store.snapshots(target).await?;
            there.retain(finished);
            for info in store.snapshots(from).await? {
                let said = if let Some(unreadable) = info.unreadable.first() {
                    format!("stays, it is unreadable: {unreadable}")
                } else if !finished(&info) {
                    "stays, it is unfinished".to_owned()
                } else if there.iter().any(|it| it.name.time() == info.name.time()) {
                    format!("is in {target} already")
                } else {
                    wanted += 1;
                    format!("would be {} to {target}", self.done())
                };
                output.say(format!("{}: {said}", info.name));
                listed.push(about(&info.name, "outcome", &said));
            }
        }
        output.set("snapshots", listed);
        output.say(format!(
            "{} would be {}; owners, and what is there already, are compared when it is done",
            count(wanted, "snapshot"),
            self.done(),
        ));
        Ok(())
    }

    async fn execute(&self, what: &What, to: &Namespace, at: &Place<'_>) -> Outcome<Relocation> {
        if let Some(needed) = what.needed(to).filter(|_| self.create_ns) {
            create(at.store, &needed).await?;
        }
        Ok(match what {
            What::Group(group) => {
                at.bar.begin(&group.to_string(), None);
                if self.is_move {
                    at.store.move_group(group, to).await?
                } else {
                    at.store.copy_group(group, to).await?
                }
            }
            What::Namespace(from) => {
                at.bar.begin(&from.to_string(), None);
                if self.is_move {
                    at.store.move_namespace(from, to).await?
                } else {
                    at.store.copy_namespace(from, to).await?
                }
            }
        })
    }

    fn tell(&self, relocation: &Relocation, output: &mut Output) {
        let (mut listed, mut done) = (Vec::new(), 0);
        for group in &relocation.groups {
            for snapshot in &group.snapshots {
                let said = became(&snapshot.outcome);
                output.say(format!("{}: {said}", snapshot.name));
                done += u64::from(matches!(snapshot.outcome, Relocated::Copied | Relocated::Moved));
                listed.push(about(&snapshot.name, "outcome", &said));
            }
            if let Some(error) = &group.error {
                output.say(format!("group {}: {}", group.from, cli::told(error)));
            }
            let not_all = (self.is_move && !group.source_gone) || group.error.is_some();
            let not_all = if not_all { "not all of it was " } else { "" };
            output.say(format!("group {}: {not_all}{} to {}", group.from, self.done(), group.to));
        }
        for namespace in &relocation.kept_namespaces {
            output.say(format!("namespace {namespace}: stays, something is left in it"));
        }
        let kept: Vec<_> = relocation.kept_namespaces.iter().map(ToString::to_string).collect();
        output.set("snapshots", listed);
        output.set("kept_namespaces", kept);
        output.set(self.done(), done);
        output.say(format!("{} {}", count(done, "snapshot"), self.done()));
        if let Some(error) = &relocation.stopped {
            output.trouble(cli::told(error));
        } else if !relocation.is_complete() {
            output.trouble(format!("not everything was {}", self.done()));
        }
    }
}

impl What {
    /// The namespace that must exist.
    fn needed(&self, to: &Namespace) -> Option<Namespace> {
        match self {
            Self::Group(_) => Some(to.clone()),
            Self::Namespace(_) => to.parent(),
        }
    }
}

/// The groups with what they would become.
async fn pairs(what: &What, to: &Namespace, store: &Datastore) -> Outcome<Vec<(GroupName, GroupName)>> {
    let top = match what {
        What::Group(group) if store.groups(group.namespace()).await?.contains(group) => {
            return Ok(vec![(group.clone(), group.clone().in_namespace(to.clone()))]);
        }
        What::Group(group) => return Err(input(format!("there is no group {group}"))),
        What::Namespace(top) if store.has_namespace(top).await? => top,
        What::Namespace(top) => return Err(input(format!("there is no namespace {top}"))),
    };
    let mut pairs = Vec::new();
    for namespace in store.namespaces(top).await? {
        let mut inner = namespace.components().skip(top.components().count());
        let target = inner.try_fold(to.clone(), |parent, name| parent.child(name)).map_err(input)?;
        let groups = store.groups(&namespace).await?;
        pairs.extend(groups.into_iter().map(|group| (group.clone(), group.in_namespace(target.clone()))));
    }
    Ok(pairs)
}

/// Makes a namespace with those that it is in, where they are missing.
async fn create(store: &Datastore, namespace: &Namespace) -> Outcome<()> {
    let mut missing = Vec::new();
    let mut next = Some(namespace.clone());
    while let Some(namespace) = next {
        if namespace.is_root() || store.has_namespace(&namespace).await? {
            break;
        }
        next = namespace.parent();
        missing.push(namespace);
    }
    for namespace in missing.iter().rev() {
        store.create_namespace(namespace).await?;
    }
    Ok(())
}

fn became(outcome: &Relocated) -> String {
    let with = |what: &str, error: &Error| format!("{what}: {}", cli::told(error));
    match outcome {
        Relocated::AlreadyThere => "was there already".to_owned(),
        Relocated::Busy(error) => with("stays, it is in use", error),
        Relocated::Copied => "copied".to_owned(),
        Relocated::Failed(error) => with("failed", error),
        Relocated::Gone => "was gone already".to_owned(),
        Relocated::Moved => "moved".to_owned(),
        Relocated::NotReached => "not come to".to_owned(),
        Relocated::Unfinished => "stays, it is unfinished".to_owned(),
        _ => "something else became of it".to_owned(),
    }
}

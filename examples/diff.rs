//! Shows what changed from one snapshot to another: the entries of their trees, and their other archives.
//! Run with: cargo run --release --example diff -- --store DIR SNAPSHOT SNAPSHOT

#[macro_use]
mod cli;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::process::ExitCode;

use cli::keys::KeyArguments;
use cli::signals::interruptible;
use cli::{Access, Outcome, StoreArguments, Wanted, input, trees};
use futures::executor::block_on;
use larder::crypt::EncryptionKey;
use larder::store::{Datastore, SnapshotReader};
use larder::tree::{Tree, TreeEntry, TreeFinding, TreeStep, TreeWalk};
use serde_json::{Value, json};

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: diff --store DIR [options] SNAPSHOT SNAPSHOT

  SNAPSHOT             such as host/name/2025-07-14T14:20:02Z; host/name/latest is the newest of the group

One line for each difference, from the first to the second: + was added, - was removed, ~ was changed, and how. Entries of
trees are compared by their metadata, whatever the form of the archive; contents of files are not read, so a change that
keeps size and time is not seen. Other archives are compared as wholes.

{}
{}
{}",
        cli::STORE_USAGE,
        cli::keys::KEY_USAGE,
        cli::JSON_USAGE
    )
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let (mut store, mut key) = (StoreArguments::default(), KeyArguments::default());
    let (mut names, mut as_json) = (Vec::new(), false);
    while let Some(argument) = cli::next(&mut parser)? {
        if argument == "--json" {
            as_json = true;
        } else if !argument.starts_with("--") {
            names.push(argument);
        } else if !store.take(&argument, &mut parser)? && !key.take(&argument, &mut parser)? {
            return Err(input(format!("{argument}: there is no such option")));
        }
    }
    let [old, new] = names.as_slice() else {
        return Err(input("two snapshots are wanted"));
    };
    let wanted = |name: &String| -> Outcome<Wanted> {
        let wanted: Wanted = name.parse().map_err(|error| input(format!("{name}: {error}")))?;
        Ok(wanted.in_namespace(store.namespace()))
    };
    let (old, new) = (wanted(old)?, wanted(new)?);
    let runtime = cli::runtime();
    let key = block_on(key.key(runtime.as_ref()))?;
    let mut output = Output { as_json, changes: Vec::new() };
    let compare = async |store: Datastore| {
        interruptible(Box::pin(compare(&store, (&old, &new), key.as_ref(), &mut output))).await
    };
    let ((), requests) = block_on(store.with(&runtime, Access::Read, compare))?;
    if as_json {
        println!("{}", json!({ "changes": output.changes, "requests": requests }));
    } else {
        cli::tell_requests(requests.as_ref());
    }
    Ok(())
}

/// Prints changes, or collects them.
struct Output {
    as_json: bool,
    changes: Vec<Value>,
}

impl Output {
    /// A change of something with a path: `added`, `removed` or `changed`.
    fn add(&mut self, archive: &str, path: &[u8], what: &str, how: &[&str]) {
        // Escapes, as messages about paths do.
        let path = TreeFinding::new(path, larder::tree::Problem::Changed).shown_path();
        if self.as_json {
            self.changes.push(json!({ "archive": archive, "path": path, "change": what, "how": how }));
            return;
        }
        let sign = match what {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        };
        let separator = if path.is_empty() { "" } else { "/" };
        let how = if how.is_empty() { String::new() } else { format!(" ({})", how.join(", ")) };
        println!("{sign} {archive}{separator}{path}{how}");
    }
}

async fn compare(
    store: &Datastore,
    (old, new): (&Wanted, &Wanted),
    key: Option<&EncryptionKey>,
    output: &mut Output,
) -> Outcome<()> {
    let old = trees::open_snapshot(store, &old.name(store).await?, key).await?;
    let new = trees::open_snapshot(store, &new.name(store).await?, key).await?;
    compare_others(&old, &new, output);
    let (before, after) = (trees::trees_of(&old), trees::trees_of(&new));
    for stem in before.iter().chain(&after).collect::<BTreeSet<_>>() {
        let mut walks = [None, None];
        for (walk, (snapshot, stems)) in walks.iter_mut().zip([(&old, &before), (&new, &after)]) {
            if stems.contains(stem) {
                *walk = Some(InOrder::new(snapshot.tree(stem).await?).await?);
            }
        }
        let [old, new] = walks;
        match (old, new) {
            (Some(old), Some(new)) => compare_trees(stem, old, new, output).await?,
            (None, _) => output.add(stem, b"", "added", &["tree"]),
            (_, None) => output.add(stem, b"", "removed", &["tree"]),
        }
    }
    Ok(())
}

/// Compares archives that are no trees, by the checksums in the manifests.
fn compare_others(old: &SnapshotReader, new: &SnapshotReader, output: &mut Output) {
    let files = |snapshot: &SnapshotReader| -> Vec<(String, String)> {
        let files = snapshot.manifest().files().iter();
        let mut files: Vec<_> = files
            .map(|file| (file.name.to_string(), file.checksum.to_string()))
            .filter(|(name, _)| !trees::is_tree(name) && name != "catalog.pcat1.didx")
            .collect();
        files.sort();
        files
    };
    let (old, new) = (files(old), files(new));
    let has = |files: &[(String, String)], name: &str| files.iter().any(|(other, _)| other == name);
    for (name, _) in old.iter().filter(|(name, _)| !has(&new, name)) {
        output.add(name, b"", "removed", &[]);
    }
    for (name, checksum) in &new {
        match old.iter().find(|(other, _)| other == name) {
            None => output.add(name, b"", "added", &[]),
            Some((_, before)) if before != checksum => output.add(name, b"", "changed", &["contents"]),
            Some(_) => {}
        }
    }
}

/// The entries of a tree in the order of the archive, and the next one.
struct InOrder {
    next: Option<TreeEntry>,
    tree: Tree,
    walk: TreeWalk,
}

impl InOrder {
    async fn new(tree: Tree) -> Outcome<Self> {
        let walk = tree.walk();
        let mut entries = Self { next: None, tree, walk };
        entries.advance().await?;
        Ok(entries)
    }

    async fn advance(&mut self) -> Outcome<()> {
        self.next = loop {
            match self.walk.next().await? {
                None => break None,
                Some(TreeStep::Entry(entry)) => break Some(trees::resolved_at(&self.tree, &entry).await?),
                Some(TreeStep::Lost(finding)) => eprintln!("{finding}"),
                Some(_) => {}
            }
        };
        Ok(())
    }
}

/// Both archives have their entries by name, parents first: the one that is behind has an entry that the other lacks.
async fn compare_trees(stem: &str, mut old: InOrder, mut new: InOrder, output: &mut Output) -> Outcome<()> {
    loop {
        let order = match (&old.next, &new.next) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => order(&old.path, &new.path),
        };
        match (order, &old.next, &new.next) {
            (Ordering::Less, Some(gone), _) => output.add(stem, &gone.path, "removed", &[]),
            (Ordering::Greater, _, Some(added)) => output.add(stem, &added.path, "added", &[]),
            (_, Some(before), Some(after)) => {
                let how = trees::differences(before, after);
                if !how.is_empty() {
                    output.add(stem, &after.path, "changed", &how);
                }
            }
            _ => {}
        }
        if order != Ordering::Greater {
            old.advance().await?;
        }
        if order != Ordering::Less {
            new.advance().await?;
        }
    }
}

/// The order of paths in archives. The list of patterns that unified archives have is the last entry of the root.
fn order(old: &[u8], new: &[u8]) -> Ordering {
    const PATTERNS: &[u8] = b".pxarexclude-cli";
    let is_last = |path: &[u8]| path == PATTERNS;
    let parts =
        |path: &[u8]| -> Vec<Vec<u8>> { path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect() };
    (is_last(old), parts(old)).cmp(&(is_last(new), parts(new)))
}

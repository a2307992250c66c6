//! Restores from file archives.

use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use larder::Observer;
use larder::rt::Runtime;
use larder::store::RestoreTarget;
use larder::tree::{DirectoryTarget, Existing, Tree, TreeRestoreEvent};

use super::findings::Findings;
use super::{Outcome, input, trees};

/// Options of a restore of a tree.
#[derive(Debug, Default)]
pub(crate) struct TreeOptions {
    /// Without it, the target is new or empty.
    pub(crate) existing: Option<OnExisting>,
    pub(crate) no_owners: bool,
    /// Paths and patterns; none for everything.
    pub(crate) paths: Vec<String>,
    pub(crate) privileges: bool,
}

/// Policy for an entry of the target that has the name of one of the archive.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnExisting {
    Keep,
    Replace,
}

impl FromStr for OnExisting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "keep" => Ok(Self::Keep),
            "replace" => Ok(Self::Replace),
            _ => Err("keep or replace is wanted"),
        }
    }
}

/// Findings are printed when they come.
#[derive(Debug)]
struct Told(Findings);

impl Observer<TreeRestoreEvent> for Told {
    fn on_event(&self, event: &TreeRestoreEvent) {
        if let TreeRestoreEvent::Found { finding } = event {
            self.0.add(finding.clone());
        }
    }
}

/// Returns `true` for a pattern, and `false` for a path that means itself.
fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\']) || text.starts_with('!')
}

/// Restores a tree, or what is wanted of it, into a directory.
pub(crate) async fn into_directory(
    runtime: &Arc<dyn Runtime>,
    tree: &Tree,
    target: &str,
    options: &TreeOptions,
    findings: &Findings,
) -> Outcome<()> {
    let directory = open(runtime, target, options).await?;
    let mut restore = tree.restore(&directory).observer(Arc::new(Told(findings.clone())));
    for text in &options.paths {
        restore = if is_pattern(text) { restore.pattern(text)? } else { restore.path(trees::path_of(text)?) };
    }
    restore.await?;
    Ok(())
}

async fn open(runtime: &Arc<dyn Runtime>, target: &str, options: &TreeOptions) -> Outcome<DirectoryTarget> {
    let path = Path::new(target);
    let mut directory = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirectoryTarget::create(Arc::clone(runtime), path).await?
        }
        Err(error) => return Err(input(format!("{target}: {error}"))),
        Ok(mut entries) => {
            if entries.next().is_some() && options.existing.is_none() {
                let why = "the directory is not empty; --existing says what becomes of what it has";
                return Err(input(format!("{target}: {why}")));
            }
            DirectoryTarget::open(Arc::clone(runtime), path).await?
        }
    };
    directory = directory.existing(match options.existing {
        None => Existing::Refuse,
        Some(OnExisting::Keep) => Existing::Skip,
        Some(OnExisting::Replace) => Existing::Replace,
    });
    if options.no_owners {
        directory = directory.without_owners();
    }
    if options.privileges {
        directory = directory.privileges();
    }
    Ok(directory)
}

/// The one path whose contents are wanted, if the target is no directory.
pub(crate) fn single_path(options: &TreeOptions) -> Outcome<Option<Vec<u8>>> {
    match options.paths.as_slice() {
        [] => Ok(None),
        [path] if !is_pattern(path) => trees::path_of(path).map(Some),
        _ => Err(input("several paths or a pattern want a TARGET that ends in /, a directory")),
    }
}

/// Writes the contents of one file.
pub(crate) async fn copy_file(tree: &Tree, path: &[u8], target: &mut dyn RestoreTarget) -> Outcome<()> {
    let mut file = tree.open(path).await?;
    target.begin(file.size()).await?;
    let mut at = 0;
    loop {
        let bytes = file.next_chunk().await?;
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len() as u64;
        target.write_at(at, bytes).await?;
        at += length;
    }
    target.finish().await?;
    Ok(())
}

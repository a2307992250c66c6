//! Backups of directories as file archives.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use larder::Observer;
use larder::store::{SnapshotReader, SnapshotWriter};
use larder::tree::{DirectorySource, TreeEvent};

use super::findings::Findings;
use super::tar_stream::pack::Options;
use super::{Failure, Outcome};

/// How a backup finds files that changed since the previous snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChangeDetection {
    /// It reads every file.
    Data,
    /// It reads every file, and writes the unified form.
    Legacy,
    /// It does not open files with the metadata and the size of before.
    #[default]
    Metadata,
}

impl FromStr for ChangeDetection {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "data" => Ok(Self::Data),
            "legacy" => Ok(Self::Legacy),
            "metadata" => Ok(Self::Metadata),
            _ => Err("metadata, data or legacy is wanted"),
        }
    }
}

/// Findings are printed when they come.
#[derive(Debug)]
struct Told(Findings);

impl Observer<TreeEvent> for Told {
    fn on_event(&self, event: &TreeEvent) {
        if let TreeEvent::Found(finding) = event {
            self.0.add(finding.clone());
        }
    }
}

/// Writes a directory. `own` are directories of the store, which are left out.
pub(crate) async fn write(
    writer: &SnapshotWriter,
    (archive, mut source): (&str, DirectorySource),
    base: Option<&SnapshotReader>,
    (options, detection, own): (&Options, ChangeDetection, &[PathBuf]),
    findings: Findings,
) -> Outcome<()> {
    source = source.excludes(options.excludes.clone());
    if !options.one_file_system {
        source = source.all_filesystems();
    }
    for (path, _) in &options.included {
        source = source.include_filesystem(path).await?;
    }
    for directory in own {
        source = source.own_directory(directory).await?;
    }
    let tree = writer.tree(archive, &source).base_if_usable(base).observer(Arc::new(Told(findings)));
    let tree = match detection {
        ChangeDetection::Data => tree.reread_all(),
        ChangeDetection::Legacy => tree.unified(),
        ChangeDetection::Metadata => tree,
    };
    let report = tree.await?.report;
    let loss = report.findings.iter().find(|finding| !finding.problem.is_notice());
    match loss.filter(|_| options.strict) {
        Some(loss) => Err(Failure::Work(loss.to_string())),
        None => Ok(()),
    }
}

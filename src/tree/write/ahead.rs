//! Files that are read ahead.
//!
//! Steps of the walk are prepared in groups, up to [`GROUPS_AHEAD`] of them before their turn, in the order of the archive. One job opens and reads the
//! small files of a group: a job for each would cost more than many of the files. A group is complete with [`GROUP_STEPS`] steps, or once its
//! files have [`GROUP_BYTES`], where a large file counts as [`FILE_BYTES`], since it is read when its turn comes. So all contents that wait take at most
//! `(GROUPS_AHEAD + 1) * (GROUP_BYTES + FILE_BYTES)`, which is 14 MiB.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, Result};
use crate::rt::Runtime;
use crate::tree::write::walk::{Found, Step, Walker};
use crate::tree::{FileContents, SourceDirectory};

/// Maximum number of groups that are prepared ahead.
const GROUPS_AHEAD: usize = 8;

/// Number of steps with which a group is complete.
const GROUP_STEPS: usize = 32;

/// Bytes of files with which a group is complete.
const GROUP_BYTES: u64 = 512 << 10;

/// Bytes that a file of this size or more counts.
const FILE_BYTES: u64 = 1 << 20;

/// A step with the contents of its file.
pub(super) enum Prepared {
    /// A directory begins.
    Enter(Found),
    /// An entry without contents, or whose contents are not needed.
    Entry(Found),
    /// A file that was opened.
    File(Found, io::Result<FileContents>),
    /// The directory that was entered last ends.
    Leave,
}

/// The steps of a walk in order.
pub(super) fn prepared(walker: Walker) -> impl Stream<Item = Result<Prepared>> {
    let runtime = Arc::clone(walker.runtime());
    let groups = stream::try_unfold(walker, |mut walker| async move {
        let mut group = Group::default();
        while !group.is_complete() {
            let Some(step) = walker.next().await? else { break };
            let bytes = match &step {
                Step::Entry(found) if found.needs_contents() => weight(found),
                _ => 0,
            };
            group.add(step, bytes);
        }
        Ok::<_, Error>((!group.members.is_empty()).then_some((group.members, walker)))
    });
    let groups = groups.map_ok(move |steps| {
        let runtime = Arc::clone(&runtime);
        async move { Ok(stream::iter(prepare(steps, &runtime).await.into_iter().map(Ok))) }
    });
    groups.try_buffered(GROUPS_AHEAD).try_flatten()
}

/// Opens files in order, several ahead.
pub(super) fn reopened(
    files: Vec<Arc<Found>>,
    runtime: Arc<dyn Runtime>,
) -> impl Stream<Item = io::Result<FileContents>> {
    let mut files = files.into_iter();
    let groups = std::iter::from_fn(move || {
        let mut group = Group::default();
        while !group.is_complete() {
            let Some(found) = files.next() else { break };
            let bytes = weight(&found);
            group.add(found, bytes);
        }
        (!group.members.is_empty()).then_some(group.members)
    });
    let opened = stream::iter(groups).map(move |group| {
        let runtime = Arc::clone(&runtime);
        async move { stream::iter(open_all(group.iter().map(Arc::as_ref).collect(), &runtime).await) }
    });
    opened.buffered(GROUPS_AHEAD).flatten()
}

/// Opens a file. Of an empty one there is nothing to read.
pub(super) async fn open(found: &Found) -> io::Result<FileContents> {
    match found.size() {
        0 => Ok(FileContents::Whole(Bytes::new())),
        _ => directory_of(found).await?.open_file(&found.entry).await,
    }
}

/// Steps or files that are prepared together.
struct Group<T> {
    bytes: u64,
    members: Vec<T>,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { bytes: 0, members: Vec::new() }
    }
}

impl<T> Group<T> {
    fn add(&mut self, member: T, bytes: u64) {
        self.bytes += bytes;
        self.members.push(member);
    }

    fn is_complete(&self) -> bool {
        self.members.len() >= GROUP_STEPS || self.bytes >= GROUP_BYTES
    }
}

/// Opens the files of a group of steps.
async fn prepare(steps: Vec<Step>, runtime: &Arc<dyn Runtime>) -> Vec<Prepared> {
    let files = steps.iter().filter_map(|step| match step {
        Step::Entry(found) if found.needs_contents() => Some(found),
        _ => None,
    });
    let mut opened = open_all(files.collect(), runtime).await.into_iter();
    let prepare = |step| match step {
        Step::Entry(found) if found.needs_contents() => {
            let contents = opened.next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
            Prepared::File(found, contents)
        }
        Step::Entry(found) => Prepared::Entry(found),
        Step::Enter(found) => Prepared::Enter(found),
        Step::Leave => Prepared::Leave,
    };
    steps.into_iter().map(prepare).collect()
}

/// Opens files, those that can be opened by jobs in a single one.
async fn open_all(files: Vec<&Found>, runtime: &Arc<dyn Runtime>) -> Vec<io::Result<FileContents>> {
    let mut opened = Vec::with_capacity(files.len());
    let (mut jobs, mut others) = (Vec::new(), Vec::new());
    for (number, found) in files.into_iter().enumerate() {
        if found.size() == 0 {
            opened.push(Some(Ok(FileContents::Whole(Bytes::new()))));
            continue;
        }
        let directory = match directory_of(found).await {
            Ok(directory) => directory,
            Err(error) => {
                opened.push(Some(Err(error)));
                continue;
            }
        };
        opened.push(None);
        match directory.open_file_job(&found.entry) {
            Some(job) => jobs.push((number, job)),
            None => others.push(async move { (number, directory.open_file(&found.entry).await) }),
        }
    }
    let run = async {
        if jobs.is_empty() {
            return Vec::new();
        }
        let run = move || Ok(jobs.into_iter().map(|(number, job)| (number, job())).collect());
        // Without an answer, the files of the job have an error each.
        runtime.run_blocking("read files", run).await.unwrap_or_default()
    };
    let (jobs, others) = future::join(run, future::join_all(others)).await;
    for (number, contents) in jobs.into_iter().chain(others) {
        if let Some(place) = opened.get_mut(number) {
            *place = Some(contents);
        }
    }
    let lost = || Err(io::Error::other("the job that reads the file has ended"));
    opened.into_iter().map(|contents| contents.unwrap_or_else(lost)).collect()
}

async fn directory_of(found: &Found) -> io::Result<Arc<dyn SourceDirectory>> {
    match &found.directory {
        Some(directory) => Ok(Arc::clone(directory)),
        None => found.place.directory().await,
    }
}

fn weight(found: &Found) -> u64 {
    found.size().clamp(1, FILE_BYTES)
}

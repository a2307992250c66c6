//! Backups of a directory in which another thread writes, truncates, renames and deletes all the time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::pxar::FileKind;
use larder::store::SnapshotReader;
use larder::tree::{DirectorySource, Problem, TreeFinding, TreeReport, TreeStep};

use crate::write::{group, store};

/// Times that are set lie in this year; those that the system sets lie later.
const YEAR_2001: u64 = 978_307_200;
/// Size of the files that are read in several pieces.
const LARGE_BYTES: usize = 3 << 20;
/// Maximum number of backups until anomalies were seen.
const MAX_ROUNDS: u32 = 60;

/// Files whose 8-byte words are all the number of their version, so that a mixture of versions shows.
struct Disturber<'a> {
    random: u64,
    root: &'a Path,
    version: u64,
}

impl Disturber<'_> {
    fn draw(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// A new version of a file, whole or in the place of the old one.
    fn write(&mut self, path: &Path, size: usize, in_place: bool) {
        self.version += 1;
        let file = File::options().write(true).create(!in_place).truncate(!in_place).open(path);
        let Ok(file) = file else { return };
        // Nothing of the old version is left in the end.
        let length = file.metadata().unwrap().len().max(size as u64);
        let contents: Vec<u8> = self.version.to_le_bytes().repeat(usize::try_from(length).unwrap() / 8);
        self.set_time(&file);
        file.write_all_at(&contents, 0).unwrap();
        self.set_time(&file);
    }

    /// No two times are equal.
    fn set_time(&mut self, file: &File) {
        self.version += 1;
        let time =
            SystemTime::UNIX_EPOCH + Duration::from_secs(YEAR_2001) + Duration::from_nanos(self.version);
        file.set_modified(time).unwrap();
    }

    fn step(&mut self) {
        let [from, to] = [(); 2].map(|()| format!("d{}", self.draw(4)));
        let [from, to] = [from, to].map(|name| self.root.join(name));
        let name = format!("f{}", self.draw(8));
        let path = from.join(&name);
        let large = self.root.join("large");
        match self.draw(10) {
            0 => drop(fs::remove_file(path)),
            1 => drop(fs::rename(path, to.join(name))),
            2 => {
                drop(fs::remove_dir_all(&from));
                drop(fs::create_dir(&from));
            }
            3 => {
                // Half of the file is lost: zeros in its place would be a mixture.
                if let Ok(file) = File::options().write(true).open(&large) {
                    file.set_len(LARGE_BYTES as u64 / 2).unwrap();
                    self.set_time(&file);
                }
            }
            4 => drop(fs::remove_file(&large)),
            5 | 6 => self.write(&large, LARGE_BYTES, false),
            7 => self.write(&large, LARGE_BYTES, true),
            _ => {
                let in_place = self.draw(2) == 0;
                let size = 8 * (1 + usize::try_from(self.draw(10_000)).unwrap());
                self.write(&path, size, in_place);
            }
        }
    }
}

/// Reads everything, in order and by lookups. Returns the paths of files that are no single version of a file.
async fn mixtures(snapshot: &SnapshotReader, name: &str) -> BTreeSet<Vec<u8>> {
    let tree = snapshot.tree(name).await.unwrap();
    let (mut walk, mut found, mut paths) = (tree.walk(), BTreeSet::new(), BTreeSet::new());
    while let Some(step) = walk.next().await.unwrap() {
        let entry = match step {
            TreeStep::Entry(entry) => entry,
            TreeStep::DirectoryEnd(_) => continue,
            step => panic!("{step:?}"),
        };
        assert!(tree.entry(&entry.path).await.unwrap() == *entry, "{entry}");
        assert!(paths.insert(entry.path.clone()), "{entry}");
        let FileKind::File { size } = entry.kind else { continue };
        let contents = tree.open_entry(&entry).await.unwrap().read_all().await.unwrap();
        assert_eq!(contents.len() as u64, size);
        if entry.path.starts_with(b"calm") {
            assert!(contents == entry.path[4..].repeat(10_000), "{entry}");
            continue;
        }
        let is_one_version = contents.chunks(8).all(|word| word == &contents[..word.len()]);
        // A file that is listed while a write call is under way has the time at which that began, before and after.
        let was_being_written =
            entry.metadata.stat.mtime.seconds > i64::try_from(YEAR_2001).unwrap() + 86_400;
        if !is_one_version && !was_being_written {
            found.insert(entry.path.to_vec());
        }
    }
    assert_eq!(paths.iter().filter(|path| path.starts_with(b"calm")).count(), 10);
    found
}

fn check_report(report: &TreeReport, mixtures: &BTreeSet<Vec<u8>>) {
    let is_anomaly = |finding: &TreeFinding| {
        matches!(
            finding.problem,
            Problem::Changed
                | Problem::Grown
                | Problem::Shrunk(_)
                | Problem::Unreadable
                | Problem::UnreadableContents
                | Problem::Vanished
        )
    };
    assert!(report.findings.iter().all(is_anomaly), "{report}");
    assert!(!report.findings.iter().any(|finding| finding.path.starts_with(b"calm")), "{report}");
    let reported: BTreeSet<_> = report.findings.iter().map(|finding| finding.path.clone()).collect();
    assert!(mixtures.is_subset(&reported), "{mixtures:?} are not all in the report: {report}");
}

#[test]
fn a_tree_that_changes_all_the_time_is_readable_and_every_anomaly_is_reported() {
    let place = larder_testing::scratch();
    let root = place.path();
    for number in 0..10 {
        fs::write(root.join(format!("calm{number}")), number.to_string().repeat(10_000)).unwrap();
    }
    for number in 0..4 {
        fs::create_dir(root.join(format!("d{number}"))).unwrap();
    }
    let is_over = AtomicBool::new(false);
    let mut anomalies = BTreeSet::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut disturber = Disturber { random: 1, root, version: 0 };
            while !is_over.load(Ordering::Relaxed) {
                disturber.step();
            }
        });
        // The other thread must end with this one.
        let backups = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            block_on(back_up_until_disturbed(root, &mut anomalies));
        }));
        is_over.store(true, Ordering::Relaxed);
        backups.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(!anomalies.is_empty(), "nothing disturbed any backup");
}

async fn back_up_until_disturbed(root: &Path, anomalies: &mut BTreeSet<&'static str>) {
    let store = store().await;
    let source = DirectorySource::open(Arc::new(ThreadRuntime::new()), root).await.unwrap();
    let mut base = None;
    for round in 0..MAX_ROUNDS {
        let backup = store.backup(&group()).begin().await.unwrap();
        let split = backup.tree("split", &source).base_if_usable(base.as_ref()).await.unwrap();
        let unified = backup.tree("unified", &source).unified().await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        for (name, report) in [("split", &split.report), ("unified", &unified.report)] {
            check_report(report, &mixtures(&snapshot, name).await);
            anomalies.extend(report.findings.iter().map(|finding| finding.problem.code()));
        }
        base = Some(snapshot);
        if round >= 5 && anomalies.len() >= 3 {
            break;
        }
    }
}

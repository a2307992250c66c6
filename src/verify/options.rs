//! What is verified, and how.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{AuthId, BackupTime, GroupName, Namespace, SnapshotName};
use crate::format::upid::Upid;
use crate::verify::Event;

/// What is verified.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All snapshots of a group.
    Group(GroupName),
    /// All snapshots of a namespace and of those below it.
    Namespace(Namespace),
    /// One snapshot.
    Snapshot(SnapshotName),
    /// All snapshots, but for those of groups `host/benchmark`, as PBS does.
    Store,
}

/// How chunks are checked.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every chunk is read and checked, and every blob.
    Full,
    /// A listing shows which chunks and blobs are there. None is read.
    Presence,
    /// A listing shows which blobs are there, and some chunks are read and checked.
    Sample(Sample),
}

/// How much is read of a sample, and where it begins.
///
/// A sample goes through the chunks in the order of their digests, from where it is told to begin, and around. At the end the report says
/// where the next one [begins](crate::verify::VerifyReport::next_rotation); so every chunk gets its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Sample {
    pub(super) bytes: Option<u64>,
    pub(super) requests: Option<u64>,
    pub(super) rotation: u64,
}

impl Sample {
    /// The most bytes that are read, those of manifests and indexes among them. It ends the run, and is exceeded by what is under
    /// way then and by nothing else.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// The most requests that are made to read something.
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Where to begin, in the space of digests by their first eight bytes; default: 0. What the report of the last run says, or any
    /// number.
    pub fn rotation(mut self, rotation: u64) -> Self {
        self.rotation = rotation;
        self
    }
}

/// What is done about chunks that are corrupt or missing.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Corrupt ones are put aside as `<digest>.N.bad`, so that the next backup that has them stores them again. Missing ones of which a
    /// good copy was put aside are put back.
    Quarantine,
    /// Nothing.
    Report,
}

/// Whether what was found is written into the manifests.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// It is not. Together with [`Repair::Report`], nothing is written at all.
    Off,
    /// It is, as PBS does.
    On,
}

/// Is told what a verification does.
///
/// Called from whatever task does the work, often several times a second: it has to return at once and must not block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn on_event(&self, event: &Event<'_>);
}

/// Choices for a verification.
#[derive(Clone, Debug)]
#[must_use]
pub struct VerifyOptions {
    pub(super) abort: Option<Arc<AtomicBool>>,
    auth_id: AuthId,
    pub(super) in_flight: Option<usize>,
    pub(super) memory_bytes: usize,
    pub(super) missing_limit: u64,
    pub(super) mode: Mode,
    node: Option<String>,
    pub(super) observer: Option<Arc<dyn Observer>>,
    process: (u32, u64),
    pub(super) recording: Recording,
    pub(super) refetches: u32,
    pub(super) repair: Repair,
    pub(super) skip_verified_within: Option<Duration>,
    store_name: String,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            abort: None,
            auth_id: AuthId::root(),
            in_flight: None,
            memory_bytes: 128 << 20,
            missing_limit: 100,
            mode: Mode::Full,
            node: None,
            observer: None,
            process: (0, 0),
            recording: Recording::On,
            refetches: 1,
            repair: Repair::Quarantine,
            skip_verified_within: None,
            store_name: "store".to_owned(),
        }
    }
}

impl VerifyOptions {
    /// A flag that ends the run when it is set: looked at before each chunk. The report then says what was found so far. Dropping
    /// the future ends the run as well, without a report.
    pub fn abort(mut self, abort: Arc<AtomicBool>) -> Self {
        self.abort = Some(abort);
        self
    }

    /// On whose behalf it is done, for the task id in the manifests; default: `root@pam`.
    pub fn auth_id(mut self, auth_id: AuthId) -> Self {
        self.auth_id = auth_id;
        self
    }

    /// How many chunks are under way at the same time, at least 1; default: what suits the backend. Their bytes are bounded too, by
    /// [`memory_bytes`](crate::store::Options::memory_bytes) of the store, which restores and verifications share.
    pub fn in_flight(mut self, in_flight: usize) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// How many bytes what is known of chunks may take, at least 1 MiB; default: 128 MiB. A chunk that was checked takes 16 to 20, one
    /// that is listed 8 to 9. Beyond, a full run may read chunks twice, and a look at the listing goes through the snapshots several times.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// After how many chunks in a row that are missing, or cannot be reached, without a good one among them the store is taken for
    /// unreachable, at least 1; default: 100.
    pub fn missing_limit(mut self, limit: u64) -> Self {
        self.missing_limit = limit;
        self
    }

    /// How chunks are checked; default: [`Mode::Full`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The name of this host without its domain, for the task id in the manifests; default: `localhost`.
    pub fn node(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }

    /// Who is told about progress; default: nobody.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The id of this process and when it was started, in clock ticks since the machine was, for the task id in the manifests; default:
    /// 0 and 0.
    pub fn process(mut self, pid: u32, start_ticks: u64) -> Self {
        self.process = (pid, start_ticks);
        self
    }

    /// Whether what was found is written into the manifests; default: [`Recording::On`].
    pub fn recording(mut self, recording: Recording) -> Self {
        self.recording = recording;
        self
    }

    /// How often what is corrupt is fetched again before that is believed; default: 1.
    pub fn refetches(mut self, refetches: u32) -> Self {
        self.refetches = refetches;
        self
    }

    /// What is done about chunks that are corrupt or missing; default: [`Repair::Quarantine`], as PBS does.
    pub fn repair(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    /// In a full run, reads nothing of the snapshots that were verified at most so long ago, whatever was found; a listing shows whether
    /// their chunks are still there. Default: all snapshots are read.
    pub fn skip_verified_within(mut self, time: Duration) -> Self {
        self.skip_verified_within = Some(time);
        self
    }

    /// What the store is called, for the task id in the manifests; default: `store`.
    pub fn store_name(mut self, name: impl Into<String>) -> Self {
        self.store_name = name.into();
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, "verify").because(why));
        if matches!(self.mode, Mode::Sample(Sample { bytes: None, requests: None, .. })) {
            return invalid("a sample has no bound");
        }
        if self.in_flight == Some(0) || self.missing_limit == 0 {
            return invalid("in_flight or missing_limit is 0");
        }
        if self.memory_bytes < 1 << 20 {
            return invalid("memory_bytes is less than 1 MiB");
        }
        self.upid(&Scope::Store, BackupTime::MIN).map(drop)
    }

    /// The task id, as PBS makes it. Source: PBS datastore format §6.4.
    pub(super) fn upid(&self, scope: &Scope, start: BackupTime) -> Result<Upid> {
        let store = &self.store_name;
        let (task_type, id) = match scope {
            Scope::Group(group) => ("verify_group", format!("{store}:{}", path_of(group))),
            Scope::Namespace(_) | Scope::Store => ("verify", store.clone()),
            Scope::Snapshot(snapshot) => {
                let time = snapshot.time().epoch();
                ("verify_snapshot", format!("{store}:{}/{time:08X}", path_of(snapshot.group())))
            }
        };
        let (pid, ticks) = self.process;
        let mut builder = Upid::builder(task_type, start, &self.auth_id).process(pid, ticks).id(&id);
        if let Some(node) = &self.node {
            builder = builder.node(node);
        }
        builder.build().map_err(|error| Error::new(ErrorKind::InvalidInput, "verify").because(error))
    }
}

/// A group with the names of its namespaces before it.
fn path_of(group: &GroupName) -> String {
    let namespace = group.namespace();
    let place = if namespace.is_root() { String::new() } else { format!("{namespace}/") };
    format!("{place}{}/{}", group.backup_type(), group.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_are_those_of_pbs() {
        let options = VerifyOptions::default().store_name("store1").node("node1").process(0x1234, 0xABCD);
        let start = BackupTime::from_epoch(0x6878_F2C0).unwrap();
        let snapshot = "vm/100".parse::<GroupName>().unwrap().snapshot(start);
        let upid = |scope: Scope| options.upid(&scope, start).unwrap().to_string();
        assert_eq!(
            upid(Scope::Snapshot(snapshot.clone())),
            "UPID:node1:00001234:0000ABCD:00000000:6878F2C0:verify_snapshot:store1\\x3avm-100-6878F2C0:root@pam:"
        );
        let group = snapshot.group().clone().in_namespace("a/b".parse().unwrap());
        assert!(upid(Scope::Group(group)).ends_with(":verify_group:store1\\x3aa-b-vm-100:root@pam:"));
        assert!(upid(Scope::Store).ends_with(":verify:store1:root@pam:"));
        assert!(upid(Scope::Namespace("a".parse().unwrap())).ends_with(":verify:store1:root@pam:"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |options: VerifyOptions| options.check().unwrap_err().kind() == ErrorKind::InvalidInput;
        let options = VerifyOptions::default;
        assert!(options().check().is_ok());
        assert!(options().mode(Mode::Sample(Sample::default().requests(1))).check().is_ok());
        assert!(refused(options().mode(Mode::Sample(Sample::default()))));
        assert!(refused(options().in_flight(0)));
        assert!(refused(options().missing_limit(0)));
        assert!(refused(options().memory_bytes(1000)));
        assert!(refused(options().node("a b")));
    }
}

//! Options of a verification.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::name::{AuthId, BackupTime, GroupName};
use crate::format::upid::Upid;
use crate::observer::Observer;
use crate::store::{ExecutionControl, Scope};
use crate::verify::report::VerifyEvent;

/// Depth of the checks.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// Reads and checks every chunk and every blob.
    Full,
    /// Lists chunks and blobs. Reads none of them.
    Presence,
    /// Lists blobs, and reads and checks some chunks.
    Sample(Sample),
}

/// Size and start of a sample.
///
/// Samples go through the chunks in the order of their digests, in a circle. The report has the position
/// where the next one [begins](crate::verify::VerifyReport::next_rotation), so every chunk gets its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Sample {
    pub(super) bytes: Option<u64>,
    pub(super) requests: Option<u64>,
    pub(super) rotation: u64,
}

impl Sample {
    /// Maximum bytes read, including manifests and indexes. The run ends when they are used up; only requests in flight
    /// exceed the maximum.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Maximum number of read requests.
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Start in the space of digests, by their first eight bytes; default: 0. Take it from the report of the last run, or use any
    /// number.
    pub fn rotation(mut self, rotation: u64) -> Self {
        self.rotation = rotation;
        self
    }
}

/// Treatment of corrupt and missing chunks.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Quarantines corrupt chunks as `<digest>.N.bad`, so that the next backup that contains them stores them again. Reinstates missing
    /// chunks whose quarantined copy is good.
    Quarantine,
    /// Only reports them.
    Report,
}

/// Recording of results in manifests.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// Records nothing. Together with [`Repair::Report`], nothing is written at all.
    Off,
    /// Records the verify state, as PBS does.
    On,
}

/// Options of a verification.
#[derive(Clone, Debug)]
#[must_use]
pub struct VerifyOptions {
    pub(super) control: ExecutionControl<VerifyEvent>,
    pub(super) keys: Vec<EncryptionKey>,
    pub(super) memory_bytes: usize,
    pub(super) missing_limit: u64,
    pub(super) mode: VerifyMode,
    pub(super) recording: Recording,
    pub(super) refetches: u32,
    pub(super) repair: Repair,
    pub(super) skip_verified_within: Option<Duration>,
    task: Option<Upid>,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            control: ExecutionControl::default(),
            keys: Vec::new(),
            memory_bytes: 128 << 20,
            missing_limit: 100,
            mode: VerifyMode::Full,
            recording: Recording::On,
            refetches: 1,
            repair: Repair::Quarantine,
            skip_verified_within: None,
            task: None,
        }
    }
}

impl VerifyOptions {
    /// Flag that aborts an execution; default: none. It is checked before each chunk. The report has the results so far; reset the
    /// flag before the next execution.
    pub fn abort(mut self, flag: Arc<AtomicBool>) -> Self {
        self.control.abort = flag;
        self
    }

    /// Maximum number of chunks processed at a time, at least 1; default: the choice of the backend. The memory budget of the store
    /// bounds their bytes, [`memory_bytes`](crate::store::Options::memory_bytes), shared with restores.
    pub fn concurrency(mut self, chunks: usize) -> Self {
        self.control.concurrency = Some(chunks);
        self
    }

    /// Adds a key, at most 255 of them; default: none. Snapshots that name its fingerprint are authenticated: the signature of the manifest, and the tag and
    /// digest of every encrypted chunk and blob that is read. Without their key only checksums of encrypted data are verified.
    pub fn key(mut self, key: &EncryptionKey) -> Self {
        self.keys.push(key.clone());
        self
    }

    /// Maximum bytes for results of chunks, at least 1 MiB; default: 128 MiB. A checked chunk takes 16 to 20 bytes, a
    /// listed one 8 to 9. Beyond that, a full run may read chunks twice, and a presence run makes several passes over the snapshots.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Number of consecutive missing or unreachable chunks, without a good one among them, after which the store counts as
    /// unreachable, at least 1; default: 100.
    pub fn missing_limit(mut self, limit: u64) -> Self {
        self.missing_limit = limit;
        self
    }

    /// Depth of the checks; default: [`VerifyMode::Full`].
    pub fn mode(mut self, mode: VerifyMode) -> Self {
        self.mode = mode;
        self
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<VerifyEvent>>) -> Self {
        self.control.observer = Some(observer);
        self
    }

    /// Recording of results in manifests; default: [`Recording::On`].
    pub fn recording(mut self, recording: Recording) -> Self {
        self.recording = recording;
        self
    }

    /// Number of repeated fetches before a chunk is reported corrupt; default: 1.
    pub fn refetches(mut self, refetches: u32) -> Self {
        self.refetches = refetches;
        self
    }

    /// Treatment of corrupt and missing chunks; default: [`Repair::Quarantine`], as in PBS.
    pub fn repair(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    /// In a full run, does not read snapshots that were verified within this time, whatever the result; a listing shows if
    /// their chunks still exist. Default: reads all snapshots.
    pub fn skip_verified_within(mut self, time: Duration) -> Self {
        self.skip_verified_within = Some(time);
        self
    }

    /// Task id for the results in manifests; default: an id of `root@pam` at `localhost` that begins at the first execution and names what
    /// is verified.
    pub fn task(mut self, task: Upid) -> Self {
        self.task = Some(task);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, "verify").because(why));
        if matches!(self.mode, VerifyMode::Sample(Sample { bytes: None, requests: None, .. })) {
            return invalid("a sample has no bound");
        }
        self.control.check("verify")?;
        if self.missing_limit == 0 {
            return invalid("missing_limit is 0");
        }
        if self.memory_bytes < 1 << 20 {
            return invalid("memory_bytes is less than 1 MiB");
        }
        if self.keys.len() > usize::from(u8::MAX) {
            return invalid("there are more than 255 keys");
        }
        self.upid(&Scope::Store, BackupTime::MIN).map(drop)
    }

    /// The task id, in the format of PBS. Source: PBS datastore format §6.4.
    pub(super) fn upid(&self, scope: &Scope, start: BackupTime) -> Result<Upid> {
        if let Some(task) = &self.task {
            return Ok(task.clone());
        }
        let store = "store";
        let (task_type, id) = match scope {
            Scope::Group(group) => ("verify_group", format!("{store}:{}", path_of(group))),
            Scope::Snapshots(snapshots) => match &snapshots[..] {
                [snapshot] => {
                    let time = snapshot.time().epoch();
                    ("verify_snapshot", format!("{store}:{}/{time:08X}", path_of(snapshot.group())))
                }
                _ => ("verify", store.to_owned()),
            },
            Scope::Namespace(_) | Scope::Store | Scope::Tree(_) => ("verify", store.to_owned()),
        };
        let builder = Upid::builder(task_type, start, &AuthId::root()).id(&id);
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
        let options = VerifyOptions::default();
        let start = BackupTime::from_epoch(0x6878_F2C0).unwrap();
        let snapshot = "vm/100".parse::<GroupName>().unwrap().snapshot(start);
        let upid = |scope: Scope| options.upid(&scope, start).unwrap().to_string();
        assert_eq!(
            upid(Scope::Snapshots(vec![snapshot.clone()])),
            "UPID:localhost:00000000:00000000:00000000:6878F2C0:verify_snapshot:store\\x3avm-100-6878F2C0:root@pam:"
        );
        let group = snapshot.group().clone().in_namespace("a/b".parse().unwrap());
        assert!(upid(Scope::Group(group)).ends_with(":verify_group:store\\x3aa-b-vm-100:root@pam:"));
        assert!(upid(Scope::Store).ends_with(":verify:store:root@pam:"));
        for scope in [Scope::Namespace("a".parse().unwrap()), Scope::Tree("a".parse().unwrap())] {
            assert!(upid(scope).ends_with(":verify:store:root@pam:"));
        }
        let both = vec![snapshot.clone(), snapshot.clone()];
        assert!(
            upid(Scope::Snapshots(both)).ends_with(":verify:store:root@pam:"),
            "PBS has no task for several"
        );
        let task: Upid =
            "UPID:node1:00001234:0000ABCD:00000000:6878F2C0:verify:store1:root@pam:".parse().unwrap();
        assert_eq!(options.clone().task(task.clone()).upid(&Scope::Store, start).unwrap(), task);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let refused = |options: VerifyOptions| options.check().unwrap_err().kind() == ErrorKind::InvalidInput;
        let options = VerifyOptions::default;
        assert!(options().check().is_ok());
        assert!(options().mode(VerifyMode::Sample(Sample::default().requests(1))).check().is_ok());
        assert!(refused(options().mode(VerifyMode::Sample(Sample::default()))));
        assert!(refused(options().concurrency(0)));
        assert!(refused(options().missing_limit(0)));
        assert!(refused(options().memory_bytes(1000)));
        assert!(Upid::builder("verify", BackupTime::MIN, &AuthId::root()).node("a b").build().is_err());
    }
}

//! Options of a sync.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::crypt::EncryptionKey;
use crate::error::ParseError;
use crate::format::manifest::{CryptMode, Manifest, VerifyResult};
use crate::format::name::{AuthId, BackupType, GroupName, Namespace};
use crate::observer::Observer;
use crate::store::ExecutionControl;
use crate::sync::events::SyncEvent;
use crate::sync::kinds::SyncSkip;

/// Options of a sync.
#[derive(Clone, Debug)]
#[must_use]
pub struct SyncOptions {
    pub(super) bytes_per_second: Option<NonZeroU64>,
    pub(super) candidates: SyncCandidates,
    pub(super) control: ExecutionControl<SyncEvent>,
    demands: Vec<Demand>,
    exclude: Vec<GroupRule>,
    include: Vec<GroupRule>,
    pub(super) max_depth: usize,
    pub(super) order: SyncOrder,
    pub(super) owner: AuthId,
    pub(super) reencrypt: Option<EncryptionKey>,
    pub(super) remember_chunks: usize,
    pub(super) remove_vanished: bool,
    pub(super) resync_corrupt: bool,
    pub(super) source_keys: Vec<EncryptionKey>,
    pub(super) source_namespace: Namespace,
    pub(super) target_namespace: Namespace,
    pub(super) transfer_last: Option<NonZeroUsize>,
}

/// Conditions on a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Encrypted,
    Verified,
}

/// Snapshots that are transferred if the target lacks them.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncCandidates {
    /// All of them.
    AllMissing,
    /// Those newer than the newest finished one of the group at the target, as in PBS: deleted snapshots stay
    /// deleted.
    Newer,
}

/// Order of the snapshots of a group.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncOrder {
    /// Newest first, so that it arrives soonest. If the run is interrupted, a later one transfers the rest only with
    /// [`SyncCandidates::AllMissing`].
    NewestFirst,
    /// Oldest first, as in PBS. A new snapshot that fails blocks the newer ones of its group until the next run, unless
    /// [`SyncCandidates::AllMissing`] is set.
    OldestFirst,
}

/// Groups that a rule matches.
#[non_exhaustive]
#[derive(Clone)]
pub enum GroupRule {
    /// The group of this type and id, in any namespace.
    Group(GroupName),
    /// Groups for which the function returns `true`. It receives the name at the source.
    Matching(Arc<dyn Fn(&GroupName) -> bool + Send + Sync>),
    /// Groups of one type.
    Type(BackupType),
}

impl GroupRule {
    fn is_about(&self, group: &GroupName) -> bool {
        match self {
            Self::Group(named) => named.backup_type() == group.backup_type() && named.id() == group.id(),
            Self::Matching(is_meant) => is_meant(group),
            Self::Type(named) => *named == group.backup_type(),
        }
    }
}

impl fmt::Debug for GroupRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "Group({}/{})", group.backup_type(), group.id()),
            Self::Matching(_) => f.write_str("Matching"),
            Self::Type(backup_type) => write!(f, "Type({backup_type})"),
        }
    }
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            bytes_per_second: None,
            candidates: SyncCandidates::Newer,
            control: ExecutionControl::default(),
            demands: Vec::new(),
            exclude: Vec::new(),
            include: Vec::new(),
            max_depth: Namespace::MAX_DEPTH,
            order: SyncOrder::OldestFirst,
            owner: AuthId::root(),
            reencrypt: None,
            remember_chunks: 1 << 20,
            remove_vanished: false,
            resync_corrupt: false,
            source_keys: Vec::new(),
            source_namespace: Namespace::root(),
            target_namespace: Namespace::root(),
            transfer_last: None,
        }
    }
}

impl SyncOptions {
    /// Flag that aborts an execution; default: none. The snapshot in progress is given up, and the report has the results so far. Reset
    /// the flag before the next execution.
    pub fn abort(mut self, flag: Arc<AtomicBool>) -> Self {
        self.control.abort = flag;
        self
    }

    /// Maximum bytes a second sent to the target, in bursts of one second's worth, or one chunk if that is more;
    /// default: unlimited. Read-ahead is limited to one second's worth, or one chunk, too.
    pub fn bytes_per_second(mut self, rate: NonZeroU64) -> Self {
        self.bytes_per_second = Some(rate);
        self
    }

    /// Snapshots to transfer; default: [`SyncCandidates::Newer`].
    pub fn candidates(mut self, candidates: SyncCandidates) -> Self {
        self.candidates = candidates;
        self
    }

    /// Transfers only snapshots whose files are all encrypted; default: all.
    pub fn encrypted_only(mut self) -> Self {
        self.demands.push(Demand::Encrypted);
        self
    }

    /// Excludes the groups that the rule matches, even if they are included.
    pub fn exclude(mut self, rule: GroupRule) -> Self {
        self.exclude.push(rule);
        self
    }

    /// Includes only groups that one of these rules matches; default: all.
    pub fn include(mut self, rule: GroupRule) -> Self {
        self.include.push(rule);
        self
    }

    /// Maximum number of chunks read, and of chunks stored, concurrently, at least 1; default: the choice of each store. The memory
    /// budget of each store bounds their bytes.
    pub fn concurrency(mut self, chunks: usize) -> Self {
        self.control.concurrency = Some(chunks);
        self
    }

    /// Number of namespace levels below [`source_namespace`](Self::source_namespace), 0 for that namespace alone;
    /// default: all.
    pub fn max_depth(mut self, levels: usize) -> Self {
        self.max_depth = levels;
        self
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<SyncEvent>>) -> Self {
        self.control.observer = Some(observer);
        self
    }

    /// The order within a group; default: [`SyncOrder::OldestFirst`].
    pub fn order(mut self, order: SyncOrder) -> Self {
        self.order = order;
        self
    }

    /// Auth id of the sync; default: `root@pam`. It owns new groups. Groups of another owner are left alone.
    pub fn owner(mut self, owner: AuthId) -> Self {
        self.owner = owner;
        self
    }

    /// Encrypts every snapshot on its way with this key, and signs it: for a target whose host is not trusted, or to replace a key. Default:
    /// snapshots keep their stored bytes, and no key is needed.
    ///
    /// Plain snapshots need no other key; for others, add their [`source_key`](Self::source_key). Snapshots that have this key already keep their
    /// stored bytes. Each chunk is read once, decrypted and encrypted on this host; chunks that the target has from the previous snapshot of the
    /// group are neither read nor sent. The new snapshot has other digests and another signature, and no state of verification; its manifest names the signature of the original. The
    /// encrypted key for a master key stays behind. No option decrypts snapshots.
    pub fn reencrypt(mut self, key: &EncryptionKey) -> Self {
        self.reencrypt = Some(key.clone());
        self
    }

    /// Adds a key of snapshots of the source, for [`reencrypt`](Self::reencrypt). A snapshot without its key fails with `KeyRequired`, and one that its key
    /// did not sign with `Corrupt`.
    pub fn source_key(mut self, key: &EncryptionKey) -> Self {
        self.source_keys.push(key.clone());
        self
    }

    /// Number of chunks of a run that are remembered, at about 100 bytes each, so that they are transferred once; default:
    /// 1,048,576. Those of the snapshot in progress are always remembered.
    pub fn remember_chunks(mut self, chunks: usize) -> Self {
        self.remember_chunks = chunks;
        self
    }

    /// Removes snapshots, groups and namespaces of the target that the source no longer has. Protected snapshots stay, and
    /// so do groups of another owner and excluded ones. Default: removes nothing.
    pub fn remove_vanished(mut self) -> Self {
        self.remove_vanished = true;
        self
    }

    /// Transfers snapshots again that failed verification at the target or cannot be read; default: they stay
    /// unchanged.
    pub fn resync_corrupt(mut self) -> Self {
        self.resync_corrupt = true;
        self
    }

    /// Top namespace at the source; default: the root.
    pub fn source_namespace(mut self, namespace: Namespace) -> Self {
        self.source_namespace = namespace;
        self
    }

    /// Namespace of the target that it maps to, created if missing; default: the root.
    pub fn target_namespace(mut self, namespace: Namespace) -> Self {
        self.target_namespace = namespace;
        self
    }

    /// Transfers only this many newest snapshots of each group; default: all. The newest one at the target is still compared.
    pub fn transfer_last(mut self, snapshots: NonZeroUsize) -> Self {
        self.transfer_last = Some(snapshots);
        self
    }

    /// Transfers only snapshots that passed their last verification at the source; default: all.
    pub fn verified_only(mut self) -> Self {
        self.demands.push(Demand::Verified);
        self
    }

    /// Returns `true` if the options include this group of the source.
    pub(super) fn admits(&self, group: &GroupName) -> bool {
        let is_about = |rule: &GroupRule| rule.is_about(group);
        (self.include.is_empty() || self.include.iter().any(is_about)) && !self.exclude.iter().any(is_about)
    }

    /// Returns `true` if the options need manifests to select snapshots.
    pub(super) fn asks_manifests(&self) -> bool {
        !self.demands.is_empty()
    }

    /// Reason why a snapshot of the source is excluded; `None` if it is included.
    pub(super) fn objection(&self, manifest: &Manifest) -> Option<SyncSkip> {
        self.demands.iter().find_map(|demand| match demand {
            Demand::Encrypted => {
                let mut files = manifest.files().iter();
                let is_met = files.all(|file| file.crypt_mode == CryptMode::Encrypt);
                (!is_met).then_some(SyncSkip::NotEncrypted)
            }
            Demand::Verified => {
                let state = manifest.verify_state().ok().flatten();
                let is_met = state.is_some_and(|state| state.state == VerifyResult::Ok);
                (!is_met).then_some(SyncSkip::NotVerified)
            }
        })
    }

    /// Returns `true` if the sync maps some namespace of the source to this one of the target.
    pub(super) fn is_of_target(&self, namespace: &Namespace) -> bool {
        let goal = &self.target_namespace;
        goal.contains(namespace) && namespace.depth() - goal.depth() <= self.max_depth
    }

    /// The namespace of the target that a namespace of the source maps to.
    pub(super) fn to_target(&self, namespace: &Namespace) -> Result<Namespace, ParseError> {
        moved(namespace, &self.source_namespace, &self.target_namespace)
    }

    /// The namespace of the source that maps to this one of the target.
    pub(super) fn to_source(&self, namespace: &Namespace) -> Result<Namespace, ParseError> {
        moved(namespace, &self.target_namespace, &self.source_namespace)
    }
}

fn moved(namespace: &Namespace, from: &Namespace, to: &Namespace) -> Result<Namespace, ParseError> {
    namespace.components().skip(from.depth()).try_fold(to.clone(), |parent, name| parent.child(name))
}

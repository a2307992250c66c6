//! What is brought over, and how.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::format::manifest::{CryptMode, Manifest, VerifyResult};
use crate::format::name::{AuthId, BackupType, GroupName, NameError, Namespace};
use crate::sync::events::{Silent, SyncObserver};
use crate::sync::kinds::Skip;

/// Choices for a sync.
#[derive(Clone, Debug)]
#[must_use]
pub struct SyncOptions {
    pub(super) abort: Arc<AtomicBool>,
    pub(super) bytes_per_second: Option<NonZeroU64>,
    pub(super) candidates: Candidates,
    demands: Vec<Demand>,
    exclude: Vec<GroupRule>,
    include: Vec<GroupRule>,
    pub(super) in_flight: Option<NonZeroUsize>,
    pub(super) max_depth: usize,
    pub(super) observer: Arc<dyn SyncObserver>,
    pub(super) order: Order,
    pub(super) owner: AuthId,
    pub(super) remember_chunks: usize,
    pub(super) remove_vanished: bool,
    pub(super) resync_corrupt: bool,
    pub(super) source_namespace: Namespace,
    pub(super) target_namespace: Namespace,
    pub(super) transfer_last: Option<NonZeroUsize>,
}

/// What is demanded of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Encrypted,
    Verified,
}

/// Which snapshots are brought over of those that the target does not have.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidates {
    /// All of them.
    AllMissing,
    /// Those that are newer than the newest finished one of the group at the target, as PBS does: what was deleted there stays
    /// deleted.
    Newer,
}

/// In which order the snapshots of a group are brought over.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The newest first, so that it is there soonest. What a run that is cut off did not come to is brought over later only with
    /// [`Candidates::AllMissing`].
    NewestFirst,
    /// As PBS does. A new snapshot that fails keeps the newer ones of its group waiting for the next run, unless
    /// [`Candidates::AllMissing`] is chosen.
    OldestFirst,
}

/// Which groups a rule is about.
#[non_exhaustive]
#[derive(Clone)]
pub enum GroupRule {
    /// The group of this type and id, in whatever namespace.
    Group(GroupName),
    /// Those for which the function says so. It is given the name at the source.
    Matching(Arc<dyn Fn(&GroupName) -> bool + Send + Sync>),
    /// Those of one type.
    Type(BackupType),
}

impl GroupRule {
    /// The groups for which `is_meant` is true.
    pub fn matching(is_meant: impl Fn(&GroupName) -> bool + Send + Sync + 'static) -> Self {
        Self::Matching(Arc::new(is_meant))
    }

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
            abort: Arc::default(),
            bytes_per_second: None,
            candidates: Candidates::Newer,
            demands: Vec::new(),
            exclude: Vec::new(),
            include: Vec::new(),
            in_flight: None,
            max_depth: Namespace::MAX_DEPTH,
            observer: Arc::new(Silent),
            order: Order::OldestFirst,
            owner: AuthId::root(),
            remember_chunks: 1 << 20,
            remove_vanished: false,
            resync_corrupt: false,
            source_namespace: Namespace::root(),
            target_namespace: Namespace::root(),
            transfer_last: None,
        }
    }
}

impl SyncOptions {
    /// A flag that ends the sync when it is set: what is under way is given up, and the report says how far it got.
    pub fn abort(mut self, flag: Arc<AtomicBool>) -> Self {
        self.abort = flag;
        self
    }

    /// How many bytes a second are passed on to the target, and at most a second's worth at once, or one chunk if that is more;
    /// default: as many as it takes. What is read ahead of that is no more than a second's worth either, or one chunk.
    pub fn bytes_per_second(mut self, rate: NonZeroU64) -> Self {
        self.bytes_per_second = Some(rate);
        self
    }

    /// Which snapshots are brought over; default: [`Candidates::Newer`].
    pub fn candidates(mut self, candidates: Candidates) -> Self {
        self.candidates = candidates;
        self
    }

    /// Only snapshots of which all files are encrypted; default: all.
    pub fn encrypted_only(mut self) -> Self {
        self.demands.push(Demand::Encrypted);
        self
    }

    /// Leaves out the groups that the rule is about, whether or not they are included.
    pub fn exclude(mut self, rule: GroupRule) -> Self {
        self.exclude.push(rule);
        self
    }

    /// Only groups that some such rule is about; default: all.
    pub fn include(mut self, rule: GroupRule) -> Self {
        self.include.push(rule);
        self
    }

    /// How many chunks are read, and how many stored, at the same time at most; default: what each store is made for. How many
    /// bytes they have is also bounded by the memory of each store.
    pub fn in_flight(mut self, chunks: NonZeroUsize) -> Self {
        self.in_flight = Some(chunks);
        self
    }

    /// How many levels of namespaces below [`source_namespace`](Self::source_namespace) are brought over, 0 for itself alone;
    /// default: all.
    pub fn max_depth(mut self, levels: usize) -> Self {
        self.max_depth = levels;
        self
    }

    /// Who is told about progress; default: nobody.
    pub fn observer(mut self, observer: Arc<dyn SyncObserver>) -> Self {
        self.observer = observer;
        self
    }

    /// The order within a group; default: [`Order::OldestFirst`].
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// On whose behalf; default: `root@pam`. New groups belong to them. A group of somebody else is left alone.
    pub fn owner(mut self, owner: AuthId) -> Self {
        self.owner = owner;
        self
    }

    /// How many chunks of a run are remembered, at about 100 bytes each, so that they are not transferred twice; default:
    /// 1,048,576. Those of the snapshot that is under way always are.
    pub fn remember_chunks(mut self, chunks: usize) -> Self {
        self.remember_chunks = chunks;
        self
    }

    /// Removes from the target what the source does not have any more: snapshots, groups and namespaces. What is protected stays, and
    /// so do groups of somebody else and those that are left out. Default: nothing is removed.
    pub fn remove_vanished(mut self) -> Self {
        self.remove_vanished = true;
        self
    }

    /// Brings snapshots of the target over again, completely, that failed their verification or cannot be read; default: they stay
    /// as they are.
    pub fn resync_corrupt(mut self) -> Self {
        self.resync_corrupt = true;
        self
    }

    /// Where to begin at the source; default: the root.
    pub fn source_namespace(mut self, namespace: Namespace) -> Self {
        self.source_namespace = namespace;
        self
    }

    /// Which namespace of the target it becomes, made if there is none; default: the root.
    pub fn target_namespace(mut self, namespace: Namespace) -> Self {
        self.target_namespace = namespace;
        self
    }

    /// Only the newest so many of each group; default: all. The newest one of the target is compared all the same.
    pub fn transfer_last(mut self, snapshots: NonZeroUsize) -> Self {
        self.transfer_last = Some(snapshots);
        self
    }

    /// Only snapshots that passed their last verification at the source; default: all.
    pub fn verified_only(mut self) -> Self {
        self.demands.push(Demand::Verified);
        self
    }

    /// Whether the group of the source is meant.
    pub(super) fn admits(&self, group: &GroupName) -> bool {
        let is_about = |rule: &GroupRule| rule.is_about(group);
        (self.include.is_empty() || self.include.iter().any(is_about)) && !self.exclude.iter().any(is_about)
    }

    /// Whether manifests decide on which snapshots are meant.
    pub(super) fn asks_manifests(&self) -> bool {
        !self.demands.is_empty()
    }

    /// Why a snapshot of the source is not meant, if it is not.
    pub(super) fn objection(&self, manifest: &Manifest) -> Option<Skip> {
        self.demands.iter().find_map(|demand| match demand {
            Demand::Encrypted => {
                let mut files = manifest.files().iter();
                let is_met = files.all(|file| file.crypt_mode() == CryptMode::Encrypt);
                (!is_met).then_some(Skip::NotEncrypted)
            }
            Demand::Verified => {
                let state = manifest.verify_state().ok().flatten();
                let is_met = state.is_some_and(|state| state.state == VerifyResult::Ok);
                (!is_met).then_some(Skip::NotVerified)
            }
        })
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }

    /// Whether something of the source would go to this namespace of the target, if the source had it.
    pub(super) fn is_of_target(&self, namespace: &Namespace) -> bool {
        let goal = &self.target_namespace;
        goal.contains(namespace) && namespace.depth() - goal.depth() <= self.max_depth
    }

    /// Where a namespace of the source goes.
    pub(super) fn to_target(&self, namespace: &Namespace) -> Result<Namespace, NameError> {
        moved(namespace, &self.source_namespace, &self.target_namespace)
    }

    /// Where a namespace of the target comes from.
    pub(super) fn to_source(&self, namespace: &Namespace) -> Result<Namespace, NameError> {
        moved(namespace, &self.target_namespace, &self.source_namespace)
    }
}

fn moved(namespace: &Namespace, from: &Namespace, to: &Namespace) -> Result<Namespace, NameError> {
    namespace.components().skip(from.depth()).try_fold(to.clone(), |parent, name| parent.child(name))
}

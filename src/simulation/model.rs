//! The model of the stores: their expected contents, in plain memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::name::{BackupTime, GroupName, Namespace, SnapshotName};
use crate::simulation::blocks::{BLOCKS, SHORT};
use crate::simulation::dice::Dice;
use crate::simulation::keys::{Chunk, MODES, Mode};
use crate::simulation::tree::{Tree, VERSIONS};

/// The time of the first snapshot: when virtual time begins.
const FIRST_TIME: i64 = 1_735_689_600;

/// A store, and one of its snapshots.
pub(crate) type Spot = (usize, SnapshotName);

/// The contents of a snapshot: blocks by their numbers, and a tree. A snapshot without an image has a stream, and vice versa.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub image: Vec<u8>,
    pub stream: Vec<u8>,
    pub tree: Option<Tree>,
}

impl Contents {
    /// The chunks of a snapshot with these contents.
    pub(crate) fn chunks(&self, mode: Mode) -> BTreeSet<Chunk> {
        let key = mode.chunk_key();
        self.image.iter().chain(&self.stream).map(|block| Chunk { block: *block, key }).collect()
    }
}

/// A fact, as far as it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tri {
    Maybe,
    No,
    Yes,
}

/// The result of an operation for one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteOutcome {
    /// It exists.
    There,
    /// It is gone.
    Gone,
    /// Its state before the operation.
    Same,
    /// Nobody knows.
    Unknown,
}

/// The possible effect of an operation on a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Create,
    Delete,
    /// Deletes it here also if it is protected, since it is elsewhere then.
    Move,
}

#[derive(Clone, Debug)]
pub(crate) struct Location {
    /// How often `guarded` was in doubt.
    guards: u64,
    pub guarded: Tri,
    pending: u32,
    pub state: Tri,
    version: u64,
}

/// An operation that is under way on one snapshot.
#[derive(Debug)]
pub(crate) struct Token {
    guards: u64,
    intent: Intent,
    pub spot: Spot,
    pub version: u64,
    pub was: Tri,
    pub was_guarded: bool,
}

/// The part of a store that an operation may destroy as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Wide {
    pub group: Option<GroupName>,
    pub namespace: Namespace,
    pub store: usize,
}

impl Wide {
    pub(crate) fn covers(&self, spot: &Spot) -> bool {
        let group = spot.1.group();
        spot.0 == self.store
            && self.namespace.contains(group.namespace())
            && self.group.as_ref().is_none_or(|meant| meant == group)
    }
}

/// The expected contents of the stores.
#[derive(Debug)]
pub(crate) struct Model {
    /// Chunks of the first store that were damaged and may be bad.
    pub bad: BTreeSet<Chunk>,
    /// The index of the first store lacks something.
    pub is_index_hurt: bool,
    /// At least one of the two exists, if no operation changed them since.
    links: Vec<[(Spot, u64); 2]>,
    pub locations: BTreeMap<Spot, Location>,
    /// Silently damaged chunks of a packed store that had another copy, which was good. A collection has no key to tell which one to keep.
    pub masked: BTreeSet<Chunk>,
    next_time: i64,
    seed: u64,
    /// Chunks that were ever damaged in the first store so that only their key shows it. A sync without the key carries them on.
    pub silent: BTreeSet<Chunk>,
    pub violations: Vec<String>,
    wide: BTreeMap<u64, Wide>,
    wides: u64,
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            bad: BTreeSet::new(),
            is_index_hurt: false,
            links: Vec::new(),
            locations: BTreeMap::new(),
            masked: BTreeSet::new(),
            next_time: FIRST_TIME,
            seed,
            silent: BTreeSet::new(),
            violations: Vec::new(),
            wide: BTreeMap::new(),
            wides: 0,
        }
    }

    /// A time that no snapshot had yet.
    pub(crate) fn new_time(&mut self) -> BackupTime {
        self.next_time += 700;
        BackupTime::try_from(self.next_time).unwrap()
    }

    /// The contents of every snapshot of that time, wherever it is.
    pub(crate) fn contents(&self, time: BackupTime) -> Contents {
        let mut dice = Dice::new(self.seed ^ u64::try_from(time.epoch()).unwrap().rotate_left(20));
        let mut blocks = |length: u64| {
            let mut numbers = Vec::new();
            // Most of what one snapshot has, others have too.
            let start = dice.below(3);
            for at in 0..length {
                let usual = (start + at) % u64::from(BLOCKS - SHORT);
                let number = if dice.one_in(4) { dice.below(u64::from(BLOCKS - SHORT)) } else { usual };
                numbers.push(u8::try_from(number).unwrap());
            }
            if dice.one_in(2) {
                numbers.push(BLOCKS - SHORT + u8::try_from(dice.below(u64::from(SHORT))).unwrap());
            }
            (numbers, dice.below(4))
        };
        let (image, which) = blocks(5);
        let (stream, _) = blocks(4);
        let (image, stream) = match which {
            0 => (Vec::new(), stream),
            1 => (image, stream),
            _ => (image, Vec::new()),
        };
        // The same tree often comes twice, so that all of it is unchanged.
        let version = u8::try_from(dice.below(u64::from(VERSIONS))).unwrap();
        let version = if dice.one_in(3) { version } else { 0 };
        let tree = Tree { is_unified: dice.one_in(6), version };
        Contents { image, stream, tree: dice.one_in(2).then_some(tree) }
    }

    /// The key of every snapshot of that time, wherever it is. Some in a row have the same, so that they can build on one another.
    pub(crate) fn mode(&self, time: BackupTime) -> Mode {
        let row = u64::try_from(time.epoch() - FIRST_TIME).unwrap() / 700 / 6;
        Dice::new(self.seed ^ row.rotate_left(40)).pick(&MODES).unwrap()
    }

    /// The chunks of every snapshot of that time.
    pub(crate) fn chunks(&self, time: BackupTime) -> BTreeSet<Chunk> {
        self.contents(time).chunks(self.mode(time))
    }

    /// Returns `true` if a chunk of every snapshot of that time may be bad in this store.
    pub(crate) fn is_hurt(&self, store: usize, time: BackupTime) -> bool {
        let is_bad = |chunk| match store {
            0 => self.bad.contains(&chunk),
            _ => self.silent.contains(&chunk),
        };
        (store == 0 && self.is_index_hurt) || self.chunks(time).into_iter().any(is_bad)
    }

    fn location(&mut self, spot: &Spot) -> &mut Location {
        let new = Location { guards: 0, guarded: Tri::No, pending: 0, state: Tri::No, version: 0 };
        self.locations.entry(spot.clone()).or_insert(new)
    }

    /// An operation begins that may do this to a snapshot.
    pub(crate) fn begin(&mut self, spot: Spot, intent: Intent) -> Token {
        let location = self.location(&spot);
        location.pending += 1;
        location.version += 1;
        let was = location.state;
        let was_guarded = location.guarded == Tri::Yes;
        let (version, guards) = (location.version, location.guards);
        let stays = match intent {
            Intent::Create => was == Tri::Yes,
            Intent::Delete => was_guarded,
            Intent::Move => false,
        };
        if !stays {
            location.state = Tri::Maybe;
        }
        Token { guards, intent, spot, version, was, was_guarded }
    }

    pub(crate) fn end(&mut self, token: &Token, fate: DeleteOutcome) {
        let location = self.location(&token.spot);
        location.pending -= 1;
        let is_alone = location.version == token.version;
        location.version += 1;
        let is_guarded = token.was_guarded && location.guards == token.guards;
        if token.intent == Intent::Delete && is_guarded && fate == DeleteOutcome::Gone {
            self.violations.push(format!("{:?} was protected, and was deleted", token.spot));
            return;
        }
        if token.intent == Intent::Delete && is_guarded && location.state == Tri::Yes {
            return;
        }
        location.state = match fate {
            _ if !is_alone => Tri::Maybe,
            DeleteOutcome::There => Tri::Yes,
            DeleteOutcome::Gone => Tri::No,
            DeleteOutcome::Same => token.was,
            DeleteOutcome::Unknown if token.intent == Intent::Create && token.was == Tri::Yes => Tri::Yes,
            DeleteOutcome::Unknown => Tri::Maybe,
        };
        if location.state == Tri::No {
            location.guarded = Tri::No;
        } else if location.state == Tri::Maybe && token.intent != Intent::Delete {
            location.guarded = Tri::Maybe;
            location.guards += 1;
        }
    }

    /// Returns `true` if no protection was asked for since the operation began.
    pub(crate) fn is_steady(&self, token: &Token) -> bool {
        self.locations.get(&token.spot).is_some_and(|location| location.guards == token.guards)
    }

    /// A change of a snapshot was observed that no token covers.
    pub(crate) fn doubt(&mut self, spot: &Spot) {
        let location = self.location(spot);
        location.version += 1;
        location.state = Tri::Maybe;
    }

    pub(crate) fn guard(&mut self, spot: &Spot, guarded: Tri) -> u64 {
        let location = self.location(spot);
        location.guards += 1;
        location.guarded = guarded;
        location.guards
    }

    /// Protection was acknowledged that was asked for when `guards` was the number.
    pub(crate) fn guarded(&mut self, spot: &Spot, guards: u64, guarded: Tri) {
        let location = self.location(spot);
        if location.guards == guards && location.pending == 0 && location.state == Tri::Yes {
            location.guarded = guarded;
        }
        location.guards += 1;
    }

    /// At least one of the two exists.
    pub(crate) fn link(&mut self, one: &Spot, other: &Spot) {
        let (first, second) = (self.version(one), self.version(other));
        self.links.push([(one.clone(), first), (other.clone(), second)]);
    }

    pub(crate) fn version(&mut self, spot: &Spot) -> u64 {
        self.location(spot).version
    }

    /// The version of a snapshot that certainly exists, and that no operation is changing.
    pub(crate) fn certain(&mut self, spot: &Spot) -> Option<u64> {
        let is_covered = self.wide.values().any(|wide| wide.covers(spot));
        let location = self.location(spot);
        (!is_covered && location.state == Tri::Yes && location.pending == 0).then_some(location.version)
    }

    /// Snapshots that may exist.
    pub(crate) fn possible(&self, store: usize) -> Vec<SnapshotName> {
        let there = self.locations.iter().filter(|(spot, at)| spot.0 == store && at.state != Tri::No);
        there.map(|(spot, _)| spot.1.clone()).collect()
    }

    pub(crate) fn begin_wide(&mut self, wide: Wide) -> (u64, Vec<Token>) {
        let covered: Vec<_> = self.locations.keys().filter(|spot| wide.covers(spot)).cloned().collect();
        let covered = covered.into_iter().filter(|spot| self.locations[spot].state != Tri::No);
        let spots: Vec<_> = covered.collect();
        let tokens = spots.into_iter().map(|spot| self.begin(spot, Intent::Delete)).collect();
        self.wides += 1;
        self.wide.insert(self.wides, wide);
        (self.wides, tokens)
    }

    /// Ends it: what it may have met and no token is about is in doubt.
    pub(crate) fn end_wide(&mut self, number: u64, tokens: &[Token]) {
        let Some(wide) = self.wide.remove(&number) else { return };
        let is_new = |spot: &Spot| !tokens.iter().any(|token| token.spot == *spot);
        for (spot, at) in &mut self.locations {
            // Also what another operation is changing: it must not rely on what was before.
            if wide.covers(spot) && is_new(spot) && at.state != Tri::No && at.guarded != Tri::Yes {
                at.version += 1;
                at.state = Tri::Maybe;
            }
        }
    }

    /// Everything that was under way was cut off.
    pub(crate) fn cut_off(&mut self) {
        for number in self.wide.keys().copied().collect::<Vec<_>>() {
            self.end_wide(number, &[]);
        }
        for location in self.locations.values_mut() {
            if location.pending > 0 {
                location.pending = 0;
                location.version += 1;
                location.guards += 1;
                if location.guarded == Tri::No {
                    // A move marks its destination before anything is there.
                    location.guarded = Tri::Maybe;
                }
            }
        }
    }

    /// Compares with the snapshots of a store and their protection, while no operation is in flight.
    pub(crate) fn compare(&mut self, store: usize, found: &BTreeMap<SnapshotName, bool>) {
        let mut wrong = Vec::new();
        for (spot, at) in self.locations.iter().filter(|(spot, _)| spot.0 == store) {
            let (is_there, name) = (found.contains_key(&spot.1), &spot.1);
            match at.state {
                Tri::Yes if !is_there => wrong.push(format!("store {store} has lost {name}")),
                Tri::No if is_there => wrong.push(format!("store {store} has {name} again")),
                _ => {}
            }
            let is_marked = found.get(name) == Some(&true);
            if is_there && (at.guarded == Tri::Yes && !is_marked || at.guarded == Tri::No && is_marked) {
                let is = if is_marked { "protected" } else { "not protected" };
                wrong.push(format!("store {store}: {name} is {is}"));
            }
        }
        for name in found.keys().filter(|name| !self.locations.contains_key(&(store, (*name).clone()))) {
            wrong.push(format!("store {store} has {name}, which nobody made"));
        }
        for [(one, first), (other, second)] in self.links.iter().filter(|link| link[0].0.0 == store) {
            let is_same = |spot: &Spot, version: u64| self.locations[spot].version == version;
            let is_gone = |spot: &Spot| !found.contains_key(&spot.1);
            if is_same(one, *first) && is_same(other, *second) && is_gone(one) && is_gone(other) {
                wrong.push(format!("{} and {} are both gone", one.1, other.1));
            }
        }
        self.links.retain(|link| link[0].0.0 != store);
        for (spot, at) in self.locations.iter_mut().filter(|(spot, _)| spot.0 == store) {
            let marked = found.get(&spot.1);
            at.state = if marked.is_some() { Tri::Yes } else { Tri::No };
            at.guarded = if marked == Some(&true) { Tri::Yes } else { Tri::No };
        }
        self.violations.append(&mut wrong);
    }
}

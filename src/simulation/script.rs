//! The steps of a history, which a seed decides before it begins.

use std::fmt;
use std::time::Duration;

use crate::backend::fault::Action;
use crate::backend::record::Method;
use crate::error::ErrorKind;
use crate::simulation::dice::Dice;
use crate::store::PackOptions;

/// An operation of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Annotate,
    BackUp,
    ChangeClock,
    Collect,
    CreateNamespace,
    Damage,
    Delete,
    DeleteMany,
    HandOver,
    Protect,
    Prune,
    Refresh,
    Relocate,
    Restore,
    Suspend,
    Sync,
    Verify,
}

/// The event of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The host stops at this change.
    Crash { at: u64 },
    /// `count` calls of a method fail, beginning with the `nth`.
    Fault { action: Action, count: u64, method: Method, nth: u64, of: Objects },
    /// An actor does something. The seed decides the rest.
    Operation { actor: u64, operation: Operation, seed: u64 },
}

/// The objects that a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Objects {
    All,
    Chunks,
    ChunksAndManifests,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub event: Event,
    pub round: u64,
}

/// The objects that are damaged behind the back of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damages {
    Chunks,
    /// Segments of the index of a packed store.
    Index,
    Nothing,
}

/// A whole history, as far as it is decided before it begins.
#[derive(Debug)]
pub(crate) struct Script {
    pub damages: Damages,
    pub faults: bool,
    pub packs: Option<PackOptions>,
    pub rounds: u64,
    pub steps: Vec<Step>,
}

impl Script {
    /// The history of a seed, at a place with requests that are executed later by `max_late` at most.
    pub(crate) fn of(seed: u64, max_late: Duration) -> Self {
        let mut dice = Dice::new(seed);
        let (damages, faults) = (dice.one_in(2), !dice.one_in(4));
        let packs = packs(seed);
        let damages = match packs {
            _ if !damages => Damages::Nothing,
            Some(_) if dice.one_in(3) => Damages::Index,
            _ => Damages::Chunks,
        };
        let rounds = 1 + dice.below(3);
        let mut steps = Vec::new();
        for round in 0..rounds {
            let mut add = |event| steps.push(Step { event, round });
            if faults {
                for _ in 0..dice.below(6) {
                    add(fault(&mut dice, max_late));
                }
                if !max_late.is_zero() && dice.one_in(2) {
                    add(late_deletion(&mut dice, max_late));
                }
                if dice.one_in(2) {
                    let most = 8 << dice.below(4);
                    add(Event::Crash { at: 1 + dice.below(most) });
                }
            }
            for actor in 0..=dice.below(4) {
                for _ in 0..=dice.below(4) {
                    let operation = operation(&mut dice, damages);
                    add(Event::Operation { actor, operation, seed: dice.number() });
                }
            }
        }
        Self { damages, faults, packs, rounds, steps }
    }

    /// The steps of a round.
    pub(crate) fn round(&self, round: u64) -> impl Iterator<Item = Event> {
        self.steps.iter().filter(move |step| step.round == round).map(|step| step.event)
    }
}

/// The layout of the store. A backup fills several small packs.
fn packs(seed: u64) -> Option<PackOptions> {
    let mut dice = Dice::new(seed.rotate_left(32));
    let packs = dice.one_in(2).then(PackOptions::default)?;
    Some(if dice.one_in(3) { packs } else { packs.target_exactly(6000 << dice.below(4)) })
}

fn late(dice: &mut Dice, max_late: Duration) -> Duration {
    // A margin for hosts that sleep meanwhile.
    Duration::from_secs(1 + dice.below(max_late.as_secs() * 5 / 6))
}

fn fault(dice: &mut Dice, max_late: Duration) -> Event {
    use Method::{Copy, Delete, Get, GetRange, Head, List, Put};
    let method = dice.pick(&[Put, Put, Delete, Delete, Copy, Get, GetRange, Head, List]).unwrap_or(Put);
    let mut count = 1;
    let action = match dice.below(8) {
        0 => Action::Cut,
        1 => Action::FailAfter(ErrorKind::Unavailable),
        2 if !max_late.is_zero() => Action::Late(late(dice, max_late), ErrorKind::Unavailable),
        3 if !max_late.is_zero() && matches!(method, Delete | Put) => {
            Action::Again(late(dice, max_late), ErrorKind::Unavailable)
        }
        4 => Action::EveryOther(ErrorKind::Unavailable),
        5 => Action::Delay(Duration::from_secs(dice.below(100))),
        6 => {
            // The server asks for a slower pace.
            count = 1 + dice.below(5);
            Action::FailBefore(ErrorKind::Unavailable)
        }
        _ => Action::FailBefore(ErrorKind::Unavailable),
    };
    let nth = 1 + dice.below(if method == Put { 60 } else { 20 });
    // By the contract of the backend, a read decides about a put without an answer: it is not executed again after that. Chunks and manifests
    // do not rely on that.
    let is_again = method == Put && matches!(action, Action::Again(..));
    let of = if is_again { Objects::ChunksAndManifests } else { Objects::All };
    Event::Fault { action, count, method, nth, of }
}

/// A deletion of garbage: it may still be executed when a writer needs the chunks again (H16, H17).
fn late_deletion(dice: &mut Dice, max_late: Duration) -> Event {
    let action = Action::Late(late(dice, max_late), ErrorKind::Unavailable);
    Event::Fault { action, count: 1, method: Method::Delete, nth: 1 + dice.below(3), of: Objects::Chunks }
}

fn operation(dice: &mut Dice, damages: Damages) -> Operation {
    match dice.below(100) {
        0..31 => Operation::BackUp,
        31..41 => Operation::Restore,
        41..54 => Operation::Collect,
        54..61 => Operation::Verify,
        61..66 => Operation::Prune,
        66..71 => Operation::Delete,
        71..73 => Operation::DeleteMany,
        73..81 => Operation::Relocate,
        81..86 => Operation::Sync,
        86..89 => Operation::Protect,
        89 => Operation::Annotate,
        90 => Operation::ChangeClock,
        91 => Operation::Suspend,
        92 => Operation::Refresh,
        93 => Operation::HandOver,
        94 => Operation::CreateNamespace,
        _ if damages != Damages::Nothing => Operation::Damage,
        _ => Operation::BackUp,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let round = self.round;
        match self.event {
            Event::Crash { at } => write!(f, "round {round}: crash at change {at}"),
            Event::Fault { action, count, method, nth, of } => {
                let of = match of {
                    Objects::All => "",
                    Objects::Chunks => " of chunks",
                    Objects::ChunksAndManifests => " of chunks and manifests",
                };
                write!(f, "round {round}: {method:?}{of}, {count} from number {nth} on: {action:?}")
            }
            Event::Operation { actor, operation, seed } => {
                write!(f, "round {round}: actor {actor}: {operation:?} ({seed:016x})")
            }
        }
    }
}

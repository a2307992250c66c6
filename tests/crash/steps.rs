//! Which steps are tried, and what must hold after each.

use std::collections::BTreeSet;

use crate::operations::Operation;
use crate::scene::{State, World, assert_between, assert_same};

/// A choice among all steps: every one, or a few of each operation in one of several places.
pub(crate) struct Steps {
    /// `None` for a choice.
    each: Option<u64>,
    passed: u64,
    place: u64,
    pub tried: u64,
}

/// The number of places among which a choice distributes operations.
const PLACES: u64 = 6;

impl Steps {
    /// Steps in the place with this number.
    pub(crate) fn new(place: u64) -> Self {
        let each = std::env::var("LARDER_CRASH_EACH").ok().map(|text| text.parse().unwrap());
        Self { each, passed: 0, place, tried: 0 }
    }

    /// Returns `true` if the operation with this number has its turn here.
    pub(crate) fn has(&mut self, number: usize) -> bool {
        self.passed = number as u64 * 29;
        self.each.is_some() || number as u64 % PLACES == self.place
    }

    pub(crate) fn is_chosen(&mut self) -> bool {
        self.passed += 1;
        self.passed.is_multiple_of(self.each.unwrap_or(67))
    }
}

/// The states before and after an operation, and everything that there is when garbage was collected afterwards.
pub(crate) struct Course {
    pub after: State,
    pub before: State,
    left: BTreeSet<String>,
    packs: (usize, usize),
}

impl Course {
    /// From a process that has just ended the operation.
    pub(crate) async fn new(before: State, world: &World, operation: &Operation) -> Self {
        let after = world.state().await;
        assert_eq!(before != after, operation.changes, "{before:#?} {after:#?}");
        let left = if operation.closes { BTreeSet::new() } else { world.collected().await };
        let packs = world.packs().await;
        Self { after, before, left, packs }
    }
}

/// A new process finds the store as a crash left it: everything is as before or as after the operation, which ends well at the second
/// attempt, and leaves nothing more than without the crash. `None` if there is no store.
pub(crate) async fn goes_on(world: Option<World>, operation: &Operation, course: &Course, is_over: bool) {
    let Some(world) = world else {
        assert!(operation.closes, "the store is gone");
        return;
    };
    let mut found = world.state().await;
    if let Some(found) = found.as_mut().filter(|_| operation.closes && !is_over) {
        // It has none yet, or not any more.
        found.remove("identity");
    }
    if !operation.closes || found.is_some() {
        assert_between(&found, &course.before, &course.after);
    }
    if is_over {
        assert_same(&found, &course.after, "it was acknowledged");
    }
    ends_well(&world, operation, course).await;
}

/// The operation ends well, and leaves nothing more than without a failure before.
pub(crate) async fn ends_well(world: &World, operation: &Operation, course: &Course) {
    (operation.run)(world).await.unwrap_or_else(|error| panic!("the second attempt: {error:?}"));
    (operation.outside)(&world.directory, true);
    is_as_without_a_failure(world, course).await;
}

pub(crate) async fn is_as_without_a_failure(world: &World, course: &Course) {
    assert_same(&world.state().await, &course.after, "in the end");
    if course.left.is_empty() {
        return;
    }
    let left = world.collected().await;
    let other: Vec<_> = left.symmetric_difference(&course.left).collect();
    assert!(other.is_empty(), "after a collection there is more or less: {other:?}");
    assert_same(&world.state().await, &course.after, "after a collection");
    let (packs, segments) = world.packs().await;
    assert!(packs <= course.packs.0 + 1, "{packs} packs instead of {}", course.packs.0);
    assert!(segments <= course.packs.1 + 2, "{segments} segments instead of {}", course.packs.1);
}

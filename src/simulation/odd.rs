//! Operations that change no snapshot.

use std::time::Duration;

use crate::format::name::Namespace;
use crate::simulation::world::World;

impl World {
    pub(crate) async fn create_namespace(&self) {
        let (number, store) = self.a_store();
        let namespace: Namespace = self.pick(&["a", "a/b", "c"]).unwrap().parse().unwrap();
        self.log(format_args!("{number}: create {namespace:?}"));
        if let Some(Err(error)) = self.perhaps(store.create_namespace(&namespace)).await {
            self.expect_kind(error.kind());
        }
    }

    pub(crate) async fn change_clock(&self) {
        let by = Duration::from_secs(self.below(200_000));
        let forward = self.one_in(2);
        self.log(format_args!("clock: {by:?}, forward: {forward}"));
        if forward {
            self.sim.set_clock_forward(by);
        } else {
            self.sim.set_clock_back(by / 3);
        }
        self.pause().await;
    }

    /// The host sleeps: clocks go on, and timers do not.
    pub(crate) fn suspend(&self) {
        // A server does not sleep: what it executes late is not to come even later.
        let most = if self.may_be_late() { 60 } else { 20_000 };
        let time = Duration::from_secs(self.below(most));
        self.log(format_args!("suspend for {time:?}"));
        self.sim.suspend(time);
    }

    /// Reads again what the place has.
    pub(crate) async fn refresh(&self) {
        let (number, store) = self.a_store();
        self.log(format_args!("{number}: refresh"));
        match self.perhaps(store.refresh()).await {
            Some(Err(error)) => {
                self.log(format_args!("{number}: refresh: {error}"));
                self.expect_kind(error.kind());
            }
            Some(Ok(_)) => self.count("refresh"),
            None => {}
        }
    }

    /// A second instance takes the store over while the first still works.
    pub(crate) async fn hand_over(&self) {
        if self.host.has_local_state() || !self.host.place.hand_over() {
            return;
        }
        self.log(format_args!("hand over"));
        self.count("hand over");
        self.set_handed_over();
        self.host.crashes().revoke();
        if let Some(store) = self.host.reopen().await {
            self.put_first(store);
        }
    }
}

//! Operations that change no snapshot.

use std::time::{Duration, SystemTime};

use crate::error::ErrorKind;
use crate::format::name::Namespace;
use crate::rt::Runtime as _;
use crate::simulation::life::MARGIN;
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
        // A client does not believe a server whose clock is off by days.
        let most = if self.host.has_own_faults() { 20_000 } else { 200_000 };
        let by = Duration::from_secs(self.below(most));
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
    pub(crate) async fn suspend(&self) {
        // A place with late changes of its own does not know that the host sleeps.
        let is_short = self.one_in(2) || self.host.has_own_faults();
        let time = Duration::from_secs(self.below(if is_short { 60 } else { 20_000 }));
        self.log(format_args!("suspend for {time:?}"));
        // A server does not sleep.
        self.host.late.hasten(&self.sim, time).await;
        self.sim.suspend(time);
        self.host.late.woke();
        self.count("suspend");
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

    /// Makes this process the one that may change the first store.
    pub(crate) async fn take_over(&self) {
        let (store, group) = (self.store(0), Self::own_group());
        // Renewals of the lease that were given up, and are executed late, make the next one fail.
        let mut failures = 0..3;
        let end = self.sim.monotonic() + self.host.place.max_late() + 3 * MARGIN;
        while self.sim.monotonic() < end {
            let time = self.model().new_time();
            let taken =
                async { store.backup(&group).time(SystemTime::from(time)).begin().await?.abort().await };
            match taken.await {
                // Another process had the lease last, and any name may still be one that it deletes.
                Err(error) if error.kind() == ErrorKind::Busy => {
                    self.log(format_args!("take over: {error}"));
                    self.sim.sleep(Duration::from_secs(10)).await;
                }
                Err(error)
                    if error.kind() == ErrorKind::Unavailable && self.faults && failures.next().is_some() => {
                }
                Err(error) => {
                    return self.violation(format_args!("the store cannot be taken over: {error}"));
                }
                Ok(()) => return,
            }
        }
        self.violation(format_args!("the store stays busy"));
    }

    /// A second instance takes the store over while the first still works.
    pub(crate) async fn hand_over(&self) {
        if self.host.has_local_state() || !self.host.place.hand_over() {
            return;
        }
        self.log(format_args!("hand over"));
        self.count("hand over");
        self.set_handed_over();
        if !self.host.has_own_faults() {
            self.host.crashes().revoke();
        }
        if let Some(store) = self.host.reopen().await {
            self.put_first(store);
        }
    }
}

//! Syncs between the two stores.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::format::name::{Namespace, SnapshotName};
use crate::sync::{self, SyncCandidates, SyncOptions, SyncReport};

use crate::simulation::model::{DeleteOutcome, Intent, Token, Wide};
use crate::simulation::unless::Unless;
use crate::simulation::world::World;

impl World {
    pub(crate) async fn sync(&self) {
        let removes = self.one_in(6);
        let options = self.sync_options(removes);

        let (from, to) = if self.one_in(3) { (1, 0) } else { (0, 1) };
        let root = Wide { group: None, namespace: Namespace::root(), store: to };
        self.log(format_args!("sync from {from} to {to}: {options:?}"));
        let wide = removes.then(|| self.model().begin_wide(root));
        let (source, target) = (self.store_of_any(from), self.store_of_any(to));
        let tokens: Vec<_> = {
            let mut model = self.model();
            let names = model.possible(from).into_iter();
            names.map(|name| model.begin((to, name), Intent::Create)).collect()
        };
        // Also what came meanwhile.
        let reported = Unless::done(|| self.doubt_reached(to, &self.names_in(from), &tokens));
        let work = async { sync::plan(&source, &target, options).await?.execute().await };
        let done = self.perhaps(work).await;
        let fates = self.fates_of_sync(done.as_ref());
        let other = if matches!(done, Some(Ok(_))) { DeleteOutcome::Same } else { DeleteOutcome::Unknown };
        self.log(format_args!("sync: {fates:?}"));
        self.end(
            &tokens,
            |name| if removes { DeleteOutcome::Unknown } else { *fates.get(name).unwrap_or(&other) },
        );
        if let Some((number, of_wide)) = wide {
            self.end(&of_wide, |_| DeleteOutcome::Unknown);
            self.model().end_wide(number, &[]);
        }
        if matches!(done, Some(Ok(_))) {
            reported.settle();
            self.doubt_reached(to, &fates.keys().cloned().collect(), &tokens);
        }
    }

    fn names_in(&self, store: usize) -> BTreeSet<SnapshotName> {
        let model = self.model();
        model.locations.keys().filter(|spot| spot.0 == store).map(|spot| spot.1.clone()).collect()
    }

    /// Snapshots that a sync may have reached, other than those that it was expected to.
    fn doubt_reached(&self, to: usize, reached: &BTreeSet<SnapshotName>, expected: &[Token]) {
        let is_new = |name: &&SnapshotName| !expected.iter().any(|token| token.spot.1 == **name);
        for name in reached.iter().filter(is_new) {
            self.model().doubt(&(to, name.clone()));
        }
    }

    fn sync_options(&self, removes: bool) -> SyncOptions {
        let mut options = SyncOptions::default();
        if self.one_in(2) {
            options = options.candidates(SyncCandidates::AllMissing);
        }
        if self.one_in(3) {
            options = options.resync_corrupt();
        }
        if removes { options.remove_vanished() } else { options }
    }

    /// The results of the snapshots that a sync reports.
    fn fates_of_sync(&self, done: Option<&Result<SyncReport>>) -> BTreeMap<SnapshotName, DeleteOutcome> {
        let mut fates = BTreeMap::new();
        match done {
            Some(Ok(report)) => {
                self.count("sync");
                self.log(format_args!("sync: removed {:?}", report.removed));
                for snapshot in report.snapshots() {
                    let fate = match &snapshot.outcome {
                        sync::SyncOutcome::Done(_) => DeleteOutcome::There,
                        sync::SyncOutcome::Failed(error) => {
                            self.log(format_args!("sync: {}: {error}", snapshot.target));
                            self.expect_kind(error.kind());
                            DeleteOutcome::Unknown
                        }
                        sync::SyncOutcome::Conflict(conflict) => {
                            self.log(format_args!("sync: {}: {conflict:?}", snapshot.target));
                            DeleteOutcome::Unknown
                        }
                        _ => DeleteOutcome::Same,
                    };
                    fates.insert(snapshot.target.clone(), fate);
                }
            }
            Some(Err(error)) => {
                self.log(format_args!("sync: {error}"));
                self.expect_kind(error.kind());
            }
            None => {}
        }
        fates
    }
}

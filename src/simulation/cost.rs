//! The number of requests of single operations, while nothing else is under way.

use std::collections::BTreeSet;

use futures::io::Cursor;

use crate::backend::record::Method;
use crate::simulation::blocks::bytes_of;
use crate::simulation::keys::Chunk;
use crate::simulation::world::World;
use crate::store::WriterTarget;

/// Calls of backends, by what they cost.
#[derive(Clone, Copy, Debug)]
struct Calls {
    changes: u64,
    lists: u64,
    reads: u64,
}

impl World {
    fn calls(&self) -> Calls {
        let faults = self.host.faults();
        let sum = |methods: &[Method]| methods.iter().map(|method| faults.calls_of(*method)).sum();
        Calls {
            changes: sum(&[Method::Copy, Method::Delete, Method::Put, Method::Touch]),
            lists: sum(&[Method::List]),
            reads: sum(&[Method::Get, Method::GetRange, Method::Head, Method::HeadMany]),
        }
    }

    /// The calls since an earlier moment stay within a limit.
    fn expect_calls(&self, what: &str, before: Calls, most: Calls) {
        let now = self.calls();
        let made = Calls {
            changes: now.changes - before.changes,
            lists: now.lists - before.lists,
            reads: now.reads - before.reads,
        };
        if made.changes > most.changes || made.lists > most.lists || made.reads > most.reads {
            self.violation(format_args!("{what} took {made:?}, which is more than {most:?}"));
        }
    }

    /// A backup and a restore make few requests.
    pub(crate) async fn expect_costs(&self) {
        let store = self.store(0);
        let chunks: BTreeSet<_> = (1..4).map(|block| Chunk { block, key: None }).collect();
        if self.host.is_packed {
            // Each pack of a backup that failed is looked up once, by the next one, which records it.
            self.back_up_chunks(&store, None, &BTreeSet::from([Chunk { block: 4, key: None }])).await;
        }
        // A listing has short pages, and shows the snapshot of before too.
        let names = self.model().possible(0).len() as u64 + u64::from(self.host.is_packed);
        let before = self.calls();
        let name = self.back_up_chunks(&store, None, &chunks).await;
        self.expect_calls("a backup", before, Calls { changes: 16, lists: 8 + names, reads: 14 });
        self.settle().await;
        let before = self.calls();
        let snapshot = store.snapshot(&name).await.unwrap();
        for Chunk { block, .. } in chunks {
            let mut target = WriterTarget::new(Cursor::new(Vec::new()));
            snapshot.archive(&format!("{block}.img.fidx")).await.unwrap().copy_to(&mut target).await.unwrap();
            if target.into_inner().into_inner() != bytes_of(&[block]) {
                self.violation(format_args!("{name}: {block} differs"));
            }
        }
        drop(snapshot);
        self.expect_calls("a restore", before, Calls { changes: 0, lists: 2, reads: 10 });
    }
}

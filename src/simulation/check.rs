//! Restores and listings, compared with the model.

use std::collections::BTreeMap;

use futures::io::Cursor;

use crate::error::{ErrorKind, Result};
use crate::format::name::{Namespace, SnapshotName};
use crate::simulation::blocks::bytes_of;
use crate::simulation::model::Contents;
use crate::simulation::world::World;
use crate::store::{SnapshotReader, SnapshotState, WriterTarget};

/// The part of a snapshot that differs from its model.
pub(crate) async fn wrong_with(snapshot: &SnapshotReader, contents: &Contents) -> Result<Option<String>> {
    for (name, blocks) in [("d.img.fidx", &contents.image), ("s.bin.didx", &contents.stream)] {
        if blocks.is_empty() {
            continue;
        }
        let mut target = WriterTarget::new(Cursor::new(Vec::new()));
        snapshot.archive(name).await?.copy_to(&mut target).await?;
        if target.into_inner().into_inner() != bytes_of(blocks) {
            return Ok(Some(format!("{}: {name} differs", snapshot.name())));
        }
    }
    if let Some(tree) = contents.tree
        && let Some(wrong) = tree.wrong_with(snapshot).await?
    {
        return Ok(Some(wrong));
    }
    let blob = snapshot.blob("c.conf.blob").await?;
    let is_right = blob == snapshot.name().time().epoch().to_string();
    Ok((!is_right).then(|| format!("{}: the blob differs", snapshot.name())))
}

impl World {
    pub(crate) async fn restore(&self) {
        let (number, store) = self.a_store();
        let Some(name) = self.a_snapshot(number) else { return };
        let spot = (number, name.clone());
        let (contents, mode, before, was_bad) = {
            let mut model = self.model();
            let (contents, mode) = (model.contents(name.time()), model.mode(name.time()));
            (contents, mode, model.certain(&spot), model.is_hurt(number, name.time()))
        };
        self.log(format_args!("{number}: restore {name}, certain: {before:?}"));
        let work = async {
            let snapshot = self.open(&store, &name, mode).await?;
            self.pause().await;
            wrong_with(&snapshot, &contents).await
        };
        let Some(restored) = self.perhaps(work).await else { return };
        self.forget_masked().await;
        let mut model = self.model();
        let is_certain = before.is_some() && model.certain(&spot) == before;
        let is_bad = model.is_hurt(number, name.time());
        drop(model);
        let is_harmless = |kind| match kind {
            ErrorKind::Busy => true,
            ErrorKind::Unavailable => self.faults,
            _ => false,
        };
        match restored {
            Ok(None) => self.count("restore"),
            Ok(Some(wrong)) => self.violation(format_args!("{wrong}")),
            Err(error) if is_certain && !is_bad && !was_bad && !is_harmless(error.kind()) => {
                self.violation(format_args!("{number}: {name} is there, and cannot be restored: {error}"));
            }
            Err(error) => {
                self.log(format_args!("{number}: restore {name}: {error}"));
                self.expect_kind(error.kind());
            }
        }
    }

    /// The finished snapshots of a store, and whether they are protected; and those that are not finished.
    pub(crate) async fn listed(&self, number: usize) -> (BTreeMap<SnapshotName, bool>, Vec<SnapshotName>) {
        let store = self.store(number);
        let (mut finished, mut others) = (BTreeMap::new(), Vec::new());
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            for group in store.groups(&namespace).await.unwrap() {
                for snapshot in store.snapshots(&group).await.unwrap() {
                    if snapshot.state == SnapshotState::Finished {
                        finished.insert(snapshot.name, snapshot.protected);
                    } else {
                        others.push(snapshot.name);
                    }
                }
            }
        }
        (finished, others)
    }
}

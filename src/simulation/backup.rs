//! Backups.

use std::time::SystemTime;

use bytes::Bytes;
use futures::io::Cursor;

use crate::chunker::FixedChunker;
use crate::error::{ErrorKind, Result};
use crate::format::name::{BackupTime, GroupName};
use crate::simulation::blocks::{BLOCK, bytes_of};
use crate::simulation::check::wrong_with;
use crate::simulation::keys::Mode;
use crate::simulation::model::{Contents, DeleteOutcome, Intent, Tri};
use crate::simulation::world::World;
use crate::store::{Datastore, DirtyMap, SnapshotReader, SnapshotWriter};

const IMAGE: &str = "d.img";
const STREAM: &str = "s.bin";

/// The parts in which two images of the same length differ.
fn changed(old: &[u8], new: &[u8]) -> DirtyMap {
    let differing = (0..new.len()).filter(|at| old[*at] != new[*at]);
    differing.map(|at| (at * BLOCK) as u64..((at + 1) * BLOCK) as u64).collect()
}

impl World {
    pub(crate) async fn back_up(&self) {
        let ((number, store), group) = (self.a_store(), self.a_group());
        let time = self.a_time(number, &group);
        let (contents, mode) = {
            let model = self.model();
            (model.contents(time), model.mode(time))
        };
        let name = group.snapshot(time);
        self.log(format_args!(
            "{number}: back up {name}: {:?} {:?} {:?} {mode:?}",
            contents.image, contents.stream, contents.tree
        ));
        let token = self.model().begin((number, name.clone()), Intent::Create);
        let backed_up = self.perhaps(self.back_up_as(&store, &group, time, &contents)).await;
        let fate = match backed_up {
            Some(Ok(true)) => DeleteOutcome::There,
            Some(Ok(false)) => DeleteOutcome::Same,
            Some(Err(error)) => {
                self.log(format_args!("{number}: back up {name}: {error}"));
                match error.kind() {
                    // Nobody but this backup can have made it; that it is busy is said before anything is written.
                    ErrorKind::Busy if !self.may_be_busy_late() => DeleteOutcome::Same,
                    kind => self.after_failure(kind),
                }
            }
            None => DeleteOutcome::Unknown,
        };
        self.log(format_args!("{number}: back up {name}: {fate:?}"));
        self.count(format!("backup {fate:?}"));
        if fate == DeleteOutcome::There {
            self.count(format!("backup {mode:?}"));
        }
        self.end(&[token], |_| fate);
    }

    /// A new time, or that of a snapshot that is gone. For half of the times, also that of a snapshot that may exist or not: the process that
    /// wrote it may have died.
    fn a_time(&self, store: usize, group: &GroupName) -> BackupTime {
        let mut model = self.model();
        let mut of_group: Vec<_> =
            model.locations.iter().filter(|(spot, _)| spot.0 == store && spot.1.group() == group).collect();
        of_group.sort_by_key(|(spot, _)| spot.1.time());
        if let Some((spot, location)) = of_group.last() {
            let (state, time) = (location.state, spot.1.time());
            drop(of_group);
            let is_tried_again = state == Tri::Maybe && time.epoch() / 700 % 2 == 0;
            if is_tried_again {
                self.count("backup tried again");
            }
            if is_tried_again || state == Tri::No && self.one_in(3) {
                return time;
            }
        }
        model.new_time()
    }

    async fn back_up_as(
        &self,
        store: &Datastore,
        group: &GroupName,
        time: BackupTime,
        contents: &Contents,
    ) -> Result<bool> {
        let base = self.base(store, group).await;
        let mode = self.model().mode(time);
        let backup = mode.of(store.backup(group).time(SystemTime::from(time)));
        let backup = match backup.begin().await {
            // No namespace, or another one is running.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Busy | ErrorKind::InvalidInput | ErrorKind::NotFound
                ) =>
            {
                self.log(format_args!("  {error}"));
                return Ok(false);
            }
            backup => backup?,
        };
        let (image, stream, tree, blob) = futures::join!(
            self.image(&backup, mode, base.as_ref(), &contents.image),
            self.stream(&backup, mode, base.as_ref(), &contents.stream),
            self.tree(&backup, mode, base.as_ref(), contents.tree),
            backup.blob("c.conf", time.epoch().to_string()),
        );
        if self.one_in(12) {
            self.log(format_args!("  abort {}", group.snapshot(time)));
            backup.abort().await?;
            return Ok(false);
        }
        image?;
        stream?;
        tree?;
        blob?;
        if self.one_in(6) {
            backup.client_log("log").await?;
        }
        self.pause().await;
        let snapshot = backup.finish().await?.snapshot;
        if let Ok(Some(wrong)) = wrong_with(&snapshot, contents).await {
            self.violation(format_args!("{wrong}"));
        }
        Ok(true)
    }

    /// The newest snapshot of the group, sometimes.
    async fn base(&self, store: &Datastore, group: &GroupName) -> Option<SnapshotReader> {
        if self.one_in(3) {
            return None;
        }
        let newest = store.latest(group).await.ok()??;
        store.snapshot(&newest).await.ok()
    }

    async fn image(
        &self,
        backup: &SnapshotWriter,
        mode: Mode,
        base: Option<&SnapshotReader>,
        blocks: &[u8],
    ) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let data = bytes_of(blocks);
        let size = data.len() as u64;
        let base = base.filter(|base| has_archive(base, IMAGE));
        if self.one_in(4) {
            let mut image = backup.image_writer(IMAGE, size).chunk_bytes(BLOCK as u64);
            if let Some(base) = base.filter(|base| self.mode_of(base) == mode) {
                image = image.base(base);
            }
            let mut image = image.begin().await?;
            for (at, part) in data.chunks(3000).enumerate().rev() {
                image.write_at((at * 3000) as u64, Bytes::copy_from_slice(part)).await?;
            }
            return image.finish().await.map(drop);
        }
        let image = backup.image(IMAGE, Cursor::new(&data), size).chunk_bytes(BLOCK as u64);
        let Some(base) = base else { return image.await.map(drop) };
        let of_base = self.mode_of(base);
        let old = self.model().contents(base.name().time()).image;
        let is_alike = bytes_of(&old).len() == data.len() && !self.one_in(4);
        let image = if of_base == mode { image.base(base) } else { image.base_if_usable(Some(base)) };
        let image = if is_alike { image.dirty(changed(&old, blocks)) } else { image };
        self.expect_base(mode, of_base, image.await?.base);
        Ok(())
    }

    async fn stream(
        &self,
        backup: &SnapshotWriter,
        mode: Mode,
        base: Option<&SnapshotReader>,
        blocks: &[u8],
    ) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let data = bytes_of(blocks);
        let stream = backup.stream(STREAM, Cursor::new(&data));
        let stream = stream.chunker(Box::new(FixedChunker::new(BLOCK).unwrap()));
        match base.filter(|base| has_archive(base, STREAM)) {
            Some(base) if self.mode_of(base) == mode => stream.base(base).await.map(drop),
            Some(base) => {
                let used = stream.base_if_usable(Some(base)).await?.base;
                self.expect_base(mode, self.mode_of(base), used);
                Ok(())
            }
            None => stream.await.map(drop),
        }
    }

    fn mode_of(&self, snapshot: &SnapshotReader) -> Mode {
        self.model().mode(snapshot.name().time())
    }
}

fn has_archive(snapshot: &SnapshotReader, name: &str) -> bool {
    snapshot.manifest().files().iter().any(|file| file.name.to_string().starts_with(name))
}

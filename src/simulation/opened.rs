//! Snapshots and their keys.

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::SnapshotName;
use crate::simulation::check::wrong_with;
use crate::simulation::keys::{KEYS, Mode, key};
use crate::simulation::world::World;
use crate::store::{BaseUse, Datastore, SnapshotReader, WriterTarget};
use crate::sync::{self, SyncOptions, SyncOutcome};

impl World {
    /// Opens a snapshot with its key. No other opens it, and without one nothing encrypted is read.
    pub(crate) async fn open(
        &self,
        store: &Datastore,
        name: &SnapshotName,
        mode: Mode,
    ) -> Result<SnapshotReader> {
        let mut snapshot = store.snapshot(name).await?;
        let right = mode.key();
        for number in 0..=KEYS {
            let other = key(number);
            if right.as_ref() == Some(&other) {
                continue;
            }
            let refused = snapshot.unlock(&other).err().map(|error| error.kind());
            if refused != Some(ErrorKind::WrongKey) {
                self.violation(format_args!("{name}, {mode:?}: key {number} is refused as {refused:?}"));
            }
        }
        if mode.chunk_key().is_some() && self.one_in(3) {
            match read_without_key(&snapshot).await {
                Err(error) if error.kind() == ErrorKind::KeyRequired => self.count("read without key"),
                Err(error) => self.log(format_args!("  {name} without a key: {error}")),
                Ok(()) => self.violation(format_args!("{name}, {mode:?} was read without a key")),
            }
        }
        if let Some(key) = right {
            snapshot.unlock(&key)?;
        }
        Ok(snapshot)
    }

    /// A base counts only with the same key in the same mode.
    pub(crate) fn expect_base(&self, mode: Mode, of_base: Mode, used: BaseUse) {
        self.count(format!("base {used:?}"));
        if used == BaseUse::Used && mode != of_base {
            self.violation(format_args!("{mode:?} was built on {of_base:?}"));
        }
    }

    /// Gives everything a third key on its way into a new store.
    pub(crate) async fn reencrypt(&self, new: &Datastore) {
        let source = self.store(0);
        let (finished, _) = self.listed(0).await;
        let mut options = SyncOptions::default().reencrypt(&key(KEYS));
        for number in 0..KEYS {
            options = options.source_key(&key(number));
        }
        let report = sync::plan(&source, new, options).await.unwrap().execute().await.unwrap();
        self.forget_masked().await;
        let is_hurt = |name: &SnapshotName| self.model().is_hurt(0, name.time());
        for snapshot in report.snapshots().filter(|snapshot| !is_hurt(&snapshot.target)) {
            if !matches!(snapshot.outcome, SyncOutcome::Done(_)) {
                self.violation(format_args!("{} got no other key: {:?}", snapshot.target, snapshot.outcome));
            }
        }
        for name in finished.keys().filter(|name| !is_hurt(name)) {
            let contents = self.model().contents(name.time());
            let restored = match self.open(new, name, Mode::Encrypt(KEYS)).await {
                Ok(snapshot) => wrong_with(&snapshot, &contents).await,
                Err(error) => Err(error),
            };
            match restored {
                Ok(None) => self.count("reencrypted"),
                wrong => self.violation(format_args!("{name} with another key: {wrong:?}")),
            }
        }
    }
}

async fn read_without_key(snapshot: &SnapshotReader) -> Result<(), Error> {
    let archive = snapshot.manifest().files().iter().find(|file| file.name.as_str() != "c.conf.blob");
    match archive {
        Some(file) => {
            let mut target = WriterTarget::new(futures::io::Cursor::new(Vec::new()));
            snapshot.archive(file.name.as_str()).await?.copy_to(&mut target).await.map(drop)
        }
        None => snapshot.blob("c.conf.blob").await.map(drop),
    }
}

//! Damage of the index of a packed store, and what repairs it.

use crate::backend::{ListEntry, ListQuery, PutMode, Removal};
use crate::error::Result;
use crate::format::layout::Prefix;
use crate::rt::Runtime as _;
use crate::simulation::life::MARGIN;
use crate::simulation::world::World;

impl World {
    /// Deletes, cuts or changes a segment of the first store, or builds the index anew.
    pub(crate) async fn damage_index(&self) {
        if self.one_in(3) {
            if let Some(Err(error)) = self.perhaps(self.rebuild_index()).await {
                self.log(format_args!("rebuild of the index: {error}"));
                self.expect_kind(error.kind());
            }
            return;
        }
        let raw = self.host.raw();
        let Ok(page) = raw.list(&ListQuery::all(Prefix::Segments), None).await else { return };
        let Some(ListEntry::Object(info)) = self.pick(&page.entries) else { return };
        let Ok(object) = raw.get(&info.key, u64::MAX).await else { return };
        let (how, mut bytes) = (self.below(3), object.bytes.to_vec());
        self.log(format_args!("damage of {:?}: {how}", info.key));
        self.count("damage of the index");
        self.model().is_index_hurt = true;
        let at = self.below(bytes.len() as u64) as usize;
        match how {
            0 => return drop(raw.delete(&[Removal::any(info.key)]).await.unwrap()),
            1 => bytes.truncate(at),
            _ => bytes[at] ^= 1,
        }
        raw.put(&info.key, bytes.into(), PutMode::Replace).await.unwrap();
    }

    /// Opens the first store in a new process, which nothing of the old one reaches any more.
    pub(crate) async fn begin_process(&self) {
        let old = self.store(0);
        self.take_first();
        old.close().await.unwrap();
        self.put_first(self.host.reopen().await.unwrap());
        self.settle().await;
        if self.host.has_own_faults() {
            self.take_over().await;
        }
        self.sim.sleep(self.host.place.max_late() + 2 * MARGIN).await;
    }

    /// Rebuilds the index of the first store in a new process, which reads what the old one knew.
    pub(crate) async fn heal_index(&self) {
        self.begin_process().await;
        self.rebuild_index().await.unwrap();
        // Until listings show the new segment, this process may not find its chunks.
        self.settle().await;
        self.sim.sleep(MARGIN).await;
        self.model().is_index_hurt = false;
    }

    /// Builds the index of the first store anew from the packs.
    pub(crate) async fn rebuild_index(&self) -> Result<()> {
        let mut plan = self.store_of_any(0).plan_index_rebuild().await?;
        self.log(format_args!("rebuild of the index: {:?}", plan.summary()));
        let report = plan.execute().await?;
        self.log(format_args!("rebuilt: {report:?}"));
        self.count("rebuild of the index");
        Ok(())
    }
}

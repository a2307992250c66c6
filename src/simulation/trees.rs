//! Backups of trees.

use crate::error::Result;
use crate::simulation::keys::Mode;
use crate::simulation::tree::{NAME, Tree};
use crate::simulation::world::World;
use crate::store::{SnapshotReader, SnapshotWriter};

impl World {
    /// Backs a tree up, with detection of changes since the base.
    pub(crate) async fn tree(
        &self,
        backup: &SnapshotWriter,
        mode: Mode,
        base: Option<&SnapshotReader>,
        tree: Option<Tree>,
    ) -> Result<()> {
        let Some(tree) = tree else { return Ok(()) };
        let source = tree.source();
        let builder = backup.tree(NAME, &source).base_if_usable(base).chunk_bytes(64 << 10);
        let builder = if tree.is_unified { builder.unified() } else { builder };
        let summary = builder.await?;
        if let Some(base) = base {
            let of_base = self.model().mode(base.name().time());
            self.expect_base(mode, of_base, summary.base);
            self.count(format!("base of a tree {:?}", summary.base));
        }
        let (counts, opened) = (summary.counts, source.opened());
        if counts.files_reused > 0 && opened.len() as u64 + counts.files_reused > counts.files {
            self.violation(format_args!("files were opened and reused: {opened:?} {counts:?}"));
        }
        self.count(match counts.files_reused {
            0 => "tree read",
            reused if reused == counts.files => "tree reused",
            _ => "tree reused in part",
        });
        Ok(())
    }
}

//! Copies of large segments in local state.
//!
//! A copy saves requests and proves nothing: a view has the segments that the store lists.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::segment::name::SegmentName;
use crate::packs::Packs;
use crate::packs::refresh::ListedSegment;

/// Bytes that are copied at once.
const PIECE_BYTES: u64 = 8 << 20;

impl Packs {
    /// Bytes of the local copy of a segment; `None` without a copy.
    pub(super) async fn local_range(&self, name: &SegmentName, range: Range<u64>) -> Option<Bytes> {
        let (files, name) = (Arc::clone(self.local.as_ref()?), name.to_string());
        let read = move || Ok(files.read(&name, range).ok());
        let read = self.runtime().run_blocking("read a copy of a segment", read).await;
        read.ok().flatten().map(Bytes::from)
    }

    /// Returns `true` if there is a local copy of this length.
    pub(super) async fn has_local(&self, name: &SegmentName, bytes: u64) -> bool {
        let Some(files) = self.local.clone() else { return false };
        let name = name.to_string();
        let found = self.runtime().run_blocking("look for a copy", move || Ok(files.len(&name))).await;
        found.is_ok_and(|found| found == Some(bytes))
    }

    /// Removes the local copy of a segment, which is damaged.
    pub(super) async fn forget_local(&self, name: &SegmentName) {
        let Some(files) = self.local.clone() else { return };
        let name = name.to_string();
        let remove = move || {
            files.remove(&name);
            Ok(())
        };
        // It cannot fail.
        let _ = self.runtime().run_blocking("remove a copy", remove).await;
    }

    /// Copies the segments that are read by range, and removes copies of others. A failure costs requests later.
    pub(super) async fn keep_local(&self, listed: &BTreeMap<SegmentName, ListedSegment>) {
        let Some(files) = &self.local else { return };
        let by_range = self.state().view.read_by_range();
        for name in &by_range {
            if let Some(ListedSegment { bytes, .. }) = listed.get(name)
                && !self.has_local(name, *bytes).await
                && self.copy_segment(name, *bytes).await.is_err()
            {
                break;
            }
        }
        let (files, names) = (Arc::clone(files), by_range.iter().map(SegmentName::to_string));
        let names: HashSet<_> = names.collect();
        let sweep = move || Ok(files.retain(&names));
        // Copies that stay take room only.
        let _ = self.runtime().run_blocking("remove copies of segments", sweep).await;
    }

    async fn copy_segment(&self, name: &SegmentName, bytes: u64) -> Result<()> {
        let Some(files) = self.local.clone() else { return Ok(()) };
        let failed = |error: io::Error| Error::new(ErrorKind::Unavailable, "copy a segment").because(error);
        let text = name.to_string();
        let begin = move || files.begin(&text).map_err(failed);
        let mut copy = self.runtime().run_blocking("begin a copy", begin).await?;
        let mut at = 0;
        while at < bytes {
            let end = (at + PIECE_BYTES).min(bytes);
            let piece = self.stored_range(name, at..end).await?;
            let write = move || copy.write(&piece).map(|()| copy).map_err(failed);
            copy = self.runtime().run_blocking("write a copy", write).await?;
            at = end;
        }
        self.runtime().run_blocking("end a copy", move || copy.finish().map_err(failed)).await
    }
}

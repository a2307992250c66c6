//! Reading of records by range, and look-ups that need them.

use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::layout::Key;
use crate::packs::known::{Known, SlotRead, SlotRun};
use crate::packs::{Packs, State};

/// Number of runs of slots that are read at the same time.
const READS_IN_FLIGHT: usize = 16;
/// Number of records that are read at once where all of them are: about a megabyte.
const RUN_RECORDS: usize = 24_000;

impl Packs {
    /// The state, once the view has every record of a chunk.
    ///
    /// # Errors
    /// Any failure to read them, other than damage: a view is without damaged segments, and knows that.
    pub(super) async fn state_of(self: &Arc<Self>, digest: &Digest) -> Result<MutexGuard<'_, State>> {
        loop {
            let reads = {
                let mut state = self.state();
                let reads = state.view.unread(digest);
                if reads.is_empty() {
                    return Ok(state);
                }
                reads
            };
            let Some(runs) = self.read_runs(reads).await? else { continue };
            let mut state = self.state();
            state.view.keep_slots(runs);
            // A segment may be new since.
            if state.view.unread(digest).is_empty() {
                return Ok(state);
            }
        }
    }

    /// Reads records. `None` if a segment is not there any more, or damaged: the view changed.
    ///
    /// # Errors
    /// Any failure other than damage.
    pub(super) async fn read_runs(self: &Arc<Self>, reads: Vec<SlotRead>) -> Result<Option<Vec<SlotRun>>> {
        let reads = stream::iter(reads).map(|read| async move {
            let run = self.read_run(&read).await;
            Ok::<_, Error>((read, run))
        });
        let (mut runs, mut is_complete, mut is_gone) = (Vec::new(), true, false);
        for (read, run) in reads.buffered(READS_IN_FLIGHT).try_collect::<Vec<_>>().await? {
            match run {
                // A merged segment replaced it.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.state().view.remove_segment(&read.name);
                    is_gone = true;
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.state().view.set_damaged(&read.name, error);
                    is_complete = false;
                }
                run => runs.push(run?),
            }
        }
        if is_gone {
            self.refresh().await?;
        }
        Ok((is_complete && !is_gone).then_some(runs))
    }

    /// Reads all records, after which the view knows each damaged segment.
    ///
    /// # Errors
    /// Any failure other than damage.
    pub(super) async fn read_all_records(&self) -> Result<()> {
        let segments: Vec<_> = self.state().view.segments().values().cloned().collect();
        for known in segments {
            let mut slot = Some(0);
            while let Some(first) = slot {
                slot = match self.records_from(&known, first).await {
                    Ok((_, next)) => next,
                    Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => None,
                    Err(error) => return Err(error),
                };
            }
        }
        Ok(())
    }

    /// The records of a segment from a slot on, and the slot behind them; all of them if they are in memory.
    ///
    /// # Errors
    /// `Corrupt` if the segment is damaged, `NotFound` if it is gone; any other failure to read it.
    pub(super) async fn records_from(
        &self,
        known: &Known,
        slot: usize,
    ) -> Result<(SlotRecords, Option<usize>)> {
        if let Some(records) = known.records() {
            return Ok((records.clone(), None));
        }
        let read = known.run_from_slot(slot, RUN_RECORDS);
        let run = self.read_run(&read).await;
        if let Err(error) = &run
            && error.kind() == ErrorKind::Corrupt
        {
            self.state().view.set_damaged(&read.name, error.clone());
        }
        Ok((run?.records, read.next_slot()))
    }

    async fn read_run(&self, read: &SlotRead) -> Result<SlotRun> {
        let damaged =
            |error| Error::new(ErrorKind::Corrupt, "read").on(Key::Segment(read.name)).because(error);
        // An empty range is no request.
        if read.range().is_empty() {
            return read.parse(Bytes::new()).map_err(damaged);
        }
        if let Some(bytes) = self.local_range(&read.name, read.range()).await {
            if let Ok(run) = read.parse(bytes) {
                return Ok(run);
            }
            // The copy is damaged, which says nothing about the segment.
            self.forget_local(&read.name).await;
        }
        let bytes = self.stored_range(&read.name, read.range()).await?;
        read.parse(bytes).map_err(damaged)
    }

    /// Bytes of a stored segment.
    pub(super) async fn stored_range(&self, name: &SegmentName, range: Range<u64>) -> Result<Bytes> {
        let key = Key::Segment(*name);
        match self.inner.get_range(&key, range).await {
            // It is shorter than the listing said.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                Err(Error::new(ErrorKind::Corrupt, "read").on(&key).because(error))
            }
            read => Ok(read?.bytes),
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;

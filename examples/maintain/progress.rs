//! A progress bar on standard error, moved by what the library tells.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use larder::Observer;
use larder::gc::GcEvent;
use larder::prune::PruneEvent;
use larder::sync::SyncEvent;
use larder::verify::VerifyEvent;

/// A progress bar, if standard error is a terminal.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    sent_bytes: AtomicU64,
}

impl Bar {
    pub(crate) fn new() -> Arc<Self> {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::no_length);
        Arc::new(Self { bar, sent_bytes: AtomicU64::new(0) })
    }

    /// Begins to count from 0, up to `total` if that is known.
    pub(crate) fn begin(&self, what: &str, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        let template = match total {
            Some(_) => "{msg:40} {bar:30} {pos}/{len} {elapsed}",
            None => "{msg:40} {pos} {elapsed}",
        };
        bar.reset();
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(what.to_owned());
        match total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
    }

    /// Clears the line, so that results can be printed.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer<GcEvent> for Bar {
    fn on_event(&self, event: &GcEvent) {
        let Some(bar) = &self.bar else { return };
        match event {
            GcEvent::IndexMarked { .. } => bar.inc(1),
            GcEvent::ShardListed { done, of } => {
                if *done == 1 {
                    self.begin("listing chunks", Some(*of));
                }
                bar.set_position(*done);
            }
            GcEvent::Removed { chunks, .. } => bar.inc(*chunks),
            _ => {}
        }
    }
}

impl Observer<VerifyEvent> for Bar {
    fn on_event(&self, event: &VerifyEvent) {
        let Some(bar) = &self.bar else { return };
        match event {
            VerifyEvent::ChunkChecked { .. } => bar.inc(1),
            VerifyEvent::SnapshotStarted { snapshot } => bar.set_message(snapshot.to_string()),
            _ => {}
        }
    }
}

impl Observer<PruneEvent> for Bar {
    fn on_event(&self, event: &PruneEvent) {
        if let (Some(bar), PruneEvent::SnapshotFinished { done, snapshot, total, .. }) = (&self.bar, event) {
            bar.set_length(*total);
            bar.set_position(*done);
            bar.set_message(snapshot.to_string());
        }
    }
}

impl Observer<SyncEvent> for Bar {
    fn on_event(&self, event: &SyncEvent) {
        let Some(bar) = &self.bar else { return };
        match event {
            SyncEvent::SnapshotStarted { snapshot } => bar.set_message(snapshot.to_string()),
            SyncEvent::ChunkSent { stored, snapshot, .. } => {
                let sent = self.sent_bytes.fetch_add(*stored, Ordering::Relaxed) + stored;
                bar.set_message(format!("{snapshot} ({} in all)", HumanBytes(sent)));
            }
            SyncEvent::SnapshotFinished { .. } => bar.inc(1),
            _ => {}
        }
    }
}

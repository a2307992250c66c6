//! Recording of conclusions: in the list of suspects, in manifests and in the report.

use crate::error::ErrorKind;
use crate::format::manifest::VerifyState;
use crate::verify::conclusion::Conclusion;
use crate::verify::context::Run;
use crate::verify::control::Stop;
use crate::verify::options::{Recording, Repair};
use crate::verify::report::VerifyEvent;

/// Number of snapshots with missing parts that wait for evidence, above which a good chunk is looked up.
const MAX_HELD: usize = 32;

/// Releases the locks of waiting conclusions when an execution ends or is dropped. Their snapshots are checked again.
pub(super) struct ReleaseHeld<'a>(pub(super) &'a Run);

impl Drop for ReleaseHeld<'_> {
    fn drop(&mut self) {
        self.0.held().clear();
    }
}

impl Run {
    /// Records a conclusion: at once if no part is missing, otherwise once a good chunk shows that the store can be trusted (H95). A snapshot of
    /// blobs alone shows nothing about the chunks of others.
    pub(super) async fn submit(&self, conclusion: Conclusion) {
        let held = if conclusion.lacks_something() {
            let mut held = self.held();
            held.push(conclusion);
            held.len()
        } else {
            self.record(conclusion).await;
            self.held().len()
        };
        mutated!("verify-records-missing-chunks-without-evidence" => return self.record_held().await);
        if held > 0
            && (!self.control.last_was_missing() || (held > MAX_HELD && self.is_good_chunk_there().await))
        {
            self.record_held().await;
        }
    }

    /// Returns `true` if the store still has the chunk that was found good last. If it lacks that one too, nothing is believed, and the execution
    /// ends. Without such a chunk, the indexes that were read are the evidence.
    async fn is_good_chunk_there(&self) -> bool {
        let Some(digest) = self.control.last_good() else { return true };
        self.control.count_request();
        match self.store.inner().chunks().find(digest).await {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.control.stop(Stop::Missing);
                false
            }
            // The next snapshot asks again.
            Err(_) => {
                self.control.count_unreachable();
                false
            }
        }
    }

    /// Records all waiting conclusions, or discards them if the store cannot be trusted.
    pub(super) async fn record_held(&self) {
        loop {
            if self.control.stopped() == Some(Stop::Missing) {
                self.held().clear();
                return;
            }
            let Some(conclusion) = self.held().pop() else { return };
            self.record(conclusion).await;
        }
    }

    /// Records a conclusion. Only afterwards is the snapshot done: a dropped future leaves it to the next execution.
    async fn record(&self, conclusion: Conclusion) {
        let state = conclusion.state();
        let Conclusion { mut found, is_log_open, lock: _lock, missing, open, visit, .. } = conclusion;
        let name = found.damage.name.clone();
        let digests: Vec<_> = missing.iter().map(|id| id.digest).collect();
        if !digests.is_empty()
            && self.options.repair == Repair::Quarantine
            && let Err(error) = self.store.inner().repairs().suspect_missing(&digests).await
        {
            found.unrepaired.extend(digests.into_iter().map(|digest| (digest, error.clone())));
        }
        let mut is_done = !is_log_open;
        if let Some(state) = state
            && self.options.recording == Recording::On
        {
            let verified = VerifyState::new(self.upid.clone(), state);
            let result = self.store.inner().manifests().record_verification(&name, &verified).await;
            is_done &= result.is_ok();
            self.findings().recorded(&name, result.map_err(|error| error.kind()));
        }
        self.ledger.keep(&missing);
        match (open, is_done) {
            (true, _) => self.findings().keep(visit, found),
            (false, false) => {
                self.findings().keep(visit, found);
                self.passes().conclude_for_now(visit);
            }
            (false, true) => {
                self.findings().conclude(visit, found);
                self.passes().conclude(visit);
            }
        }
        self.notify(&VerifyEvent::SnapshotFinished { snapshot: name, state });
    }
}

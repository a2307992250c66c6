//! Rebuilding the index of a packed store from its packs.

use std::fmt;

use crate::backend::lock_wait::lock_store;
use crate::backend::{LockGuard, LockMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::packs::PackedBackend;
use crate::packs::rebuild::IndexDamage;
use crate::store::Datastore;
use crate::wording::{Causes, Count, Parts, Size, fields_as_json};

/// A planned rebuild of the index of a packed store, to inspect and then to [execute](IndexRebuildPlan::execute).
///
/// No other process can write to the store while it exists.
#[derive(Debug)]
#[must_use = "nothing is stored before `execute`"]
pub struct IndexRebuildPlan {
    damage: IndexDamage,
    guard: Box<dyn LockGuard>,
    store: Datastore,
    summary: IndexRebuildSummary,
}

/// Damage of the index of a packed store.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct IndexRebuildSummary {
    /// Damaged segments, which would be removed in the end.
    pub damaged: Vec<String>,
    /// Packs that the index names and that do not exist. Their chunks would no longer count.
    pub missing: u64,
    /// Number of all packs.
    pub packs: u64,
    /// Packs that the index does not name. Their chunks would be added.
    pub unnamed: u64,
    /// Bytes of these packs.
    pub unnamed_bytes: u64,
}

/// Result of a rebuild.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct IndexRebuildReport {
    /// Chunks that were added, some of them perhaps more than once.
    pub chunks: u64,
    /// Packs that were added.
    pub packs: u64,
    /// Packs among them whose directory is damaged, and that were read as a whole.
    pub scanned: u64,
    /// Packs that cannot be read. They stay.
    pub unreadable: Vec<UnreadablePack>,
}

/// A pack that cannot be read.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct UnreadablePack {
    /// The reason.
    pub error: Error,
    /// The key of the pack.
    pub key: Key,
}

impl IndexRebuildPlan {
    /// Compares packs and index.
    pub(super) async fn make(store: &Datastore) -> Result<Self> {
        store.inner().check_writable("rebuild the index").await?;
        let packs = packs_of(store)?;
        let backend = store.inner().uncached_backend();
        let guard = lock_store(backend.as_ref(), LockMode::Exclusive).await?;
        store.inner().check_identity("rebuild the index").await?;
        let damage = packs.find_index_damage().await?;
        let summary = IndexRebuildSummary {
            damaged: damage.damaged.clone(),
            missing: damage.missing.len() as u64,
            packs: damage.packs,
            unnamed: damage.unnamed.len() as u64,
            unnamed_bytes: damage.unnamed.values().sum(),
        };
        Ok(Self { damage, guard, store: store.clone(), summary })
    }

    /// The findings.
    pub fn summary(&self) -> &IndexRebuildSummary {
        &self.summary
    }

    /// Adds the packs that no segment names to the index, and removes damaged segments.
    ///
    /// It can be executed again after a failure, and continues.
    ///
    /// # Errors
    /// `Busy` if another process owns the store now; any failure to read a pack, other than damage, and to store the index.
    ///
    /// # Cancel safety
    /// A dropped future may have added a part.
    pub async fn execute(&mut self) -> Result<IndexRebuildReport> {
        let store = self.store.clone();
        let packs = packs_of(&store)?;
        let mut report = IndexRebuildReport::default();
        while let Some((&name, &bytes)) = self.damage.unnamed.first_key_value() {
            let contents = packs.read_contents(name, bytes).await;
            // Not before: a dropped future leaves it for the next execution.
            if contents.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Corrupt) {
                self.damage.unnamed.remove(&name);
            }
            match contents {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    report.unreadable.push(UnreadablePack { error, key: Key::Pack(name) });
                }
                Err(error) => return Err(error),
                Ok(contents) => {
                    report.chunks += contents.chunks();
                    report.packs += 1;
                    report.scanned += u64::from(contents.is_scanned);
                    packs.add_to_index(contents);
                }
            }
            if packs.is_segment_due() {
                self.guard.check().await?;
                packs.store_segment().await?;
            }
        }
        self.guard.check().await?;
        packs.drop_packs(&self.damage.missing).await?;
        packs.remove_segments(&self.damage.damaged).await?;
        Ok(report)
    }
}

fn packs_of(store: &Datastore) -> Result<&PackedBackend> {
    let error = || Error::new(ErrorKind::Unsupported, "rebuild the index").because("the store has no packs");
    store.inner().packs().ok_or_else(error)
}

/// The line of the summary.
impl fmt::Display for IndexRebuildPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary.fmt(f)
    }
}

fields_as_json!(IndexRebuildPlan, plan => { summary: plan.summary() });

/// One line: what is missing in the index, and what is too much.
impl fmt::Display for IndexRebuildSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", Count(self.unnamed, "pack"), self.packs)?;
        write!(f, " not in the index, {}", Size(self.unnamed_bytes))?;
        if self.missing > 0 {
            write!(f, "; {} in the index and missing", Count(self.missing, "pack"))?;
        }
        if !self.damaged.is_empty() {
            write!(f, "; {}", Count(self.damaged.len() as u64, "damaged segment"))?;
        }
        Ok(())
    }
}

/// One line: what was added.
impl fmt::Display for IndexRebuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts::default();
        parts.add(format_args!("added {} in {}", Count(self.chunks, "chunk"), Count(self.packs, "pack")));
        if self.scanned > 0 {
            parts.add(format_args!("{} without a good directory", Count(self.scanned, "pack")));
        }
        for unreadable in &self.unreadable {
            parts.add(format_args!("unreadable: {unreadable}"));
        }
        f.write_str(&parts.lines())
    }
}

impl fmt::Display for UnreadablePack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, Causes(&self.error))
    }
}

//! The packs of a view.

use crate::format::larder::pack::name::{PackName, SessionId};
use crate::format::larder::pack::{MAX_PACK_BYTES, PackClass};
use crate::format::larder::segment::SegmentPack;

/// Packs in the order of their names: 8 bytes each, and 20 for each session. The number of a pack is its place in this order.
#[derive(Clone, Debug, Default)]
pub(super) struct PackTable {
    /// Size, class and presence of each pack.
    facts: Vec<u32>,
    ns: Vec<u32>,
    runs: Vec<Run>,
}

/// The packs of one session.
#[derive(Clone, Copy, Debug)]
struct Run {
    session: SessionId,
    /// Number of the first of them.
    start: u32,
}

/// A pack of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct TablePack {
    /// The pack is listed with the size that the table has.
    pub(super) is_listed: bool,
    pub(super) pack: SegmentPack,
}

impl TablePack {
    fn new(session: SessionId, n: u32, facts: u32) -> Self {
        let class = if facts & METADATA == 0 { PackClass::Data } else { PackClass::Metadata };
        let pack = SegmentPack { bytes: facts & BYTES, class, name: PackName { session, n } };
        Self { is_listed: facts & LISTED != 0, pack }
    }
}

const LISTED: u32 = 1 << 31;
const METADATA: u32 = 1 << 30;
const BYTES: u32 = METADATA - 1;
const _: () = assert!(MAX_PACK_BYTES <= BYTES, "a size leaves two bits");

impl PackTable {
    /// A table of packs that ascend by name. Of several with one name the first counts.
    pub(super) fn of(packs: impl IntoIterator<Item = TablePack>) -> Self {
        let mut table = Self::default();
        let mut before = None;
        for TablePack { is_listed, pack } in packs {
            if before == Some(pack.name) {
                continue;
            }
            before = Some(pack.name);
            table.push(pack, is_listed);
        }
        table.facts.shrink_to_fit();
        table.ns.shrink_to_fit();
        table
    }

    fn push(&mut self, pack: SegmentPack, is_listed: bool) {
        let SegmentPack { bytes, class, name } = pack;
        if self.runs.last().is_none_or(|run| run.session != name.session) {
            let start = u32::try_from(self.ns.len()).unwrap_or(u32::MAX);
            self.runs.push(Run { session: name.session, start });
        }
        self.ns.push(name.n);
        let class = if class == PackClass::Metadata { METADATA } else { 0 };
        self.facts.push(bytes | class | if is_listed { LISTED } else { 0 });
    }

    /// Number of packs.
    pub(super) fn len(&self) -> usize {
        self.ns.len()
    }

    /// All packs, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = TablePack> {
        let ends = self.runs.iter().skip(1).map(|run| run.start as usize).chain([self.len()]);
        self.runs.iter().zip(ends).flat_map(|(run, end)| {
            let numbers = run.start as usize..end;
            let facts = self.facts.get(numbers.clone()).unwrap_or_default();
            let ns = self.ns.get(numbers).unwrap_or_default();
            ns.iter().zip(facts).map(|(n, facts)| TablePack::new(run.session, *n, *facts))
        })
    }

    /// A pack by its number.
    pub(super) fn get(&self, number: u32) -> Option<TablePack> {
        let run = self.runs.partition_point(|run| run.start <= number).checked_sub(1)?;
        let (n, facts) = (self.ns.get(number as usize)?, self.facts.get(number as usize)?);
        Some(TablePack::new(self.runs.get(run)?.session, *n, *facts))
    }

    /// The number that each pack has in another table, in order; `None` if it is not there with the same size and class.
    pub(super) fn numbers_in(&self, other: &Self) -> impl Iterator<Item = Option<u32>> {
        let mut others = (0_u32..).zip(other.iter()).peekable();
        self.iter().map(move |TablePack { pack, .. }| {
            while others.next_if(|(_, other)| other.pack.name < pack.name).is_some() {}
            others.peek().filter(|(_, other)| other.pack == pack).map(|(number, _)| *number)
        })
    }

    /// The number of a pack.
    pub(super) fn number_of(&self, name: &PackName) -> Option<u32> {
        let run = self.runs.binary_search_by_key(&name.session, |run| run.session).ok()?;
        let start = self.runs.get(run)?.start as usize;
        let end = self.runs.get(run + 1).map_or(self.ns.len(), |run| run.start as usize);
        let at = self.ns.get(start..end)?.binary_search(&name.n).ok()?;
        u32::try_from(start + at).ok()
    }

    /// Records that a listing has a pack with this size, or not at all.
    pub(super) fn list(&mut self, number: u32, bytes: Option<u64>) {
        if let Some(facts) = self.facts.get_mut(number as usize) {
            let is_listed = bytes == Some((*facts & BYTES).into());
            *facts = *facts & !LISTED | if is_listed { LISTED } else { 0 };
        }
    }

    /// Records that a listing has no pack.
    pub(super) fn list_none(&mut self) {
        self.facts.iter_mut().for_each(|facts| *facts &= !LISTED);
    }
}

//! Packs without a valid directory: torn by a crash, or damaged.
//!
//! The headers of their entries say which chunks they have. The chunks of an orphan are adopted like those of any orphan; one without any entry is
//! dropped. A pack that was dropped is judged by them before it is deleted.

use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::scanner::{PackPart, PackScanner};
use crate::format::larder::pack::{
    DIRECTORY_ENTRY_BYTES, MAX_PACK_BYTES, PackClass, PackEntry, TRAILER_BYTES,
};
use crate::format::layout::Key;
use crate::packs::Packs;

/// Bytes of a read.
const PIECE_BYTES: u64 = 8 << 20;

/// The entries of a pack without a valid directory.
#[derive(Debug)]
pub(super) struct Salvaged {
    /// The length that the pack had at least, when it was whole.
    pub(super) bytes: u32,
    pub(super) class: PackClass,
    pub(super) entries: Vec<PackEntry>,
    pub(super) name: PackName,
}

/// A scan in progress.
#[derive(Debug)]
struct Scan {
    entries: Vec<PackEntry>,
    is_over: bool,
    scanner: PackScanner,
}

impl Packs {
    /// Reads a pack from front to back; `None` if it is gone, or the pack of another writer.
    ///
    /// # Errors
    /// Any other failure to read it.
    pub(super) async fn salvage(&self, name: PackName, bytes: u64) -> Result<Option<Salvaged>> {
        let size = u32::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_PACK_BYTES);
        let Some(size) = size else { return Ok(None) };
        let mut scan = Scan { entries: Vec::new(), is_over: false, scanner: PackScanner::new(name) };
        let mut at = 0;
        loop {
            let end = (at + PIECE_BYTES).min(bytes);
            if at < end {
                match self.inner.get_range(&Key::Pack(name), at..end).await {
                    Err(error) if is_damage(&error) => return Ok(None),
                    piece => scan.scanner.feed(piece?.bytes),
                }
            } else {
                scan.scanner.end();
            }
            at = end;
            let scanned = self.runtime().run_blocking("scan a pack", move || Ok(scan.go_on())).await?;
            let Some(next) = scanned else { return Ok(None) };
            scan = next;
            if scan.is_over {
                break;
            }
        }
        let Scan { entries, scanner, .. } = scan;
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let whole = entries.last().map_or(0, PackEntry::end);
        let whole =
            whole.saturating_add(count.saturating_mul(DIRECTORY_ENTRY_BYTES)).saturating_add(TRAILER_BYTES);
        let class = scanner.class().unwrap_or(PackClass::Data);
        Ok(Some(Salvaged { bytes: size.max(whole).min(MAX_PACK_BYTES), class, entries, name }))
    }
}

impl Scan {
    /// Takes all entries in what was read; `None` in the pack of another writer.
    fn go_on(mut self) -> Option<Self> {
        loop {
            match self.scanner.next_part() {
                Ok(PackPart::Damage { .. }) => {}
                Ok(PackPart::End { .. }) => {
                    self.is_over = true;
                    return Some(self);
                }
                Ok(PackPart::Entry { entry, .. }) => self.entries.push(entry),
                Ok(PackPart::NeedsBytes) => return Some(self),
                Err(_) => return None,
            }
        }
    }
}

/// Returns `true` for an error that says that the pack lacks the bytes.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidInput | ErrorKind::NotFound)
}

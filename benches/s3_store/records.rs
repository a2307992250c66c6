//! Records of many chunks in the directory of local state, written as `local::presence` writes them.

use std::fs;
use std::path::Path;

use larder::format::Digest;

use crate::Outcome;

/// How many records there are between two fences.
const BLOCK: usize = 256;
/// The state of a chunk that is present, beside its stored length.
const PRESENT: u32 = 1 << 28;

/// Puts one segment with these digests in the place of all records, under the stamp that they have.
pub(crate) fn replace(local: &Path, digests: impl Iterator<Item = Digest>, length: u32) -> Outcome<()> {
    let directory = local.join("presence");
    let current = fs::read_to_string(directory.join("current"))?;
    let stamp = current.lines().next().ok_or("the records have no stamp")?;
    let mut sorted: Vec<_> = digests.map(|digest| *digest.as_bytes()).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let (mut bytes, mut fences) = (Vec::with_capacity(sorted.len() * 41), Vec::new());
    for (number, digest) in sorted.iter().enumerate() {
        if number.is_multiple_of(BLOCK) {
            fences.extend_from_slice(&digest[..8]);
        }
        let record = [&digest[..], &(PRESENT | length).to_le_bytes()].concat();
        bytes.extend_from_slice(&record);
        bytes.extend(crc32fast::hash(&record).to_le_bytes());
    }
    bytes.extend_from_slice(&fences);
    bytes.extend((sorted.len() as u64).to_le_bytes());
    bytes.extend(u64::from(crc32fast::hash(&fences)).to_le_bytes());
    fs::write(directory.join("segment-0"), bytes)?;
    let body = format!("{stamp}\nsegment-0");
    fs::write(directory.join("current"), format!("{body}\n{:08x}\n", crc32fast::hash(body.as_bytes())))?;
    Ok(fs::write(directory.join("log"), "")?)
}

//! Options of packs.

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a unit of sizes.
const MIB: usize = 1 << 20;

/// Options of a packed store, fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct PackOptions {
    mebibytes: usize,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { mebibytes: 32 }
    }
}

impl PackOptions {
    /// The size at which a pack is stored, in MiB; default: 32, 8 to 128. The last pack of a backup is smaller, and so is each pack of a store
    /// that is opened with less memory than three packs beside the chunks in flight need.
    pub fn target_mebibytes(mut self, mebibytes: usize) -> Self {
        self.mebibytes = mebibytes;
        self
    }

    /// The target size in bytes.
    ///
    /// # Errors
    /// `InvalidInput` if it is out of bounds.
    pub(crate) fn target_bytes(self) -> Result<usize> {
        if (8..=128).contains(&self.mebibytes) {
            return Ok(self.mebibytes * MIB);
        }
        let error = Error::new(ErrorKind::InvalidInput, "create the store");
        Err(error.because("the size of packs is not within 8 and 128 MiB"))
    }
}

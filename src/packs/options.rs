//! Options of packs.

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a unit of sizes.
const MIB: usize = 1 << 20;

/// Options of a packed store, fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct PackOptions {
    /// Any size, for tests with little data.
    #[cfg(feature = "testing")]
    exact_bytes: Option<usize>,
    mebibytes: usize,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            #[cfg(feature = "testing")]
            exact_bytes: None,
            mebibytes: 32,
        }
    }
}

impl PackOptions {
    /// The size at which a pack is stored, in MiB; default: 32, 8 to 128. The last pack of a backup is smaller, and so is each pack of a store
    /// that is opened with less memory than three packs beside the chunks in flight need.
    pub fn target_mebibytes(mut self, mebibytes: usize) -> Self {
        self.mebibytes = mebibytes;
        self
    }

    /// The size at which a pack is stored, without bounds.
    #[cfg(feature = "testing")]
    pub(crate) fn target_exactly(mut self, bytes: usize) -> Self {
        self.exact_bytes = Some(bytes);
        self
    }

    /// The target size in bytes.
    ///
    /// # Errors
    /// `InvalidInput` if it is out of bounds.
    pub(crate) fn target_bytes(self) -> Result<usize> {
        #[cfg(feature = "testing")]
        if let Some(bytes) = self.exact_bytes {
            return Ok(bytes);
        }
        if (8..=128).contains(&self.mebibytes) {
            return Ok(self.mebibytes * MIB);
        }
        let error = Error::new(ErrorKind::InvalidInput, "create the store");
        Err(error.because("the size of packs is not within 8 and 128 MiB"))
    }
}

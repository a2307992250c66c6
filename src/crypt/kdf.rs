//! Keys from passphrases, within limits (H190).

use sha2::Sha256;
use zeroize::Zeroizing;

use crate::crypt::errors::KeyError;

/// Bytes of a new salt.
pub(crate) const SALT_BYTES: usize = 32;
/// The shortest passphrase that PBS accepts.
pub(super) const MIN_PASSPHRASE_BYTES: usize = 5;
/// Memory that scrypt may take. PBS has the same limit.
pub(super) const MAX_MEMORY_BYTES: u64 = 1025 << 20;
pub(super) const MAX_PARALLELISM: u32 = 16;
pub(super) const MAX_ITERATIONS: u32 = 10_000_000;

/// A key derivation function: it makes guessing a passphrase slow.
///
/// The default is that of PBS: scrypt with 64 MiB of memory, a tenth of a second on a fast processor.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kdf {
    /// PBKDF2 with HMAC-SHA-256. It needs no memory, so hardware for guessing is cheap: for hosts where scrypt takes too much memory.
    Pbkdf2 {
        /// Number of iterations, from 1 to ten million; in files of PBS 65535.
        iterations: u32,
    },
    /// scrypt. Source: RFC 7914.
    Scrypt {
        /// Cost: a power of two from 2. The memory in bytes is 128 · `r` · (`n` + `p` + 2), at most 1025 MiB.
        n: u64,
        /// Block size, at least 1.
        r: u32,
        /// Parallelism, from 1 to 16. It multiplies the time.
        p: u32,
    },
}

impl Default for Kdf {
    fn default() -> Self {
        Self::Scrypt { n: 1 << 16, r: 8, p: 1 }
    }
}

impl Kdf {
    /// Refuses parameters without a meaning, and those that take too much time or memory.
    pub(super) fn check(self) -> Result<(), KeyError> {
        match self {
            Self::Pbkdf2 { iterations: 0 } => Err(KeyError::Damaged("the number of iterations is 0")),
            Self::Pbkdf2 { iterations } if iterations > MAX_ITERATIONS => Err(KeyError::TooCostly),
            Self::Pbkdf2 { .. } => Ok(()),
            Self::Scrypt { n, r, p } => {
                if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
                    return Err(KeyError::Damaged("the parameters of scrypt make no sense"));
                }
                let blocks = n.saturating_add(u64::from(p)).saturating_add(2);
                let bytes = blocks.saturating_mul(128).saturating_mul(r.into());
                if bytes > MAX_MEMORY_BYTES || p > MAX_PARALLELISM {
                    Err(KeyError::TooCostly)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Derives a key. Takes time and memory as the parameters say.
    pub(super) fn derive(self, passphrase: &[u8], salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        if passphrase.len() < MIN_PASSPHRASE_BYTES {
            return Err(KeyError::ShortPassphrase);
        }
        self.check()?;
        let mut key = Zeroizing::new([0; 32]);
        match self {
            Self::Pbkdf2 { iterations } => {
                pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, iterations, key.as_mut_slice());
            }
            Self::Scrypt { n, r, p } => {
                // At most 63: `n` is a power of two.
                let log_n = u8::try_from(n.ilog2()).map_err(|_| KeyError::TooCostly)?;
                let parameters = scrypt::Params::new(log_n, r, p).map_err(|_| KeyError::TooCostly)?;
                scrypt::scrypt(passphrase, salt, &parameters, key.as_mut_slice())
                    .map_err(|_| KeyError::TooCostly)?;
            }
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::hex;

    /// The vectors of RFC 7914 §12, cut to 32 bytes, of RFC 7914 §11, and of the signature in the description of the format.
    #[test]
    fn derived_keys_are_those_of_the_standards() {
        let scrypt = Kdf::Scrypt { n: 1024, r: 8, p: 16 };
        let expected = "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162";
        assert_eq!(hex(&*scrypt.derive(b"password", b"NaCl").unwrap()), expected);
        let pbkdf2 = Kdf::Pbkdf2 { iterations: 80000 };
        let expected = "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56";
        assert_eq!(hex(&*pbkdf2.derive(b"Password", b"NaCl").unwrap()), expected);
    }

    /// Proves H190.
    #[test]
    fn parameters_are_checked_before_any_work() {
        let scrypt = |n, r, p| Kdf::Scrypt { n, r, p };
        assert_eq!(Kdf::default().check(), Ok(()));
        assert_eq!(scrypt(1 << 20, 8, 1).check(), Ok(()), "1 GiB");
        for kdf in [
            scrypt(1 << 21, 8, 1),
            scrypt(2, 1 << 22, 16),
            scrypt(1 << 63, u32::MAX, u32::MAX),
            scrypt(1 << 10, 8, 17),
            Kdf::Pbkdf2 { iterations: MAX_ITERATIONS + 1 },
        ] {
            assert_eq!(kdf.derive(b"passphrase", b"").map(|_| ()), Err(KeyError::TooCostly), "{kdf:?}");
        }
        for kdf in [scrypt(0, 8, 1), scrypt(1, 8, 1), scrypt(3, 8, 1), scrypt(4, 0, 1), scrypt(4, 8, 0)] {
            assert!(matches!(kdf.check(), Err(KeyError::Damaged(_))), "{kdf:?}");
        }
        assert!(matches!(Kdf::Pbkdf2 { iterations: 0 }.check(), Err(KeyError::Damaged(_))));
        assert_eq!(Kdf::default().derive(b"1234", b"").map(|_| ()), Err(KeyError::ShortPassphrase));
    }
}

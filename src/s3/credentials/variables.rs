//! Variables of the environment, and the files that they name.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// Maximum bytes of a file with credentials, a configuration or a token.
const FILE_BYTES: u64 = 1 << 20;

type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// The variables of the process, or those of a test.
#[derive(Clone)]
pub(super) struct Variables(Arc<Lookup>);

impl Default for Variables {
    fn default() -> Self {
        Self(Arc::new(|name| std::env::var_os(name)))
    }
}

impl Variables {
    /// The value of a variable. An empty one counts as not set.
    ///
    /// # Errors
    /// `InvalidInput` if it is not UTF-8.
    pub(super) fn get(&self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.os(name) else { return Ok(None) };
        value.into_string().map(Some).map_err(|_| {
            let refused = Error::new(ErrorKind::InvalidInput, "read the environment");
            refused.because(format!("{name} is not UTF-8"))
        })
    }

    /// As [`get`](Self::get), for the first of these variables that is set.
    pub(super) fn first(&self, names: &[&str]) -> Result<Option<String>> {
        names.iter().find_map(|name| self.get(name).transpose()).transpose()
    }

    /// The value of a variable with a path. `~/` at its start is the home directory.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.os(name).map(|path| self.expand(&PathBuf::from(path)))
    }

    /// The path with the home directory for `~/`.
    pub(super) fn expand(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), self.os("HOME")) {
            (Ok(below), Some(home)) => PathBuf::from(home).join(below),
            _ => path.to_owned(),
        }
    }

    pub(super) fn os(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    #[cfg(test)]
    pub(super) fn of(variables: &[(&str, &str)]) -> Self {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
        let variables: std::collections::BTreeMap<_, _> = owned.collect();
        Self(Arc::new(move |name| variables.get(name).cloned()))
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Variables")
    }
}

/// Reads a text file of at most 1 MiB; `None` if it does not exist. Blocks.
///
/// # Errors
/// `Denied` if it may not be read; `InvalidInput` if it is too large, or not UTF-8.
pub(super) fn read_text(path: &Path) -> Result<Option<Zeroizing<String>>> {
    let action = "read the credentials in";
    let failed = |error: io::Error| Error::io(error, action).on(path.display());
    let refused = |why: &str| Error::new(ErrorKind::InvalidInput, action).on(path.display()).because(why);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // One allocation, because a buffer that grows leaves copies of the secret behind.
    let expected = file.metadata().map_or(0, |metadata| metadata.len()).min(FILE_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1));
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(refused("the file has more than 1 MiB"));
    }
    let text = str::from_utf8(&bytes).map_err(|_| refused("the file is not UTF-8"))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

/// Reads the token in a file, without the newline at its end. Blocks.
///
/// # Errors
/// As [`read_text`]; `Denied` if the file does not exist or is empty.
pub(super) fn read_token(path: &Path) -> Result<Zeroizing<String>> {
    let missing = |why: &str| {
        let missing = Error::new(ErrorKind::Denied, "read the token in").on(path.display());
        missing.because(why)
    };
    let text = read_text(path)?.ok_or_else(|| missing("the file does not exist"))?;
    match text.trim_ascii() {
        "" => Err(missing("the file is empty")),
        token => Ok(Zeroizing::new(token.to_owned())),
    }
}

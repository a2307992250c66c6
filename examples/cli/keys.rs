//! The options about encryption keys.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use larder::crypt::EncryptionKey;
use larder::keys;
use larder::rt::Runtime;

use super::{Outcome, input, value};

pub(crate) const KEY_USAGE: &str =
    "  --keyfile FILE       the encryption key, in a key file as PBS and the example `key` make them
  --passphrase-env VAR the environment variable with the passphrase of the key file";

/// The encryption key that a command uses. The one place that understands `--keyfile`.
#[derive(Default)]
pub(crate) struct KeyArguments {
    keyfile: Option<PathBuf>,
    passphrase: Passphrase,
}

impl KeyArguments {
    /// Takes an option, with its value, if it is one about the key.
    pub(crate) fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--keyfile" => self.keyfile = Some(value(parser)?.into()),
            "--passphrase-env" => self.passphrase = Passphrase::take(parser)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The key, if one is given.
    pub(crate) async fn key(&self, runtime: &dyn Runtime) -> Outcome<Option<EncryptionKey>> {
        let Some(path) = &self.keyfile else {
            let unused =
                self.passphrase.is_given().then(|| input("--passphrase-env has no use without --keyfile"));
            return unused.map_or(Ok(None), Err);
        };
        let file = keys::read(runtime, path).await?;
        let passphrase = self.passphrase.read()?;
        Ok(Some(keys::unlock(runtime, &file, passphrase.as_deref()).await?))
    }
}

/// A passphrase in an environment variable. An argument would be visible to every user of the host.
#[derive(Default)]
pub(crate) struct Passphrase {
    variable: Option<String>,
}

impl Passphrase {
    /// Takes the name of the variable.
    pub(crate) fn take(parser: &mut lexopt::Parser) -> Outcome<Self> {
        Ok(Self { variable: Some(value(parser)?) })
    }

    pub(crate) fn is_given(&self) -> bool {
        self.variable.is_some()
    }

    /// The passphrase, as the bytes that the variable has; `None` if no variable is named.
    pub(crate) fn read(&self) -> Outcome<Option<Vec<u8>>> {
        let Some(name) = &self.variable else { return Ok(None) };
        let found = std::env::var_os(name).map(OsStringExt::into_vec).filter(|bytes| !bytes.is_empty());
        found.map(Some).ok_or_else(|| input(format!("the variable {name} has no passphrase")))
    }
}

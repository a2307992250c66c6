//! Creates, shows, changes, exports and imports encryption keys.
//! Run with: cargo run --release --example key -- create FILE --passphrase-env VAR

#[macro_use]
mod cli;

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use cli::keys::Passphrase;
use cli::signals::interruptible;
use cli::{Outcome, input};
use futures::executor::block_on;
use jiff::Timestamp;
use larder::crypt::{EncryptionKey, Kdf, KeyFile};
use larder::keys;
use larder::rt::Runtime;
use serde_json::{Value, json};

/// Longest text that is read as a paper key, in bytes.
const MAX_PAPER_BYTES: u64 = 64 << 10;

const USAGE: &str = "usage: key COMMAND FILE [options]

commands:
  create FILE             makes a new key, and a key file that PBS can use too; an existing file is never overwritten
  show FILE               prints fingerprint, times, protection and hint; needs no passphrase
  change-passphrase FILE  protects the same key by another passphrase, or by none with --kdf none
  export FILE             prints the key as text that can be typed in again; it is not protected by a passphrase
  import FILE             makes a key file from such a text on standard input

options:
  --passphrase-env VAR      the environment variable with the passphrase of FILE
  --new-passphrase-env VAR  for change-passphrase: the environment variable with the new passphrase
  --kdf KDF                 how the passphrase becomes a key: scrypt, pbkdf2, or none for a file without a passphrase; default: scrypt
  --hint TEXT               a hint at the passphrase, readable by everyone who can read the file";

fn main() -> ExitCode {
    cli::run(&format!("{USAGE}\n{}", cli::JSON_USAGE), command)
}

/// Protection of the key in a new file.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Protection {
    None,
    Pbkdf2,
    #[default]
    Scrypt,
}

#[derive(Default)]
struct Arguments {
    as_json: bool,
    hint: Option<String>,
    new_passphrase: Passphrase,
    passphrase: Passphrase,
    protection: Protection,
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let (mut arguments, mut words) = (Arguments::default(), Vec::new());
    while let Some(argument) = cli::next(&mut parser)? {
        match argument.as_str() {
            "--json" => arguments.as_json = true,
            "--hint" => arguments.hint = Some(cli::value(&mut parser)?),
            "--kdf" => {
                arguments.protection = match cli::value(&mut parser)?.as_str() {
                    "none" => Protection::None,
                    "pbkdf2" => Protection::Pbkdf2,
                    "scrypt" => Protection::Scrypt,
                    other => return Err(input(format!("--kdf: {other:?} is not scrypt, pbkdf2 or none"))),
                }
            }
            "--new-passphrase-env" => arguments.new_passphrase = Passphrase::take(&mut parser)?,
            "--passphrase-env" => arguments.passphrase = Passphrase::take(&mut parser)?,
            option if option.starts_with('-') => {
                return Err(input(format!("{option}: there is no such option")));
            }
            word => words.push(word.to_owned()),
        }
    }
    let [command, path] = words.as_slice() else {
        return Err(input(USAGE.lines().next().unwrap_or_default()));
    };
    if arguments.new_passphrase.is_given() && command != "change-passphrase" {
        return Err(input("--new-passphrase-env is for change-passphrase"));
    }
    let runtime = cli::runtime();
    block_on(interruptible(arguments.run(&*runtime, command, path.into())))
}

impl Arguments {
    async fn run(&self, runtime: &dyn Runtime, command: &str, path: PathBuf) -> Outcome<()> {
        match command {
            "create" => self.create(runtime, path, &keys::generate(runtime)).await,
            "import" => {
                let mut text = String::new();
                io::stdin().take(MAX_PAPER_BYTES).read_to_string(&mut text)?;
                self.create(runtime, path, &EncryptionKey::from_paper(&text).map_err(input)?).await
            }
            "show" => {
                self.print(&keys::read(runtime, path).await?);
                Ok(())
            }
            "export" => {
                let key = self.unlock(runtime, &keys::read(runtime, path).await?).await?;
                let paper = key.to_paper();
                if self.as_json {
                    println!("{}", json!({ "paper": *paper }));
                } else {
                    println!("{}", paper.trim_end());
                }
                Ok(())
            }
            "change-passphrase" => self.change_passphrase(runtime, path).await,
            other => Err(input(format!("{other}: there is no such command"))),
        }
    }

    async fn create(&self, runtime: &dyn Runtime, path: PathBuf, key: &EncryptionKey) -> Outcome<()> {
        let mut file = KeyFile::new(key, runtime.now());
        file.hint.clone_from(&self.hint);
        let file = self.protect(runtime, file, key, &self.passphrase, "--passphrase-env").await?;
        keys::create(runtime, path, &file).await?;
        self.print(&file);
        Ok(())
    }

    async fn change_passphrase(&self, runtime: &dyn Runtime, path: PathBuf) -> Outcome<()> {
        let old = keys::read(runtime, &path).await?;
        let key = self.unlock(runtime, &old).await?;
        let mut file = old.unprotect(&key, runtime.now()).map_err(input)?;
        if self.hint.is_some() {
            file.hint.clone_from(&self.hint);
        }
        let file = self.protect(runtime, file, &key, &self.new_passphrase, "--new-passphrase-env").await?;
        keys::replace(runtime, path, &old, &file).await?;
        self.print(&file);
        Ok(())
    }

    async fn unlock(&self, runtime: &dyn Runtime, file: &KeyFile) -> Outcome<EncryptionKey> {
        let passphrase = self.passphrase.read()?;
        Ok(keys::unlock(runtime, file, passphrase.as_deref()).await?)
    }

    /// Protects an unprotected file as the arguments say.
    async fn protect(
        &self,
        runtime: &dyn Runtime,
        file: KeyFile,
        key: &EncryptionKey,
        passphrase: &Passphrase,
        option: &str,
    ) -> Outcome<KeyFile> {
        let kdf = match self.protection {
            Protection::None if passphrase.is_given() => {
                return Err(input(format!("{option} has no use with --kdf none")));
            }
            Protection::None => return Ok(file),
            Protection::Pbkdf2 => Kdf::Pbkdf2 { iterations: 65535 },
            Protection::Scrypt => Kdf::default(),
        };
        let passphrase = passphrase.read()?.ok_or_else(|| {
            input(format!("{option} is missing; --kdf none makes a key file without a passphrase"))
        })?;
        Ok(keys::protect(runtime, &file, key, &passphrase, kdf).await?)
    }

    fn print(&self, file: &KeyFile) {
        let described = describe(file);
        if self.as_json {
            println!("{described}");
            return;
        }
        for name in ["fingerprint", "kdf", "created", "modified", "hint"] {
            println!("{name:12} {}", described[name].as_str().unwrap_or("none"));
        }
    }
}

fn describe(file: &KeyFile) -> Value {
    let kdf = file.kdf().map(|kdf| match kdf {
        Kdf::Pbkdf2 { iterations } => format!("pbkdf2, {iterations} iterations"),
        Kdf::Scrypt { n, r, p } => format!("scrypt, n {n}, r {r}, p {p}"),
        other => format!("{other:?}"),
    });
    let time = |time: SystemTime| Timestamp::try_from(time).map(|time| time.to_string()).ok();
    json!({
        "fingerprint": file.fingerprint().map(|fingerprint| fingerprint.to_string()),
        "kdf": kdf,
        "created": time(file.created()),
        "modified": time(file.modified()),
        "hint": file.hint,
    })
}

//! Writes a store with encrypted and signed snapshots, and the key files for them: `keyed_store STORE KEYS DISK DATA CONF`.
//!
//! Each of three keys, whose files have the three forms that there are, has a group with two encrypted snapshots, of which the second
//! builds on the first, and a group with a signed one.

use std::fs::{File, read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::executor::block_on;
use futures::io::{AllowStdIo, Cursor};
use larder::ThreadRuntime;
use larder::backend::{FsBackend, FsOptions};
use larder::crypt::{EncryptionKey, Kdf, KeyFile};
use larder::keys;
use larder::rt::Runtime;
use larder::store::{BackupBuilder, Datastore, Options, SnapshotReader};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const FORMS: [(&str, Option<Kdf>); 3] = [
    ("none", None),
    ("pbkdf2", Some(Kdf::Pbkdf2 { iterations: 1000 })),
    ("scrypt", Some(Kdf::Scrypt { n: 16384, r: 8, p: 1 })),
];

/// Places of the sources.
struct Sources {
    conf: PathBuf,
    data: PathBuf,
    disk: PathBuf,
}

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [store, keys, disk, data, conf] = arguments.try_into().map_err(|_| "five arguments are wanted")?;
    block_on(write(&store, &keys, &Sources { conf, data, disk }))
}

async fn write(store: &Path, keys: &Path, sources: &Sources) -> Result<()> {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let backend = FsBackend::create(Arc::clone(&runtime), store, FsOptions::default()).await?;
    let store = Datastore::create(Arc::new(backend), Options::default()).await?;
    for (form, kdf) in FORMS {
        let key = new_key(&*runtime, &keys.join(format!("{form}.json")), form, kdf).await?;
        let group = format!("host/{form}").parse()?;
        let first = back_up(store.backup(&group).encrypt(&key), None, sources).await?;
        back_up(store.backup(&group).encrypt(&key), Some(&first), sources).await?;
        let group = format!("host/{form}-signed").parse()?;
        back_up(store.backup(&group).sign(&key), None, sources).await?;
    }
    Ok(())
}

/// Draws a key and writes its file. The passphrase is the name of the form.
async fn new_key(runtime: &dyn Runtime, path: &Path, form: &str, kdf: Option<Kdf>) -> Result<EncryptionKey> {
    let key = keys::generate(runtime);
    let mut file = KeyFile::new(&key, runtime.now());
    if let Some(kdf) = kdf {
        file = keys::protect(runtime, &file, &key, form.as_bytes(), kdf).await?;
    }
    keys::create(runtime, path, &file).await?;
    Ok(key)
}

async fn back_up(
    backup: BackupBuilder,
    base: Option<&SnapshotReader>,
    sources: &Sources,
) -> Result<SnapshotReader> {
    let writer = backup.begin().await?;
    let size = std::fs::metadata(&sources.disk)?.len();
    let image = writer.image("disk.img", AllowStdIo::new(File::open(&sources.disk)?), size);
    let stream = writer.stream("data.bin", Cursor::new(read(&sources.data)?));
    if let Some(base) = base {
        image.base(base).await?;
        stream.base(base).await?;
    } else {
        image.await?;
        stream.await?;
    }
    writer.blob("app.conf", read(&sources.conf)?).await?;
    writer.client_log(read(&sources.conf)?).await?;
    Ok(writer.finish().await?.snapshot)
}

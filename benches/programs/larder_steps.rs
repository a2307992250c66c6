//! The steps of larder, each in a process of its own.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories};
use larder::crypt::EncryptionKey;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, PackOptions, Scope};
use larder::tree::{DirectorySource, DirectoryTarget};
use larder::verify::{self, VerifyOptions};

use crate::Outcome;

pub(crate) fn run(arguments: &[OsString]) -> Outcome<()> {
    let [form, step, store, source, restored] = arguments else {
        return Err("five arguments are wanted".into());
    };
    let key = (form == "encrypted").then(|| EncryptionKey::from_bytes(&[7; 32]));
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    block_on(async {
        if step == "Create" {
            return create(runtime, Path::new(store), form == "packed").await.map(drop);
        }
        let backend = FsBackend::open(Arc::clone(&runtime), store, FsOptions::default()).await?;
        let store = Datastore::open(Arc::new(backend), Options::default()).await?;
        match step.to_str() {
            Some("First" | "Again") => back_up(&runtime, &store, Path::new(source), key.as_ref()).await,
            Some("Restore") => restore(&runtime, &store, Path::new(restored), key.as_ref()).await,
            Some("Check") => check(&store, key.as_ref()).await,
            _ => Err(format!("there is no step {}", step.display()).into()),
        }
    })
}

async fn create(runtime: Arc<dyn Runtime>, path: &Path, is_packed: bool) -> Outcome<Datastore> {
    let (mut files, mut options) = (FsOptions::default(), Options::default());
    if is_packed {
        files = files.prefix_directories(PrefixDirectories::OnDemand);
        options = options.packed(PackOptions::default());
    }
    let backend: Arc<dyn Backend> = Arc::new(FsBackend::create(runtime, path, files).await?);
    Ok(Datastore::create(backend, options).await?)
}

async fn back_up(
    runtime: &Arc<dyn Runtime>,
    store: &Datastore,
    source: &Path,
    key: Option<&EncryptionKey>,
) -> Outcome<()> {
    let group = "host/bench".parse()?;
    let mut base = store.latest_snapshot(&group).await?;
    let mut backup = store.backup(&group);
    if let Some(key) = key {
        backup = backup.encrypt(key);
        if let Some(base) = &mut base {
            base.unlock(key)?;
        }
    }
    let backup = backup.begin().await?;
    let source = DirectorySource::open(Arc::clone(runtime), source).await?;
    backup.tree("root", &source).base_if_usable(base.as_ref()).reread_all().await?;
    backup.finish().await?;
    Ok(())
}

async fn restore(
    runtime: &Arc<dyn Runtime>,
    store: &Datastore,
    target: &Path,
    key: Option<&EncryptionKey>,
) -> Outcome<()> {
    let snapshot = store.latest_snapshot(&"host/bench".parse()?).await?;
    let mut snapshot = snapshot.ok_or("there is no snapshot")?;
    if let Some(key) = key {
        snapshot.unlock(key)?;
    }
    fs::remove_dir(target)?;
    let target = DirectoryTarget::create(Arc::clone(runtime), target).await?.without_flush();
    let restored = snapshot.tree("root.pxar").await?.restore(&target).await?;
    if restored.report.is_complete() { Ok(()) } else { Err(restored.report.to_string().into()) }
}

async fn check(store: &Datastore, key: Option<&EncryptionKey>) -> Outcome<()> {
    let mut options = VerifyOptions::default();
    if let Some(key) = key {
        options = options.key(key);
    }
    let report = verify::plan(store, &Scope::Store, options).await?.execute().await?;
    if report.is_clean() { Ok(()) } else { Err(format!("{report:?}").into()) }
}

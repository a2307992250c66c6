//! The backend on clients of the crate `object_store`: the conformance suite, clients that lack something, and a life of a store.

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use larder::backend::conformance::Suite;
use larder::backend::{
    Backend, Deleted, ListQuery, ListingOrder, LockReach, ObjectStoreBackend, PutMode, Removal,
};
use larder::error::{Error, ErrorKind};
use larder::format::layout::{Key, Prefix};
use larder::format::name::Namespace;
use larder::gc::{self, GcEnd, GcOptions};
use larder::internal::listing::list_all;
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::store::{Datastore, Options, WriterTarget};
use larder_testing::noise;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as ClientError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMode as Mode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A client in memory that differs from the others.
#[derive(Debug)]
struct Odd {
    inner: InMemory,
    quirk: Quirk,
}

#[derive(Debug)]
enum Quirk {
    /// Deletes are answered so late that a client may have repeated them.
    AnswersLate(Arc<dyn Runtime>),
    /// Puts with a condition are executed whatever it is.
    IgnoresConditions,
    /// Listings are in reverse order.
    ListsBackwards,
    /// No puts with a condition, as with `HttpStore`.
    NoConditions,
    /// No put on the condition of a version, as with `LocalFileSystem`.
    NoUpdates,
    /// Objects without an entity tag.
    NoTags,
    /// Nothing may be stored.
    ReadOnly,
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Odd({:?})", self.quirk)
    }
}

fn refused(mode: &Mode) -> ClientError {
    ClientError::NotImplemented { operation: format!("{mode:?}"), implementer: "Odd".to_owned() }
}

#[async_trait]
impl ObjectStore for Odd {
    async fn put_opts(&self, at: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        match (&self.quirk, &options.mode) {
            (Quirk::ReadOnly, _) => {
                return Err(ClientError::PermissionDenied {
                    path: at.to_string(),
                    source: "read-only".into(),
                });
            }
            (Quirk::NoConditions, Mode::Create | Mode::Update(_)) | (Quirk::NoUpdates, Mode::Update(_)) => {
                return Err(refused(&options.mode));
            }
            (Quirk::IgnoresConditions, _) => options.mode = Mode::Overwrite,
            _ => {}
        }
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let mut found = self.inner.get_opts(at, options).await?;
        if matches!(self.quirk, Quirk::NoTags) {
            found.meta.e_tag = None;
        }
        Ok(found)
    }

    fn delete_stream(&self, places: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let deleted = self.inner.delete_stream(places);
        let Quirk::AnswersLate(runtime) = &self.quirk else { return deleted };
        let runtime = Arc::clone(runtime);
        deleted
            .then(move |deleted| {
                let runtime = Arc::clone(&runtime);
                async move {
                    runtime.sleep(Duration::from_millis(100)).await;
                    deleted
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.inner.list(prefix);
        if !matches!(self.quirk, Quirk::ListsBackwards) {
            return listed;
        }
        let backwards = async move {
            let mut all: Vec<_> = listed.collect().await;
            all.reverse();
            stream::iter(all)
        };
        stream::once(backwards).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        if matches!(self.quirk, Quirk::ListsBackwards) {
            listed.objects.reverse();
            listed.common_prefixes.reverse();
        }
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn odd(quirk: Quirk) -> Arc<dyn ObjectStore> {
    Arc::new(Odd { inner: InMemory::new(), quirk })
}

fn threads() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

async fn opened(client: &Arc<dyn ObjectStore>, order: ListingOrder) -> Result<Arc<dyn Backend>, Error> {
    let backend = ObjectStoreBackend::open(threads(), Arc::clone(client), order).await?;
    Ok(Arc::new(backend))
}

/// Opens an empty place and puts it through the suite.
async fn conforms(client: Arc<dyn ObjectStore>, order: ListingOrder, is_conditional: bool) {
    let backend = opened(&client, order).await.unwrap();
    assert_eq!(backend.capabilities().conditional_put, is_conditional, "{client}");
    assert_eq!(backend.capabilities().lock_reach, LockReach::Process);
    Suite::default().only(&["conditions_see_every_change"]).run(&backend).await;
    let suite = Suite::default().paging(1001).foreign(|path| {
        let place = if path.starts_with(".chunks/") { "" } else { ".cnt/" };
        let (client, at) = (Arc::clone(&client), Path::parse(format!("{place}{path}")).unwrap());
        async move { drop(client.put(&at, PutPayload::from_static(b"foreign")).await.unwrap()) }
    });
    suite.run(&backend).await;
    let left: Vec<_> =
        client.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
    assert!(left.iter().all(|path| !path.starts_with(".larder/")), "no trial stays: {left:?}");
}

#[test]
fn a_client_in_memory_conforms() {
    block_on(async {
        conforms(Arc::new(InMemory::new()), ListingOrder::ByPath, true).await;
        conforms(Arc::new(InMemory::new()), ListingOrder::Any, true).await;
    });
}

/// Proves H112.
#[test]
fn clients_that_lack_something_conform_within_their_capabilities() {
    block_on(async {
        for quirk in [Quirk::IgnoresConditions, Quirk::NoConditions, Quirk::NoUpdates] {
            conforms(odd(quirk), ListingOrder::ByPath, false).await;
        }
        conforms(odd(Quirk::ListsBackwards), ListingOrder::Any, true).await;
    });
}

#[test]
fn a_client_without_entity_tags_is_refused_and_one_that_may_only_read_is_not() {
    block_on(async {
        let refused = opened(&odd(Quirk::NoTags), ListingOrder::ByPath).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        let read_only = opened(&odd(Quirk::ReadOnly), ListingOrder::ByPath).await.unwrap();
        assert!(!read_only.has_store().await.unwrap());
    });
}

/// Proves H12.
#[test]
fn a_listing_out_of_order_is_an_error() {
    block_on(async {
        let client = odd(Quirk::ListsBackwards);
        let backend = opened(&client, ListingOrder::ByPath).await.unwrap();
        for group in ["vm/1", "vm/2"] {
            let key = Key::Owner(group.parse().unwrap());
            backend.put(&key, Bytes::from_static(b"root@pam"), PutMode::Create).await.unwrap();
        }
        let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
        assert_eq!(list_all(&*backend, &all).await.unwrap_err().kind(), ErrorKind::Unavailable);
        let backend = opened(&client, ListingOrder::Any).await.unwrap();
        assert_eq!(list_all(&*backend, &all).await.unwrap().entries().len(), 2);
    });
}

#[test]
fn a_page_that_is_asked_for_again_is_the_same() {
    block_on(async {
        let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        for order in [ListingOrder::ByPath, ListingOrder::Any] {
            let backend = opened(&client, order).await.unwrap();
            for number in 0..2500 {
                let key = Key::Owner(format!("vm/{number}").parse().unwrap());
                backend.put(&key, Bytes::new(), PutMode::Replace).await.unwrap();
            }
            let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
            let first = backend.list(&all, None).await.unwrap();
            let second = backend.list(&all, first.next.as_ref()).await.unwrap();
            let again = backend.list(&all, first.next.as_ref()).await.unwrap();
            assert_eq!((second.entries.len(), &second.next), (1000, &again.next));
            assert!(second.entries == again.entries);
            let last = backend.list(&all, second.next.as_ref()).await.unwrap();
            assert_eq!((last.entries.len(), last.next), (500, None));
        }
    });
}

/// Proves H17.
#[test]
fn a_delete_that_may_have_been_sent_twice_is_in_doubt() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let client = odd(Quirk::AnswersLate(Arc::clone(&runtime)));
        let backend = ObjectStoreBackend::open(runtime, client, ListingOrder::ByPath).await.unwrap();
        let key = Key::Owner("vm/1".parse().unwrap());
        backend.put(&key, Bytes::new(), PutMode::Create).await.unwrap();
        for _ in 0..2 {
            let deleted = backend.delete(&[Removal::any(key.clone())]).await.unwrap().remove(0);
            assert_eq!(deleted.unwrap(), Deleted::InDoubt);
        }
    });
    block_on(async {
        let backend = opened(&(Arc::new(InMemory::new()) as _), ListingOrder::ByPath).await.unwrap();
        let deleted = backend.delete(&[Removal::any(Key::GcStatus)]).await.unwrap().remove(0);
        assert!(matches!(deleted.unwrap(), Deleted::Absent | Deleted::Unknown), "it was answered at once");
    });
}

#[test]
fn a_store_lives_on_a_client() {
    block_on(async {
        let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let backend = opened(&client, ListingOrder::ByPath).await.unwrap();
        let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
        let (shared, own) = (noise(1, 20 << 16), noise(2, 5 << 16));
        let group = "vm/100".parse().unwrap();
        let mut names = Vec::new();
        for data in [&[&own[..], &shared[..]].concat(), &shared] {
            let backup = store.backup(&group).begin().await.unwrap();
            backup.image("d.img", Cursor::new(data), data.len() as u64).chunk_bytes(1 << 16).await.unwrap();
            backup.blob("c.conf", "text").await.unwrap();
            names.push(backup.finish().await.unwrap().snapshot.name().clone());
        }
        drop(store);

        // As the next process.
        let backend = opened(&client, ListingOrder::Any).await.unwrap();
        let store = Datastore::open(backend, Options::default()).await.unwrap();
        let options = || GcOptions::default().grace(Duration::ZERO).consistent_listings().max_garbage(100);
        let refused = gc::plan(&store, options()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "other processes may be writing");
        store.delete_snapshot(&names[0]).await.unwrap();
        let mut plan = gc::plan(&store, options().only_process()).await.unwrap();
        let report = plan.execute().await.unwrap();
        assert!(matches!(report.end, GcEnd::Complete), "{:?}", report.end);
        assert_eq!((report.removed.chunks, report.failed, report.busy), (5, 0, 0));

        let snapshot = store.snapshot(&names[1]).await.unwrap();
        let mut target = WriterTarget::new(Cursor::new(Vec::new()));
        snapshot.archive("d.img").await.unwrap().copy_to(&mut target).await.unwrap();
        assert!(target.into_inner().into_inner() == shared);
        assert_eq!(snapshot.blob("c.conf.blob").await.unwrap(), "text");
    });
}

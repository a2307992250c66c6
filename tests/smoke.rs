use futures::executor::block_on;
use futures::io::{AsyncReadExt, Cursor};
use larder::backend::*;
use larder::rt::*;
use larder::store::*;
use std::sync::Arc;

#[test]
fn smoke() {
    let rt: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let b = FsBackend::create(
            rt.clone(),
            dir.path(),
            FsOptions::default().prefix_directories(PrefixDirectories::OnDemand),
        )
        .await
        .unwrap();
        let store = Datastore::create(Arc::new(b), Options::default()).await.unwrap();
        let group = "host/a".parse().unwrap();
        let w = store.backup(&group).begin().await.unwrap();
        let mut data = vec![0u8; 30 << 20];
        rt.fill_random(&mut data[1 << 20..20 << 20]);
        println!("{:?}", w.stream("x.bin", Cursor::new(data.clone())).await.unwrap());
        println!("{:?}", w.image("d.img", Cursor::new(data.clone()), data.len() as u64).await.unwrap());
        println!("{:?}", w.blob("c.conf", &b"hello"[..]).await.unwrap());
        println!("{:?}", w.stats());
        let s = w.finish().await.unwrap();
        for n in ["x.bin.didx", "d.img.fidx"] {
            let mut a = s.archive(n).await.unwrap();
            let mut t = WriterTarget::new(Cursor::new(Vec::new()));
            a.copy_to(&mut t).await.unwrap();
            assert!(t.into_inner().into_inner() == data);
            let mut v = Vec::new();
            a.read_to_end(&mut v).await.unwrap();
            assert!(v == data);
        }
        assert_eq!(&s.blob("c.conf.blob").await.unwrap()[..], b"hello");
        let w = store.backup(&group).begin().await.unwrap();
        w.stream("x.bin", Cursor::new(data.clone())).base(&s).await.unwrap();
        w.image("d.img", Cursor::new(data.clone()), data.len() as u64)
            .base(&s)
            .dirty([(5 << 20)..(6 << 20)].into_iter().collect())
            .await
            .unwrap();
        println!("{:?}", w.stats());
        let s2 = w.finish().await.unwrap();
        println!("{:?}", store.snapshots(&group).await.unwrap());
        let _ = s2;
    });
}

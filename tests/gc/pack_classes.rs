//! Classes of packs: metadata stays apart from data, whatever becomes of its packs.

use std::time::Duration;

use futures::io::Cursor;
use larder::error::{ErrorKind, Result};
use larder::format::layout::Key;
use larder::gc;
use larder::internal::fault::{Action, Rule};
use larder::internal::record::Method;
use larder::rt::Runtime as _;
use larder::store::Datastore;
use larder_testing::gc_scene::{CHUNK, at_once, check_all, collected, data, digests, group};

use crate::packs::{Scene, in_both, patient};

/// A snapshot with an image of one chunk, and a metadata archive of another.
async fn back_up_both(store: &Datastore, number: u64) -> Result<()> {
    let backup = store.backup(&group(&format!("host/{number}"))).begin().await?;
    backup.set_notes(format!("[{number}]"));
    let image = data(&[number]);
    backup.image("d.img", Cursor::new(&image), image.len() as u64).chunk_bytes(CHUNK as u64).await?;
    backup.stream("root.mpxar", &data(&[1000 + number])[..]).await?;
    backup.finish().await.map(drop)
}

#[test]
fn metadata_has_packs_of_its_own_which_are_merged_and_rewritten_apart() {
    in_both(async |scene| {
        for number in 0..5 {
            back_up_both(&scene.store, number).await.unwrap();
        }
        let usage = scene.store.pack_usage().unwrap();
        assert_eq!((usage.packs, usage.metadata_packs), (10, 5));
        // Together they fill a pack, but not those of a class.
        let packs = scene.packs_of(at_once()).await;
        assert_eq!((packs.merge.packs, packs.leave.small.packs), (0, 10));
        for number in 5..9 {
            back_up_both(&scene.store, number).await.unwrap();
        }
        assert_eq!(scene.packs_of(at_once()).await.merge.packs, 18);
        collected(&scene.store, at_once()).await;
        let usage = scene.store.pack_usage().unwrap();
        assert_eq!((usage.packs, usage.metadata_packs, usage.metadata_bytes), (4, 2, usage.bytes / 2));
        for number in 0..5 {
            scene.delete(&format!("host/{number}")).await;
        }
        collected(&scene.store, at_once()).await;
        // One or two of each class, by the order of copying.
        let usage = scene.store.pack_usage().unwrap();
        let of_data = usage.packs - usage.metadata_packs;
        assert!((1..=2).contains(&usage.metadata_packs) && (1..=2).contains(&of_data), "{usage}");
        assert_eq!(scene.chunks().await, digests((5..9).chain(1005..1009)));
        let again = scene.opened_as_new().await;
        assert_eq!(again.pack_usage(), Some(usage));
        assert_eq!(check_all(&again).await, 4);
    });
}

#[test]
fn an_adopted_pack_keeps_its_class() {
    in_both(async |scene| {
        scene.faults.add(
            Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable))
                .keys(|key| matches!(key, Key::Segment(_))),
        );
        let writer = scene.opened_as_new().await;
        assert!(back_up_both(&writer, 1).await.is_err());
        drop(writer);
        scene.faults.clear();
        let scene = Scene { store: scene.opened_as_new().await, ..scene };
        assert_eq!(scene.store.pack_usage().unwrap().packs, 0);
        scene.sim.sleep(Duration::from_hours(48)).await;
        drop(gc::plan(&scene.store, patient()).await.unwrap());
        let usage = scene.store.pack_usage().unwrap();
        assert_eq!((usage.packs, usage.metadata_packs), (2, 1));
    });
}

#[test]
fn a_chunk_that_data_and_metadata_use_is_stored_once() {
    in_both(async |scene| {
        let backup = scene.store.backup(&group("host/a")).begin().await.unwrap();
        backup.stream("catalog.pcat1", &data(&[1])[..]).await.unwrap();
        for name in ["a.bin", "root.mpxar"] {
            backup.stream(name, &data(&[1])[..]).await.unwrap();
        }
        drop(backup.finish().await.unwrap());
        let usage = scene.store.pack_usage().unwrap();
        assert_eq!((usage.packs, usage.metadata_packs), (1, 1));
    });
}

//! Verification of a store in a bucket, and what is possible without the permission to delete (H97, H181).

use futures::executor::block_on;
use larder::error::ErrorKind;
use larder::format::manifest::VerifyResult;
use larder::gc::{self, GcEnd, GcOptions};
use larder::prune::{self, PruneOptions};
use larder::store::{Datastore, Scope};
use larder::verify::{self, Incomplete, VerifyOptions, VerifyReport};
use larder_testing::fault_server::{Action, FaultServer, Options as ServerOptions, Rule};
use larder_testing::s3_store::{back_up, check_all, fresh, group, keys};

async fn verified(store: &Datastore) -> VerifyReport {
    verify::plan(store, &Scope::Store, VerifyOptions::default()).await.unwrap().execute().await.unwrap()
}

/// Proves H97.
#[test]
fn a_truncated_response_is_not_a_corrupt_chunk() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        drop(back_up(&process.store, &group(), 1).await.unwrap());
        let chunk = keys(&server, "/.chunks/").remove(0);
        let before = server.objects();
        for cut in [0, 300, 600, 5_000] {
            let cut_one = chunk.clone();
            server.add(
                Rule::on("GET").path(move |path| path.ends_with(&cut_one)).then(Action::CutResponseAt(cut)),
            );
            let report = verified(&process.store).await;
            server.clear();
            assert_eq!(report.incomplete, Some(Incomplete::Unreachable), "{cut}");
            assert_eq!(
                (report.chunks.corrupt, report.chunks.missing, report.quarantined),
                (0, 0, 0),
                "{cut}"
            );
            let chunks = |path: &&String| path.contains("/.chunks/");
            assert!(server.objects().keys().filter(chunks).eq(before.keys().filter(chunks)), "{cut}");
        }
        assert!(verified(&process.store).await.is_clean());
        process.close().await;
    });
}

/// Proves H181.
///
/// With credentials that may read and write, and delete nothing.
#[test]
fn credentials_without_delete_can_back_up_restore_and_verify() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let first = back_up(&process.store, &group(), 1).await.unwrap().name().clone();
        let denied = || Action::status(403, "AccessDenied");
        server.add(Rule::on("DELETE").then(denied()));
        server.add(Rule::on("POST").query(|query| query.starts_with("delete")).then(denied()));
        drop(back_up(&process.store, &group(), 2).await.unwrap());
        assert_eq!(check_all(&process.store, &group()).await.unwrap(), 2);
        assert!(verified(&process.store).await.is_clean());
        let manifest = process.store.snapshot(&first).await.unwrap().manifest().clone();
        assert_eq!(manifest.verify_state().unwrap().unwrap().state, VerifyResult::Ok);
        // Operations that need the right report it, and lose nothing.
        let scope = Scope::Snapshots(vec![first]);
        let report = prune::plan_deletion(&process.store, &scope, PruneOptions::default())
            .await
            .unwrap()
            .execute()
            .await
            .unwrap();
        assert_eq!((report.removed(), report.left()), (0, 1));
        let options = GcOptions::default().consistent_listings().grace(std::time::Duration::ZERO);
        assert!(matches!(
            gc::plan(&process.store, options).await.unwrap().execute().await.unwrap().end,
            GcEnd::Complete
        ));
        assert_eq!(check_all(&process.store, &group()).await.unwrap(), 2);
        server.clear();
        process.store.delete_group(&group()).await.unwrap();
        server.add(Rule::on("POST").query(|query| query.starts_with("delete")).then(denied()));
        server.add(Rule::on("DELETE").then(denied()));
        let options = GcOptions::default().consistent_listings().grace(std::time::Duration::ZERO);
        let mut plan = gc::plan(&process.store, options).await.unwrap().confirm();
        let garbage = plan.summary().garbage.chunks;
        let report = plan.execute().await.unwrap();
        let GcEnd::Stopped(error) = &report.end else { panic!("{:?}", report.end) };
        assert_eq!((error.kind(), report.removed.chunks), (ErrorKind::Denied, 0));
        assert_eq!(keys(&server, "/.chunks/").len() as u64, garbage);
        drop(plan);
        process.close().await;
    });
}

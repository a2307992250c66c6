//! Empty objects that consoles and tools make for folders are no part of a store.

use futures::executor::block_on;
use larder::backend::ListQuery;
use larder::format::layout::Prefix;
use larder::format::name::{GroupName, Namespace};
use larder::internal::listing::list_all;
use larder_testing::fault_server::{FaultServer, Options as ServerOptions};
use larder_testing::s3_store::{back_up, fresh, group, keys, view};

/// Makes a marker for each folder, as tools do that copy a bucket.
fn mark(server: &FaultServer) {
    for key in server.objects().into_keys() {
        for (at, _) in key.match_indices('/') {
            server.put(&key[..=at], "");
        }
    }
}

fn lists(server: &FaultServer) -> usize {
    server.log().iter().filter(|line| line.query.contains("list-type=2")).count()
}

#[test]
fn a_group_or_namespace_with_only_folder_markers_does_not_exist() {
    for page in [1000, 2] {
        let server = FaultServer::start(ServerOptions { page, ..ServerOptions::default() });
        block_on(async {
            let (root, space): (_, Namespace) = (Namespace::root(), "a".parse().unwrap());
            let inner: GroupName = "ns/a/host/x".parse().unwrap();
            let process = fresh(&server).await;
            let store = &process.store;
            store.create_namespace(&space).await.unwrap();
            for group in [&group(), &inner] {
                back_up(store, group, 1).await.unwrap();
                back_up(store, group, 2).await.unwrap();
            }
            let before = view(store).await;
            // Of others that are no more.
            for ghost in
                ["host/x/", "vm/1/2001-01-01T00:00:00Z/", "ns/old/", "ns/a/ns/old/ns/old/", "ns/a/ct/7/"]
            {
                server.put(&format!("store/.cnt/{ghost}file"), "");
            }
            mark(&server);
            for key in keys(&server, "/file") {
                server.remove(&key);
            }
            assert_eq!(view(store).await, before);
            assert_eq!(store.groups(&root).await.unwrap(), [group()]);
            assert!(!store.has_namespace(&"old".parse().unwrap()).await.unwrap());

            let newest = store.latest(&group()).await.unwrap().unwrap();
            store.delete_snapshot(&newest).await.unwrap();
            assert_eq!(keys(&server, &newest.to_string()), Vec::<String>::new());
            assert_eq!(store.snapshots(&group()).await.unwrap().len(), 1);
            store.delete_group(&group()).await.unwrap();
            assert_eq!(store.groups(&root).await.unwrap(), []);
            assert_eq!(keys(&server, &format!("/{}/", group())), Vec::<String>::new());
            let moved = store.move_namespace(&space, &"b".parse().unwrap()).await.unwrap();
            assert!(moved.is_complete() && moved.kept_namespaces.is_empty(), "{moved:?}");
            assert_eq!(store.child_namespaces(&root).await.unwrap(), ["b".parse().unwrap()]);
            assert_eq!(keys(&server, "/ns/a/"), Vec::<String>::new());
            process.close().await;
        });
    }
}

#[test]
fn without_markers_a_listing_of_groups_costs_one_request_for_each_type() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        for name in ["vm/1", "vm/2", "host/x"] {
            back_up(&process.store, &name.parse().unwrap(), 1).await.unwrap();
        }
        let since = lists(&server);
        assert_eq!(process.store.groups(&Namespace::root()).await.unwrap().len(), 3);
        assert_eq!(lists(&server) - since, 3);
        mark(&server);
        let since = lists(&server);
        assert_eq!(process.store.groups(&Namespace::root()).await.unwrap().len(), 3);
        assert_eq!(lists(&server) - since, 3 + 3, "each group is looked at");
        // An object that is not empty is no marker, whatever it is called.
        server.put("store/.cnt/vm/3/", "something");
        assert_eq!(process.store.groups(&Namespace::root()).await.unwrap().len(), 4);
        let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
        let listing = list_all(process.backend.as_ref(), &all).await.unwrap();
        let paths: Vec<_> = listing.entries().iter().map(larder::backend::ListEntry::path).collect();
        assert_eq!(paths.iter().filter(|path| path.ends_with('/')).collect::<Vec<_>>(), ["vm/3/"]);
        process.close().await;
    });
}

/// A PBS that brings its copy of the bucket up to date makes a directory of it, and fails in a group that has no owner.
#[test]
fn the_owner_stays_while_the_group_has_any_other_object() {
    for left in ["foreign.txt", "2001-01-01T00:00:00Z/foreign.txt"] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            let store = &process.store;
            back_up(store, &group(), 1).await.unwrap();
            let (left, owner) = (format!("store/.cnt/{}/{left}", group()), format!("{}/owner", group()));
            server.put(&left, "of somebody else");
            store.delete_group(&group()).await.unwrap();
            assert_eq!(store.snapshots(&group()).await.unwrap(), []);
            assert_eq!(keys(&server, &owner).len(), 1, "{left}");
            server.remove(&left);
            store.delete_group(&group()).await.unwrap();
            assert_eq!(keys(&server, &format!("/{}/", group())), Vec::<String>::new());
            process.close().await;
        });
    }
}

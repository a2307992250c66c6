//! Listings of servers that never come to an end.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use larder::backend::{Backend, Housekeeping as _, Removal, S3Backend};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::http::HttpClient;
use larder::internal::s3::Requests as _;
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Credentials, S3Capabilities, S3Client, S3Options, StaticCredentials};
use larder_testing::fault_server::{Action, FaultServer, Options, Rule};

fn client(server: &FaultServer) -> (Arc<dyn Runtime>, S3Client) {
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    let options = S3Options::new(server.url(), "bucket").credentials(credentials);
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    (Arc::clone(&runtime), S3Client::new(runtime, http, options).unwrap())
}

fn backend(runtime: Arc<dyn Runtime>, client: S3Client) -> S3Backend {
    S3Backend::new(runtime, client, "store", S3Capabilities::default(), &[]).unwrap()
}

fn page(text: String) -> Action {
    Action::Status { status: 200, code: "", headers: vec![], body: Some(text.into_bytes()) }
}

/// Proves H12: tokens that alternate.
#[test]
fn a_search_in_pages_that_repeat_ends() {
    let server = FaultServer::start(Options::default());
    let (runtime, client) = client(&server);
    let backend = backend(runtime, client);
    let marker = Key::Namespace("a".parse().unwrap());
    let listed = |next| {
        page(format!(
            "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>\
             <Contents><Key>store/.cnt/ns/a/</Key><Size>0</Size></Contents></ListBucketResult>"
        ))
    };
    server.add(Rule::list().query(|query| query.contains("continuation-token=one")).then(listed("two")));
    server.add(Rule::list().then(listed("one")));
    let deleted = block_on(backend.delete(&[Removal::any(marker)])).unwrap();
    assert_eq!(deleted[0].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Proves H118: markers that alternate.
#[test]
fn a_listing_of_uploads_that_repeats_ends() {
    let server = FaultServer::start(Options::default());
    let (_, client) = client(&server);
    let listed = |next| {
        page(format!(
            "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>\
             <NextUploadIdMarker>{next}</NextUploadIdMarker></ListMultipartUploadsResult>"
        ))
    };
    server.add(Rule::on("GET").query(|query| query.contains("upload-id-marker=one")).then(listed("two")));
    server.add(Rule::on("GET").then(listed("one")));
    assert_eq!(block_on(client.raw().open_uploads("")).unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Proves H118: uploads of packs and of the index are below `.larder`.
#[test]
fn stale_uploads_of_all_objects_of_a_store_are_aborted_and_no_others() {
    let server = FaultServer::start(Options::default());
    let (runtime, client) = client(&server);
    let backend = backend(runtime, client);
    let upload = |key: &str| {
        format!(
            "<Upload><Key>{key}</Key><UploadId>{}</UploadId><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>",
            key.len()
        )
    };
    let keys = ["store/.larder/packs/1c/x", "store/.larder/index/y", "other/.larder/packs/1c/x"];
    let uploads = keys.map(upload).concat();
    let listed = format!(
        "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{uploads}</ListMultipartUploadsResult>"
    );
    server.add(Rule::on("GET").query(|query| query.contains("uploads")).then(page(listed)));
    assert_eq!(block_on(backend.remove_leftovers(&[], Duration::from_hours(24))).unwrap(), 2);
    let log = server.log();
    let aborted: Vec<_> =
        log.iter().filter(|request| request.method == "DELETE").map(|request| &request.path).collect();
    assert!(aborted.len() == 2 && aborted.iter().all(|path| path.contains("/store/.larder/")), "{aborted:?}");
}

//! The order of the sources, and the errors of all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fake::{FakeTransport, KEYS, Log, Reply, ask, assumed, explain, parameters, serve};
use crate::error::ErrorKind;
use crate::rt::SimRuntime;
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{DefaultCredentials, Keeper};

const ENVIRONMENT: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "hidden")];

/// A host on which every source is configured.
struct Host {
    directory: tempfile::TempDir,
    metadata: Log,
    sim: SimRuntime,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "hidden.jwt").unwrap();
        let profile = "[default]\naws_access_key_id = PROFILE\naws_secret_access_key = hidden\n";
        std::fs::write(directory.path().join("profile"), profile).unwrap();
        let sim = SimRuntime::new(1);
        let metadata = serve(&sim, 80, |seen| {
            let name = if seen.header("host") == "169.254.170.2" { "CONTAINER" } else { "INSTANCE" };
            Reply::Answer(
                200,
                match seen.line.as_str() {
                    "PUT /latest/api/token" => "token".to_owned(),
                    "GET /latest/meta-data/iam/security-credentials/" => "role".to_owned(),
                    _ => KEYS.replace("ASIA", name),
                },
            )
        });
        Self { directory, metadata, sim }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn variables(&self) -> [Vec<(&'static str, String)>; 5] {
        let environment = ENVIRONMENT.map(|(name, value)| (name, value.to_owned()));
        [
            environment.to_vec(),
            vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", self.path("token")),
                ("AWS_ROLE_ARN", "arn:aws:iam::1:role/WEB".to_owned()),
            ],
            vec![
                ("AWS_CONFIG_FILE", self.path("none")),
                ("AWS_SHARED_CREDENTIALS_FILE", self.path("profile")),
            ],
            vec![("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x".to_owned())],
            vec![],
        ]
    }
}

fn transport() -> Arc<FakeTransport> {
    FakeTransport::new(|request| Some(assumed(&parameters(request)["Action"], "WEB", "01:00:00")))
}

fn borrowed<'a>(variables: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[test]
fn the_first_source_that_is_configured_answers() {
    let host = Host::new();
    let sources = ["ENV", "WEB", "PROFILE", "CONTAINER", "INSTANCE"];
    for (first, expected) in sources.iter().enumerate() {
        let variables: Vec<_> = host.variables().into_iter().skip(first).flatten().collect();
        let chain = DefaultCredentials::of(transport(), &Variables::of(&borrowed(&variables)));
        assert_eq!(ask(&host.sim, &chain).unwrap(), *expected);
        let name = ["environment", "web identity", "profile", "container", "instance"][first];
        assert!(format!("{chain:?}").contains(name), "{chain:?}");
        assert_eq!(ask(&host.sim, &chain.clone()).unwrap(), *expected);
    }
}

#[test]
fn a_source_that_is_configured_and_fails_ends_the_search() {
    let host = Host::new();
    let with = |first: usize, change: &[(&'static str, &str)]| {
        let mut variables: Vec<_> = host.variables().into_iter().skip(first).flatten().collect();
        variables.retain(|(name, _)| change.iter().all(|(changed, _)| changed != name));
        variables.extend(change.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let chain =
            DefaultCredentials::of(FakeTransport::new(|_| None), &Variables::of(&borrowed(&variables)));
        let error = ask(&host.sim, &chain).unwrap_err();
        assert!(host.metadata.lock().unwrap().is_empty());
        (error.kind(), explain(&error))
    };
    for (first, change, kind, words) in [
        (0, &[("AWS_SECRET_ACCESS_KEY", "")][..], ErrorKind::Denied, "AWS_SECRET_ACCESS_KEY is not set"),
        (1, &[], ErrorKind::Unavailable, "the source web identity"),
        (1, &[("AWS_ROLE_ARN", "")], ErrorKind::Denied, "AWS_ROLE_ARN is not"),
        (2, &[("AWS_PROFILE", "typo")], ErrorKind::Denied, "typo"),
        (3, &[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "x")], ErrorKind::InvalidInput, "slash"),
    ] {
        let (found, text) = with(first, change);
        assert_eq!(found, kind, "{text}");
        assert!(text.contains(words), "{text}");
        assert_eq!(text.contains("environment: AWS_ACCESS_KEY_ID is not set"), first > 0, "{text}");
    }
}

#[test]
fn the_error_lists_the_reason_of_each_source() {
    let sim = SimRuntime::new(1);
    let directory = tempfile::tempdir().unwrap();
    let home = [("HOME", directory.path().to_str().unwrap())];
    let chain = DefaultCredentials::of(FakeTransport::unused(), &Variables::of(&home));
    let error = ask(&sim, &chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = explain(&error);
    for reason in [
        "environment: AWS_ACCESS_KEY_ID is not set",
        "web identity: AWS_WEB_IDENTITY_TOKEN_FILE is not set",
        "profile: neither ",
        "container: neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor",
        "instance: no metadata service answers at 169.254.169.254",
    ] {
        assert!(text.contains(reason), "{text}");
    }
    let error = sim.block_on(Keeper::new(Arc::new(chain)).current(&sim)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "a client must not claim that an object is missing");
    assert!(explain(&error).contains("environment: AWS_ACCESS_KEY_ID is not set"), "{}", explain(&error));
}

#[test]
fn the_source_that_answered_is_asked_again_and_no_other() {
    let sim = SimRuntime::new(1);
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&is_gone);
    let log = serve(&sim, 80, move |seen| match seen.line.as_str() {
        _ if gone.load(Ordering::Relaxed) => Reply::Silence,
        "PUT /latest/api/token" => Reply::Answer(200, "token".to_owned()),
        "GET /latest/meta-data/iam/security-credentials/" => Reply::Answer(200, "role".to_owned()),
        _ => Reply::Answer(200, KEYS.to_owned()),
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("profile");
    let variables = [("AWS_CONFIG_FILE", file.to_str().unwrap()), ("AWS_SHARED_CREDENTIALS_FILE", "/none")];
    let chain = DefaultCredentials::of(FakeTransport::unused(), &Variables::of(&variables));
    assert_eq!(ask(&sim, &chain).unwrap(), "ASIA");
    std::fs::write(&file, "[default]\naws_access_key_id = PROFILE\naws_secret_access_key = hidden\n")
        .unwrap();
    assert_eq!(ask(&sim, &chain).unwrap(), "ASIA", "another identity does not take over");
    assert_eq!(log.lock().unwrap().len(), 6);
    is_gone.store(true, Ordering::Relaxed);
    let error = ask(&sim, &chain).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "it was there, so it may come back: {}",
        explain(&error)
    );
}

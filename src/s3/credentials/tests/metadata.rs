//! The metadata services of instances and containers.

use std::sync::Mutex;
use std::time::Duration;

use super::fake::{FakeTransport, KEYS, Reply, Seen, ask, explain, response, serve};
use crate::error::ErrorKind;
use crate::rt::{Runtime as _, SimRuntime};
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{ContainerCredentials, CredentialProvider as _, InstanceCredentials};

const ROLES: &str = "GET /latest/meta-data/iam/security-credentials/";
const ROLE: &str = "GET /latest/meta-data/iam/security-credentials/role%40x";

fn instance(variables: &[(&str, &str)]) -> InstanceCredentials {
    InstanceCredentials::new().with_variables(Variables::of(variables))
}

/// A metadata service of an instance, except for some answers.
fn imds(other: impl Fn(&Seen) -> Option<Reply>) -> impl Fn(&Seen) -> Reply {
    move |seen| {
        other(seen).unwrap_or_else(|| match seen.line.as_str() {
            "PUT /latest/api/token" => {
                assert_eq!(seen.header("x-aws-ec2-metadata-token-ttl-seconds"), "300");
                Reply::Answer(200, "hidden-token".to_owned())
            }
            _ if seen.header("x-aws-ec2-metadata-token") != "hidden-token" => {
                Reply::Answer(401, String::new())
            }
            ROLES => Reply::Answer(200, "role@x\n".to_owned()),
            ROLE => Reply::Answer(200, KEYS.to_owned()),
            other => panic!("{other}"),
        })
    }
}

#[test]
fn an_instance_gets_the_keys_of_its_role() {
    let sim = SimRuntime::new(1);
    let log = serve(&sim, 80, imds(|_| None));
    assert_eq!(ask(&sim, &instance(&[])).unwrap(), "ASIA");
    let credentials = sim.block_on(instance(&[]).credentials(&sim)).unwrap();
    assert_eq!(credentials.secret_access_key.as_str(), "hidden-1");
    assert_eq!(credentials.session_token.unwrap().as_str(), "hidden-2");
    assert_eq!(credentials.expires.unwrap(), sim.now() + Duration::from_hours(6) - sim.monotonic());
    let log = log.lock().unwrap();
    let lines: Vec<_> = log.iter().take(3).map(|seen| seen.line.as_str()).collect();
    assert_eq!(lines, ["PUT /latest/api/token", ROLES, ROLE]);
    assert!(log.iter().all(|seen| seen.header("host") == "169.254.169.254"));
}

#[test]
fn an_expired_metadata_token_is_replaced_once() {
    let sim = SimRuntime::new(1);
    let number = Mutex::new(0);
    let log = serve(&sim, 80, move |seen| {
        let mut number = number.lock().unwrap();
        match seen.line.as_str() {
            "PUT /latest/api/token" => {
                *number += 1;
                Reply::Answer(200, format!("hidden-{number}"))
            }
            // The token that was valid for the list is not any more.
            ROLE if seen.header("x-aws-ec2-metadata-token") == "hidden-1" => {
                Reply::Answer(401, String::new())
            }
            ROLES => Reply::Answer(200, "role@x".to_owned()),
            _ => Reply::Answer(200, KEYS.to_owned()),
        }
    });
    assert_eq!(ask(&sim, &instance(&[])).unwrap(), "ASIA");
    assert_eq!(log.lock().unwrap().len(), 5);
    let sim = SimRuntime::new(1);
    let refusing = serve(&sim, 80, |seen| match seen.line.as_str() {
        "PUT /latest/api/token" => Reply::Answer(200, "hidden".to_owned()),
        _ => Reply::Answer(401, String::new()),
    });
    assert_eq!(ask(&sim, &instance(&[])).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(refusing.lock().unwrap().len(), 4);
}

#[test]
fn a_host_without_metadata_service_is_recognised_quickly() {
    let absent = |sim: &SimRuntime, variables: &[(&str, &str)], words: &str| {
        let error = ask(sim, &instance(variables)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", explain(&error));
        assert!(explain(&error).contains(words), "{}", explain(&error));
        assert!(sim.monotonic() <= Duration::from_secs(3), "{:?}", sim.monotonic());
    };
    absent(&SimRuntime::new(1), &[], "no metadata service answers at 169.254.169.254");
    absent(&SimRuntime::new(1), &[("AWS_EC2_METADATA_DISABLED", "TRUE")], "AWS_EC2_METADATA_DISABLED is set");
    let silent = SimRuntime::new(1);
    let log = serve(&silent, 80, |_| Reply::Silence);
    absent(&silent, &[], "hop limit");
    assert_eq!(log.lock().unwrap().len(), 2);
    for (status, words) in
        [(403, "status 403"), (404, "status 404"), (405, "status 405"), (400, "status 400")]
    {
        let sim = SimRuntime::new(1);
        serve(&sim, 80, move |_| Reply::Answer(status, "<html>".to_owned()));
        absent(&sim, &[], words);
    }
    for (status, list) in [(404, "<html>"), (200, ""), (200, " \n")] {
        let sim = SimRuntime::new(1);
        let list = move |seen: &Seen| (seen.line == ROLES).then(|| Reply::Answer(status, list.to_owned()));
        serve(&sim, 80, imds(list));
        absent(&sim, &[], "the instance has no role");
    }
}

#[test]
fn a_named_metadata_service_must_answer() {
    let named = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9911/base")];
    let sim = SimRuntime::new(1);
    assert_eq!(ask(&sim, &instance(&named)).unwrap_err().kind(), ErrorKind::Unavailable);
    let log = serve(&sim, 9911, |_| Reply::Answer(404, String::new()));
    assert_eq!(ask(&sim, &instance(&named)).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(log.lock().unwrap()[0].line, "PUT /base/latest/api/token");
    for wrong in ["http://10.0.0.1", "http://metadata.example.com", "https://169.254.169.254", "ftp://x"] {
        let error = ask(&sim, &instance(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", wrong)])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}");
    }
    let log = serve(&sim, 80, imds(|_| None));
    let mode = [("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")];
    assert_eq!(ask(&sim, &instance(&mode)).unwrap(), "ASIA");
    assert_eq!(log.lock().unwrap()[0].header("host"), "[fd00:ec2::254]");
}

#[test]
fn failures_and_malformed_answers_of_an_instance_are_errors() {
    let long = "x".repeat(1 << 20);
    for (status, body, kind) in [
        (500, "", ErrorKind::Unavailable),
        (429, "", ErrorKind::Unavailable),
        (403, "<html>", ErrorKind::Denied),
        (302, "", ErrorKind::Denied),
        (200, "", ErrorKind::Unavailable),
        (200, "hidden", ErrorKind::Unavailable),
        (200, "[]", ErrorKind::Unavailable),
        (200, r#"{"Code":"Success"}"#, ErrorKind::Unavailable),
        (200, r#"{"AccessKeyId":"A","SecretAccessKey":["hidden"]}"#, ErrorKind::Unavailable),
        (
            200,
            r#"{"AccessKeyId":"A","SecretAccessKey":"hidden","Expiration":"soon"}"#,
            ErrorKind::Unavailable,
        ),
        (200, r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"no\nhidden"}"#, ErrorKind::Denied),
        (200, long.as_str(), ErrorKind::Unavailable),
    ] {
        let sim = SimRuntime::new(1);
        let body = body.to_owned();
        serve(&sim, 80, imds(move |seen| (seen.line == ROLE).then(|| Reply::Answer(status, body.clone()))));
        let error = ask(&sim, &instance(&[])).unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {}", explain(&error));
    }
    let sim = SimRuntime::new(1);
    serve(&sim, 80, imds(|seen| (seen.line == ROLE).then_some(Reply::Silence)));
    assert_eq!(ask(&sim, &instance(&[])).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(sim.monotonic() <= Duration::from_secs(4));
    for token in ["", "two words", "a\u{e9}"] {
        let sim = SimRuntime::new(1);
        serve(
            &sim,
            80,
            imds(move |seen| seen.line.starts_with("PUT").then(|| Reply::Answer(200, token.to_owned()))),
        );
        assert_eq!(ask(&sim, &instance(&[])).unwrap_err().kind(), ErrorKind::Unavailable, "{token:?}");
    }
}

fn container(variables: &[(&str, &str)]) -> ContainerCredentials {
    ContainerCredentials::new(FakeTransport::unused()).with_variables(Variables::of(variables))
}

const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

#[test]
fn a_container_gets_keys_from_the_service_of_the_environment() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("token");
    std::fs::write(&file, "hidden-file\n").unwrap();
    let file = file.to_str().unwrap();
    for (variables, port, line, host, token) in [
        (&[(RELATIVE, "/v2/a?b=c")][..], 80, "GET /v2/a?b=c", "169.254.170.2", ""),
        (&[(RELATIVE, "/r"), (FULL, "http://x"), (TOKEN, "hidden")], 80, "GET /r", "169.254.170.2", "hidden"),
        (&[(FULL, "http://127.0.0.1:51679/a/b")], 51679, "GET /a/b", "127.0.0.1:51679", ""),
        (&[(FULL, "http://localhost:1"), (TOKEN, "Basic hidden")], 1, "GET /", "localhost:1", "Basic hidden"),
        (
            &[(FULL, "http://169.254.170.23/v1/credentials"), (TOKEN_FILE, file), (TOKEN, "other")],
            80,
            "GET /v1/credentials",
            "169.254.170.23",
            "hidden-file",
        ),
        (&[(FULL, "http://[fd00:ec2::23]?x")], 80, "GET /?x", "[fd00:ec2::23]", ""),
    ] {
        let sim = SimRuntime::new(1);
        let log = serve(&sim, port, |_| Reply::Answer(200, KEYS.to_owned()));
        assert_eq!(ask(&sim, &container(variables)).unwrap(), "ASIA");
        let log = log.lock().unwrap();
        assert_eq!((log[0].line.as_str(), log[0].header("host")), (line, host));
        assert_eq!(log[0].header("authorization"), token);
    }
}

#[test]
fn another_container_service_needs_https() {
    let sim = SimRuntime::new(1);
    for (variables, kind) in [
        (&[(FULL, "http://10.0.0.1/")][..], ErrorKind::InvalidInput),
        (&[(FULL, "http://169.254.169.254/")], ErrorKind::InvalidInput),
        (&[(FULL, "http://service.example.com/")], ErrorKind::InvalidInput),
        (&[(FULL, "service.example.com")], ErrorKind::InvalidInput),
        (&[(FULL, "https://user:hidden@example.com")], ErrorKind::InvalidInput),
        (&[(FULL, "http://127.0.0.1/a b")], ErrorKind::InvalidInput),
        (&[(RELATIVE, "@example.com/")], ErrorKind::InvalidInput),
        (&[(RELATIVE, "/a"), (TOKEN, "hidden\r\nx: y")], ErrorKind::InvalidInput),
        (&[(RELATIVE, "/a"), (TOKEN_FILE, "/no/such/file")], ErrorKind::Denied),
        (&[(TOKEN, "hidden")], ErrorKind::NotFound),
    ] {
        let error = ask(&sim, &container(variables)).unwrap_err();
        assert_eq!(error.kind(), kind, "{variables:?}: {}", explain(&error));
    }
    let transport = FakeTransport::new(|_| Some(response(200, &[], KEYS)));
    let https = Variables::of(&[(FULL, "https://service.example.com/a?b"), (TOKEN, "hidden")]);
    let provider = ContainerCredentials::new(transport.clone()).with_variables(https);
    assert_eq!(ask(&sim, &provider).unwrap(), "ASIA");
    let seen = transport.seen.lock().unwrap();
    assert_eq!(
        (seen[0].endpoint.authority().as_str(), seen[0].target.as_str()),
        ("service.example.com", "/a?b")
    );
}

#[test]
fn failures_of_a_container_service_are_errors() {
    for (reply, kind) in [
        (Reply::Answer(503, String::new()), ErrorKind::Unavailable),
        (Reply::Answer(404, r#"{"code":"NoIdMatch","message":"no"}"#.to_owned()), ErrorKind::Denied),
        (Reply::Answer(200, "{".to_owned()), ErrorKind::Unavailable),
        (Reply::Silence, ErrorKind::Unavailable),
    ] {
        let sim = SimRuntime::new(1);
        let reply = Mutex::new(Some(reply));
        serve(&sim, 80, move |_| reply.lock().unwrap().take().unwrap());
        let error = ask(&sim, &container(&[(RELATIVE, "/a")])).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", explain(&error));
        assert!(sim.monotonic() <= Duration::from_secs(15));
    }
    let error = ask(&SimRuntime::new(1), &container(&[(RELATIVE, "/a")])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "it is configured");
}

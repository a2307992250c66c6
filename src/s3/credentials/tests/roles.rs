//! Roles, assumed at the Security Token Service.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::fake::{FakeTransport, ask, assumed, explain, parameters, response};
use crate::error::{Error, ErrorKind};
use crate::http::{Header, Request, Response};
use crate::rt::{Runtime as _, SimRuntime};
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{
    AssumeRoleCredentials, CredentialProvider as _, Credentials, StaticCredentials, WebIdentityCredentials,
};

const ARN: &str = "arn:aws:iam::123456789012:role/backup";

/// The role, in an environment.
fn assume(transport: Arc<FakeTransport>, variables: &[(&str, &str)]) -> AssumeRoleCredentials {
    let credentials = Credentials::new("AKIA", "hidden-secret").session_token("hidden-token");
    let source = Arc::new(StaticCredentials::new(credentials));
    let mut provider = AssumeRoleCredentials::new(transport, source, ARN);
    provider.sts.variables = Variables::of(variables);
    provider
}

/// The authorization header of a request, computed from the published rules and from nothing of this crate.
fn expected_authorization(request: &Request, scope: &str, secret: &str) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let mac = |key: &[u8], text: &str| {
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.chain_update(text.as_bytes()).finalize().into_bytes().to_vec()
    };
    let names = ["content-type", "host", "x-amz-date", "x-amz-security-token"];
    let value = |name: &str| &request.headers.iter().find(|header| header.name == name).unwrap().value;
    let headers: Vec<_> = names.iter().map(|name| format!("{name}:{}\n", value(name))).collect();
    let headers = headers.concat();
    let (names, hash) = (names.join(";"), hex(&Sha256::digest(&request.body)));
    let canonical = format!("{}\n{}\n\n{headers}\n{names}\n{hash}", request.method, request.target);
    let date = value("x-amz-date");
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let start = format!("AWS4{secret}").into_bytes();
    let key = scope.split('/').fold(start, |key, part| mac(&key, part));
    let signature = hex(&mac(&key, &text));
    format!("AWS4-HMAC-SHA256 Credential=AKIA/{scope},SignedHeaders={names},Signature={signature}")
}

#[test]
fn a_role_is_assumed_by_a_signed_request() {
    let sim = SimRuntime::new(1);
    let transport = FakeTransport::new(|_| Some(assumed("AssumeRole", "ROLE", "02:00:00")));
    let provider = assume(transport.clone(), &[("AWS_REGION", "eu-central-1")])
        .external_id("id & more")
        .duration(Duration::from_millis(900_500))
        .session_name("nightly");
    let credentials = sim.block_on(provider.credentials(&sim)).unwrap();
    assert_eq!(credentials.access_key_id, "ROLE");
    assert_eq!(credentials.secret_access_key.as_str(), "hidden-ROLE");
    assert_eq!(credentials.session_token.unwrap().as_str(), "hidden-token-ROLE");
    assert_eq!(credentials.expires.unwrap(), sim.now() + Duration::from_hours(2));
    let seen = transport.seen.lock().unwrap();
    let [request] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(request.endpoint.authority(), "sts.eu-central-1.amazonaws.com");
    assert_eq!((request.method, request.target.as_str()), ("POST", "/"));
    let expected = [
        ("Action", "AssumeRole"),
        ("DurationSeconds", "900"),
        ("ExternalId", "id & more"),
        ("RoleArn", ARN),
        ("RoleSessionName", "nightly"),
        ("Version", "2011-06-15"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(parameters(request), expected.into());
    let authorization = request.headers.iter().find(|header| header.name == "authorization").unwrap();
    let scope = "20250101/eu-central-1/sts/aws4_request";
    assert_eq!(authorization.value, expected_authorization(request, scope, "hidden-secret"));
}

#[test]
fn a_token_is_exchanged_for_the_keys_of_a_role() {
    let sim = SimRuntime::new(1);
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("token");
    std::fs::write(&file, "hidden.jwt\n").unwrap();
    let transport = FakeTransport::new(|_| Some(assumed("AssumeRoleWithWebIdentity", "WEB", "01:00:00")));
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
        ("AWS_ROLE_ARN", ARN),
        ("AWS_ROLE_SESSION_NAME", "pod"),
    ];
    let provider = WebIdentityCredentials::from_environment(transport.clone());
    assert_eq!(ask(&sim, &provider.with_variables(Variables::of(&variables))).unwrap(), "WEB");
    let given =
        WebIdentityCredentials::new(transport.clone(), &file, ARN).endpoint("https://sts.example.com/base");
    std::fs::write(&file, "hidden.other").unwrap();
    assert_eq!(ask(&sim, &given.with_variables(Variables::of(&[]))).unwrap(), "WEB");
    let seen = transport.seen.lock().unwrap();
    assert_eq!(seen[0].endpoint.authority(), "sts.amazonaws.com");
    assert_eq!(
        (seen[1].endpoint.authority().as_str(), seen[1].target.as_str()),
        ("sts.example.com", "/base/")
    );
    assert!(seen.iter().all(|request| request.headers.iter().all(|header| header.name != "authorization")));
    let (first, second) = (parameters(&seen[0]), parameters(&seen[1]));
    assert_eq!(first["Action"], "AssumeRoleWithWebIdentity");
    assert_eq!(
        (first["WebIdentityToken"].as_str(), first["RoleSessionName"].as_str()),
        ("hidden.jwt", "pod")
    );
    assert_eq!((first["RoleArn"].as_str(), first["Version"].as_str()), (ARN, "2011-06-15"));
    assert_eq!(second["WebIdentityToken"], "hidden.other", "the file is read for each call");
    assert_eq!(second["RoleSessionName"], "larder-1735689600000");
}

#[test]
fn a_web_identity_that_is_configured_must_work() {
    let sim = SimRuntime::new(1);
    let scratch = tempfile::tempdir().unwrap();
    let (file, empty) = (scratch.path().join("missing"), scratch.path().join("empty"));
    std::fs::write(&empty, " \n").unwrap();
    let (file, empty) = (file.to_str().unwrap(), empty.to_str().unwrap());
    let token_file = "AWS_WEB_IDENTITY_TOKEN_FILE";
    for (variables, kind, words) in [
        (&[][..], ErrorKind::NotFound, "AWS_WEB_IDENTITY_TOKEN_FILE is not set"),
        (&[("AWS_ROLE_ARN", ARN)], ErrorKind::NotFound, "AWS_WEB_IDENTITY_TOKEN_FILE is not set"),
        (&[(token_file, file)], ErrorKind::Denied, "AWS_ROLE_ARN is not"),
        (&[(token_file, file), ("AWS_ROLE_ARN", ARN)], ErrorKind::Denied, "the file does not exist"),
        (&[(token_file, empty), ("AWS_ROLE_ARN", ARN)], ErrorKind::Denied, "the file is empty"),
    ] {
        let provider = WebIdentityCredentials::from_environment(FakeTransport::unused());
        let error = ask(&sim, &provider.with_variables(Variables::of(variables))).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", explain(&error));
        assert!(explain(&error).contains(words), "{}", explain(&error));
    }
}

#[test]
fn the_service_is_that_of_the_region_unless_another_is_named() {
    let region = ("AWS_REGION", "us-gov-west-1");
    for (variables, authority, scope) in [
        (&[][..], "sts.amazonaws.com", "us-east-1"),
        (&[region, ("AWS_DEFAULT_REGION", "x")], "sts.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        (&[("AWS_DEFAULT_REGION", "cn-north-1")], "sts.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        (&[("AWS_REGION", "us-iso-east-1")], "sts.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        (&[("AWS_REGION", "us-isob-east-1")], "sts.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
        (&[("AWS_REGION", "eusc-de-east-1")], "sts.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        (
            &[region, ("AWS_ENDPOINT_URL", "https://s.example.com:9000")],
            "s.example.com:9000",
            "us-gov-west-1",
        ),
        (
            &[
                ("AWS_ENDPOINT_URL_STS", "https://sts.example.com"),
                ("AWS_ENDPOINT_URL", "https://s.example.com"),
            ],
            "sts.example.com",
            "us-east-1",
        ),
    ] {
        let transport = FakeTransport::new(|_| Some(assumed("AssumeRole", "ROLE", "02:00:00")));
        assert_eq!(ask(&SimRuntime::new(1), &assume(transport.clone(), variables)).unwrap(), "ROLE");
        let seen = transport.seen.lock().unwrap();
        assert_eq!(seen[0].endpoint.authority(), authority);
        let authorization = seen[0].headers.iter().find(|header| header.name == "authorization").unwrap();
        assert!(authorization.value.contains(&format!("/{scope}/sts/")), "{}", authorization.value);
    }
    let provider = assume(FakeTransport::unused(), &[("AWS_REGION", "evil.example.com/")]);
    assert_eq!(ask(&SimRuntime::new(1), &provider).unwrap_err().kind(), ErrorKind::InvalidInput);
    let provider = assume(FakeTransport::unused(), &[]).endpoint("https://user:hidden@example.com");
    assert_eq!(ask(&SimRuntime::new(1), &provider).unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn refused(status: u16, code: &str, message: &str) -> Response {
    let body = format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>");
    response(status, &[("x-amzn-requestid", "id-7")], format!("<ErrorResponse>{body}</ErrorResponse>"))
}

fn refusal(answer: impl Fn() -> Option<Response> + Send + Sync + 'static) -> Error {
    ask(&SimRuntime::new(1), &assume(FakeTransport::new(move |_| answer()), &[])).unwrap_err()
}

#[test]
fn refusals_and_failures_of_the_token_service_are_told_apart() {
    for (status, code, kind) in [
        (403, "AccessDenied", ErrorKind::Denied),
        (400, "ValidationError", ErrorKind::Denied),
        (400, "IDPCommunicationError", ErrorKind::Unavailable),
        (400, "Throttling", ErrorKind::Unavailable),
        (503, "ServiceUnavailable", ErrorKind::Unavailable),
        (500, "", ErrorKind::Unavailable),
    ] {
        let error = refusal(move || Some(refused(status, code, "who are you?")));
        assert_eq!(error.kind(), kind, "{code}");
        let text = explain(&error);
        assert!(text.contains(ARN) && text.contains(code) && text.contains("id-7"), "{text}");
    }
    for body in ["", "<html>", "<AssumeRoleResponse/>", "{}"] {
        assert_eq!(refusal(move || Some(response(200, &[], body))).kind(), ErrorKind::Unavailable, "{body}");
    }
    let error = refusal(|| None);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(explain(&error).contains("sts.amazonaws.com"), "{}", explain(&error));
}

#[test]
fn a_refused_signature_shows_no_token() {
    let message = "The signature does not match.\n\nThe Canonical String should have been\n'POST\n/\n\nx-amz-security-token:hidden-token";
    let error = refusal(move || Some(refused(403, "SignatureDoesNotMatch", message)));
    assert!(explain(&error).contains("The signature does not match."), "{}", explain(&error));
}

#[test]
fn a_request_of_a_wrong_clock_is_signed_again_with_the_time_of_the_service() {
    let sim = SimRuntime::new(1);
    sim.set_clock_forward(Duration::from_hours(3));
    let transport = FakeTransport::new(|request| {
        let date = request.headers.iter().find(|header| header.name == "x-amz-date").unwrap();
        if date.value == "20250101T000000Z" {
            return Some(assumed("AssumeRole", "ROLE", "02:00:00"));
        }
        let mut refused = refused(403, "SignatureDoesNotMatch", "Signature not yet current");
        let date = "Wed, 01 Jan 2025 00:00:00 GMT".to_owned();
        refused.headers = vec![Header { name: "date".into(), value: date }];
        Some(refused)
    });
    assert_eq!(ask(&sim, &assume(transport.clone(), &[])).unwrap(), "ROLE");
    assert_eq!(transport.seen.lock().unwrap().len(), 2);
}

#[test]
fn faulty_credentials_of_the_source_are_not_sent() {
    let source = Arc::new(StaticCredentials::new(Credentials::new("AKIA\n", "hidden")));
    let provider = AssumeRoleCredentials::new(FakeTransport::unused(), source, ARN);
    assert_eq!(ask(&SimRuntime::new(1), &provider).unwrap_err().kind(), ErrorKind::InvalidInput);
    let absent = WebIdentityCredentials::from_environment(FakeTransport::unused());
    let absent = Arc::new(absent.with_variables(Variables::of(&[])));
    let provider = AssumeRoleCredentials::new(FakeTransport::unused(), absent, ARN);
    let error = ask(&SimRuntime::new(1), &provider).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "the source was given, so it must be there");
    assert!(explain(&error).contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "{}", explain(&error));
}

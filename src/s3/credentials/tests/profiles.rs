//! Profiles in shared files.

use std::path::Path;
use std::sync::Arc;

use super::fake::{FakeTransport, KEYS, Reply, ask, assumed, explain, parameters, serve};
use crate::error::ErrorKind;
use crate::rt::SimRuntime;
use crate::s3::credentials::ProfileCredentials;
use crate::s3::credentials::variables::Variables;

/// Profiles in the home directory of an environment.
struct Home {
    directory: tempfile::TempDir,
    transport: Arc<FakeTransport>,
}

impl Home {
    fn new(config: Option<&str>, credentials: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".aws")).unwrap();
        for (name, text) in [("config", config), ("credentials", credentials)] {
            if let Some(text) = text {
                std::fs::write(directory.path().join(".aws").join(name), text).unwrap();
            }
        }
        let transport = FakeTransport::new(|request| {
            let parameters = parameters(request);
            let role = parameters["RoleArn"].rsplit('/').next().unwrap().to_owned();
            Some(assumed(&parameters["Action"], &role, "01:00:00"))
        });
        Self { directory, transport }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn provider(&self, variables: &[(&str, &str)]) -> ProfileCredentials {
        let home = [("HOME", self.path().to_str().unwrap())];
        let variables: Vec<_> = home.iter().chain(variables).copied().collect();
        ProfileCredentials::new(self.transport.clone()).with_variables(Variables::of(&variables))
    }

    fn ask(&self, variables: &[(&str, &str)]) -> Result<String, ErrorKind> {
        ask(&SimRuntime::new(1), &self.provider(variables)).map_err(|error| error.kind())
    }
}

#[test]
fn a_named_profile_is_found_among_others() {
    let text = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=hidden=C\n\n[ other ]\nregion = x\n\
                aws_access_key_id=D\naws_secret_access_key=hidden\naws_session_token = hidden\n[empty]\n";
    let home = Home::new(None, Some(text));
    assert_eq!(home.ask(&[]).unwrap(), "A");
    assert_eq!(home.ask(&[("AWS_PROFILE", "other")]).unwrap(), "D");
    assert_eq!(
        home.ask(&[("AWS_PROFILE", "empty")]),
        Err(ErrorKind::NotFound),
        "it is there, without credentials"
    );
    assert_eq!(home.ask(&[("AWS_PROFILE", "missing")]), Err(ErrorKind::Denied));
    let sim = SimRuntime::new(1);
    assert_eq!(ask(&sim, &home.provider(&[("AWS_PROFILE", "missing")]).profile("other")).unwrap(), "D");
    assert_eq!(ask(&sim, &home.provider(&[]).profile("missing")).unwrap_err().kind(), ErrorKind::Denied);
}

#[test]
fn both_files_make_a_profile_and_credentials_take_precedence() {
    let config =
        "[profile p]\naws_access_key_id = OLD\naws_secret_access_key = hidden\n[default]\nregion = x\n";
    let home = Home::new(Some(config), Some("[p]\naws_access_key_id = NEW\n"));
    assert_eq!(home.ask(&[("AWS_PROFILE", "p")]).unwrap(), "NEW");
    assert_eq!(home.ask(&[]), Err(ErrorKind::NotFound), "the default profile has a region only");
    let other = Home::new(Some("[default]\naws_access_key_id = A\naws_secret_access_key = hidden\n"), None);
    assert_eq!(other.ask(&[]).unwrap(), "A");
    let file = other.path().join(".aws/config");
    assert_eq!(home.ask(&[("AWS_CONFIG_FILE", file.to_str().unwrap())]).unwrap(), "A");
    assert_eq!(other.ask(&[("AWS_CONFIG_FILE", "/no/such/file")]), Err(ErrorKind::NotFound));
    assert_eq!(other.ask(&[("AWS_CONFIG_FILE", "~/.aws/config")]).unwrap(), "A");
    let files = home.provider(&[]).files(file, "/no/such/file");
    assert_eq!(ask(&SimRuntime::new(1), &files).unwrap(), "A");
    let homeless = ProfileCredentials::new(FakeTransport::unused()).with_variables(Variables::of(&[]));
    assert_eq!(ask(&SimRuntime::new(1), &homeless).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn roles_of_profiles_are_assumed_one_after_the_other() {
    let config = "[profile a]\nrole_arn = arn:aws:iam::1:role/A\nsource_profile = b\nexternal_id = e\nduration_seconds = 1800\n\
                  role_session_name = s\nregion = eu-west-1\n\
                  [profile b]\nrole_arn = arn:aws:iam::1:role/B\nsource_profile = b\n\
                  [profile e]\nrole_arn = arn:aws:iam::1:role/E\ncredential_source = Environment\n\
                  [profile i]\nrole_arn = arn:aws:iam::1:role/I\ncredential_source = Ec2InstanceMetadata\n\
                  [profile c]\nrole_arn = arn:aws:iam::1:role/C\ncredential_source = EcsContainer\n\
                  [profile w]\nrole_arn = arn:aws:iam::1:role/W\nweb_identity_token_file = ~/token\nrole_session_name = pod\n\
                  [profile x]\nrole_arn = arn:aws:iam::1:role/X\nsource_profile = w\n";
    let home =
        Home::new(Some(config), Some("[b]\naws_access_key_id = KEY\naws_secret_access_key = hidden\n"));
    std::fs::write(home.path().join("token"), "hidden.jwt").unwrap();
    assert_eq!(home.ask(&[("AWS_PROFILE", "a")]).unwrap(), "A");
    let seen: Vec<_> = home.transport.seen.lock().unwrap().drain(..).collect();
    assert_eq!(seen.len(), 2);
    let signer = |at: usize| {
        let header = seen[at].headers.iter().find(|header| header.name == "authorization").unwrap();
        header.value.split_once("Credential=").unwrap().1.split('/').next().unwrap().to_owned()
    };
    assert_eq!((signer(0).as_str(), signer(1).as_str()), ("KEY", "B"));
    assert!(seen.iter().all(|request| request.endpoint.authority() == "sts.eu-west-1.amazonaws.com"));
    let last = parameters(&seen[1]);
    for (name, value) in [("ExternalId", "e"), ("DurationSeconds", "1800"), ("RoleSessionName", "s")] {
        assert_eq!(last[name], value);
        assert_ne!(parameters(&seen[0]).get(name).map(String::as_str), Some(value));
    }
    let keys = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    assert_eq!(home.ask(&[("AWS_PROFILE", "e"), keys[0], keys[1], ("AWS_REGION", "r-1")]).unwrap(), "E");
    assert_eq!(
        home.ask(&[("AWS_PROFILE", "e")]),
        Err(ErrorKind::Denied),
        "the profile names the environment"
    );
    assert_eq!(home.ask(&[("AWS_PROFILE", "i")]), Err(ErrorKind::Denied));
    assert_eq!(home.ask(&[("AWS_PROFILE", "c")]), Err(ErrorKind::Denied));
    let sim = SimRuntime::new(1);
    serve(&sim, 80, |seen| {
        let body = if seen.line.ends_with("security-credentials/") { "r" } else { KEYS };
        Reply::Answer(200, if seen.line.starts_with("PUT") { "t" } else { body }.to_owned())
    });
    assert_eq!(ask(&sim, &home.provider(&[]).profile("i")).unwrap(), "I");
    let relative = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x");
    assert_eq!(ask(&sim, &home.provider(&[relative]).profile("c")).unwrap(), "C");
    home.transport.seen.lock().unwrap().clear();
    assert_eq!(home.ask(&[("AWS_PROFILE", "x")]).unwrap(), "X");
    let seen = home.transport.seen.lock().unwrap();
    let first = parameters(&seen[0]);
    assert_eq!(
        (first["WebIdentityToken"].as_str(), first["RoleSessionName"].as_str()),
        ("hidden.jwt", "pod")
    );
}

#[test]
fn profiles_that_cannot_be_used_are_refused_by_name() {
    let role = "role_arn = arn:aws:iam::1:role/A\n";
    let keys = "aws_access_key_id = KEY\naws_secret_access_key = hidden\n";
    for (settings, kind, words) in [
        ("sso_session = corp\nsso_account_id = 1\n".to_owned(), ErrorKind::Unsupported, "SSO"),
        ("sso_start_url = https://x\n".to_owned(), ErrorKind::Unsupported, "sso_start_url"),
        ("credential_process = /bin/true\n".to_owned(), ErrorKind::Unsupported, "credential_process"),
        (format!("{role}source_profile = p\nmfa_serial = m\n{keys}"), ErrorKind::Unsupported, "mfa_serial"),
        (format!("{role}{keys}"), ErrorKind::InvalidInput, "source_profile"),
        (
            format!("{role}source_profile = q\ncredential_source = Environment\n"),
            ErrorKind::InvalidInput,
            "one of",
        ),
        (format!("{role}source_profile = missing\n"), ErrorKind::Denied, "missing"),
        (format!("{role}source_profile = p\n"), ErrorKind::Denied, "no credentials"),
        (format!("{role}source_profile = q\n"), ErrorKind::InvalidInput, "leads back"),
        (format!("{role}credential_source = Other\n"), ErrorKind::InvalidInput, "Ec2InstanceMetadata"),
        (
            format!("{role}credential_source = Environment\nduration_seconds = 1h\n"),
            ErrorKind::InvalidInput,
            "duration",
        ),
        ("aws_access_key_id = KEY\n".to_owned(), ErrorKind::Denied, "only one of"),
        ("[oops\n".to_owned(), ErrorKind::InvalidInput, "line 5 is a section without end"),
    ] {
        let config = format!("[profile q]\n{role}source_profile = p\n[profile p]\n{settings}");
        let home = Home::new(Some(&config), None);
        let error = ask(&SimRuntime::new(1), &home.provider(&[]).profile("p")).unwrap_err();
        assert_eq!(error.kind(), kind, "{settings}: {}", explain(&error));
        assert!(explain(&error).contains(words), "{settings}: {}", explain(&error));
    }
    let sso = format!("[profile p]\nsso_session = corp\n{keys}");
    let home = Home::new(Some(&sso), None);
    assert_eq!(
        ask(&SimRuntime::new(1), &home.provider(&[]).profile("p")).unwrap(),
        "KEY",
        "its keys need no SSO"
    );
}

//! The way from a profile to credentials: where to begin, and which roles to assume from there.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::credentials::profile::files::Profiles;
use crate::s3::credentials::sts::Role;
use crate::s3::credentials::{Credentials, not_configured};

const KEYS: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
const SSO: [&str; 3] = ["sso_session", "sso_start_url", "sso_account_id"];

/// The way to the credentials of a profile.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(super) base: Base,
    /// Region of the profile.
    pub(super) region: Option<String>,
    /// Roles to assume, one with the credentials of the other.
    pub(super) roles: Vec<Role>,
}

/// The credentials to begin with.
#[derive(Debug)]
pub(super) enum Base {
    Container,
    Environment,
    Instance,
    Keys(Credentials),
    WebIdentity { role: Role, token_file: PathBuf },
}

impl Plan {
    /// The way for an existing profile.
    ///
    /// # Errors
    /// `NotFound` if the profile has no credentials; `Unsupported` if it needs a source that this crate does not have; `InvalidInput` if it
    /// contradicts itself; `Denied` if a profile that it names has none.
    pub(crate) fn new(profiles: &Profiles, profile: &str) -> Result<Self> {
        let region = profiles.get(profile, "region").map(str::to_owned);
        let (mut name, mut seen, mut roles) = (profile, Vec::new(), Vec::new());
        let base = loop {
            if !profiles.has(name) {
                return Err(refused(
                    ErrorKind::Denied,
                    name,
                    "it does not exist, and source_profile names it",
                ));
            }
            if seen.contains(&name) {
                let circle = format!("its source_profile leads back to it: {}", seen.join(", "));
                return Err(refused(ErrorKind::InvalidInput, name, circle));
            }
            seen.push(name);
            let Some(arn) = profiles.get(name, "role_arn") else {
                break keys(profiles, name, roles.is_empty())?;
            };
            let role = role(profiles, name, arn)?;
            let setting = |setting| profiles.get(name, setting);
            match (
                setting("source_profile"),
                setting("credential_source"),
                setting("web_identity_token_file"),
            ) {
                (Some(source), None, None) => {
                    roles.push(role);
                    // A profile may hold the keys that its role is assumed with.
                    if source == name {
                        break keys(profiles, name, false)?;
                    }
                    name = source;
                }
                (None, Some(source), None) => {
                    roles.push(role);
                    break source_of(name, source)?;
                }
                (None, None, Some(file)) => break Base::WebIdentity { role, token_file: file.into() },
                _ => {
                    let why = "beside role_arn it needs one of source_profile, credential_source and web_identity_token_file";
                    return Err(refused(ErrorKind::InvalidInput, name, why));
                }
            }
        };
        roles.reverse();
        Ok(Self { base, region, roles })
    }
}

fn refused(kind: ErrorKind, profile: &str, why: impl Into<String>) -> Error {
    Error::new(kind, "use the profile").on(profile).because(why.into())
}

fn role(profiles: &Profiles, profile: &str, arn: &str) -> Result<Role> {
    let setting = |setting| profiles.get(profile, setting).map(str::to_owned);
    if setting("mfa_serial").is_some() {
        let why = "mfa_serial: its role needs a code from a device, which larder cannot ask for";
        return Err(refused(ErrorKind::Unsupported, profile, why));
    }
    let duration = setting("duration_seconds").map(|seconds| seconds.parse().map(Duration::from_secs));
    let duration = duration.transpose().map_err(|_| {
        refused(ErrorKind::InvalidInput, profile, "duration_seconds is not a number of seconds")
    })?;
    let (external_id, session_name) = (setting("external_id"), setting("role_session_name"));
    Ok(Role { arn: arn.to_owned(), duration, external_id, session_name })
}

fn source_of(profile: &str, source: &str) -> Result<Base> {
    match source.to_ascii_lowercase().as_str() {
        "ec2instancemetadata" => Ok(Base::Instance),
        "ecscontainer" => Ok(Base::Container),
        "environment" => Ok(Base::Environment),
        _ => {
            let why = "credential_source is none of Environment, EcsContainer and Ec2InstanceMetadata";
            Err(refused(ErrorKind::InvalidInput, profile, why))
        }
    }
}

/// The keys of a profile without role. `is_first` is `false` for the source of a role.
fn keys(profiles: &Profiles, profile: &str, is_first: bool) -> Result<Base> {
    let setting = |setting| profiles.get(profile, setting);
    match KEYS.map(setting) {
        [Some(key_id), Some(secret), token] => {
            let credentials = Credentials::new(key_id, secret);
            return Ok(Base::Keys(match token {
                Some(token) => credentials.session_token(token),
                None => credentials,
            }));
        }
        [Some(_), None, _] | [None, Some(_), _] => {
            let why = "it has only one of aws_access_key_id and aws_secret_access_key";
            return Err(refused(ErrorKind::Denied, profile, why));
        }
        [None, None, _] => {}
    }
    if let Some(name) = SSO.into_iter().find(|name| setting(name).is_some()) {
        let why = format!(
            "{name}: it signs in by SSO (IAM Identity Center), which larder does not support; `aws configure export-credentials --profile \
             {profile} --format env` prints keys for the environment"
        );
        return Err(refused(ErrorKind::Unsupported, profile, why));
    }
    if setting("credential_process").is_some() {
        let why = "credential_process: larder runs no programs; implement CredentialProvider to run it";
        return Err(refused(ErrorKind::Unsupported, profile, why));
    }
    if is_first {
        return Err(not_configured(format!("the profile {profile:?} has no credentials")));
    }
    Err(refused(ErrorKind::Denied, profile, "it has no credentials for the role that names it as source"))
}

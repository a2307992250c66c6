//! Answers of the Security Token Service.
//!
//! Source: AWS, "Security Token Service API Reference": `AssumeRole`, `AssumeRoleWithWebIdentity`.

use std::fmt;
use std::time::SystemTime;

use zeroize::Zeroizing;

use crate::wire::date::parse_iso8601;
use crate::wire::s3_xml::tree::Element;
use crate::wire::s3_xml::{SMALL_LIMIT, XmlError, root};

/// Temporary credentials of a role.
#[non_exhaustive]
#[derive(Clone)]
pub struct TemporaryCredentials {
    /// The access key id.
    pub access_key_id: String,
    /// Expiry time.
    pub expires: SystemTime,
    /// The secret access key.
    pub secret_access_key: Zeroizing<String>,
    /// The session token.
    pub session_token: Zeroizing<String>,
}

impl fmt::Debug for TemporaryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemporaryCredentials").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Parses the answer to a request for the credentials of a role.
///
/// # Errors
/// For any other document.
pub fn parse_assumed_role(document: &[u8]) -> Result<TemporaryCredentials, XmlError> {
    let names = ["AssumeRoleResponse", "AssumeRoleWithWebIdentityResponse"];
    let mut root = root(document, &names, SMALL_LIMIT)?;
    let name = root.name.replace("Response", "Result");
    let missing = XmlError::Missing;
    let mut result = root.take(&name).ok_or_else(|| missing("result"))?;
    let mut credentials = result.take("Credentials").ok_or_else(|| missing("Credentials"))?;
    let mut secret =
        |name: &'static str| credentials.take(name).and_then(Element::into_secret).ok_or(missing(name));
    let (secret_access_key, session_token) = (secret("SecretAccessKey")?, secret("SessionToken")?);
    let access_key_id = credentials.value("AccessKeyId").ok_or_else(|| missing("AccessKeyId"))?.to_owned();
    let expires = credentials.value("Expiration").and_then(parse_iso8601);
    let expires = expires.ok_or_else(|| missing("Expiration"))?;
    Ok(TemporaryCredentials { access_key_id, expires, secret_access_key, session_token })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ANSWER: &str = r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
        <AssumeRoleResult>
            <AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn></AssumedRoleUser>
            <Credentials>
                <AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>hidden/1+a=</SecretAccessKey>
                <SessionToken>
                    hidden-2
                </SessionToken>
                <Expiration>2026-11-29T10:00:00Z</Expiration>
            </Credentials>
        </AssumeRoleResult>
        <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>
    </AssumeRoleResponse>"#;

    #[test]
    fn the_credentials_of_a_role_are_read() {
        let web = ANSWER.replace("AssumeRoleRe", "AssumeRoleWithWebIdentityRe");
        for document in [ANSWER, &web] {
            let read = parse_assumed_role(document.as_bytes()).unwrap();
            assert_eq!((read.access_key_id.as_str(), read.session_token.as_str()), ("ASIA", "hidden-2"));
            assert_eq!(read.secret_access_key.as_str(), "hidden/1+a=");
            assert_eq!(read.expires, SystemTime::UNIX_EPOCH + Duration::from_hours(498_874));
            assert!(!format!("{read:?}").contains("hidden"));
        }
    }

    #[test]
    fn an_answer_without_a_part_is_an_error() {
        for part in ["AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration", "Credentials"] {
            let document = ANSWER.replace(part, "Other");
            assert_eq!(parse_assumed_role(document.as_bytes()).unwrap_err(), XmlError::Missing(part));
        }
        let late = ANSWER.replace("2026-11-29", "tomorrow");
        assert_eq!(parse_assumed_role(late.as_bytes()).unwrap_err(), XmlError::Missing("Expiration"));
        for document in [&ANSWER[..300], "", "{}", "<html/>"] {
            assert!(parse_assumed_role(document.as_bytes()).is_err(), "{document}");
        }
        let refused = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error>\
                       <RequestId>7</RequestId></ErrorResponse>";
        assert!(matches!(
            parse_assumed_role(refused.as_bytes()),
            Err(XmlError::Service(body)) if body.code == "AccessDenied"
        ));
    }
}

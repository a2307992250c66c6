#[cfg(feature = "testing")]
mod cache;
#[cfg(feature = "testing")]
mod chain;
#[cfg(feature = "testing")]
mod fake;
#[cfg(feature = "testing")]
mod metadata;
#[cfg(feature = "testing")]
mod profiles;
#[cfg(feature = "testing")]
mod roles;

use std::ffi::OsString;

use futures::executor::block_on;

use super::environment::{VARIABLES, from_variables};
use super::keeper::PARTS;
use super::*;
use crate::rt::ThreadRuntime;

#[test]
fn a_trailing_newline_in_a_credential_is_reported_and_not_sent() {
    for (at, wrong) in VARIABLES.iter().enumerate() {
        for value in ["q\n", "q\r\n", " q", "q\t", "q\u{a0}", "q\nq", "qé"] {
            if at == 1 && value.trim() == value {
                continue;
            }
            let set = |name: &str| Some(OsString::from(if name == *wrong { value } else { "K" }));
            let error = from_variables(set).unwrap_err();
            let why = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong} {value:?}");
            assert!(why.contains(wrong) && !why.contains('q'), "{why}");
            let set = |at: usize, wanted: usize| if at == wanted { value } else { "K" };
            let given = Credentials::new(set(at, 0), set(at, 1)).session_token(set(at, 2));
            let keeper = Keeper::new(Arc::new(StaticCredentials::new(given)));
            let error = block_on(keeper.current(&ThreadRuntime::new())).unwrap_err();
            let why = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong} {value:?}");
            assert!(why.contains(PARTS[at]), "{why}");
        }
    }
    assert!(from_variables(|_| Some(OsString::from("K"))).is_ok());
    assert_eq!(from_variables(|_| None).unwrap_err().kind(), ErrorKind::NotFound);
    for missing in &VARIABLES[..2] {
        let set = |name: &str| (name != *missing).then(|| OsString::from("K"));
        assert_eq!(from_variables(set).unwrap_err().kind(), ErrorKind::Denied, "{missing}");
    }
    let keeper = Keeper::new(Arc::new(Absent));
    assert_eq!(block_on(keeper.current(&ThreadRuntime::new())).unwrap_err().kind(), ErrorKind::Denied);
}

/// A source that is not configured.
#[derive(Debug)]
struct Absent;

#[async_trait]
impl CredentialProvider for Absent {
    async fn credentials(&self, _: &dyn Runtime) -> Result<Credentials> {
        Err(not_configured("it is absent"))
    }
}

/// Proves H153, H182.
#[test]
fn secrets_are_not_shown() {
    let credentials = Credentials::new("public", "hidden").session_token("hidden");
    assert!(!format!("{credentials:?} {:?}", StaticCredentials::new(credentials.clone())).contains("hidden"));
}

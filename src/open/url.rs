//! Addresses of stores.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::percent::{decode, encode_path};

/// Address of a store: a directory, or a bucket and a name in it.
///
/// | text | store |
/// |---|---|
/// | `/backup/store`, `store` | a directory, taken literally; a relative path is relative to the working directory |
/// | `file:///backup/store` | the same directory; percent-encoded |
/// | `s3://BUCKET/STORE` | the store `STORE` in the bucket `BUCKET`; needs the feature `s3` |
/// | `s3://BUCKET` | the store that is the whole bucket |
///
/// An address in a bucket may have parameters, percent-encoded: `s3://BUCKET/STORE?region=eu-central-1&endpoint=https://s3.example.com`.
///
/// | parameter | meaning | default |
/// |---|---|---|
/// | `endpoint` | the server, with its scheme | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or the endpoint of AWS in the region |
/// | `region` | the region for which requests are signed | `AWS_REGION`, `AWS_DEFAULT_REGION`, or `us-east-1` |
/// | `addressing` | place of the bucket name in requests, `path` or `virtual-host` | `virtual-host` for AWS, `path` for an endpoint that is named |
///
/// An address never has credentials: a user or a password in it is refused, and the error does not show them. `Display` writes the address in the
/// same form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreUrl {
    pub(super) place: Place,
}

/// The kinds of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Bucket(BucketPlace),
    Directory(PathBuf),
}

/// A store in a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct BucketPlace {
    pub(super) bucket: String,
    pub(super) endpoint: Option<String>,
    pub(super) in_host: Option<bool>,
    pub(super) region: Option<String>,
    pub(super) store: String,
}

impl StoreUrl {
    /// A store in a directory. Unlike a text that is parsed, any path is accepted as it is.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Directory(path.into()) }
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let place = match scheme_of(text) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("s3") => Place::Bucket(bucket(rest)?),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("file") => Place::Directory(directory(rest)?),
            Some((scheme, _)) => {
                return Err(refused(format!("{scheme}:// is not supported, only s3:// and file://")));
            }
            None if has_half_a_scheme(text) => {
                return Err(refused("a scheme is followed by two slashes, as in s3://BUCKET/STORE"));
            }
            None if text.is_empty() => return Err(refused("it is empty")),
            None => Place::Directory(text.into()),
        };
        Ok(Self { place })
    }
}

/// The scheme and the rest, unless the text is a path.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    scheme
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        .then_some((scheme, rest))
}

/// A typing error, more likely than a path.
fn has_half_a_scheme(text: &str) -> bool {
    text.starts_with("s3:") || text.starts_with("file:")
}

fn directory(rest: &str) -> Result<PathBuf> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(refused("a file:// address has an absolute path after it, as in file:///backup/store"));
    }
    if path.contains(['?', '#']) {
        return Err(refused(
            "a directory has no parameters; `?` and `#` in its name are written %3F and %23",
        ));
    }
    decode(path).map(PathBuf::from).ok_or_else(|| refused("its percent-encoding is malformed"))
}

fn bucket(rest: &str) -> Result<BucketPlace> {
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (bucket, store) = place.split_once('/').unwrap_or((place, ""));
    if bucket.contains('@') {
        return Err(refused("it has a user or a password; credentials come from a provider"));
    }
    if place.contains('#') || query.is_some_and(|query| query.contains('#')) {
        return Err(refused("`#` begins a fragment, which no store has"));
    }
    if bucket.is_empty() {
        return Err(refused("an address in a bucket is s3://BUCKET/STORE"));
    }
    let decoded = |text| decode(text).ok_or_else(|| refused("its percent-encoding is malformed"));
    let mut found =
        BucketPlace { bucket: decoded(bucket)?, store: decoded(store)?, ..BucketPlace::default() };
    if found.bucket.contains('/') || found.store.contains('/') {
        return Err(refused("the name of the bucket or of the store has a slash: s3://BUCKET/STORE"));
    }
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (value, twice) = (decoded(value)?, || refused(format!("it has the parameter {name} twice")));
        if value.is_empty() {
            return Err(refused(format!("the parameter {name} has no value")));
        }
        let before = match name {
            "addressing" => found.in_host.replace(in_host(&value)?).is_some(),
            "endpoint" => found.endpoint.replace(endpoint(value)?).is_some(),
            "region" => found.region.replace(value).is_some(),
            _ => {
                let known = "the parameters are addressing, endpoint and region";
                return Err(refused(format!("there is no parameter {name:?}: {known}")));
            }
        };
        if before {
            return Err(twice());
        }
    }
    Ok(found)
}

fn in_host(value: &str) -> Result<bool> {
    match value {
        "path" => Ok(false),
        "virtual-host" => Ok(true),
        _ => Err(refused("addressing is path or virtual-host")),
    }
}

fn endpoint(value: String) -> Result<String> {
    if value.contains('@') {
        return Err(refused("the endpoint has a user or a password; credentials come from a provider"));
    }
    if value.starts_with("https://") || value.starts_with("http://") {
        return Ok(value);
    }
    Err(refused("the endpoint does not begin with http:// or https://"))
}

/// An address that cannot be used. It is not shown: it may have a password in the wrong place.
fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidInput, "read the address of a store").because(why)
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Bucket(place) => place.fmt(f),
            Place::Directory(path) => {
                let text = path.to_string_lossy();
                let is_ambiguous = has_half_a_scheme(&text) || scheme_of(&text).is_some();
                write!(f, "{}{text}", if is_ambiguous { "./" } else { "" })
            }
        }
    }
}

impl fmt::Display for BucketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", encode_path(&self.bucket))?;
        if !self.store.is_empty() {
            write!(f, "/{}", encode_path(&self.store))?;
        }
        let addressing = self.in_host.map(|in_host| if in_host { "virtual-host" } else { "path" });
        let parameters = [
            ("region", self.region.as_deref()),
            ("endpoint", self.endpoint.as_deref()),
            ("addressing", addressing),
        ];
        let set = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
        for (number, (name, value)) in set.enumerate() {
            // A colon need not be encoded in a query, and an endpoint is easier to read with it.
            let value = encode_path(value).replace("%3A", ":");
            write!(f, "{}{name}={value}", if number == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        text.parse::<StoreUrl>().unwrap_or_else(|error| panic!("{text}: {error}")).place
    }

    #[test]
    fn an_address_is_a_directory_or_a_store_in_a_bucket() {
        let directory = |path: &str| Place::Directory(path.into());
        for (text, path) in [
            ("/backup/store", "/backup/store"),
            ("store", "store"),
            ("a b%20?#@c", "a b%20?#@c"),
            ("file:///backup/a%20b", "/backup/a b"),
            ("FILE://localhost/x", "/x"),
        ] {
            assert_eq!(place(text), directory(path), "{text}");
        }
        let plain = BucketPlace { bucket: "b".to_owned(), ..BucketPlace::default() };
        assert_eq!(place("s3://b"), Place::Bucket(plain.clone()));
        assert_eq!(place("s3://b/"), Place::Bucket(plain.clone()));
        let store = BucketPlace { store: "my store".to_owned(), ..plain };
        assert_eq!(place("S3://b/my%20store?"), Place::Bucket(store.clone()));
        let all = BucketPlace {
            endpoint: Some("http://[::1]:9000/base".to_owned()),
            in_host: Some(true),
            region: Some("eu-central-1".to_owned()),
            ..store
        };
        let text =
            "s3://b/my%20store?region=eu-central-1&endpoint=http://[::1]:9000/base&addressing=virtual-host";
        assert_eq!(place(text), Place::Bucket(all));
    }

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in [
            "/backup/store",
            "relative/store",
            "s3://b",
            "s3://b/my%20store",
            "s3://b/s?region=eu-central-1&endpoint=https://s3.example.com:9000/base&addressing=path",
            "file:///a:%2F/b",
        ] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string().parse::<StoreUrl>().unwrap(), url, "{url}");
        }
        for path in ["/a://b", "gs://b", "s3:b", "file:", "a:b"] {
            let written = StoreUrl::directory(path).to_string();
            let Place::Directory(read) = place(&written) else { panic!("{written} is a directory") };
            assert!(read.ends_with(path) || read == std::path::Path::new(path), "{path}: {written}");
        }
        let text = "s3://b/s?region=r&endpoint=https://s3.example.com";
        assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
    }

    #[test]
    fn a_malformed_address_is_refused_without_its_secrets() {
        for text in [
            "",
            "gs://bucket/store",
            "s3:bucket/store",
            "file:/backup",
            "file://host/backup",
            "file:///backup?region=x",
            "s3://",
            "s3:///store",
            "s3://b/a/b",
            "s3://b/s#f",
            "s3://b/%zz",
            "s3://b%2Fc/s",
            "s3://b/s?profile=x",
            "s3://b/s?region=",
            "s3://b/s?region=a&region=b",
            "s3://b/s?endpoint=s3.example.com",
            "s3://b/s?endpoint=ftp://s3.example.com",
            "s3://b/s?endpoint=https://id:SECRET@s3.example.com",
            "s3://b/s?addressing=host",
            "s3://id:SECRET@b/s",
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(!format!("{error:?} {error}").contains("SECRET"), "{error:?}");
        }
    }
}

//! Names and texts.

use std::fmt::Display;
use std::str::FromStr;

use larder::StoreUrl;
use larder::crypt::KeyFingerprint;
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::format::name::{ArchiveName, AuthId, BackupTime, BackupType, GroupName, Namespace, SnapshotName};
use larder::http::{CertificateFingerprint, Proxy};
use larder::internal::packs;
use larder::internal::parsers;
use larder::internal::status::{decode_owner, encode_gc_status, encode_owner, parse_gc_status};
use larder::internal::wire::date::{parse_http_date, parse_iso8601};

/// Bytes have one text, and a text that is decoded is that text.
pub(super) fn base64(input: &[u8]) {
    let text = parsers::base64_encoded(input);
    assert_eq!(parsers::base64_decoded(text.as_bytes()).as_deref(), Some(input));
    if let Some(bytes) = parsers::base64_decoded(input) {
        assert_eq!(parsers::base64_encoded(&bytes).as_bytes(), input);
    }
}

/// Times are read or refused, and a time that is written is read as the same.
pub(super) fn dates(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = (parse_http_date(text), parse_iso8601(text));
    if let Some(written) = parsers::rewritten_time(text) {
        assert_eq!(parsers::rewritten_time(&written), Some(written));
    }
}

/// Names are written as they were read.
pub(super) fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    same::<ArchiveName>(text);
    same::<AuthId>(text);
    same::<BackupTime>(text);
    same::<BackupType>(text);
    same::<GroupName>(text);
    same::<Namespace>(text);
    same::<SnapshotName>(text);
    again::<CertificateFingerprint>(text);
    again::<Digest>(text);
    again::<KeyFingerprint>(text);
    if let Some(written) = parsers::rewritten_upid(text) {
        assert_eq!(written, text);
    }
}

/// A text that is read is the text of what was read.
fn same<T: FromStr + Display>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert_eq!(read.to_string(), text);
    }
}

/// What is read is the same when it is written and read again.
fn again<T: FromStr + Display>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        let written = read.to_string();
        assert_eq!(written.parse::<T>().ok().map(|again| again.to_string()), Some(written));
    }
}

/// Paths that are names of something are written as they were read, and never lead out of the store.
pub(super) fn paths(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = Key::from_str(text) {
        assert_eq!(key.to_string(), text);
        assert!(!text.starts_with('/') && text.split('/').all(|part| !matches!(part, "" | "." | "..")));
    }
    if let Ok(prefix) = Prefix::from_str(text) {
        assert_eq!(prefix.to_string(), text);
    }
    if let Ok(owner) = decode_owner(input) {
        assert_eq!(decode_owner(&encode_owner(&owner)).as_ref(), Ok(&owner));
    }
    if let Some(status) = parse_gc_status(input) {
        assert!(parse_gc_status(&encode_gc_status(&status)).is_some());
    }
    if let Some(path) = packs::rewritten_path(text) {
        assert_eq!(path, text);
    }
}

/// An address of a store or of a proxy is read or refused, and never shown with a password.
pub(super) fn store_url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(url) = StoreUrl::from_str(text) {
        assert_eq!(StoreUrl::from_str(&url.to_string()).ok().as_ref(), Some(&url));
        assert!(!text.starts_with("s3://") || !url.to_string().contains('@'));
    }
    if let Err(error) = Proxy::new(text) {
        let password =
            text.rsplit_once('@').and_then(|(user, _)| user.rsplit_once(':')).map(|(_, word)| word);
        let address = text.rsplit_once('@').map_or(text, |(_, address)| address);
        // The address is shown, and may have the same text in it.
        let (shown, address) = (format!("{error:?}"), format!("{address:?}"));
        let is_shown = |word: &str| word.len() > 20 && shown.contains(word) && !address.contains(word);
        assert!(!password.is_some_and(is_shown), "{error:?}");
    }
}

//! Answers of servers, addresses, and files of settings.

use std::str::FromStr as _;

use larder::internal::parsers;
use larder::internal::wire::date::AmzDate;
use larder::internal::wire::http_body::{ChunkedDecoder, Framing, Step};
use larder::internal::wire::http_head::parse_response;
use larder::internal::wire::s3_xml;
use larder::internal::wire::sigv4::{self, Signed, SigningKey};
use larder::internal::wire::uri::{Endpoint, decode, encode, encode_path};
use larder::internal::wire::{framing_of, keeps_connection};

/// A body in chunks is the same whether it comes at once or byte by byte.
pub(super) fn chunked_body(input: &[u8]) {
    let whole = read_chunks(input, input.len().max(1));
    assert_eq!(whole, read_chunks(input, 1));
}

/// What the body is, if it is whole, and how much of the input it took.
fn read_chunks(input: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let (mut decoder, mut body) = (ChunkedDecoder::default(), Vec::new());
    let (mut taken, mut seen) = (0, step.min(input.len()));
    loop {
        match decoder.step(&input[taken..seen]).ok()? {
            Step::Data(length) => {
                assert!(length > 0);
                body.extend_from_slice(&input[taken..taken + length]);
                taken += length;
            }
            Step::Skip(length) => taken += length,
            Step::End => return Some((body, taken)),
            Step::More if seen == input.len() => return None,
            Step::More => seen = input.len().min(seen + step),
        }
        assert!(taken <= seen);
    }
}

/// An answer of a metadata service is credentials, or an error that does not quote it.
pub(super) fn credentials(input: &[u8]) {
    let _ = s3_xml::parse_assumed_role(input);
    match parsers::credentials(input) {
        Ok(credentials) => assert!(!format!("{credentials:?}").is_empty()),
        Err(error) => assert!(error.to_string().len() < 1000),
    }
}

/// A page that is read has no key without a name.
pub(super) fn listing(input: &[u8]) {
    if let Ok(page) = s3_xml::parse_listing(input) {
        assert!(page.objects.iter().all(|object| !object.key.is_empty()));
    }
}

/// Files of profiles, with a zero byte between, lead to credentials or to an error, and never in a circle.
pub(super) fn profiles(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (config, credentials) = text.split_once('\0').unwrap_or((text, ""));
    if let Some(Err(error)) = parsers::profile_plan(config, credentials) {
        assert!(!error.to_string().is_empty());
    }
}

/// A head that is read ends in an empty line, and is the same whatever follows. A body that follows in chunks ends at the same byte however
/// it comes.
pub(super) fn response(input: &[u8]) {
    let Ok(Some((head, length))) = parse_response(input) else { return };
    assert!(input[..length].ends_with(b"\r\n\r\n"));
    assert!((100..=999).contains(&head.status));
    assert_eq!(parse_response(&input[..length]).ok().flatten().map(|(head, _)| head), Some(head.clone()));
    let both =
        head.headers.get("content-length").is_some() && head.headers.get("transfer-encoding").is_some();
    let framing = framing_of("GET", &head);
    assert!(!both || framing.is_err());
    assert!(framing_of("HEAD", &head).is_err() || framing_of("HEAD", &head) == Ok(Framing::Length(0)));
    if framing == Ok(Framing::Chunked) {
        chunked_body(&input[length..]);
    }
    let _ = keeps_connection(&head);
    if let Some([first, end, size]) = head.headers.get("content-range").and_then(parsers::content_range) {
        assert!(first < end && end <= size);
    }
}

/// Documents of the protocol are read or refused.
pub(super) fn s3_documents(input: &[u8]) {
    let _ = s3_xml::parse_error(input);
    let _ = s3_xml::parse_deleted(input);
    let _ = s3_xml::parse_copied(input);
    let _ = s3_xml::parse_completed(input);
    let _ = s3_xml::parse_begun(input);
    let _ = s3_xml::parse_uploads(input);
    let _ = s3_xml::parse_buckets(input);
    let _ = s3_xml::parse_versioning(input);
    let _ = s3_xml::parse_object_lock(input);
    let _ = s3_xml::parse_lifecycle(input);
    let _ = s3_xml::parse_location(input);
}

/// A signed address carries what was signed, whatever order it came in, and the signature depends on each part.
pub(super) fn signature(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let fields: Vec<_> = text.split('\n').collect();
    let [secret, region, name, value, path, ..] = fields[..] else { return };
    let date =
        AmzDate::new(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_752_502_802));
    let key = SigningKey::derive(secret, &date, region, "s3");
    assert!(key.is_for(&date));
    let path = format!("/{}", encode_path(path));
    let (one, other) = (("host", "h"), ("x-amz-meta", value));
    let signed = |headers: [(&str, &str); 2], path: &str| {
        let request = Signed {
            headers: &headers,
            method: "GET",
            path,
            payload_hash: sigv4::UNSIGNED_PAYLOAD,
            query: "",
        };
        (
            sigv4::authorization(&key, "id", &date, &request),
            sigv4::presigned_query(&key, "id", None, &date, 60, &[(name, value)], &request),
        )
    };
    let first = signed([one, other], &path);
    assert_eq!(first, signed([other, one], &path));
    assert_ne!(first, signed([one, other], &format!("{path}a")));
    let (query, signature) = first.1.rsplit_once("&X-Amz-Signature=").expect("it is signed");
    assert_eq!(signature.len(), 64);
    let pairs: Vec<_> =
        query.split('&').map(|pair| pair.split_once('=').expect("each has a value")).collect();
    let carried = pairs.iter().map(|(name, value)| decode(name).zip(decode(value)));
    assert!(
        carried.into_iter().any(|pair| pair.is_some_and(|pair| pair == (name.to_owned(), value.to_owned())))
    );
}

/// What is encoded is decoded again, and an address that is read is written as an address.
pub(super) fn uri(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    assert_eq!(decode(&encode(text)).as_deref(), Some(text));
    assert_eq!(decode(&encode_path(text)).as_deref(), Some(text));
    if let Ok(endpoint) = Endpoint::from_str(text) {
        let scheme = if text.to_ascii_lowercase().starts_with("http://") { "http" } else { "https" };
        let written = endpoint.to_string();
        assert!(written.starts_with(&format!("{scheme}://")));
        assert_eq!(Endpoint::from_str(&written), Ok(endpoint));
    }
}

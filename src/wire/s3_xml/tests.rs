use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::wire::uri::encode;

const DECLARATION: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;

#[test]
fn a_page_of_a_listing_is_read() {
    let text = format!(
        r#"{DECLARATION}
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix>a/</Prefix>
<KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
<NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J=</NextContinuationToken>
<Contents><Key>a/b%20c+d%2Be%C3%BC</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>
<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>434234</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Size>0</Size><Key>a/d</Key></Contents>
<CommonPrefixes><Prefix>a/x/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>a/y%2F</Prefix></CommonPrefixes>
</ListBucketResult>"#
    );
    let listing = parse_listing(text.as_bytes()).unwrap();
    let first = ListedObject {
        etag: Some("\"fba9dede5f27731c9771645a39863328\"".to_owned()),
        key: "a/b c d+eü".to_owned(),
        last_modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_255_369_830)),
        size: 434_234,
        storage_class: Some("STANDARD".to_owned()),
    };
    let second =
        ListedObject { etag: None, key: "a/d".to_owned(), last_modified: None, size: 0, storage_class: None };
    assert_eq!(listing.objects, [first, second]);
    assert_eq!(listing.common_prefixes, ["a/x/", "a/y/"]);
    assert_eq!(listing.next.as_deref(), Some("1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J="));
    assert_eq!((listing.truncated, listing.max_keys), (Some(true), Some(1000)));
}

/// Proves H108.
#[test]
fn optional_elements_may_be_missing() {
    let least = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    let last = Listing { truncated: Some(false), ..Listing::default() };
    assert_eq!(parse_listing(least.as_bytes()), Ok(last));
    let plain = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key> a%20&amp;&#x41; </Key><Size> 7 </Size>\
                 <Owner><ID>x</ID></Owner></Contents></ListBucketResult>";
    let listing = parse_listing(plain.as_bytes()).unwrap();
    // Blanks belong to a key, and a name that is not marked as encoded is not decoded.
    assert_eq!((listing.objects[0].key.as_str(), listing.objects[0].size), (" a%20&A ", 7));
    assert_eq!(parse_copied(b"<CopyObjectResult/>"), Ok(Stored::default()));
    assert_eq!(
        parse_completed(b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>"),
        Ok(Stored::default())
    );
    assert_eq!(parse_versioning(b"<VersioningConfiguration/>"), Ok(false));
    assert_eq!(parse_error(b"<Error><Code>NoSuchKey</Code></Error>").unwrap().code, "NoSuchKey");
}

/// Proves H12.
#[test]
fn a_truncated_page_is_refused() {
    assert_eq!(parse_listing(b"<ListBucketResult></ListBucketResult>"), Ok(Listing::default()));
    let cut =
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>1</Size></Contents>";
    assert_eq!(parse_listing(cut.as_bytes()), Err(XmlError::Truncated));
    let sizeless = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents></ListBucketResult>";
    assert_eq!(parse_listing(sizeless.as_bytes()), Err(XmlError::Missing("size of an object")));
}

/// Proves H107.
#[test]
fn an_error_document_in_a_success_response_is_an_error() {
    let text = format!(
        "   \n{DECLARATION}\n<Error><Code>SlowDown</Code><Message>Reduce</Message><RequestId>7</RequestId></Error>"
    );
    let want = ErrorBody {
        code: "SlowDown".to_owned(),
        message: "Reduce".to_owned(),
        request_id: Some("7".to_owned()),
        ..ErrorBody::default()
    };
    let want = XmlError::Service(Box::new(want));
    assert_eq!(parse_copied(text.trim_start().as_bytes()), Err(want.clone()));
    assert_eq!(parse_completed(text.as_bytes()), Err(want.clone()));
    assert_eq!(parse_deleted(text.as_bytes()), Err(want));
}

#[test]
fn redirect_errors_name_the_endpoint() {
    let text = "<Error><Code>PermanentRedirect</Code><Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint><Region>eu-west-1</Region></Error>";
    let error = parse_error(text.as_bytes()).unwrap();
    assert_eq!(error.endpoint.as_deref(), Some("b.s3.eu-west-1.amazonaws.com"));
    assert_eq!(error.region.as_deref(), Some("eu-west-1"));
    let wrapped = "<ErrorResponse><Error><Code>InvalidToken</Code></Error></ErrorResponse>";
    assert_eq!(parse_error(wrapped.as_bytes()).unwrap().code, "InvalidToken");
    assert_eq!(parse_error(b"<html><body>502 Bad Gateway</body></html>"), None);
    assert_eq!(parse_error(b"upstream connect error"), None);
    assert_eq!(parse_error(b""), None);
}

#[test]
fn a_batch_delete_result_lists_each_key() {
    let text = "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>AccessDenied</Code>\
                <Message>no</Message></Error></DeleteResult>";
    let result = parse_deleted(text.as_bytes()).unwrap();
    assert_eq!(result.deleted, ["a"]);
    assert_eq!((result.errors[0].0.as_str(), result.errors[0].1.code.as_str()), ("b", "AccessDenied"));
    let nameless = "<DeleteResult><Error><Code>InternalError</Code></Error></DeleteResult>";
    assert!(matches!(parse_deleted(nameless.as_bytes()), Err(XmlError::Missing(_))));
}

#[test]
fn settings_of_a_bucket_are_read() {
    let lifecycle = "<LifecycleConfiguration><Rule><ID>old</ID><Prefix>logs/</Prefix><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>\
        <Rule><Filter><And><Prefix>x</Prefix><Tag><Key>k</Key></Tag></And></Filter><Status>Disabled</Status><Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>\
        <Rule><Filter><Prefix></Prefix></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>";
    let rules = parse_lifecycle(lifecycle.as_bytes()).unwrap();
    let short: Vec<_> = rules
        .iter()
        .map(|rule| (rule.prefix.as_str(), rule.enabled, rule.expires, rule.transitions))
        .collect();
    assert_eq!(short, [("logs/", true, true, false), ("x", false, false, true), ("", true, false, false)]);
    let lock = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    assert_eq!(parse_object_lock(lock.as_bytes()), Ok(true));
    assert_eq!(
        parse_versioning(b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
        Ok(true)
    );
    let buckets = "<ListAllMyBucketsResult><Owner/><Buckets><Bucket><Name>a</Name></Bucket><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>";
    assert_eq!(parse_buckets(buckets.as_bytes()).unwrap(), ["a", "b"]);
    let begun = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>VXBs</UploadId></InitiateMultipartUploadResult>";
    assert_eq!(parse_begun(begun.as_bytes()).unwrap(), "VXBs");
    let uploads = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker><Upload><Key>k</Key><UploadId>u</UploadId><Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload></ListMultipartUploadsResult>";
    let page = parse_uploads(uploads.as_bytes()).unwrap();
    assert_eq!((page.uploads[0].key.as_str(), page.uploads[0].upload_id.as_str()), ("k", "u"));
    assert_eq!(page.next, Some(("k".to_owned(), "u".to_owned())));
    let unknown = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated></ListMultipartUploadsResult>";
    assert!(parse_uploads(unknown.as_bytes()).is_err());
}

#[test]
fn request_documents_have_exactly_these_bytes() {
    assert_eq!(
        write_delete(["a&<b>", "\"c\" "]).unwrap(),
        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>\
         <Object><Key>a&amp;&lt;b&gt;</Key></Object><Object><Key>&quot;c&quot; </Key></Object></Delete>"
    );
    assert_eq!(
        write_complete([(1, "\"x\""), (2, "y")]).unwrap(),
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Part><PartNumber>1</PartNumber>\
         <ETag>&quot;x&quot;</ETag></Part><Part><PartNumber>2</PartNumber><ETag>y</ETag></Part></CompleteMultipartUpload>"
    );
    assert_eq!(write_delete(["a\u{1}"]), Err(XmlError::Name("a\u{1}".to_owned())));
    assert!(
        write_bucket("eu-west-1").unwrap().contains("<LocationConstraint>eu-west-1</LocationConstraint>")
    );
}

/// Proves H117.
#[test]
fn hostile_documents_cause_no_panic() {
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><Error><Code>&b;</Code></Error>";
    assert_eq!(parse_copied(bomb.as_bytes()), Err(XmlError::DocumentType));
    assert_eq!(parse_copied(b"<Error><Code>&unknown;</Code></Error>"), Err(XmlError::Malformed));
    let deep = format!("{}{}", "<a>".repeat(17), "</a>".repeat(17));
    assert_eq!(parse_copied(deep.as_bytes()), Err(XmlError::TooDeep));
    let long = format!("<CopyObjectResult>{}</CopyObjectResult>", " ".repeat(SMALL_LIMIT));
    assert_eq!(parse_copied(long.as_bytes()), Err(XmlError::TooLarge));
    for text in ["<a></b>", "<a/><b/>", "<a/>text", "text<a/>", "<a>\u{0}&#0;</a>", "</a>"] {
        assert!(parse_copied(text.as_bytes()).is_err(), "{text:?}");
    }
    for text in ["", "<a", "<a><b></b>", "<!-- ", "<a><![CDATA["] {
        assert_eq!(parse_copied(text.as_bytes()), Err(XmlError::Truncated), "{text:?}");
    }
    assert_eq!(parse_copied(b"<a>\xff</a>"), Err(XmlError::Malformed));
    assert_eq!(parse_copied(b"<Other/>"), Err(XmlError::Unexpected("Other".to_owned())));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = (parse_listing(&bytes), parse_error(&bytes));
    }

    #[test]
    fn any_xml_like_text_is_read_or_refused(text in "(<|>|/|a|&|;|!|\\[|\\]|CDATA|-|\\?|#|x|4|1|\"| |=){0,60}") {
        let _ = (parse_listing(text.as_bytes()), parse_error(text.as_bytes()));
    }

    /// Proves H116.
    #[test]
    fn any_key_is_read_back_from_xml(key in "[^\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\u{fffe}\\u{ffff}]{1,40}") {
        let written = write_delete([key.as_str()]).unwrap();
        let answer = written.replace("<Object>", "<Deleted>").replace("</Object>", "</Deleted>").replace("<Delete ", "<DeleteResult ").replace("</Delete>", "</DeleteResult>");
        prop_assert_eq!(parse_deleted(answer.as_bytes()).unwrap().deleted, [key]);
    }

    /// Proves H111.
    #[test]
    fn any_key_of_an_encoded_page_is_decoded_once(keys in prop::collection::vec(any::<String>(), 1..4)) {
        let keys: Vec<_> = keys.into_iter().filter(|key| !key.is_empty()).collect();
        let mut objects = String::new();
        for key in &keys {
            objects.push_str("<Contents><Size>1</Size><Key>");
            objects.push_str(&encode(key));
            objects.push_str("</Key></Contents>");
        }
        let page = format!("<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>{objects}</ListBucketResult>");
        let read: Vec<_> = parse_listing(page.as_bytes()).unwrap().objects.into_iter().map(|object| object.key).collect();
        prop_assert_eq!(read, keys);
    }
}

/// Proves H12.
#[test]
fn a_page_with_an_unreadable_flag_is_refused() {
    for flag in ["1", "yes", "True!", "tru"] {
        let text = format!("<ListBucketResult><IsTruncated>{flag}</IsTruncated></ListBucketResult>");
        let wrong = XmlError::Missing("word on whether it is the last page");
        assert_eq!(parse_listing(text.as_bytes()), Err(wrong), "{flag}");
    }
}

/// Proves H12.
#[test]
fn a_continuation_token_is_kept_unchanged() {
    // Some servers name the last key, and blanks belong to a key.
    let text = "<ListBucketResult><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>\
                <NextContinuationToken> a%20b+c </NextContinuationToken></ListBucketResult>";
    assert_eq!(parse_listing(text.as_bytes()).unwrap().next.as_deref(), Some(" a%20b+c "));
}

/// Proves H117.
#[test]
fn an_object_without_a_key_is_refused() {
    for key in ["<Key/>", "<Key></Key>", "<Key>a<b/></Key>", ""] {
        let text = format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{key}<Size>1</Size></Contents></ListBucketResult>"
        );
        assert_eq!(parse_listing(text.as_bytes()), Err(XmlError::Missing("key of an object")), "{key}");
    }
}

/// Proves H117.
#[test]
fn many_small_elements_take_little_memory() {
    let text = format!("<ListBucketResult>{}</ListBucketResult>", "<a/>".repeat(1 << 20));
    assert!(text.len() < LARGE_LIMIT);
    assert_eq!(parse_listing(text.as_bytes()), Err(XmlError::TooLarge));
}

/// Proves H117.
#[test]
fn the_limit_of_depth_is_the_same_for_empty_elements() {
    let nested =
        |depth: usize, inside: &str| format!("{}{inside}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    let other = Err(XmlError::Unexpected("a".to_owned()));
    assert_eq!(parse_copied(nested(16, "").as_bytes()), other);
    assert_eq!(parse_copied(nested(15, "<b/>").as_bytes()), other);
    assert_eq!(parse_copied(nested(16, "<b/>").as_bytes()), Err(XmlError::TooDeep));
}

/// Proves H31.
#[test]
fn a_lifecycle_rule_counts_unless_it_is_disabled_or_elsewhere() {
    let text = "<LifecycleConfiguration><Rule><Prefix> a</Prefix><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>";
    let rules = parse_lifecycle(text.as_bytes()).unwrap();
    assert_eq!((rules[0].enabled, rules[0].prefix.as_str()), (true, " a"));
}

/// Proves H111.
#[test]
fn a_page_falsely_declared_as_encoded_is_refused() {
    for key in ["100%", "a%2", "a%zz", "%ff"] {
        let text = format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>\
             <Contents><Key>{key}</Key><Size>1</Size></Contents></ListBucketResult>"
        );
        assert_eq!(parse_listing(text.as_bytes()), Err(XmlError::Missing("key of an object")), "{key}");
    }
    // Each of them once.
    let twice = "<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>\
                 <Contents><Key>a%252Fb</Key><Size>1</Size></Contents></ListBucketResult>";
    assert_eq!(parse_listing(twice.as_bytes()).unwrap().objects[0].key, "a%2Fb");
}

/// Proves H108.
///
/// The same two keys, in pages of different servers: AWS, Ceph, Swift, Garage, R2.
#[test]
fn pages_of_many_servers_are_read_alike() {
    let aws = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>s/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Contents><Key>s/a+b</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;70ee1738b6b21e2c8a43f3a5ab0eee71&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>11</Size><StorageClass>STANDARD</StorageClass></Contents><Contents><Key>s/c</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>0</Size><StorageClass>GLACIER</StorageClass><RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress></RestoreStatus></Contents></ListBucketResult>"#;
    let ceph = r#"<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>s%2F</Prefix><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Contents><Key>s%2Fa%20b</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;70ee&quot;</ETag><Size>11</Size><StorageClass>STANDARD</StorageClass><Owner><ID>u</ID><DisplayName>U</DisplayName></Owner><Type>Normal</Type></Contents><Contents><Key>s%2Fc</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>0</Size></Contents><KeyCount>2</KeyCount></ListBucketResult>"#;
    let swift = "<?xml version='1.0' encoding='UTF-8'?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>s/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Contents><Key>s/a%20b</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>\"70ee\"</ETag><Size>11</Size><StorageClass>STANDARD</StorageClass></Contents><Contents><Key>s/c</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>\"x\"</ETag><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>";
    let garage = r#"<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>s%2F</Prefix><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><KeyCount>2</KeyCount><IsTruncated>false</IsTruncated><Contents><Key>s%2Fa%20b</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;70ee&quot;</ETag><Size>11</Size><StorageClass>STANDARD</StorageClass></Contents><Contents><Key>s%2Fc</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"#;
    let r2 = r#"<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Contents><Key>s/a%20b</Key><Size>11</Size><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>"70ee"</ETag><StorageClass>STANDARD</StorageClass></Contents><Contents><Key>s/c</Key><Size>0</Size><LastModified>2009-10-12T17:50:30.000Z</LastModified><ETag>"x"</ETag></Contents><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType><Prefix>s/</Prefix><MaxKeys>1000</MaxKeys><KeyCount>2</KeyCount></ListBucketResult>"#;
    for page in [aws, ceph, swift, garage, r2] {
        let listing = parse_listing(page.as_bytes()).unwrap();
        let short: Vec<_> = listing.objects.iter().map(|object| (object.key.as_str(), object.size)).collect();
        assert_eq!(short, [("s/a b", 11), ("s/c", 0)], "{page}");
        assert_eq!(
            (listing.truncated, listing.key_count, listing.next),
            (Some(false), Some(2), None),
            "{page}"
        );
        let times = listing.objects.iter().map(|object| object.last_modified);
        assert!(
            times.flatten().count() == 2 && listing.objects[1].etag.as_deref() == Some("\"x\""),
            "{page}"
        );
    }
}

#[test]
fn a_page_of_the_first_version_names_a_marker() {
    let text = "<ListBucketResult><EncodingType>url</EncodingType><Marker/><NextMarker>s/a%20b</NextMarker><IsTruncated>true</IsTruncated></ListBucketResult>";
    let listing = parse_listing(text.as_bytes()).unwrap();
    assert_eq!((listing.next_marker.as_deref(), listing.next), (Some("s/a b"), None));
}

#[test]
fn regions_of_buckets_are_read() {
    let xmlns = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
    for (inside, region) in [
        ("eu-west-1", Some("eu-west-1")),
        ("default", Some("default")),
        ("<LocationConstraint>garage</LocationConstraint>", Some("garage")),
        ("\n", None),
    ] {
        let text = format!("{DECLARATION}\n<LocationConstraint {xmlns}>{inside}</LocationConstraint>");
        assert_eq!(parse_location(text.as_bytes()).unwrap().as_deref(), region, "{inside}");
    }
    assert_eq!(parse_location(format!("<LocationConstraint {xmlns}/>").as_bytes()), Ok(None));
}

#[test]
fn errors_name_their_subject() {
    let aws = "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message><Resource>/b/k</Resource>\
               <RequestId>4442587FB7D0A2F9</RequestId><HostId>hg==</HostId></Error>";
    let error = parse_error(aws.as_bytes()).unwrap();
    let said = [&error.resource, &error.request_id, &error.host_id].map(Option::as_deref);
    assert_eq!(said, [Some("/b/k"), Some("4442587FB7D0A2F9"), Some("hg==")]);
    let ceph = "<Error><Code>NoSuchBucket</Code><BucketName>b</BucketName><RequestId>tx0</RequestId><HostId>x-default</HostId></Error>";
    assert_eq!(parse_error(ceph.as_bytes()).unwrap().bucket.as_deref(), Some("b"));
}

#[test]
fn lifecycle_rules_for_incomplete_uploads_are_read() {
    let rule = |abort: &str| {
        let text = format!(
            "<LifecycleConfiguration><Rule><ID>x</ID><Filter/>{abort}</Rule></LifecycleConfiguration>"
        );
        parse_lifecycle(text.as_bytes()).unwrap()[0].abort_days
    };
    let abort = |days: &str| {
        format!(
            "<AbortIncompleteMultipartUpload><DaysAfterInitiation>{days}</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
        )
    };
    assert_eq!([rule(&abort("7")), rule(&abort("soon")), rule("")], [Some(7), None, None]);
}

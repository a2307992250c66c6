//! The operations, as `s3s` hands them over: parsed, and signed by one who may.

use std::sync::Arc;

use async_trait::async_trait;
use hyper::HeaderMap;
use hyper::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
#[allow(clippy::wildcard_imports, reason = "the input and the output of every operation")]
use s3s::dto::*;
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use super::list::{After, Query, encoded, listed, listed_uploads, page, page_entries, shown};
use super::store::{About, Bucket, Conditions, Object, Part, Store, size};
use super::{REGION, body};

/// Most keys of one deletion of many.
const DELETE_KEYS: usize = 1000;

type Answer<T> = S3Result<S3Response<T>>;
type BucketEntry = s3s::dto::Bucket;

pub(super) struct Service {
    store: Arc<Store>,
}

impl Service {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn check_bucket(&self, bucket: &str) -> S3Result {
        self.store.with(bucket, |_| Ok(()))
    }

    /// An object for a reader who has conditions.
    fn object_for(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&ETagCondition>,
        if_none_match: Option<&ETagCondition>,
    ) -> S3Result<Object> {
        let object = self.store.with(bucket, |bucket| bucket.get(key).cloned())?;
        if if_match.is_some_and(|condition| !object.meets(condition)) {
            return Err(s3_error!(PreconditionFailed));
        }
        if if_none_match.is_some_and(|condition| object.meets(condition)) {
            let mut unchanged = s3_error!(NotModified);
            let etag = object.etag.to_http_header().map_err(S3Error::internal_error)?;
            unchanged.set_headers(HeaderMap::from_iter([(ETAG, etag)]));
            return Err(unchanged);
        }
        Ok(object)
    }
}

#[async_trait]
impl S3 for Service {
    async fn list_buckets(&self, request: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        let prefix = request.input.prefix.unwrap_or_default();
        let buckets = self.store.buckets().into_iter().filter(|(name, _)| name.starts_with(&prefix));
        answer(ListBucketsOutput {
            buckets: Some(
                buckets
                    .map(|(name, created)| BucketEntry {
                        creation_date: Some(created.into()),
                        name: Some(name),
                        ..BucketEntry::default()
                    })
                    .collect(),
            ),
            ..ListBucketsOutput::default()
        })
    }

    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        self.store.create_bucket(&request.input.bucket)?;
        answer(CreateBucketOutput { location: Some(format!("/{}", request.input.bucket)) })
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.check_bucket(&request.input.bucket)?;
        answer(HeadBucketOutput { bucket_region: Some(REGION.to_owned()), ..HeadBucketOutput::default() })
    }

    async fn delete_bucket(&self, request: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        self.store.delete_bucket(&request.input.bucket)?;
        answer(DeleteBucketOutput {})
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> Answer<GetBucketLocationOutput> {
        self.check_bucket(&request.input.bucket)?;
        // Empty stands for us-east-1.
        answer(GetBucketLocationOutput::default())
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> Answer<GetBucketVersioningOutput> {
        self.check_bucket(&request.input.bucket)?;
        answer(GetBucketVersioningOutput::default())
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        request: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> Answer<GetBucketLifecycleConfigurationOutput> {
        self.check_bucket(&request.input.bucket)?;
        Err(s3_error!(NoSuchLifecycleConfiguration, "The lifecycle configuration does not exist"))
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> Answer<GetObjectLockConfigurationOutput> {
        self.check_bucket(&request.input.bucket)?;
        Err(s3_error!(
            ObjectLockConfigurationNotFoundError,
            "Object Lock configuration does not exist for this bucket"
        ))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let input = request.input;
        check_version(input.version_id.as_deref())?;
        let object = self.object_for(
            &input.bucket,
            &input.key,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
        )?;
        let mut bytes = object.bytes;
        let mut content_range = None;
        if let Some(range) = input.range {
            let whole = bytes.len();
            let range = range.check(whole as u64)?;
            content_range = Some(format!("bytes {}-{}/{whole}", range.start, range.end - 1));
            bytes = bytes.slice(index(range.start)?..index(range.end)?);
        }
        answer(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(size(bytes.len())),
            body: Some(StreamingBlob::from(Body::from(bytes))),
            content_range,
            content_type: object.about.content_type,
            e_tag: Some(object.etag),
            last_modified: Some(object.modified.into()),
            metadata: object.about.metadata,
            server_side_encryption: object.about.encryption,
            storage_class: object.about.storage_class,
            ..GetObjectOutput::default()
        })
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let input = request.input;
        check_version(input.version_id.as_deref())?;
        let object = self.object_for(
            &input.bucket,
            &input.key,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
        )?;
        answer(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(size(object.bytes.len())),
            content_type: object.about.content_type,
            e_tag: Some(object.etag),
            last_modified: Some(object.modified.into()),
            metadata: object.about.metadata,
            server_side_encryption: object.about.encryption,
            storage_class: object.about.storage_class,
            ..HeadObjectOutput::default()
        })
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        if input.sse_customer_algorithm.is_some() {
            return Err(s3_error!(NotImplemented, "There is no encryption by customers' keys"));
        }
        let bytes = body::read(input.body, input.content_length).await?;
        let sent = Checksum {
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..Checksum::default()
        };
        body::check(&bytes, input.content_md5.as_deref(), &sent)?;
        let about = About {
            content_type: input.content_type,
            encryption: input.server_side_encryption.clone(),
            metadata: input.metadata,
            storage_class: input.storage_class,
        };
        let object = Object::new(bytes, about);
        let etag = object.etag.clone();
        let conditions = Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        self.store.with(&input.bucket, |bucket| bucket.put(&input.key, object, &conditions))?;
        answer(PutObjectOutput {
            checksum_crc32: sent.checksum_crc32,
            checksum_crc32c: sent.checksum_crc32c,
            checksum_crc64nvme: sent.checksum_crc64nvme,
            checksum_sha1: sent.checksum_sha1,
            checksum_sha256: sent.checksum_sha256,
            e_tag: Some(etag),
            server_side_encryption: input.server_side_encryption,
            ..PutObjectOutput::default()
        })
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        let conditions = copy_conditions(&request.headers)?;
        let input = request.input;
        let CopySource::Bucket { bucket, key, version_id } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "A source is BUCKET/KEY"));
        };
        check_version(version_id.as_deref())?;
        let replaces = input
            .metadata_directive
            .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
        if !replaces && input.storage_class.is_none() && **bucket == input.bucket && **key == input.key {
            return Err(s3_error!(InvalidRequest, "This copy would change nothing"));
        }
        let source = self.store.with(bucket, |bucket| bucket.get(key).cloned())?;
        let unmet =
            |condition: Option<ETagCondition>, met| condition.is_some_and(|one| source.meets(&one) != met);
        if unmet(input.copy_source_if_match, true) || unmet(input.copy_source_if_none_match, false) {
            return Err(s3_error!(PreconditionFailed));
        }
        let mut about = About { storage_class: input.storage_class, ..source.about };
        if replaces {
            about.content_type = input.content_type;
            about.metadata = input.metadata;
        }
        let object = Object::new(source.bytes, about);
        let copied = CopyObjectResult {
            e_tag: Some(object.etag.clone()),
            last_modified: Some(object.modified.into()),
            ..CopyObjectResult::default()
        };
        self.store.with(&input.bucket, |bucket| bucket.put(&input.key, object, &conditions))?;
        answer(CopyObjectOutput { copy_object_result: Some(copied), ..CopyObjectOutput::default() })
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let input = request.input;
        check_version(input.version_id.as_deref())?;
        self.store.with(&input.bucket, |bucket| bucket.delete(&input.key, input.if_match))?;
        answer(DeleteObjectOutput::default())
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        let Delete { objects, quiet } = request.input.delete;
        if objects.is_empty() || objects.len() > DELETE_KEYS {
            return Err(s3_error!(MalformedXML, "One deletion is of 1 to {DELETE_KEYS} keys"));
        }
        let mut deleted = Vec::new();
        let mut errors = Vec::new();
        self.store.with(&request.input.bucket, |bucket| {
            for object in objects {
                match delete_one(bucket, &object) {
                    Ok(()) if quiet == Some(true) => {}
                    Ok(()) => {
                        deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
                    }
                    Err(error) => errors.push(Error {
                        code: Some(error.code().as_str().to_owned()),
                        key: Some(object.key),
                        message: error.message().map(str::to_owned),
                        version_id: object.version_id,
                    }),
                }
            }
            Ok(())
        })?;
        answer(DeleteObjectsOutput {
            deleted: Some(deleted),
            errors: Some(errors),
            ..DeleteObjectsOutput::default()
        })
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        let input = request.input;
        let most = page_entries(input.max_keys)?;
        let after = match &input.continuation_token {
            Some(token) => After::from_token(token)
                .ok_or_else(|| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))?,
            None => After::Key(input.start_after.clone().unwrap_or_default()),
        };
        let prefix = input.prefix.clone().unwrap_or_default();
        let query = Query { after, delimiter: input.delimiter.as_deref(), most, prefix: &prefix };
        let shown = shown(input.encoding_type.as_ref())?;
        let mut output = self.store.with(&input.bucket, |bucket| {
            let page = page(&bucket.objects, &query);
            Ok(listed(&page, shown))
        })?;
        output.continuation_token = input.continuation_token;
        output.delimiter = input.delimiter.as_deref().map(shown);
        output.max_keys = i32::try_from(most).ok();
        output.prefix = Some(shown(&prefix));
        output.start_after = input.start_after.as_deref().map(shown);
        output.encoding_type = input.encoding_type;
        output.name = Some(input.bucket);
        answer(output)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        let input = request.input;
        if input.sse_customer_algorithm.is_some() {
            return Err(s3_error!(NotImplemented, "There is no encryption by customers' keys"));
        }
        let about = About {
            content_type: input.content_type,
            encryption: input.server_side_encryption.clone(),
            metadata: input.metadata,
            storage_class: input.storage_class,
        };
        let id = self.store.create_upload(&input.bucket, &input.key, about)?;
        answer(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            server_side_encryption: input.server_side_encryption,
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        })
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        let input = request.input;
        self.check_bucket(&input.bucket)?;
        let bytes = body::read(input.body, input.content_length).await?;
        let sent = Checksum {
            checksum_crc32: input.checksum_crc32,
            checksum_crc32c: input.checksum_crc32c,
            checksum_crc64nvme: input.checksum_crc64nvme,
            checksum_sha1: input.checksum_sha1,
            checksum_sha256: input.checksum_sha256,
            ..Checksum::default()
        };
        body::check(&bytes, input.content_md5.as_deref(), &sent)?;
        let part = Part::new(bytes);
        let etag = self.store.with(&input.bucket, |bucket| {
            bucket.put_part(&input.key, &input.upload_id, input.part_number, part)
        })?;
        answer(UploadPartOutput {
            checksum_crc32: sent.checksum_crc32,
            checksum_crc32c: sent.checksum_crc32c,
            checksum_crc64nvme: sent.checksum_crc64nvme,
            checksum_sha1: sent.checksum_sha1,
            checksum_sha256: sent.checksum_sha256,
            e_tag: Some(etag),
            ..UploadPartOutput::default()
        })
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let input = request.input;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let conditions = Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        let etag = self.store.with(&input.bucket, |bucket| {
            bucket.complete(&input.key, &input.upload_id, &parts, &conditions)
        })?;
        answer(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, encoded(&input.key))),
            bucket: Some(input.bucket),
            e_tag: Some(etag),
            key: Some(input.key),
            ..CompleteMultipartUploadOutput::default()
        })
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        let input = request.input;
        self.store.with(&input.bucket, |bucket| bucket.abort(&input.key, &input.upload_id))?;
        answer(AbortMultipartUploadOutput::default())
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "Uploads are listed without a delimiter"));
        }
        let most = page_entries(input.max_uploads)?;
        let shown = shown(input.encoding_type.as_ref())?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let marker = (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone());
        let mut output = self.store.with(&input.bucket, |bucket| {
            Ok(listed_uploads(bucket, &prefix, (&marker.0, marker.1.as_deref()), most, shown))
        })?;
        output.bucket = Some(input.bucket);
        output.encoding_type = input.encoding_type;
        output.key_marker = Some(shown(&marker.0));
        output.max_uploads = i32::try_from(most).ok();
        output.prefix = Some(shown(&prefix));
        output.upload_id_marker = marker.1;
        answer(output)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what an operation ends with")]
fn answer<T>(output: T) -> Answer<T> {
    Ok(S3Response::new(output))
}

/// There are no versions but the only one.
fn check_version(version: Option<&str>) -> S3Result {
    match version {
        None | Some("null") => Ok(()),
        Some(_) => Err(s3_error!(NoSuchVersion)),
    }
}

/// `s3s` does not know these of a copy. AWS does since 2025.
fn copy_conditions(headers: &HeaderMap) -> S3Result<Conditions> {
    let condition = |name| {
        let value = headers.get(name).map(|value| ETagCondition::parse_http_header(value.as_bytes()));
        value.transpose().map_err(|_| s3_error!(InvalidArgument, "This is no condition"))
    };
    Ok(Conditions { if_match: condition(IF_MATCH)?, if_none_match: condition(IF_NONE_MATCH)? })
}

fn delete_one(bucket: &mut Bucket, object: &ObjectIdentifier) -> S3Result {
    check_version(object.version_id.as_deref())?;
    bucket.delete(&object.key, object.e_tag.clone().map(ETagCondition::ETag))
}

fn index(position: u64) -> S3Result<usize> {
    usize::try_from(position).map_err(S3Error::internal_error)
}

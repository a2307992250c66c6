//! The buckets, and every change of them under one lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use md5::{Digest as _, Md5};
use s3s::dto::{CompletedPart, ETag, ETagCondition, Metadata, ServerSideEncryption, StorageClass};
use s3s::{S3Result, s3_error};

/// No part of a multipart upload but the last may be smaller.
const LEAST_PART_BYTES: usize = 5 << 20;

/// All buckets.
#[derive(Default)]
pub(super) struct Store {
    buckets: Mutex<BTreeMap<String, Bucket>>,
    uploads: AtomicU64,
}

pub(super) struct Bucket {
    pub(super) created: SystemTime,
    pub(super) objects: BTreeMap<String, Object>,
    /// By key and then by id, and ids are in the order in which they were given.
    pub(super) uploads: BTreeMap<(String, String), Upload>,
}

#[derive(Clone)]
pub(super) struct Object {
    pub(super) about: About,
    pub(super) bytes: Bytes,
    pub(super) etag: ETag,
    pub(super) modified: SystemTime,
}

/// The parameters of a put besides its content.
#[derive(Clone, Default)]
pub(super) struct About {
    pub(super) content_type: Option<String>,
    pub(super) encryption: Option<ServerSideEncryption>,
    pub(super) metadata: Option<Metadata>,
    pub(super) storage_class: Option<StorageClass>,
}

pub(super) struct Upload {
    about: About,
    pub(super) initiated: SystemTime,
    parts: BTreeMap<i32, Part>,
}

pub(super) struct Part {
    bytes: Bytes,
    md5: [u8; 16],
}

/// The conditions on the object that a request would replace, read or delete.
///
/// Source: AWS, "How to prevent object overwrites with conditional writes".
#[derive(Default)]
pub(super) struct Conditions {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
}

impl Conditions {
    fn allow(&self, current: Option<&Object>) -> S3Result {
        match (&self.if_match, current) {
            (None, _) => {}
            (Some(_), None) => return Err(s3_error!(NoSuchKey)),
            (Some(condition), Some(object)) if object.meets(condition) => {}
            (Some(_), Some(_)) => return Err(s3_error!(PreconditionFailed)),
        }
        match (&self.if_none_match, current) {
            (None, _) | (Some(ETagCondition::Any), None) => Ok(()),
            (Some(ETagCondition::Any), Some(_)) => Err(s3_error!(PreconditionFailed)),
            (Some(ETagCondition::ETag(_)), _) => {
                Err(s3_error!(NotImplemented, "If-None-Match of a write can only be *"))
            }
        }
    }
}

impl Object {
    pub(super) fn new(bytes: Bytes, about: About) -> Self {
        let etag = ETag::Strong(hex(&md5(&bytes)));
        Self { about, bytes, etag, modified: now() }
    }

    pub(super) fn meets(&self, condition: &ETagCondition) -> bool {
        match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(etag) => etag.strong_cmp(&self.etag),
        }
    }
}

impl Store {
    pub(super) fn create_bucket(&self, bucket: &str) -> S3Result {
        let mut buckets = self.lock();
        if buckets.contains_key(bucket) {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        buckets.insert(bucket.to_owned(), Bucket::new());
        Ok(())
    }

    pub(super) fn ensure_bucket(&self, bucket: &str) {
        self.lock().entry(bucket.to_owned()).or_insert_with(Bucket::new);
    }

    pub(super) fn delete_bucket(&self, bucket: &str) -> S3Result {
        let mut buckets = self.lock();
        let found = buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        if !found.objects.is_empty() {
            return Err(s3_error!(BucketNotEmpty));
        }
        buckets.remove(bucket);
        Ok(())
    }

    /// Their names and when they were made.
    pub(super) fn buckets(&self) -> Vec<(String, SystemTime)> {
        self.lock().iter().map(|(name, bucket)| (name.clone(), bucket.created)).collect()
    }

    pub(super) fn contents(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        let buckets = self.lock();
        let bucket = buckets.get(bucket).unwrap_or_else(|| panic!("there is no bucket {bucket}"));
        bucket.objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Does something with a bucket, and nothing else happens in between.
    pub(super) fn with<T>(&self, bucket: &str, act: impl FnOnce(&mut Bucket) -> S3Result<T>) -> S3Result<T> {
        act(self.lock().get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?)
    }

    /// The id of a new upload.
    pub(super) fn create_upload(&self, bucket: &str, key: &str, about: About) -> S3Result<String> {
        self.with(bucket, |bucket| {
            let id = format!("upload-{:08}", self.uploads.fetch_add(1, Ordering::SeqCst));
            let upload = Upload { about, initiated: now(), parts: BTreeMap::new() };
            bucket.uploads.insert((key.to_owned(), id.clone()), upload);
            Ok(id)
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn new() -> Self {
        Self { created: now(), objects: BTreeMap::new(), uploads: BTreeMap::new() }
    }

    pub(super) fn get(&self, key: &str) -> S3Result<&Object> {
        self.objects.get(key).ok_or_else(|| s3_error!(NoSuchKey))
    }

    pub(super) fn put(&mut self, key: &str, object: Object, conditions: &Conditions) -> S3Result {
        conditions.allow(self.objects.get(key))?;
        self.objects.insert(key.to_owned(), object);
        Ok(())
    }

    /// Deleting an absent object succeeds, unless the request has a condition.
    pub(super) fn delete(&mut self, key: &str, if_match: Option<ETagCondition>) -> S3Result {
        Conditions { if_match, if_none_match: None }.allow(self.objects.get(key))?;
        self.objects.remove(key);
        Ok(())
    }

    pub(super) fn put_part(&mut self, key: &str, id: &str, number: i32, part: Part) -> S3Result<ETag> {
        if !(1..=10_000).contains(&number) {
            return Err(s3_error!(InvalidArgument, "Part number must be between 1 and 10000"));
        }
        let etag = part.etag();
        self.upload(key, id)?.parts.insert(number, part);
        Ok(etag)
    }

    /// Makes an object of parts. An upload that is refused stays.
    pub(super) fn complete(
        &mut self,
        key: &str,
        id: &str,
        parts: &[CompletedPart],
        conditions: &Conditions,
    ) -> S3Result<ETag> {
        let object = self.upload(key, id)?.assembled(parts)?;
        let etag = object.etag.clone();
        self.put(key, object, conditions)?;
        self.abort(key, id)?;
        Ok(etag)
    }

    pub(super) fn abort(&mut self, key: &str, id: &str) -> S3Result {
        let upload = self.uploads.remove(&(key.to_owned(), id.to_owned()));
        upload.map(drop).ok_or_else(|| s3_error!(NoSuchUpload))
    }

    fn upload(&mut self, key: &str, id: &str) -> S3Result<&mut Upload> {
        self.uploads.get_mut(&(key.to_owned(), id.to_owned())).ok_or_else(|| s3_error!(NoSuchUpload))
    }
}

impl Upload {
    /// Source: AWS `API_CompleteMultipartUpload`.
    fn assembled(&self, named: &[CompletedPart]) -> S3Result<Object> {
        if named.is_empty() {
            return Err(s3_error!(MalformedXML));
        }
        if !named.is_sorted_by(|a, b| a.part_number < b.part_number) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let mut bytes = BytesMut::new();
        let mut digests = Md5::new();
        for (index, part) in named.iter().enumerate() {
            let stored = part.part_number.and_then(|number| self.parts.get(&number));
            let stored = stored.ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref().map(ETag::value) != Some(stored.etag().value()) {
                return Err(s3_error!(InvalidPart));
            }
            if stored.bytes.len() < LEAST_PART_BYTES && index + 1 < named.len() {
                return Err(s3_error!(EntityTooSmall));
            }
            digests.update(stored.md5);
            bytes.extend_from_slice(&stored.bytes);
        }
        let etag = ETag::Strong(format!("{}-{}", hex(&digests.finalize()), named.len()));
        Ok(Object { about: self.about.clone(), bytes: bytes.freeze(), etag, modified: now() })
    }
}

impl Part {
    pub(super) fn new(bytes: Bytes) -> Self {
        let md5 = md5(&bytes);
        Self { bytes, md5 }
    }

    fn etag(&self) -> ETag {
        ETag::Strong(hex(&self.md5))
    }
}

pub(super) fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

pub(super) fn size(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "signatures are checked by this clock too")]
fn now() -> SystemTime {
    SystemTime::now()
}

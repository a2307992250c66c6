//! Objects: contents, descriptions and versions, and the conditions and results of changes.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::format::layout::Key;

/// The condition of a put.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// The object must not exist.
    Create,
    /// The object must exist in this version.
    IfMatch(Version),
    /// No condition.
    Replace,
}

/// The opaque version of an object. Any two contents that an object has had have different versions; there is no order.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// A version made from a text of the backend.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text that the backend made it from.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({})", self.0)
    }
}

/// Bytes of an object and its description.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Object {
    /// The bytes of the object, or of the range that was read.
    pub bytes: Bytes,
    /// The description of the whole object.
    pub info: ObjectInfo,
}

impl Object {
    /// Bytes of the object that `info` describes.
    pub fn new(bytes: Bytes, info: ObjectInfo) -> Self {
        Self { bytes, info }
    }
}

/// The description of an object.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key.
    pub key: Key,
    /// The time at which it was last stored, touched or, on some backends, read, by the [clock](crate::backend::Coordination::clock) of the
    /// backend.
    pub last_used: SystemTime,
    /// Size in bytes.
    pub size: u64,
    /// The version.
    pub version: Version,
}

impl ObjectInfo {
    /// A description of an object of `size` bytes.
    pub fn new(key: Key, size: u64, last_used: SystemTime, version: Version) -> Self {
        Self { key, last_used, size, version }
    }
}

/// The result of [`Backend::touch`](crate::backend::Backend::touch) for one object.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The object does not exist.
    Absent,
    /// The object exists and was touched.
    Present(ObjectInfo),
    /// Not known: a lookup would cost a request. Nothing was done.
    Unknown,
}

/// An object to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The key.
    pub key: Key,
    /// The version that the object must have; `None` deletes any version.
    pub version: Option<Version>,
}

impl Removal {
    /// Deletes the object in any version.
    #[must_use]
    pub fn any(key: Key) -> Self {
        Self { key, version: None }
    }
}

/// The outcome of deleting one object. In each case, it does not exist any more.
#[expect(clippy::exhaustive_enums, reason = "callers must handle each outcome")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It did not exist.
    Absent,
    /// It existed and was deleted.
    Removed,
    /// The backend does not know whether it existed.
    Unknown,
    /// It was deleted, but an earlier request without an answer may be executed later and delete a new object under the same key.
    InDoubt,
}

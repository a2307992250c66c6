//! Objects: contents, descriptions and versions, and the conditions and results of changes.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::format::layout::Key;

/// When a put may take place.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Only if nothing is there yet.
    Create,
    /// Only if what is there is of this version.
    IfMatch(Version),
    /// Always.
    Replace,
}

/// An opaque mark that differs between any two contents that an object has had. Only equality means something.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// A version from the text that a backend gives it.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text that the backend gave it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({})", self.0)
    }
}

/// Bytes of an object and what is known of it.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Object {
    /// The bytes that were asked for.
    pub bytes: Bytes,
    /// The object as a whole.
    pub info: ObjectInfo,
}

impl Object {
    /// Bytes that were read, of the object that `info` describes.
    pub fn new(bytes: Bytes, info: ObjectInfo) -> Self {
        Self { bytes, info }
    }
}

/// What is known of an object without reading it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub key: Key,
    /// When it was last stored, touched or, on some backends, read, by the clock of the backend.
    pub last_used: SystemTime,
    /// Its length in bytes.
    pub size: u64,
    /// Its version.
    pub version: Version,
}

impl ObjectInfo {
    /// A description of an object of `size` bytes.
    pub fn new(key: Key, size: u64, last_used: SystemTime, version: Version) -> Self {
        Self { key, last_used, size, version }
    }
}

/// What [`Backend::touch`] found.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// It is certainly not there.
    Absent,
    /// It is there and was touched.
    Present(ObjectInfo),
    /// Finding out would cost a request, and nothing was done.
    Unknown,
}

/// An object to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its name.
    pub key: Key,
    /// If given, only this version is deleted.
    pub version: Option<Version>,
}

impl Removal {
    /// Deletes the object whatever its version.
    #[must_use]
    pub fn any(key: Key) -> Self {
        Self { key, version: None }
    }
}

/// What became of an object that was to be deleted.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It was not there.
    Absent,
    /// It was there and is gone.
    Removed,
    /// It is not there; whether it was, the backend did not find out.
    Unknown,
    /// It is not there, but a request without an answer may delete it once more: what is stored there soon may vanish (H17).
    Unsettled,
}

//! The messages between client and S3 server, as buffers: no I/O, no clock, no randomness.

#[cfg(feature = "s3")]
pub mod date;
#[cfg(feature = "s3")]
pub mod http_body;
#[cfg(feature = "s3")]
pub mod http_head;
pub mod percent;
#[cfg(feature = "s3")]
pub mod s3_xml;
#[cfg(feature = "s3")]
pub mod sigv4;
#[cfg(feature = "s3")]
pub mod uri;

//! The messages between client and S3 server, as buffers: no I/O, no clock, no randomness.

pub mod base64;
pub mod date;
pub mod http_body;
pub mod http_head;
pub mod s3_xml;
pub mod sigv4;
pub mod uri;

//! Guides, and a glossary.

#[doc = include_str!("backend.md")]
#[cfg_attr(feature = "testing", doc = "```no_run")]
#[cfg_attr(not(feature = "testing"), doc = "```ignore")]
#[doc = include_str!("custom_backend.txt")]
#[doc = "```"]
pub mod backend {}

#[cfg(feature = "s3")]
#[doc = include_str!("bucket.md")]
pub mod bucket {}

#[doc = include_str!("cookbook.md")]
pub mod cookbook {}

#[cfg(feature = "s3")]
#[doc = include_str!("credentials.md")]
pub mod credentials {}

#[doc = include_str!("encryption.md")]
pub mod encryption {}

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("gc.md")]
pub mod gc {}

#[doc = include_str!("glossary.md")]
pub mod glossary {}

#[doc = include_str!("locking.md")]
pub mod locking {}

#[doc = include_str!("observability.md")]
#[doc(alias = "logging")]
#[doc(alias = "metrics")]
pub mod observability {}

#[doc = include_str!("packs.md")]
#[doc(alias = "pack")]
pub mod packs {}

#[cfg(feature = "testing")]
#[doc = include_str!("proof.md")]
#[doc(alias = "simulation")]
pub mod proof {}

#[doc = include_str!("prune.md")]
pub mod prune {}

#[cfg(feature = "s3")]
#[doc = include_str!("rights.md")]
#[doc(alias = "IAM")]
#[doc(alias = "permissions")]
pub mod rights {}

#[doc = include_str!("runtimes.md")]
pub mod runtimes {}

#[cfg(feature = "s3")]
#[doc = include_str!("s3.md")]
pub mod s3 {}

#[doc = include_str!("sync.md")]
pub mod sync {}

#[doc = include_str!("trees.md")]
#[doc(alias = "directories")]
#[doc(alias = "files")]
#[doc(alias = "pxar")]
pub mod trees {}

#[doc = include_str!("verify.md")]
pub mod verify {}
